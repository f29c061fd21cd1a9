"""What is a cluster? Leases and the view of them, as values, with flannel's JSON and key names in and out.

Source: flannel-compat 4 (keys, values), 5 (leases). The network config has a module of its own, ``config``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from sys import intern
from typing import TYPE_CHECKING, Any, Literal

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import MalformedError
from flannelpy.core.json_text import decode

if TYPE_CHECKING:
    from flannelpy.core.offer import Offer

Family = Literal[4, 6]

LEASE_TTL_S = 86_400
"""Every lease of every node lives this long in etcd, in seconds (flannel-compat 4.3)."""

NO_ADDRESS = IPAddress("0.0.0.0")
"""What an IPv6-only node publishes as its PublicIP (flannel-compat, top)."""

_KEY = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){3})-([0-9]{1,2})(?:&([a-f0-9:]+)-([0-9]{1,3}))?")


# ---------------------------------------------------------------------------------------------------------- keys


def subnet_key(subnet: IPNetwork, subnet6: IPNetwork | None = None) -> str:
    """The last part of a lease's etcd key: ``10.5.72.0-24`` or ``10.12.13.0-24&fd00:12:13::-56`` (flannel-compat 4.1)."""
    text = f"{subnet.ip}-{subnet.prefixlen}"
    return text if subnet6 is None else f"{text}&{_groups(subnet6.ip)}-{subnet6.prefixlen}"


def _groups(address: IPAddress) -> str:
    """An IPv6 address without the dotted form that the C library gives to ::/96, which no reader of keys knows."""
    text = str(address)
    if "." not in text:
        return text
    low = int(address) & 0xFFFFFFFF
    return f"{text.rpartition(':')[0]}:{low >> 16:x}:{low & 0xFFFF:x}"


def parse_subnet_key(name: str) -> tuple[IPNetwork, IPNetwork | None]:
    """The subnets that a lease key names. Raises MalformedError with what was expected.

    Host bits are kept as they are: whether such a lease can be used is the view's decision (flannel-compat 4.2).
    """
    match = _KEY.fullmatch(name)
    if match is None:
        raise MalformedError(f"{name!r} is not a subnet key: expected a form like 10.5.72.0-24 or 10.5.72.0-24&fd00::-64")
    if int(match[2]) > 32 or (match[4] and int(match[4]) > 128):
        raise MalformedError(f"{name!r} is not a subnet key: expected a length of at most 32, for IPv6 128")
    try:
        subnet = IPNetwork((int(IPAddress(match[1], 4)), int(match[2])), version=4)
        subnet6 = IPNetwork((int(IPAddress(match[3], 6)), int(match[4])), version=6) if match[3] else None
    except (AddrFormatError, ValueError) as error:
        raise MalformedError(f"{name!r} is not a subnet key: {error}") from None
    if subnet.prefixlen > 31 or (subnet6 is not None and subnet6.prefixlen > 127):
        raise MalformedError(f"{name!r} is not a subnet key: a lease is a network, not one address")
    if (usual := subnet_key(subnet, subnet6)) != name:
        # Another spelling would be another key in etcd and the same one here: its deletion would be taken for the other's.
        raise MalformedError(f"{name!r} is not a subnet key: expected it to be written {usual}")
    return subnet, subnet6


# -------------------------------------------------------------------------------------------------------- values


_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "&<>\u2028\u2029"}


def compact_json(value: object) -> str:
    """JSON as Go's encoder writes it: no blanks, and some characters escaped inside strings (flannel-compat 4.4)."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPED)


@dataclass(frozen=True, slots=True)
class LeaseAttrs:
    """What a node publishes about itself. ``backend_data`` is the decoded JSON, None when absent."""

    public_ip: IPAddress
    public_ipv6: IPAddress | None = None
    backend_type: str = ""
    backend_data: Any = None
    backend_v6_data: Any = None

    @property
    def host(self) -> IPAddress:
        """The address by which a person knows the host: an IPv6-only node's IPv4 one is 0.0.0.0."""
        return self.public_ipv6 if self.public_ip == NO_ADDRESS and self.public_ipv6 is not None else self.public_ip

    def to_json(self) -> str:
        """The value as flannel writes it, byte for byte (flannel-compat 4.4)."""
        fields: dict[str, object] = {
            "PublicIP": str(self.public_ip),
            "PublicIPv6": None if self.public_ipv6 is None else str(self.public_ipv6),
        }
        if self.backend_type:
            fields["BackendType"] = self.backend_type
        if self.backend_data is not None:
            fields["BackendData"] = self.backend_data
        if self.backend_v6_data is not None:
            fields["BackendV6Data"] = self.backend_v6_data
        return compact_json(fields)

    @classmethod
    def from_json(cls, text: str | bytes) -> LeaseAttrs:
        """Read a value with a Go reader's tolerance: any letter case of keys, unknown keys, missing PublicIPv6.

        Raises MalformedError that names the field, what it holds and what was expected.
        """
        try:
            fields = decode(text)
        except ValueError as error:
            raise MalformedError(f"not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise MalformedError(f"expected a JSON object, got {_short(fields)}")
        get = _Fields(fields)
        public_ip = get.address("PublicIP", 4)
        backend_type = get("BackendType")
        if backend_type is not None and not isinstance(backend_type, str):
            raise MalformedError(f"BackendType {_short(backend_type)}: expected a string")
        return cls(
            public_ip=NO_ADDRESS if public_ip is None else public_ip,
            public_ipv6=get.address("PublicIPv6", 6),
            backend_type=intern(backend_type or ""),  # one text for all hosts
            backend_data=get("BackendData"),
            backend_v6_data=get("BackendV6Data"),
        )


class _Fields:
    """The fields of a decoded JSON object, by any letter case; of two spellings the last counts (encoding/json's rule)."""

    __slots__ = ("_fields", "_folded")

    _USUAL = frozenset({"PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data"})

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        usual = fields.keys() <= self._USUAL
        self._folded = None if usual else {key.lower(): value for key, value in fields.items()}

    def __call__(self, name: str) -> Any:
        return self._fields.get(name) if self._folded is None else self._folded.get(name.lower())

    def address(self, name: str, version: Family) -> IPAddress | None:
        value = self(name)
        if value is None:
            if version == 4 and (name in self._fields if self._folded is None else name.lower() in self._folded):
                raise MalformedError(f"{name} null: expected an IPv4 address")
            return None
        if isinstance(value, str):
            try:
                return IPAddress(value, version)
            except (AddrFormatError, ValueError):
                pass
        raise MalformedError(f"{name} {_short(value)}: expected an IPv{version} address")


def _short(value: object) -> str:
    """A foreign value, safe and short enough for one line of a log."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."


# -------------------------------------------------------------------------------------------------------- leases


YOUNGEST = 2**63 - 1
"""A create revision that gives way to every other."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A subnet that somebody holds. The key, not the value, is the source of the subnet.

    ``etcd_lease`` 0 is a reservation: a key that never expires. Revisions are etcd's; 0 where unknown (a cached lease).
    """

    subnet: IPNetwork
    attrs: LeaseAttrs
    subnet6: IPNetwork | None = None
    etcd_lease: int = 0
    create_revision: int = 0
    mod_revision: int = 0
    offer: Offer | None = field(default=None, kw_only=True)
    """What its host offers besides, where that counts (``core.offer``). It is no part of the lease's own value."""
    holder: str = field(default="", compare=False, kw_only=True)
    """What the registry itself calls the host: its node, in Kubernetes. Nothing depends on it."""
    key: str = field(init=False, compare=False)
    """The last part of the etcd key; the lease's identity. Kept, because it is asked for at every turn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", subnet_key(self.subnet, self.subnet6))

    @property
    def public_ip(self) -> IPAddress:
        """Where peers send this node's IPv4 traffic."""
        return self.attrs.public_ip

    @property
    def reserved(self) -> bool:
        """True for a key without an etcd lease: it must stay one (flannel-compat 4.6)."""
        return self.etcd_lease == 0

    @property
    def departing(self) -> bool:
        """True where the key is gone and the peer is kept in case it comes back: it stands in nobody's way."""
        return self.create_revision == YOUNGEST

    def depart(self) -> Lease:
        """The same, whose key is gone: younger than any that is there."""
        return replace(self, create_revision=YOUNGEST)

    def made_of(self, other: Lease) -> Lease:
        """The same, made of what the other is made of where that is equal: a lease that is read once more is not held twice."""
        if self == other:
            return other
        if self.subnet == other.subnet and self.subnet6 == other.subnet6 and self.attrs == other.attrs:
            return replace(self, subnet=other.subnet, subnet6=other.subnet6, attrs=other.attrs)
        return self

    def same_content(self, other: Lease) -> bool:
        """True where nothing that is programmed differs; a pure renewal changes revisions only."""
        mine, theirs = (self.subnet, self.subnet6, self.attrs), (other.subnet, other.subnet6, other.attrs)
        return mine == theirs and self.offer == other.offer

    def __str__(self) -> str:
        """The subnets that there are, and where the host is reached: an IPv6-only node's has no word of IPv4."""
        if self.subnet6 is None:
            return f"{self.subnet} at {self.attrs.public_ip}"
        only6 = not self.subnet.prefixlen
        subnets = str(self.subnet6) if only6 else f"{self.subnet}&{self.subnet6}"
        return f"{subnets} at {self.attrs.host}"

    def move_since(self, before: Lease) -> str:
        """In words, that its host is reached elsewhere than ``before``; empty where it is not."""
        was, now = before.attrs, self.attrs
        if was.host != now.host:
            return f"lease {self}: peers reach us there now, it was {was.host}"
        if now.public_ipv6 not in (None, was.public_ipv6):
            return f"lease {self}: peers reach us at {now.public_ipv6}, too, it was {was.public_ipv6 or 'none'}"
        return ""
