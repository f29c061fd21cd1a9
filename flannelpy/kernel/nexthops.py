"""How are nexthop objects made, seen and given back? Those of ours only: by our mark, on a device of ours. ip-nexthop(8).

The kernel has them since 5.3. A route names one by its number, and would be carried by whichever has that number: where somebody
else's has it, no route of ours may name it. So nexthop objects are out, and answered for, before the routes by them are sent.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import ROUTE_PROTOCOL, Nexthop, Route
from flannelpy.core.plan import Step
from flannelpy.kernel import Result, messages
from flannelpy.kernel.channel import Channel, error
from flannelpy.kernel.dump import Dumped, dump_of_device
from flannelpy.kernel.messages import ACK, CREATE, EXCL, REPLACE, REQUEST
from flannelpy.kernel.sieve import Sieve

TOLD_IN_FULL = "net/ipv4/nexthop_compat_mode"
"""Where this is 0, the kernel tells of a route by a nexthop object its number and nothing else (networking/ip-sysctl).
Before 5.8 there was no such setting, and everything was told.
"""

UNKNOWN = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
"""How a kernel without nexthop objects answers."""

ANY = 1
"""The number that is asked about."""


def usable(channel: Channel, settings: Mapping[str, str]) -> bool:
    """True where the kernel has nexthop objects, and tells of routes by them with gateway and device. Raises KernelError."""
    try:
        channel.get(messages.get_nexthop(channel.reserve(1), ANY))
    except KernelError as refusal:
        if refusal.code in UNKNOWN:
            return False
        if refusal.code != errno.ENOENT:
            raise
    return settings.get(TOLD_IN_FULL, "1") != "0"


async def observe(sieve: Sieve, index: int) -> Dumped[Nexthop]:
    """Those of ours on one device. Raises KernelError."""

    def read(data: bytes, body: int, end: int) -> Nexthop | None:
        return sieve.nexthop(messages.read_nexthop(data, body, end))

    try:
        return await dump_of_device(lambda sequence: messages.dump_nexthops(sequence, index), read)
    except KernelError as refusal:
        if refusal.code in UNKNOWN:
            return Dumped()
        raise


def encode(step: Step, item: Nexthop, sequence: int, index: int) -> bytes:
    """The message of a step."""
    if step.op == "remove":
        return messages.nexthop(messages.RTM_DELNEXTHOP, REQUEST, sequence, item, 0)
    flags = REQUEST | CREATE | (EXCL if step.op == "add" else REPLACE)
    return messages.nexthop(messages.RTM_NEWNEXTHOP, flags, sequence, item, index)


def before_their_routes(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps at the beginning in which no route is by a nexthop object that is among them."""
    made = set[int]()
    for place, step in enumerate(steps):
        if isinstance(step.item, Nexthop):
            made.add(step.item.id)
        elif isinstance(step.item, Route) and step.item.nhid in made:
            return steps[:place]
    return steps


def refused(results: Iterable[Result]) -> dict[int, KernelError]:
    """By number, the nexthop objects that could not be had, and why."""
    return {one.step.item.id: one.error for one in results if one.error is not None and isinstance(one.step.item, Nexthop)}


def demand_had(step: Step, missing: Mapping[int, KernelError]) -> None:
    """Raises KernelError where a step is for a route by a nexthop object that is ``missing``: it may be somebody else's."""
    if isinstance(step.item, Route) and step.op != "remove" and step.item.nhid in missing:
        raise KernelError(f"its nexthop object could not be had: {missing[step.item.nhid]}", errno.ENOENT)


def take_over(channel: Channel, item: Nexthop, index: int) -> KernelError | None:
    """Make ``item`` of what has its number, where that is one of ours; else say that it is there."""
    there = error((errno.EEXIST, ""))
    try:
        data, head = channel.get(messages.get_nexthop(channel.reserve(1), item.id))
        found = messages.read_nexthop(data, head.body, head.end)
        if found.proto != ROUTE_PROTOCOL or found.device != index:
            return there
        first = channel.reserve(1)
        request = messages.nexthop(messages.RTM_NEWNEXTHOP, REQUEST | ACK | CREATE | REPLACE, first, item, index)
        failed = channel.transact([request], first)
    except KernelError as reason:
        return reason
    return error(failed[0]) if failed else None
