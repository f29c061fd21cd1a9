"""Do a host with real flanneld and hosts with flannelpy share one cluster, both ways, whatever changes on either?

c1 - h1 flannelpy ====\
                       ==== vxlan, host-gw or udp ==== h3 flannelpy - c3        etcd apart
c2 - h2 flanneld  ====/

The flanneld is the one of $FLANNELD, or the one that ``make flanneld`` has built.
"""

from __future__ import annotations

import os

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import FLANNELD, lab_name, losing_nothing, no_traceback, until  # noqa: F401
from tests.lab.host_support import change, published, until_nothing_is_wrong, until_they_meet

BACKENDS = ["vxlan", "host-gw", "udp"]
ALL = ("c1", "c2", "c3")

pytestmark = [
    pytest.mark.topology(hosts=3),
    pytest.mark.skipif(not os.access(FLANNELD, os.X_OK), reason=f"no flanneld at {FLANNELD}: make flanneld builds it (with Go)"),
]


def flanneld_words(lab: Lab, host: Host) -> list[str]:
    options = [f"--etcd-endpoints={','.join(lab.etcd.urls)}", "--iface=eth1", f"--subnet-file={host.subnet_file}"]
    return [str(FLANNELD), *options]


@pytest.fixture(params=BACKENDS)
async def mixed(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    """The second host runs flanneld."""
    await lab.put_config({"Network": "10.1.0.0/16", "Backend": {"Type": request.param}})
    two = lab.host(2)
    await two.start_agent(program=flanneld_words(lab, two), within_s=60)
    for number in (1, 3):
        await lab.host(number).start_agent()
    await lab.connect_containers()
    await until_they_meet(lab, "mixed", *ALL)
    return lab


async def test_every_container_reaches_every_other(mixed: Lab) -> None:
    assert len(published(mixed)) == 3
    await until_nothing_is_wrong(mixed.host(1), mixed.host(3))


async def test_a_full_packet_passes_in_one_piece(mixed: Lab) -> None:
    for source, target in (("c1", "c2"), ("c2", "c1")):
        mtu = int(mixed.host(1).subnet_env()["FLANNEL_MTU"])
        box = mixed.container(source)
        said = await box.exec("ping", "-c", "1", "-W", "5", "-M", "do", "-s", str(mtu - 28), str(mixed.container(target).address))
        assert "1 received" in said


async def test_flanneld_follows_a_flannelpy_host_whose_address_changes(mixed: Lab) -> None:
    one = mixed.host(1)
    key = one.lease_key
    await change(one, "addr del 192.168.50.11/24 dev eth1", "addr add 192.168.50.111/24 dev eth1")
    await until(lambda: published(mixed)[key] == "192.168.50.111", 20, "the new address is published")
    took = await until_they_meet(mixed, "after the address changed", *ALL)
    print(f"they meet {took:.2f} s later")
    assert one.lease_key == key


async def test_flannelpy_follows_a_flanneld_that_restarts_at_another_address(mixed: Lab) -> None:
    two = mixed.host(2)
    await two.agent.stop()
    await change(two, "addr del 192.168.50.12/24 dev eth1", "addr add 192.168.50.112/24 dev eth1")
    await two.start_agent(program=flanneld_words(mixed, two), within_s=60)
    await mixed.connect_containers()
    await until_they_meet(mixed, "after flanneld came back", *ALL)


async def test_a_host_goes_over_to_flannelpy_and_back_in_its_own_lease(mixed: Lab) -> None:
    two = mixed.host(2)
    key = two.lease_key
    await two.agent.stop()
    await two.start_agent()
    assert two.lease_key == key
    await until_they_meet(mixed, "flannelpy in place of flanneld", *ALL)
    await until_nothing_is_wrong(*mixed.hosts)
    await two.agent.stop()
    await two.start_agent(program=flanneld_words(mixed, two), within_s=60)
    assert two.lease_key == key
    await until_they_meet(mixed, "and back", *ALL)


async def test_between_flannelpy_hosts_nothing_is_lost_while_flanneld_comes_and_goes(mixed: Lab) -> None:
    two = mixed.host(2)
    async with losing_nothing(mixed, "c1", "c3"):
        await two.agent.kill()
        await two.start_agent(program=flanneld_words(mixed, two), within_s=60)
    await until_they_meet(mixed, "after it was killed", *ALL)
