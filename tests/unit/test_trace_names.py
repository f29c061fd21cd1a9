"""Whose is a name that somebody asks for, where the resolver knows it, does not, or says nothing at all?"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

from flannelpy.commands.doctor.about import About
from flannelpy.commands.trace import target
from flannelpy.core.errors import FlannelpyError, UsageError

from .test_doctor import about  # noqa: F401 - a fixture
from .test_trace import PEER, host  # noqa: F401 - host is a fixture

OTHER = replace(PEER, key="10.5.11.0-24", subnet="10.5.11.0/24", public_ip="192.0.2.11", name="h3")

Resolver = Callable[[str], list[str]]


@pytest.fixture
def named(host: About, monkeypatch: pytest.MonkeyPatch) -> About:  # noqa: F811
    """Two peers, who call themselves h2 and h3; nobody waits for long, and a busy machine answers within it."""
    assert host.status is not None
    host.status = replace(host.status, peers=(replace(PEER, name="h2"), OTHER))
    monkeypatch.setattr(target, "RESOLVE_S", 1.0)
    monkeypatch.setattr(target, "OBJECT_S", 0.5)
    return host


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str] | None]]:
    """What it knows; a name with None is not answered for until the test is over."""
    known: dict[str, list[str] | None] = {}
    over = threading.Event()

    def ask(name: str, *_args: Any, **_more: Any) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        found = known.get(name, [])
        if found is None:
            over.wait()
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    yield known
    over.set()


@pytest.mark.parametrize(("name", "public"), [("h2", "192.0.2.9"), ("H3", "192.0.2.11")])
@pytest.mark.parametrize("silent", [False, True])
async def test_a_peers_name_is_known_without_a_resolver(
    named: About, resolver: dict[str, list[str] | None], capsys: pytest.CaptureFixture[str], name: str, public: str, silent: bool
) -> None:
    resolver |= {name: None} if silent else {}
    found = await target.destination(named, name)
    assert str(found.public) == public
    said = f"DST {name}: the resolver has not said within 0.5 s whose name that is; {public} calls itself so"
    assert capsys.readouterr().err == (f"flannelpy: warning: {said}\n" if silent else "")


@pytest.mark.parametrize("addresses", [["192.0.2.11"], ["198.51.100.1", "192.0.2.11"]])
async def test_the_resolver_is_believed_before_who_calls_himself_so(
    named: About, resolver: dict[str, list[str] | None], addresses: list[str]
) -> None:
    resolver["h2"] = addresses
    assert str((await target.destination(named, "h2")).public) == "192.0.2.11"
    resolver["h2"] = ["198.51.100.1", "fe80::1%eth0"]
    with pytest.raises(FlannelpyError, match=r"h2 is 198\.51\.100\.1, fe80::1, which is no peer's PublicIP"):
        await target.destination(named, "h2")


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "DST 'nosuch': expected an address, a subnet, or a host's name"),
        ({"nosuch": None}, "the resolver has not said within 1 s whose name that is, and no host calls itself so: expected"),
    ],
)
async def test_a_name_that_nobody_knows_is_not_waited_for(
    named: About, resolver: dict[str, list[str] | None], known: dict[str, list[str] | None], said: str
) -> None:
    resolver |= known
    with pytest.raises(UsageError) as caught:
        await target.destination(named, "nosuch")
    assert said in str(caught.value)


async def test_of_two_with_one_name_none_is_chosen(named: About, resolver: dict[str, list[str] | None]) -> None:
    assert named.status is not None
    named.status = replace(named.status, peers=(replace(PEER, name="h3"), OTHER))
    for resolver["h3"] in ([], None):
        with pytest.raises(UsageError, match="2 hosts call themselves so"):
            await target.destination(named, "h3")


SILENT = """
import os, socket, sys, time
def ask(*_args, **_more):
    os.write(1, b"asked\\n")  # no buffer whose lock this thread would have at the end
    time.sleep(600)
socket.getaddrinfo = ask
from flannelpy.commands.trace import target
target.RESOLVE_S = 600
from flannelpy.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["trace", "ping"])
def test_ctrl_c_ends_the_wait_for_a_resolver(tmp_path: Path, command: str) -> None:
    env = tmp_path / "subnet.env"
    env.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    words = [command, "nosuch", f"--subnet-file={env}", f"--run-dir={tmp_path}", "--etcd-endpoints=http://127.0.0.1:9"]
    words = [sys.executable, "-c", SILENT, *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "asked\n"
            running.send_signal(SIGINT)
            out, err = running.communicate(timeout=20)
        finally:
            running.kill()
    assert (running.returncode, out, err.strip()) == (130, "", "")
