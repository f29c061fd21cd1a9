"""What is asked of the kernel, and what is done without: by feature, each refusal for itself. And what leaves together."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.udp import tun
from backends.udp.counters import COUNTERS, OUT_PACKETS, OUT_SEND_FAILED
from backends.udp.offload import ask_socket, ask_tun, tun_features
from backends.udp.protocol import Offload
from backends.udp.worker.pmtu import PathMtu
from backends.udp.worker.send import TxBatch
from flannelpy.core.errors import BackendError

PEER = ("192.0.2.2", 8285)


class Kernel:
    """Stands for ioctl(2): a TUN driver that knows these bits of TUNSETOFFLOAD and these flags."""

    def __init__(self, offloads: int, flags: int = 0xFFFF) -> None:
        self.offloads = offloads
        self.flags = flags
        self.asked_for: list[int] = []
        self.waiting = 0

    def ioctl(self, descriptor: int, request: int, argument: Any) -> bytes:
        if request == 0x800454CF:
            return self.flags.to_bytes(4, "little")
        if request == 0x400454CA:
            self.asked_for.append(int.from_bytes(argument[16:18], "little"))
        if request == 0x8943:
            self.waiting = int.from_bytes(argument[16:20], "little")
        if request == 0x400454D0 and argument & ~self.offloads:
            raise OSError(errno.EINVAL, "Invalid argument")
        return b""


@pytest.mark.parametrize(
    ("known", "found"),
    [
        (0x7F, "header, checksum, tcp, tcp ecn, udp"),
        (0x1F, "header, checksum, tcp, tcp ecn"),
        (0x03, "header, checksum, tcp"),
        (0x01, "header, checksum"),
        (0x00, "header"),
    ],
)
def test_the_device_is_asked_from_the_most_to_the_least(known: int, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", Kernel(known).ioctl)
    assert str(ask_tun(0)) == found


def test_a_driver_without_virtio_headers_gets_a_plain_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, wanted, asked_for, found in (
        (0x1002, True, 0x1001, Offload.NONE),
        (0x5002, False, 0x1001, Offload.NONE),
        (0x5002, True, 0x5001, Offload.HEADER),
    ):
        kernel = Kernel(0, flags)
        monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
        monkeypatch.setattr(os, "open", lambda *_: 77)
        assert tun.open_tun("flannel0", wanted) == ((77,), found)
        assert kernel.asked_for == [asked_for]
        assert kernel.waiting == 4000


def test_several_queues_join_a_device_that_was_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(0, 0xFFFF)
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    monkeypatch.setattr(os, "open", lambda *_: next(queues))
    for offload, header in ((True, 0x4000), (False, 0)):
        queues, kernel.asked_for = iter((70, 71, 72)), []
        assert tun.open_tun("flannel0", offload, 3)[0] == (70, 71, 72)
        assert kernel.asked_for == [0x9101 | header, 0x1101 | header, 0x1101 | header]


def test_a_queue_that_cannot_be_had_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(0, 0xFFFF)
    queues, closed = iter((70, 71, 72)), []

    def refuse(descriptor: int, request: int, argument: Any) -> bytes:
        if descriptor == 71:
            raise OSError(errno.E2BIG, "Argument list too long")
        return kernel.ioctl(descriptor, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", lambda *_: next(queues))
        patched.setattr(os, "close", closed.append)
        with pytest.raises(BackendError, match=r"^TUN device flannel0: Argument list too long$"):
            tun.open_tun("flannel0", offload=True, queues=3)
    assert sorted(closed) == [70, 71, 72]


def test_a_driver_with_a_single_queue_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, wanted, possible in ((0x5002, 4, 1), (0x5102, 4, 4), (0x5102, 1, 1)):
        monkeypatch.setattr(fcntl, "ioctl", Kernel(0, flags).ioctl)
        monkeypatch.setattr(tun, "CLONE", os.devnull)
        assert tun.possible_queues(wanted) == possible


@pytest.mark.parametrize(
    ("called", "codes", "said"),
    [
        ("flannel0", {}, ""),
        ("flannel1", {}, "was renamed to flannel1"),
        ("a\n\x1b[2Jb", {}, r"was renamed to a\n\x1b[2Jb"),
        ("flannel0", {tun.TUNGETIFF: errno.EBADFD}, "was deleted"),
        ("flannel0", {tun._SIOCGIFINDEX: errno.ENODEV}, "was moved to another network namespace"),
        *(("flannel0", {call: code}, "") for call in (tun.TUNGETIFF, tun._SIOCGIFINDEX) for code in (errno.ENOMEM, errno.EPERM)),
    ],
)
def test_a_device_that_is_not_in_its_place_is_known_by_what_is_open(
    called: str, codes: dict[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else the kernel says is no absence: packets go on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def ioctl(descriptor: int, request: int, _argument: bytes) -> bytes:
            assert descriptor == {tun.TUNGETIFF: 77, tun._SIOCGIFINDEX: sock.fileno()}[request]
            if request in codes:
                raise OSError(codes[request], "no")
            return tun.IFREQ.pack(called.encode(), 0x1001)

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        assert tun.absence(77, "flannel0", sock) == said


def test_a_driver_too_old_to_be_asked_has_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert tun_features(0) == 0


class OldSocket:
    """A socket of a kernel that knows these options of UDP only."""

    def __init__(self, *known: int) -> None:
        self.known = known

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option not in self.known:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")


@pytest.mark.parametrize(("known", "found"), [((103, 104), "gso, gro"), ((103,), "gso"), ((104,), "gro"), ((), "none")])
def test_the_socket_is_asked_for_each(known: tuple[int, ...], found: str) -> None:
    assert str(ask_socket(OldSocket(*known))) == found  # type: ignore[arg-type]


def test_this_kernels_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert ask_socket(sock) in (Offload.GSO | Offload.GRO, Offload.GSO, Offload.NONE)


# ------------------------------------------------------------------------------------------------------------- outbox


class Post:
    """A socket that keeps what it is given, or fails with an error where several are sent together or always."""

    def __init__(self, together: int = 0, alone: int = 0) -> None:
        self.fails = (together, alone)
        self.calls: list[tuple[bytes, int]] = []

    def sendto(self, octets: memoryview, peer: object) -> None:
        assert peer == PEER
        if self.fails[1]:
            raise OSError(self.fails[1], "")
        self.calls.append((bytes(octets), 1))

    def sendmsg(self, views: list[memoryview], notes: Any, flags: int, peer: object) -> None:
        assert peer == PEER
        if self.fails[0]:
            raise OSError(self.fails[0], "")
        self.calls.append((b"".join(views), int.from_bytes(notes[0][2], "little")))


def posted(post: Post, *packets: tuple[int, int], together: bool = True) -> list[int]:
    """Counters after runs of (size, count)."""
    counts = [0] * len(COUNTERS)
    box = TxBatch(post, counts, together, PathMtu(post, counts, None, time.monotonic))  # type: ignore[arg-type]
    for size, count in packets:
        box.add(memoryview(bytes(size * count)), size, count, PEER)
    box.flush()
    return counts


def test_a_call_carries_sixty_four_and_no_more_than_a_datagram_could() -> None:
    post = Post()
    counts = posted(post, (100, 130), (1472, 45))
    assert [(len(octets), size) for octets, size in post.calls] == [
        (6400, 100),
        (6400, 100),
        (200, 100),
        (44 * 1472, 1472),
        (1472, 1),
    ]
    assert counts[OUT_PACKETS] == 175


@given(st.lists(st.tuples(st.integers(1, 70_000), st.integers(1, 70), st.integers(0, 69_999)), min_size=1, max_size=4))
def test_whatever_comes_leaves_in_order_and_once(runs: list[tuple[int, int, int]]) -> None:
    """Runs of (size, count, how much shorter the last is), also longer than any datagram."""
    post, counts = Post(), [0] * len(COUNTERS)
    box = TxBatch(post, counts, True, PathMtu(post, counts, None, time.monotonic))  # type: ignore[arg-type]
    made = b""
    for number, (size, count, less) in enumerate(runs):
        octets = bytes([number]) * (size * count - less % size)
        box.add(memoryview(octets), size, count, PEER)
        made += octets
    box.flush()
    assert b"".join(octets for octets, _size in post.calls) == made
    assert counts[OUT_PACKETS] == sum(count for _size, count, _less in runs)


def test_single_ones_of_a_size_leave_together_and_a_shorter_one_ends_it() -> None:
    post = Post()
    counts = [0] * len(COUNTERS)
    box = TxBatch(post, counts, True, PathMtu(post, counts, None, time.monotonic))  # type: ignore[arg-type]
    for _ in range(3):
        box.add(memoryview(bytes(50)), 50, 1, PEER)
    box.add(memoryview(bytes(150)), 100, 2, PEER)  # the last one is of 50 bytes
    assert [(len(octets), size) for octets, size in post.calls] == [(150, 50), (150, 100)]
    assert counts[OUT_PACKETS] == 5


def test_a_socket_that_does_not_segment_gets_one_by_one() -> None:
    post = Post()
    posted(post, (100, 3), together=False)
    assert post.calls == [(bytes(100), 1)] * 3


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EMSGSIZE, errno.EIO])
def test_what_may_not_go_together_goes_alone(refusal: int) -> None:
    post = Post(together=refusal)
    counts = posted(post, (100, 3))
    assert post.calls == [(bytes(100), 1)] * 3
    assert (counts[OUT_PACKETS], counts[OUT_SEND_FAILED]) == (3, 0)


@pytest.mark.parametrize("refused", [{1}, {1, 3}, {1, 2, 3}])
def test_a_peer_whose_path_cuts_nothing_slows_nobody_else_and_not_for_ever(refused: set[int]) -> None:
    """EIO is said of a path: where it goes by IPsec, say. Of others, and of another underlay, nothing is known by it."""
    peers = {number: (f"192.0.2.{number}", 8285) for number in (1, 2, 3)}
    no_more, calls = {peers[number] for number in refused}, list[tuple[int, int]]()

    class Paths(Post):
        def sendto(self, octets: memoryview, peer: object) -> None:
            calls.append((next(number for number, each in peers.items() if each == peer), 1))

        def sendmsg(self, views: list[memoryview], notes: Any, flags: int, peer: object) -> None:
            if peer in no_more:
                raise OSError(errno.EIO, "")
            calls.append((next(number for number, each in peers.items() if each == peer), 3))

    counts = [0] * len(COUNTERS)
    path = PathMtu(Paths(), counts, None, time.monotonic)  # type: ignore[arg-type]
    box = TxBatch(Paths(), counts, True, path)  # type: ignore[arg-type]

    def sent() -> list[tuple[int, int]]:
        calls.clear()
        for peer in peers.values():
            box.add(memoryview(bytes(300)), 100, 3, peer)
            box.flush()
        return calls

    expected = [each for number in peers for each in ([(number, 1)] * 3 if number in refused else [(number, 3)])]
    assert [list(sent()) for _ in range(3)] == [expected] * 3
    no_more.clear()
    assert sent() == expected  # not asked again for each packet
    path.forget()
    assert sent() == [(number, 3) for number in peers]
    assert counts[OUT_PACKETS] == 9 * 5


def test_what_is_not_sent_is_counted_by_packet() -> None:
    assert posted(Post(together=errno.EAGAIN), (100, 3))[OUT_SEND_FAILED] == 3
    assert posted(Post(together=errno.EIO, alone=errno.EPERM), (100, 3))[OUT_SEND_FAILED] == 3
    assert posted(Post(alone=errno.EAGAIN), (100, 1))[OUT_SEND_FAILED] == 1
