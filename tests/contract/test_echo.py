"""Does a host answer an echo request, and does nobody else? Raw and datagram sockets, both families, in a network namespace.

us eth1 192.0.2.1, 2001:db8::1 ---- eth1p, in the same namespace: nobody answers for another address of that link
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.model import Family
from flannelpy.kernel import Heard, PacketTooLargeError, Refused
from flannelpy.kernel.echo import MAGIC, EchoSocket, checksum

from .kernel_support import RealHost

PING_GROUPS = Path("/proc/sys/net/ipv4/ping_group_range")
TOKEN = 0x0123_4567_89AB_CDEF
OWN = {4: IPAddress("127.0.0.1"), 6: IPAddress("::1")}
NOBODY = {4: IPAddress("192.0.2.77"), 6: IPAddress("2001:db8::77")}
NOWHERE = IPAddress("2001:db9::1")


@pytest.fixture(params=[(4, True), (4, False), (6, True), (6, False)], ids=["IPv4 raw", "IPv4", "IPv6 raw", "IPv6"])
def echo(request: pytest.FixtureRequest, real: RealHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[EchoSocket]:
    """A socket of each kind; without the right to a raw one where that is what it stands for."""
    version, raw = request.param
    assert real.kernel
    if not raw:
        PING_GROUPS.write_text(f"{os.getgid()} {os.getgid()}")
        refuse_raw(monkeypatch)
    made = EchoSocket(version)
    assert made.raw is raw
    yield made
    made.close()


def refuse_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without CAP_NET_RAW."""
    kind = socket.socket

    class Refusing(kind):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002
            if type == socket.SOCK_RAW:
                raise PermissionError(1, "Operation not permitted")
            super().__init__(family, type, proto, fileno)

    monkeypatch.setattr(socket, "socket", Refusing)


async def heard(echo: EchoSocket, enough: Callable[[list[Heard | Refused]], bool], within_s: float = 10.0) -> list[Heard | Refused]:
    """What comes in, woken up by the loop, until it is enough."""
    woken, found = asyncio.Event(), list[Heard | Refused]()
    echo.listen(woken.set)
    async with asyncio.timeout(within_s):
        while not enough(found):
            await woken.wait()
            woken.clear()
            found += echo.receive()
    return found


async def everything(echo: EchoSocket) -> list[Heard | Refused]:
    """All that has come in until an answer to one more request is there: on loopback nothing overtakes."""
    echo.send(OWN[echo.version], 99, 64)
    found = await heard(echo, lambda found: any(isinstance(item, Heard) and item.token == 99 for item in found))
    return [item for item in found if not (isinstance(item, Heard) and item.token == 99)]


@pytest.mark.parametrize("size", [64, 576, 1450, 1500, 9000])
async def test_a_host_answers_with_what_it_was_sent(echo: EchoSocket, size: int) -> None:
    echo.send(OWN[echo.version], TOKEN, size)
    assert await heard(echo, bool) == [Heard(OWN[echo.version], TOKEN, size)]


async def test_nobody_there_is_told_by_this_hosts_own_kernel(echo: EchoSocket) -> None:
    echo.send(NOBODY[echo.version], TOKEN, 64)
    (found,) = await heard(echo, bool, 30.0)
    assert isinstance(found, Refused)
    assert found.token == TOKEN
    assert found.why.startswith("nobody answers for its address on the link")
    await asyncio.sleep(0)
    echo.send(OWN[echo.version], 5, 64)  # and the socket is as good as new
    assert await heard(echo, bool) == [Heard(OWN[echo.version], 5, 64)]


async def test_a_packet_that_is_too_large_for_its_way_is_told(echo: EchoSocket) -> None:
    with pytest.raises(PacketTooLargeError) as caught:
        echo.send(NOBODY[echo.version], TOKEN, 1501)
    assert caught.value.mtu == 1500
    echo.send(OWN[echo.version], TOKEN, 1501)
    assert await heard(echo, bool) == [Heard(OWN[echo.version], TOKEN, 1501)]


async def test_where_no_route_leads_is_told(echo: EchoSocket) -> None:
    address = NOWHERE if echo.version == 6 else IPAddress("192.0.2.255")  # that one may not be sent to
    with pytest.raises(KernelError):
        echo.send(address, TOKEN, 64)


async def test_anothers_answers_are_not_ours(echo: EchoSocket) -> None:
    with_raw = EchoSocket(echo.version)
    with_raw.send(OWN[echo.version], TOKEN, 64)
    assert await heard(with_raw, bool) == [Heard(OWN[echo.version], TOKEN, 64)]
    assert await everything(echo) == []
    with_raw.close()


async def test_anothers_requests_are_heard_only_where_they_are_wanted(real: RealHost) -> None:
    for version in (4, 6):
        family: Family = 4 if version == 4 else 6
        one, other = EchoSocket(family), EchoSocket(family)
        for wanted in (False, True, False):
            one.hear_requests(wanted)
            other.send(OWN[family], TOKEN, 64)
            found = await everything(one)
            assert [item for item in found if isinstance(item, Heard) and item.token == TOKEN] == (
                [Heard(OWN[family], TOKEN, 64, request=True)] if wanted else []
            )
        one.close()
        other.close()
    assert real.kernel


def test_without_any_right_one_line_says_what_is_needed(real: RealHost, monkeypatch: pytest.MonkeyPatch) -> None:
    assert real.kernel
    PING_GROUPS.write_text("1 0")
    refuse_raw(monkeypatch)
    with pytest.raises(
        KernelError, match=r"^no ICMP socket: needs CAP_NET_RAW, or the agent's group in net.ipv4.ping_group_range$"
    ):
        EchoSocket(4)


async def test_packets_of_any_shape_do_no_harm(real: RealHost) -> None:
    """Answers with our identifier and everything else at random, cut anywhere; and the socket goes on."""
    assert real.kernel
    echo, chance = EchoSocket(4), random.Random(3)
    echo.hear_requests(True)
    attacker = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sent = []
    for number in range(400):
        kind = chance.choice([0, 0, 0, 8, 3, 11, chance.randrange(256)])
        ident = chance.choice([echo.ident, echo.ident, chance.randrange(65536)])
        magic = chance.choice([MAGIC, MAGIC, chance.randbytes(8)])
        body = struct.pack("!BBHHH8sQ", kind, chance.choice([0, 0, 7]), 0, ident, 1, magic, number) + chance.randbytes(
            chance.randrange(40)
        )
        body = body[: chance.choice([len(body), chance.randrange(4, len(body) + 1)])]
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        attacker.sendto(body, ("127.0.0.1", 0))
        sent.append(body)
        if not number % 32:
            list(echo.receive())
    found = await everything(echo)
    assert all(isinstance(item, Heard) and len(sent[item.token]) >= 24 for item in found)
    attacker.close()
    echo.close()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("version", [4, 6])
def test_no_bytes_are_read_as_more_than_they_are(version: Family, raw: bool) -> None:
    """Whatever the kernel hands over, read without it: nothing raises, and only what holds a whole header is heard."""
    reader, chance = EchoSocket.__new__(EchoSocket), random.Random(5)
    reader.version, reader.raw, reader.ident = version, raw, 7
    answer = 0 if version == 4 else 129
    head = bytes([0x45]) + bytes(19) if version == 4 and raw else b""
    whole = head + struct.pack("!BBHHH8sQ", answer, 0, 0, 7, 1, MAGIC, TOKEN)
    address = str(NOBODY[version])
    assert reader._read(whole, address) == Heard(NOBODY[version], TOKEN, 24 + (20 if version == 4 else 40))
    assert reader._read(whole[:-1], address) is None
    for _ in range(5000):
        data = bytearray(whole + chance.randbytes(chance.randrange(8)))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cut = bytes(data[: chance.randrange(len(data) + 1)])
        found = reader._read(cut, chance.choice([address, "fe80::1%eth1", "not an address", ""]))
        assert found is None or len(cut) >= 24
        reader._read_quoted(cut)


@pytest.mark.parametrize("packet", [b"", b"\x00", b"\x08\x00\x00\x00\x12\x34\x00\x01", b"\xff" * 64, bytes(64), b"abc"])
def test_the_checksum_is_that_of_rfc_1071(packet: bytes) -> None:
    """Who adds up the packet with it gets all ones."""
    total = sum(struct.unpack(f"!{(len(packet) + 1) // 2}H", packet + bytes(len(packet) % 2))) + checksum(packet)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


@pytest.mark.parametrize("version", [4, 6])
def test_where_descriptors_run_out_halfway_nothing_stays_open(monkeypatch: pytest.MonkeyPatch, version: Family) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("flannelpy.kernel.echo.select.epoll", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KernelError, match=r"^no ICMP socket: Too many open files$"):
        EchoSocket(version)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
