"""What does the firewall have to say about the overlay? The one nft table that is ours, as a value.

The *effect* of flannel's iptables rules (flannel-compat 10.1, 10.2); flannel's own nft rules get two operands wrong (F15).
The text is written as ``nft -s list table`` prints it, so that what was observed can be compared with what is desired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import GuardedPort
from flannelpy.core.model import NO_ADDRESS, Lease
from flannelpy.core.objects import HostState, NftTable

KUBE_MARK = "0x00004000"
"""kube-proxy's own masquerade mark; packets that carry it are masqueraded already."""

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILY = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True)
class FirewallOptions:
    """What the operator asked for: ``--ip-masq``, ``--iptables-forward-rules``, and the port choice of masqueraded connections."""

    masquerade: bool = False
    forward: bool = True
    fully_random: bool = True


@dataclass(frozen=True, slots=True)
class EncapsulationGuard:
    """Who may send encapsulated packets to this host: ``peers``, at a port of the ``network``, and into ``own`` subnet."""

    at: GuardedPort
    network: IPNetwork
    own: IPNetwork
    peers: tuple[Lease, ...] = ()


def firewall(
    table: str, pairs: list[tuple[IPNetwork, IPNetwork]], options: FirewallOptions, guard: EncapsulationGuard | None = None
) -> HostState:
    """The table for ``pairs`` of (whole network, own subnet), one a family; empty where nothing was asked for."""
    chains = [] if guard is None else [_guard(guard)]
    if options.masquerade:
        rules = [f"meta mark & {KUBE_MARK} == {KUBE_MARK} return"]
        for network, subnet in pairs:
            rules += _masquerade(network, subnet, options.fully_random)
        chains.append(_chain("postrtg", "type nat hook postrouting priority srcnat; policy accept;", rules))
    if options.forward:
        rules = [f"{_FAMILY[network.version]} {side} {network} accept" for network, _subnet in pairs for side in ("saddr", "daddr")]
        chains.append(_chain("forward", "type filter hook forward priority filter; policy accept;", rules))
    if not chains:
        return HostState()
    return HostState.of(NftTable(table, "\n".join(chains)))


def _masquerade(network: IPNetwork, subnet: IPNetwork, fully_random: bool) -> list[str]:
    """Container to outside and host to remote container are masqueraded; container to container and outside in are not."""
    ip = _FAMILY[network.version]
    masquerade = "masquerade fully-random" if fully_random else "masquerade"
    return [
        f"{ip} saddr {subnet} {ip} daddr {network} return",
        f"{ip} saddr {network} {ip} daddr {subnet} return",
        f"{ip} saddr != {network} {ip} daddr {subnet} return",  # an outside client of a local container keeps its source
        f"{ip} saddr {network} {ip} daddr != {_MULTICAST[network.version]} {masquerade}",
        f"{ip} saddr != {network} {ip} daddr {network} {masquerade}",  # host to remote container: answers come back
    ]


_INNER_SOURCE, _INNER_DESTINATION = "@th,160,32", "@th,192,32"
"""Bits from the UDP header on: 8 bytes of it, then the inner IPv4 header with its addresses at bytes 12 and 16."""


def _guard(guard: EncapsulationGuard) -> str:
    """Source validation (core.backend.SourceRule) for the kernel that decapsulates.

    Raw payload is matched after the outer packet was reassembled (the input hook comes behind that), so no piece slips by. Sources
    that are the host's own, and martians, are the kernel's to drop: the device has no accept_local.
    """
    rule, port = guard.at.rule, f"udp dport {guard.at.port}"
    peers = sorted(
        (lease for lease in guard.peers if lease.public_ip != NO_ADDRESS), key=lambda lease: (int(lease.public_ip), lease.key)
    )
    addresses = list(dict.fromkeys(str(lease.public_ip) for lease in peers))
    hosts = [", ".join(addresses[at : at + 2]) for at in range(0, len(addresses), 2)]  # two a line, as nft prints plain addresses
    sources = dict.fromkeys(f"{address} . {_span(subnet)}" for address, subnet in _pairs(peers))
    if rule == "strict":
        outside = [lease.public_ip for lease in peers if lease.public_ip not in guard.network]
        sources |= dict.fromkeys(f"{address} . 0x{int(address):x}" for address in outside)
    kind = f"typeof ip saddr . {_INNER_SOURCE}\n\t\tflags interval"
    to_us = f"{port} {_INNER_DESTINATION} != {_span(guard.own)} drop"
    if rule == "peers":
        sets, rules = [_set("hosts", "type ipv4_addr", hosts)], [f"{port} ip saddr != @hosts drop"]
    elif rule == "strict":
        sets, rules = [_set("peers", kind, sources)], [f"{port} ip saddr . {_INNER_SOURCE} != @peers drop", to_us]
    else:
        inside = f"{port} {_INNER_SOURCE} {_span(guard.network)} ip saddr . {_INNER_SOURCE} != @peers drop"
        sets = [_set("hosts", "type ipv4_addr", hosts), _set("peers", kind, sources)]
        rules = [f"{port} ip saddr != @hosts drop", inside, to_us]
    return "\n".join([*sets, _chain("guard", "type filter hook input priority filter - 10; policy accept;", rules)])


def _pairs(peers: Iterable[Lease]) -> Iterator[tuple[IPAddress, IPNetwork]]:
    """Each PublicIP with its subnets; of one inside another the wider, for nft refuses a set whose intervals overlap."""
    by_host: dict[IPAddress, list[IPNetwork]] = {}
    for lease in peers:
        by_host.setdefault(lease.public_ip, []).append(lease.subnet)
    for address, subnets in by_host.items():
        wider = {subnet.cidr for subnet in subnets}
        if len(wider) > 1:
            wider = {subnet for subnet in wider if not any(subnet in other for other in wider - {subnet})}
        for subnet in subnets:
            if subnet.cidr in wider:
                yield address, subnet


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    text = ",\n\t\t\t     ".join(elements)
    return "\n".join([f"\tset {name} {{", f"\t\t{kind}", *([f"\t\telements = {{ {text} }}"] if text else []), "\t}"]) + "\n"


def _span(net: IPNetwork) -> str:
    """First and last address as nft prints a range of raw payload."""
    return f"0x{net.first:x}-0x{net.last:x}"


def _chain(name: str, hook: str, rules: list[str]) -> str:
    return "\n".join([f"\tchain {name} {{", f"\t\t{hook}", *(f"\t\t{rule}" for rule in rules), "\t}"]) + "\n"
