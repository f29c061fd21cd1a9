"""Which peers are reached without a gateway, and what becomes of the routes to them where their link goes? DirectRouting's facts.

An interface that goes down, is made anew or loses its last IPv4 address takes the routes by it along, and the kernel says a word of
none of them; when it is back in the same moment, all else is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from netaddr import IPAddress

from flannelpy.core.desired import Desired
from flannelpy.core.model import Lease
from flannelpy.core.nexthops import routes_by
from flannelpy.core.objects import Key, Route
from flannelpy.kernel import Notice


def addresses(lease: Lease) -> tuple[IPAddress, ...]:
    """Where a peer is sent to."""
    return tuple(address for address in (lease.public_ip, lease.attrs.public_ipv6) if address is not None)


def taken_along(notice: Notice, on_link: Mapping[IPAddress, str], peers: Mapping[str, Lease], desired: Desired) -> Iterator[Key]:
    """The routes that may be gone with a link of which ``notice`` tells, or with a nexthop object. ``on_link``: by which link each
    address of a peer is reached.
    """
    yield from routes_by(notice.objects, desired)
    moved = set(notice.links.values()) if notice.routed else set[str]()
    if not moved or moved.isdisjoint(on_link.values()):
        return
    for owner, lease in peers.items():
        if any(on_link.get(address) in moved for address in addresses(lease)):
            yield from (item.key for item in desired.fragment(owner) if isinstance(item, Route))
