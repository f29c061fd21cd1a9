"""Where does the kernel send a packet, and is that where it should go? Questions to its routing, answers, and their judgement.

A route of ours may be in its place and not be used: a longer prefix wins over it, a policy rule asks another table first, a VRF has
tables of its own. Only a look-up tells, which is what the kernel itself does for each packet (``ip route get``, ip-route(8)).
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import Route

MAIN = 254
"""The main table (RT_TABLE_MAIN)."""

FILTERED = frozenset({errno.EXDEV, errno.EINVAL})
"""How a look-up says that a packet is dropped for where it comes from; by the reverse path filter (RFC 3704), where the way back to
its source is another. Linux from 6.13 on says EINVAL for all such reasons, before it said EXDEV for this one.
"""

_NO_WAY = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES})
NO_WAY = {4: _NO_WAY, 6: _NO_WAY | {errno.EINVAL}}
"""How it says that there is no route, or one of type unreachable or prohibit; of IPv6, which has no filter, also: blackhole."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A packet to ``dst``. ``arrives``: the index of the interface that it comes in by, from ``source``; 0: this host sends it."""

    dst: IPAddress
    source: IPAddress | None = None
    arrives: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The route that decides: ``route`` is its destination, ``dev`` empty where it has several next hops, which are ``hops``: a
    device and a gateway each, as far as they are known. ``code``: the errno where the kernel would not send, else 0.
    """

    dev: str = ""
    via: IPAddress | None = None
    route: IPNetwork | None = None
    table: int = MAIN
    code: int = 0
    hops: tuple[tuple[str, IPAddress | None], ...] = ()

    def __str__(self) -> str:
        """As an operator would type it after ``ip route del``."""
        words = ["default" if self.route is None or not self.route.prefixlen else str(self.route)]
        words += [f"via {self.via}"] if self.via is not None else []
        words += [f"dev {self.dev}"] if self.dev else []
        return " ".join(words)


def expected(routes: Iterable[Route], address: IPAddress) -> Route | None:
    """Which of the routes that are desired is to take packets to ``address``: the longest that covers it."""
    value, version = int(address), address.version
    covering = [
        route
        for route in routes
        if route.dst.version == version and route.kind == "unicast" and route.dst.first <= value <= route.dst.last
    ]
    return max(covering, key=lambda route: route.dst.prefixlen, default=None)


def goes(wanted: Route, found: Found) -> bool:
    """True where it goes by the route that is wanted, or one as good: of several next hops, where one of them is as good."""
    if found.code:
        return False
    ways = found.hops or ((found.dev, found.via),)
    return any(not dev or (dev == wanted.dev and (wanted.via is None or via == wanted.via)) for dev, via in ways)


def ruled(found: Found) -> bool:
    """True where it may be a policy rule that has decided."""
    return bool(found.code) or found.table != MAIN


def ip(version: int) -> str:
    """The command that speaks of rules and routes of this IP version; of addresses it finds out by itself."""
    return "ip" if version == 4 else "ip -6"


def undo(found: Found, least: int, otherwise: str) -> str:
    """The command against a route that leads astray: away with it where its prefix has ``least`` bits or more, so that nothing else
    goes by it; else ``otherwise``. By a default route, or one to a whole site, whoever types it may be reached himself.
    """
    return f"ip route del {found}" if found.route is not None and found.route.prefixlen >= least else otherwise


def mend_outer(found: Found, address: IPAddress, uplink: str, ours: Container[str]) -> str:
    """The command where packets to a peer itself go another way than by the uplink; ``ours``: devices of the overlay."""
    by_uplink = f"ip route add {address} via GATEWAY dev {uplink or 'UPLINK'}"
    if found.dev in ours:
        return undo(found, 1, by_uplink)
    return undo(found, 32 if address.version == 4 else 128, f"{by_uplink}; where {found.dev} is the way: --iface={found.dev}")


def detour(wanted: Route, found: Found, whose: str, rule: str = "") -> tuple[str, str]:
    """What is in the way of packets to ``whose`` subnet, as a subject, and in words with the command that mends it. ``rule``: the
    policy rule that takes them there, where it is known.
    """
    ip_ = ip(wanted.dst.version)
    should = f"not by {'' if wanted.via is None else f'{wanted.via} '}dev {wanted.dev}"
    if rule:
        where = "go nowhere" if found.code else f"go by {found} of table {found.table}"
        return f"rule {rule}", f"packets to {whose} {where}, {should}, for a policy rule says so: {ip_} rule del {rule}"
    if found.code:
        why = {errno.EACCES: "a route of type prohibit", errno.EINVAL: "a route of type blackhole"}.get(
            found.code, "no route, or one of type unreachable"
        )
        return (
            f"error {found.code}",
            f"packets to {whose} go nowhere ({why}), {should}: {ip_} rule show; {ip_} route show table all",
        )
    if found.table != MAIN:
        by = f"{found} of table {found.table}"
        mend = f"a policy rule asks that table first: {ip_} rule show; {ip_} rule del ... lookup {found.table}"
        return f"table {found.table} {found}", f"packets to {whose} go by {by}, {should}: {mend}"
    mend = undo(found, wanted.dst.prefixlen, "flannelpy plan")  # by a shorter one where ours is not there
    return str(found), f"packets to {whose} go by {found}, {should}: {mend}"
