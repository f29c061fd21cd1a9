"""Which way do packets go: in a tunnel, directly, by IPv6, from behind a NAT, in two overlays at once?

c1 - h1 192.168.50.11, fd00:50::b ==== h2 192.168.50.12, fd00:50::c - c2         etcd apart; captures on eth1
"""

from __future__ import annotations

import os
import re

import pytest
from netaddr import IPNetwork

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    Log,
    Vtep,
    captured,
    fdb,
    lab_name,
    losing_nothing,
    mac,
    neighbours,
    no_traceback,
    put_leased,
    remember_subnet,
    routes,
    settled_overlay,
    shell,
    until,
    until_gone,
    until_programmed,
    vtep,
)

DUAL = {"EnableIPv6": True, "IPv6Network": "fd00:10:1::/48"}

# ------------------------------------------------------------------------------------------------------- DirectRouting


@pytest.mark.topology(hosts=2, config={"Backend": {"DirectRouting": True}, "Probe": False})
async def test_peers_on_the_segment_are_reached_directly(lab: Lab) -> None:
    remember_subnet(lab.host(1), "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(lab.host(2), "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    one = lab.host(1)
    assert await routes(one, "10.1.9.0/24") == ["10.1.9.0/24 via 192.168.50.12 dev eth1 proto 102"]
    assert (await neighbours(one), await fdb(one)) == ([], [])
    assert "VtepMAC" in (lab.etcd.get(f"{SUBNETS}/10.1.72.0-24") or "")
    async with lab.pcap("h2", "eth1", "udp port 8472 or icmp") as capture:
        assert (await lab.ping("c1", "c2")).ok
        assert (await lab.ping("c2", "c1")).ok
        lines = await captured(capture, 4)
    assert len(lines) == 4
    assert all("ICMP echo" in line and "10.1.72.2" in line for line in lines)
    # The file's MTU is the tunnel's all the same: another peer may be further away.
    assert "FLANNEL_MTU=1450\n" in one.subnet_file.read_text()


@pytest.mark.topology(hosts=1, containers=0, config={"Backend": {"DirectRouting": True}})
async def test_a_peer_behind_a_gateway_is_tunnelled_and_one_that_moves_changes_its_way(lab: Lab) -> None:
    one = lab.host(1)
    await one.start_agent()
    far = Vtep("10.1.77.0/24", "198.51.100.7", "02:00:00:00:00:77")  # by the default route
    put_leased(lab, far.key, far.value)
    await until_programmed(one, far)
    near = Vtep(far.subnet, "192.168.50.77", far.mac)
    put_leased(lab, near.key, near.value)

    async def direct() -> bool:
        return await routes(one, far.subnet) == [f"{far.subnet} via 192.168.50.77 dev eth1 proto 102"]

    await until(direct, 2, "a direct route", lambda: Log.of(one).text)
    assert far.mac not in " ".join([*await fdb(one), *await neighbours(one)])
    put_leased(lab, far.key, far.value)
    await until_programmed(one, far)
    lab.etcd.delete(far.key)
    await until_gone(one, far)


@pytest.mark.topology(hosts=2)
async def test_direct_routing_switched_on_and_off_at_a_restart_loses_nothing(overlay: Lab) -> None:
    """Every peer's route goes from the tunnel to the segment and back; nothing of the other way is left."""
    one, peer = overlay.host(1), await vtep(overlay.host(2))
    for wanted, backend in ((True, '{"Type":"vxlan","DirectRouting":true}'), (False, '{"Type":"vxlan"}')):
        overlay.etcd.put(f"{PREFIX}/config", f'{{"Network":"10.1.0.0/16","Backend":{backend}}}')
        async with losing_nothing(overlay, "c1", "c2"):
            await one.agent.restart()
            if wanted:
                route = [f"{peer.subnet} via {peer.address} dev eth1 proto 102"]

                async def direct(route: list[str] = route) -> bool:
                    return await routes(one, peer.subnet) == route

                await until(direct, 2, "a direct route", lambda: Log.of(one).text)
            else:
                await until_programmed(one, peer)
        if wanted:
            assert (await neighbours(one), await fdb(one)) == ([], [])


# ------------------------------------------------------------------------------------------------------------ dual-stack


async def expect_v6(lab: Lab) -> None:
    """Every container reaches every other by both families."""

    async def settled() -> bool:
        """No address is tentative any more (RFC 4862): until then the kernel holds packets back, with or without an agent."""
        return not any([await shell(box, "ip -6 -o addr show tentative") for box in (*lab.hosts, *lab.containers)])

    await until(settled, 5, "duplicate address detection is over")
    assert [pair for pair, ping in (await lab.matrix()).items() if not ping.ok] == []
    for source in lab.containers:
        for target in lab.containers:
            if source is not target:
                assert (await lab.ping(source.name, str(target.address6))).ok


@pytest.mark.topology(hosts=3, segment6="fd00:50::/64", config=DUAL)
async def test_dual_stack_vxlan(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    await expect_v6(overlay)
    env = two.subnet_env()
    v6 = IPNetwork(env["FLANNEL_IPV6_SUBNET"]).cidr
    assert list(env) == [
        "FLANNEL_NETWORK",
        "FLANNEL_SUBNET",
        "FLANNEL_IPV6_NETWORK",
        "FLANNEL_IPV6_SUBNET",
        "FLANNEL_MTU",
        "FLANNEL_IPMASQ",
    ]
    assert env["FLANNEL_IPV6_NETWORK"] == "fd00:10:1::/48"
    assert env["FLANNEL_IPV6_SUBNET"] == f"{v6.ip + 1}/64"
    mac4, mac6 = await mac(two), await mac(two, "flannel-v6.1")
    assert mac4 != mac6
    data = f'"BackendData":{{"VNI":1,"VtepMAC":"{mac4}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{mac6}"}}'
    value = f'{{"PublicIP":"192.168.50.12","PublicIPv6":"fd00:50::c","BackendType":"vxlan",{data}}}'
    key = f"{SUBNETS}/{two.subnet.ip}-24&{v6.ip}-64"
    assert two.lease_key == key
    assert overlay.etcd.get(key) == value
    # On h1, the peer h2 in both families.
    assert f"{v6} via {v6.ip} dev flannel-v6.1 proto 102 metric 1024 onlink pref medium" in await shell(one, "ip -6 route")
    assert f"{v6.ip} lladdr {mac6} PERMANENT" in await shell(one, "ip -6 neigh show dev flannel-v6.1")
    assert f"{mac6} dst fd00:50::c self permanent" in await fdb(one, "flannel-v6.1")
    assert f"{mac4} dst 192.168.50.12 self permanent" in await fdb(one, "flannel.1")
    own6 = IPNetwork(one.subnet_env()["FLANNEL_IPV6_SUBNET"]).cidr
    assert f"inet6 {own6.ip}/128 scope global" in " ".join(await shell(one, "ip -6 addr show dev flannel-v6.1"))
    # An IPv6 underlay's header is 20 bytes longer, so the largest packet that fits goes whole.
    size = int(re.search(r"mtu (\d+)", await one.exec("ip", "link", "show", "flannel-v6.1"))[1])  # type: ignore[index]
    assert size <= 1500 - 70
    whole = await overlay.container("c1").exec(
        "ping", "-6", "-n", "-c1", "-W2", "-s", str(int(env["FLANNEL_MTU"]) - 48), str(overlay.container("c2").address6)
    )
    assert " 0% packet loss" in whole


@pytest.mark.topology(hosts=2, segment6="fd00:50::/64", config=DUAL, backend="host-gw")
async def test_dual_stack_host_gw(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    await expect_v6(overlay)
    v6 = IPNetwork(two.subnet_env()["FLANNEL_IPV6_SUBNET"]).cidr
    assert f"{v6} via fd00:50::c dev eth1 proto 102 metric 1024 pref medium" in await shell(one, "ip -6 route")
    assert overlay.etcd.get(two.lease_key) == '{"PublicIP":"192.168.50.12","PublicIPv6":"fd00:50::c","BackendType":"host-gw"}'


@pytest.mark.topology(hosts=2, segment6="fd00:50::/64", config=DUAL)
async def test_dual_stack_agents_come_again_and_repair_both_families(overlay: Lab) -> None:
    one = overlay.host(1)
    key, value = one.lease_key, overlay.etcd.get(one.lease_key)
    await expect_v6(overlay)
    target = str(overlay.container("c2").address6)
    async with overlay.pinging("c1", target, per_second=100) as pings:
        await one.agent.kill()
        await one.start_agent()
    assert pings.lost == 0
    assert (one.lease_key, overlay.etcd.get(one.lease_key)) == (key, value)
    for command in (
        "ip link del flannel-v6.1",
        "ip -6 route flush dev flannel-v6.1",
        "ip -6 neigh flush dev flannel-v6.1 nud permanent",
    ):
        await one.attempt(*command.split())

        async def answered() -> bool:
            return (await overlay.ping("c1", target, wait_s=0.2)).ok

        await until(answered, 3, f"IPv6 after {command}", lambda: Log.of(one).text)


@pytest.mark.topology(hosts=2, segment6="fd00:50::/64", config=DUAL)
async def test_a_v4_only_lease_in_a_dual_stack_network_is_programmed_in_v4(overlay: Lab) -> None:
    """A dual-stack flanneld panics on it (flannel-compat 3.4)."""
    one = overlay.host(1)
    peer = Vtep("10.1.177.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(overlay, peer.key, peer.value)
    await until_programmed(one, peer)
    assert (await overlay.ping("c1", "c2")).ok


# ------------------------------------------------------------------------------------------ NAT, several overlays, umask


@pytest.mark.topology(hosts=2, containers=0)
async def test_an_advertised_address_that_is_nobodys_interface(lab: Lab) -> None:
    """Behind a NAT: peers are told the public address, the device sends from its own (field-problems F3)."""
    one = lab.host(1)
    await one.start_agent("--public-ip=203.0.113.50")
    value = lab.etcd.get(one.lease_key) or ""
    assert value.startswith('{"PublicIP":"203.0.113.50",')
    assert " local 192.168.50.11 " in " ".join(await shell(one, "ip -d link show flannel.1"))
    await lab.host(2).start_agent()
    await until_programmed(lab.host(2), Vtep(str(one.subnet), "203.0.113.50", await mac(one)))
    await until_programmed(one, await vtep(lab.host(2)))
    # Something leaves the host: a non-local source would have been dropped by the kernel.
    async with lab.pcap("h1", "eth1", "udp port 8472 and src host 192.168.50.11") as capture:
        await one.attempt("ping", "-n", "-c1", "-W1", str(lab.host(2).subnet.ip))
        await captured(capture, 1)


@pytest.mark.topology(hosts=2, containers=0)
async def test_two_networks_on_one_pair_of_hosts(lab: Lab) -> None:
    """Two agents a host, vxlan and host-gw, with prefixes, files and directories of their own (flannel-compat 2, 13)."""
    lab.etcd.put("/second/config", '{"Network":"10.2.0.0/16","Backend":{"Type":"host-gw"}}')
    await lab.start_agents()
    others: list[tuple[Host, object]] = []
    for host in lab.hosts:
        below = host.directory / "second"
        below.mkdir()
        words = host.agent_words(
            "--etcd-prefix=/second",
            f"--subnet-file={below / 'env'}",
            f"--state-dir={below / 'state'}",
            f"--run-dir={below / 'run'}",
        )
        others.append((host, host.namespace.spawn("second agent", words, log=below / "log", lasting=False)))
    files = [host.directory / "second" / "env" for host in lab.hosts]
    await until(
        lambda: all(file.exists() for file in files), 8, "both files", lambda: (lab.directory / "h1/second/log").read_text()
    )
    gateways = [re.search(r"FLANNEL_SUBNET=(\S+)", file.read_text())[1] for file in files]  # type: ignore[index]
    for host, gateway in zip(lab.hosts, gateways, strict=True):
        await host.exec("ip", "link", "add", "second0", "type", "bridge")
        await host.exec("ip", "addr", "add", gateway, "dev", "second0")
        await host.exec("ip", "link", "set", "second0", "up")
    one = lab.host(1)

    async def both() -> bool:
        return len(await routes(one, "proto 102")) == 2

    await until(both, 3, "a route of each network", lambda: Log.of(one).text)
    first, second = sorted(await routes(one, "proto 102"))
    assert "dev flannel.1" in first
    assert "via 192.168.50.12 dev eth1" in second
    far = gateways[1].partition("/")[0]
    assert (await lab.ping("h1", far)).ok
    assert (await lab.ping("h1", str(lab.host(2).subnet.ip))).ok
    # One of them starts over: its sweep leaves the other's alone.
    before = sorted(await routes(one, "proto 102"))
    await one.agent.restart()
    assert sorted(await routes(one, "proto 102")) == before
    assert (await lab.ping("h1", far)).ok
    tables = await one.exec("nft", "list", "ruleset")
    assert "10.1.0.0/16" in tables
    assert "10.2.0.0/16" in tables


@pytest.mark.topology(hosts=1, containers=0)
async def test_subnet_env_is_readable_by_all_whatever_the_umask(lab: Lab) -> None:
    one = lab.host(1)
    deep = one.directory / "a" / "b" / "subnet.env"
    before = os.umask(0o077)
    try:
        agent = one.launch_agent(f"--subnet-file={deep}")
    finally:
        os.umask(before)
    await agent.ready()
    assert deep.stat().st_mode & 0o7777 == 0o644
    assert [path.name for path in deep.parent.iterdir()] == ["subnet.env"]  # no temporary file is left
