"""Does a network move to another Type, there and back, with no packet lost and nothing of the old left?

c1 - h1 ====+==== h2 - c2
            |
            h3 - c3                 vxlan, host-gw, udp (user space); etcd apart
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.streaming import streaming
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    Log,
    lab_name,
    losing_nothing,
    no_probes,
    no_traceback,
    routes,
    until,
)
from tests.lab.host_support import offering, told, until_nothing_is_wrong, until_they_meet

WITHIN_S = 60.0
STILL_S = 5.0
"""So long a stream may stand still on a machine that has other work; how long it does, make bench-migration tells."""
ALL = ("c1", "c2", "c3")
DEVICES = {"vxlan": "flannel.1", "udp": "flannel0", "wireguard": "flannel-wg", "host-gw": ""}

pytestmark = [pytest.mark.topology(hosts=3), pytest.mark.usefixtures("no_probes")]


def config(name: str) -> dict[str, object]:
    options = {"Engine": "userspace"} if name == "udp" else {}
    return {"Network": "10.1.0.0/16", "Backend": {"Type": name, **options}}


async def begin(lab: Lab, name: str) -> tuple[Host, Host, Host]:
    await lab.put_config(config(name))
    await lab.start_agents()
    await lab.connect_containers()
    await until_they_meet(lab, "at first", *ALL)
    one, two, three = (lab.host(number) for number in (1, 2, 3))
    return one, two, three


@asynccontextmanager
async def everybody_pinging(lab: Lab) -> AsyncIterator[None]:
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c2", "c3"), losing_nothing(lab, "c3", "c1"):
        yield


def types(lab: Lab) -> dict[str, str]:
    """The Type that each lease names, by key."""
    values = {key: json.loads(lab.etcd.get(key) or "{}") for key in lab.etcd.keys(SUBNETS)}
    return {key: value.get("BackendType", "udp") for key, value in values.items()}


async def carriers(host: Host) -> list[str]:
    """By what the host reaches each peer, as its routes have it."""
    found = []
    for line in await routes(host):
        net, _, rest = line.partition(" ")
        if net.startswith("10.1.") and not net.startswith("10.1.0.0/16") and "proto 102" in rest:
            found.append(next((name for name, device in DEVICES.items() if device and f"dev {device} " in f"{rest} "), "host-gw"))
    for name in ("udp", "wireguard"):  # one route for all
        if not found and any(line.startswith(f"10.1.0.0/16 dev {DEVICES[name]} ") for line in await routes(host)):
            return [name, name]
    return found


async def until_moved(lab: Lab, name: str, *hosts: Host) -> None:
    """Wait until all that the hosts hold is of this Type, and nothing of any other is left."""
    others = [device for each, device in DEVICES.items() if device and each != name]

    async def moved() -> bool:
        if set(types(lab).values()) != {name} or offering(lab):
            return False
        for host in hosts:
            links = (await host.exec("ip", "-br", "link")).split()
            if any(link.partition("@")[0] in others for link in links) or await carriers(host) != [name, name]:
                return False
        return True

    await until(moved, WITHIN_S, f"all is {name}", lambda: "\n".join(Log.of(host).text[-2000:] for host in hosts))


async def until_reached(name: str, *hosts: Host) -> None:
    """Wait until each of these sends to both others by this Type."""

    async def reached() -> bool:
        return all([await carriers(host) == [name, name] for host in hosts])

    await until(reached, WITHIN_S, f"by {name}", lambda: "\n".join(Log.of(host).text[-2000:] for host in hosts))


ROUNDS = [("vxlan", "host-gw", "udp", "vxlan"), ("vxlan", "udp", "host-gw", "vxlan")]


@pytest.mark.parametrize("walk", ROUNDS, ids=lambda walk: "-".join(walk))
async def test_from_each_type_to_each_other_loses_no_packet(lab: Lab, walk: tuple[str, ...]) -> None:
    first, *rest = walk
    hosts = await begin(lab, first)
    subnets, pids = [str(host.subnet) for host in hosts], [host.agent.pid for host in hosts]
    source, target = lab.container("c1"), lab.container("c2")
    log = lab.directory / "stream.log"
    async with everybody_pinging(lab), streaming(source.namespace, target.namespace, str(target.address), log) as stream:
        for name in rest:
            await lab.put_config(config(name))
            await until_moved(lab, name, *hosts)
    assert stream.sent == stream.received > 0
    print(f"{'-'.join(walk)}: the stream stood still for {1000 * stream.longest_s():.0f} ms at the longest")
    assert stream.longest_s() < STILL_S
    assert [str(host.subnet) for host in hosts] == subnets
    assert [host.agent.pid for host in hosts] == pids
    await until_nothing_is_wrong(*hosts)


async def test_put_back_in_the_middle_it_is_as_before(lab: Lab) -> None:
    hosts = await begin(lab, "vxlan")
    async with everybody_pinging(lab):
        for name in ("host-gw", "udp", "host-gw"):
            await lab.put_config(config(name))
            await lab.put_config(config("vxlan"))  # whoever has begun, has begun
            await lab.put_config(config(name))
            if name == "host-gw":
                await until_reached(name, *hosts)  # and the old one still stands
            await lab.put_config(config("vxlan"))
            await until_reached("vxlan", *hosts)
        await until_moved(lab, "vxlan", *hosts)
    await until_nothing_is_wrong(*hosts)


async def test_a_host_that_is_stopped_meanwhile_comes_back_to_the_new_type(lab: Lab) -> None:
    one, two, three = await begin(lab, "vxlan")
    subnet = str(three.subnet)
    async with everybody_pinging(lab):  # what the third's kernel holds goes on without its agent
        await three.agent.stop()
        await lab.put_config(config("host-gw"))

        async def half() -> bool:
            return sorted(await carriers(one)) == sorted(await carriers(two)) == ["host-gw", "vxlan"]

        await until(half, WITHIN_S, "the two by the new, the third by the old", lambda: Log.of(one).text[-2000:])
        assert sorted(types(lab).values()) == ["host-gw", "host-gw", "vxlan"]
        document = await told(one)
        reasons = {each["PublicIP"]: (each["carrier"], each["reason"]) for each in document["peers"]}
        assert reasons["192.168.50.12"] == ("host-gw", "both have it")
        assert reasons["192.168.50.13"] == ("vxlan", "host-gw: not offered by the peer yet")
        await three.start_agent()
        await until_moved(lab, "host-gw", one, two, three)
    assert str(three.subnet) == subnet


async def test_etcd_that_is_away_in_the_middle_stops_nothing_and_it_goes_on_when_it_is_back(lab: Lab) -> None:
    hosts = await begin(lab, "vxlan")
    async with everybody_pinging(lab):
        await hosts[1].agent.stop()  # so that it is a middle
        await lab.put_config(config("host-gw"))

        async def begun() -> bool:
            return sorted(types(lab).values()) == ["host-gw", "host-gw", "vxlan"]

        await until(begun, WITHIN_S, "two have begun")
        lab.etcd.kill()
        before = [await carriers(host) for host in hosts]
        await hosts[1].start_agent()
        await asyncio.sleep(0)
        assert [await carriers(host) for host in (hosts[0], hosts[2])] == [before[0], before[2]]
        lab.etcd.restart()
        await until_moved(lab, "host-gw", *hosts)
    await until_nothing_is_wrong(*hosts)
