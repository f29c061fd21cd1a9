"""Can a lease, or the Network itself, cut a host off from etcd, its gateway or its peers?

c1 - h1 ==== vxlan, host-gw, udp in turn ==== h2 - c2, on 192.168.50.0/24 inside Network        etcd at 192.168.50.5, on the link
                                  |
                                  +-- r (192.168.50.5): etcd's other address 192.168.7.9, behind the default route
"""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest
from netaddr import IPAddress, IPNetwork

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import SUBNETS, Log, lab_name, no_traceback, put_leased, routes, shell, until  # noqa: F401
from tests.lab.host_support import BACKENDS, WITHIN_S, told, until_they_meet

NETWORK = "192.168.0.0/16"
ON_LINK, BEHIND = "192.168.50.5", "192.168.7.9"


def rogue(backend: str, number: int) -> str:
    """The value of a stranger's lease."""
    value: dict[str, object] = {"PublicIP": "192.168.50.66", "PublicIPv6": None}
    if backend == "vxlan":
        value |= {"BackendData": {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"}}
    return json.dumps(value if backend == "udp" else {**value, "BackendType": backend})


async def config(lab: Lab, backend: str) -> None:
    await lab.put_config({"Network": NETWORK, "SubnetLen": 24, "SubnetMin": "192.168.100.0", "Backend": {"Type": backend}})


async def refused(host: Host, *names: str) -> bool:
    """True where the host has heard of these keys, and says of each that it would take something into the overlay."""
    states = {peer["key"]: (peer["state"], peer["why"]) for peer in (await told(host)).get("peers", ())}
    return all(states.get(name, ("", ""))[0] == "excluded" and "into the overlay" in (states[name][1] or "") for name in names)


async def until_refused(lab: Lab, *names: str) -> None:
    for host in lab.hosts:
        await until(lambda host=host: refused(host, *names), WITHIN_S, f"{names} on {host.name}", partial(_said, host))


def _said(host: Host) -> str:
    return Log.of(host).text[-1500:]


async def alive(lab: Lab, host: Host, key: str, backend: str) -> None:
    """etcd is heard: what is written now arrives."""
    put_leased(lab, key, rogue(backend, 0x77))

    async def heard() -> bool:
        return any(f"{SUBNETS}/{peer['key']}" == key for peer in (await told(host)).get("peers", ()))

    await until(heard, WITHIN_S, f"{key} on {host.name}", lambda: Log.of(host).text[-1500:])


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_lease_over_etcd_on_the_link_is_refused_also_after_a_restart(lab: Lab, backend: str) -> None:
    await config(lab, backend)
    await lab.start_agents()
    await lab.connect_containers()
    await until_they_meet(lab, "Network covers the segment")
    names = ("192.168.50.4-31", "192.168.50.0-25", "192.168.48.0-20")
    for number, name in enumerate(names):
        put_leased(lab, f"{SUBNETS}/{name}", rogue(backend, number + 1))
    await until_refused(lab, *names)
    one = lab.host(1)
    for turn in range(2):
        assert "dev eth1" in (await shell(one, f"ip route get {ON_LINK}"))[0]
        assert (await told(one))["ready"]
        await until_they_meet(lab, f"beside the rogue leases, turn {turn}")
        if not turn:
            await one.agent.restart()
            await until_refused(lab, *names)
    await alive(lab, one, f"{SUBNETS}/192.168.200.0-24", backend)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_etcd_behind_a_gateway_stays_in_reach(lab: Lab, backend: str) -> None:
    """Inside Network and on no link of the host's: only the default route leads there."""
    box, one = lab.box("etcd"), lab.host(1)
    rules = f"table ip t {{ chain p {{ type nat hook prerouting priority -100; ip daddr {BEHIND} dnat to {ON_LINK}; }}; }}"
    await box.exec("nft", "-f", "-", stdin=rules)
    await shell(one, f"ip route replace default via {ON_LINK}")
    await config(lab, backend)
    url = lab.etcd.urls[0].replace(ON_LINK, BEHIND)
    assert BEHIND in url
    await one.start_agent(f"--etcd-endpoints={url}")
    name = "192.168.7.8-31"
    put_leased(lab, f"{SUBNETS}/{name}", rogue(backend, 1))
    await until(lambda: refused(one, name), WITHIN_S, f"{name} is refused", lambda: Log.of(one).text[-1500:])
    found = {each["code"]: each["text"] for each in (await told(one))["conditions"]}
    assert f"{BEHIND}, etcd" in found["network-overlap"]
    for _ in range(2):
        assert f"via {ON_LINK}" in (await shell(one, f"ip route get {BEHIND}"))[0]
        await one.agent.restart()
    await alive(lab, one, f"{SUBNETS}/192.168.200.0-24", backend)
    ours = [IPNetwork(line.removeprefix("unreachable ").split()[0]) for line in await routes(one, "proto 102")]
    assert not any(IPAddress(BEHIND) in net for net in ours)
    if backend == "udp":  # the rest of Network goes where it went before
        assert all(any(IPAddress(near) in net for net in ours) for near in ("192.168.7.8", "192.168.7.10", "192.168.199.1"))


@pytest.mark.topology(hosts=1, containers=0)
async def test_a_start_takes_away_what_covers_the_way_to_etcd(lab: Lab) -> None:
    """A route of an earlier run, on our own device: nobody could hear from etcd that its lease is gone."""
    one = lab.host(1)
    await config(lab, "vxlan")
    await one.start_agent()
    await one.agent.stop()
    await shell(one, f"ip route add {ON_LINK}/32 dev flannel.1 proto 102")
    await one.start_agent()
    assert "dev eth1" in (await shell(one, f"ip route get {ON_LINK}"))[0]
    assert Log.of(one).lines("in the way to", ON_LINK)


@pytest.mark.topology(hosts=1, containers=0)
async def test_an_address_that_comes_under_a_peers_lease_takes_its_route_away(lab: Lab) -> None:
    one = lab.host(1)
    await config(lab, "vxlan")
    await one.start_agent()
    key = f"{SUBNETS}/192.168.77.0-24"
    put_leased(lab, key, rogue("vxlan", 1))

    async def there() -> bool:
        return any(line.startswith("192.168.77.0/24") for line in await routes(one, "proto 102"))

    await until(there, WITHIN_S, "the peer's route")
    await shell(one, "ip address add 192.168.77.9/32 dev lo")
    await until(lambda: refused(one, "192.168.77.0-24"), WITHIN_S, "the peer is refused", lambda: Log.of(one).text[-1500:])
    await until(lambda: _not(there()), WITHIN_S, "no route")
    await shell(one, "ip address del 192.168.77.9/32 dev lo")
    await until(there, WITHIN_S, "the peer's route again")


async def _not(asked: asyncio.Future[bool]) -> bool:
    return not await asked
