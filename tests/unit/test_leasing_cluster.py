"""Do several hosts over one store keep the peace? Every order of requests, answers, watch events, losses, crashes and clock.

The store itself catches a host that writes over or deletes another's key, and one that gives a reservation an end.
"""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from netaddr import IPAddress, IPNetwork

from flannelpy.core import lease_events as ev
from flannelpy.core.claims import overlapping
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import LeaseAttrs

from .simulated_cluster import TTL_S, Host, Store, settle

FIVE_BLOCKS = NetworkConfig.parse('{"Network": "10.5.0.0/21", "SubnetMax": "10.5.5.0"}')
DUAL = NetworkConfig.parse(
    """{"Network": "10.5.0.0/21", "SubnetMax": "10.5.5.0",
        "EnableIPv6": true, "IPv6Network": "fd00:5::/60", "IPv6SubnetMax": "fd00:5:0:5::"}"""
)
STRANGER = IPAddress("203.0.113.9")


def attrs_of(number: int, data: str = "first") -> LeaseAttrs:
    return LeaseAttrs(IPAddress(f"192.0.2.{number}"), backend_type="vxlan", backend_data={"VNI": 1, "VtepMAC": data})


class Cluster(RuleBasedStateMachine):
    """A few hosts, few blocks, and everything that can happen between them."""

    config = FIVE_BLOCKS
    hosts_count = 4

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.store = Store()
        self.hosts = [Host(self.store, self.config, attrs_of(n), seed + n) for n in range(1, self.hosts_count + 1)]
        self.listed = self.store.listing()
        self.odd = False  # a key of another length was written, so that overlaps may come to be

    def host(self, pick: int) -> Host:
        return self.hosts[pick % len(self.hosts)]

    @rule(pick=st.integers(0, 7), how=st.sampled_from(["serve"] * 5 + ["lose_request", "lose_answer", "delay_request"]))
    def answer(self, pick: int, how: str) -> None:
        if self.host(pick).ask:
            getattr(self.host(pick), how)()

    @rule(pick=st.integers(0, 7))
    def late_request_arrives(self, pick: int) -> None:
        if self.host(pick).late:
            self.host(pick).arrive()

    @rule(pick=st.integers(0, 7), count=st.integers(1, 5))
    def watch(self, pick: int, count: int) -> None:
        for _ in range(count):
            if self.host(pick).watch:
                self.host(pick).see()

    @rule(pick=st.integers(0, 7))
    def unasked_snapshot(self, pick: int) -> None:
        self.host(pick).tell(ev.Overheard(self.store.listing().leases, self.store.revision))

    @rule()
    def somebody_lists(self) -> None:
        self.listed = self.store.listing()

    @rule(pick=st.integers(0, 7))
    def unasked_snapshot_that_comes_late(self, pick: int) -> None:
        self.host(pick).tell(ev.Overheard(self.listed.leases, self.listed.revision))

    @rule(seconds=st.sampled_from([0.05, 1.0, 10.0, TTL_S / 3, TTL_S / 2, TTL_S + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.store.pass_time(seconds)
        for host in self.hosts:
            if host.alarm is not None and host.alarm <= self.store.now:
                host.wake()

    @rule(pick=st.integers(0, 7))
    def wakes_early(self, pick: int) -> None:
        self.host(pick).tell(ev.Woke())

    @rule(pick=st.integers(0, 7), remembers=st.booleans())
    def crashes(self, pick: int, remembers: bool) -> None:
        host = self.host(pick)
        held = host.rules.held
        previous = [net for net in (held.subnet, held.subnet6) if net] if held and remembers else []
        host.start(previous)

    @rule(pick=st.integers(0, 7), data=st.text("abc", min_size=1, max_size=2))
    def publishes_something_else(self, pick: int, data: str) -> None:
        host = self.host(pick)
        host.attrs = LeaseAttrs(host.attrs.public_ip, backend_type="vxlan", backend_data=data)
        host.tell(ev.AttrsChanged(host.attrs))

    @precondition(lambda self: self.store.leases)
    @rule(pick=st.integers(0, 7))
    def operator_deletes(self, pick: int) -> None:
        keys = sorted(self.store.leases)
        self.store.delete(keys[pick % len(keys)])

    @precondition(lambda self: self.store.leases)
    @rule(pick=st.integers(0, 7), ttl_s=st.sampled_from([0, 5, TTL_S]))
    def operator_edits(self, pick: int, ttl_s: int) -> None:
        lease = self.store.leases[sorted(self.store.leases)[pick % len(self.store.leases)]]
        enough = any(there.reserved for there in self.store.leases.values())
        if lease.public_ip != STRANGER and not (ttl_s == 0 and enough):
            self.store.put(lease.subnet, lease.subnet6, LeaseAttrs(lease.public_ip), ttl_s)

    @precondition(lambda self: self.store.leases)
    @rule(pick=st.integers(0, 7))
    def stranger_writes_over(self, pick: int) -> None:
        lease = self.store.leases[sorted(self.store.leases)[pick % len(self.store.leases)]]
        self.store.put(lease.subnet, lease.subnet6, LeaseAttrs(STRANGER), TTL_S)

    @rule(subnet=st.sampled_from(["10.5.1.128/25", "10.5.2.0/23", "10.9.0.0/24", "10.5.3.0/24"]))
    def stranger_takes(self, subnet: str) -> None:
        self.odd = True
        self.store.put(IPNetwork(subnet), None, LeaseAttrs(STRANGER), TTL_S)

    @invariant()
    def no_two_leases_overlap(self) -> None:
        if not hasattr(self, "store") or self.odd or self.config.v6:
            return
        leases = list(self.store.leases.values())
        assert not [(one, other) for one in leases for other in leases if one.key < other.key and overlapping(one, other)]

    @invariant()
    def every_lease_of_ours_is_inside(self) -> None:
        for lease in self.store.leases.values() if hasattr(self, "store") else ():
            if lease.public_ip != STRANGER:
                assert self.config.v4 is not None
                assert self.config.v4.fits(lease.subnet)
                assert self.config.v6 is None or (lease.subnet6 is not None and self.config.v6.fits(lease.subnet6))

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        settle(self.store, self.hosts)
        for host in self.hosts:
            held = host.rules.held
            assert held is not None, f"{host.attrs.public_ip} has no lease; {host.conditions}"
            assert self.store.leases.get(held.key) == held
            assert held.attrs == host.attrs
        leases = list(self.store.leases.values())
        assert not [(one, other) for one in leases for other in leases if one.key < other.key and overlapping(one, other)]


class DualStackCluster(Cluster):
    """Two independent halves in one key: a create does not tell whether another key has one of them."""

    config = DUAL
    hosts_count = 3


TestCluster = Cluster.TestCase
TestDualStackCluster = DualStackCluster.TestCase
for _cluster in (TestCluster, TestDualStackCluster):
    _cluster.settings = settings(
        max_examples=60, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


def test_two_hundred_hosts_race_for_exactly_two_hundred_subnets() -> None:
    config = NetworkConfig.parse('{"Network": "10.5.0.0/16", "SubnetMax": "10.5.200.0"}')
    store = Store()
    hosts = [Host(store, config, LeaseAttrs(IPAddress(f"192.0.2.{n}"), backend_type="host-gw"), seed=n) for n in range(1, 201)]
    rounds = 0
    order = Random(1)
    while any(host.rules.held is None for host in hosts):
        rounds += 1
        for asked in (ev.List, ev.Create):
            order.shuffle(hosts)
            for host in hosts:
                if isinstance(host.ask, asked):
                    host.serve()
        store.pass_time(2.0)
        for host in hosts:
            if host.rules.held is None:
                host.wake()
    assert len({host.rules.held.subnet for host in hosts if host.rules.held}) == 200
    assert rounds <= 10
