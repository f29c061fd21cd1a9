"""DirectRouting by a second link of the host: what if that goes for a moment, or a peer is no longer reached without a gateway?

[ host ] eth1 192.0.2.1/24, 2001:db8::1/64, the uplink ---- peers     eth9 198.51.100.1/24 ---- peers      the loop on a real kernel
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.facts import Facts
from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.fragments import Target
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import HostState, Scope
from flannelpy.core.uplink import Wish
from flannelpy.plugins import parse
from tests.contract.kernel_support import RealHost, fresh_namespace, real_only
from tests.unit.syncing import PeersBook

pytestmark = real_only

NETWORKS = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": '
DIRECT, TUNNEL, OTHER = (
    f"{NETWORKS}{backend}}}"
    for backend in ('{"Type": "vxlan", "DirectRouting": true}', '{"Type": "vxlan"}', '{"Type": "vxlan", "VNI": 2}')
)
NEAR, FAR, BESIDE = ("192.0.2.9", "2001:db8::9"), ("203.0.113.9", "2001:db8:9::9"), ("198.51.100.9", "2001:db8:9::9")
WITHIN_S = 3.0


def ip(words: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=words.replace("; ", "\n"), text=True, check=True)


def routes() -> str:
    shown = [subprocess.run(["ip", each, "route", "show", "proto", "102"], capture_output=True, text=True) for each in ("-4", "-6")]
    return "".join(each.stdout for each in shown)


def peer(at: tuple[str, str], vni: int = 1) -> Lease:
    data = [{"VNI": vni, "VtepMAC": f"02:00:00:00:0{number}:09"} for number in (0, 1)]
    attrs = LeaseAttrs(IPAddress(at[0]), IPAddress(at[1]), "vxlan", *data)
    return Lease(IPNetwork("10.5.9.0/24"), attrs, IPNetwork("fd00:0:0:9::/64"), etcd_lease=7, create_revision=9)


class Routing:
    """A host's loop, with the facts by which it decides who is reached without a gateway."""

    def __init__(self, host: RealHost) -> None:
        self.peers = PeersBook()
        self.reporter = Reporter(time.monotonic)
        addresses = IPAddress("192.0.2.1"), IPAddress("2001:db8::1")
        self._uplink = Uplink("eth1", socket.if_nametoindex("eth1"), 1500, *addresses, *addresses)
        self._facts = Facts(host.kernel, Wish(), self.reporter)
        self._facts.uplink = self._uplink
        self._kernel = host.kernel

        async def nothing() -> None: ...

        self.loop = Reconciler(host.kernel, self.reporter, self.peers, self._facts, time.monotonic, before_round=nothing)

    def be(self, config_text: str) -> None:
        config, backend = parse(config_text)
        attrs = LeaseAttrs(*(self._uplink.address, self._uplink.address6))
        own = Lease(IPNetwork("10.5.72.0/24"), attrs, IPNetwork("fd00:0:0:72::/64"), etcd_lease=1, create_revision=1)
        macs = {name: f"02:00:00:00:00:0{number}" for number, name in enumerate(backend.devices(config), 1)}
        devices = frozenset(f"{name}.{vni}" for name in ("flannel", "flannel-v6") for vni in (1, 2))
        scope = Scope(devices, config.networks, "eth1", "flannelpy")
        self.loop.set_target(Target(backend, Local(config, self._uplink, own, macs), scope, HostState))
        self._scope = scope

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        notices = self._kernel.notices(self._scope)

        async def listen() -> None:
            async for notice in notices:  # as agent/network.py
                self._facts.hear(notice)
                if moved := self._facts.take_moved():
                    self.loop.reroute(moved)
                self.loop.hear(notice)

        tasks = [asyncio.create_task(listen()), asyncio.create_task(self.loop.run())]
        self.loop.allow_sweep(True)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            notices.close()

    def take(self, lease: Lease) -> None:
        self.peers.put(lease)
        self.loop.dirty.poke()

    async def until(self, *wanted: str) -> None:
        """Within seconds, and not by the look at everything that comes after minutes."""
        deadline = time.monotonic() + WITHIN_S
        while not all(each in routes() for each in wanted):
            assert time.monotonic() < deadline, (routes(), [each.detail for each in self.reporter.health])
            await asyncio.sleep(0.05)


@pytest.fixture
async def routing() -> AsyncIterator[Routing]:
    with fresh_namespace():
        ip("link add eth9 type veth peer name eth9p; link set eth9p up; addr add 198.51.100.1/24 dev eth9; link set eth9 up")
        host = RealHost()
        try:
            yield Routing(host)
        finally:
            await host.close()


@pytest.mark.parametrize(
    "gone",
    [
        "link set eth9 down; link set eth9 up",
        "addr del 198.51.100.1/24 dev eth9; addr add 198.51.100.1/24 dev eth9",
        "addr del 198.51.100.1/24 dev eth9; addr add 198.51.100.7/24 dev eth9",
        "link del eth9; link add eth9 type veth peer name eth9p; addr add 198.51.100.1/24 dev eth9"
        "; link set eth9p up; link set eth9 up",
    ],
)
async def test_a_route_that_goes_with_another_link_than_the_uplink_is_put_back(routing: Routing, gone: str) -> None:
    """Of IPv4's the kernel says nothing, and when the link is back the peer is reached by it as before."""
    routing.be(DIRECT)
    async with routing.alive():
        routing.take(peer(BESIDE))
        await routing.until("10.5.9.0/24 via 198.51.100.9 dev eth9")
        ip(gone)
        await asyncio.sleep(0.3)
        await routing.until("10.5.9.0/24 via 198.51.100.9 dev eth9")


@pytest.mark.parametrize("how", ["it moves", "its way", "the config", "the VNI"])
async def test_a_plain_route_gives_way_to_one_by_the_tunnel_in_both_families(routing: Routing, how: str) -> None:
    """IPv6 takes no gateway "onlink" that a route by another device covers: the very route that is to be replaced does."""
    routing.be(TUNNEL if how == "the VNI" else DIRECT)
    async with routing.alive():
        routing.take(peer(NEAR))
        if how == "the VNI":
            await routing.until("fd00:0:0:9:: dev flannel-v6.1")
            routing.be(OTHER)
            routing.take(peer(NEAR, vni=2))
            await routing.until("10.5.9.0 dev flannel.2", "fd00:0:0:9:: dev flannel-v6.2")
            assert not routing.loop.standing.steps["route", "change", "refused"]
            return
        await routing.until("via 192.0.2.9 dev eth1", "via 2001:db8::9 dev eth1")
        if how == "it moves":
            routing.take(peer(FAR))
        elif how == "its way":
            ip("route add 192.0.2.9/32 via 192.0.2.254; route add 2001:db8::9/128 via 2001:db8::254")
        else:
            routing.be(TUNNEL)
        await routing.until("10.5.9.0 dev flannel.1", "fd00:0:0:9:: dev flannel-v6.1")


async def test_somebodys_route_to_more_than_the_network_keeps_no_peer_out(routing: Routing) -> None:
    ip("route add fd00::/8 via 2001:db8::253")
    routing.be(TUNNEL)
    async with routing.alive():
        routing.take(peer(NEAR))
        await routing.until("10.5.9.0 dev flannel.1", "fd00:0:0:9:: dev flannel-v6.1")
        assert [line for line in routes().splitlines() if line.startswith("fd00:0:0:9:: ")] == []  # a way to the gateway alone
