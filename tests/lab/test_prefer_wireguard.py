"""Do two hosts that prefer wireguard encrypt between them, and speak vxlan with a real flanneld?

c1 - h1 flannelpy ====+==== h2 flannelpy - c2
                      |
                      h3 flanneld - c3          vxlan, Prefer wireguard; wireguard-go where the kernel has none; etcd apart
"""

from __future__ import annotations

import asyncio
import os

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_probes, no_traceback, routes, until  # noqa: F401
from tests.lab.host_support import until_they_meet
from tests.lab.test_flanneld import FLANNELD, flanneld_words
from tests.lab.wireguard_support import PATTERN, encrypted, frames, process_of, wireguard_go  # noqa: F401

ALL = ("c1", "c2", "c3")
PLAIN = {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}
PREFERRED = {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "Prefer": ["wireguard"]}}
PINGS = 3

pytestmark = [pytest.mark.topology(hosts=3), pytest.mark.usefixtures("no_probes", "wireguard_go")]


async def begin(lab: Lab, config: dict[str, object], *, flanneld: bool) -> tuple[Host, Host, Host]:
    await lab.put_config(config)
    one, two, three = (lab.host(number) for number in (1, 2, 3))
    if flanneld:
        await three.start_agent(program=flanneld_words(lab, three), within_s=60)
    else:
        await three.start_agent("--prefer=none")
    await asyncio.gather(one.start_agent(), two.start_agent())
    await lab.connect_containers()
    await until_they_meet(lab, "at first", *ALL)
    return one, two, three


async def until_by(device: str, host: Host, peer: Host) -> None:
    async def there() -> bool:
        return any(line.startswith(f"{peer.subnet} ") and f"dev {device} " in line for line in await routes(host))

    await until(there, 30, f"{host.name} reaches {peer.name} by {device}", lambda: Log.of(host).text[-2500:])


async def seen_between(lab: Lab, source: str, target: str, at: Host) -> list[bytes]:
    """The frames on a host's interface while pings with a pattern go from one container to another."""
    address = str(lab.container(target).address)
    async with frames(at) as seen:
        await lab.box(source).exec("ping", "-n", "-c", str(PINGS), "-i", "0.2", "-W", "5", "-p", PATTERN.hex(), address)
        await until(lambda: sum(encrypted(frame) or PATTERN in frame for frame in seen) >= 2 * PINGS, 10, "pings and answers")
    return seen


async def encrypts_with_the_one_and_not_with_the_other(lab: Lab, one: Host, two: Host, three: Host) -> None:
    for host, peer in ((one, two), (two, one)):
        await until_by("flannel-wg", host, peer)
        await until_by("flannel.1", host, three)
    for source, target in (("c1", "c2"), ("c2", "c1")):
        seen = await seen_between(lab, source, target, two)
        assert sum(map(encrypted, seen)) >= 2 * PINGS
        assert not any(PATTERN in frame for frame in seen)
    for source, target in (("c1", "c3"), ("c3", "c2")):
        seen = await seen_between(lab, source, target, three)
        in_vxlan = [frame for frame in seen if PATTERN in frame]
        assert len(in_vxlan) >= 2 * PINGS
        assert all(frame[36:38] == (8472).to_bytes(2, "big") for frame in in_vxlan)


async def on_and_off(lab: Lab, one: Host, two: Host, three: Host) -> None:
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c3", "c1"), losing_nothing(lab, "c2", "c3"):
        for _ in range(2):
            await lab.put_config(PLAIN)
            for host, peer in ((one, two), (two, one)):
                await until_by("flannel.1", host, peer)
            await lab.put_config(PREFERRED)
            for host, peer in ((one, two), (two, one)):
                await until_by("flannel-wg", host, peer)
        await lab.put_config(PLAIN)
        await until(lambda: not process_of(one) and not process_of(two), 60, "nothing of wireguard is left")
    await until_they_meet(lab, "in the end", *ALL)


async def test_two_encrypt_between_them_and_the_third_who_wants_none_of_it_is_reached_by_the_type(lab: Lab) -> None:
    hosts = await begin(lab, PREFERRED, flanneld=False)
    await encrypts_with_the_one_and_not_with_the_other(lab, *hosts)
    await on_and_off(lab, *hosts)


@pytest.mark.skipif(not os.access(FLANNELD, os.X_OK), reason=f"no flanneld at {FLANNELD}: make flanneld builds it (with Go)")
async def test_two_encrypt_between_them_and_a_real_flanneld_is_reached_by_the_type(lab: Lab) -> None:
    hosts = await begin(lab, PREFERRED, flanneld=True)
    await encrypts_with_the_one_and_not_with_the_other(lab, *hosts)
    await on_and_off(lab, *hosts)
