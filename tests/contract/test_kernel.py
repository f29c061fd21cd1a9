"""The contract of a kernel: what every implementation does, on the fake and on the real one."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import pytest
import pytest_asyncio
import uvloop
from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Guard, GuardedPort, SourceRule
from flannelpy.core.guard import MOST_STRANGERS, Side, chain, guard_chains, guard_elements, guard_sets, refused, strangers
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import (
    BOOT_PROTOCOL,
    Address,
    FdbEntry,
    Fou,
    HostState,
    Ipip,
    Key,
    Link,
    Neighbour,
    NftElement,
    NftTable,
    Route,
    Sysctl,
    Vxlan,
)
from flannelpy.core.plan import Step, plan
from flannelpy.core.rules import FirewallOptions, firewall
from flannelpy.core.uplink import InterfaceAddress
from flannelpy.kernel import Kernel
from flannelpy.kernel.netlink import NetlinkKernel
from flannelpy.kernel.rehearsal import rehearse_here

from .kernel_support import (
    ACCEPT_RA,
    ADDRESS,
    BODY,
    HOST,
    LINK,
    PATIENCE_S,
    SCOPE,
    SYSCTL,
    TABLE,
    FakeHost,
    Host,
    RealHost,
    code,
    fresh_namespace,
    hear,
    ip,
    peer,
    real_only,
    shell,
)


async def apply(kernel: Kernel, *steps: Step) -> list[str]:
    """The errors of these steps as text."""
    return [str(result.error) for result in await kernel.apply(steps) if result.error]


async def reach(kernel: Kernel, desired: HostState) -> None:
    """Observe, plan, apply; all must go well, and the next plan must be empty."""
    results = await kernel.apply(plan(desired, await kernel.observe(SCOPE), SCOPE))
    assert [str(result.step) for result in results if result.error] == []
    observed = await kernel.observe(SCOPE)
    unwanted = [item.key for item in observed if isinstance(item, Sysctl) and item.key not in desired]  # a setting has no absence
    assert {key: item for key, item in observed.objects.items() if key not in unwanted} == desired.objects
    assert plan(desired, observed, SCOPE) == ()


# ------------------------------------------------------------------------------------------------------ each kind


async def test_an_empty_host_holds_nothing_of_ours(host: Host) -> None:
    assert len(await host.kernel.observe(SCOPE)) == 0


@real_only
async def test_a_namespace_that_never_had_a_route_holds_nothing() -> None:
    with fresh_namespace():
        kernel = NetlinkKernel()
        assert len(await kernel.observe(SCOPE)) == 0
        await kernel.close()


async def test_what_was_applied_is_observed_and_the_second_plan_is_empty(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9) | peer(10) | HostState.of(TABLE))


async def test_what_is_no_longer_wanted_goes(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9) | peer(10) | HostState.of(TABLE))
    await reach(host.kernel, HOST | peer(10))
    await reach(host.kernel, HostState())


async def test_both_families(host: Host) -> None:
    mac = "02:00:06:00:00:09"
    six = HostState.of(
        Address(IPNetwork("fd05::48:0/128"), "flannel.1"),
        Neighbour(IPAddress("fd05:0:0:9::"), mac, "flannel.1"),
        FdbEntry(mac, IPAddress("192.0.2.9"), "flannel.1"),
        Route(IPNetwork("fd05:0:0:9::/64"), IPAddress("fd05:0:0:9::"), "flannel.1", onlink=True),
        Route(IPNetwork("fd05:0:0:10::/64"), IPAddress("2001:db8::9"), "eth1"),
        Route(IPNetwork("fd05:0:0:11::/64"), kind="unreachable"),
    )
    await reach(host.kernel, HOST | six)
    await reach(host.kernel, HOST)


@pytest.mark.parametrize("others", [("10.5.72.0/24", "fd05:0:0:72::/64"), ("10.5.72.0/28", "fd05:0:0:72::/126"), ("fd05::/128",)])
async def test_an_address_that_is_there_with_another_length_has_its_own(host: Host, others: tuple[str, ...]) -> None:
    """As an earlier tool has left it: IPv6 takes what is added for what is there, so that both would go."""
    wanted = HostState.of(Address(IPNetwork("10.5.72.0/32"), "flannel.1"), Address(IPNetwork("fd05:0:0:72::/128"), "flannel.1"))
    await reach(host.kernel, HostState.of(LINK, SYSCTL, *(Address(IPNetwork(other), "flannel.1") for other in others)))
    await reach(host.kernel, HostState.of(LINK, SYSCTL) | wanted)


async def test_a_vxlan_device_over_ipv6_with_gbp_and_learning(host: Host) -> None:
    vxlan = Vxlan(7, "eth1", IPAddress("2001:db8::1"), port=4789, learning=True, gbp=True)
    await reach(host.kernel, HostState.of(replace(LINK, detail=vxlan, mtu=1430)))


@pytest.mark.parametrize("changed", [replace(LINK, mtu=1400), replace(LINK, mac="02:00:00:00:00:02")])
async def test_a_device_is_changed_in_place(host: Host, changed: Link) -> None:
    await reach(host.kernel, HOST)
    assert plan(HostState.of(changed), HostState.of(LINK))[0].op == "change"
    await reach(host.kernel, HOST.only([ADDRESS.key, SYSCTL.key]) | HostState.of(changed))


async def test_a_new_mac_costs_the_neighbours_which_is_told_and_repaired(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    notices = host.kernel.notices(SCOPE)
    changed = replace(LINK, mac="02:00:00:00:00:02")
    assert await apply(host.kernel, Step("change", changed, LINK)) == []
    gone = Key("neigh", "10.5.9.0 dev flannel.1")
    heard = await hear(notices, lambda heard: gone in heard.objects)
    assert heard.objects[gone] is None
    await reach(host.kernel, HostState.of(changed, ADDRESS, SYSCTL) | peer(9))


async def test_a_device_that_is_down_is_brought_up(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    host.set_down("flannel.1")
    observed = await host.kernel.observe(SCOPE)
    assert observed.get(LINK.key) == replace(LINK, up=False)
    assert peer(9).only([Key("route", "10.5.9.0/24")]).objects.keys().isdisjoint(observed.objects)
    await reach(host.kernel, HOST | peer(9))


async def test_a_device_with_another_vni_is_made_anew_and_refilled(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    changed = replace(LINK, detail=Vxlan(2, "eth1", IPAddress("192.0.2.1")))
    await reach(host.kernel, HostState.of(changed, ADDRESS, SYSCTL) | peer(9))


async def test_a_peer_that_moved_is_changed_in_place(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    mac = "02:00:01:00:00:09"
    moved = HostState.of(
        Neighbour(IPAddress("10.5.9.0"), "02:00:01:00:00:99", "flannel.1"),
        FdbEntry(mac, IPAddress("192.0.2.77"), "flannel.1"),
        Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.77"), "eth1"),
    )
    await reach(host.kernel, HOST | moved)


@pytest.mark.parametrize("kind", ["unreachable", "blackhole"])
async def test_a_route_that_leads_nowhere(host: Host, kind: str) -> None:
    await reach(host.kernel, HOST | HostState.of(Route(IPNetwork("10.5.0.0/16"), kind=kind)))
    await reach(host.kernel, HOST)


async def test_a_route_by_device_with_link_scope_and_without(host: Host) -> None:
    routes = [
        Route(IPNetwork("10.5.0.0/16"), dev="flannel.1", link_scope=True),
        Route(IPNetwork("10.5.1.0/24"), dev="flannel.1"),
    ]
    await reach(host.kernel, HOST | HostState.of(*routes))


async def test_a_tun_device_is_configured_but_never_made(host: Host) -> None:
    scope = replace(SCOPE, links=frozenset({"flannel0"}), sysctls=frozenset())
    tun = Link("flannel0", "tun", 1472)
    assert await apply(host.kernel, Step("add", tun)) == ["flannel0 is opened by its pump, which has not made it yet"]
    host.add_link(replace(tun, mtu=1500, up=False))
    observed = await host.kernel.observe(scope)
    assert observed.get(tun.key) == replace(tun, mtu=1500, up=False)
    assert await apply(host.kernel, *plan(HostState.of(tun), observed)) == []
    observed = await host.kernel.observe(scope)
    assert list(observed) == [tun]
    assert await apply(host.kernel, *plan(HostState(), observed)) == []
    assert len(await host.kernel.observe(scope)) == 0


async def test_a_setting_is_written_and_read(host: Host) -> None:
    await host.kernel.apply([Step("add", LINK)])
    assert (await host.kernel.observe(SCOPE)).get(SYSCTL.key) == Sysctl(ACCEPT_RA, "1")
    assert await apply(host.kernel, Step("change", SYSCTL)) == []
    assert (await host.kernel.observe(SCOPE)).get(SYSCTL.key) == SYSCTL


async def test_a_setting_of_a_device_that_is_not_there_is_an_error(host: Host) -> None:
    results = await host.kernel.apply([Step("add", SYSCTL)])
    assert code(results) == errno.ENOENT
    assert ACCEPT_RA in str(results[0].error)


async def test_observation_by_keys_looks_at_what_they_name(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    for item in HOST | peer(9):
        observed = await host.kernel.observe(SCOPE, [item.key])
        assert observed.get(item.key) == item


# ------------------------------------------------------------------------------------------------------- failures


async def test_one_failing_step_does_not_block_the_others(host: Host) -> None:
    nowhere = Route(IPNetwork("10.5.8.0/24"), dev="gone0")
    steps = [Step("add", item) for item in (*HOST, *peer(9), nowhere, *peer(10), TABLE)]
    results = await host.kernel.apply(steps)
    assert [result.step for result in results] == steps
    assert {str(result.step): str(result.error) for result in results if result.error} == {
        "route add 10.5.8.0/24 dev gone0": "No such device"
    }
    assert (await host.kernel.observe(SCOPE)).objects == (HOST | peer(9) | peer(10) | HostState.of(TABLE)).objects


async def test_a_gateway_that_is_not_on_link_is_refused(host: Host) -> None:
    await reach(host.kernel, HOST)
    route = Route(IPNetwork("10.5.9.0/24"), IPAddress("203.0.113.9"), "flannel.1")
    results = await host.kernel.apply([Step("add", route)])
    assert code(results) == errno.ENETUNREACH
    assert str(results[0].error).startswith("Network is unreachable")


async def test_a_vxlan_without_its_underlay_device_says_so(host: Host) -> None:
    link = replace(LINK, detail=Vxlan(1, "gone0", IPAddress("192.0.2.1")))
    results = await host.kernel.apply([Step("add", link)])
    assert (code(results), str(results[0].error)) == (errno.ENODEV, "the underlay device gone0 is not there")


async def test_removing_what_is_gone_is_success(host: Host) -> None:
    await reach(host.kernel, HOST)
    items = (*peer(9), Address(IPNetwork("10.5.73.0/32"), "flannel.1"), NftTable("flannelpy", ""), SYSCTL)
    assert await apply(host.kernel, *(Step("remove", item, item) for item in items)) == []
    host.delete_link("flannel.1")
    assert await apply(host.kernel, *(Step("remove", item, item) for item in (*peer(9), *HOST))) == []


async def test_a_table_that_nft_cannot_read_is_an_error_and_leaves_the_old_one(host: Host) -> None:
    await reach(host.kernel, HostState.of(TABLE))
    results = await host.kernel.apply([Step("change", NftTable("flannelpy", "\tchain forward {\n"))])
    assert "syntax error" in str(results[0].error)
    assert "\n" not in str(results[0].error)
    assert (await host.kernel.observe(SCOPE)).get(TABLE.key) == TABLE


# ------------------------------------------------------------------------------------------------ other people's


FOREIGN = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), "eth1", proto=4)


async def test_a_foreign_route_is_not_seen_not_overwritten_not_removed(host: Host) -> None:
    await reach(host.kernel, HOST)
    host.add_route(FOREIGN)
    assert FOREIGN.key not in await host.kernel.observe(SCOPE)
    ours = next(item for item in peer(9) if isinstance(item, Route))
    assert code(await host.kernel.apply([Step("add", ours)])) == errno.EEXIST
    assert await apply(host.kernel, Step("remove", ours, ours)) == []
    assert host.has_route(FOREIGN)


async def test_who_is_in_the_way_can_be_told(host: Host) -> None:
    host.add_route(FOREIGN)
    nobody = Route(IPNetwork("10.5.9.0/25"), dev="eth1")
    assert await host.kernel.routes_at([nobody, replace(FOREIGN, via=None), nobody]) == [FOREIGN]
    assert await host.kernel.routes_at([nobody]) == []
    assert await host.kernel.routes_at([]) == []


@pytest.mark.parametrize("net", [IPNetwork("10.5.72.0/24"), IPNetwork("fd05:0:0:72::/64")])
async def test_a_route_of_another_metric_stands_beside_ours(host: Host, net: IPNetwork) -> None:
    """A bridge's, beside the blackhole that takes what is for none of its containers."""
    blackhole = Route(net, kind="blackhole", metric=2**32 - 1)
    bridges, his = [Route(net, dev="eth1", link_scope=net.version == 4, proto=4, metric=metric) for metric in (0, 50)]
    await reach(host.kernel, HostState.of(blackhole))
    host.add_route(bridges)
    host.add_route(his)
    assert list(await host.kernel.observe(SCOPE)) == [blackhole]
    assert await host.kernel.routes_at([blackhole]) == [blackhole]
    assert await host.kernel.routes_at([bridges]) == [bridges]
    assert code(await host.kernel.apply([Step("add", blackhole)])) == errno.EEXIST
    await reach(host.kernel, HostState())
    assert set(await host.kernel.routes_at([blackhole, bridges, his])) == {bridges, his}


async def test_routes_outside_our_networks_are_not_ours_even_with_our_mark(host: Host) -> None:
    host.add_route(Route(IPNetwork("10.99.0.0/16"), IPAddress("192.0.2.9"), "eth1"))
    assert len(await host.kernel.observe(SCOPE)) == 0


async def test_what_another_agent_left_on_our_device_is_adopted(host: Host) -> None:
    await reach(host.kernel, HOST)
    ours = next(item for item in peer(9) if isinstance(item, Route))
    left = replace(ours, proto=BOOT_PROTOCOL)
    host.add_route(left)
    observed = await host.kernel.observe(SCOPE)
    assert observed.get(ours.key) == left
    assert [step.op for step in plan(HOST | peer(9), observed, SCOPE) if step.key == ours.key] == ["change"]
    await reach(host.kernel, HOST | peer(9))
    assert host.has_route(ours)


async def test_what_another_agent_left_on_our_device_for_nobody_goes(host: Host) -> None:
    await reach(host.kernel, HOST)
    host.add_route(replace(next(item for item in peer(9) if isinstance(item, Route)), proto=BOOT_PROTOCOL))
    await reach(host.kernel, HOST)


async def test_a_gateway_route_of_another_agent_through_the_uplink_is_adopted(host: Host) -> None:
    ours = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), "eth1")
    host.add_route(replace(ours, proto=BOOT_PROTOCOL))
    await reach(host.kernel, HostState.of(ours))
    assert host.has_route(ours)


async def test_a_route_through_the_uplink_that_nobody_asked_for_stays(host: Host) -> None:
    left = replace(FOREIGN, proto=BOOT_PROTOCOL)
    host.add_route(left)
    assert plan(HostState(), await host.kernel.observe(SCOPE), SCOPE) == ()


# -------------------------------------------------------------------------------------------------------- notices


async def test_our_own_changes_come_back_as_they_are(host: Host) -> None:
    notices = host.kernel.notices(SCOPE)
    await reach(host.kernel, HOST | peer(9) | HostState.of(TABLE))
    expected = (HOST.only([LINK.key, ADDRESS.key]) | peer(9) | HostState.of(TABLE)).objects
    heard = await hear(notices, lambda heard: heard.objects.keys() >= expected.keys())
    assert {key: heard.objects[key] for key in expected} == expected
    assert not heard.resync


async def test_a_device_deleted_by_hand_is_told_and_repaired(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    notices = host.kernel.notices(SCOPE)
    host.delete_link("flannel.1")
    heard = await hear(notices, lambda heard: heard.resync and LINK.key in heard.objects)
    assert heard.objects[LINK.key] is None
    await reach(host.kernel, HOST | peer(9))
    heard = await hear(notices, lambda heard: all(heard.objects.get(item.key) == item for item in (LINK, *peer(9))))


async def test_a_device_that_was_made_anew_is_followed(host: Host) -> None:
    await reach(host.kernel, HOST)
    notices = host.kernel.notices(SCOPE)
    host.delete_link("flannel.1")
    await reach(host.kernel, HOST | peer(9))
    await hear(notices, lambda heard: all(heard.objects.get(item.key) == item for item in peer(9)))
    for item in peer(9):
        host.remove(item)
    heard = await hear(notices, lambda heard: len([key for key in peer(9).objects if key in heard.objects]) == 3)
    assert [heard.objects[key] for key in peer(9).objects] == [None, None, None]


async def test_routes_flushed_by_hand_are_told(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9) | peer(10))
    notices = host.kernel.notices(SCOPE)
    host.flush_routes("flannel.1")
    keys = [Key("route", "10.5.9.0/24"), Key("route", "10.5.10.0/24")]
    heard = await hear(notices, lambda heard: all(key in heard.objects for key in keys))
    assert [heard.objects[key] for key in keys] == [None, None]


async def test_a_device_taken_down_asks_for_everything(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    notices = host.kernel.notices(SCOPE)
    host.set_down("flannel.1")
    heard = await hear(notices, lambda heard: heard.resync)
    assert heard.objects[LINK.key] == replace(LINK, up=False)


async def test_a_device_taken_down_keeps_what_the_kernel_keeps_of_it(host: Host) -> None:
    """IPv6 goes off there, and what was known of neighbours is forgotten, whatever it was."""
    address6 = Address(IPNetwork("fd05:0:0:72::/128"), "flannel.1")
    wanted = HOST | peer(9) | HostState.of(address6)
    await reach(host.kernel, wanted)
    host.set_down("flannel.1")
    there = await host.kernel.observe(SCOPE)
    assert {key.kind for key in there.objects if key.kind != "sysctl"} == {"link", "addr", "fdb"}
    assert address6.key not in there
    await reach(host.kernel, wanted)


async def test_an_uplink_taken_down_asks_for_everything_and_names_it(host: Host) -> None:
    notices = host.kernel.notices(SCOPE)
    host.set_down("eth1")
    await hear(notices, lambda heard: heard.resync and "eth1" in heard.links.values())


async def test_an_address_removed_by_hand_is_told_and_repaired_with_all_it_took_along(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9))
    notices = host.kernel.notices(SCOPE)
    host.remove_address(ADDRESS)
    heard = await hear(notices, lambda heard: ADDRESS.key in heard.objects and heard.resync)
    assert heard.objects[ADDRESS.key] is None
    await reach(host.kernel, HOST | peer(9))


async def test_a_flushed_ruleset_is_told_and_repaired(host: Host) -> None:
    await reach(host.kernel, HostState.of(TABLE))
    notices = host.kernel.notices(SCOPE)
    host.flush_ruleset()
    heard = await hear(notices, lambda heard: TABLE.key in heard.objects)
    assert heard.objects[TABLE.key] is None
    assert heard.resync, "what was in it went with it"
    await reach(host.kernel, HostState.of(TABLE))
    await hear(notices, lambda heard: heard.objects.get(TABLE.key) == TABLE)


async def test_lost_notifications_ask_for_everything_once(host: Host) -> None:
    await reach(host.kernel, HOST)
    notices = host.kernel.notices(SCOPE)
    host.overflow()
    heard = await hear(notices, lambda heard: heard.resync)
    assert heard.lost
    await host.kernel.apply([Step("add", item) for item in peer(200)])
    heard = await hear(notices, lambda heard: all(heard.objects.get(item.key) == item for item in peer(200)))
    assert (heard.resync, heard.lost) == (False, False)


async def test_foreign_routes_and_tables_are_not_told(host: Host) -> None:
    await reach(host.kernel, HOST)
    notices = host.kernel.notices(SCOPE)
    host.add_route(FOREIGN)
    await host.kernel.apply(
        [Step("add", NftTable("somebody", BODY)), Step("add", Neighbour(IPAddress("192.0.2.7"), "02:00:00:00:00:07", "eth1"))]
    )
    await host.kernel.apply([Step("add", item) for item in peer(10)])
    heard = await hear(notices, lambda heard: Key("route", "10.5.10.0/24") in heard.objects)
    assert set(heard.objects) == set(peer(10).objects)
    assert (heard.resync, heard.default_route, heard.routed) == (False, False, {4})
    assert set(heard.links.values()) <= {"eth1"}  # whose carrier the kernel may tell of late


async def test_a_foreign_route_in_our_way_is_told_once_it_is_gone(host: Host) -> None:
    host.add_route(FOREIGN)
    notices = host.kernel.notices(SCOPE)
    host.remove(FOREIGN)
    heard = await hear(notices, lambda heard: FOREIGN.key in heard.objects)
    assert (heard.objects, heard.routed) == ({FOREIGN.key: None}, {4})


async def test_closing_ends_the_iteration(host: Host) -> None:
    notices = host.kernel.notices(SCOPE)

    async def listen() -> None:
        async for _ in notices:
            pass

    waiting = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await host.kernel.close()
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    await host.kernel.close()


# ---------------------------------------------------------------------------------------------------------- facts


async def test_a_new_address_of_the_uplink_is_told_as_facts(host: Host) -> None:
    notices = host.kernel.notices(SCOPE)
    host.add_uplink_address(InterfaceAddress(IPAddress("203.0.113.1"), 24))
    heard = await hear(notices, lambda heard: "eth1" in heard.links.values())
    assert (heard.resync, heard.lost) == (False, False)
    uplink = next(item for item in (await host.kernel.facts()).interfaces if item.name == "eth1")
    assert "203.0.113.1" in [str(address.address) for address in uplink.addresses]


async def test_facts_name_the_uplink_and_its_default_route(host: Host) -> None:
    facts = await host.kernel.facts()
    uplink = next(item for item in facts.interfaces if item.name == "eth1")
    found = {str(address.address): (address.prefixlen, address.scope) for address in uplink.addresses if address.scope == "global"}
    assert found == {"192.0.2.1": (24, "global"), "2001:db8::1": (64, "global")}
    assert (uplink.mtu, uplink.up) == (1500, True)
    assert [(route.version, route.index) for route in facts.default_routes] == [(4, uplink.index)]


async def test_route_to_says_device_source_and_gateway(host: Host) -> None:
    await reach(host.kernel, HOST | peer(9) | HostState.of(Route(IPNetwork("10.5.8.0/24"), kind="unreachable")))
    near = await host.kernel.route_to(IPAddress("192.0.2.9"))
    assert near is not None
    assert (near.dev, str(near.source), near.via) == ("eth1", "192.0.2.1", None)
    far = await host.kernel.route_to(IPAddress("10.5.9.4"))
    assert far is not None
    assert (far.dev, str(far.source), str(far.via)) == ("flannel.1", "10.5.72.0", "10.5.9.0")
    assert await host.kernel.route_to(IPAddress("10.5.8.4")) is None
    assert await host.kernel.route_to(IPAddress("2001:db8:ffff::1")) is None


# ----------------------------------------------------------------------------------------------------------- size


async def test_two_thousand_peers_while_others_get_their_turn(host: Host) -> None:
    peers = HostState.from_iterable(item for number in range(256, 2256) for item in peer(number))
    scope = replace(SCOPE, networks=(IPNetwork("10.0.0.0/8"),))
    await host.kernel.apply([Step("add", item) for item in HOST])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    started = time.monotonic()
    errors = await apply(host.kernel, *plan(peers, HostState()))
    took_s = time.monotonic() - started
    task.cancel()
    print(f"6,000 objects in {took_s * 1e3:.0f} ms, {turns} turns for others")
    assert errors == []
    assert took_s < 15
    assert turns > 20 or isinstance(host, FakeHost)
    observed = await host.kernel.observe(scope)
    assert observed.objects == (HOST | peers).objects


# ------------------------------------------------------------------------------------------- the real kernel alone


async def test_a_kernel_without_vxlan_names_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = NetlinkKernel()
    monkeypatch.setattr(kernel, "_transact", lambda channel, requests, first: {0: (errno.EOPNOTSUPP, "Unknown device type")})
    results = await kernel.apply([Step("add", replace(LINK, detail=Vxlan(1, "lo", IPAddress("192.0.2.1"))))])
    assert str(results[0].error) == "this kernel has no vxlan devices: load the module vxlan"
    await kernel.close()


@real_only
def test_lost_notifications_do_not_deafen_uvloop() -> None:
    """One POLLERR on a descriptor that stays watched, and uvloop never looks at it again."""

    async def scenario() -> None:
        host = RealHost()
        kernel = NetlinkKernel(notice_bytes=1 << 14)
        try:
            await kernel.apply([Step("add", item) for item in HOST])
            notices = kernel.notices(SCOPE)
            waiting = asyncio.create_task(hear(notices, lambda heard: heard.resync))
            await asyncio.sleep(0)
            host.overflow()
            await waiting
            for number in (201, 202):
                listening = asyncio.create_task(hear(notices, lambda heard: Key("route", f"10.5.{number}.0/24") in heard.objects))  # noqa: B023
                await asyncio.sleep(0)
                await kernel.apply([Step("add", item) for item in peer(number)])
                await listening
        finally:
            await kernel.close()
            await host.kernel.close()

    with fresh_namespace():
        uvloop.run(scenario())


async def test_the_kernel_holds_what_flanneld_would_have_made(real: RealHost) -> None:
    await reach(real.kernel, HOST | peer(9))
    shown = shell(
        "ip -d -o link show flannel.1; ip -o addr show dev flannel.1 scope global; ip route show dev flannel.1;"
        "ip neigh show dev flannel.1 nud permanent; bridge fdb show dev flannel.1"
    )
    for words in (
        "mtu 1450 ",
        "vxlan id 1 local 192.0.2.1 dev eth1 ",
        "dstport 8472 nolearning ",
        "noudp6zerocsumtx noudp6zerocsumrx",
        "inet 10.5.72.0/32 ",
        "10.5.9.0/24 via 10.5.9.0 proto 102 onlink",
        "10.5.9.0 lladdr 02:00:01:00:00:09 PERMANENT",
        "02:00:01:00:00:09 dst 198.18.0.9 self permanent",
    ):
        assert words in shown.replace("  ", " ")


async def test_a_route_with_a_metric_beside_ours_is_left_alone(real: RealHost) -> None:
    await reach(real.kernel, HOST)
    ip("route add 10.5.9.0/24 via 192.0.2.9 metric 100", "route add 10.5.3.0/24 dev flannel.1 metric 7 proto 102")
    await reach(real.kernel, HOST | peer(9))
    await reach(real.kernel, HOST)
    assert real.has_route(replace(FOREIGN, proto=BOOT_PROTOCOL))


async def test_a_route_that_somebody_replaced_is_told_as_gone(real: RealHost) -> None:
    await reach(real.kernel, HOST | peer(9))
    notices = real.kernel.notices(SCOPE)
    ip("route replace 10.5.9.0/24 via 192.0.2.9 proto 4")
    key = Key("route", "10.5.9.0/24")
    heard = await hear(notices, lambda heard: key in heard.objects)
    assert heard.objects[key] is None


async def test_a_device_that_left_a_bridge_is_not_gone(real: RealHost) -> None:
    await reach(real.kernel, HOST)
    notices = real.kernel.notices(SCOPE)
    ip("link add br0 type bridge", "link set flannel.1 master br0", "link set flannel.1 nomaster", "link set flannel.1 mtu 1400")
    heard = await hear(notices, lambda heard: heard.objects.get(LINK.key) == replace(LINK, mtu=1400))
    assert not heard.resync


async def test_a_multicast_vxlan_of_our_name_is_made_anew(real: RealHost) -> None:
    ip(
        "link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev eth1 local 192.0.2.1 dstport 8472 "
        "group 239.1.1.1 nolearning"
    )
    assert [step.op for step in plan(HostState.of(LINK), await real.kernel.observe(SCOPE), SCOPE) if step.key == LINK.key] == [
        "remake"
    ]
    await reach(real.kernel, HOST)


async def test_a_table_written_by_hand_in_nfts_own_words_is_ours(real: RealHost) -> None:
    shell("nft -f -", f"table inet flannelpy {{\n{BODY}}}\n")
    assert (await real.kernel.observe(SCOPE)).get(TABLE.key) == TABLE


async def test_a_table_in_other_words_than_nfts_is_known_again(real: RealHost) -> None:
    body = BODY.replace("priority filter", "priority 0").replace("10.5.0.0/16", "10.5.0.0-10.5.255.255")
    table = NftTable("flannelpy", body)
    assert await apply(real.kernel, Step("add", table)) == []
    assert (await real.kernel.observe(SCOPE)).get(table.key) == table
    shell("nft add rule inet flannelpy forward ip daddr 10.5.0.0/16 drop")
    assert (await real.kernel.observe(SCOPE)).get(table.key) != table


async def test_without_privilege_the_error_says_what_is_needed(real: RealHost) -> None:
    kernel = NetlinkKernel()
    os.seteuid(65534)
    try:
        results = await kernel.apply([Step("add", LINK), *(Step("add", item) for item in peer(9))])
    finally:
        os.seteuid(0)
        await kernel.close()
    assert code(results) == errno.EPERM
    assert "CAP_NET_ADMIN" in str(results[0].error)


# ---------------------------------------------------------------------------------------------------------------- FOU

TUNNEL = Link("flannel0", "ipip", 1472, detail=Ipip(IPAddress("192.0.2.1"), 8285, checksum=True))
TUNNEL_SCOPE = replace(SCOPE, links=frozenset({"flannel0"}), sysctls=frozenset(), fou_ports=frozenset({8285}))
TUNNEL_HOST = HostState.of(
    Fou(8285),
    TUNNEL,
    Address(IPNetwork("10.5.72.0/32"), "flannel0"),
    Route(IPNetwork("10.5.0.0/16"), kind="unreachable"),
    Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), "flannel0", onlink=True),
)
TRIAL = HostState.of(Fou(8285), Link("flannelpy-try", "ipip", 1472, up=False, detail=Ipip(IPAddress("127.255.255.254"), 8285)))


@pytest_asyncio.fixture
async def fou_host(host: Host) -> Host:
    """A host whose kernel has fou and ipip; tests/kernels boots one that has."""
    refused = [result.error for result in await host.kernel.rehearse(plan(TRIAL, HostState())) if result.error]
    if refused:
        pytest.skip(f"{refused[0]}; tests/kernels asks one that has it")
    return host


async def test_a_rehearsal_says_what_cannot_be_and_leaves_nothing(host: Host) -> None:
    results = await host.kernel.rehearse(plan(TRIAL, HostState()))
    assert [result.step.key for result in results] == [Key("fou", "8285"), Key("link", "flannelpy-try")]
    assert all(result.error is None or "this kernel has no" in str(result.error) for result in results)
    scope = replace(TUNNEL_SCOPE, links=frozenset({"flannelpy-try"}))
    assert len(await host.kernel.observe(scope)) == 0


async def test_a_rehearsal_of_what_every_kernel_can(host: Host) -> None:
    blackhole = Route(IPNetwork("10.5.77.0/24"), kind="blackhole")
    assert [result.error for result in await host.kernel.rehearse([Step("add", blackhole)])] == [None]
    assert len(await host.kernel.observe(SCOPE)) == 0


async def test_without_a_namespace_of_its_own_a_rehearsal_is_undone(host: Host) -> None:
    here, gone = Route(IPNetwork("10.5.77.0/24"), kind="blackhole"), Route(IPNetwork("10.5.78.0/24"), IPAddress("10.5.3.1"))
    fresh = Route(IPNetwork("10.5.79.0/24"), kind="blackhole")
    assert await apply(host.kernel, Step("add", here)) == []
    results = await rehearse_here(host.kernel, [Step("add", item) for item in (here, gone, fresh)], undo=True)
    assert [result.error is None for result in results] == [True, False, True]
    assert list(await host.kernel.observe(SCOPE)) == [here]


async def test_a_port_its_device_and_what_hangs_on_it_come_and_go(fou_host: Host) -> None:
    kernel = fou_host.kernel
    assert await apply(kernel, *plan(TUNNEL_HOST, HostState())) == []
    observed = await kernel.observe(TUNNEL_SCOPE)
    assert observed == TUNNEL_HOST
    assert len(await kernel.observe(replace(TUNNEL_SCOPE, fou_ports=frozenset({9000})), [Key("fou", "9000")])) == 0
    assert await apply(kernel, *plan(HostState(), observed, TUNNEL_SCOPE)) == []
    assert len(await kernel.observe(TUNNEL_SCOPE)) == 0


@pytest.mark.parametrize("wanted", [True, False])
async def test_the_outer_checksum_is_changed_below_what_hangs_on_the_device(fou_host: Host, wanted: bool) -> None:
    """The device stays, with its address and routes: an upgrade loses no packet by it."""
    kernel = fou_host.kernel
    detail = Ipip(IPAddress("192.0.2.1"), 8285, checksum=not wanted)
    before = HostState.from_iterable(replace(TUNNEL, detail=detail) if item == TUNNEL else item for item in TUNNEL_HOST)
    assert await apply(kernel, *plan(before, HostState())) == []
    after = HostState.from_iterable(
        replace(TUNNEL, detail=replace(detail, checksum=wanted)) if item == TUNNEL else item for item in TUNNEL_HOST
    )
    steps = plan(after, await kernel.observe(TUNNEL_SCOPE), TUNNEL_SCOPE)
    assert [(step.op, step.key) for step in steps] == [("change", TUNNEL.key)]
    assert await apply(kernel, *steps) == []
    assert await kernel.observe(TUNNEL_SCOPE) == after


async def test_a_tunnel_without_a_port_is_one_of_its_own(fou_host: Host) -> None:
    """Plain ipip, made, observed, made anew where its address or encapsulation is another, and removed."""
    kernel = fou_host.kernel
    plain = Link("flannel.ipip", "ipip", 1480, detail=Ipip(IPAddress("192.0.2.1"), ttl=0))
    scope = replace(TUNNEL_SCOPE, links=frozenset({plain.name}))
    route = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), plain.name, onlink=True)
    wanted = HostState.of(plain, Address(IPNetwork("10.5.72.0/32"), plain.name), route)
    for before in (None, Ipip(IPAddress("192.0.2.7"), ttl=0), Ipip(IPAddress("192.0.2.1")), Ipip(IPAddress("192.0.2.1"), 8285)):
        if before is not None:
            assert await apply(kernel, Step("remake", replace(plain, detail=before))) == []
        assert await apply(kernel, *plan(wanted, await kernel.observe(scope), scope)) == []
        assert await kernel.observe(scope) == wanted
    assert await apply(kernel, *plan(HostState(), wanted, scope)) == []
    assert len(await kernel.observe(scope)) == 0


async def test_a_port_is_exclusive_and_its_removal_is_not(fou_host: Host) -> None:
    port = Fou(8285)
    assert await apply(fou_host.kernel, Step("add", port)) == []
    assert code(list(await fou_host.kernel.apply([Step("add", port)]))) == errno.EADDRINUSE
    assert await apply(fou_host.kernel, Step("remove", port, port), Step("remove", port, port)) == []


async def test_a_port_of_another_protocol_is_changed(fou_host: Host) -> None:
    assert await apply(fou_host.kernel, Step("add", Fou(8285, 41)), Step("change", Fou(8285), Fou(8285, 41))) == []
    assert list(await fou_host.kernel.observe(TUNNEL_SCOPE)) == [Fou(8285)]


WIRE = {
    "udp": GuardedPort("udp", 8285, inner=8),
    "ipip": GuardedPort("ipip", 4, inner=0, datagram=False),
    "vxlan": GuardedPort("vxlan", 8472, inner=30, ethertype=28, vni=1),
}
SIDES = [
    Side(IPNetwork("10.5.0.0/16"), IPNetwork("10.5.0.0/24"), 24),
    Side(IPNetwork("fd05::/48"), IPNetwork("fd05::/64"), 64),
]


def guard_state(
    guard: Guard, peers: Iterable[Lease], options: FirewallOptions | None = None, among: Iterable[Side] = SIDES
) -> HostState:
    peers = list(peers)
    sides = [with_lengths(side, peers) for side in among if side.version in guard.families]
    state = guard_sets(guard, "flannelpy", sides) | firewall(
        "flannelpy", [], options or FirewallOptions(), guard_chains(guard, sides)
    )
    elements = {item.key: item for lease in peers for item in guard_elements(guard, "flannelpy", sides, lease)}
    return state | HostState.from_iterable(elements.values())


def with_lengths(side: Side, peers: Iterable[Lease]) -> Side:
    nets = [lease.subnet if side.version == 4 else lease.subnet6 for lease in peers]
    return replace(side, others=tuple(sorted({net.prefixlen for net in nets if net is not None} - {side.length})))


def guarded_peer(number: int, length: int = 24) -> Lease:
    public6, subnet6 = IPAddress(f"2001:db8::{number:x}"), IPNetwork(f"fd05:0:0:{number:x}::/64")
    return Lease(IPNetwork(f"10.5.{number}.0/{length}"), LeaseAttrs(IPAddress(f"192.0.2.{number}"), public6), subnet6)


@pytest.mark.parametrize("rule", ["default", "strict", "peers"])
@pytest.mark.parametrize("kind", ["udp", "ipip", "vxlan"])
@pytest.mark.parametrize("count", [0, 1, 250])
async def test_a_guard_and_who_it_lets_in_come_and_go(host: Host, rule: SourceRule, kind: str, count: int) -> None:
    guard = Guard(WIRE[kind], rule, (4, 6) if kind == "vxlan" else (4,))
    state = guard_state(guard, (guarded_peer(number, 24 if number % 10 else 26) for number in range(1, count + 1)))
    assert await apply(host.kernel, *plan(state, HostState())) == []
    observed = await host.kernel.observe(SCOPE)
    assert plan(state, observed) == ()
    assert observed == state
    assert await apply(host.kernel, *plan(HostState(), observed)) == []
    assert len(await host.kernel.observe(SCOPE)) == 0


async def test_a_guard_is_written_as_nft_prints_it(real: RealHost) -> None:
    plain, framed = [(kind, rule) for kind in ("udp", "ipip") for rule in ("default", "strict")], ("strict", "peers", "default")
    for kind, rule in (*plain, *(("vxlan", rule) for rule in framed)):
        guard = Guard(WIRE[kind], cast(SourceRule, rule), (4, 6) if kind == "vxlan" else (4,))
        state = guard_state(guard, [guarded_peer(3), guarded_peer(7, 26)])
        assert await apply(real.kernel, *plan(state, await real.kernel.observe(SCOPE))) == []
        fresh = NetlinkKernel()
        assert plan(state, await fresh.observe(SCOPE)) == ()
        await fresh.close()


@pytest.mark.parametrize(("length", "length6"), [(22, 60), (25, 62), (26, 52), (30, 110)])
async def test_a_guard_of_subnets_of_no_whole_bytes_is_written_as_nft_prints_it(real: RealHost, length: int, length6: int) -> None:
    sides = [
        Side(IPNetwork("10.5.0.0/16"), IPNetwork(f"10.5.0.0/{length}"), length),
        Side(IPNetwork("fd05::/40"), IPNetwork(f"fd05::/{length6}"), length6),
    ]
    for kind, rule in (("udp", "default"), ("ipip", "strict"), ("vxlan", "default"), ("vxlan", "strict")):
        guard = Guard(WIRE[kind], cast(SourceRule, rule), (4, 6) if kind == "vxlan" else (4,))
        peers = [
            Lease(IPNetwork(f"10.5.{4 * number}.0/{length}"), LeaseAttrs(IPAddress(f"192.0.2.{number}"), at6), net6)
            for number in (3, 7)
            for at6, net6 in [(IPAddress(f"2001:db8::{number}"), IPNetwork(f"fd05:0:{number:x}::/{length6}"))]
        ]
        state = guard_state(guard, [*peers, guarded_peer(60)], among=sides)
        assert await apply(real.kernel, *plan(state, await real.kernel.observe(SCOPE))) == []
        fresh = NetlinkKernel()
        assert plan(state, await fresh.observe(SCOPE)) == ()
        await fresh.close()


async def test_a_table_that_is_written_anew_keeps_who_is_in_its_sets(host: Host) -> None:
    guard = Guard(WIRE["vxlan"], "default")
    state = guard_state(guard, [guarded_peer(3)])
    assert await apply(host.kernel, *plan(state, HostState())) == []
    bare = firewall("flannelpy", [], FirewallOptions(masquerade=True), guard_chains(guard, SIDES[:1]))
    (table,) = (item for item in bare if isinstance(item, NftTable))
    assert await apply(host.kernel, Step("change", table)) == []
    observed = await host.kernel.observe(SCOPE)
    assert {item for item in observed if isinstance(item, NftElement)} == {item for item in state if isinstance(item, NftElement)}
    assert observed.get(table.key) == table


async def test_what_was_counted_stays_where_the_rules_are_written_anew(real: RealHost) -> None:
    def table(*lines: str) -> NftTable:
        counters = "\tcounter inner_source {\n\t}\n\n\tcounter outer_source {\n\t}\n"
        rules = ["type filter hook output priority filter; policy accept;", *lines]
        return NftTable("flannelpy", f"{counters}\n{chain('seen', rules)}")

    first = table('udp dport 9 counter name "inner_source"')
    assert await apply(real.kernel, Step("add", first)) == []
    shell("ip link set lo up")
    for sent in (1, 3):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(sent):
                sender.sendto(b"", ("127.0.0.1", 9))
    assert await real.kernel.counted("flannelpy") == {"inner_source": 4, "outer_source": 0}
    second = table('udp dport 9 counter name "inner_source" drop', "ip saddr 10.5.0.0/16 accept")
    assert await apply(real.kernel, Step("change", second)) == []
    assert await real.kernel.counted("flannelpy") == {"inner_source": 4, "outer_source": 0}
    assert (await real.kernel.observe(SCOPE)).get(second.key) == second
    assert await apply(real.kernel, Step("change", NftTable("flannelpy", BODY))) == []
    assert await real.kernel.counted("flannelpy") == {}


@pytest.mark.parametrize("sources", [1, MOST_STRANGERS, MOST_STRANGERS + 30])
async def test_what_strangers_send_is_counted_by_source_up_to_a_bound_and_dropped(real: RealHost, sources: int) -> None:
    """No plan is disturbed by it; it is counted on where rules are written anew, and by an agent that begins then."""
    guard = Guard(WIRE["vxlan"], "default")
    state = guard_state(guard, [guarded_peer(3)])
    assert await apply(real.kernel, *plan(state, await real.kernel.observe(SCOPE))) == []
    shell("ip link set lo up; ip addr add 127.1.0.0/16 dev lo; ip addr add 192.0.2.3/32 dev lo")
    frame = (0x08000000).to_bytes(4, "big") + (1 << 8).to_bytes(4, "big") + bytes(64)

    def send(source: str, count: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            for _ in range(count):
                sender.sendto(frame, ("127.0.0.1" if source.startswith("127") else "192.0.2.3", 8472))

    for at in range(sources):
        send(f"127.1.0.{at + 1}", 2)
    send("192.0.2.3", 3)
    rewritten = guard_state(guard, [guarded_peer(4), guarded_peer(3)], FirewallOptions(masquerade=True))
    assert await apply(real.kernel, *plan(rewritten, await real.kernel.observe(SCOPE))) == []
    fresh = NetlinkKernel()
    counted = await fresh.counted("flannelpy")
    assert (counted["outer_source"], counted["inner_protocol"]) == (2 * sources, 3)
    apart = await fresh.counted_by_source("flannelpy", strangers(4))
    assert len(apart) == min(sources, MOST_STRANGERS)
    assert set(apart.values()) == {2}
    assert set(apart) <= {f"127.1.0.{at + 1}" for at in range(sources)}
    assert await fresh.counted_by_source("flannelpy", refused(4)) == {"192.0.2.3": 3}
    assert await fresh.counted_by_source("flannelpy", "nothing") == {}
    assert plan(rewritten, await fresh.observe(SCOPE)) == ()
    await fresh.close()


async def test_elements_are_heard_of_and_one_that_cannot_be_does_not_keep_the_others_out(host: Host) -> None:
    guard = Guard(WIRE["vxlan"], "default")
    assert await apply(host.kernel, *plan(guard_state(guard, []), HostState())) == []
    notices = host.kernel.notices(SCOPE)
    good = [item for item in guard_state(guard, [guarded_peer(3)]) if isinstance(item, NftElement)]
    nowhere = NftElement("flannelpy", "nowhere", bytes(4))
    results = await host.kernel.apply([Step("add", item) for item in (good[0], nowhere, good[1])])
    assert [None if result.error is None else result.error.code for result in results] == [None, errno.ENOENT, None]
    heard = await hear(aiter(notices), lambda notice: all(item.key in notice.objects for item in good))
    assert [heard.objects[item.key] for item in good] == good
    assert [one.error for one in await host.kernel.apply([Step("remove", item, item) for item in (*good, *good)])] == [None] * 4
    heard = await hear(aiter(notices), lambda notice: all(item.key in notice.objects for item in good))
    assert [heard.objects[item.key] for item in good] == [None, None]
    notices.close()
