"""``flannelpy docker-opts`` on a host where an agent runs: what it has leased counts, not what somebody wrote into its file."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from netaddr import IPNetwork

from flannelpy.commands import docker
from flannelpy.commands.docker import leased, merge_options, write_options
from flannelpy.core.errors import FlannelpyError
from flannelpy.explain.status import SOCKET, EtcdStatus, LeaseStatus, Status, SubnetFileStatus, to_json

LEASE = LeaseStatus("198.18.77.0-24", "198.18.77.0/24", None, "192.0.2.1", None, "held", False)


def status(path: Path, *, written: bool = True, lease: LeaseStatus | None = LEASE) -> str:
    etcd = EtcdStatus(True, "http://192.0.2.9:2379", ("http://192.0.2.9:2379",), "/coreos.com/network")
    return to_json(
        Status(
            version="1",
            pid=1,
            since="",
            ready=True,
            why_not=(),
            etcd=etcd,
            lease=lease,
            subnet_file=SubnetFileStatus(str(path), written),
            conditions=(),
        )
    )


@contextmanager
def agent(run_dir: Path, body: str) -> Iterator[None]:
    """Whoever answers where an agent would, once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / SOCKET))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode())

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield
        finally:
            serving.join(10)
            assert not serving.is_alive()


def test_what_the_agent_of_this_file_has_leased(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    with agent(tmp_path, status(path)):
        assert leased(tmp_path, path) == IPNetwork("198.18.77.0/24")


def test_a_file_has_several_names(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    with agent(tmp_path, status(tmp_path / "run/subnet.env")):
        assert leased(tmp_path, tmp_path / "var/subnet.env") == IPNetwork("198.18.77.0/24")


@pytest.mark.parametrize("case", ["another's file", "not written yet", "no lease", "no agent", "another version", "nonsense"])
def test_an_agent_that_says_nothing_of_this_file_is_not_asked_twice(tmp_path: Path, case: str) -> None:
    path = tmp_path / "subnet.env"
    answers = {
        "another's file": status(tmp_path / "other.env"),
        "not written yet": status(path, written=False),
        "no lease": status(path, lease=None),
        "another version": json.dumps({"schema": 99}),
        "nonsense": "<html>",
    }
    if case == "no agent":
        assert leased(tmp_path, path) is None
        return
    with agent(tmp_path, answers[case]):
        assert leased(tmp_path, path) is None


def test_one_that_does_not_answer_keeps_docker_waiting_for_a_moment_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "WITHIN_S", 0.05)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / SOCKET))
        deaf.listen()
        assert leased(tmp_path, tmp_path / "subnet.env") is None


@pytest.mark.parametrize("subnet", ["198.18.77.1/24", "198.18.78.1/24"])
def test_a_foreign_subnet_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subnet: str
) -> None:
    monkeypatch.setenv("FLANNELPY_RUN_DIR", str(tmp_path))
    path, output = tmp_path / "subnet.env", tmp_path / "docker_opts.env"
    path.write_text(f"FLANNEL_SUBNET={subnet}\n")
    with agent(tmp_path, status(path)):
        if subnet == "198.18.77.1/24":
            write_options(str(path), str(output), key=None, individual=True, with_ip_masq=True)
            assert output.read_text() == 'DOCKER_OPT_BIP="--bip=198.18.77.1/24"\n'
        else:
            told = r"says 198\.18\.78\.0/24, the agent on this host has leased 198\.18\.77\.0/24"
            with pytest.raises(FlannelpyError, match=told):
                write_options(str(path), str(output), key=None, individual=True, with_ip_masq=True)
            assert not output.exists()


@pytest.mark.parametrize("where", ["nosuch/docker_opts.env", "nosuch/deep/down.env", "subnet.env/docker_opts.env"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, merged: bool) -> None:
    monkeypatch.setenv("FLANNELPY_RUN_DIR", str(tmp_path))
    path, output = tmp_path / "subnet.env", tmp_path / where
    path.write_text("FLANNEL_SUBNET=198.18.77.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
    merge = partial(merge_options, with_ip_masq=True, dry_run=False)
    write = partial(write_options, key=None, individual=True, with_ip_masq=True)
    with pytest.raises(FlannelpyError) as caught:
        (merge if merged else write)(str(path), str(output))
    said = f"{output}: there is no folder {output.parent}; expected one that is there; nothing was written"
    assert str(caught.value) == said
    assert sorted(tmp_path.iterdir()) == [path]
