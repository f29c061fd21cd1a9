"""How would the kernel send? Many look-ups in one send, each answered by the route that decides, its table and its next hop.

RTM_GETROUTE with RTM_F_FIB_MATCH (Linux 4.13) tells the route, not only what follows from it; an older kernel tells the address in
place of its destination. 64 look-ups take some 0.7 ms.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Sequence

from netaddr import IPAddress, IPNetwork

from flannelpy.core.lookup import Found, Lookup
from flannelpy.kernel import messages
from flannelpy.kernel.channel import Channel
from flannelpy.kernel.messages import (
    AF_INET,
    FAMILY,
    REQUEST,
    RTM_GETROUTE,
    VERSION,
    WIDTH,
    as_address,
    attribute,
    attributes,
    packed,
)

LOOKUP_TABLE, FIB_MATCH = 0x1000, 0x2000  # RTM_F_*
REFUSING = {6: errno.EINVAL, 7: errno.EHOSTUNREACH, 8: errno.EACCES}
"""Route types that send nowhere: blackhole, unreachable, prohibit. A look-up fails with these; IPv6 answers with the route."""
AT_ONCE = 64
_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight, interface


def look_up(channel: Channel, lookups: Sequence[Lookup], name_of: Callable[[int], str]) -> list[Found]:
    """An answer each, in order. Raises KernelError where the kernel cannot be asked at all."""
    found: list[Found] = []
    for at in range(0, len(lookups), AT_ONCE):
        some = lookups[at : at + AT_ONCE]
        first = channel.reserve(len(some))
        answers = channel.get_all([_request(first + place, each) for place, each in enumerate(some)], first)
        found += [_found(answer, name_of) for answer in answers]
    return found


def _request(sequence: int, lookup: Lookup) -> bytes:
    family, bits = FAMILY[lookup.dst.version], WIDTH[lookup.dst.version] * 8
    flags = FIB_MATCH | (LOOKUP_TABLE if family == AF_INET else 0)  # IPv6 always tells the table, and refuses to be asked for it
    head = messages.RTMSG.pack(family, bits, 0 if lookup.source is None else bits, 0, 0, 0, 0, 0, flags)
    body = head + attribute(1, packed(lookup.dst))
    if lookup.source is not None:
        body += attribute(2, packed(lookup.source))
    if lookup.arrives:
        body += attribute(3, messages.U32.pack(lookup.arrives))
    return messages.message(RTM_GETROUTE, REQUEST, sequence, body)


def _found(answer: bytes | int, name_of: Callable[[int], str]) -> Found:
    if isinstance(answer, int):
        return Found(code=answer)
    family, length, _, _, table, _, _, kind, _ = messages.RTMSG.unpack_from(answer)
    if kind in REFUSING:
        return Found(code=REFUSING[kind])
    told = attributes(answer, messages.RTMSG.size, len(answer))
    via = told.get(5) or (told[18][2:] if 18 in told else None)
    version = VERSION[family]
    dst = told.get(1, bytes(WIDTH[version]))
    index = messages.u32(told.get(4))
    return Found(
        name_of(index) if index and 9 not in told else "",  # RTA_MULTIPATH: which of several is chosen packet by packet
        as_address(via) if via else None,
        IPNetwork((int.from_bytes(dst, "big"), length), version=version),
        messages.u32(told.get(15)) or table,
        hops=tuple(_hops(told.get(9, b""), name_of)),
    )


def _hops(data: bytes, name_of: Callable[[int], str]) -> Iterator[tuple[str, IPAddress | None]]:
    """What RTA_MULTIPATH holds (rtnetlink(7)): device and gateway each."""
    at = 0
    while at + _HOP.size <= len(data):
        length, _, _, index = _HOP.unpack_from(data, at)
        if length < _HOP.size:
            return
        told = attributes(data, at + _HOP.size, min(at + length, len(data)))
        via = told.get(5) or (told[18][2:] if 18 in told else None)
        yield name_of(index), as_address(via) if via else None
        at += (length + 3) & ~3
