"""What if the host's own firewall forwards nothing? Which rules of ours let the overlay through, and what no rule of ours can mend.

An accept in one nft table never overrules a drop in another: a packet passes the base chains of all of them (nft(8), verdict
statements). So where iptables' FORWARD drops (ufw, Docker, hardened images) the accept has to stand in that very chain, as
flannel's own rules do (flannel-compat 10.2). Docker puts its jumps first and drops behind them; DOCKER-USER is the chain that it
leaves to others, and there only what stays inside the overlay is accepted: what Docker does not publish stays unpublished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from netaddr import IPNetwork

from flannelpy.core.forward_accept import ForwardAccept, Tool
from flannelpy.core.host_diagnosis import BRIDGES
from flannelpy.core.objects import HostState

FORWARD, DOCKER_USER = "FORWARD", "DOCKER-USER"

BRIDGE = "docker0"
"""Docker's own bridge: what one container of this host sends another is Docker's to judge (--icc)."""

OURS = "flannel"
"""How the names of our devices begin."""


@dataclass(frozen=True, slots=True)
class Hindrance:
    """A chain of hook forward that drops what no rule in it accepts, or one of iptables' that Docker has jumps in.

    ``version`` is 0 for a table of both. ``tool`` is set where it is iptables' FORWARD, which is open to rules of others; elsewhere
    ``networks`` and ``devices`` are what the rules of its table speak of, but to drop it; ``wide``: one lets through by a mark, or
    all but something. ``why``: empty where it drops nothing.
    """

    version: int
    table: str
    chain: str
    why: str = ""
    tool: Tool | None = None
    docker: bool = False
    networks: frozenset[IPNetwork] = frozenset()
    devices: frozenset[str] = frozenset()
    wide: bool = False

    def concerns(self, network: IPNetwork) -> bool:
        """True where packets of this network pass the chain."""
        return self.version in (0, network.version)

    def speaks_of(self, network: IPNetwork) -> bool:
        """True where somebody has made rules that may be for this network: what they come to is not judged here, but by walking
        them (``core.firewall_drops``).
        """
        ours = any(name.startswith(OURS) or name in BRIDGES for name in self.devices)
        return self.wide or ours or any(net.version == network.version and network in net for net in self.networks)


def forward_rules(hindrances: Iterable[Hindrance], networks: Iterable[IPNetwork], owner: str) -> tuple[HostState, dict[str, str]]:
    """The rules by which this host forwards ``networks``; and the chains that drop it all the same, each in words that end in the
    command that mends it.

    ``owner`` is the name of our nft table.
    """
    whole = tuple(networks)
    rules, blocked = dict[ForwardAccept, None](), dict[str, str]()
    for one in hindrances:
        mine = [network for network in whole if one.concerns(network)]
        if one.tool is not None:
            rules |= dict.fromkeys(rule for network in mine for rule in _accepts(one, one.tool, network, owner))
        elif one.why and (unknown := [network for network in mine if not one.speaks_of(network)]):
            blocked[f"{one.table} {one.chain}"] = _words(one, unknown)
    return HostState.from_iterable(rules), blocked


def _accepts(one: Hindrance, tool: Tool, network: IPNetwork, owner: str) -> Iterator[ForwardAccept]:
    if one.docker:
        yield ForwardAccept(tool, DOCKER_USER, owner, network, network, not_in=BRIDGE)
    if one.why:
        yield ForwardAccept(tool, FORWARD, owner, source=network)
        yield ForwardAccept(tool, FORWARD, owner, destination=network)


def _words(one: Hindrance, networks: Sequence[IPNetwork]) -> str:
    """Who drops it, and what would mend that."""
    if one.table.endswith(" firewalld"):
        sources = " ".join(f"--add-source={network}" for network in networks)
        mend = f"firewall-cmd --permanent --zone=trusted {sources} && firewall-cmd --reload"
    else:
        rules = (
            f"nft insert rule {one.table} {one.chain} {'ip' if network.version == 4 else 'ip6'} {side} {network} accept"
            for network in networks
            for side in ("saddr", "daddr")
        )
        mend = " && ".join(rules)
    return f"chain {one.chain} of nft table {one.table} ({one.why}) has no rule for {' and '.join(map(str, networks))}: {mend}"
