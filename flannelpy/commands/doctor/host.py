"""Does the host itself stand in the way? Settings, routes, bridges, the uplink: as the agent watches them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from netaddr import IPAddress, IPNetwork

from flannelpy.commands.doctor.about import About
from flannelpy.core.backend import Enclosed
from flannelpy.core.errors import NoUplinkError
from flannelpy.core.host_diagnosis import (
    BRIDGES,
    Overlay,
    bridges_astray,
    dotted,
    mtus_too_large,
    not_forwarding,
    setting_names,
    strict,
)
from flannelpy.core.lookup import ip
from flannelpy.core.objects import ROUTE_PROTOCOL
from flannelpy.core.uplink import Choice, RouteAnswer, Wish, choose
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding

_KERNELS = 2
"""RTPROT_KERNEL: what comes with an address."""


async def forwarding(about: About) -> AsyncIterator[Finding]:
    """ip_forward for each family; before the first start it may be Docker that will set it."""
    families = [4] if about.config is None else sorted(about.config.families)
    # Peers' packets come by the uplink with no device around them; of extension's and alloc's nobody knows.
    backend: object = about.backend
    bare = not about.devices and (bool(about.entrances) or (isinstance(backend, Enclosed) and backend.enclosed))
    devices = [await chosen(about)] if bare else sorted(about.devices)
    settings = await about.kernel.settings(setting_names(families, devices))
    wrong = not_forwarding(settings, families, devices)
    for text in wrong.values():
        said, _, command = text.rpartition(": ")
        yield Finding(
            "forwarding", WARNING if about.preflight else FAILED, said, f"{command}; and in /etc/sysctl.d (Docker sets it, too)"
        )
    if not wrong:
        yield Finding("forwarding", OK, "on")


async def reverse_path(about: About) -> AsyncIterator[Finding]:
    """A strict filter drops nothing while the way back is the same; where it is not, the agent says so."""
    uplink = None if about.status is None or about.status.uplink is None else about.status.uplink.interface
    devices = sorted({*about.devices, *([uplink] if uplink else [])})
    settings = await about.kernel.settings(setting_names([4], devices))
    found = {device: setting for device in devices if (setting := strict(settings, device))}
    if found:
        said = ", ".join(f"{device} ({dotted(setting)} is 1)" for device, setting in found.items())
        yield Finding("reverse path filter", OK, f"strict on {said}: harmless while packets go back as they came")
    else:
        yield Finding("reverse path filter", OK, "loose or off")


async def bridges(about: About) -> AsyncIterator[Finding]:
    """Every interface: which has our subnet, and with which MTU."""
    if not about.subnets or about.config is None:
        yield Finding("bridge", SKIPPED, "this host has no subnet yet" if not about.subnets else about.unknown)
        return
    overlay = Overlay(about.config.networks, about.subnets, about.mtu, about.devices)
    interfaces = [one for one in (await about.kernel.facts()).interfaces if one.name not in about.devices]
    standing = [one for one in interfaces if one.name in BRIDGES or overlay.serves(one)]
    stale, elsewhere = bridges_astray(standing, overlay)
    large = mtus_too_large(standing, overlay)
    for state, found in ((FAILED, stale), (WARNING, elsewhere), (WARNING, large)):
        for text in found.values():
            said, _, command = text.rpartition(": ")
            yield Finding("bridge", state, said, command)
    if not (stale or elsewhere or large):
        serving = [f"{one.name} (MTU {one.mtu})" for one in standing if overlay.serves(one)]
        yield Finding("bridge", OK, f"{', '.join(serving) or 'none yet'} in {' and '.join(map(str, about.subnets))}")


async def routes(about: About) -> AsyncIterator[Finding]:
    """Routes inside Network that are neither ours nor a bridge's of ours, and policy rules about it: dumps, which the agent never
    asks for.
    """
    if about.config is None:
        yield Finding("routes", SKIPPED, about.unknown)
        return
    networks = about.config.networks
    odd = [
        item
        for item in await about.routes_inside(networks)
        if item.proto not in (ROUTE_PROTOCOL, _KERNELS) and item.dev not in about.devices
    ]
    for item in odd:
        yield Finding(
            "routes", WARNING, f"{item} is inside the overlay and not ours", f"ip route del {item}, where nobody needs it"
        )
    facts = await about.kernel.facts()
    own = [
        f"{IPNetwork((int(held.address), held.prefixlen), version=held.address.version).cidr} on {one.name}"
        for one in facts.interfaces
        if one.name not in (*about.devices, *BRIDGES)
        for held in one.addresses
        if _inside(held.address, networks) and not _inside(held.address, about.subnets)
    ]
    for text in own:
        yield Finding(
            "routes", FAILED, f"Network covers {text}, a network of this host", "use another Network: flannelpy config put FILE"
        )
    ruled = await about.policy_rules(networks)
    for rule in ruled:
        said = f"a policy rule may take packets of the overlay elsewhere than the main table says: {rule}"
        yield Finding("routes", WARNING, said, f"{ip(rule.version)} rule del {rule}, where nobody needs it")
    if not odd and not own and not ruled:
        yield Finding("routes", OK, "none of others inside the overlay, nor a policy rule about it")


async def uplink(about: About) -> AsyncIterator[Finding]:
    """Which interface would be chosen, and why."""
    if about.status is not None and about.status.uplink is not None:
        yield Finding(
            "uplink", OK, about.status.uplink.reasons[-1] if about.status.uplink.reasons else about.status.uplink.interface
        )
        return
    try:
        choice = await _choice(about)
    except NoUplinkError as error:
        yield Finding("uplink", FAILED, str(error), "choose one with --iface")
        return
    yield Finding("uplink", OK, choice.reasons[-1] if choice.reasons else choice.uplink.name)


async def chosen(about: About) -> str:
    """The uplink that the agent has, else the one that it would choose; empty where there is none."""
    if about.status is not None and about.status.uplink is not None:
        return about.status.uplink.interface
    try:
        return (await _choice(about)).uplink.name
    except NoUplinkError:
        return ""


async def _choice(about: About) -> Choice:
    """Raises NoUplinkError."""
    settings = about.settings
    wish = Wish(settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip, settings.public_ipv6)
    answers: dict[IPAddress, RouteAnswer] = {}
    if wish.can_reach is not None and (answer := await about.kernel.route_to(wish.can_reach)) is not None:
        answers[wish.can_reach] = answer
    families = (4,) if about.config is None else about.config.families
    networks = () if about.config is None else about.config.networks
    return choose(await about.kernel.facts(), wish, families, answers, None, networks, about.devices)


def _inside(address: IPAddress, networks: tuple[IPNetwork, ...]) -> bool:
    return any(net.version == address.version and address in net for net in networks)
