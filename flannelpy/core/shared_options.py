"""What do options mean that several backends have? ``Guard`` and ``DirectRouting``, read and carried out in one way."""

from __future__ import annotations

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import SOURCE_RULES, Local, SourceRule
from flannelpy.core.json_members import Members
from flannelpy.core.objects import Route


def source_rule(members: Members) -> SourceRule | None:
    """``Guard``; None for off. Raises ConfigError."""
    given = members["Guard"] if "Guard" in members else None
    if given == "off":
        return None
    for rule in SOURCE_RULES:
        if given == rule or (given is None and rule == "default"):
            return rule
    raise members.wrong("Guard", f"{', '.join(SOURCE_RULES)} or off")


def direct_route(subnet: IPNetwork, outer: IPAddress, local: Local) -> Route | None:
    """A plain route to a peer that the host reaches without a gateway (DirectRouting); None where it does not, or was not asked."""
    return Route(subnet, via=outer, dev=local.on_link[outer]) if outer in local.on_link else None
