"""Does a network move to wireguard and back with no packet lost, also with a host or etcd stopped in the middle?

c1 - h1 ====+==== h2 - c2
            |
            h3 - c3                 vxlan, host-gw, wireguard (wireguard-go where the kernel has none); etcd apart
"""

from __future__ import annotations

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, no_probes, no_traceback, until  # noqa: F401
from tests.lab.host_support import until_nothing_is_wrong
from tests.lab.test_migration import WITHIN_S, begin, carriers, config, everybody_pinging, types, until_moved
from tests.lab.wireguard_support import wireguard_go  # noqa: F401

pytestmark = [pytest.mark.topology(hosts=3), pytest.mark.usefixtures("no_probes", "wireguard_go")]


@pytest.mark.parametrize("other", ["vxlan", "host-gw"])
async def test_to_wireguard_and_back_loses_no_packet(lab: Lab, other: str) -> None:
    hosts = await begin(lab, other)
    async with everybody_pinging(lab):
        for name in ("wireguard", other):
            await lab.put_config(config(name))
            await until_moved(lab, name, *hosts)
    await until_nothing_is_wrong(*hosts)


@pytest.mark.parametrize("walk", [("vxlan", "wireguard"), ("wireguard", "vxlan")], ids="-".join)
async def test_a_host_that_is_stopped_meanwhile_comes_back_to_the_new_type(lab: Lab, walk: tuple[str, str]) -> None:
    before, after = walk
    one, two, three = await begin(lab, before)
    async with everybody_pinging(lab):  # what the third's kernel holds goes on without its agent
        await three.agent.stop()
        await lab.put_config(config(after))

        async def half() -> bool:
            return sorted(await carriers(one)) == sorted(await carriers(two)) == sorted(walk)

        await until(half, WITHIN_S, "the two by the new, the third by the old", lambda: Log.of(one).text[-2000:])
        await three.start_agent()
        await until_moved(lab, after, one, two, three)


@pytest.mark.parametrize("walk", [("vxlan", "wireguard"), ("wireguard", "vxlan")], ids="-".join)
async def test_etcd_that_is_away_in_the_middle_stops_nothing(lab: Lab, walk: tuple[str, str]) -> None:
    before, after = walk
    hosts = await begin(lab, before)
    async with everybody_pinging(lab):
        await hosts[1].agent.stop()  # so that it is a middle
        await lab.put_config(config(after))

        async def begun() -> bool:
            return sorted(types(lab).values()) == sorted((before, after, after))

        await until(begun, WITHIN_S, "two have begun")
        lab.etcd.kill()
        await hosts[1].start_agent()
        lab.etcd.restart()
        await until_moved(lab, after, *hosts)
