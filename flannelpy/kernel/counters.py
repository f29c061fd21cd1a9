"""What have the named counters of our nft table counted? nf_tables' own messages: no nft process, and no sets are read for it.

Source: linux/netfilter/nf_tables.h (NFT_MSG_GETOBJ, NFTA_OBJ_*, NFTA_COUNTER_*).
"""

from __future__ import annotations

from flannelpy.kernel.dump import dump
from flannelpy.kernel.elements import NETLINK_NETFILTER, NFPROTO_INET, SUBSYSTEM
from flannelpy.kernel.messages import DUMP, REQUEST, attribute, attributes, message

GET_OBJECT = SUBSYSTEM << 8 | 19
COUNTER = 1
"""NFT_OBJECT_COUNTER"""

_HEAD = b"\0\0\0\0"  # struct nfgenmsg: family, version 0, resource
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4
_PACKETS = 2


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


def decode(data: bytes, body: int, end: int, table: str) -> tuple[str, int] | None:
    """Name and packets of a counter of ``table``; None for any other object."""
    found = attributes(data, body + len(_HEAD), end)
    if found.get(_TABLE, b"").rstrip(b"\0") != table.encode() or found.get(_TYPE) != COUNTER.to_bytes(4, "big"):
        return None
    value = found.get(_DATA, b"")
    packets = attributes(value, 0, len(value)).get(_PACKETS)
    if packets is None or _NAME not in found:
        return None
    return found[_NAME].rstrip(b"\0").decode("utf-8", "replace"), int.from_bytes(packets, "big")
