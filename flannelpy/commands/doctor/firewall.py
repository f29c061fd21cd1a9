"""Does the host's firewall drop what the overlay forwards? Its rules, with those that the agent puts before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from netaddr import IPNetwork

from flannelpy.commands.doctor.about import About
from flannelpy.commands.doctor.host import chosen
from flannelpy.core.backend import Backend
from flannelpy.core.config import NetworkConfig
from flannelpy.core.dialect import typed
from flannelpy.core.firewall_drops import Ground, Way, dropped, passages, with_accepts
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.forwarding import forward_rules
from flannelpy.core.host_diagnosis import BRIDGES, Overlay
from flannelpy.core.objects import HostState, Object, Scope
from flannelpy.core.plan import Step
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding

TOLD = "firewall-drops"
"""The condition of an agent that has looked itself."""


async def firewall(about: About) -> AsyncIterator[Finding]:
    """What drops forwarded packets. Where iptables' FORWARD does, the agent adds rules, unless it was told not to."""
    config, backend = about.config, about.backend
    if config is None or backend is None:
        yield Finding("firewall", SKIPPED, about.unknown)
        return
    hindrances = await about.kernel.hindrances()
    rules, blocked = forward_rules(hindrances, config.networks, "flannelpy")
    for text in blocked.values():
        said, _, command = text.rpartition(": ")  # which rule it ends in is behind a colon, too
        yield Finding("firewall", FAILED, said, command)
    dropping = [one for one in hindrances if one.tool is not None and one.why]
    for one in dropping if not about.settings.forward_rules else ():
        said = f"{one.chain} of {one.table} drops ({one.why}), and --iptables-forward-rules is false"
        yield Finding("firewall", WARNING, said, "let Network through there by hand, or leave that option out")
    missing = await _missing(about, rules) if about.settings.forward_rules else []
    if missing:  # it was told in vain, or may not: iptables-legacy is root's, by the lock that it takes
        said = f"{len(missing)} of {len(rules)} rules that let the overlay through the host's firewall are not there"
        yield Finding("firewall", FAILED, said, "; ".join(typed(Step("add", rule)) for rule in missing))
    told = bool(blocked) or bool(dropping and not about.settings.forward_rules)
    found = await _dropped(about, config, backend, rules if about.settings.forward_rules else HostState(), told=told)
    for text in found:
        said, _, command = text.rpartition(": ")
        yield Finding("firewall", FAILED, said, command)
    if not (missing or told or found):
        more = f"; {len(rules)} rules of the agent let the overlay through" if len(rules) else ""
        yield Finding("firewall", OK, f"nothing drops what the overlay forwards, as far as can be told{more}")


async def _missing(about: About, rules: HostState) -> list[Object]:
    """Which of these a running agent should have put there long ago."""
    if not len(rules) or about.status is None or not about.status.ready:
        return []
    there = await about.kernel.observe(Scope(), {rule.key for rule in rules})
    return [rule for rule in rules if rule.key not in there]


async def _dropped(about: About, config: NetworkConfig, backend: Backend, rules: HostState, *, told: bool) -> list[str]:
    """What the rules certainly drop with these in them. ``told``: of the chains of hook forward it is told already, as it is by an
    agent that has found something.
    """
    if about.status is not None and any(each.code == TOLD for each in about.status.conditions):
        return []
    interfaces = (await about.kernel.facts()).interfaces
    overlay = Overlay(config.networks, about.subnets, about.mtu, about.devices)
    serving = [one.name for one in interfaces if one.name not in about.devices and overlay.serves(one)]
    usual = [name for name in BRIDGES if any(one.name == name for one in interfaces)]
    bridge = next(iter([*serving, *usual, *BRIDGES]))
    devices = [*backend.devices(config)] or [await chosen(about)]
    judged = with_accepts(await about.kernel.foreign_rules(), [rule for rule in rules if isinstance(rule, ForwardAccept)])
    carried = [network for network in config.networks if network.version in backend.families]
    wanted = passages(_ways(about, carried, devices), Ground("", (), bridge, about.mtu, told))
    return [*dropped(judged, list(wanted), "").values()]


def _ways(about: About, networks: Sequence[IPNetwork], devices: list[str]) -> Iterator[Way]:
    """From this host's containers to a peer's, of each family; where there is none yet, from one part of Network to another."""
    told = () if about.status is None else about.status.peers
    peers = [IPNetwork(net) for peer in told for net in (peer.subnet, peer.subnet6) if net]
    for at, network in enumerate(networks):
        device = devices[min(at, len(devices) - 1)]
        low, high = network.subnet(network.prefixlen + 1)
        own = next((net for net in about.subnets if net.version == network.version), low)
        yield Way(own, next((net for net in peers if net.version == network.version), low if own in high else high), device)
