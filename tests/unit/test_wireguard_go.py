"""How is wireguard-go told, and what does it answer? Over a real socket, by one that answers as wireguard.com/xplatform says."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import WireguardDevice, WireguardPeer
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import key_text
from flannelpy.kernel import wireguard_go

DEV = "flannel-wg"
PRIVATE = bytes(range(32))
PEER = WireguardPeer(DEV, key_text(b"p" * 32), (IPAddress("192.0.2.9"), 51820), (IPNetwork("10.5.9.0/24"),), 25, Secret(b"s" * 32))
OTHER = WireguardPeer(
    DEV, key_text(b"q" * 32), (IPAddress("2001:db8::9"), 51821), (IPNetwork("10.5.8.0/24"), IPNetwork("fd05::/64"))
)


@dataclass
class Program:
    """What was asked, and what is answered; ``refused``: requests with these letters fail."""

    asked: list[str] = field(default_factory=list)
    answer: str = "errno=0\n\n"
    refused: str = ""


@pytest_asyncio.fixture
async def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Program]:
    monkeypatch.setattr(wireguard_go, "SOCKETS", tmp_path)
    here = Program()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\n\n")).decode()
        except asyncio.IncompleteReadError:
            return  # who only asked whether somebody is there
        finally:
            if reader.at_eof():
                writer.close()
        here.asked.append(request)
        failed = here.refused and here.refused in request
        writer.write(f"errno={-errno.EINVAL}\n\n".encode() if failed else here.answer.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / f"{DEV}.sock")
    yield here
    server.close()


def test_where_nobody_listens_nobody_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard_go, "SOCKETS", tmp_path)
    assert not wireguard_go.serves(DEV)
    (tmp_path / f"{DEV}.sock").touch()
    assert not wireguard_go.serves(DEV)


async def test_key_and_port(program: Program) -> None:
    assert await asyncio.to_thread(wireguard_go.serves, DEV)
    await wireguard_go.set_device(WireguardDevice(DEV, 51820, Secret(PRIVATE)))
    assert program.asked == [f"set=1\nprivate_key={PRIVATE.hex()}\nlisten_port=51820\n\n"]


async def test_peers_come_change_and_go_in_one_request(program: Program) -> None:
    assert await wireguard_go.apply_peers(DEV, [Step("add", PEER), Step("remove", OTHER, OTHER)]) == [None, None]
    assert program.asked == [
        "set=1\n"
        f"public_key={(b'p' * 32).hex()}\npreshared_key={(b's' * 32).hex()}\nendpoint=192.0.2.9:51820\n"
        "replace_allowed_ips=true\nallowed_ip=10.5.9.0/24\npersistent_keepalive_interval=25\n"
        f"public_key={(b'q' * 32).hex()}\nremove=true\n\n"
    ]


@pytest.mark.parametrize("changes", [{"keepalive_s": 0}, {"endpoint": (IPAddress("192.0.2.7"), 1)}, {"preshared_key": Secret(b"")}])
async def test_a_peer_that_keeps_its_addresses_is_never_without_them(program: Program, changes: dict[str, Any]) -> None:
    after = replace(PEER, **changes)
    assert await wireguard_go.apply_peers(DEV, [Step("change", after, PEER)]) == [None]
    assert "allowed_ip=10.5.9.0/24\n" in program.asked[0]
    assert "replace_allowed_ips" not in program.asked[0]
    other = replace(PEER, allowed_ips=(IPNetwork("10.5.10.0/24"),))
    assert await wireguard_go.apply_peers(DEV, [Step("change", other, PEER)]) == [None]
    assert "replace_allowed_ips=true\nallowed_ip=10.5.10.0/24\n" in program.asked[1]


async def test_what_is_refused_is_told_apart(program: Program) -> None:
    program.refused = (b"q" * 32).hex()
    one, other = await wireguard_go.apply_peers(DEV, [Step("add", PEER), Step("add", OTHER)])
    assert one is None
    assert other is not None
    assert str(other) == "wireguard-go of flannel-wg: Invalid argument"


async def test_what_is_there_is_read(program: Program) -> None:
    program.answer = (
        f"private_key={PRIVATE.hex()}\nlisten_port=51820\n"
        f"public_key={(b'p' * 32).hex()}\npreshared_key={(b's' * 32).hex()}\nprotocol_version=1\nendpoint=192.0.2.9:51820\n"
        "last_handshake_time_sec=1\nlast_handshake_time_nsec=5\ntx_bytes=1\nrx_bytes=2\n"
        "persistent_keepalive_interval=25\nallowed_ip=10.5.9.0/24\n"
        f"public_key={(b'q' * 32).hex()}\npreshared_key={bytes(32).hex()}\nprotocol_version=1\nendpoint=[2001:db8::9]:51821\n"
        "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n"
        "persistent_keepalive_interval=0\nallowed_ip=fd05::/64\nallowed_ip=10.5.8.0/24\nerrno=0\n\n"
    )
    device, one, other = await wireguard_go.observe(DEV)
    assert device == WireguardDevice(DEV, 51820, Secret(PRIVATE))
    assert (one, other) == (PEER, OTHER)
    assert isinstance(one, WireguardPeer)
    assert isinstance(other, WireguardPeer)
    assert (one.answered, other.answered) == (True, False)


@pytest.mark.parametrize("answer", ["", "errno=\n\n", "listen_port=1\n\n", "\xff\n\n"], ids=repr)
async def test_an_answer_that_is_none_is_an_error_without_a_secret(program: Program, answer: str) -> None:
    program.answer = answer
    with pytest.raises(KernelError) as failed:
        await wireguard_go.set_device(WireguardDevice(DEV, 51820, Secret(PRIVATE)))
    assert failed.value.code == errno.EPROTO
    assert PRIVATE.hex() not in str(failed.value)


async def test_a_device_that_nobody_answers_for_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard_go, "SOCKETS", tmp_path)
    assert await wireguard_go.observe(DEV) == []


SCRIPTS: list[tuple[str, Callable[[], bool], str]] = [
    ("exit 3", lambda: False, "wireguard-go has ended with 3: is there /dev/net/tun?"),
    ("exec sleep 60", lambda: False, "wireguard-go makes no device: is there /dev/net/tun?"),
]


@pytest.mark.parametrize("folder", ["sockets", "no/var/run"])
@pytest.mark.parametrize(("script", "there", "said"), SCRIPTS)
async def test_a_program_that_makes_no_device_is_ended_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, there: Callable[[], bool], said: str, folder: str
) -> None:
    monkeypatch.setattr(wireguard_go, "SOCKETS", tmp_path / folder)
    monkeypatch.setattr(wireguard_go, "START_S", 0.3)
    (tmp_path / "wireguard-go").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "wireguard-go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if script == "exit 3":
        monkeypatch.setattr(wireguard_go, "START_S", 30.0)
    with pytest.raises(KernelError, match=said.replace("?", r"\?")):
        await wireguard_go.start(DEV, there)
    assert list((tmp_path / folder).iterdir()) == []


async def test_a_name_that_another_namespace_has_is_not_taken_from_it(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard_go, "installed", lambda: "/bin/true")
    with pytest.raises(KernelError, match="is in use by a wireguard-go of another network namespace"):
        await wireguard_go.start(DEV, lambda: True)


@pytest.mark.parametrize("given", [1, 3])
async def test_what_we_were_given_open_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int) -> None:
    """Whoever reads what the agent's parent wrote would wait for wireguard-go, which goes on when the agent ends."""
    monkeypatch.setattr(wireguard_go, "SOCKETS", tmp_path / "sockets")
    held = tmp_path / "held"
    (tmp_path / "wireguard-go").write_text(f"#!/bin/sh\nls -l /proc/$$/fd > {held}.new; mv {held}.new {held}; exec sleep 60\n")
    (tmp_path / "wireguard-go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(wireguard_go, "START_S", 60.0)
    before = set(wireguard_go._started)
    ends = [end for _ in range(given) for end in os.pipe()]
    try:
        for end in ends:
            os.set_inheritable(end, True)
        names = [f"pipe:[{os.fstat(end).st_ino}]" for end in ends]
        await wireguard_go.start(DEV, held.exists)
        text = held.read_text()
        assert "socket:" in text
        assert [name for name in names if name in text] == []
    finally:
        for end in ends:
            os.close(end)
        for pid in wireguard_go._started - before:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
            wireguard_go._started.discard(pid)
