"""What is this host now? Its uplink, and which addresses it reaches without a gateway; asked for when the kernel says that it may
have changed, and then only for what it depends on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping

from netaddr import IPAddress, IPNetwork

from flannelpy.agent.report import Reporter
from flannelpy.core.backend import Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import NoUplinkError
from flannelpy.core.underlay import Underlay
from flannelpy.core.uplink import EVERYTHING, Choice, FactsQuery, HostFacts, RouteAnswer, Wish, choose
from flannelpy.core.uplink_change import concerns, query
from flannelpy.kernel import Kernel, Notice

FAMILIES = frozenset({4, 6})
MOST_GATEWAYS = 50_000
"""Addresses about which an answer is remembered: those of hosts that went are among them."""


class Facts:
    """The host as it was last seen. ``stale`` where it may be another one now."""

    def __init__(self, kernel: Kernel, wish: Wish, reporter: Reporter) -> None:
        self.uplink: Uplink | None = None
        """The last one that there was."""
        self.missing = ""
        """Why there is none at this moment; empty where there is."""
        self.reasons: tuple[str, ...] = ()
        self.uplink_mac = ""
        """The uplink's hardware address."""
        self.down = ""
        """The uplink's name while it is down, or without a carrier."""
        self.stale = True
        self.another_card = asyncio.Event()
        """The uplink has another hardware address now, or is another interface."""
        self.rerouted = asyncio.Event()
        """Routes or policy rules that are not ours have changed."""
        self._kernel = kernel
        self._wish = wish
        self._reporter = reporter
        self._gateways: dict[IPAddress, str | None] = {}
        self._moved: set[int] = set()

    def hear(self, notice: Notice) -> bool:
        """Take in what the kernel says of the host; True where the uplink may be another one now."""
        concerned = notice.lost or concerns(notice.links, notice.default_route, self._wish, self.uplink, notice.routed)
        own = self.uplink is not None and self.uplink.index in notice.links
        moved = FAMILIES if notice.lost or own else notice.routed
        self._moved |= moved
        if moved:
            self.rerouted.set()
        if moved:
            self._gateways = {address: dev for address, dev in self._gateways.items() if address.version not in moved}
        self.stale = self.stale or concerned
        return concerned

    def take_moved(self) -> Collection[int]:
        """The IP versions of which routes have changed since this was last asked."""
        moved, self._moved = self._moved, set()
        return moved

    async def look(self, config: NetworkConfig, ours: frozenset[str]) -> bool:
        """Choose the uplink anew for this network; ``ours`` are our own devices. True where it is another one.

        Raises KernelError. Where there is none, ``missing`` says why, and the last one stays.
        """
        self.stale = False
        try:
            facts, choice = await self._choose(query(self._wish, self.uplink), config, ours)
        except NoUplinkError as error:
            self.missing = str(error)
            self._reporter.set("uplink-missing", {"": self.missing})
            return False
        except BaseException:
            self.stale = True
            raise
        before, self.uplink, self.reasons, self.missing = self.uplink, choice.uplink, choice.reasons, ""
        mac, self.uplink_mac = self.uplink_mac, next((one.mac for one in facts.interfaces if one.index == choice.uplink.index), "")
        if before is not None and (before.index, mac) != (self.uplink.index, self.uplink_mac):
            self.another_card.set()
        dead = next((one for one in facts.interfaces if one.index == choice.uplink.index and not (one.up and one.running)), None)
        self.down = "" if dead is None else dead.name
        said = {} if dead is None else {"": f"{dead.name} {'has no carrier' if dead.up else 'is down'}"}
        self._reporter.set("uplink-missing", {"": choice.lacks} if choice.lacks else {})
        self._reporter.set("uplink-down", said)
        if before != self.uplink:
            self._gateways = {}
            self._moved |= FAMILIES
        return before != self.uplink

    async def _choose(self, asked: FactsQuery, config: NetworkConfig, ours: frozenset[str]) -> tuple[HostFacts, Choice]:
        facts = await self._kernel.facts(asked)
        answers: Mapping[IPAddress, RouteAnswer] = {}
        if self._wish.can_reach is not None and (answer := await self._kernel.route_to(self._wish.can_reach)) is not None:
            answers = {self._wish.can_reach: answer}
        try:
            return facts, choose(facts, self._wish, config.families, answers, self.uplink, config.networks, ours)
        except NoUplinkError:
            if asked == EVERYTHING:
                raise
        return await self._choose(EVERYTHING, config, ours)  # to say what there is instead

    async def on_link(self, addresses: Iterable[IPAddress]) -> Mapping[IPAddress, str]:
        """Those that the host reaches without a gateway, and by which device; answers are kept until routes change.

        Raises KernelError.
        """
        found = {}
        if len(self._gateways) > MOST_GATEWAYS:
            self._gateways.clear()
        for address in addresses:
            if address in self._gateways:
                device = self._gateways[address]
            else:
                before = self._gateways
                answer = await self._kernel.route_to(address)
                device = answer.dev if answer is not None and answer.via is None else None
                if self._gateways is before:  # else routes may have changed since it was given
                    before[address] = device
            if device is not None:
                found[address] = device
        return found

    async def underlay(
        self, ours: frozenset[str], bridges: Iterable[IPNetwork] = (), others: Iterable[tuple[IPAddress, str]] = ()
    ) -> Underlay:
        """What is around the overlay, ``others`` known elsewhere; without our own devices, and bridges in these subnets of ours.

        Raises KernelError.
        """
        uplink = "" if self.uplink is None else self.uplink.name
        return Underlay.of(await self._kernel.facts(), ours, bridges, uplink, others)
