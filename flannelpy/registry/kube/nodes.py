"""How is a node a lease? Its podCIDRs are the subnets, flannel's annotations the value: read as flannel does, written to the byte.

What a node has besides, its heartbeats above all, is no part of the value: two nodes that differ in nothing else are equal. Source:
flannel-compat 12. Deviation: a node that was never annotated is no lease and no error (flanneld ends with a panic there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import MalformedError
from flannelpy.core.foreign import printable
from flannelpy.core.json_text import decode
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs, compact_json
from flannelpy.registry.kube.names import Names

BOTH: tuple[Family, Family] = (4, 6)

NO_SUBNET = IPNetwork("0.0.0.0/0")
"""The IPv4 half of a node in a network without IPv4."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node, as far as it concerns us: ``annotations`` are those below our prefix, ``pod_cidrs`` as Kubernetes wrote them.

    ``created`` in seconds since 1970; ``version`` is the resourceVersion, which orders all changes of a cluster.
    """

    name: str
    annotations: Mapping[str, str]
    pod_cidrs: tuple[str, ...] = ()
    created: int = field(default=0, compare=False)
    version: int = field(default=0, compare=False)
    available: bool = field(default=False, compare=False)
    """Whether it is said of the node that its network is there."""


def subnets_of(node: Node, families: tuple[Family, ...]) -> tuple[IPNetwork, IPNetwork | None] | None:
    """The node's subnets of these families, as a lease has them; None while Kubernetes has given it none of one of them.

    Raises MalformedError.
    """
    found = _pod_cidrs(node)
    if any(family not in found for family in families):
        return None
    return found[4] if 4 in families else NO_SUBNET, found[6] if 6 in families else None


def _pod_cidrs(node: Node) -> Mapping[Family, IPNetwork]:
    found: dict[Family, IPNetwork] = {}
    if len(node.pod_cidrs) > 2:
        raise MalformedError(f"podCIDRs {printable(','.join(node.pod_cidrs), 100)}: expected one of each family at most")
    for text in node.pod_cidrs:
        try:
            address, slash, length = text.partition("/")
            if not slash or not length.isascii() or not length.isdigit():
                raise ValueError
            parsed = IPAddress(address)
            net = IPNetwork((int(parsed), int(length)), version=parsed.version).cidr
        except (AddrFormatError, ValueError):
            raise MalformedError(f"podCIDR {printable(text)!r}: expected a network like 10.244.1.0/24") from None
        found.setdefault(net.version, net)
    return found


def families_of(lease: Lease) -> tuple[Family, ...]:
    """Of which families it has a subnet."""
    return tuple(family for family, there in ((BOTH[0], lease.subnet.prefixlen), (BOTH[1], lease.subnet6)) if there)


def lease_of(node: Node, names: Names, families: tuple[Family, ...]) -> Lease | None:
    """The lease that a node is; None where flannel has not served it, or Kubernetes has given it no subnet yet.

    Of a network's two families it may have one: a node keeps the podCIDRs that it has, and hosts hear of the second one by one.
    Raises MalformedError: which annotation, what it holds, what was expected.
    """
    if node.annotations.get(names.managed) != "true":
        return None
    found = _pod_cidrs(node)
    given = [family for family in families if family in found]
    if not given:
        return None
    told = [family for family in given if node.annotations.get(names.public[BOTH.index(family)])] or given
    v4, v6 = (_published(node, names, family) if family in told else None for family in BOTH)
    data, data6 = (_data(node, names.data[at]) if family in told else None for at, family in enumerate(BOTH))
    attrs = LeaseAttrs(v4 or NO_ADDRESS, v6, node.annotations.get(names.backend_type, ""), data, data6)
    subnet, subnet6 = found[4] if 4 in told else NO_SUBNET, found[6] if 6 in told else None
    return Lease(subnet, attrs, subnet6, create_revision=max(node.created, 1), mod_revision=node.version, holder=node.name)


def bare_lease(node: Node, families: tuple[Family, ...]) -> Lease | None:
    """The same of a node that nobody has annotated: the subnets with nothing published. Raises MalformedError."""
    subnets = subnets_of(node, families)
    if subnets is None:
        return None
    said = LeaseAttrs(NO_ADDRESS)
    return Lease(subnets[0], said, subnets[1], create_revision=max(node.created, 1), mod_revision=node.version, holder=node.name)


def advertised(attrs: LeaseAttrs, node: Node, names: Names) -> LeaseAttrs:
    """What a node publishes of ``attrs``: the addresses are those that a person has written beside them, where there are such.

    Raises MalformedError where one of these is no address.
    """
    v4, v6 = (
        _address(node.annotations.get(names.overwrite[at], ""), family, names.overwrite[at]) for at, family in enumerate(BOTH)
    )
    if v4 is not None and attrs.public_ip != NO_ADDRESS:
        attrs = replace(attrs, public_ip=v4)
    if v6 is not None and attrs.public_ipv6 is not None:
        attrs = replace(attrs, public_ipv6=v6)
    return attrs


def annotations_for(attrs: LeaseAttrs, names: Names, families: tuple[Family, ...]) -> dict[str, str]:
    """The annotations that publish ``attrs``, byte for byte as flannel writes them; ``null`` is data that a backend has none of."""
    written = {names.managed: "true", names.backend_type: attrs.backend_type}
    values = ((attrs.backend_data, attrs.public_ip), (attrs.backend_v6_data, attrs.public_ipv6))
    for at, family in enumerate(BOTH):
        data, address = values[at]
        if family in families and address is not None:
            written[names.data[at]] = compact_json(data)
            written[names.public[at]] = str(address)
    return written


def ours_only(annotations: Mapping[str, str] | None, names: Names) -> dict[str, str]:
    """The annotations below our prefix: the rest is nothing to us, and changes often."""
    return {name: value for name, value in (annotations or {}).items() if name.startswith(names.start)}


def _published(node: Node, names: Names, family: Family) -> IPAddress:
    name = names.public[0 if family == 4 else 1]
    address = _address(node.annotations.get(name, ""), family, name)
    if address is None:
        raise MalformedError(f"annotation {name} is missing: expected an IPv{family} address")
    return address


def _address(text: str, family: Family, name: str) -> IPAddress | None:
    if not text:
        return None
    try:
        return IPAddress(text, family)
    except (AddrFormatError, ValueError):
        raise MalformedError(f"annotation {name} {printable(text)!r}: expected an IPv{family} address") from None


def _data(node: Node, name: str) -> object:
    text = node.annotations.get(name, "null")
    try:
        return decode(text)
    except ValueError as error:
        raise MalformedError(f"annotation {name}: not JSON: {error}") from None
