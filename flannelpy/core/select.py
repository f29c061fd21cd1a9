"""By what is a peer reached? By the first carrier of ``Prefer`` that both hosts offer and the facts allow; else by the Type.

Pure. Two hosts need not agree: each decides on what it sends, and takes in what comes either way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from flannelpy.core.backend import Backend, Beside, Local, Path
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, WireguardPeer

LEAST_MTU = {4: 68, 6: 1280}
"""What a link must carry, by IP version (RFC 791, RFC 8200)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What this host knows of one way to one peer. ``obstacle``: why its offer cannot be used; ``link``: both are on one;
    ``answered``: the peer has answered on it; ``mtu`` in bytes, and the ``least`` that will do.
    """

    obstacle: str = ""
    link: bool = False
    answered: bool = False
    mtu: int = 0
    least: int = LEAST_MTU[4]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a carrier can do nothing without."""

    link: bool = False
    answer: bool = False


def select(
    kind: str,
    prefer: Sequence[str],
    ours: Mapping[str, Needs],
    theirs: Collection[str] | None,
    facts: Mapping[str, Facts],
    withheld: Mapping[str, str],
) -> tuple[str, str]:
    """The carrier for one peer, and why. ``kind`` is the Type, ``theirs`` None where the peer offers nothing.

    ``withheld``: why this host does not offer a carrier of ``prefer``. ``facts`` are there for what both offer.
    """
    if theirs is None:
        return kind, "the peer offers nothing else"
    passed = []
    for name in prefer:
        if name not in ours:
            passed.append(f"{name}: {withheld.get(name) or 'not offered by this host'}")
        elif name not in theirs:
            passed.append(f"{name}: not offered by the peer")
        elif why := _against(ours[name], facts.get(name, Facts())):
            passed.append(f"{name}: {why}")
        else:
            return name, "; ".join([*passed, "both offer it"])
    return kind, "; ".join(passed) or "nothing is preferred to it"


def _against(needs: Needs, facts: Facts) -> str:
    """Why a carrier that both offer cannot be used; empty where it can."""
    if facts.obstacle:
        return facts.obstacle
    if needs.link and not facts.link:
        return "not on one link"
    if needs.answer and not facts.answered:
        return "no answer by it yet"
    return f"takes {facts.mtu} bytes, expected {facts.least} or more" if facts.mtu < facts.least else ""


@dataclass(frozen=True, slots=True)
class Preferring:
    """A backend of the network's Type with ``carriers`` beside it, in the order of ``prefer``; ``withheld``: which of those this
    host does not offer, and why.

    All of them are set up, on the host and for each peer; a peer's routes are those of one.
    """

    base: Backend
    carriers: Mapping[str, Beside]
    prefer: tuple[str, ...]
    withheld: Mapping[str, str]
    offered: frozenset[str]
    """The names of those that this host offers; by the others it only takes packets."""

    @property
    def wants_on_link(self) -> bool:
        """True where it must be known who is reached without a gateway."""
        return self.base.wants_on_link or any(each.needs_link for each in self.carriers.values())

    @property
    def wants_answers(self) -> bool:
        """True where it must be known who has answered."""
        return any(each.needs_answer for each in self.carriers.values())

    def host(self, local: Local) -> HostState:
        """Devices and addresses of all, the network-wide routes of the Type."""
        state = self.base.host(local)
        for carrier in self.carriers.values():
            state |= carrier.host(local)
        return state

    def path(self, lease: Lease, local: Local) -> Path:
        """How this peer is reached, with carrier and reason. Raises as the Type's own; what is offered beside it raises nothing."""
        base, offer = self.base.path(lease, local), lease.offer
        ways, facts = dict[str, Path](), dict[str, Facts]()
        for name, carrier in self.carriers.items():
            if offer is None or (attrs := offer.attrs(name)) is None:
                continue
            try:
                way = carrier.path(replace(lease, attrs=attrs, offer=None), local)
                setup = base.setup | way.setup  # raises where they claim one key
            except (FlannelpyError, ValueError) as error:
                facts[name] = Facts(obstacle=str(error))
                continue
            base = replace(base, setup=setup)
            ways[name], facts[name] = way, _facts(way, lease, local)
        ours = {name: Needs(each.needs_link, each.needs_answer) for name, each in self.carriers.items() if name in self.offered}
        theirs = None if offer is None else offer.data
        chosen, reason = select(self.base.name, self.prefer, ours, theirs, facts, self.withheld)
        if chosen in ways:  # else it is the Type
            base = replace(base, routes=ways[chosen].routes, mtu=ways[chosen].mtu)
        return replace(base, carrier=chosen, reason=reason)


def _facts(way: Path, lease: Lease, local: Local) -> Facts:
    own = local.own
    v4 = bool(local.config.v4 and own.subnet.prefixlen and lease.subnet.prefixlen)
    v6 = bool(local.config.v6 and lease.subnet6)
    addresses = [address for wanted, address in ((v4, lease.public_ip), (v6, lease.attrs.public_ipv6)) if wanted]
    link = bool(addresses) and all(local.on_link.get(address) == local.uplink.name for address in addresses if address is not None)
    answered = all(item.key in local.answered for item in way.setup if isinstance(item, WireguardPeer))
    return Facts("", link, answered, way.mtu, LEAST_MTU[6 if v6 else 4])
