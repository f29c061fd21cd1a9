"""Which leases are peers to program? Every lease of the registry, judged one by one; a bad one never touches another.

A lease is left out, with a reason, where it is our own, lies outside Network, has host bits, is of a backend we cannot talk to,
publishes our own address, or overlaps an older one (lower create revision wins). flannel-compat 6.2, 9.0; field-problems F5, F6.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from netaddr import IPAddress, IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import NO_ADDRESS, Lease

Block = tuple[int, int]
"""IP version and prefix length."""


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
        self._address = address if own is None else own.public_ip
        self._accepts = accepts
        self._own = own
        self._leases: dict[str, Lease] = {}
        self._peers: dict[str, Lease] = {}
        self._refused: dict[str, str] = {}
        self._blocks: dict[Block, dict[int, set[str]]] = {}

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

    def configure(self, config: NetworkConfig, accepts: frozenset[str] | None, address: IPAddress | None) -> Changes:
        """The network, the backend or our address is another one now: every verdict is made anew."""
        if (config, accepts, address) == (self._config, self._accepts, self._address):
            return Changes()
        self._config, self._accepts, self._address = config, accepts, address
        return self._judge(self._leases)

    def set_own(self, own: Lease | None) -> Changes:
        """Our lease is another one now; every verdict is made anew where it moved."""
        old, self._own = self._own, own
        if old is not None and own is not None and old.key == own.key and old.public_ip == own.public_ip:
            return Changes()
        return self._judge(self._leases)

    def put(self, lease: Lease) -> Changes:
        """A lease was created, renewed or changed. A pure renewal changes nothing."""
        key = lease.key
        old = self._leases.get(key)
        self._leases[key] = lease
        if old is not None and old.same_content(lease) and old.create_revision == lease.create_revision:
            if key in self._peers:
                self._peers[key] = lease
            return Changes()
        self._index(lease)
        return self._judge([key], changed=key)

    def remove(self, key: str) -> Changes:
        """A lease is gone."""
        lease = self._leases.pop(key, None)
        if lease is None:
            return Changes()
        for net in _nets(lease):
            blocks = self._blocks[net.version, net.prefixlen]
            first = _span(net)[0]
            blocks[first].discard(key)
            if not blocks[first]:
                del blocks[first]
        refused = self._refused.pop(key, None)
        self._peers.pop(key, None)
        rest = self._judge(self._overlapping(lease))
        if refused is not None:
            return Changes(rest.peers, {**rest.refused, key: None})
        return Changes({**rest.peers, key: None}, rest.refused)

    def replace(self, leases: Iterable[Lease], keep: Container[str] = ()) -> Changes:
        """A complete listing: what is not in it is gone, but for the keys in ``keep``; values are compared in full."""
        wanted = {lease.key: lease for lease in leases}
        peers: dict[str, Lease | None] = {}
        refused: dict[str, str | None] = {}
        for step in (
            *(self.remove(key) for key in [key for key in self._leases if key not in wanted and key not in keep]),
            *(self.put(lease) for lease in wanted.values()),
        ):
            peers.update(step.peers)
            refused.update(step.refused)
        return Changes(peers, refused)

    def _index(self, lease: Lease) -> None:
        for net in _nets(lease):
            self._blocks.setdefault((net.version, net.prefixlen), {}).setdefault(_span(net)[0], set()).add(lease.key)

    def _overlapping(self, lease: Lease) -> set[str]:
        """Keys of the other leases that share an address with this one. CIDR blocks overlap only where one holds the other."""
        found: set[str] = set()
        for net in _nets(lease):
            its_version, its_length = net.version, net.prefixlen
            bits = 32 if its_version == 4 else 128
            low, high = _span(net)
            for (version, length), blocks in self._blocks.items():
                if version != its_version:
                    continue
                if length <= its_length:
                    found |= blocks.get(low >> (bits - length) << (bits - length), set())
                else:
                    found.update(*(keys for first, keys in blocks.items() if low <= first <= high))
        found.discard(lease.key)
        return found

    def _touching(self, keys: Iterable[str]) -> set[str]:
        """These leases and all that overlap them, or overlap one that does."""
        found, new = set[str](), set(keys)
        while new:
            found |= new
            new = {other for key in new for other in self._overlapping(self._leases[key])} - found
        return found

    def _judge(self, keys: Iterable[str], changed: str | None = None) -> Changes:
        """Verdicts on these leases and those that they touch, the oldest first: a lease that is left out itself shuts out nobody.

        ``changed`` is told as a change even where its verdict stays.
        """
        peers: dict[str, Lease | None] = {}
        refused: dict[str, str | None] = {}
        judged = self._touching(keys)
        for key in sorted(judged, key=lambda key: _age(self._leases[key])) if len(judged) > 1 else judged:
            lease = self._leases[key]
            before, why = self._refused.get(key), self._fault(lease)
            if why is None:
                self._refused.pop(key, None)
                self._peers[key] = lease
                if before is not None or key == changed:
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

    def _fault(self, lease: Lease) -> str | None:
        """Why this lease is not a peer to program; empty text for our own, which is nothing to report."""
        own, config = self._own, self._config
        if config is None or (own is not None and lease.key == own.key):
            return ""
        if lease.public_ip == self._address != NO_ADDRESS:
            return ""  # ours of before, or a twin: the rules of leasing know which, and say so
        for net, pool in ((lease.subnet, config.v4), (lease.subnet6, config.v6)):
            stands_for_none = net is not None and not net.prefixlen and lease.subnet6 is not None  # an IPv6-only node's IPv4 half
            if net is not None and pool is not None and not stands_for_none and (why := pool.misfit(net)):
                return f"{lease}: {why}"
        if self._accepts is not None and lease.attrs.backend_type not in self._accepts:
            if lease.reserved and not lease.attrs.backend_type:
                return ""  # a reservation that waits for its host: nobody to reach yet, and nothing to report
            theirs = lease.attrs.backend_type or "none"
            return f"{lease}: its backend is {theirs}, ours is {' or '.join(sorted(self._accepts))}"
        if lease.subnet.prefixlen and config.v4 is not None and not _is_host(lease.public_ip):
            return f"{lease}: PublicIP is not the address of a host"
        if own is not None and any(_overlap(ours, theirs) for ours in _nets(own) for theirs in _nets(lease)):
            return ""  # likewise: a conflict that they settle
        for key in self._overlapping(lease):
            other = self._leases[key]
            if key not in self._refused and _age(other) < _age(lease):
                return f"{lease}: overlaps the older lease {other}"
        return None


def _is_host(address: IPAddress) -> bool:
    """False for what no packet to a host carries as destination: 0/8, loopback, multicast, 240/4 with broadcast (RFC 6890)."""
    first = int(address) >> 24
    return 0 < first < 224 and first != 127


def _age(lease: Lease) -> tuple[int, str]:
    """Orders leases, the oldest first; of two in one transaction the smaller key."""
    return lease.create_revision, lease.key


def _nets(lease: Lease) -> list[IPNetwork]:
    """The blocks a lease holds; an IPv6-only node's 0.0.0.0/0 holds none."""
    nets = [lease.subnet] if lease.subnet.prefixlen else []
    return [*nets, lease.subnet6] if lease.subnet6 is not None else nets


def _span(net: IPNetwork) -> tuple[int, int]:
    """First and last address as numbers; netaddr's own ``first`` and ``last`` make three objects each."""
    host_bits = (32 if net.version == 4 else 128) - net.prefixlen
    first = int(net.value or 0) >> host_bits << host_bits
    return first, first | ((1 << host_bits) - 1)


def _overlap(a: IPNetwork, b: IPNetwork) -> bool:
    (a_first, a_last), (b_first, b_last) = _span(a), _span(b)
    return bool(a.version == b.version and a_first <= b_last and b_first <= a_last)
