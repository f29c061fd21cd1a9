"""Leases that come and go in any order: what is believed is what a fresh start would believe, and no address is two peers'."""

from __future__ import annotations

import re
from random import Random

from netaddr import IPAddress, IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.membership import Changes, Membership
from flannelpy.core.model import Lease, LeaseAttrs
from tests.fuzz.mutation import SEED, rounds

VXLAN = frozenset({"vxlan"})
CONFIGS = [
    NetworkConfig.parse(text)
    for text in (
        '{"Network": "10.5.0.0/20", "Backend": {"Type": "vxlan"}}',
        '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/56", "Backend": {"Type": "vxlan"}}',
        '{"Network": "10.5.0.0/20", "EnableIPv6": true, "IPv6Network": "fd00:5::/56", "Backend": {"Type": "vxlan"}}',
    )
]


def some_lease(random: Random, revision: int) -> Lease:
    """Few subnets, of few lengths, with host bits at times: they meet often."""
    length = random.choice((24, 24, 24, 23, 22, 25, 20))
    subnet = IPNetwork((0x0A050000 + (random.randrange(12) << 8) + random.choice((0, 0, 0, 5, 128)), length), version=4)
    subnet6 = None
    if random.random() < 0.4:
        value = 0xFD000005 << 96 | random.randrange(4) << 64 | random.choice((0, 0, 1))
        subnet6 = IPNetwork((value, random.choice((64, 64, 63))), version=6)
        if random.random() < 0.1:
            subnet6 = IPNetwork("::/0")
        if random.random() < 0.2:
            subnet = IPNetwork("0.0.0.0/0")
    attrs = LeaseAttrs(
        IPAddress(f"192.0.2.{random.randrange(1, 6)}"),
        random.choice((None, IPAddress(f"2001:db8::{random.randrange(1, 6)}"))),
        backend_type=random.choice(("vxlan", "vxlan", "vxlan", "udp", "")),
    )
    return Lease(subnet, attrs, subnet6, etcd_lease=1, create_revision=revision, mod_revision=revision)


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return bool(one.version == other.version and one.first <= other.last and other.first <= one.last)


def nets(lease: Lease) -> list[IPNetwork]:
    return [net for net in (lease.subnet, lease.subnet6) if net is not None and (net.prefixlen or net.version == 6)]


class Follower:
    """Somebody who only hears of changes."""

    def __init__(self) -> None:
        self.peers: dict[str, Lease] = {}

    def hear(self, changes: Changes) -> None:
        for key, lease in changes.peers.items():
            if lease is None:
                self.peers.pop(key, None)
            else:
                self.peers[key] = lease


def content(peers: dict[str, Lease]) -> dict[str, object]:
    return {key: lease.attrs for key, lease in peers.items()}


def one_life(random: Random) -> None:
    config, address = random.choice(CONFIGS), IPAddress("192.0.2.1")
    one, follower = Membership(config, VXLAN, address=address), Follower()
    held: dict[str, Lease] = {}
    own: Lease | None = None
    for revision in range(1, random.randrange(2, 40)):
        match random.randrange(10):
            case 0 | 1 | 2 if held:
                key = random.choice(sorted(held))
                del held[key]
                follower.hear(one.remove(key))
            case 3 if held:
                renewed = random.choice(sorted(held.values(), key=lambda lease: lease.key))
                held[renewed.key] = Lease(renewed.subnet, renewed.attrs, renewed.subnet6, 2, renewed.create_revision, revision)
                follower.hear(one.put(held[renewed.key]))
            case 4:
                own = random.choice([None, *(held[key] for key in sorted(held))])
                follower.hear(one.set_own(own))
            case 5 if held:
                held = {key: lease for key, lease in held.items() if random.random() < 0.7}
                follower.hear(one.replace(held.values()))
            case 6:
                config = random.choice(CONFIGS)
                follower.hear(one.configure(config, VXLAN, address))
            case _:
                lease = some_lease(random, revision)
                before = held.get(lease.key)
                if before is not None:  # a put on a key that is there keeps its creation
                    lease = Lease(lease.subnet, lease.attrs, lease.subnet6, 1, before.create_revision, revision)
                held[lease.key] = lease
                follower.hear(one.put(lease))
        usable = [(key, net) for key, lease in one.peers.items() for net in nets(lease)]
        for place, (key, net) in enumerate(usable):
            for other_key, other in usable[place + 1 :]:
                assert key == other_key or not overlap(net, other), f"{key} and {other_key} are both usable"
    assert content(follower.peers) == content(dict(one.peers)), "changes do not add up"
    fresh = Membership(config, VXLAN, address=address)
    fresh.set_own(own)
    fresh.replace(held.values())
    assert content(dict(one.peers)) == content(dict(fresh.peers)), "a fresh start believes something else"
    reported = [{key for key, why in each.refused.items() if why} for each in (one, fresh)]
    assert set(one.refused) == set(fresh.refused), "a fresh start refuses others"
    assert reported[0] == reported[1], "a fresh start reports others"
    names = {key.replace("-", "/").removeprefix("0.0.0.0/0&") for key in (*held, *([own.key] if own else []))}
    for why in one.refused.values():  # which of several that it overlaps is named may differ, but not be one that is gone
        named = re.search(r"overlaps the older lease (\S+) at", why)
        assert named is None or named[1] in names, why


def test_any_life_of_a_cluster_ends_where_a_fresh_start_begins() -> None:
    for number, random in enumerate(rounds(1500)):
        try:
            one_life(random)
        except AssertionError as error:
            raise AssertionError(f"try {number} of FUZZ_SEED={SEED}: {error}") from error
