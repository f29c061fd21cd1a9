"""Which leases are peers to program? Every lease of the registry, judged one by one; a bad one never touches another.

A lease is left out, with a reason, where it is our own, lies outside Network, has host bits or a half of a family that the network
lacks, is of a backend we cannot talk to, has an address that no peer's can be (core.underlay), would cut this host off, or shares
subnet or identity with an older one (core.ownership). flannel-compat 6.2, 9.0; field-problems F5, F6.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from netaddr import IPAddress, IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import printable
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.names import Names
from flannelpy.core.offer import Identities, Offer, Offers, spoken, type_of
from flannelpy.core.ownership import Block, Claim, Ownership
from flannelpy.core.underlay import Shield, Underlay

Identity = Callable[[LeaseAttrs], Mapping[str, str]]
"""What of a lease's value only one host may have, by what it is of: MACs, a public key (``Backend.identities``).
Raises FlannelpyError where that cannot be told."""


def _no_identity(_attrs: LeaseAttrs) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Changes:
    """What a step changed: usable peers by lease key (None: gone or left out now), and why each unusable one is left out."""

    peers: Mapping[str, Lease | None] = field(default_factory=dict)
    refused: Mapping[str, str | None] = field(default_factory=dict)
    """By lease key: the reason; None where it is refused no longer."""


class Membership:
    """The leases of a cluster and the verdict on each. Mutable, single-owner; work is proportional to the change.

    Until it is told the network's ``config``, nobody is a peer. ``address`` is what we publish: a lease with it is none of a
    peer's, also before we hold one.
    """

    def __init__(
        self,
        config: NetworkConfig | None = None,
        accepts: frozenset[str] | None = None,
        own: Lease | None = None,
        address: IPAddress | None = None,
    ) -> None:
        self._config = config
        self._address = address if own is None else _host(own.attrs)
        self._accepts = accepts
        self._identity: Identity = _no_identity
        self._own = own
        self._shield = _shield(config, Underlay())
        self._leases: dict[str, Lease] = {}
        self._peers: dict[str, Lease] = {}
        self._refused: dict[str, str] = {}
        self._ownership = Ownership()
        self.offers = Offers()
        """What stands beside the leases, whether it counts or not; told by ``offer``."""
        self.names = Names()
        """What the hosts are called; no verdict depends on it."""

    @property
    def leases(self) -> Mapping[str, Lease]:
        """Every lease that was read, usable or not; as it goes on."""
        return MappingProxyType(self._leases)

    @property
    def peers(self) -> Mapping[str, Lease]:
        """The usable peers; as it goes on."""
        return MappingProxyType(self._peers)

    @property
    def refused(self) -> Mapping[str, str]:
        """Why each lease that is not a usable peer is none, by key; empty text where that is nothing to report (our own)."""
        return self._refused

    def configure(
        self,
        config: NetworkConfig,
        accepts: frozenset[str] | None,
        address: IPAddress | None,
        underlay: Underlay | None = None,
        identity: Identity = _no_identity,
    ) -> Changes:
        """The network, the backend, our address or what is around us is another one now: every verdict is made anew."""
        before, self._shield = self._shield, _shield(config, underlay or Underlay())
        wanted = (config, accepts, address, identity)
        if wanted == (self._config, self._accepts, self._address, self._identity):
            return self._judge(self._touched(before, self._shield))
        self._config, self._accepts, self._address, self._identity = wanted
        return self._judge(self._leases)

    def _touched(self, before: Shield, after: Shield) -> Collection[str]:
        """The leases of which another underlay can change the verdict."""
        if before == after:
            return ()
        if replace(before, strange={}) != replace(after, strange={}):
            return self._leases
        turned = {address for address, _words in before.strange.items() ^ after.strange.items()}
        return [key for key, lease in self._leases.items() if lease.public_ip in turned or lease.attrs.public_ipv6 in turned]

    def prefer(self, identities: Mapping[str, Identities]) -> Changes:
        """These carriers may be used besides the Type where a peer offers them, too."""
        if identities == self.offers.identities:
            return Changes()
        self.offers.identities = dict(identities)
        return self._offered(self._leases, Changes())

    def offer(self, key: str, offer: Offer | None) -> Changes:
        """The host with the lease ``key`` offers this now; None: nothing."""
        if self.offers.says(key) == offer:
            return Changes()
        self.offers.said(key, offer)
        return self._offered([key], Changes())

    def _offered(self, keys: Iterable[str], changes: Changes) -> Changes:
        """``changes`` with what follows from other leases or offers under these keys: a peer is told with what it offers."""
        if not self.offers.any:
            return changes
        peers, again = dict(changes.peers), list[str]()
        for key in self.offers.judge(keys, self._leases):
            lease, offer = self._leases.get(key), self.offers.of(key)
            if lease is None or lease.offer == offer:
                continue
            self._leases[key] = lease = replace(lease, offer=offer)
            if not self._speaks(lease.attrs):
                again.append(key)  # what it offers decides whether it is a peer
            elif key in self._peers:
                self._peers[key] = peers[key] = lease
        if not again:
            return Changes(peers, changes.refused)
        later = self._judge(again, again)
        return Changes({**peers, **later.peers}, {**changes.refused, **later.refused})

    def _speaks(self, attrs: LeaseAttrs) -> bool:
        return self._accepts is None or attrs.backend_type in self._accepts

    def _spoken(self, lease: Lease) -> Lease:
        return spoken(lease, self._accepts)

    def set_own(self, own: Lease | None) -> Changes:
        """Our lease is another one now; every verdict is made anew where it moved."""
        old, self._own = self._own, own
        if old is not None and own is not None and old.key == own.key and old.public_ip == own.public_ip:
            return Changes()
        return self._judge(list(self._concerned([each for each in (old, own) if each is not None])))

    def _concerned(self, own: Sequence[Lease]) -> Iterator[str]:
        """The leases of which the verdict depends on these being ours: themselves, and what overlaps them."""
        named = {lease.key for lease in own}
        blocks = [_span(net) for lease in own for net in _nets(lease)]
        for key, lease in self._leases.items():
            if key in named:
                yield key
                continue
            for net in _nets(lease):
                version, first, last = _span(net)
                if any(version == each[0] and first <= each[2] and each[1] <= last for each in blocks):
                    yield key
                    break

    def put(self, lease: Lease) -> Changes:
        """A lease was created, renewed or changed. A pure renewal changes nothing."""
        changes = Changes() if self._renewed(lease) else self._judge([lease.key], {lease.key})
        return self._offered([lease.key], changes)

    def remove(self, key: str) -> Changes:
        """A lease is gone."""
        if self._leases.pop(key, None) is None:
            return Changes()
        return self._offered([key], self._judge([key]))

    def replace(self, leases: Iterable[Lease], keep: Container[str] = ()) -> Changes:
        """A complete listing: what is not in it is gone, but for the keys in ``keep``; values are compared in full."""
        wanted = {lease.key: lease for lease in leases}
        gone = [key for key in self._leases if key not in wanted and key not in keep]
        for key in gone:
            del self._leases[key]
        changed = {key for key, lease in wanted.items() if not self._renewed(lease)}
        return self._offered([*gone, *wanted], self._judge([*gone, *changed], changed))

    def _renewed(self, lease: Lease) -> bool:
        """Take it in; True where it is what was there, renewed at the most."""
        key = lease.key
        old = self._leases.get(key)
        if old is not None:
            if old.offer is not None:
                lease = replace(lease, offer=old.offer)  # until that is judged
            lease = lease.made_of(old)
        self._leases[key] = lease
        if old is None or not old.same_content(lease) or old.create_revision != lease.create_revision:
            self._remember(old, lease)
            return False
        if key in self._peers:
            self._peers[key] = self._spoken(lease)
        return True

    def _remember(self, old: Lease | None, lease: Lease) -> None:
        """A host that changes over to another Type is reached by the one before for as long as it takes."""
        if old is None or not self._speaks(old.attrs) or type_of(old.attrs) == type_of(lease.attrs):
            return
        if (old.public_ip, old.attrs.public_ipv6) == (lease.public_ip, lease.attrs.public_ipv6):
            self.offers.imply(lease.key, old.attrs)

    def _judge(self, keys: Collection[str], changed: Container[str] = ()) -> Changes:
        """Verdicts on these leases, which may be gone, and on those whose verdict follows from it.

        ``changed`` ones are told as a change even where their verdict stays.
        """
        faults = {key: self._fault(lease) for key in keys if (lease := self._leases.get(key)) is not None}
        claims: dict[str, Claim | None] = dict.fromkeys(keys)
        for key in [key for key, why in faults.items() if why is None]:
            lease = self._spoken(self._leases[key])
            try:
                claims[key] = self._claim(lease)
            except FlannelpyError as error:
                faults[key] = f"{lease}: {error}"
        verdicts: dict[str, str | None] = {key: why for key, why in faults.items() if why is not None}
        for key, older in self._ownership.change(claims).items():
            verdicts[key] = None if older is None else self._rivalry(*(self._spoken(self._leases[each]) for each in (key, older)))
        peers: dict[str, Lease | None] = {}
        refused: dict[str, str | None] = {}
        for key in keys:
            if key not in self._leases:
                if self._refused.pop(key, None) is not None:
                    refused[key] = None
                if self._peers.pop(key, None) is not None:
                    peers[key] = None
        for key, why in verdicts.items():
            lease, before = self._spoken(self._leases[key]), self._refused.get(key)
            if why is None:
                self._refused.pop(key, None)
                known, self._peers[key] = self._peers.get(key), lease
                if before is not None or key in changed or (known is not None and known.attrs != lease.attrs):
                    peers[key] = lease
                if before is not None:
                    refused[key] = None
            else:
                self._refused[key] = why
                self._peers.pop(key, None)
                if before is None:
                    peers[key] = None
                if before != why:
                    refused[key] = why
        return Changes(peers, refused)

    def _claim(self, lease: Lease) -> Claim:
        names = (f"{name} {device}" for device, name in self._identity(lease.attrs).items())
        return Claim((lease.create_revision, lease.key), tuple(map(_span, _nets(lease))), tuple(dict.fromkeys(names)))

    def _rivalry(self, lease: Lease, older: Lease) -> str:
        """In words, what a lease shares with an older one."""
        if any(_overlap(one, other) for one in _nets(lease) for other in _nets(older)):
            return f"{lease}: overlaps the older lease {older}"
        shared = set(self._identity(lease.attrs).values()) & set(self._identity(older.attrs).values())
        return f"{lease}: has the identity {', '.join(sorted(shared))} of the older lease {older}"

    def _fault(self, lease: Lease) -> str | None:
        """Why this lease is no peer's, whatever others there are; empty text for our own, which is nothing to report."""
        own, config = self._own, self._config
        if config is None or (own is not None and lease.key == own.key):
            return ""
        if self._address is not None and self._address == _host(lease.attrs):
            return ""  # ours of before, or a twin: the rules of leasing know which, and say so
        if why := _misfit(lease, config):
            return f"{lease}: {why}"
        if self._accepts is not None and not self._speaks(self._spoken(lease).attrs):
            if lease.reserved and not lease.attrs.backend_type:
                return ""  # a reservation that waits for its host: nobody to reach yet, and nothing to report
            theirs = printable(lease.attrs.backend_type) or "none"
            return f"{lease}: its backend is {theirs}, ours is {' or '.join(sorted(self._accepts))}"
        nets = _nets(lease)
        if own is not None and any(_overlap(ours, theirs) for ours in _nets(own) for theirs in nets):
            return ""  # likewise: a conflict that they settle
        for name, address in (("PublicIP", lease.public_ip), ("PublicIPv6", lease.attrs.public_ipv6)):
            if address is None or not any(net.version == address.version for net in nets):
                continue  # where it is needed and missing, the backend says so
            if why := self._shield.unfit(address):
                return f"{lease}: {name} {why}"
        for net in nets:
            if why := self._shield.covered(net):
                return f"{lease}: would take {why} into the overlay"
        return None


def _shield(config: NetworkConfig | None, underlay: Underlay) -> Shield:
    return Shield.of(underlay, () if config is None else config.networks)


def _host(attrs: LeaseAttrs) -> IPAddress | None:
    """Whose lease it is, as ``claims.same_host`` has it: by IPv4 address, without one by IPv6 address."""
    return attrs.public_ipv6 if attrs.public_ip == NO_ADDRESS else attrs.public_ip


def _misfit(lease: Lease, config: NetworkConfig) -> str:
    """Why no node of this network can hold these subnets; empty where one can."""
    for net, pool in ((lease.subnet, config.v4), (lease.subnet6, config.v6)):
        if net is None or (net.version == 4 and not net.prefixlen and lease.subnet6 is not None):
            continue  # an IPv6-only node's IPv4 half stands for none; ::/0 never does
        if pool is None:
            return f"{net} is IPv{net.version}, which the network has none of"
        if why := pool.misfit(net):
            return why
    return ""


def _nets(lease: Lease) -> list[IPNetwork]:
    """The blocks a lease holds; an IPv6-only node's 0.0.0.0/0 holds none."""
    nets = [lease.subnet] if lease.subnet.prefixlen else []
    return [*nets, lease.subnet6] if lease.subnet6 is not None else nets


def _span(net: IPNetwork) -> Block:
    """First and last address as numbers; netaddr's own ``first`` and ``last`` make three objects each."""
    host_bits = (32 if net.version == 4 else 128) - net.prefixlen
    first = int(net.value or 0) >> host_bits << host_bits
    return net.version, first, first | ((1 << host_bits) - 1)


def _overlap(a: IPNetwork, b: IPNetwork) -> bool:
    (_, a_first, a_last), (_, b_first, b_last) = _span(a), _span(b)
    return bool(a.version == b.version and a_first <= b_last and b_first <= a_last)
