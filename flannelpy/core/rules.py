"""What does the firewall have to say about the overlay? The one nft table that is ours, as a value.

The *effect* of flannel's iptables rules (flannel-compat 10.1, 10.2); flannel's own nft rules get two operands wrong (F15).
The text is written as ``nft -s list table`` prints it, so that what was observed can be compared with what is desired.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from netaddr import IPNetwork

from flannelpy.core.guard import chain
from flannelpy.core.objects import HostState, NftTable

KUBE_MARK = "0x00004000"
"""kube-proxy's own masquerade mark; packets that carry it are masqueraded already."""

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILY = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True)
class FirewallOptions:
    """What the operator asked for: ``--ip-masq``, ``--iptables-forward-rules``, and the port choice of masqueraded connections.

    ``entrances``: the devices by which peers' packets come, and no others; empty where that is not known, or not to be checked
    (``--container-source-check``).
    """

    masquerade: bool = False
    forward: bool = True
    fully_random: bool = True
    entrances: tuple[str, ...] = ()


def firewall(
    table: str, pairs: list[tuple[IPNetwork, IPNetwork]], options: FirewallOptions, guard: Sequence[str] = ()
) -> HostState:
    """The table for ``pairs`` of (whole network, own subnet), one a family, with these parts of a guard; empty where nothing was
    asked for.
    """
    chains = [*_source_check(pairs, options.entrances), *guard]
    if options.masquerade:
        rules = [f"meta mark & {KUBE_MARK} == {KUBE_MARK} return"]
        for network, subnet in pairs:
            rules += _masquerade(network, subnet, options.fully_random)
        chains.append(chain("postrtg", ["type nat hook postrouting priority srcnat; policy accept;", *rules]))
    if options.forward:
        rules = [f"{_FAMILY[network.version]} {side} {network} accept" for network, _subnet in pairs for side in ("saddr", "daddr")]
        chains.append(chain("forward", ["type filter hook forward priority filter; policy accept;", *rules]))
    if not chains:
        return HostState()
    return HostState.of(NftTable(table, "\n".join(chains)))


SOURCE = "container_source"
"""Counts what was dropped because of its source."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:@-]+")
"""Names of devices that nft reads as they are."""


def _source_check(pairs: list[tuple[IPNetwork, IPNetwork]], entrances: tuple[str, ...]) -> list[str]:
    """A source inside the network that is not ours comes from a peer, and so by an entrance: a container of this host, or a
    machine on another of its links, that sends as somebody else's container reaches neither ours nor the other hosts'.
    """
    if not entrances or not all(_PLAIN.fullmatch(name) for name in entrances):
        return []
    rules = [f'iifname "{name}" accept' for name in entrances]
    for network, own in pairs:
        ip = _FAMILY[network.version]
        stranger = f"{ip} saddr {network} {ip} saddr != {own}"
        rules += [f'{stranger} {where} counter name "{SOURCE}" drop' for where in _targets(ip, own, entrances)]
    return [
        f"\tcounter {SOURCE} {{\n\t}}\n",
        chain("sources", ["type filter hook forward priority filter - 5; policy accept;", *rules]),
    ]


def _targets(ip: str, own: IPNetwork, entrances: tuple[str, ...]) -> list[str]:
    return [f"{ip} daddr {own}", *(f'oifname "{name}"' for name in entrances)]


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
