"""Is each peer bound to exactly its subnet, whatever length subnets have? The last address of it, and the one behind.

c1 - h1 192.168.50.11 ==+== 192.168.50.12 h2 - c2        h3, without its agent, sends as h1 does
                        x
"""

from __future__ import annotations

import re

import pytest
from netaddr import IPAddress, IPNetwork

from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_probes, no_traceback, remember_subnet  # noqa: F401
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
    ranges = await two.exec("nft", "list", "set", "inet", "flannelpy", "vxlan4")
    assert "elements" not in ranges  # all are in the exact one
    exact = await two.exec("nft", "list", "set", "inet", "flannelpy", f"vxlan4_{length}")
    assert "192.168.50.11 . " in exact
