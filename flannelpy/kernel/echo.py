"""How is a host asked whether it is there? By an echo request (RFC 792, RFC 4443), and its kernel answers.

One socket for all hosts. A raw one needs CAP_NET_RAW; a filter in the kernel keeps everybody else's echoes out of it, so that
they cost nothing. Without that capability a datagram socket will do, where net.ipv4.ping_group_range has our group in it (icmp(7)):
to that one the kernel gives nothing but answers to what it has sent.

Each request has 64 bits that nobody else can know; who answers without having seen it can be told.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import secrets
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

from netaddr import AddrFormatError, IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.model import Family
from flannelpy.kernel import Heard, PacketTooLargeError, Refused

MAGIC = b"flannelp"
"""What the data of a request begins with: another agent's is known by it."""

_HEADER = struct.Struct("!BBHHH8sQ")
"""Type, code, checksum, identifier, sequence (RFC 792); MAGIC, token."""

_ECHO = {4: (8, 0), 6: (128, 129)}
_IP_HEADER = {4: 20, 6: 40}
_MOST, _BATCH = 65_536, 64

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DO = 10, 23, 2
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_SO_ATTACH_FILTER, _ICMP_FILTER, _SOL_RAW = 26, 1, 255
_ORIGIN_LOCAL, _ORIGIN_ICMP, _ORIGIN_ICMP6 = 1, 2, 3
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
"""struct sock_extended_err: errno, origin, type, code, pad, info, data (linux/errqueue.h)."""

_PASS, _DROP = 0x40000, 0


class EchoSocket:
    """Sends echo requests of one family, not fragmented, and hears the answers. Raises KernelError where no socket can be had."""

    def __init__(self, version: Family) -> None:
        self.version: Family = version
        self.ident = secrets.randbits(16)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        try:
            try:
                self._socket, self.raw = socket.socket(family, socket.SOCK_RAW, protocol), True
            except PermissionError:
                self._socket, self.raw = socket.socket(family, socket.SOCK_DGRAM, protocol), False
        except OSError as error:
            needs = "needs CAP_NET_RAW, or the agent's group in net.ipv4.ping_group_range"
            words = needs if isinstance(error, PermissionError) else error.strerror or str(error)
            raise KernelError(f"no ICMP socket: {words}", error.errno or 0) from None
        self._sequence = 0
        self._requests: bool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            self._prepare()
        except OSError as error:
            self._socket.close()
            raise KernelError(f"no ICMP socket: {error.strerror or error}", error.errno or 0) from None

    def _prepare(self) -> None:
        self._socket.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        if self.version == 4:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        self.hear_requests(False)

    def listen(self, heard: Callable[[], None]) -> None:
        """Call this, in the loop that runs, whenever something may have come in.

        libuv gives a descriptor up at its first POLLERR, which here only says that the error queue has something; of an epoll
        descriptor around the socket it sees no more than that it is readable.
        """
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), heard)

    def close(self) -> None:
        """May be called twice."""
        if self._loop is not None and not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._socket.close()

    def hear_requests(self, wanted: bool) -> None:
        """Have other agents' requests, too, or not; their kernel-made answers go out all the same. Only a raw socket can."""
        if not self.raw or wanted is self._requests:
            return
        self._requests = wanted
        request, answer = _ECHO[self.version]
        if self.version == 4:  # a bit for each type that is dropped, before anything is copied (icmp(7), raw(7))
            passed = 1 << answer | (1 << request if wanted else 0)
            self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~passed & 0xFFFFFFFF))
        program = _filter(self.version, self.ident, wanted)
        code = ctypes.create_string_buffer(b"".join(program))
        packed = struct.pack("@HP", len(program), ctypes.addressof(code))  # struct sock_fprog
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, packed)

    def send(self, address: IPAddress, token: int, size: int) -> None:
        """A request of ``size`` bytes, with its IP header. Raises KernelError; PacketTooLargeError where the way carries less."""
        self._sequence = (self._sequence + 1) & 0xFFFF
        kind = _ECHO[self.version][0]
        padding = bytes(max(0, size - _IP_HEADER[self.version] - _HEADER.size))
        packet = _HEADER.pack(kind, 0, 0, self.ident, self._sequence, MAGIC, token) + padding
        if self.raw and self.version == 4:  # for the others the kernel does it
            packet = _HEADER.pack(kind, 0, checksum(packet), self.ident, self._sequence, MAGIC, token) + padding
        for attempt in (1, 2):
            try:
                self._socket.sendto(packet, (str(address), 0))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise PacketTooLargeError(self._told_mtu()) from None
                if attempt == 1 and error.errno in (errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EPROTO):
                    continue  # of an earlier one: what waits in the queue is told once by whatever call comes next
                raise KernelError(error.strerror or str(error), error.errno or 0) from None
            return

    def receive(self) -> Iterator[Heard | Refused]:
        """What has come in, at most so much at a time; what is nothing to us is left out."""
        for _ in range(_BATCH):
            try:
                data, source = self._socket.recvfrom(_MOST)
            except BlockingIOError:
                break
            except OSError:
                continue  # the error of an earlier request; it is in the queue, too
            heard = self._read(data, source[0])
            if heard is not None:
                yield heard
        for quoted, told, offender in self._errors():
            code, origin, *_rest = told
            found = self._read_quoted(quoted)
            if found is not None and origin in (_ORIGIN_ICMP, _ORIGIN_ICMP6) and self._is_own(offender):
                yield Refused(found, f"nobody answers for its address on the link ({os.strerror(code)}): is the host down?")

    def _read(self, data: bytes, source: str) -> Heard | None:
        bare = data[(data[0] & 15) * 4 :] if self.raw and self.version == 4 and data else data
        if len(bare) < _HEADER.size:
            return None
        kind, code, _sum, ident, _sequence, magic, token = _HEADER.unpack_from(bare)
        request, answer = _ECHO[self.version]
        if magic != MAGIC or code or kind not in (request, answer):
            return None
        if kind == answer and self.raw and ident != self.ident:
            return None
        with suppress(ValueError, AddrFormatError):
            return Heard(IPAddress(source.partition("%")[0]), token, len(bare) + _IP_HEADER[self.version], kind == request)
        return None

    def _read_quoted(self, data: bytes) -> int | None:
        """The token of the request that an error is about."""
        if len(data) < _HEADER.size:
            return None
        kind, _code, _sum, _ident, _sequence, magic, token = _HEADER.unpack_from(data)
        return int(token) if kind == _ECHO[self.version][0] and magic == MAGIC else None

    def _errors(self) -> Iterator[tuple[bytes, tuple[int, ...], str]]:
        """What the kernel has noted of earlier requests: the request, ``sock_extended_err``, who said so."""
        level, kind = (socket.IPPROTO_IP, _IP_RECVERR) if self.version == 4 else (socket.IPPROTO_IPV6, _IPV6_RECVERR)
        for _ in range(_BATCH):
            try:
                data, ancillary, _flags, _address = self._socket.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            for at_level, of_kind, held in ancillary:
                if (at_level, of_kind) == (level, kind) and len(held) >= _EXTENDED_ERROR.size:
                    yield data, _EXTENDED_ERROR.unpack_from(held), _offender(held[_EXTENDED_ERROR.size :])

    def _told_mtu(self) -> int:
        local = [told[5] for _data, told, _offender in self._errors() if told[:2] == (errno.EMSGSIZE, _ORIGIN_LOCAL)]
        return local[-1] if local else 0

    def _is_own(self, address: str) -> bool:
        """True for an address of this host: only such can be bound to."""
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            try:
                trial.bind((address, 0))
            except OSError:
                return False
            return True


def checksum(packet: bytes) -> int:
    """The Internet checksum (RFC 1071) of a packet whose checksum field is 0."""
    total = int.from_bytes(packet + bytes(len(packet) % 2), "big") % 0xFFFF
    return 0xFFFF - total


def _offender(packed: bytes) -> str:
    """The address in a sockaddr."""
    with suppress(struct.error, ValueError):
        (family,) = struct.unpack_from("=H", packed)
        if family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, packed[4:8])
        if family == socket.AF_INET6:
            return socket.inet_ntop(socket.AF_INET6, packed[8:24])
    return ""


def _filter(version: Family, ident: int, requests: bool) -> list[bytes]:
    """A classic BPF program: answers with our identifier, and, where wanted, requests with MAGIC (linux/filter.h).

    An IPv4 raw socket is shown the IP header, too, an IPv6 one is not.
    """
    request, answer = _ECHO[version]
    load_x, byte, half, word = (0xB1, 0x50, 0x48, 0x40) if version == 4 else (0x01, 0x50, 0x48, 0x40)
    jump_equal, end = 0x15, 0x06

    def line(code: int, true: int, false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    first, second = struct.unpack("!II", MAGIC)
    return [
        line(load_x, 0, 0, 0),  # x: where ICMP begins
        line(byte, 0, 0, 0),
        line(jump_equal, 0, 2, answer),
        line(half, 0, 0, 4),
        line(jump_equal, 5, 6, ident),
        line(jump_equal, 0, 5, request if requests else 0x100),
        line(word, 0, 0, 8),
        line(jump_equal, 0, 3, first),
        line(word, 0, 0, 12),
        line(jump_equal, 0, 1, second),
        line(end, 0, 0, _PASS),
        line(end, 0, 0, _DROP),
    ]
