"""How does an IPv6 route get its gateway where a route by another device covers that? By a way to it that is there for a moment.

A gateway "onlink" is the first address of the very subnet that the route leads to. IPv6, and not IPv4, looks it up, and refuses the
route where the answer is another device, unless that is by a default route (ip6_route_check_nh_onlink in net/ipv6/route.c): a plain
route to that subnet (DirectRouting, host-gw), which this one is to take the place of, or somebody's route to more than the Network.
It looks once: a route to the gateway alone goes out with ours, before it, and is taken back behind it, all in one send.
"""

from __future__ import annotations

from collections.abc import Callable

from netaddr import IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Route
from flannelpy.core.plan import Step
from flannelpy.kernel import messages
from flannelpy.kernel.channel import Channel, error
from flannelpy.kernel.messages import CREATE, EXCL, REQUEST


def insist(
    channel: Channel, step: Step, refused: KernelError, encode: Callable[[int], bytes], index_of: Callable[[str], int]
) -> KernelError | None:
    """Where the kernel may have refused a route for that, with EINVAL, send it once more, as ``encode`` gives it for a sequence
    number; what the kernel says to it now.
    """
    item = step.item
    if step.op == "remove" or not isinstance(item, Route) or not item.onlink or item.via is None or item.via.version != 6:
        return refused
    way, index = Route(IPNetwork(item.via), dev=item.dev), index_of(item.dev or "")
    first = channel.reserve(3)
    come = messages.route(messages.RTM_NEWROUTE, REQUEST | CREATE | EXCL, first, way, index)
    go = messages.route(messages.RTM_DELROUTE, REQUEST, first + 2, way, index)
    try:
        failed = channel.transact([come, encode(first + 1), messages.with_ack(go)], first)
    except KernelError as reason:
        return reason
    return error(failed[1]) if 1 in failed else None
