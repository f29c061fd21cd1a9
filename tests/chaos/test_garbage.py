"""What does it cost when somebody fills the prefix with what is no lease?

c1 - h1 ==== vxlan 1 ==== h2 - c2         10,000 keys and values of every wrong kind, before, beside and after the leases
"""

from __future__ import annotations

import json
import time
from functools import partial
from random import Random

import pytest

from netns_lab.lab import PREFIX, Lab
from tests.chaos.chaos_support import LATE, put_peer, unharmed
from tests.lab.agent_support import SUBNETS, Log, Vtep, lease_of, put_many, until, until_programmed, until_said, vtep

COUNT = 10_000
VALUES = (
    "",
    "1",
    "{",
    "null",
    "[]",
    "{}",
    '{"PublicIP": 5}',
    '{"PublicIP": "", "BackendType": "vxlan"}',
    '{"PublicIP": "192.168.50.66", "BackendType": "vxlan", "BackendData": "oops"}',
    '{"PublicIP": "192.168.50.66", "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": "no mac"}}',
    '{"PublicIP": "192.168.50.66", "BackendType": "carrier-pigeon"}',
    "[" * 2000,
    "\x7f\u2603" * 20,
)
NAMES = (
    "{0}",
    "10.1.{1}.0",
    "10.1.{1}.0-24x",
    "10.1.{1}.0-99",
    "10.1.{1}.{0}-24",
    "fe80::{0}-64",
    "10.1.{1}.0-24&",
    "a/b/{0}",
    "-{0}",
    "10.9.{1}.0-24",
)


def garbage(count: int) -> dict[str, str]:
    """Keys and values of every wrong kind, by a seed that does not change."""
    random = Random(7)
    made: dict[str, str] = {}
    while len(made) < count:
        number = len(made)
        place = random.choice(
            (f"{SUBNETS}/", f"{SUBNETS}/", f"{SUBNETS}/", f"{PREFIX}/subnets-oops", f"{PREFIX}/subnetsX", f"{PREFIX}/config/")
        )
        made[place + random.choice(NAMES).format(number, number % 200)] = random.choice(VALUES)
    return made


@pytest.mark.topology(hosts=2)
async def test_ten_thousand_keys_of_garbage(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    own, peer, log = await vtep(one), await vtep(two), Log.from_now(one)
    # "10.1.N.0-24" with a bad value is a lease as far as its key goes; these two must not be written over by it.
    mess = {key: value for key, value in garbage(COUNT).items() if key not in (own.key, peer.key)}
    async with unharmed(overlay, f"{COUNT} keys of garbage below the prefix, put and deleted"):
        overlay.etcd.put(f"{PREFIX}/subnets-oops", "1")
        overlay.etcd.put(f"{PREFIX}/subnetsX", "1")
        put_many(overlay, mess)
        start = time.monotonic()
        put_peer(overlay, LATE)
        await until_programmed(one, LATE, timeout_s=10)
        await until_programmed(two, LATE, timeout_s=10)
        assert time.monotonic() - start < 10
        await two.agent.restart(within_s=30)  # a listing among garbage, too
        assert await vtep(two) == peer
        overlay.etcd.ctl("del", "--prefix", f"{PREFIX}/subnets-")
        overlay.etcd.ctl("del", "--prefix", f"{PREFIX}/subnetsX")
        await until_said(log, "more of the kind", timeout_s=10)
    assert overlay.etcd.get(own.key) == own.value
    assert len(log.text.splitlines()) < 1000, "each bad key is not told in a line of its own"
    assert [line for line in log.lines("error:") if "lease" in line and own.subnet in line] == []


@pytest.mark.topology(hosts=2)
async def test_our_own_key_is_filled_with_garbage(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    own, peer = await vtep(one), await vtep(two)
    async with unharmed(overlay, "garbage in the keys of both hosts, 6 times"):
        for value in VALUES[:3]:
            for mine in (own, peer):
                overlay.etcd.put(mine.key, value)
                await until(partial(stands, overlay, mine), 15, f"{mine.key} is as it was")


@pytest.mark.topology(hosts=2)
async def test_our_key_was_filled_with_garbage_while_we_were_away(overlay: Lab) -> None:
    """The value of a stopped host's key is gone, its packets are not; the subnet is its own when it returns."""
    two = overlay.host(2)
    peer = await vtep(two)
    async with unharmed(overlay, "garbage in the key of a host whose agent is down"):
        await two.agent.stop()
        overlay.etcd.put(peer.key, "{")
        await two.agent.start()
        assert overlay.etcd.get(peer.key) == peer.value
        assert await vtep(two) == peer


def stands(lab: Lab, own: Vtep) -> bool:
    """The key is as its owner wants it, under an etcd lease."""
    return lab.etcd.get(own.key) == own.value and bool(lease_of(lab, own.key))


def test_the_garbage_is_garbage() -> None:
    """The test would show nothing if most of it were one kind."""
    mess = garbage(COUNT)
    assert len(mess) == COUNT
    assert {json.dumps(value) for value in mess.values()} == {json.dumps(value) for value in VALUES}
