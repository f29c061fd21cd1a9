"""Does one bad key ever cost a good peer anything? And do ten hosts that start at once share the network out?

c1 10.1.72.2 - h1 192.168.50.11 ==== vxlan 1 ==== h2 192.168.50.12 - c2 10.1.9.2         etcd: a hundred keys that are no peers
"""

from __future__ import annotations

import re

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    PREFIX,
    SUBNETS,
    Log,
    Vtep,
    fdb,
    lab_name,
    losing_nothing,
    neighbours,
    no_traceback,
    put_leased,
    put_many,
    remember_subnet,
    routes,
    until,
    until_programmed,
    vtep,
)

GOOD = Vtep("10.1.9.0/24", "192.168.50.12", "")


RESERVED = '{"PublicIP":"192.168.50.73","PublicIPv6":null}'


def vxlan(address: str, mac: str) -> str:
    return Vtep("", address, mac).value


def bad_values() -> dict[str, str]:
    """Subnet keys whose values are of no use."""
    values = [
        "",
        "oops",
        "{",
        "null",
        "[]",
        "17",
        '"text"',
        "{}",
        '{"PublicIP":null}',
        '{"PublicIP":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:01"}}',
        '{"PublicIP":17,"PublicIPv6":null,"BackendType":"vxlan"}',
        '{"PublicIP":"","PublicIPv6":null,"BackendType":"vxlan"}',
        '{"PublicIP":"localhost","PublicIPv6":null,"BackendType":"vxlan"}',
        '{"PublicIP":"2001:db8::1","PublicIPv6":null,"BackendType":"vxlan"}',
        '{"PublicIP":"192.168.50.300","PublicIPv6":null,"BackendType":"vxlan"}',
        '{"PublicIP":"192.168.50.61","PublicIPv6":5,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:02"}}',
        '{"PublicIP":"192.168.50.62","PublicIPv6":null,"BackendType":7,"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:03"}}',
        '{"PublicIP":"192.168.50.63","PublicIPv6":null,"BackendType":"vxlan"}',
        '{"PublicIP":"192.168.50.64","PublicIPv6":null,"BackendType":"vxlan","BackendData":null}',
        '{"PublicIP":"192.168.50.65","PublicIPv6":null,"BackendType":"vxlan","BackendData":"text"}',
        '{"PublicIP":"192.168.50.66","PublicIPv6":null,"BackendType":"vxlan","BackendData":{}}',
        '{"PublicIP":"192.168.50.67","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"nonsense"}}',
        '{"PublicIP":"192.168.50.68","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":5}}',
        '{"PublicIP":"192.168.50.69","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00"}}',
        # A group address would make the kernel send every packet of ours to it.
        '{"PublicIP":"192.168.50.70","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}}',
        '{"PublicIP":"192.168.50.71","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}}',
        '{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:04"}}',
        '{"PublicIP":"127.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:05"}}',
        '{"PublicIP":"224.0.0.5","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:06"}}',
        '{"PublicIP":"255.255.255.255","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:01:07"}}',
        '{"PublicIP":"192.168.50.72","PublicIPv6":null,"BackendType":"host-gw"}',
        RESERVED,
        '{"PublicIP":"192.168.50.74","PublicIPv6":null,"BackendType":"nonsense","BackendData":[[[]]]}',
        '{"PublicIP":"192.168.50.75","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"x","Port":51820}}',
        '{"PublicIP":' * 2000,
        "[" * 5000,
        '{"PublicIP":"' + "1" * 20000 + '"}',
        "\u0000\u0001\u001b[31mred",
        "zwölf",
    ]
    return {f"{SUBNETS}/10.1.{101 + number}.0-24": value for number, value in enumerate(values)}


def bad_keys() -> dict[str, str]:
    """Keys that are no subnet of this network, with values that would be right."""
    names = [
        "-oops",
        "oops",
        "x/y",
        "/",
        "/ ",
        "/x",
        "/10",
        "/10.1.13.0",
        "/10.1-24",
        "/10.1.13.300-24",
        "/10.1.13.0-24hi",
        "/10.1.13.0-24 ",
        "/&2001::-56",
        "/10.1.13.0-24&:12:13:-56",
        "/10.1.13.0-24&20011::-56",
        "/10.1.13.0-24&2001-56",
        "/10.1.13.0-24&2001::",
        "/10.1.13.0-24&2001::-56hi",
        "/10.1.13.0-33",
        "/10.1.13.0-32",
        "/10.1.13.0--1",
        "/10.1.13.0-024x",
        "/10.1.13.0-2400000000000000000000",
        "/255.255.255.255-32",
        "/0.0.0.0-0",
        "/10.1.205.7-24",  # host bits
        "/10.99.7.0-24",  # outside Network
        "/192.168.50.0-24",  # the segment itself
        "/10.0.0.0-8",  # around Network
        "/10.1.0.0-16",  # all of Network
        "/10.1.72.128-25",  # half of ours
        "/10.1.9.0-25",  # half of h2's
        "/10.1.9.128-25",
        "/10.1.8.0-23",  # around h2's
        "/10.1.210.0-24/",
        "/10.1.211.0-24/deeper",
        "/subnets/10.1.212.0-24",
        "/10.1.2\u0661\u0663.0-24",  # digits of another script
        "/\u001b[31mred",
    ]
    names += [f"/garbage-{number}" for number in range(20)]
    return {
        f"{SUBNETS}{name}": vxlan(f"192.168.50.{130 + number}", f"02:00:00:00:02:{number:02x}") for number, name in enumerate(names)
    }


def told(text: str) -> int:
    """How many conditions a log tells of: its warnings and errors, and what it says to be of the same kind."""
    count = 0
    for line in text.splitlines():
        more = re.search(r": (\d+) more of the kind", line)
        if " resolved: " not in line and "resolved: " not in line.partition("warning: ")[2][:10]:
            count += int(more[1]) if more else "warning: " in line or "error: " in line
    return count


@pytest.mark.topology(hosts=2)
async def test_a_hundred_bad_keys_cost_no_peer_anything_and_are_said_once(lab: Lab) -> None:
    one, two = lab.host(1), lab.host(2)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(two, "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    peer = await vtep(two)
    bad = bad_keys() | bad_values()
    assert len(bad) >= 90
    log, before = Log.from_now(one), sorted(await routes(one))
    async with losing_nothing(lab, "c1", "c2"):
        put_many(lab, bad)
        late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
        lab.etcd.put(late.key, late.value)
        await until_programmed(one, late)
        await until_programmed(two, late)
    # Nothing of it has come into the kernel.
    assert sorted(line for line in await routes(one) if late.base not in line) == before
    assert sorted(await neighbours(one)) == sorted([peer.neighbour, late.neighbour])
    assert sorted(await fdb(one)) == sorted([peer.fdb, late.fdb])
    said = log.text
    below = [key for key in bad if key.startswith(f"{SUBNETS}/")]  # what only shares the letters is nobody's business
    quiet = [key for key in below if bad[key] in ("{}", RESERVED)]  # without a backend it is a reservation, no peer yet
    assert len(below) - len(quiet) <= told(said) <= len(bad) + 2, said  # a pair may be told as one more
    assert len(said.splitlines()) < 40
    assert "\u001b" not in said
    assert max(len(line) for line in said.splitlines()) < 1000
    # They go: the peers stay.
    async with losing_nothing(lab, "c1", "c2"):
        for key in (f"{SUBNETS}/10.1.1", f"{SUBNETS}/10.1.8", f"{SUBNETS}-", f"{SUBNETS}/garbage"):
            lab.etcd.ctl("del", "--prefix", key)
    assert await peer.missing(one) == []
    assert await late.missing(one) == []


BAD = {
    "/10.1.13.0-24hi": vxlan("192.168.50.30", "02:00:00:00:03:01"),
    "/10.1.14.0-24": '{"PublicIP":null}',
    "/10.1.15.0-24": "oops",
    "/10.1.205.7-24": vxlan("192.168.50.31", "02:00:00:00:03:02"),
    "/10.99.7.0-24": vxlan("192.168.50.32", "02:00:00:00:03:03"),
    "/10.1.72.128-25": vxlan("192.168.50.33", "02:00:00:00:03:04"),
    "/10.1.9.128-25": vxlan("192.168.50.34", "02:00:00:00:03:05"),
    "/10.1.16.0-24": '{"PublicIP":"192.168.50.35","PublicIPv6":null,"BackendType":"host-gw"}',
    "/10.1.17.0-24": '{"PublicIP":"192.168.50.36","PublicIPv6":null,"BackendType":"vxlan"}',
}


@pytest.mark.topology(hosts=2, containers=0)
async def test_each_bad_key_is_named_once_with_what_was_expected(lab: Lab) -> None:
    one = lab.host(1)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(lab.host(2), "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    for number, (name, value) in enumerate(BAD.items()):
        log = Log.from_now(one)
        lab.etcd.put(f"{SUBNETS}{name}", value)
        await until(lambda log=log: log.lines("warning:") + log.lines("error:"), 2, f"a line about {name}")
        # Again, as a watch that starts over would bring it.
        lab.etcd.put(f"{SUBNETS}{name}", value)
        late = Vtep(f"10.1.{80 + number}.0/24", f"192.168.50.{80 + number}", f"02:00:00:00:00:{80 + number}")
        lab.etcd.put(late.key, late.value)
        await until_programmed(one, late)
        assert len(log.lines("warning:") + log.lines("error:")) == 1, log.text
        key = name.strip("/")
        assert key in log.text or key.replace("-", "/") in log.text  # as it is written, or as the subnet that it stands for


@pytest.mark.topology(hosts=1, containers=0)
async def test_an_agent_starts_among_bad_keys_as_among_none(lab: Lab) -> None:
    bad = bad_keys() | bad_values()
    # What does lie in Network takes its place there; this one takes all of it.
    del bad[f"{SUBNETS}/10.1.0.0-16"], bad[f"{SUBNETS}/10.1.72.128-25"]
    put_many(lab, bad)
    late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    lab.etcd.put(late.key, late.value)
    one = lab.host(1)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    await one.start_agent(within_s=5)
    assert str(one.subnet) == "10.1.72.0/24"
    await until_programmed(one, late)
    assert "02:00:00:00:01:" not in " ".join(await fdb(one))
    assert len(Log.of(one).text.splitlines()) < 40


@pytest.mark.topology(hosts=2)
async def test_of_two_leases_that_claim_one_thing_the_older_is_programmed(lab: Lab) -> None:
    one, two = lab.host(1), lab.host(2)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(two, "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    peer, own = await vtep(two), await vtep(one)
    clone = Vtep("10.1.60.0/24", "192.168.50.60", peer.mac)  # a cloned machine: the same MAC elsewhere
    ours = Vtep("10.1.61.0/24", "192.168.50.61", own.mac)  # a clone of ourselves
    overlap = Vtep("10.1.8.0/23", "192.168.50.62", "02:00:00:00:00:62")
    log = Log.from_now(one)
    async with losing_nothing(lab, "c1", "c2"):
        for each in (clone, ours, overlap):
            lab.etcd.put(each.key, each.value)
            await until(lambda each=each: log.lines(each.base), 2, f"a line about {each.subnet}", lambda: log.text)
        assert await peer.missing(one) == []
        for each in (clone, ours, overlap):
            assert each.subnet not in " ".join(await routes(one))
            assert len([line for line in log.begun(each.base) if "warning" in line or "error" in line]) == 1
    # The older one goes: the other is what is left.
    await two.agent.stop()
    lab.etcd.delete(peer.key)
    await until_programmed(one, clone)


@pytest.mark.topology(hosts=2)
async def test_our_public_address_in_another_key_is_said_and_changes_nothing(lab: Lab) -> None:
    await lab.start_agents()
    await lab.connect_containers()
    one, own = lab.host(1), await vtep(lab.host(1))
    twin = Vtep("10.1.222.0/24", str(one.address), "02:00:00:00:00:99")
    log = Log.from_now(one)
    async with losing_nothing(lab, "c1", "c2"):
        put_leased(lab, twin.key, twin.value)
        await until(lambda: log.begun(twin.base), 3, "a line about the twin", lambda: log.text)
    assert await vtep(one) == own
    assert lab.etcd.get(own.key) == own.value
    assert len([line for line in log.begun(twin.base) if "error" in line or "warning" in line]) == 1
    lab.etcd.delete(twin.key)
    await until(lambda: [line for line in log.lines(twin.base) if " resolved: " in line], 3, "its end is told", lambda: log.text)


@pytest.mark.topology(hosts=10)
async def test_ten_hosts_started_at_once_have_ten_subnets_and_all_containers_meet(lab: Lab) -> None:
    assert lab.etcd.keys(SUBNETS) == []
    await lab.start_agents()
    assert len({host.subnet for host in lab.hosts}) == 10
    assert sorted(lab.etcd.keys(SUBNETS)) == sorted(host.lease_key for host in lab.hosts)
    peers = [await vtep(host) for host in lab.hosts]
    assert len({peer.mac for peer in peers}) == 10
    for host, own in zip(lab.hosts, peers, strict=True):
        await until_programmed(host, *(peer for peer in peers if peer is not own))
    await lab.connect_containers()
    assert [pair for pair, ping in (await lab.matrix()).items() if not ping.ok] == []
    for host in lab.hosts:
        assert Log.of(host).lines("warning:") + Log.of(host).lines("error:") == []
    assert lab.etcd.get(f"{PREFIX}/config") is not None
