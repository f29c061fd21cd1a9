"""Which policy rule takes a packet away from the main table, where the overlay's routes are? Rules as the kernel walks them.

Every packet is asked for in the tables that the rules name, in their order, until one has a route (ip-rule(8)); a look-up tells the
table that decided, or only that nothing is sent, and never the rule. A mark is taken to be 0, for nobody marks the overlay's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from flannelpy.core.lookup import MAIN

LOCAL = 255
"""RT_TABLE_LOCAL: this host's own addresses."""
_NAMES = {MAIN: "main", LOCAL: "local", 253: "default"}

TO_TABLE, GOTO, NOTHING = "lookup", "goto", "nop"


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """``action``: lookup, goto, nop, or how it refuses; ``table``: of the first, ``target`` of the second. ``mark`` and ``mask``:
    None where none is asked for; ``suppressed``: routes of the table that are not longer do not count, -1: all do; ``more``: what
    else it asks for, which no packet of ours has or of which nothing is known here.
    """

    version: int
    priority: int
    action: str = TO_TABLE
    table: int = MAIN
    target: int = 0
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    arrives: str = ""
    leaves: str = ""
    mark: tuple[int, int] | None = None
    inverted: bool = False
    suppressed: int = -1
    more: bool = False

    def __str__(self) -> str:
        """As an operator would type it after ``ip rule del``."""
        words = [f"pref {self.priority}", *(["not"] if self.inverted else []), f"from {self.source or 'all'}"]
        words += [f"to {self.destination}"] if self.destination is not None else []
        words += [f"iif {self.arrives}"] if self.arrives else []
        words += [f"oif {self.leaves}"] if self.leaves else []
        words += [f"fwmark {self.mark[0]:#x}/{self.mark[1]:#x}"] if self.mark is not None else []
        words += [f"lookup {_NAMES.get(self.table, self.table)}"] if self.action == TO_TABLE else [self.action]
        return " ".join(words)

    @property
    def refuses(self) -> bool:
        """True where it sends nowhere what it takes."""
        return self.action not in (TO_TABLE, GOTO, NOTHING)

    def takes(self, destination: IPAddress, source: IPAddress | None, arrives: str) -> bool:
        """Whether a packet is one of those that it speaks of. ``arrives``: by which device, empty: this host sends it."""
        if self.more or destination.version != self.version:
            return False
        asked = [
            self.destination is None or destination in self.destination,
            self.source is None or (source is not None and source in self.source),
            not self.arrives or self.arrives == (arrives or "lo"),  # what the host sends itself is of lo to a rule
            not self.leaves,
            self.mark is None or not self.mark[0] & self.mark[1],
        ]
        return all(asked) is not self.inverted


def concerning(rules: Iterable[PolicyRule], networks: Iterable[IPNetwork]) -> list[PolicyRule]:
    """Those that speak of addresses in these networks, and ask another table than the main one, or refuse."""
    wide = [(net.version, net.first, net.last) for net in networks]
    return [
        rule
        for rule in rules
        if rule.action != NOTHING
        and (rule.action != TO_TABLE or rule.table not in _NAMES)
        and any(
            net is not None and net.version == version and net.first <= last and first <= net.last
            for net in (rule.source, rule.destination)
            for version, first, last in wide
        )
    ]


def decides(
    rules: Iterable[PolicyRule],
    destination: IPAddress,
    source: IPAddress | None,
    arrives: str,
    longest: Callable[[int], int | None],
) -> PolicyRule | None:
    """The rule by which a packet is not sent as the main table says; None where it is, or where no rule decides.

    ``longest``: the prefix length of the route for it in a table, None where that has none.
    """
    beyond = 0
    for rule in sorted(rules, key=lambda rule: rule.priority):
        if rule.priority < beyond or not rule.takes(destination, source, arrives) or rule.action == NOTHING:
            continue
        if rule.action == GOTO:
            beyond = rule.target
            continue
        if rule.action != TO_TABLE:
            return rule
        if rule.table == LOCAL:
            continue
        length = longest(rule.table)
        if length is not None and length > rule.suppressed:
            return None if rule.table == MAIN else rule
    return None
