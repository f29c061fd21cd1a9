"""What have the counters of our nft table counted, by name, and by source? nf_tables' own messages, and no nft process.

Of sets only those are read that count, and they are small. Source: linux/netfilter/nf_tables.h (NFT_MSG_GETOBJ, NFTA_OBJ_*,
NFT_MSG_GETSETELEM, NFTA_SET_ELEM_*, NFTA_EXPR_*, NFTA_COUNTER_*).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import chain

from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.kernel.dump import dump
from flannelpy.kernel.elements import GET, NETLINK_NETFILTER, NFPROTO_INET, SUBSYSTEM
from flannelpy.kernel.messages import DUMP, REQUEST, attribute, attributes, each_attribute, message

GET_OBJECT = SUBSYSTEM << 8 | 19
COUNTER = 1
"""NFT_OBJECT_COUNTER"""

_HEAD = b"\0\0\0\0"  # struct nfgenmsg: family, version 0, resource
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4
_PACKETS = 2
_ELEMENTS, _KEY, _EXPRESSION = 3, 1, 7


async def counted(table: str) -> dict[str, int]:
    """Packets by the name of the counter, since the table was made; empty where there is no such table.

    Raises KernelError where the kernel has no nf_tables, or does not let us ask.
    """
    head = bytes([NFPROTO_INET]) + _HEAD[1:]
    asked = head + attribute(_TABLE, table.encode() + b"\0") + attribute(_TYPE, COUNTER.to_bytes(4, "big"))
    found = await dump(
        lambda sequence: message(GET_OBJECT, REQUEST | DUMP, sequence, asked),
        lambda data, body, end: decode(data, body, end, table),
        protocol=NETLINK_NETFILTER,
    )
    return dict(found)


async def counted_by_source(table: str, name: str) -> dict[str, int]:
    """Packets by the address that the set ``name`` counts them for; empty where there is no such set. Raises KernelError."""
    asked = bytes([NFPROTO_INET]) + _HEAD[1:] + attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
    try:
        found = await dump(
            lambda sequence: message(GET, REQUEST | DUMP, sequence, asked),
            lambda data, body, end: list(decode_elements(data, body, end)),
            protocol=NETLINK_NETFILTER,
        )
    except KernelError as error:
        if error.code == errno.ENOENT:
            return {}
        raise
    return dict(chain.from_iterable(found))


def decode_elements(data: bytes, body: int, end: int) -> Iterator[tuple[str, int]]:
    """Addresses and packets of a message with elements; without those that count nothing."""
    listed = attributes(data, body + len(_HEAD), end).get(_ELEMENTS, b"")
    for _number, each in each_attribute(listed, 0, len(listed)):
        parts = _nested(each)
        address = _nested(parts.get(_KEY, b"")).get(1, b"")  # NFTA_DATA_VALUE
        packets = _nested(_nested(parts.get(_EXPRESSION, b"")).get(2, b"")).get(_PACKETS)  # NFTA_EXPR_DATA
        if len(address) in (4, 16) and packets is not None and len(packets) == 8:
            yield str(IPAddress(int.from_bytes(address, "big"), 4 if len(address) == 4 else 6)), int.from_bytes(packets, "big")


def _nested(value: bytes) -> dict[int, bytes]:
    return attributes(value, 0, len(value))


def decode(data: bytes, body: int, end: int, table: str) -> tuple[str, int] | None:
    """Name and packets of a counter of ``table``; None for any other object."""
    found = attributes(data, body + len(_HEAD), end)
    if found.get(_TABLE, b"").rstrip(b"\0") != table.encode() or found.get(_TYPE) != COUNTER.to_bytes(4, "big"):
        return None
    packets = _nested(found.get(_DATA, b"")).get(_PACKETS)
    if packets is None or _NAME not in found:
        return None
    return found[_NAME].rstrip(b"\0").decode("utf-8", "replace"), int.from_bytes(packets, "big")
