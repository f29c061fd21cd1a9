"""Is each peer bound to exactly its subnet, whatever length subnets have? The last address of it, and the one behind.

c1 - h1 192.168.50.11 ==+== 192.168.50.12 h2 - c2        h3, without its agent, sends as h1 does
                        x
"""

from __future__ import annotations

import re

import pytest
from netaddr import IPAddress, IPNetwork

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Vtep, lab_name, no_probes, no_traceback, put_leased, remember_subnet, until  # noqa: F401
from tests.lab.test_guard import COUNT, accepted, make_stranger

pytestmark = pytest.mark.usefixtures("no_probes")

SUBNETS = {22: "10.1.{}.0/22", 24: "10.1.{}.0/24", 25: "10.1.{}.128/25", 26: "10.1.{}.64/26", 28: "10.1.{}.240/28"}


@pytest.mark.parametrize("length", SUBNETS)
@pytest.mark.topology(hosts=3, agent_options=())
async def test_a_peer_speaks_for_its_subnet_and_for_no_address_beside_it(lab: Lab, length: int) -> None:
    for host in lab.hosts:
        remember_subnet(host, SUBNETS[length].format(4 * host.plan.number), "10.1.0.0/16")
    await lab.put_config({"Network": "10.1.0.0/16", "SubnetLen": length, "Backend": {"Type": "vxlan"}})
    await lab.start_agents()
    for host in lab.hosts:  # a packet that came before its sender is known would be counted

        async def knows_all(host: Host = host) -> bool:
            return len((await host.exec("ip", "-o", "route", "show", "dev", "flannel.1")).splitlines()) == len(lab.hosts) - 1

        await until(knows_all, 30, f"routes of {host.name} to all others")
    await lab.connect_containers()
    for way in (("c1", "c2"), ("c2", "c1")):
        assert (await lab.ping(*way)).ok, way
    two, subnet = lab.host(2), lab.host(1).subnet
    assert subnet == IPNetwork(SUBNETS[length].format(4))
    stranger, target = await make_stranger(lab), str(lab.container("c2").address)
    for value, may in ((subnet.first, True), (subnet.last, True), (subnet.first - 1, False), (subnet.last + 1, False)):
        source = str(IPAddress(value))
        assert await accepted(stranger, lab, "192.168.50.11", source, target) == (COUNT if may else 0), source
    counters = await two.exec("nft", "list", "counters", "table", "inet", "flannelpy")
    counts = {name: int(count) for name, count in re.findall(r"counter (\w+) \{\s+packets (\d+)", counters)}
    assert {name: count for name, count in counts.items() if count} == {"inner_source": 2 * COUNT}
    sets = await two.exec("nft", "list", "sets", "table", "inet", "flannelpy")
    assert re.findall(r"set (vxlan4\w*) ", sets) == [f"vxlan4_{length}"]
    exact = await two.exec("nft", "list", "set", "inet", "flannelpy", f"vxlan4_{length}")
    assert "192.168.50.11 . " in exact


ODD = ["10.1.32.0/20", "10.1.56.0/23", "10.1.60.128/25", "10.1.61.96/27", "10.1.62.6/31"]


@pytest.mark.topology(hosts=3, agent_options=())
async def test_peers_of_any_lengths_beside_each_other_speak_for_their_subnets(lab: Lab) -> None:
    """What flannel writes after SubnetLen was changed, and whoever writes into etcd by hand."""
    for host in lab.hosts:
        remember_subnet(host, f"10.1.{host.plan.number}.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    peers = [Vtep(subnet, f"192.168.50.{90 + number}", f"02:00:00:00:00:{90 + number}") for number, subnet in enumerate(ODD)]
    for peer in peers:
        put_leased(lab, peer.key, peer.value)
    two = lab.host(2)

    async def asked() -> bool:
        chain = await two.exec("nft", "list", "chain", "inet", "flannelpy", "guard4_source")
        return re.findall(r"@vxlan4_(\d+) return", chain) == ["31", "27", "25", "23", "20"]

    await until(asked, 10, "a rule for each length")
    stranger, target = await make_stranger(lab), str(lab.container("c2").address)
    for peer in peers:
        subnet = IPNetwork(peer.subnet)
        for value, may in ((subnet.first, True), (subnet.last, True), (subnet.first - 1, False), (subnet.last + 1, False)):
            source = str(IPAddress(value))
            assert await accepted(stranger, lab, peer.address, source, target) == (COUNT if may else 0), (peer, source)
    assert (await lab.ping("c1", "c2")).ok
