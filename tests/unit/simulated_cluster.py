"""A store with the registry's semantics and hosts that run the lease rules against it, in time that only the test moves.

      rules -- ask --> [ under way ] -- serve, lose, delay --> store
        ^                                                        |
        +--- outcome ------------ watch, each host's own pace ---+

Create writes where nothing is (version 0), renew and release where the revision is still the same, and an etcd lease takes its
key away when its time is over. A host that writes over or deletes what another host owns is caught in the act.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from netaddr import IPAddress, IPNetwork

from flannelpy.core import lease_events as ev
from flannelpy.core.config import NetworkConfig
from flannelpy.core.leasing import Leasing
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key, subnet_key
from flannelpy.registry import Put
from flannelpy.registry.etcd.records import Keys, decode_put
from flannelpy.registry.memory import MemoryStore

TTL_S = 900
MARGIN_S = 60.0


@dataclass(frozen=True)
class Gone:
    key: str
    revision: int


Change = Lease | Gone


class Store:
    """The registry in memory, as far as leases go: what a change of it is, and when it is seen, is in the test's hand."""

    def __init__(self) -> None:
        self.etcd = MemoryStore()
        self.keys = Keys.under("/coreos.com/network")
        self.watchers: list[deque[Change]] = []
        self.full = False
        """Refuses to write, and extends leases."""
        self.unreadable = False
        """Refuses to list, and extends leases."""
        self._seen = 0  # of the history
        self._read: dict[str, Lease] = {}

    @property
    def now(self) -> float:
        return self.etcd.now

    @property
    def revision(self) -> int:
        return self.etcd.revision

    @property
    def leases(self) -> dict[str, Lease]:
        """What stands, by key."""
        return self._read

    @property
    def times(self) -> dict[int, tuple[float, int]]:
        """When each etcd lease ends, and its TTL."""
        return {number: (grant.until, grant.ttl_s) for number, grant in self.etcd.grants.items()}

    def extend(self, lease: Lease, until: float) -> None:
        """Somebody else has extended it."""
        self.etcd.grants[lease.etcd_lease].until = until

    def listing(self) -> ev.Listed:
        return ev.Listed(tuple(self.leases[key] for key in sorted(self.leases)), self.revision)

    def put(self, subnet: IPNetwork, subnet6: IPNetwork | None, attrs: LeaseAttrs, ttl_s: int) -> Lease:
        """Write without looking, as etcdctl and flanneld do."""
        key = self.keys.lease(subnet_key(subnet, subnet6))
        self.etcd.put(key, attrs.to_json(), self.etcd.grant(ttl_s))
        self._take_in()
        return self.leases[subnet_key(subnet, subnet6)]

    def delete(self, key: str) -> None:
        self.etcd.delete(self.keys.lease(key))
        self._take_in()

    def pass_time(self, seconds: float) -> None:
        self.etcd.advance(seconds)
        self._take_in()

    def perform(self, ask: ev.Ask, host: IPAddress) -> ev.Event:
        """What the registry does and answers. Raises AssertionError where a host touches what is not its own."""
        if self.full and isinstance(ask, ev.Create | ev.Renew | ev.Release):
            return FAILED[type(ask)]("etcd takes no more writes: database space exceeded")
        if self.unreadable and isinstance(ask, ev.List):
            return ev.ListFailed("user 'flannel' lacks the role")
        match ask:
            case ev.List():
                return self.listing()
            case ev.Create(subnet, subnet6, attrs, ttl_s):
                if Lease(subnet, attrs, subnet6).key in self.leases:
                    return ev.CreateTaken()
                return ev.Created(self.put(subnet, subnet6, attrs, ttl_s))
            case ev.Renew(lease, attrs, ttl_s):
                there = self.leases.get(lease.key)
                if there is None or there.mod_revision != lease.mod_revision:
                    return ev.RenewConflict()
                assert there.public_ip == host, f"{host} writes over {there}"
                assert (ttl_s == 0) == there.reserved, (
                    f"{host} renews {there} for {ttl_s} s: a reservation stays one, and only that"
                )
                return ev.Renewed(self.put(lease.subnet, lease.subnet6, attrs, ttl_s))
            case ev.KeepAlive(lease):
                grant = self.etcd.grants.get(lease.etcd_lease)
                if grant is None:
                    return ev.KeepAliveLost()
                grant.until = self.now + grant.ttl_s
                return ev.KeptAlive(float(grant.ttl_s))
            case ev.Release(lease):
                there = self.leases.get(lease.key)
                if there is None or there.mod_revision != lease.mod_revision:
                    return ev.ReleaseConflict()
                assert there.public_ip == host, f"{host} deletes {there}"
                assert not there.reserved, f"{host} deletes the reservation {there}"
                self.delete(lease.key)
                return ev.Released()

    def _take_in(self) -> None:
        """Read what has changed, and let the watchers know."""
        for record in self.etcd.history[self._seen :]:
            name = self.keys.name(record.key)
            if record.value is None:
                del self._read[name]
                change: Change = Gone(name, record.mod_revision)
            else:
                put = decode_put(
                    name,
                    record.value,
                    etcd_lease=record.etcd_lease,
                    create_revision=record.create_revision,
                    mod_revision=record.mod_revision,
                )
                assert isinstance(put, Put)
                self._read[name] = change = put.lease
            for watcher in self.watchers:
                watcher.append(change)
        self._seen = len(self.etcd.history)


FAILED: dict[type[ev.Ask], type[ev.Event]] = {
    ev.List: ev.ListFailed,
    ev.Create: ev.CreateFailed,
    ev.Renew: ev.RenewFailed,
    ev.KeepAlive: ev.KeepAliveFailed,
    ev.Release: ev.ReleaseFailed,
}


class Host:
    """A host: the rules, what they have under way, and the part of the watch that has not reached it yet."""

    def __init__(
        self, store: Store, config: NetworkConfig, attrs: LeaseAttrs, seed: int, previous: Iterable[IPNetwork] = ()
    ) -> None:
        self.store, self.config, self.attrs, self.seed = store, config, attrs, seed
        self.watch: deque[Change] = deque()
        store.watchers.append(self.watch)
        self.conditions: dict[str, str] = {}
        self.history: list[ev.Action] = []
        self.late: list[ev.Ask] = []  # given up, but on their way
        self.start(previous)

    def start(self, previous: Iterable[IPNetwork] = ()) -> None:
        """Begin anew, as after a crash; what was under way is not heard of again."""
        self.rules = Leasing(self.config, self.attrs, Random(self.seed), previous=previous, ttl_s=TTL_S, renew_margin_s=MARGIN_S)
        self.ask: ev.Ask | None = None
        self.alarm: float | None = None
        self.conditions.clear()
        self.watch.clear()
        self.tell(ev.Started())

    def tell(self, event: ev.Event) -> list[ev.Action]:
        before = self.rules.held
        actions = self.rules.step(self.store.now, event)
        self.history += actions
        for action in actions:
            match action:
                case ev.WakeAt(when):
                    self.alarm = when
                case ev.Tell(code, detail):
                    self.conditions[code] = detail
                case ev.Clear(code):
                    del self.conditions[code]
                case ev.Hold(lease):
                    assert lease == self.rules.held
                case ev.Lost():
                    assert before is not None
                case _:
                    assert self.ask is None, f"{self.ask} is under way, and now {action}"
                    self.ask = action
        assert self.ask is not None or self.alarm is not None, "nothing will ever happen again"
        return actions

    def serve(self) -> None:
        """What is under way arrives, and so does its answer."""
        ask, self.ask = self.ask, None
        assert ask is not None
        self.tell(self.store.perform(ask, self.attrs.public_ip))

    def lose_request(self) -> None:
        ask, self.ask = self.ask, None
        assert ask is not None
        self.tell(FAILED[type(ask)]("no answer in 5 s"))

    def lose_answer(self) -> None:
        assert self.ask is not None
        self.store.perform(self.ask, self.attrs.public_ip)
        self.lose_request()

    def delay_request(self) -> None:
        """Given up now, and it arrives yet."""
        assert self.ask is not None
        self.late.append(self.ask)
        self.lose_request()

    def arrive(self) -> None:
        self.store.perform(self.late.pop(0), self.attrs.public_ip)

    def see(self) -> None:
        """The next change of the watch."""
        change = self.watch.popleft()
        held = self.rules.held
        if isinstance(change, Lease):
            self.tell(ev.OwnPut(change))
        elif held is not None and change.key == held.key:
            self.tell(ev.OwnDeleted(change.revision))
        else:
            self.tell(ev.SubnetFreed(*parse_subnet_key(change.key), change.revision))

    def wake(self) -> None:
        self.alarm = None
        self.tell(ev.Woke())


def settle(store: Store, hosts: list[Host], seconds: float = 5.0 * TTL_S) -> None:
    """No more faults: everything is served in turn, and time passes where nobody has anything to do."""
    over = store.now + seconds
    for _ in range(20_000):
        for host in hosts:
            while host.late:
                host.arrive()
            while host.watch:
                host.see()
            if host.ask:
                host.serve()
        if any(host.ask or host.watch or host.late for host in hosts):
            continue
        if store.now >= over:
            return
        alarms = [host.alarm for host in hosts if host.alarm is not None]
        ends = [store.times[lease.etcd_lease][0] for lease in store.leases.values() if lease.etcd_lease]
        store.pass_time(max(0.0, min([*alarms, *ends, over]) - store.now))
        for host in hosts:
            if host.alarm is not None and host.alarm <= store.now:
                host.wake()
    raise AssertionError(f"they never come to rest: {[host.ask for host in hosts]}")
