"""Can a host move from flanneld to flannelpy, and share a cluster with it, without losing a packet?

c1 10.1.72.2 - h1 192.168.50.11 ==== vxlan 1 / host-gw ==== h2 192.168.50.12 - c2 10.1.9.2         etcd apart

What a flanneld leaves behind is made by hand with ip, bridge and etcdctl (flannel-compat 9.1, 9.2, appendix A).
"""

from __future__ import annotations

import json

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    PREFIX,
    SUBNETS,
    Log,
    Vtep,
    fdb,
    lab_name,
    lease_of,
    losing_nothing,
    neighbours,
    no_traceback,
    put_leased,
    record,
    remember_subnet,
    routes,
    settled_overlay,
    shell,
    until,
    until_gone,
    until_programmed,
    until_said,
    vtep,
)

ONE = Vtep("10.1.72.0/24", "192.168.50.11", "02:f1:a2:5e:00:01")
TWO = Vtep("10.1.9.0/24", "192.168.50.12", "02:f1:a2:5e:00:02")
STALE = Vtep("10.1.200.0/24", "192.168.50.99", "02:f1:a2:5e:00:99")
"""A peer that vanished while flanneld was down: flanneld never cleans up after it."""


async def leave_vxlan(lab: Lab, host: Host, own: Vtep, *peers: Vtep) -> None:
    """Kernel, file and key as flanneld makes them."""
    words = [
        f"ip link add flannel.1 address {own.mac} mtu 1450 txqueuelen 0 "
        f"type vxlan id 1 dev eth1 local {own.address} dstport 8472 nolearning",
        "echo 0 > /proc/sys/net/ipv6/conf/flannel.1/accept_ra",
        f"ip addr add {own.base}/32 dev flannel.1",
        "ip link set flannel.1 up",
    ]
    for peer in peers:
        words += [
            f"ip neigh replace {peer.base} lladdr {peer.mac} dev flannel.1 nud permanent",
            f"bridge fdb replace {peer.mac} dev flannel.1 dst {peer.address} self permanent",
            f"ip route replace {peer.subnet} via {peer.base} dev flannel.1 onlink",
        ]
    await shell(host, " && ".join(words))
    remember_subnet(host, own.subnet, "10.1.0.0/16")
    put_leased(lab, own.key, own.value)


@pytest.mark.topology(hosts=2)
async def test_what_a_flanneld_left_is_taken_over_without_a_lost_packet(lab: Lab) -> None:
    one, two = lab.host(1), lab.host(2)
    await leave_vxlan(lab, one, ONE, TWO, STALE)
    await leave_vxlan(lab, two, TWO, ONE)
    await lab.connect_containers()
    assert f"{TWO.subnet} via {TWO.base} dev flannel.1 onlink" in await routes(one)  # proto boot, which ip does not print
    index = await shell(one, "ip -o link show flannel.1 | cut -d: -f1")
    async with losing_nothing(lab, "c1", "c2"):
        await one.start_agent()
        await until_programmed(one, TWO)  # the route says proto 102 now
        await until_gone(one, STALE)
        await two.start_agent()
        await until_programmed(two, ONE)
    for host, own, peer in ((one, ONE, TWO), (two, TWO, ONE)):
        assert await vtep(host) == own
        assert lab.etcd.get(own.key) == own.value
        assert await routes(host, "dev flannel.1") == [peer.route.replace(" dev flannel.1", "")]
        assert await neighbours(host) == [peer.neighbour]
        assert await fdb(host) == [peer.fdb]
    assert len(lab.etcd.keys(SUBNETS)) == 2
    # The same device, not one like it.
    assert await shell(one, "ip -o link show flannel.1 | cut -d: -f1") == index


@pytest.mark.topology(hosts=2)
async def test_a_foreign_route_and_a_foreign_neighbour_survive_the_take_over(lab: Lab) -> None:
    one = lab.host(1)
    await leave_vxlan(lab, one, ONE, TWO, STALE)
    await shell(one, "ip route add 198.51.100.0/24 via 192.168.50.12 && ip route add 10.1.201.0/24 via 192.168.50.12 proto static")
    await shell(one, "ip neigh add 192.168.50.99 lladdr 02:00:00:00:00:99 dev eth1 nud permanent")
    await one.start_agent()
    await until_gone(one, Vtep(STALE.subnet, "192.0.2.1", STALE.mac))
    assert "198.51.100.0/24 via 192.168.50.12 dev eth1" in await routes(one)
    assert "10.1.201.0/24 via 192.168.50.12 dev eth1 proto static" in await routes(one)
    assert "192.168.50.99 lladdr 02:00:00:00:00:99 PERMANENT" in await neighbours(one, "eth1")


@pytest.mark.topology(hosts=2, backend="host-gw")
async def test_the_routes_of_a_host_gw_flanneld_are_adopted(lab: Lab) -> None:
    one = lab.host(1)
    for host, own, peer in ((one, ONE, TWO), (lab.host(2), TWO, ONE)):
        await shell(host, f"ip route add {peer.subnet} via {peer.address} dev eth1")
        remember_subnet(host, own.subnet, "10.1.0.0/16")
        value = {"PublicIP": own.address, "PublicIPv6": None, "BackendType": "host-gw"}
        put_leased(lab, own.key, json.dumps(value, separators=(",", ":")))
    await lab.connect_containers()
    assert f"{TWO.subnet} via {TWO.address} dev eth1" in await routes(one)
    async with losing_nothing(lab, "c1", "c2"):
        await lab.start_agents()
    assert await routes(one, "10.1.9.0/24") == ["10.1.9.0/24 via 192.168.50.12 dev eth1 proto 102"]
    assert await routes(lab.host(2), "10.1.72.0/24") == ["10.1.72.0/24 via 192.168.50.11 dev eth1 proto 102"]
    assert lab.etcd.keys(SUBNETS) == [ONE.key, TWO.key]


@pytest.mark.topology(hosts=2)
async def test_a_flanneld_as_a_peer_renews_changes_its_mac_and_leaves(lab: Lab) -> None:
    """h2 is the flanneld: its kernel made by hand, its key put by etcdctl."""
    one, two = lab.host(1), lab.host(2)
    remember_subnet(one, ONE.subnet, "10.1.0.0/16")
    await one.start_agent()
    mine = await vtep(one)
    await leave_vxlan(lab, two, TWO, mine)
    await until_programmed(one, TWO)
    await lab.connect_containers()
    watching = one.directory / "monitor.log"
    monitor = one.namespace.spawn("ip monitor", ["ip", "monitor", "route", "neigh"], log=watching, lasting=False)
    try:
        # The daily renewal: a new lease and the same value again. Then another peer comes, so that we know it was seen.
        log = Log.from_now(one)
        async with losing_nothing(lab, "c1", "c2"):
            put_leased(lab, TWO.key, TWO.value)
            put_leased(lab, STALE.key, STALE.value)
            await until_programmed(one, STALE)
            await until(lambda: STALE.base in watching.read_text(), 2, "the kernel's notice")
        assert TWO.mac not in watching.read_text()
        assert TWO.base not in watching.read_text()
        assert log.lines(TWO.base) == []
    finally:
        await monitor.kill()
    # It lost its device and made another: the same key, another MAC.
    changed = Vtep(TWO.subnet, TWO.address, "02:f1:a2:5e:00:22")
    await two.exec("ip", "link", "set", "flannel.1", "address", changed.mac)  # the kernel forgets the device's neighbours at that
    await two.exec("ip", "neigh", "replace", mine.base, "lladdr", mine.mac, "dev", "flannel.1", "nud", "permanent")
    put_leased(lab, changed.key, changed.value)
    await until_programmed(one, changed)
    assert TWO.mac not in " ".join([*await fdb(one), *await neighbours(one)])
    assert (await lab.ping("c1", "c2")).ok
    # It went for good.
    lab.etcd.delete(TWO.key)
    await until_gone(one, changed)
    assert await STALE.missing(one) == []


@pytest.mark.topology(hosts=1, containers=0)
async def test_values_of_older_and_of_careless_flannelds_are_read(lab: Lab) -> None:
    """Without PublicIPv6 and VNI (before v0.24), other letters' case, a MAC with hyphens, an unknown field."""
    one = lab.host(1)
    remember_subnet(one, "10.1.1.0/24", lab.topology.network)
    await one.start_agent()
    variants = {
        "10.1.20.0/24": '{"PublicIP":"%s","BackendType":"vxlan","BackendData":{"VtepMAC":"%s"}}',
        "10.1.21.0/24": '{"publicip":"%s","backendtype":"vxlan","backenddata":{"vni":1,"vtepmac":"%s"}}',
        "10.1.22.0/24": '{"PublicIP":"%s", "PublicIPv6":null, "BackendType":"vxlan", "New":1, "BackendData":{"VtepMAC":"%s"}}',
    }
    for number, (subnet, form) in enumerate(variants.items()):
        peer = Vtep(subnet, f"192.168.50.{100 + number}", f"02:00:00:00:00:{10 + number}")
        put_leased(lab, peer.key, form % (peer.address, peer.mac))
        await until_programmed(one, peer)
    hyphens = Vtep("10.1.23.0/24", "192.168.50.123", "02:00:00:00:00:23")
    put_leased(lab, hyphens.key, hyphens.value.replace(hyphens.mac, hyphens.mac.replace(":", "-")))
    await until_programmed(one, hyphens)
    assert Log.of(one).lines("warning:") == []


@pytest.mark.topology(hosts=1, containers=0)
async def test_our_own_daily_lease_is_kept_alive_with_flannelds_ttl(overlay: Lab) -> None:
    """A lease of flanneld's that we took over hangs on an etcd lease of ours, and of a whole day."""
    one = overlay.host(1)
    before = record(overlay, one.lease_key)
    assert before["lease"] != 0
    await one.agent.stop()
    short = put_leased(overlay, one.lease_key, overlay.etcd.get(one.lease_key) or "", seconds=600)
    await one.start_agent()
    await until(lambda: lease_of(overlay, one.lease_key) != int(short, 16), 3, "an etcd lease of our own")
    said = overlay.etcd.ctl("lease", "timetolive", f"{lease_of(overlay, one.lease_key):x}")
    assert "granted with TTL(86400s)" in said
    assert overlay.etcd.get(f"{PREFIX}/config") is not None
