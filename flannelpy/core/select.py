"""By what is a peer reached? By the first carrier of ``Prefer`` that both hosts offer and the facts allow; else by the Type.

Pure. Two hosts need not agree: each decides on what it sends, and takes in what comes either way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from flannelpy.core.backend import Backend, Beside, Local, Path, StandsBeside
from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.model import Lease
from flannelpy.core.objects import HostState, Key, WireguardPeer
from flannelpy.core.offer import attrs_of
from flannelpy.core.shared_options import LEAST_MTU


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

    ``withheld``: why this host does not offer a carrier of ``prefer``. ``facts`` are there for what both have.
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


def leave(kind: str, needs: Needs, facts: Facts | None, leaving: Sequence[str], *, ready: bool) -> tuple[str, str]:
    """The Type ``kind``, or that of the Types before, ``leaving``, by which the peer can still be reached; and why.

    ``facts`` None: the peer does not say that it takes packets by ``kind``; ``ready``: that this host does.
    """
    if not leaving:
        return kind, "the peer has it, and no Type before it"
    why = "not set up on this host yet" if not ready else "not offered by the peer yet" if facts is None else _against(needs, facts)
    return (leaving[0], f"{kind}: {why}") if why else (kind, "both have it")


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
    leaving: tuple[str, ...] = ()
    """Of ``carriers``, the Types that the network had before, the last one first: for who does not have the Type yet."""
    ready: bool = True
    """True where the Type is set up on this host."""

    @property
    def accepts(self) -> frozenset[str] | None:
        """The BackendTypes of which it makes a path by itself; while the Type changes, of any."""
        return None if self.leaving else self.base.accepts

    @property
    def wants_on_link(self) -> bool:
        """True where it must be known who is reached without a gateway."""
        return self.base.wants_on_link or any(needs.link for needs in self._needs.values())

    @property
    def wants_answers(self) -> bool:
        """True where it must be known who has answered."""
        return any(needs.answer for needs in self._needs.values())

    @property
    def _needs(self) -> Mapping[str, Needs]:
        found = {name: Needs(each.needs_link, each.needs_answer) for name, each in self.carriers.items()}
        if self.leaving and isinstance(self.base, StandsBeside):
            beside = self.base.beside()
            found[self.base.name] = Needs(beside.needs_link, beside.needs_answer)
        return found

    def host(self, local: Local) -> HostState:
        """Devices and addresses of all, the network-wide routes of the Type."""
        state = self.base.host(local)
        for carrier in self.carriers.values():
            state |= carrier.host(local)
        return state

    def spare(self, local: Local) -> frozenset[Key]:
        """What of the host's own it can do without: of two Types, that which is not set up yet, or on its way out."""
        if not self.leaving:
            return frozenset()
        base = {*self.base.host(local).objects}
        left = {key for name in self.leaving if name in self.carriers for key in self.carriers[name].host(local).objects}
        return frozenset(left - base if self.ready else base - left)

    def path(self, lease: Lease, local: Local) -> Path:
        """How this peer is reached, with carrier and reason. Raises as the Type's own; what is offered beside it raises nothing."""
        left = [name for name in self.leaving if attrs_of(lease, name) is not None]
        if self.leaving:
            return self._leave(lease, local, left)
        base = self.base.path(lease, local)
        ways, facts, setup = self._ways(self.carriers, lease, local, base.setup)
        chosen, reason = self._select(lease, facts)
        if chosen in ways:  # else it is the Type
            base = replace(base, routes=ways[chosen].routes, mtu=ways[chosen].mtu)
        return replace(base, setup=setup, carrier=chosen, reason=reason, preferred=chosen != self.base.name)

    def _leave(self, lease: Lease, local: Local, left: Sequence[str]) -> Path:
        """While the network moves to the Type: by what both ends have."""
        base, told = self.base, attrs_of(lease, self.base.name)
        carriers: dict[str, Backend | Beside] = {**self.carriers}
        if told is not None or not left:
            carriers = {base.name: base.beside() if isinstance(base, StandsBeside) else base, **carriers}
        lease = lease if told is not None or left else replace(lease, attrs=replace(lease.attrs, backend_type=base.name))
        ways, facts, setup = self._ways(carriers, lease, local, HostState())
        chosen, reason = self._select(lease, facts)
        preferred = chosen != base.name and told is not None  # else there is nothing that it is preferred to
        if chosen == base.name:
            usable = [name for name in left if name in ways]
            needs = self._needs.get(base.name, Needs())
            chosen, reason = leave(base.name, needs, facts.get(base.name), usable, ready=self.ready)
        if chosen not in ways:
            raise MalformedError(facts[chosen].obstacle if chosen in facts else f"it has neither {base.name} nor a Type before it")
        return Path(setup, ways[chosen].routes, ways[chosen].mtu, chosen, reason, preferred)

    def _ways(
        self, carriers: Mapping[str, Backend | Beside], lease: Lease, local: Local, setup: HostState
    ) -> tuple[dict[str, Path], dict[str, Facts], HostState]:
        """The ways to a peer by those of these that it says it has; what is known of each; and ``setup`` with what they need."""
        ways, facts = dict[str, Path](), dict[str, Facts]()
        for name, carrier in carriers.items():
            if (attrs := attrs_of(lease, name)) is None:
                continue
            try:
                way = carrier.path(replace(lease, attrs=attrs, offer=None), local)
                setup |= way.setup  # raises where they claim one key
            except (FlannelpyError, ValueError) as error:
                facts[name] = Facts(obstacle=str(error))
                continue
            ways[name], facts[name] = way, _facts(way, lease, local)
        return ways, facts, setup

    def _select(self, lease: Lease, facts: Mapping[str, Facts]) -> tuple[str, str]:
        needs = self._needs
        ours = {name: needs[name] for name in self.carriers if name in self.offered}
        theirs = None if lease.offer is None else {*lease.offer.data, *facts} - lease.offer.retiring
        return select(self.base.name, self.prefer, ours, theirs, facts, self.withheld)


def _facts(way: Path, lease: Lease, local: Local) -> Facts:
    own = local.own
    v4 = bool(local.config.v4 and own.subnet.prefixlen and lease.subnet.prefixlen)
    v6 = bool(local.config.v6 and lease.subnet6)
    addresses = [address for wanted, address in ((v4, lease.public_ip), (v6, lease.attrs.public_ipv6)) if wanted]
    link = bool(addresses) and all(local.on_link.get(address) == local.uplink.name for address in addresses if address is not None)
    answered = all(item.key in local.answered for item in way.setup if isinstance(item, WireguardPeer))
    return Facts("", link, answered, way.mtu, LEAST_MTU[6 if v6 else 4])
