"""What systemd gets told over a real socket, and what it hands back."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from flannelpy.agent import systemd
from flannelpy.agent.fd_store import SystemdFdStore
from flannelpy.agent.systemd import Notifier, inherited
from flannelpy.core.backend import NoFdStore

T = TypeVar("T")


class Systemd:
    """As much of it as a notify socket: what was said, and the descriptors that came with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(os.fspath(path))

    def hear(self) -> tuple[str, list[int]]:
        """The next message."""
        message, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
        return message.decode(), fds

    def told(self) -> list[str]:
        """All messages that wait, in order; their descriptors are closed."""
        messages = []
        while True:
            try:
                message, fds = self.hear()
            except BlockingIOError:
                return messages
            messages.append(message)
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def notifier(listening: Systemd) -> Notifier:
    return Notifier(os.fspath(listening.path))


@pytest.fixture
def memory() -> Iterator[int]:
    """A descriptor of no great worth."""
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def same(one: int, other: int) -> bool:
    """Do both stand for one thing?"""
    return os.path.sameopenfile(one, other)


# ----------------------------------------------------------------------------------------------------------- what it is told


def test_ready_and_status_are_one_message(listening: Systemd, notifier: Notifier) -> None:
    notifier.ready("10.5.72.0/24 by vxlan")
    notifier.stopping()
    assert listening.told() == ["READY=1\nSTATUS=10.5.72.0/24 by vxlan", "STOPPING=1"]


def test_an_abstract_socket_is_written_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0flannelpy-test-notify")
        Notifier("@flannelpy-test-notify").status("fine")
        assert systemd.recv(1024) == b"STATUS=fine"


def test_nobody_listening_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        notifier.status("one")
        notifier.status("two")
    assert caplog.text.count("systemd does not take") == 1


def test_ready_is_said_once_and_a_status_only_when_it_is_new(listening: Systemd, notifier: Notifier) -> None:
    notifier.status("waiting for etcd")
    notifier.status("waiting for etcd")
    notifier.ready("fine")
    notifier.ready("fine")
    notifier.ready("other")
    assert listening.told() == ["STATUS=waiting for etcd", "READY=1\nSTATUS=fine", "STATUS=other"]


def test_a_status_is_one_line_of_one_message(listening: Systemd, notifier: Notifier) -> None:
    notifier.status("a\nREADY=1\x1b[2J" + "b" * 1000)
    (told,) = listening.told()
    assert told.startswith("STATUS=a\\nREADY=1\\x1b[2Jbbb")
    assert len(told) < 310


async def test_the_status_line_follows_from_the_first_moment(listening: Systemd, notifier: Notifier, fast: None) -> None:
    lines = iter(["starting", "starting", "waiting for etcd", "fine"])
    with pytest.raises(StopAsyncIteration):
        await systemd.keep_posted(notifier, lambda: _next(lines))
    assert listening.told() == ["STATUS=starting", "STATUS=waiting for etcd", "STATUS=fine"]


@pytest.mark.parametrize(
    ("ready", "why_not", "errors", "line"),
    [
        (True, (), (), "10.5.72.0/24 by vxlan"),
        (True, (), ("one", "two"), "10.5.72.0/24 by vxlan; error: one and 1 more"),
        (False, ("waiting for etcd", "no uplink"), ("one",), "not ready: waiting for etcd; no uplink"),
        (False, (), (), "not ready: starting"),
    ],
)
def test_the_status_line_says_what_it_does_or_waits_for(
    ready: bool, why_not: tuple[str, ...], errors: tuple[str, ...], line: str
) -> None:
    assert systemd.status_line(ready, "10.5.72.0/24 by vxlan", why_not, errors) == line


@pytest.mark.parametrize(
    ("environ", "within"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_what_systemd_wants_of_signs_of_life(environ: dict[str, str], within: float | None) -> None:
    assert systemd.watchdog_s(environ) == within


async def test_no_sign_of_life_while_the_loop_stands_still(
    listening: Systemd, notifier: Notifier, caplog: pytest.LogCaptureFixture, fast: None
) -> None:
    silences = iter([0.0, 29.0, 31.0, 61.0, 0.5])
    with pytest.raises(StopAsyncIteration):
        await systemd.feed_watchdog(notifier, 30.0, lambda: _next(silences))
    assert listening.told() == ["WATCHDOG=1"] * 3
    assert caplog.text.count("has not turned for 31 s") == 1


async def test_who_is_not_watched_gives_no_signs(listening: Systemd, notifier: Notifier) -> None:
    await systemd.feed_watchdog(notifier, None, lambda: 0.0)
    assert listening.told() == []


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits take a turn of the loop."""
    turn = asyncio.sleep

    async def sleep(_seconds: float) -> None:
        await turn(0)

    monkeypatch.setattr(systemd.asyncio, "sleep", sleep)


def _next(values: Iterator[T]) -> T:
    """The next of them; the end of them ends whoever asks for ever."""
    for value in values:
        return value
    raise StopAsyncIteration


async def test_without_systemd_nothing_happens(memory: int) -> None:
    notifier = Notifier("")
    assert not notifier.listened_to
    notifier.ready("fine")
    notifier.store("a", memory)
    await notifier.barrier()


# ------------------------------------------------------------------------------------------------------- descriptors go there


def test_a_descriptor_goes_with_its_name_and_is_not_polled(listening: Systemd, notifier: Notifier, memory: int) -> None:
    notifier.store("udp-tun-0", memory)
    message, (received,) = listening.hear()
    assert message == "FDSTORE=1\nFDNAME=udp-tun-0\nFDPOLL=0"
    assert same(received, memory)
    os.close(received)
    notifier.forget("udp-tun-0")
    assert listening.hear() == ("FDSTOREREMOVE=1\nFDNAME=udp-tun-0", [])


async def test_a_barrier_waits_until_its_descriptor_is_closed(listening: Systemd, notifier: Notifier) -> None:
    waiting = asyncio.create_task(notifier.barrier())
    await asyncio.sleep(0)
    message, (received,) = listening.hear()
    assert message == "BARRIER=1"  # alone, as sd_notify(3) demands
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    os.close(received)
    await asyncio.wait_for(waiting, 5)


async def test_a_systemd_that_hangs_is_waited_for_no_longer_than_said(
    listening: Systemd, notifier: Notifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(systemd, "BARRIER_WITHIN_S", 0.01)
    await asyncio.wait_for(notifier.barrier(), 5)
    assert "systemd has not acted upon" in caplog.text
    _, (received,) = listening.hear()
    os.close(received)


# --------------------------------------------------------------------------------------------------------------- and come back

CHILD = """
import json, os, sys
from flannelpy.agent.systemd import inherited
environ = {**json.loads(sys.argv[1]), "OTHER": "1"}
if environ.get("LISTEN_PID") == "ours":
    environ["LISTEN_PID"] = str(os.getpid())
found = inherited(environ)
print(json.dumps([{name: os.pread(fd, 9, 0).decode() for name, fd in found.items()}, sorted(environ)]))
print(json.dumps([os.get_inheritable(fd) for fd in found.values()]))
for fd in (3, 4):
    try:
        os.fstat(fd); print("open")
    except OSError:
        print("closed")
"""


def start_with(environ: dict[str, str]) -> tuple[list[str], str]:
    """A process with two descriptors at 3 and 4, as systemd would start it; what it printed, and what it logged."""
    fds = []
    try:
        for text in (b"first", b"second"):
            made = os.memfd_create("test")
            os.pwrite(made, text, 0)
            fds.append(fcntl.fcntl(made, fcntl.F_DUPFD, 10))
            os.close(made)
        place = f'exec "$0" -c "$1" "$2" 3<&{fds[0]} 4<&{fds[1]}'  # the shell puts them where systemd does
        ended = subprocess.run(
            ["bash", "-c", place, sys.executable, CHILD, json.dumps(environ)],
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    finally:
        for fd in fds:
            os.close(fd)
    return ended.stdout.splitlines(), ended.stderr


def test_what_a_former_life_left_is_found_by_name_and_kept_from_children() -> None:
    printed, logged = start_with({"LISTEN_PID": "ours", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "udp-tun-0:udp-socket-0"})
    assert printed == ['[{"udp-tun-0": "first", "udp-socket-0": "second"}, ["OTHER"]]', "[false, false]", "open", "open"]
    assert logged == ""


def test_of_two_with_one_name_the_first_is_taken() -> None:
    printed, _ = start_with({"LISTEN_PID": "ours", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:a"})
    assert printed == ['[{"a": "first"}, ["OTHER"]]', "[false]", "open", "closed"]


@pytest.mark.parametrize("listen_pid", ["1", "", "x", None])
def test_what_is_meant_for_another_process_is_left_alone(listen_pid: str | None) -> None:
    environ = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", **({} if listen_pid is None else {"LISTEN_PID": listen_pid})}
    printed, logged = start_with(environ)
    assert printed == ['[{}, ["OTHER"]]', "[]", "open", "open"]
    assert logged == ""


@pytest.mark.parametrize("count", ["", "0", "-1", "3", "1", "two", "9" * 40, "²"])
def test_what_does_not_fit_together_is_said_and_passed_over(count: str, caplog: pytest.LogCaptureFixture) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "a:b"}
    assert inherited(environ) == {}
    assert environ == {}
    assert len(caplog.messages) == 1
    assert repr(count) in caplog.messages[0]


def test_a_descriptor_that_is_not_there_is_said_and_passed_over() -> None:
    printed, logged = start_with({"LISTEN_PID": "ours", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"})
    assert printed[0] == '[{"a": "first", "b": "second"}, ["OTHER"]]'
    assert "descriptor 5 (c) from systemd: Bad file descriptor" in logged


# ------------------------------------------------------------------------------------------------------------------- the fd_store


async def test_the_shelf_keeps_here_and_there_until_it_drops(listening: Systemd, notifier: Notifier, memory: int) -> None:
    fd_store = SystemdFdStore(notifier, {})
    fd_store.keep("a", memory)
    message, (there,) = listening.hear()
    assert message.startswith("FDSTORE=1\nFDNAME=a\n")
    assert same(there, memory)
    os.close(there)
    assert fd_store.names == ("a",)
    here = fd_store.take("a")
    assert here is not None
    assert here != memory
    assert same(here, memory)
    assert not os.get_inheritable(here)
    os.close(here)  # the caller's own: it is still kept
    assert fd_store.names == ("a",)

    dropping = asyncio.create_task(fd_store.drop("a", "b"))
    await asyncio.sleep(0)
    assert listening.hear() == ("FDSTOREREMOVE=1\nFDNAME=a", [])  # nothing of b, which it does not have
    message, (barrier,) = listening.hear()
    assert message == "BARRIER=1"
    assert not dropping.done()
    os.close(barrier)
    await asyncio.wait_for(dropping, 5)
    assert fd_store.names == ()
    assert fd_store.take("a") is None


async def test_to_drop_nothing_asks_nothing_of_systemd(listening: Systemd, notifier: Notifier) -> None:
    await SystemdFdStore(notifier, {}).drop("a")
    assert listening.told() == []


def test_what_takes_a_name_takes_the_place_of_what_had_it(listening: Systemd, notifier: Notifier, memory: int) -> None:
    other = os.memfd_create("other")
    fd_store = SystemdFdStore(notifier, {"a": os.dup(memory)})
    fd_store.keep("a", other)
    assert [message.splitlines()[0] for message in listening.told()] == ["FDSTOREREMOVE=1", "FDSTORE=1"]
    taken = fd_store.take("a")
    assert taken is not None
    assert same(taken, other)
    os.close(taken)
    os.close(other)


async def test_where_nobody_keeps_anything_the_shelf_is_empty(memory: int) -> None:
    fd_store = NoFdStore()
    fd_store.keep("a", memory)
    assert fd_store.take("a") is None
    assert fd_store.names == ()
    await fd_store.drop("a")
