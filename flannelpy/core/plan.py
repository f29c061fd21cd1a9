"""How does the kernel get from observed to desired? Ordered steps, as a value that prints itself.

Order: the sets of the firewall and who is in them before the rules that ask them; the firewall, which guards a port, before the
port is opened; a FOU port before the device that takes what comes in by it, a device before its key and its address, before
neighbour, FDB entry, peer, policy and nexthop, before the route that uses them; additions before removals, so that nothing is ever
without both; removals the other way round.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from netaddr import IPAddress

from flannelpy.core.objects import (
    ROUTE_PROTOCOL,
    Address,
    Detail,
    HostState,
    Key,
    Link,
    Object,
    Route,
    Scope,
    Sysctl,
)

Op = Literal["add", "change", "remake", "remove"]

_KINDS = "set; element; nft, forward; fou; link; wg; addr; sysctl; neigh; fdb, wgpeer, xfrm; nexthop; route"
_RANK = {kind: rank for rank, kinds in enumerate(_KINDS.split("; ")) for kind in kinds.split(", ")}
_ADDR = _RANK["addr"]


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one object. ``before`` is what was observed under its key, None for an ``add``.

    add: the key is free. change: in place, atomically. remake: a device that cannot be changed in place is deleted and created.
    """

    op: Op
    item: Object
    before: Object | None = None

    @property
    def key(self) -> Key:
        return self.item.key

    def __str__(self) -> str:
        verb = {"add": "add", "change": "replace", "remake": "remake", "remove": "del"}[self.op]
        return f"{self.item.noun} {verb} {self.item}"


Plan = tuple[Step, ...]


def plan(desired: HostState, observed: HostState, scope: Scope | None = None, held: Collection[Key] = ()) -> Plan:
    """The steps that turn ``observed`` into ``desired``. What is observed, not desired and not surely ours stays (``removable``).

    Nothing is done about the keys in ``held``: a device among them stays as it is, and what lives on it is seen to as ever; one
    that is not there stays away, and so does what would live on it; likewise a nexthop object and the routes by it.

    Pure; applying it and planning again gives an empty plan.
    """
    steps: list[Step] = []
    remade: set[str] = set()
    missing = {key.id for key in held if key.kind == "link" and key not in observed}
    unborne = {int(key.id) for key in held if key.kind == "nexthop" and key not in observed}
    for item in sorted(desired, key=_rank):
        if item.key in held or (lives_on(item) in missing and not isinstance(item, Link)):
            continue
        if unborne and isinstance(item, Route) and item.nhid in unborne:
            continue
        before = observed.get(item.key)
        if before is not None and lives_on(before) in remade and not isinstance(item, Link):
            before = None  # it went with its device
        if before == item:
            continue
        if before is None:
            steps.append(Step("add", item))
        elif isinstance(item, Link) and isinstance(before, Link) and item.must_be_remade(before):
            remade.add(item.name)
            steps.append(Step("remake", item, before))
        else:
            steps.append(Step("change", item, before))
    others = {item.name for item in observed if isinstance(item, Link) and item.key not in desired and item.kind not in MADE}
    gone = [
        item
        for item in observed
        if item.key not in desired and item.key not in held and removable(item, scope) and lives_on(item) not in others
    ]
    lost_links = {item.name for item in gone if isinstance(item, Link)}
    for item in sorted(gone, key=_rank, reverse=True):
        device = lives_on(item)
        if not isinstance(item, Link) and device is not None and (device in lost_links or device in remade):
            continue  # the kernel takes it away with its device
        steps.append(Step("remove", item, item))
    # Stable: an old address goes as soon as the new one is there, because a route via it (a peer has our old subnet now) would be
    # refused while it is ours. Of one IPv6 address with two lengths it goes before: the kernel would take the other for the same.
    again = {(step.item.dev, step.item.net.ip) for step in steps if isinstance(step.item, Address) and step.op != "remove"}
    return tuple(sorted(steps, key=lambda step: _turn(step, again)))


def _turn(step: Step, again: Container[tuple[str, IPAddress]]) -> float:
    item = step.item
    if step.op != "remove":
        return min(_rank(item), _ADDR + 1)
    if not isinstance(item, Address):
        return _ADDR + 2
    return _ADDR - 0.5 if item.net.version == 6 and (item.dev, item.net.ip) in again else _ADDR


MADE = frozenset({"tun", *(detail.kind for detail in get_args(Detail))})
"""The kinds of devices that backends make. One of another kind is somebody else's, by whatever name, and so is what lives on it."""


def removable(item: Object, scope: Scope | None) -> bool:
    """True where an object that nobody asked for is surely ours to remove (docs/ownership.md)."""
    if isinstance(item, Sysctl):
        return False  # a setting has no absence to go back to
    if isinstance(item, Route) and item.proto != ROUTE_PROTOCOL:
        return scope is not None and item.dev in scope.links
    return True


def text(steps: Iterable[Step]) -> str:
    """A plan as a shell session reads, one step a line."""
    return "\n".join(str(step) for step in steps)


def _rank(item: Object) -> int:
    return _RANK[item.noun]


def lives_on(item: Object) -> str | None:
    """The device that an object lives on, and vanishes with; a device lives on itself."""
    return item.lives_on
