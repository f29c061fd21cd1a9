"""What was kept in the fd store: used where it is what is wanted, else dropped as a whole, with one word why."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from backends.udp import adoption
from backends.udp.adoption import Wanted, adopt, adopt_counters
from backends.udp.counters import COUNTERS, HEARTBEAT, Counters, make_counters
from backends.udp.protocol import Offload
from backends.udp.queues import Queues
from flannelpy.core.errors import BackendError

DEVICE = "lo"
"""A name that every machine has: whether the device is still there is asked of the kernel."""
PLAIN, HEADER, MULTI = 0x1001, 0x4000, 0x0100


class Tun:
    """Stands for ioctl(2) on a TUN queue: a driver that knows everything, a device of this name and these flags."""

    def __init__(self, name: str = DEVICE, flags: int = PLAIN | HEADER, code: int = 0) -> None:
        self.name, self.flags, self.code = name, flags, code

    def ioctl(self, descriptor: int, request: int, argument: Any) -> bytes:
        if request == 0x800454CF:
            return (0xFFFF).to_bytes(4, "little")
        if request == 0x800454D2:
            if self.code:
                raise OSError(self.code, os.strerror(self.code))
            return pack("16sH22x", self.name.encode(), self.flags)
        return b""


class FdStore:
    """One that keeps without systemd."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.kept)

    def take(self, name: str) -> int | None:
        return os.dup(self.kept[name]) if name in self.kept else None

    def keep(self, name: str, fd: int) -> None:
        if name in self.kept:
            os.close(self.kept[name])
        self.kept[name] = os.dup(fd)

    async def drop(self, *names: str) -> None:
        for name in names:
            os.close(self.kept.pop(name))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def udp_socket(*, shared: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    made.bind(("127.0.0.1", 0))
    return made


@pytest.fixture
def fd_store() -> Iterator[FdStore]:
    made = FdStore()
    yield made
    for fd in made.kept.values():
        os.close(fd)


def fill(fd_store: FdStore, workers: int = 1) -> Wanted:
    """Keep what a datapath of so many workers has open; what it wanted."""
    port = 0
    for number in range(workers):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made, Path(os.devnull).open("rb") as tun:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, workers > 1)
            made.bind(("127.0.0.1", port))
            port = made.getsockname()[1]
            counters = make_counters()
            counters.live[:HEARTBEAT] = array("Q", [100 * (number + 1)] * len(COUNTERS))
            fd_store.keep(f"udp-tun-{number}", tun.fileno())
            fd_store.keep(f"udp-socket-{number}", made.fileno())
            fd_store.keep(f"udp-counters-{number}", counters.fd)
            counters.close()
    return Wanted(DEVICE, "127.0.0.1", port, workers, offload=True)


def close(tuns: tuple[int, ...], sockets: tuple[socket.socket, ...]) -> None:
    for tun in tuns:
        os.close(tun)
    for each in sockets:
        each.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_what_fits_is_taken_over(fd_store: FdStore, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fill(fd_store, workers)
    monkeypatch.setattr(fcntl, "ioctl", Tun(flags=PLAIN | HEADER | (MULTI if workers > 1 else 0)).ioctl)
    tuns, sockets, offloads = adopt(fd_store, wanted)
    assert len(tuns) == len(sockets) == workers
    assert {each.getsockname() for each in sockets} == {("127.0.0.1", wanted.port)}
    assert Offload.HEADER in offloads
    assert len(fd_store.names) == 3 * workers  # it stays there for the next start
    close(tuns, sockets)


def test_a_device_without_virtio_headers_will_do_where_none_are_wanted(fd_store: FdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fill(fd_store)
    monkeypatch.setattr(fcntl, "ioctl", Tun(flags=PLAIN).ioctl)
    tuns, sockets, offloads = adopt(fd_store, Wanted(DEVICE, "127.0.0.1", wanted.port, 1, offload=False))
    assert offloads == Offload.NONE
    close(tuns, sockets)


Spoil = Callable[[FdStore, Wanted], None]


def another_port(fd_store: FdStore, wanted: Wanted) -> None:
    with udp_socket(shared=False) as other:
        fd_store.keep("udp-socket-0", other.fileno())


def a_shared_port(fd_store: FdStore, wanted: Wanted) -> None:
    with udp_socket(shared=True) as other:
        fd_store.keep("udp-socket-0", other.fileno())


def a_tcp_socket(fd_store: FdStore, wanted: Wanted) -> None:
    with socket.socket() as other:
        fd_store.keep("udp-socket-0", other.fileno())


def no_socket(fd_store: FdStore, wanted: Wanted) -> None:
    with Path(os.devnull).open("rb") as other:
        fd_store.keep("udp-socket-0", other.fileno())


def none_at_all(fd_store: FdStore, wanted: Wanted) -> None:
    os.close(fd_store.kept.pop("udp-socket-0"))


def one_more(fd_store: FdStore, wanted: Wanted) -> None:
    fd_store.keep("udp-tun-1", fd_store.kept["udp-tun-0"])


@pytest.mark.parametrize(
    ("tun", "spoil", "says"),
    [
        (Tun(code=errno.EBADFD), None, "TUN device lo: it was deleted"),
        (Tun("nosuchdevice0"), None, "TUN device lo: it was deleted"),
        (Tun(code=errno.ENOTTY), None, "TUN device lo: Inappropriate ioctl for device"),
        (Tun(flags=PLAIN), None, "TUN device lo has flags 0x1001; expected lo with 0x5001"),
        (Tun(flags=PLAIN | HEADER | MULTI), None, "TUN device lo has flags 0x5101; expected lo with 0x5001"),
        (Tun(flags=0x1002 | HEADER), None, "TUN device lo has flags 0x5002; expected lo with 0x5001"),
        (Tun(), another_port, r"UDP 127.0.0.1:\d+, not shared; expected 127.0.0.1:\d+"),
        (Tun(), a_shared_port, r"UDP 127.0.0.1:\d+, shared; expected 127.0.0.1:\d+"),
        (Tun(), a_tcp_socket, "expected a UDP socket"),
        (Tun(), no_socket, "expected a socket: Socket operation on non-socket"),
        (Tun(), none_at_all, "there is no udp-socket-0"),
        (Tun(), one_more, "they are for 2 workers, not for 1"),
    ],
)
def test_what_does_not_fit_is_told_and_left_closed(
    fd_store: FdStore, tun: Tun, spoil: Spoil | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(fd_store)
    if spoil is not None:
        spoil(fd_store, wanted)
    monkeypatch.setattr(fcntl, "ioctl", tun.ioctl)
    before = open_descriptors()
    with pytest.raises(BackendError, match=f"^{says}$"):
        adopt(fd_store, wanted)
    assert open_descriptors() == before


def unlike(how: str) -> int:
    """What was kept as counters and is none of this version's."""
    if how == "no file":
        return os.dup(0)
    size = Counters.SIZE + {"longer": 8, "shorter": -8}.get(how, 0)
    fd = os.memfd_create("counters", os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    if how != "not sealed":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


@pytest.mark.parametrize("how", ["longer", "shorter", "not sealed", "no file"])
def test_counters_count_on_and_those_of_another_version_begin_anew(fd_store: FdStore, how: str) -> None:
    fill(fd_store)
    counters = adopt_counters(fd_store, 0)
    assert counters.read() == [100] * len(COUNTERS)
    counters.close()
    kept_fd = unlike(how)
    fd_store.keep("udp-counters-0", kept_fd)
    os.close(kept_fd)
    counters = adopt_counters(fd_store, 0)
    assert counters.read() == [0] * len(COUNTERS)
    counters.live[:HEARTBEAT] = array("Q", [7] * len(COUNTERS))
    counters.close()
    kept = adopt_counters(fd_store, 0)  # the new ones are kept now
    assert kept.read() == [7] * len(COUNTERS)
    kept.close()


@pytest.mark.parametrize("seals", [0, 0x8])
@pytest.mark.parametrize("lives", [1, 3])
def test_counters_with_a_seal_of_the_kernels_own_are_ours(
    fd_store: FdStore, monkeypatch: pytest.MonkeyPatch, seals: int, lives: int
) -> None:
    """Where vm.memfd_noexec is set each such file is made with MFD_NOEXEC_SEAL (memfd_create(2)), and has F_SEAL_EXEC."""
    make = os.memfd_create
    try:
        os.close(make("any", seals))
    except OSError:
        pytest.skip("this kernel does not know MFD_NOEXEC_SEAL")
    monkeypatch.setattr(os, "memfd_create", lambda name, flags: make(name, flags | seals))
    for life in range(lives):
        counters = adopt_counters(fd_store, 0)
        assert counters.read() == [life] * len(COUNTERS)
        counters.live[:HEARTBEAT] = array("Q", [life + 1] * len(COUNTERS))
        counters.close()


async def test_what_cannot_be_used_is_dropped_before_anything_is_opened(
    fd_store: FdStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = fill(fd_store)
    monkeypatch.setattr(fcntl, "ioctl", Tun(code=errno.EBADFD).ioctl)
    seen: list[tuple[str, ...]] = []

    def open_sockets(address: str, port: int, number: int) -> tuple[socket.socket, ...]:
        seen.append(fd_store.names)
        raise BackendError("taken")

    monkeypatch.setattr("backends.udp.queues.open_sockets", open_sockets)
    with caplog.at_level("INFO"), pytest.raises(BackendError, match="taken"):
        await Queues(DEVICE, wanted.port, 1, offload=True).open("127.0.0.1", fd_store)
    assert seen == [()]
    assert caplog.messages == ["what was kept cannot be used: TUN device lo: it was deleted; device and port are opened anew"]


async def test_a_datapath_that_is_opened_again_counts_nothing_twice(fd_store: FdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fill(fd_store)
    monkeypatch.setattr(fcntl, "ioctl", Tun().ioctl)
    held = Queues(DEVICE, wanted.port, 1, offload=True)
    for _ in range(2):
        await held.open("127.0.0.1", fd_store)
        assert held.counted() == [100] * len(COUNTERS)
        held.close()
        assert held.counted() == [100] * len(COUNTERS)
    assert sorted(fd_store.names) == ["udp-counters-0", "udp-socket-0", "udp-tun-0"]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("fails_at", [0, 1, 2])
async def test_where_no_counters_can_be_made_nothing_stays_open(
    fd_store: FdStore, kept: bool, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that nobody holds keeps the device, and the next attempt would find it busy for ever."""
    monkeypatch.setattr(fcntl, "ioctl", Tun(flags=PLAIN | HEADER | MULTI).ioctl)
    wanted = fill(fd_store, 3)
    if kept:
        for number in range(3):
            os.close(fd_store.kept.pop(f"udp-counters-{number}"))
    else:
        await fd_store.drop(*fd_store.names)
        monkeypatch.setattr("backends.udp.queues.open_tun", lambda *_: (tuple(os.dup(0) for _ in range(3)), Offload.NONE))
    before, shelved = open_descriptors(), len(fd_store.names)
    left = [make_counters() for _ in range(fails_at)]

    def make() -> Counters:
        if not left:
            raise OSError(errno.EMFILE, "Too many open files")
        return left.pop()

    for module in ("queues", "adoption"):
        monkeypatch.setattr(f"backends.udp.{module}.make_counters", make)
    held = Queues(DEVICE, wanted.port, 3, offload=True)
    with pytest.raises(OSError, match="Too many"):
        await held.open("127.0.0.1", fd_store)
    assert held.pairs == ()
    assert open_descriptors() == before + len(fd_store.names) - shelved


def test_names_on_the_shelf_may_stand_in_a_message_to_systemd() -> None:
    assert not any(":" in name for name in (adoption.TUN_OF, adoption.SOCKET_OF, adoption.COUNTERS_OF))
