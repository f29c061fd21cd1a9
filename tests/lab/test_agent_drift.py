"""Does what we programmed stay, whoever touches it, and does what others made stay theirs?

c1 10.1.72.2 - h1 192.168.50.11 ==== vxlan 1 ==== h2 192.168.50.12 - c2 10.1.9.2         h1's kernel is tampered with
"""

from __future__ import annotations

import signal

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    Log,
    Vtep,
    lab_name,
    losing_nothing,
    mac,
    neighbours,
    no_traceback,
    put_leased,
    remember_subnet,
    routes,
    shell,
    until,
    until_gone,
    until_programmed,
    until_said,
    vtep,
)

WITHIN_S = 2.0


async def start(lab: Lab) -> tuple[Vtep, Vtep]:
    """Two hosts with subnets that a test can name; what they are to each other."""
    remember_subnet(lab.host(1), "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(lab.host(2), "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    return await vtep(lab.host(1)), await vtep(lab.host(2))


async def whole(lab: Lab) -> list[str]:
    """Everything on h1 that is ours, without counters and indexes."""
    return await shell(
        lab.host(1),
        "ip -4 -br addr show flannel.1; ip -d link show flannel.1 | tail -n +2 | sed 's/gso_max.*//';"
        "ip link show flannel.1 | sed 's/^[0-9]*: //';"
        "ip route show proto 102; ip neigh show dev flannel.1; bridge fdb show dev flannel.1; nft -s list table inet flannelpy",
    )


ROUTE, NEIGHBOUR, ADDRESS, DEVICE, TABLE = "10.1.9.0/24", "10.1.9.0", "10.1.72.0/32", "flannel.1", "flannelpy"
# One lab for each group. A key is repaired at once a few times only, and equal lines that follow each other are written once.
TAMPERED = {
    "routes and rules": [
        ("ip route del 10.1.9.0/24", ROUTE),
        ("nft flush ruleset", TABLE),
        ("ip route replace 10.1.9.0/24 via 10.1.99.0 dev flannel.1 onlink proto 102", ROUTE),
        ("nft delete table inet flannelpy", TABLE),
        ("ip route replace 10.1.9.0/24 dev flannel.1", ROUTE),
        ("nft flush chain inet flannelpy forward", TABLE),
        ("nft flush set inet flannelpy hosts4", TABLE),
        ("nft add element inet flannelpy hosts4 '{ 192.168.50.99 }'", TABLE),
        ("nft delete element inet flannelpy vxlan4_24 '{ 192.168.50.12 . 0x0a0109 }'", TABLE),
        ("ip route flush dev flannel.1; true", ROUTE),
        ("nft add rule inet flannelpy forward drop", TABLE),
    ],
    "neighbours, fdb and addresses": [
        ("ip neigh del 10.1.9.0 dev flannel.1", NEIGHBOUR),
        ("bridge fdb del MAC dev flannel.1", "MAC"),
        ("ip addr del 10.1.72.0/32 dev flannel.1", ADDRESS),
        ("ip neigh replace 10.1.9.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent", NEIGHBOUR),
        ("bridge fdb replace MAC dev flannel.1 dst 192.168.50.99 self permanent", "MAC"),
        ("ip neigh flush dev flannel.1 nud permanent; true", NEIGHBOUR),
        ("ip addr flush dev flannel.1; true", ADDRESS),
    ],
    "the device": [
        ("ip link set flannel.1 down", DEVICE),
        ("ip link set flannel.1 mtu 1400", DEVICE),
        ("ip link set flannel.1 address 02:00:00:00:00:aa", DEVICE),
        ("ip link del flannel.1", DEVICE),
        ("ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dev eth1 local 192.168.50.11 dstport 4789", DEVICE),
    ],
}


@pytest.mark.parametrize("group", TAMPERED)
@pytest.mark.topology(hosts=2)
async def test_whatever_is_changed_is_put_right_and_named(lab: Lab, group: str) -> None:
    """Each line of a group, then everything as before, a line that names it, and a ping."""
    one = lab.host(1)
    own, peer = await start(lab)
    before = await whole(lab)
    faults = []
    for given in TAMPERED[group]:
        command, name = (text.replace("MAC", peer.mac) for text in given)
        log = Log.from_now(one)
        if ";" in command:  # with nobody in between: a flush begins again as long as it finds something
            one.agent.signal(signal.SIGSTOP)
        outcome = await one.attempt("sh", "-c", command)
        one.agent.signal(signal.SIGCONT)
        assert outcome.code == 0, f"{command}: {outcome.stderr}"

        async def as_before() -> bool:
            return await whole_or_nothing(lab) == before

        try:
            await until(as_before, WITHIN_S, f"{command} is put right")
            await until_said(log, name)
        except AssertionError as error:
            faults.append(f"{error}; different: {sorted({*before} ^ {*await whole_or_nothing(lab)})}; log: {log.text}")
            await one.agent.restart()
            continue
        if log.lines("error:"):
            faults.append(f"{command}: an error in the log: {log.text}")
        if not (await lab.ping("c1", "c2")).ok:
            faults.append(f"{command}: no ping")
    assert not faults, "\n".join(faults)
    assert await vtep(one) == own
    assert lab.etcd.get(own.key) == own.value


@pytest.mark.topology(hosts=2)
async def test_somebody_who_changes_it_again_and_again_is_named_and_does_not_win(lab: Lab) -> None:
    """No fight at full speed: it is said once, and what is ours comes back when they stop."""
    one = lab.host(1)
    _, peer = await start(lab)
    log = Log.from_now(one)
    for _ in range(12):
        await one.attempt("ip", "route", "del", peer.subnet)
        await until_there_or_told(lab, peer, log)
    told = log.begun("error:", peer.subnet)
    assert len(told) == 1, log.text
    await until_programmed(one, peer)
    assert (await lab.ping("c1", "c2")).ok


async def until_there_or_told(lab: Lab, peer: Vtep, log: Log) -> None:
    """The route is back, or the agent says that it waits."""

    async def there() -> bool:
        return bool(log.begun("error:", peer.subnet)) or not await peer.missing(lab.host(1))

    await until(there, 5, "a route, or a word")


async def whole_or_nothing(lab: Lab) -> list[str]:
    try:
        return await whole(lab)
    except Exception as error:  # noqa: BLE001 - a device that is away for a moment
        return [str(error)]


@pytest.mark.topology(hosts=2)
async def test_what_others_have_made_is_left_alone(lab: Lab) -> None:
    one = lab.host(1)
    await shell(one, "ip route add 198.51.100.0/24 via 192.168.50.12; ip route add 10.1.250.0/24 via 192.168.50.12 proto static")
    await one.exec("nft", "-f", "-", stdin="table inet theirs { chain c { type filter hook forward priority 5; counter; }; }")
    own, peer = await start(lab)
    late = "ip route add 203.0.113.128/25 via 192.168.50.12; ip route add 10.1.251.0/24 via 192.168.50.12 proto bird"
    await shell(
        one, f"{late}; ip addr add 172.30.0.1/32 dev flannel.1; ip neigh add 192.168.50.77 lladdr 02:00:00:00:00:77 dev eth1"
    )
    theirs = [
        "198.51.100.0/24 via 192.168.50.12 dev eth1",
        "10.1.250.0/24 via 192.168.50.12 dev eth1 proto static",
        "203.0.113.128/25 via 192.168.50.12 dev eth1",
        "10.1.251.0/24 via 192.168.50.12 dev eth1 proto bird",
    ]

    async def untouched() -> bool:
        tables = await one.exec("nft", "list", "tables")
        kept = [line for line in theirs if line in await routes(one)]
        extra = "172.30.0.1" in await one.exec("ip", "-4", "addr", "show", "dev", "flannel.1")
        return kept == theirs and "table inet theirs" in tables and extra and bool(await neighbours(one, "eth1"))

    assert await untouched()
    # A repair, a full round (a device that is made anew), a restart: each looks at everything.
    await one.exec("ip", "route", "del", peer.subnet)
    await until_programmed(one, peer)
    assert await untouched()
    await one.agent.restart()
    assert await untouched()
    await one.agent.kill()
    await one.start_agent()
    assert await untouched()
    assert await vtep(one) == own


@pytest.mark.topology(hosts=2)
async def test_a_foreign_route_in_the_way_is_said_and_not_overwritten(lab: Lab) -> None:
    one = lab.host(1)
    _, peer = await start(lab)
    late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    await one.exec("ip", "route", "add", late.subnet, "via", "192.168.50.12", "proto", "static")
    log = Log.from_now(one)
    async with losing_nothing(lab, "c1", "c2"):
        put_leased(lab, late.key, late.value)
        await until_said(log, "error:", late.subnet, "is there and is not ours")
        other = Vtep("10.1.78.0/24", "192.168.50.78", "02:00:00:00:00:78")
        put_leased(lab, other.key, other.value)
        await until_programmed(one, other)
    assert await routes(one, late.subnet) == [f"{late.subnet} via 192.168.50.12 dev eth1 proto static"]
    assert len(log.begun("error:", late.subnet)) == 1
    # It goes: the peer is programmed, and that is told.
    await one.exec("ip", "route", "del", late.subnet)
    await until_programmed(one, late, timeout_s=WITHIN_S)
    await until(lambda: [line for line in log.lines(late.subnet) if "resolved: " in line], 2, "its end is told", lambda: log.text)
    assert await peer.missing(one) == []
    # A foreign one that comes while the peer's is there.
    await one.exec("ip", "route", "replace", late.subnet, "via", "192.168.50.12", "proto", "static")
    again = Log.from_now(one)
    await until_said(again, "error:", late.subnet)
    assert await routes(one, late.subnet) == [f"{late.subnet} via 192.168.50.12 dev eth1 proto static"]
    # The peer goes: what is not ours stays.
    lab.etcd.delete(late.key)
    await until(lambda: neighbours_without(lab, late), 6, "the peer is gone")
    assert await routes(one, late.subnet) == [f"{late.subnet} via 192.168.50.12 dev eth1 proto static"]


async def neighbours_without(lab: Lab, peer: Vtep) -> bool:
    return peer.neighbour not in await neighbours(lab.host(1))


@pytest.mark.topology(hosts=2)
async def test_a_foreign_device_with_our_vni_is_said_and_left_alone(lab: Lab) -> None:
    one = lab.host(1)
    own, peer = await start(lab)
    log = Log.from_now(one)
    await one.exec("ip", "link", "set", "flannel.1", "name", "theirs")
    await until_said(log, "error:", "flannel.1")
    assert "theirs" in await one.exec("ip", "-br", "link")
    await one.exec("ip", "link", "del", "theirs")
    await until_programmed(one, peer)
    assert await mac(one) == own.mac
    assert (await lab.ping("c1", "c2")).ok


@pytest.mark.topology(hosts=2)
async def test_an_uplink_that_was_down_has_its_peers_again(lab: Lab) -> None:
    """eth1 down flushes every route over it, and the vxlan device stays: nothing else puts the direct ones back."""
    one = lab.host(1)
    _, peer = await start(lab)
    before = await whole(lab)
    await one.exec("ip", "link", "set", "eth1", "down")
    await one.exec("ip", "link", "set", "eth1", "up")

    async def answered() -> bool:
        return (await lab.ping("c1", "c2", wait_s=0.3)).ok

    await until(answered, 5, "a ping after eth1 came back", lambda: Log.of(one).text)
    assert await peer.missing(one) == []
    assert await whole(lab) == before


@pytest.mark.topology(hosts=2, backend="host-gw")
async def test_host_gw_routes_come_back_after_the_link_was_down(lab: Lab) -> None:
    one, two = lab.host(1), lab.host(2)
    await lab.start_agents()
    await lab.connect_containers()
    route = f"{two.subnet} via 192.168.50.12 dev eth1 proto 102"
    assert route in await routes(one)
    await one.exec("ip", "link", "set", "eth1", "down")
    assert route not in await routes(one)
    await one.exec("ip", "link", "set", "eth1", "up")

    async def back() -> bool:
        return route in await routes(one)

    await until(back, WITHIN_S, "the route is back", lambda: Log.of(one).text)
    assert (await lab.ping("c1", "c2", wait_s=3)).ok
    await one.exec("ip", "route", "del", str(two.subnet))
    await until(back, WITHIN_S, "the route is back", lambda: Log.of(one).text)


@pytest.mark.topology(hosts=2)
async def test_the_mac_stays_when_the_device_and_the_state_in_the_kernel_are_lost(lab: Lab) -> None:
    """As after a reboot: no device, no routes, no /run; the peers need not learn anything."""
    one = lab.host(1)
    own, peer = await start(lab)
    value = lab.etcd.get(own.key)
    await one.agent.kill()
    await shell(one, "ip link del flannel.1; nft flush ruleset")
    await one.start_agent()
    await until_programmed(one, peer)
    assert await mac(one) == own.mac
    assert lab.etcd.get(own.key) == value
    assert await own.missing(lab.host(2)) == []
    assert (await lab.ping("c1", "c2")).ok
    await until_gone(one, Vtep("10.1.251.0/24", "192.0.2.1", "02:00:00:00:00:01"))
