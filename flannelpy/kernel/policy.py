"""Which policy rules are there, and which of them takes a packet away from the main table? A dump of them, and of the tables that
they name: for a packet that goes astray, and not for others. Sources: linux/fib_rules.h, ip-rule(8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from netaddr import IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.lookup import MAIN, Lookup
from flannelpy.core.policy_rule import GOTO, LOCAL, NOTHING, TO_TABLE, PolicyRule, concerning, decides
from flannelpy.kernel import messages
from flannelpy.kernel.channel import GONE
from flannelpy.kernel.devices import name_of
from flannelpy.kernel.dump import dump
from flannelpy.kernel.messages import (
    DUMP,
    FAMILY,
    REQUEST,
    RTM_GETROUTE,
    VERSION,
    WIDTH,
    attribute,
    attributes,
    message,
    u32,
)

RTM_GETRULE = 34
INVERTED = 2
ACTIONS = {1: TO_TABLE, 2: GOTO, 3: NOTHING, 6: "blackhole", 7: "unreachable", 8: "prohibit"}
KNOWN = frozenset({1, 2, 3, 4, 6, 10, 13, 14, 15, 16, 17, 18, 19, 21})
"""FRA_* that are read, and those that say nothing of a packet; 19, FRA_L3MDEV, where it is 0."""

_HEAD = struct.Struct("=BBBBBBBBI")  # family, destination length, source length, tos, table, two unused, action, flags


async def policy_rule(lookup: Lookup) -> PolicyRule | None:
    """See ``Kernel.policy_rule``."""
    version, value = int(lookup.dst.version), int(lookup.dst)
    rules = await _rules(version)
    lengths = {}
    for table in {rule.table for rule in rules if rule.action == TO_TABLE and rule.table != LOCAL}:
        lengths[table] = await _longest(table, version, value)
    arrives = name_of(lookup.arrives) if lookup.arrives else ""
    return decides(rules, lookup.dst, lookup.source, arrives, lengths.get)


async def policy_rules(networks: Iterable[IPNetwork]) -> list[PolicyRule]:
    """Those that may take packets of these networks elsewhere than the main table says. Raises KernelError."""
    whole = list(networks)
    found = []
    for version in sorted({net.version for net in whole}):
        found += await _rules(version)
    return concerning(found, whole)


async def _rules(version: int) -> list[PolicyRule]:
    head = _HEAD.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    return await dump(lambda sequence: message(RTM_GETRULE, REQUEST | DUMP, sequence, head), read_rule)


def read_rule(data: bytes, body: int, end: int) -> PolicyRule | None:
    """A rule; None for those of other families than IP's."""
    family, to, of, tos, table, _, _, action, flags = _HEAD.unpack_from(data, body)
    if family not in VERSION or action not in ACTIONS:
        return None
    found = attributes(data, body + _HEAD.size, end)
    version = VERSION[family]

    def net(number: int, length: int) -> IPNetwork | None:
        return IPNetwork((int.from_bytes(found[number], "big"), length), version=version) if number in found and length else None

    def text(number: int) -> str:
        return found.get(number, b"").rstrip(b"\0").decode("utf-8", "replace")

    suppressed = found.get(14, b"\xff\xff\xff\xff")
    marked = 10 in found or 16 in found
    return PolicyRule(
        version,
        u32(found.get(6)),
        ACTIONS[action],
        u32(found.get(15)) or table or MAIN,
        u32(found.get(4)),
        net(2, of),
        net(1, to),
        text(3),
        text(17),
        (u32(found.get(10)), u32(found.get(16)) if 16 in found else 0xFFFFFFFF) if marked else None,
        bool(flags & INVERTED),
        int.from_bytes(suppressed, "little", signed=True),
        bool(tos or any(number not in KNOWN for number in found) or any(found.get(19, b""))),
    )


async def _longest(table: int, version: int, value: int) -> int | None:
    """The prefix length of the route to an address in a table. Kernels before 4.20 tell of all tables."""
    head = messages.RTMSG.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0) + attribute(15, messages.U32.pack(table))

    def read(data: bytes, body: int, end: int) -> int | None:
        family, length, _, _, held, _, _, _, flags = messages.RTMSG.unpack_from(data, body)
        if family != FAMILY[version] or flags & 0x200:  # RTM_F_CLONED: what was learned of a path
            return None
        found = attributes(data, body + messages.RTMSG.size, end)
        if (u32(found.get(15)) or held) != table:
            return None
        bits = WIDTH[version] * 8
        first = int.from_bytes(found.get(1, b""), "big")
        return int(length) if (first ^ value) >> (bits - length) == 0 else None

    try:
        lengths = await dump(lambda sequence: message(RTM_GETROUTE, REQUEST | DUMP, sequence, head), read)
    except KernelError as reason:
        if reason.code in GONE:  # nobody has put a route into it
            return None
        raise
    return max(lengths, default=None)
