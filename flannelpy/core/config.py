"""What network does the cluster want? The JSON at ``<prefix>/config``: read, validated and derived as flannel does.

Source: flannel-compat 3. Deviations, both towards an error where flannel goes wrong silently: SubnetMin above SubnetMax, and
IPv4 text in IPv6Network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import ConfigError
from flannelpy.core.json_members import Members
from flannelpy.core.json_text import decode
from flannelpy.core.secret import Secret, hide, shown

DEFAULT_BACKEND = "udp"
"""The type of a config without Backend: what flannel does, though its documents say vxlan (flannel-compat 3.1)."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The blocks that leases are cut from, of one family: ``first``, ``first + size`` ... ``last``, each of ``/length``."""

    network: IPNetwork
    length: int
    first: IPAddress
    last: IPAddress
    assigned: bool = False
    """True where others cut the network into blocks, of whatever length and from its first address on."""

    @property
    def size(self) -> int:
        """Addresses in one block."""
        return 1 << ((32 if self.network.version == 4 else 128) - self.length)

    @property
    def count(self) -> int:
        """Blocks in the pool."""
        return (int(self.last) - int(self.first)) // self.size + 1

    def block(self, index: int) -> IPNetwork:
        """Block number ``index``, from 0 to ``count`` - 1."""
        return IPNetwork((int(self.first) + index * self.size, self.length), version=self.network.version)

    def misfit(self, net: IPNetwork) -> str:
        """Why no node of this network can hold ``net``, as words for a log; empty where one could, under some SubnetLen."""
        host_bits = (32 if net.version == 4 else 128) - net.prefixlen
        value, mask = int(net.value or 0), -1 << host_bits
        low, whole_bits = int(self.network.value or 0), (32 if net.version == 4 else 128) - self.network.prefixlen
        if net.version != self.network.version or (value >> whole_bits) != (low >> whole_bits):
            return f"lies outside the network {self.network}"
        if net.prefixlen < self.network.prefixlen + (0 if self.assigned else 2):
            return f"takes more than {'all' if self.assigned else 'a quarter'} of the network {self.network}"
        if value & mask != value:
            return f"{net.ip}/{net.prefixlen} has host bits: expected {net.cidr}"
        return ""

    def fits(self, subnet: IPNetwork) -> bool:
        """flannel's compatibility test: base within first..last and the right length (flannel-compat 5.3)."""
        if self.assigned:
            return not self.misfit(subnet)
        return bool(
            subnet.version == self.network.version
            and subnet.prefixlen == self.length
            and int(self.first) <= int(subnet.ip) <= int(self.last)
        )


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A validated config with everything derived. ``v4`` and ``v6`` are the pools; at least one is there.

    In ``backend_options`` a ``Secret`` stands for each option that is one.
    """

    v4: Pool | None
    v6: Pool | None = None
    enable_nftables: bool = False
    backend_type: str = DEFAULT_BACKEND
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    backend_given: bool = True
    """False where the config has no Backend key and the default was taken."""
    probe: bool = True
    """Whether agents ask peers whether they are there."""

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The whole networks, IPv4 first."""
        return tuple(pool.network for pool in (self.v4, self.v6) if pool is not None)

    @property
    def families(self) -> tuple[Literal[4, 6], ...]:
        """The families that are on, IPv4 first."""
        wanted: tuple[tuple[Literal[4, 6], Pool | None], ...] = ((4, self.v4), (6, self.v6))
        return tuple(version for version, pool in wanted if pool)

    def assigned(self) -> NetworkConfig:
        """The same where others cut its networks into subnets."""
        v4, v6 = (None if pool is None else replace(pool, assigned=True) for pool in (self.v4, self.v6))
        return replace(self, v4=v4, v6=v6)

    @classmethod
    def parse(cls, text: str | bytes) -> NetworkConfig:
        """Read, validate and derive. Raises ConfigError: which key, what it holds, what was expected."""
        try:
            decoded = decode(text)
        except ValueError as error:
            raise ConfigError(f'not JSON: {error}; expected an object like {{"Network": "10.5.0.0/16"}}') from None
        if not isinstance(decoded, dict):
            raise ConfigError(f"expected a JSON object, got {json.dumps(decoded)[:60]}")
        keys = Members(decoded)
        v4_on, v6_on = keys.boolean("EnableIPv4", True), keys.boolean("EnableIPv6", False)
        if not v4_on and not v6_on:
            raise ConfigError("EnableIPv4 and EnableIPv6 are both false: expected at least one to be true")
        backend_type, options, given = _backend(keys)
        return cls(
            v4=_pool(keys, 4) if v4_on else None,
            v6=_pool(keys, 6) if v6_on else None,
            enable_nftables=keys.boolean("EnableNFTables", False),
            backend_type=backend_type,
            backend_options=options,
            backend_given=given,
            probe=keys.boolean("Probe", True),
        )

    def to_dict(self) -> dict[str, object]:
        """The config as derived, in flannel's key names; what ``config check --json`` prints. Secrets are not in it."""
        fields: dict[str, object] = {"EnableIPv4": self.v4 is not None, "EnableIPv6": self.v6 is not None}
        if self.enable_nftables:
            fields["EnableNFTables"] = True
        if not self.probe:
            fields["Probe"] = False
        for lead, pool in (("", self.v4), ("IPv6", self.v6)):
            if pool is not None:
                fields[f"{lead}Network"] = str(pool.network)
                fields[f"{lead}SubnetLen"] = pool.length
                fields[f"{lead}SubnetMin"] = str(pool.first)
                fields[f"{lead}SubnetMax"] = str(pool.last)
        fields["Backend"] = {"Type": self.backend_type, **shown(self.backend_options)}
        return fields


def _backend(keys: Members) -> tuple[str, dict[str, Any], bool]:
    """Type (lower-case), the other options, and whether the key was there."""
    if "Backend" not in keys:
        return DEFAULT_BACKEND, {}, False
    members = keys["Backend"]
    if not isinstance(members, dict):
        raise ConfigError(f'Backend {json.dumps(members)[:60]}: expected an object like {{"Type": "vxlan"}}')
    inside = Members(members)
    kind = inside["Type"] if "Type" in inside else None
    if not isinstance(kind, str) or not kind:
        shown = "is missing" if kind is None else f"{json.dumps(kind)[:60]} is not a name"
        raise ConfigError(f"Backend.Type {shown}: expected a backend's name, like vxlan, host-gw or udp")
    return kind.lower(), hide({key: value for key, value in members.items() if key.lower() != "type"}), True


def _pool(keys: Members, version: Literal[4, 6]) -> Pool:
    """Validation and derivation for one family, in flannel's order (flannel-compat 3.2, 3.3)."""
    lead = "" if version == 4 else "IPv6"
    bits = 32 if version == 4 else 128
    network = _network(keys, f"{lead}Network", version)
    length = keys.unsigned(f"{lead}SubnetLen")
    prefix = network.prefixlen
    if length:
        if length > bits - 2 or length < prefix + 2:
            raise ConfigError(_bad_length(lead, network, length, bits))
    else:
        if prefix > bits - 4:
            raise ConfigError(f"{lead}Network {network} is too small: expected /{bits - 4} or shorter, to hold four subnets")
        usual = 24 if version == 4 else 64
        length = usual if prefix <= usual - 2 else prefix + 2
    size = 1 << (bits - length)
    first = _bound(keys, f"{lead}SubnetMin", network) or IPAddress(network.first + size, version)
    last = _bound(keys, f"{lead}SubnetMax", network) or IPAddress(network.last + 1 - size, version)
    for name, bound in ((f"{lead}SubnetMin", first), (f"{lead}SubnetMax", last)):
        if int(bound) % size:
            raise ConfigError(f"{name} {bound} is not on a /{length} boundary: expected a multiple of the subnet size")
    if first > last:
        raise ConfigError(f"{lead}SubnetMin {first} is above {lead}SubnetMax {last}: expected Min <= Max")
    return Pool(network, length, first, last)


def _bad_length(lead: str, network: IPNetwork, length: int, bits: int) -> str:
    fitting = 1 << (length - network.prefixlen) if network.prefixlen <= length <= bits else 0
    shortest, longest = network.prefixlen + 2, bits - 2
    if shortest > longest:
        return f"{lead}Network {network} is too small for any {lead}SubnetLen: expected /{bits - 4} or shorter"
    if length > longest:
        what = "leaves too few addresses in each subnet"
    else:
        what = f"leaves {fitting} subnets in {network}, at least 4 are needed"
    return f"{lead}SubnetLen {length} {what} ({shortest} to {longest})"


_RESERVED = tuple(
    (IPNetwork(text), use)
    for text, use in (
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/3", "multicast and reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
"""What no network between hosts can be in, RFC 6890. flanneld takes them, and cuts its host off from itself."""


def _network(keys: Members, name: str, version: Literal[4, 6]) -> IPNetwork:
    text = keys.text(name)
    example = "10.5.0.0/16" if version == 4 else "fc00::/48"
    if text is None:
        raise ConfigError(f"{name} is missing: expected an IPv{version} network like {example}")
    address, slash, length = text.partition("/")
    try:
        if not slash or not length.isascii() or not length.isdigit():
            raise ValueError
        net = IPNetwork((int(IPAddress(address, version)), int(length)), version=version).cidr
    except (AddrFormatError, ValueError):
        raise ConfigError(f"{name} {text!r}: expected an IPv{version} network like {example}") from None
    if net.prefixlen == 0:
        raise ConfigError(f"{name} {text!r} is everything there is: expected an IPv{version} network like {example}")
    for reserved, use in _RESERVED:
        if reserved.version == version and net.first <= reserved.last and reserved.first <= net.last:
            raise ConfigError(f"{name} {net} overlaps {reserved} ({use}): expected an IPv{version} network like {example}")
    return net


def _bound(keys: Members, name: str, network: IPNetwork) -> IPAddress | None:
    """SubnetMin or SubnetMax; None where unset (absent, 0.0.0.0, ::, and null for IPv6)."""
    if name not in keys or (network.version == 6 and keys[name] is None):
        return None
    text = keys.text(name) or ""
    try:
        bound = IPAddress(text, network.version)
    except (AddrFormatError, ValueError):
        raise ConfigError(f"{name} {text!r}: expected an IPv{network.version} address inside {network}") from None
    if int(bound) == 0:
        return None
    if not network.first <= int(bound) <= network.last:
        raise ConfigError(f"{name} {bound} is outside {network}: expected an address inside it")
    return bound


def differences(before: NetworkConfig, after: NetworkConfig) -> list[str]:
    """What changed between two configs, a line a key, as derived: ``Backend.VNI: absent -> 5``. Empty where they mean the same.

    That a secret is another one is said, and neither the old nor the new one.
    """
    old, new = _flat(_fields(before)), _flat(_fields(after))
    return [f"{key}: {_said(old, key)} -> {_said(new, key)}" for key in {**old, **new} if old.get(key) != new.get(key)]


def _fields(config: NetworkConfig) -> dict[str, object]:
    return {**config.to_dict(), "Backend": {"Type": config.backend_type, **config.backend_options}}


def _flat(fields: Mapping[str, object], lead: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{lead}{key}.") if isinstance(value, dict) else {lead + key: value}
    return flat


def _said(flat: Mapping[str, object], key: str) -> str:
    value = flat.get(key, "absent")
    return str(value) if isinstance(value, str | Secret) else json.dumps(value, default=str)
