"""What becomes of a peer whose key is gone? It depends on what became of the etcd lease that the key hung on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from backends.host_gw import HostGw
from flannelpy.agent.cluster import Cluster
from flannelpy.agent.departures import AT_ONCE, EARLY, FATES, Departures
from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import LEASE_TTL_S, NO_ADDRESS, Lease, LeaseAttrs, parse_subnet_key
from flannelpy.core.underlay import Underlay
from flannelpy.registry import Batch
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from tests.unit.agents import PREFIX, TIMEOUTS, VXLAN, HostInMemory, until, vxlan_value
from tests.unit.virtual_time import run as run_virtually


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


def key(number: int) -> str:
    return f"{PREFIX}/subnets/10.5.{number}.0-24"


def put_leased(host: HostInMemory, number: int, at: str = "", mac: str = "") -> None:
    """A peer as its own agent would write it, under an etcd lease."""
    value = vxlan_value(at or f"192.0.2.{number}", mac or f"02:00:00:00:00:{number:02x}")
    host.store.put(key(number), value, host.store.grant(60))


def route(number: int) -> str:
    return f"route 10.5.{number}.0/24 via 10.5.{number}.0 dev flannel.1 onlink"


async def test_a_lease_that_expired_is_kept_and_one_that_was_deleted_is_not(host: HostInMemory) -> None:
    for number in (9, 10):
        put_leased(host, number)
    async with host.run():
        await until(lambda: host.holds(route(9)) and host.holds(route(10)))
        host.store.expire(key(9))
        host.store.delete(key(10))
        await until(lambda: not host.holds(route(10)))
        await asyncio.sleep(3 * TIMEOUTS.departure_s)
        assert host.holds(route(9))
        put_leased(host, 9, at="192.0.2.99", mac="02:00:00:00:00:99")  # the subnet has a new host
        await until(lambda: host.holds("fdb 02:00:00:00:00:99 dst 192.0.2.99 dev flannel.1 self permanent"))
        assert not host.holds("fdb 02:00:00:00:00:09 dst 192.0.2.9 dev flannel.1 self permanent")


async def test_one_whose_key_is_gone_stands_in_nobodys_way(host: HostInMemory) -> None:
    """Its host is back with another subnet and the MAC that it has kept; the older key is the one that is no more."""
    put_leased(host, 9, mac="02:00:00:00:00:99")
    async with host.run():
        await until(lambda: host.holds(route(9)))
        host.store.expire(key(9))
        put_leased(host, 10, at="192.0.2.10", mac="02:00:00:00:00:99")
        await until(lambda: host.holds(route(10)))
        assert host.holds("fdb 02:00:00:00:00:99 dst 192.0.2.10 dev flannel.1 self permanent")
        await until(lambda: host.conditions() == {})


async def test_nobody_goes_while_etcd_cannot_be_asked(host: HostInMemory) -> None:
    put_leased(host, 9)
    async with host.run():
        await until(lambda: host.holds(route(9)))
        host.store.delete(key(9))
        put_leased(host, 10)
        await until(lambda: host.holds(route(10)))  # so the deletion was seen, too
        host.store.stop()
        await asyncio.sleep(4 * TIMEOUTS.departure_s)
        assert host.holds(route(9))
        host.store.start()
        await until(lambda: not host.holds(route(9)))


@pytest.mark.parametrize("how", ["expired", "lost"])
@pytest.mark.parametrize("silent_after_s", [0.0, 0.05, 0.15])
async def test_nobodys_time_is_over_while_etcd_cannot_be_asked(host: HostInMemory, how: str, silent_after_s: float) -> None:
    """Neither of one whose lease has ended, nor of one that etcd has lost with its data; whenever etcd goes silent."""
    host.timeouts = replace(TIMEOUTS, expired_s=0.2, reset_s=0.2)
    put_leased(host, 9)
    async with host.run():
        await until(lambda: host.holds(route(9)))
        if how == "expired":
            host.store.expire(key(9))
        else:
            host.store.lose_data()
            host.store.put(f"{PREFIX}/config", json.dumps(VXLAN))
        put_leased(host, 10)
        await until(lambda: host.holds(route(10)))
        await asyncio.sleep(silent_after_s)
        host.store.stop()
        await asyncio.sleep(0.2 + 4 * TIMEOUTS.departure_s)
        assert host.holds(route(9))
        host.store.start()
        await until(lambda: not host.holds(route(9)))
        assert host.holds(route(10))


async def test_a_store_that_lost_everything_and_has_a_higher_revision_than_before(host: HostInMemory) -> None:
    """No revision tells; the lease that the watch's new connection does not know does."""
    put_leased(host, 9)
    async with host.run():
        await until(lambda: host.holds(route(9)))
        lease, steps = host.lease, len(host.kernel.applied)
        config, revision = host.store.records[f"{PREFIX}/config".encode()].value, host.store.revision
        host.store.lose_data()
        assert config is not None
        host.store.put(f"{PREFIX}/config", config)
        while host.store.revision < revision + 10:
            host.store.put("/elsewhere", "x")
        await until(lambda: f"{PREFIX}/subnets/{lease}".encode() in host.store.records)
        await asyncio.sleep(4 * TIMEOUTS.departure_s)
        assert host.holds(route(9))
        assert len(host.kernel.applied) == steps


# ------------------------------------------------------------------------------------------------ the rules of our lease


CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
OURS = LeaseAttrs(IPAddress("192.0.2.1"), backend_type="vxlan")


def held(rules: Leasing, etcd_lease: int) -> Lease:
    """Take the lease that the rules choose."""
    rules.step(0.0, ev.Started())
    (create,) = rules.step(0.1, ev.Listed((), 1))
    assert isinstance(create, ev.Create)
    lease = Lease(create.subnet, create.attrs, etcd_lease=etcd_lease, create_revision=2, mod_revision=2)
    rules.step(0.2, ev.Created(lease))
    return lease


def test_a_new_connection_is_asked_at_once_whether_it_knows_our_lease() -> None:
    rules = Leasing(CONFIG, OURS, Random(1))
    lease = held(rules, 7)
    assert rules.step(1.0, ev.Reconnected()) == [ev.KeepAlive(lease)]
    rules.step(1.1, ev.KeepAliveLost())
    assert ev.List() in rules.step(5.0, ev.Woke())


def test_of_a_reservation_what_is_listed_a_little_later_tells() -> None:
    """All hosts have new connections at one moment: none lists for itself."""
    rules = Leasing(CONFIG, OURS, Random(1))
    lease = held(rules, 0)
    assert not [action for action in rules.step(1.0, ev.Reconnected()) if not isinstance(action, ev.WakeAt)]
    assert not [action for action in rules.step(7.0, ev.Overheard((lease,), 9)) if not isinstance(action, ev.WakeAt)]
    rules.step(8.0, ev.Reconnected())
    *_, create = rules.step(14.0, ev.Overheard((), 10))
    assert isinstance(create, ev.Create)
    assert create.subnet == lease.subnet


# --------------------------------------------------------------------------------------- a watch that knows nothing of it


class Unaware(MemoryRegistry):
    """Its watch goes on as if revisions had not started over; it has come up again when others had written as much as before."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.begun: list[int] = []
        self.batches: asyncio.Queue[Batch] = asyncio.Queue()

    async def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        self.begun.append(from_revision)
        while True:
            yield await self.batches.get()


async def test_a_watch_of_before_a_reset_is_not_trusted(host: HostInMemory) -> None:
    registry = Unaware(host.store)
    cluster = Cluster(host.context(registry), wake=lambda: None)
    cluster.configure(NetworkConfig.parse('{"Network": "10.5.0.0/16"}'), (HostGw(),), None, Underlay())
    for _ in range(5):
        put_leased(host, 9)
    following = asyncio.create_task(cluster.follow())
    try:
        await cluster.listed.wait()
        before = cluster.revision
        registry.batches.put_nowait(Batch((), before, connected=True))
        await until(lambda: registry.batches.empty())
        await cluster.refresh()  # the keeper asked first, and has the listing that there is
        host.store.lose_data()
        await cluster.refresh()  # the keeper asked
        put_leased(host, 10)
        registry.batches.put_nowait(Batch((), before, connected=True))
        await until(lambda: len(registry.begun) == 2)
        assert registry.begun == [before + 1, host.store.revision + 1]
        assert "10.5.10.0-24" in cluster.view.leases
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


# ------------------------------------------------------------------------------------------------- a key that is defaced


def test_what_nobody_can_read_in_our_key_is_written_over() -> None:
    rules = Leasing(CONFIG, OURS, Random(1))
    lease = held(rules, 7)
    (renew,) = rules.step(1.0, ev.OwnDefaced(lease.key, 9))
    assert renew == ev.Renew(replace(lease, mod_revision=9), OURS, LEASE_TTL_S)
    rules.step(1.1, ev.Renewed(replace(lease, etcd_lease=8, mod_revision=10)))
    assert rules.held == replace(lease, etcd_lease=8, mod_revision=10)
    assert not any(isinstance(action, ev.Renew) for action in rules.step(2.0, ev.OwnDefaced(lease.key, 11)))  # not at once again
    assert any(isinstance(action, ev.Renew) for action in rules.step(4.0, ev.Woke()))


def test_a_listing_in_which_our_key_is_defaced_loses_nothing() -> None:
    rules = Leasing(CONFIG, OURS, Random(1))
    lease = held(rules, 7)
    (renew,) = rules.step(1.0, ev.Overheard((), 9, (Lease(lease.subnet, LeaseAttrs(NO_ADDRESS), mod_revision=9),)))
    assert renew == ev.Renew(replace(lease, mod_revision=9), OURS, LEASE_TTL_S)


def test_our_subnet_of_before_is_taken_up_although_its_key_is_defaced_and_no_other_is() -> None:
    before, other = IPNetwork("10.5.1.0/24"), IPNetwork("10.5.2.0/24")
    config = NetworkConfig.parse('{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.4.0"}')
    defaced = tuple(Lease(net, LeaseAttrs(NO_ADDRESS), mod_revision=9) for net in (before, other, IPNetwork("10.0.0.0/8")))
    rules = Leasing(config, OURS, Random(1), previous=[before])
    rules.step(0.0, ev.Started())
    (release,) = rules.step(0.1, ev.Listed((), 9, defaced))
    assert release == ev.Release(defaced[0])
    assert rules.step(0.2, ev.Released()) == [ev.List()]
    (create,) = rules.step(0.3, ev.Listed((), 10, defaced[1:]))
    assert isinstance(create, ev.Create)
    assert create.subnet == before
    for seed in range(20):
        stranger = Leasing(config, OURS, Random(seed))
        stranger.step(0.0, ev.Started())
        (create,) = stranger.step(0.1, ev.Listed((), 9, defaced))
        assert isinstance(create, ev.Create)
        assert create.subnet not in (before, other)


@pytest.mark.parametrize(
    "theirs", ["0.0.0.0-0&fd05:0:0:7::-64", "0.0.0.0-0", "10.5.1.0-24&fd05:0:0:7::-64", "10.5.2.0-24&fd05:0:0:1::-64"]
)
@pytest.mark.parametrize("v4", [False, True], ids=["6", "46"])
def test_anothers_defaced_key_is_not_ours_because_it_says_nothing_of_ipv4_or_shares_a_half(theirs: str, v4: bool) -> None:
    """An IPv6-only host has the IPv4 half of all others in its own key, and so in what it remembers of it."""
    text = {"EnableIPv4": v4, "EnableIPv6": True, "Network": "10.5.0.0/16", "IPv6Network": "fd05::/48"}
    ours = "10.5.1.0-24" if v4 else "0.0.0.0-0"
    previous = [net for net in parse_subnet_key(f"{ours}&fd05:0:0:1::-64") if net is not None]
    subnet, subnet6 = parse_subnet_key(theirs)
    rules = Leasing(NetworkConfig.parse(json.dumps(text)), OURS, Random(1), previous=previous)
    rules.step(0.0, ev.Started())
    (create,) = rules.step(0.1, ev.Listed((), 9, (Lease(subnet, LeaseAttrs(NO_ADDRESS), subnet6, mod_revision=9),)))
    assert isinstance(create, ev.Create)


@pytest.mark.parametrize("seed", range(5))
def test_however_many_depart_each_goes_at_its_time_and_once(seed: int) -> None:
    """Keys that go, come back and go again, with etcd leases that have ended or not; and one question at a time."""
    dice = Random(seed)
    keys = [Lease(IPNetwork((0x0A050000 + 16 * number, 28)), LeaseAttrs(NO_ADDRESS), etcd_lease=1) for number in range(500)]
    timeouts = replace(TIMEOUTS, departure_s=3.0, expired_s=10.0)
    most = asking = 0

    class Asked:
        async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
            nonlocal most, asking
            asking += 1
            most = max(most, asking)
            await asyncio.sleep(0.01)
            asking -= 1
            return frozenset(lease.key for lease in leases if lease.subnet.value % 32 == 0)

    async def play() -> None:
        loop = asyncio.get_running_loop()
        went: dict[str, float] = {}
        left: dict[str, float] = {}

        def gone(key: str) -> None:
            assert key not in went
            went[key] = loop.time()

        departures = Departures(Asked(), timeouts, gone)  # type: ignore[arg-type]
        task = asyncio.create_task(departures.run())
        for _ in range(2_000):
            lease = dice.choice(keys)
            if lease.key in left and lease.key not in went and dice.random() < 0.5:
                departures.returned(lease.key)
                del left[lease.key]
            elif lease.key not in left:
                departures.depart(lease)
                left[lease.key] = loop.time()
            await asyncio.sleep(dice.choice([0.0, 0.0, 0.005]))
        await asyncio.sleep(14.0)
        task.cancel()
        assert left.keys() == went.keys()
        assert departures.kept == {}
        for lease in keys:
            if lease.key in left:
                wait_s = 3.0 if lease.subnet.value % 32 == 0 else 13.0
                early_s = 3.0 * EARLY * (1 if wait_s == 3.0 else 2)
                assert wait_s - early_s <= went[lease.key] - left[lease.key] < wait_s + 0.2

    run_virtually(play())
    assert most == 1


@pytest.mark.parametrize(("number", "within_s"), [(1, 0.0), (2, 0.1), (500, 0.4), (500, 2.0), (AT_ONCE + 1, 0.4)])
@pytest.mark.parametrize("deleted", [False, True])
def test_those_who_go_together_are_asked_about_together(number: int, within_s: float, deleted: bool) -> None:
    """A rack that leaves: each of all hosts asks, and each question about one would be one more from each of them."""
    questions: list[int] = []

    class Asked:
        async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
            questions.append(len(leases))
            return frozenset(lease.key for lease in leases if deleted)

    async def play() -> None:
        departures = Departures(Asked(), replace(TIMEOUTS, departure_s=3.0), lambda _: None)  # type: ignore[arg-type]
        task = asyncio.create_task(departures.run())
        for each in range(number):
            departures.depart(Lease(IPNetwork((each << 4, 28)), LeaseAttrs(NO_ADDRESS)))
            await asyncio.sleep(within_s / number)
        await asyncio.sleep(6.0)
        task.cancel()

    run_virtually(play())
    assert sum(questions) == number
    assert len(questions) <= 1 + within_s / (3.0 * EARLY) + number // AT_ONCE


def test_hosts_do_not_all_ask_at_one_moment() -> None:
    """Each waits by chance; and no longer for the second of a rack than for the first, or each would be a question of its own."""
    asked: list[tuple[float, int]] = []

    class Asked:
        async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
            asked.append((asyncio.get_running_loop().time(), len(leases)))
            return frozenset(lease.key for lease in leases)

    async def play() -> None:
        dice, began = Random(7), asyncio.get_running_loop().time()
        for _ in range(100):
            timeouts = replace(TIMEOUTS, departure_s=3.0)
            departures = Departures(Asked(), timeouts, lambda _: None, lambda: dice.uniform(0.0, 5.0))  # type: ignore[arg-type]
            for each in range(20):
                departures.depart(Lease(IPNetwork((each << 4, 28)), LeaseAttrs(NO_ADDRESS)))
            tasks.add(asyncio.create_task(departures.run()))
        await asyncio.sleep(9.0)
        for task in tasks:
            task.cancel()
        assert {number for _, number in asked} == {20}
        times = sorted(when - began for when, _ in asked)
        assert 3.0 <= times[0] < 3.5 < 7.5 < times[-1] <= 8.0
        assert max(later - earlier for earlier, later in pairwise(times)) < 0.5

    tasks: set[asyncio.Task[None]] = set()
    run_virtually(play())
    assert len(asked) == 100


def test_fates_that_nobody_asks_for_are_forgotten() -> None:
    class Forgetful:
        async def outliving(self, _leases: Sequence[Lease]) -> frozenset[str]:
            return frozenset()

    async def play() -> int:
        timeouts = replace(TIMEOUTS, departure_s=0.001, reset_s=0.001)
        departures = Departures(Forgetful(), timeouts, lambda _: None)  # type: ignore[arg-type]
        task = asyncio.create_task(departures.run())
        for number in range(FATES + 500):
            departures.depart(Lease(IPNetwork((number << 4, 28)), LeaseAttrs(NO_ADDRESS)), reset=True)
        await asyncio.sleep(10.0)
        task.cancel()
        return len(departures.fates)

    assert run_virtually(play()) == FATES


def test_who_was_to_be_decided_on_when_something_failed_goes_all_the_same() -> None:
    async def play() -> list[str]:
        went: list[str] = []
        fails = True

        def gone(key: str) -> None:
            if fails:
                raise RuntimeError("a bug")
            went.append(key)

        class Asked:
            async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
                if fails:
                    raise RuntimeError("a bug")
                return frozenset(lease.key for lease in leases)

        departures = Departures(Asked(), replace(TIMEOUTS, departure_s=1.0), gone)  # type: ignore[arg-type]
        for number in range(5):
            departures.depart(Lease(IPNetwork((number << 4, 28)), LeaseAttrs(NO_ADDRESS)))
        with pytest.raises(RuntimeError):
            await departures.run()
        fails = False
        task = asyncio.create_task(departures.run())
        await asyncio.sleep(1.5)
        task.cancel()
        return went

    assert len(run_virtually(play())) == 5
