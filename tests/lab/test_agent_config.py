"""Is a bad network config waited for, said in one line, and taken at once when it is mended?

h1 192.168.50.11 ==== etcd 192.168.50.5 /coreos.com/network/config: missing, broken, impossible, changed, deleted
"""

from __future__ import annotations

import pytest
from netaddr import IPNetwork

from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import (  # noqa: F401
    Log,
    Vtep,
    lab_name,
    losing_nothing,
    no_traceback,
    put_leased,
    settled_overlay,
    until,
    until_programmed,
    until_said,
    vtep,
)

CONFIG = f"{PREFIX}/config"
GOOD = '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}'

BAD = [
    pytest.param(None, ("missing",), id="missing"),
    pytest.param("", (), id="empty"),
    pytest.param('{"Network": "10.1.0.0/16",}', ("JSON",), id="broken JSON"),
    pytest.param("[]", (), id="an array"),
    pytest.param("oops", ("JSON",), id="no JSON"),
    pytest.param("{}", ("Network",), id="no Network"),
    pytest.param('{"Network":"10.1.0.0/40"}', ("Network", "10.1.0.0/40"), id="no CIDR"),
    pytest.param('{"Network":7}', ("Network",), id="wrong type"),
    pytest.param('{"Network":"fd00::/48"}', ("Network", "fd00::/48"), id="IPv6 in Network"),
    pytest.param('{"Network":"10.1.0.0/16","SubnetLen":17}', ("SubnetLen", "17"), id="SubnetLen too short"),
    pytest.param('{"Network":"10.1.0.0/16","SubnetLen":31}', ("SubnetLen", "31"), id="SubnetLen too long"),
    pytest.param('{"Network":"10.1.0.0/16","SubnetLen":-1}', ("SubnetLen", "-1"), id="SubnetLen negative"),
    pytest.param('{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}', ("SubnetMin", "10.2.0.0"), id="SubnetMin outside"),
    pytest.param('{"Network":"10.1.0.0/16","SubnetMax":"10.1.9.7"}', ("SubnetMax", "10.1.9.7"), id="SubnetMax unaligned"),
    pytest.param('{"Network":"10.1.0.0/29"}', ("10.1.0.0/29",), id="Network too small"),
    pytest.param('{"Network":"10.1.0.0/16","Backend":{"Type":"warp"}}', ("warp", "vxlan"), id="unknown backend"),
    pytest.param('{"Network":"10.1.0.0/16","Backend":{}}', ("Backend",), id="no Type"),
    pytest.param('{"Network":"10.1.0.0/16","Backend":"vxlan"}', ("Backend",), id="Backend a string"),
    pytest.param('{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":"one"}}', ("VNI", "one"), id="a backend's option"),
    pytest.param('{"EnableIPv4":false,"EnableIPv6":false}', ("IPv4",), id="no family"),
]


@pytest.mark.topology(hosts=1, containers=0)
async def test_every_bad_config_is_one_line_and_the_good_one_is_taken_at_once(lab: Lab) -> None:
    """One agent, one bad config after the other, then the good one."""
    one = lab.host(1)
    faults = []
    lab.etcd.delete(CONFIG)
    log = Log.of(one)
    agent = one.launch_agent()
    await until(lambda: log.begun("config at"), 5, "it says what it waits for")
    for case in BAD:
        value, words = case.values
        if value is not None:
            log = Log.from_now(one)
            lab.etcd.put(CONFIG, str(value))
        try:
            line = await until_said(log, "error:", f"config at {CONFIG}", *words)
        except AssertionError as error:
            faults.append(f"{case.id}: {error}")
            continue
        if len(log.begun("error:")) + len(log.begun("warning:")) != 1 or "waiting" not in line:
            faults.append(f"{case.id}: {log.begun('error:')}")
    assert not faults, "\n".join(faults)
    assert "READY" not in agent.said
    assert lab.etcd.keys(f"{PREFIX}/subnets") == []
    lab.etcd.put(CONFIG, GOOD)
    await agent.ready(within_s=2)
    assert one.subnet in IPNetwork("10.1.0.0/16")


@pytest.mark.topology(hosts=1, containers=0)
async def test_an_agent_that_waits_for_a_config_starts_the_moment_it_comes(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.delete(CONFIG)
    agent = one.launch_agent()
    await until(lambda: Log.of(one).begun("missing"), 5, "it waits")
    lab.etcd.put(CONFIG, GOOD)
    await agent.ready(within_s=1)
    assert len(Log.of(one).begun("missing")) == 1
    assert [line for line in Log.of(one).lines("missing") if "resolved: " in line]


@pytest.mark.parametrize("value", [None, "oops", '{"Network":"10.1.0.0/16","Backend":{"Type":"warp"}}'])
@pytest.mark.topology(hosts=2)
async def test_a_config_that_cannot_be_used_under_a_running_agent_is_a_line_and_stops_nothing(
    overlay: Lab, value: str | None
) -> None:
    one = overlay.host(1)
    before, log = await vtep(one), Log.from_now(one)
    async with losing_nothing(overlay, "c1", "c2"):
        if value is None:
            overlay.etcd.delete(CONFIG)
        else:
            overlay.etcd.put(CONFIG, value)
        await until_said(log, "config")
        late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
        put_leased(overlay, late.key, late.value)
        await until_programmed(one, late)
    assert len(log.begun("config")) == 1
    assert await vtep(one) == before
    # As it was: that is told too.
    overlay.etcd.put(CONFIG, GOOD)
    await until(lambda: [line for line in log.lines("config") if "resolved: " in line], 3, "its end is told", lambda: log.text)
    assert await before.missing(overlay.host(2)) == []


FOLLOWED = {
    "MTU": '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}',
    "VNI": '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":7}}',
    "port": '{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","Port":4789}}',
    "host-gw": '{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}',
    "udp": '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}',
}


@pytest.mark.parametrize("change", FOLLOWED)
@pytest.mark.topology(hosts=2)
async def test_a_config_that_changes_is_followed_in_place(overlay: Lab, change: str) -> None:
    """The same process, the same lease, the same bridge; and back again."""
    hosts = [overlay.host(1), overlay.host(2)]
    before = [(host.agent.pid, host.subnet) for host in hosts]
    keys = overlay.etcd.keys(f"{PREFIX}/subnets")
    for text in (FOLLOWED[change], GOOD):
        logs = [Log.from_now(host) for host in hosts]
        overlay.etcd.put(CONFIG, text)
        for log in logs:
            await until_said(log, "the network config has changed, and is followed")
        for there, back in (("c1", "c2"), ("c2", "c1")):
            await overlay.until(lambda there=there, back=back: pings(overlay, there, back), timeout_s=20)
    assert [(host.agent.pid, host.subnet) for host in hosts] == before
    assert overlay.etcd.keys(f"{PREFIX}/subnets") == keys


@pytest.mark.topology(hosts=2)
async def test_another_network_is_followed_in_place(overlay: Lab) -> None:
    """Every host takes another subnet; containers need their bridge's new addresses, which a restart of Docker gives."""
    hosts = [overlay.host(1), overlay.host(2)]
    pids = [host.agent.pid for host in hosts]
    overlay.etcd.put(CONFIG, '{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}')

    async def moved() -> bool:
        return all(host.subnet in IPNetwork("10.200.0.0/16") for host in hosts)

    await overlay.until(moved, timeout_s=20)
    await overlay.connect_containers()
    await overlay.until(lambda: pings(overlay, "c1", "c2"), timeout_s=20)
    assert [host.agent.pid for host in hosts] == pids
    assert len(overlay.etcd.keys(f"{PREFIX}/subnets")) == 2


async def pings(lab: Lab, there: str, back: str) -> bool:
    return (await lab.ping(there, back)).ok


@pytest.mark.topology(hosts=2)
async def test_a_subnet_length_of_another_config_is_followed_at_the_next_start(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    old = await vtep(one)
    overlay.etcd.put(CONFIG, '{"Network":"10.9.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}')
    await one.agent.restart()
    await two.agent.restart()
    assert {host.subnet.prefixlen for host in (one, two)} == {26}
    assert "10.9." in str(one.subnet)
    assert overlay.etcd.get(old.key) is None
    await until_programmed(one, await vtep(two))
    await overlay.connect_containers()
    assert (await overlay.ping("c1", "c2")).ok


@pytest.mark.topology(hosts=1, containers=0)
async def test_no_free_subnet_is_waited_for(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.put(CONFIG, '{"Network":"10.1.0.0/28","Backend":{"Type":"vxlan"}}')  # three blocks of four
    for number in (4, 8, 12):
        taken = Vtep(f"10.1.0.{number}/30", f"192.168.50.{100 + number}", f"02:00:00:00:00:{number:02x}")
        put_leased(lab, taken.key, taken.value)
    agent = one.launch_agent()
    await until(lambda: Log.of(one).begun("no free subnet"), 5, "it waits")
    assert "READY" not in agent.said
    lab.etcd.delete(f"{PREFIX}/subnets/10.1.0.8-30")
    await agent.ready(within_s=3)
    assert str(one.subnet) == "10.1.0.8/30"
    assert len(Log.of(one).begun("no free subnet")) == 1
