"""Does the agent leave in etcd, in the kernel and on disk exactly what flannel's readers and neighbours expect? (flannel-compat B)

c1 10.5.72.2 - h1 192.168.50.11 ==== backend ==== h2 192.168.50.12 - c2 10.5.9.2         etcd 192.168.50.5
"""

from __future__ import annotations

import re

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    DAY_S,
    SUBNETS,
    captured,
    fdb,
    lab_name,
    lease_of,
    mac,
    neighbours,
    no_traceback,
    remember_subnet,
    routes,
    shell,
    time_to_live,
)

NETWORK = "10.5.0.0/16"
A, B = "10.5.72.0-24", "10.5.9.0-24"
ON_SEGMENT = "192.168.50.0/24 dev eth1 proto kernel scope link src 192.168.50.11"
OUT = "default via 10.0.2.2 dev eth0"
NAT = "10.0.2.0/24 dev eth0 proto kernel scope link src 10.0.2.15"


async def start(lab: Lab) -> tuple[Host, Host]:
    """Two agents with the subnets of Appendix B."""
    remember_subnet(lab.host(1), "10.5.72.0/24", NETWORK)
    remember_subnet(lab.host(2), "10.5.9.0/24", NETWORK)
    await lab.start_agents()
    return lab.host(1), lab.host(2)


def expect_registry(lab: Lab, values: dict[str, str]) -> None:
    """These keys, these bytes, and each on an etcd lease of its own for a day."""
    found = {key.removeprefix(f"{SUBNETS}/"): lab.etcd.get(key) for key in lab.etcd.keys(SUBNETS)}
    assert found == values
    leases = {name: lease_of(lab, f"{SUBNETS}/{name}") for name in values}
    assert len(set(leases.values())) == len(leases)
    for lease in leases.values():
        granted, remaining = time_to_live(lab, lease)
        assert granted == DAY_S
        assert DAY_S - 60 < remaining <= DAY_S


def expect_subnet_env(host: Host, subnet: str, mtu: int) -> None:
    text = f"FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
    assert host.subnet_file.read_bytes() == text.encode()
    assert host.subnet_file.stat().st_mode & 0o7777 == 0o644


async def foreign_routes_taken_off(host: Host) -> list[str]:
    return [line for line in await routes(host) if line not in (ON_SEGMENT, OUT, NAT)]


async def addresses(host: Host, device: str) -> list[str]:
    return [line for line in await shell(host, f"ip -4 addr show dev {device}") if line.startswith("inet")]


@pytest.mark.topology(hosts=2, network=NETWORK)
async def test_vxlan_is_appendix_b(lab: Lab) -> None:
    a, b = await start(lab)
    mac_a, mac_b = await mac(a), await mac(b)
    assert mac_a != mac_b
    for address in (mac_a, mac_b):
        assert int(address[:2], 16) & 3 == 2  # locally administered, unicast
    rest = '"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":'
    expect_registry(
        lab,
        {
            A: f'{{"PublicIP":"192.168.50.11",{rest}"{mac_a}"}}}}',
            B: f'{{"PublicIP":"192.168.50.12",{rest}"{mac_b}"}}}}',
        },
    )
    device = " ".join(await shell(a, "ip -d link show flannel.1"))
    assert re.search(r"<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue ", device)
    assert "qlen" not in device  # ip prints it where it is not 0
    assert "vxlan id 1 local 192.168.50.11 dev eth1 srcport 0 0 dstport 8472 nolearning " in device
    for odd in ("proxy", "rsc", "l2miss", "l3miss", " gbp", " remote ", " group "):
        assert odd not in device.replace("group default", "")
    assert await addresses(a, "flannel.1") == ["inet 10.5.72.0/32 scope global flannel.1"]
    assert (await a.exec("cat", "/proc/sys/net/ipv6/conf/flannel.1/accept_ra")) == "0\n"
    assert await foreign_routes_taken_off(a) == ["10.5.9.0/24 via 10.5.9.0 dev flannel.1 proto 102 onlink"]
    assert await neighbours(a) == [f"10.5.9.0 lladdr {mac_b} PERMANENT"]
    assert await fdb(a) == [f"{mac_b} dst 192.168.50.12 self permanent"]
    expect_subnet_env(a, "10.5.72.1/24", 1450)
    assert await addresses(b, "flannel.1") == ["inet 10.5.9.0/32 scope global flannel.1"]
    assert await neighbours(b) == [f"10.5.72.0 lladdr {mac_a} PERMANENT"]
    assert await fdb(b) == [f"{mac_a} dst 192.168.50.11 self permanent"]
    expect_subnet_env(b, "10.5.9.1/24", 1450)
    await lab.connect_containers()
    assert (await lab.ping("c1", "c2")).ok


@pytest.mark.topology(hosts=2, network=NETWORK, backend="host-gw")
async def test_host_gw_is_appendix_b(lab: Lab) -> None:
    a, b = await start(lab)
    expect_registry(
        lab,
        {
            A: '{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"host-gw"}',
            B: '{"PublicIP":"192.168.50.12","PublicIPv6":null,"BackendType":"host-gw"}',
        },
    )
    assert await foreign_routes_taken_off(a) == ["10.5.9.0/24 via 192.168.50.12 dev eth1 proto 102"]
    assert not [line for line in await shell(a, "ip -br link") if line.startswith("flannel")]
    expect_subnet_env(a, "10.5.72.1/24", 1500)
    expect_subnet_env(b, "10.5.9.1/24", 1500)
    await lab.connect_containers()
    async with lab.pcap("h2", "eth1", "icmp") as capture:
        assert (await lab.ping("c1", "c2")).ok
        lines = await captured(capture, 2)
    assert any("10.5.72.2 > 10.5.9.2: ICMP echo request" in line for line in lines)


@pytest.mark.parametrize("how", ["named", "Backend missing"])
@pytest.mark.topology(hosts=2, network=NETWORK, backend="udp")
async def test_udp_is_appendix_b(lab: Lab, how: str) -> None:
    if how == "Backend missing":
        lab.etcd.put("/coreos.com/network/config", f'{{"network":"{NETWORK}"}}')
    a, b = await start(lab)
    expect_registry(
        lab,
        {
            A: '{"PublicIP":"192.168.50.11","PublicIPv6":null}',
            B: '{"PublicIP":"192.168.50.12","PublicIPv6":null}',
        },
    )
    device = " ".join(await shell(a, "ip -d link show flannel0"))
    assert re.search(r"UP,LOWER_UP> mtu 1472 ", device)
    assert " tun type tun " in device
    assert await addresses(a, "flannel0") == ["inet 10.5.72.0/32 scope global flannel0"]
    route = (await foreign_routes_taken_off(a))[0]
    assert route.startswith("10.5.0.0/16 dev flannel0 proto 102")
    assert len(await foreign_routes_taken_off(a)) == 1
    expect_subnet_env(a, "10.5.72.1/24", 1472)
    expect_subnet_env(b, "10.5.9.1/24", 1472)
    await lab.connect_containers()
    async with lab.pcap("h2", "eth1", "udp port 8285") as capture:
        assert (await lab.ping("c1", "c2")).ok
        lines = await captured(capture, 2)
    assert any("192.168.50.11.8285 > 192.168.50.12.8285: UDP, length 84" in line for line in lines)
