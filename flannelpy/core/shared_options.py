"""What do options mean that several backends have? ``Guard``, ``DirectRouting`` and ``MTU``, read and carried out in one way."""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import SOURCE_RULES, Guard, GuardedPort, Local, SourceRule, Uplink
from flannelpy.core.backend_options import Given, Option
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import Family
from flannelpy.core.objects import Route

GUARD = Option("Guard", "default", "what a packet must prove, [see below](#source-validation)", words=(*SOURCE_RULES, "off"))

DIRECT_ROUTING = Option("DirectRouting", False, "peers that are reached without a gateway get a plain route, as with host-gw")

UNDERLAY_MTU = Option(
    "MTU", 0, "of the *underlay*; the overhead is taken off it, as in flannel", usual="the interface's", zero=True
)

LEAST_MTU = {4: 68, 6: 1280}
"""What a link must carry, by IP version (RFC 791, RFC 8200)."""


def source_rule(given: Given) -> SourceRule | None:
    """``Guard``; None for off."""
    rule: SourceRule | None = None if given["Guard"] == "off" else given["Guard"]
    return rule


def guarded(port: GuardedPort, rule: SourceRule | None, families: tuple[Family, ...] = (4,)) -> Guard | None:
    """What the firewall guards; None where that is switched off."""
    return None if rule is None else Guard(port, rule, families)


def direct_route(subnet: IPNetwork, outer: IPAddress, local: Local) -> Route | None:
    """A plain route to a peer that the host reaches without a gateway (DirectRouting); None where it does not, or was not asked."""
    return Route(subnet, via=outer, dev=local.on_link[outer]) if outer in local.on_link else None


def mtu_within(uplink: Uplink, asked: int, overhead: int, version: Family) -> int:
    """What is left for a packet of this version of the underlay's MTU, ``asked`` or (0) the interface's. Raises ConfigError."""
    underlay = min(asked or uplink.mtu, uplink.mtu)
    mtu, least = underlay - overhead, LEAST_MTU[version]
    if mtu < least:
        raise ConfigError(f"MTU {underlay} of the underlay leaves {mtu} bytes for IPv{version}: at least {least} are needed")
    return mtu
