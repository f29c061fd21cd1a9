"""What can two hosts use between them besides the network's Type? What a host offers stands in a key of its own, beside its lease.

``<prefix>/flannelpy/hosts/<subnet>``, outside of what flanneld watches, on the lease's own etcd lease; JSON:

    {"PublicIP": "192.0.2.1", "Hostname": "h1",
     "Carriers": {"host-gw": {}, "wireguard": {"BackendData": {"PublicKey": "...", "Port": 51820}}}}

What a host offers no longer, and takes packets by for a while yet, is a member of ``Retiring`` in place of ``Carriers``: it may be
about to send by it still, and a WireGuard that had forgotten it by then would not let that in.

Anybody may have written it, so it can only add to a lease that counts: where it cannot be read, is for another address than the
lease's, or claims a public key of an older lease's, the peer is reached as if it were not there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from netaddr import AddrFormatError, IPAddress

from flannelpy.core.config import DEFAULT_BACKEND
from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.foreign import printable
from flannelpy.core.hostname import is_name
from flannelpy.core.json_text import decode
from flannelpy.core.model import Family, Lease, LeaseAttrs, compact_json
from flannelpy.core.ownership import Claim, Ownership

MOST = 8192
"""Bytes of a value that is read."""

MOST_CARRIERS = 16

Identities = Callable[[LeaseAttrs], Mapping[str, str]]
"""What of a carrier's attributes only one host may have (``Backend.identities``)."""


@dataclass(frozen=True, slots=True)
class Offer:
    """``public_ip`` and ``public_ipv6`` are those of its lease; ``data``: by Type, BackendData and BackendV6Data.

    ``implied``: of these it is not known that the host offers them; its lease named them before it named another Type.
    ``retiring``: of these it takes packets, and wants none any more.
    ``hostname``: what it calls itself (``core.hostname``); two offers are the same whatever that is.
    """

    public_ip: IPAddress
    public_ipv6: IPAddress | None
    data: Mapping[str, tuple[Any, Any]]
    implied: frozenset[str] = frozenset()
    retiring: frozenset[str] = frozenset()
    hostname: str = field(default="", compare=False)

    @classmethod
    def of(cls, lease: LeaseAttrs, carriers: Iterable[LeaseAttrs], retiring: Iterable[LeaseAttrs] = ()) -> Offer:
        """What a host offers that has these attributes in its lease, and these for each carrier, also for those that retire."""
        going = {type_of(each): (each.backend_data, each.backend_v6_data) for each in retiring}
        data = {type_of(each): (each.backend_data, each.backend_v6_data) for each in carriers}
        return cls(lease.public_ip, lease.public_ipv6, {**going, **data}, retiring=frozenset(going.keys() - data.keys()))

    @property
    def offered(self) -> frozenset[str]:
        """The carriers by which it may be sent to."""
        return frozenset(self.data) - self.retiring

    @property
    def heard(self) -> Offer | None:
        """Without what is implied; None where nothing is left."""
        data = {name: said for name, said in self.data.items() if name not in self.implied}
        return replace(self, data=data, implied=frozenset()) if data else None

    def belongs_to(self, lease: Lease) -> bool:
        """True where it speaks of the host that holds this lease now."""
        return self.belongs_to_address(lease.attrs)

    def belongs_to_address(self, attrs: LeaseAttrs) -> bool:
        """True where it speaks of a host with these addresses."""
        return (self.public_ip, self.public_ipv6) == (attrs.public_ip, attrs.public_ipv6)

    def attrs(self, name: str) -> LeaseAttrs | None:
        """What a lease of the Type ``name`` would say; None where nothing is taken by that."""
        if name not in self.data:
            return None
        return LeaseAttrs(self.public_ip, self.public_ipv6, name, *self.data[name])

    def to_json(self) -> str:
        """The value as it is stored."""
        fields: dict[str, object] = {"PublicIP": str(self.public_ip)}
        if self.public_ipv6 is not None:
            fields["PublicIPv6"] = str(self.public_ipv6)
        if self.hostname:
            fields["Hostname"] = self.hostname
        carriers, retiring = dict[str, object](), dict[str, object]()
        for name, both in sorted(self.data.items()):
            told = zip(("BackendData", "BackendV6Data"), both, strict=True)
            (retiring if name in self.retiring else carriers)[name] = {member: value for member, value in told if value is not None}
        return compact_json({**fields, "Carriers": carriers, **({"Retiring": retiring} if retiring else {})})

    @classmethod
    def from_json(cls, text: str | bytes) -> Offer:
        """Raises MalformedError: which member, what it holds, what was expected. Members that are not known are passed over."""
        if len(text) > MOST:
            raise MalformedError(f"{len(text):,} bytes: expected at most {MOST:,}")
        try:
            fields = decode(text)
        except ValueError as error:
            raise MalformedError(f"not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise _unlike("", fields, "a JSON object")
        public_ip = _address(fields, "PublicIP", 4)
        if public_ip is None:
            raise _unlike("PublicIP ", None, "an IPv4 address")
        carriers, going = _carriers(fields, "Carriers", None), _carriers(fields, "Retiring", {})
        hostname = fields.get("Hostname")  # of whoever writes no name it is as if he wrote none: he may be reached all the same
        hostname, retiring = hostname if is_name(hostname) else "", frozenset(going.keys() - carriers.keys())
        return cls(public_ip, _address(fields, "PublicIPv6", 6), {**going, **carriers}, retiring=retiring, hostname=hostname)


def type_of(attrs: LeaseAttrs) -> str:
    """The Type that a lease is of; udp's leases name none."""
    return attrs.backend_type or DEFAULT_BACKEND


def attrs_of(lease: Lease, name: str) -> LeaseAttrs | None:
    """What the host of this lease says of the carrier ``name``, in its lease or beside it, also where it retires; None: nothing."""
    if type_of(lease.attrs) == name:
        return lease.attrs
    return None if lease.offer is None else lease.offer.attrs(name)


def spoken(lease: Lease, accepts: Container[str] | None) -> Lease:
    """The lease as it would be of a Type that is spoken here, where its host offers one; else as it is. ``accepts`` None: any."""
    if accepts is not None and lease.attrs.backend_type not in accepts and lease.offer is not None:
        for name in sorted(lease.offer.offered):
            attrs = lease.offer.attrs(name) if name in accepts else None
            if attrs is not None:
                return replace(lease, attrs=attrs)
    return lease


def announces(lease: Lease, name: str) -> bool:
    """True where its host itself says that it takes packets by the carrier ``name``."""
    offer = lease.offer
    return type_of(lease.attrs) == name or (offer is not None and name in offer.offered - offer.implied)


def _carriers(fields: Mapping[str, Any], name: str, absent: object) -> dict[str, tuple[Any, Any]]:
    value = fields.get(name, absent)
    if not isinstance(value, dict) or len(value) > MOST_CARRIERS:
        raise _unlike(f"{name} ", value, f"an object of at most {MOST_CARRIERS}, by Type")
    for carrier, each in value.items():
        if not isinstance(each, dict):
            raise _unlike(f"{name}.{printable(carrier, 40)} ", each, "an object")
    return {carrier: (each.get("BackendData"), each.get("BackendV6Data")) for carrier, each in value.items()}


def _address(fields: Mapping[str, Any], name: str, version: Family) -> IPAddress | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return IPAddress(value, version)
    except (AddrFormatError, ValueError):
        pass
    raise _unlike(f"{name} ", value, f"an IPv{version} address")


def _unlike(where: str, value: object, expected: str) -> MalformedError:
    return MalformedError(f"{where}{printable(compact_json(value), 60)}: expected {expected}")


class Offers:
    """The offers of a cluster, and which of them count. What comes of them does not depend on the order in which they came.

    Mutable, single-owner; it is told of every lease. ``identities``: by carrier that this host has, too; of others nothing counts.
    """

    def __init__(self) -> None:
        self.identities: Mapping[str, Identities] = {}
        self._said: dict[str, Offer] = {}
        self._claims = Ownership()
        self._counts: set[str] = set()
        self.implied: set[str] = set()
        """Under which something is implied, and not heard."""

    @property
    def any(self) -> bool:
        """False where nobody offers anything, nor did a moment ago."""
        return bool(self._said or self._counts)

    @property
    def keys(self) -> Collection[str]:
        """Under which something is said."""
        return self._said.keys()

    def says(self, key: str) -> Offer | None:
        """What stands under this key, whether it counts or not."""
        return self._said.get(key)

    def said(self, key: str, offer: Offer | None) -> None:
        """A host offers this now; None: nothing."""
        self.implied.discard(key)
        if offer is None:
            self._said.pop(key, None)
        else:
            self._said[key] = offer

    def imply(self, key: str, before: LeaseAttrs) -> None:
        """The lease names another Type than ``before``: what it said then is offered until its host is heard to say otherwise."""
        name, said = type_of(before), self._said.get(key)
        if said is None or not said.belongs_to_address(before):
            said = Offer(before.public_ip, before.public_ipv6, {})
        if name not in said.data:
            data = {**said.data, name: (before.backend_data, before.backend_v6_data)}
            self._said[key] = replace(said, data=data, implied=said.implied | {name})
            self.implied.add(key)

    def of(self, key: str) -> Offer | None:
        """What the host with this lease offers, where it counts."""
        return self._said[key] if key in self._counts else None

    def judge(self, keys: Iterable[str], leases: Mapping[str, Lease]) -> Sequence[str]:
        """Look at these keys anew, whose lease or offer may be another one; the keys of which something may be another now."""
        touched = list(keys)
        turned = self._claims.change({key: self._claim(key, leases.get(key)) for key in touched})
        for key in touched:
            self._counts.discard(key)
        for key, older in turned.items():
            if older is None:
                self._counts.add(key)
            else:
                self._counts.discard(key)
        return list(dict.fromkeys((*touched, *turned)))

    def _claim(self, key: str, lease: Lease | None) -> Claim | None:
        offer = self._said.get(key)
        if lease is None or offer is None or not self.identities or not offer.belongs_to(lease):
            return None
        names = []
        for carrier, identities in self.identities.items():
            if (attrs := offer.attrs(carrier)) is not None:
                try:
                    names += [f"{carrier} {name}" for name in identities(attrs).values()]
                except FlannelpyError:
                    return None
        return Claim((lease.create_revision, key), (), tuple(dict.fromkeys(names)))
