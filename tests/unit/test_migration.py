"""Hosts whose network moves to another Type, in memory: by what do they reach each other on the way, and what is left after it?"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.agent import beside, migration
from flannelpy.agent.context import Timeouts
from flannelpy.agent.datapath import DatapathSupervisor
from flannelpy.agent.forecast import Remembered, of_stopped
from flannelpy.agent.offers import IMPLIED_S
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.dialect import lines
from flannelpy.core.errors import MalformedError, RegistryUnavailableError
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.moving import Outgoing, obstacle
from flannelpy.core.objects import Key, Route
from flannelpy.core.offer import Offer
from flannelpy.core.plan import Step
from flannelpy.core.select import Preferring
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.core.wireguard import clamped, key_text
from flannelpy.plugins import Published
from flannelpy.registry.memory import MemoryStore

from .agents import PREFIX, HostInMemory, until, vxlan_value
from .virtual_time import run

NETWORK = {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0"}
VXLAN, HOST_GW, IPIP, UDP = ({**NETWORK, "Backend": {"Type": name}} for name in ("vxlan", "host-gw", "ipip", "udp"))
MAC, OTHER_MAC = "02:00:00:00:00:09", "02:00:00:00:00:08"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "LINGER_S", 0.1)
    monkeypatch.setattr(migration, "LOOK_S", 0.01)


def way(host: HostInMemory, peer: str) -> str:
    """The route to the peer with this lease key."""
    return str(host.kernel.get(Key("route", peer.replace("-", "/"))))


def device(host: HostInMemory, name: str) -> bool:
    return host.kernel.get(Key("link", name)) is not None


def backend_type(host: HostInMemory, key: str) -> str:
    return str(json.loads(host.value(key)).get("BackendType", "udp"))


def offered(host: HostInMemory, key: str) -> list[str]:
    """What stands beside a lease."""
    record = host.store.records.get(f"{PREFIX}/flannelpy/hosts/{key}".encode())
    return [] if record is None else sorted(json.loads(record.value or b"{}")["Carriers"])


def offering(host: HostInMemory, key: str, at: str, data: dict[str, tuple[object, object]] | None) -> None:
    name = f"{PREFIX}/flannelpy/hosts/{key}"
    host.store.delete(name) if data is None else host.store.put(name, Offer(IPAddress(at), None, data).to_json())


def host_gw_value(at: str) -> str:
    return json.dumps({"PublicIP": at, "PublicIPv6": None, "BackendType": "host-gw"})


def ipip_value(at: str) -> str:
    return json.dumps({"PublicIP": at, "PublicIPv6": None, "BackendType": "ipip"})


class Watched:
    """The routes of a host's kernel to its peers, seen after each write: one that is away is a packet that is lost."""

    def __init__(self, host: HostInMemory) -> None:
        self.host = host
        self.lost: list[str] = []
        self.ways: dict[str, list[str]] = {}
        apply = host.kernel.apply

        async def noting(steps):  # type: ignore[no-untyped-def]
            results = await apply(steps)
            for result in results:
                self._note(result.step)
            return results

        host.kernel.apply = noting  # type: ignore[method-assign]

    def _note(self, step: Step) -> None:
        if isinstance(step.item, Route) and step.item.dst.prefixlen == 24:
            self.ways.setdefault(str(step.item.dst), []).append(str(step.item))
            if step.op == "remove" and self.host.kernel.get(Key("route", "10.5.0.0/16")) is None:
                self.lost.append(str(step))


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[HostInMemory, HostInMemory]:
    store = MemoryStore()
    made = HostInMemory(store, tmp_path, 1), HostInMemory(store, tmp_path, 2)
    for each in made:
        each.settings = replace(each.settings, udp_engine="userspace")
    return made


@asynccontextmanager
async def running(*hosts: HostInMemory) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(host.run())
        yield


def reached(name: str, one: HostInMemory, two: HostInMemory) -> bool:
    """True where each of the two sends to the other by this."""
    words = {"vxlan": "dev flannel.1 onlink", "host-gw": "dev eth1", "ipip": "dev flannel.ipip onlink"}[name]
    return all(way(here, there.lease).endswith(words) for here, there in ((one, two), (two, one)))


DEVICES = {"vxlan": "flannel.1", "ipip": "flannel.ipip", "host-gw": "eth1"}


@pytest.mark.parametrize(
    ("before", "after"),
    [("vxlan", "host-gw"), ("host-gw", "vxlan"), ("vxlan", "ipip"), ("ipip", "vxlan"), ("host-gw", "ipip"), ("ipip", "host-gw")],
)
async def test_from_one_type_to_the_other_no_route_is_away_and_nothing_of_the_old_is_left(
    hosts: tuple[HostInMemory, HostInMemory], before: str, after: str
) -> None:
    one, two = hosts
    by_name = {"vxlan": VXLAN, "host-gw": HOST_GW, "ipip": IPIP}
    one.put_config(by_name[before])
    async with running(one, two):
        await until(lambda: reached(before, one, two))
        leases = one.lease, two.lease
        watched = [Watched(host) for host in hosts]
        one.put_config(by_name[after])
        await until(lambda: reached(after, one, two))
        await until(lambda: not any(device(host, DEVICES[before]) for host in hosts) or before == "host-gw")
        await until(lambda: not any(offered(one, key) for key in leases))
        assert [backend_type(one, key) for key in leases] == [after, after]
        assert (one.lease, two.lease) == leases
        assert [each.lost for each in watched] == [[], []]
        # Each was sent to by the old until the new was there, and never by anything else.
        assert all(len(set(ways)) == 1 for each in watched for ways in each.ways.values())
        assert one.conditions() == two.conditions() == {}


async def test_put_back_in_the_middle_it_is_as_before(hosts: tuple[HostInMemory, HostInMemory]) -> None:
    one, two = hosts
    one.put_config(VXLAN)
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two))
        watched = [Watched(host) for host in hosts]
        for _ in range(3):
            one.put_config(IPIP)
            await until(lambda: reached("ipip", one, two))
            assert device(one, "flannel.1")
            one.put_config(VXLAN)
            await until(lambda: reached("vxlan", one, two))
        await until(lambda: not any(device(host, "flannel.ipip") for host in hosts))
        assert [each.lost for each in watched] == [[], []]


async def test_a_peer_that_keeps_the_old_type_is_reached_by_it_until_it_has_the_new_one(
    hosts: tuple[HostInMemory, HostInMemory],
) -> None:
    one, two = hosts
    one.put_config(VXLAN)
    one.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))  # a flanneld, or a host that is down
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two) and "flannel.1" in way(one, "10.5.9.0-24"))
        watched = Watched(one)
        one.put_config(HOST_GW)
        await until(lambda: reached("host-gw", one, two))
        await until(lambda: backend_type(one, one.lease) == "host-gw" and offered(one, one.lease) == ["host-gw", "vxlan"])
        assert "flannel.1" in way(one, "10.5.9.0-24")
        assert one.kernel.get(Key("neigh", "10.5.9.0 dev flannel.1")) is not None
        one.put_peer("10.5.9.0-24", host_gw_value("192.0.2.9"))  # it is there again
        await until(lambda: way(one, "10.5.9.0-24") == "10.5.9.0/24 via 192.0.2.9 dev eth1")
        await until(lambda: not device(one, "flannel.1") and not offered(one, one.lease))
        assert watched.lost == []


async def test_a_host_whose_kernel_cannot_keeps_the_old_and_so_do_its_peers_with_it(
    hosts: tuple[HostInMemory, HostInMemory],
) -> None:
    one, two = hosts
    one.put_config(VXLAN)
    two.kernel.fail(Key("link", "flannel.ipip"), errno.EOPNOTSUPP, times=1_000_000)
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two))
        watched = [Watched(host) for host in hosts]
        one.put_config(IPIP)
        await until(lambda: backend_type(one, one.lease) == "ipip")
        await until(lambda: any(each.startswith("kernel-refused") for each in two.conditions()))
        assert reached("vxlan", one, two)
        assert backend_type(one, two.lease) == "vxlan"
        two.kernel.fail(Key("link", "flannel.ipip"), errno.EOPNOTSUPP, times=1)
        await until(lambda: reached("ipip", one, two))
        assert [each.lost for each in watched] == [[], []]


async def test_a_host_whose_address_forbids_it_stays_and_is_reached_by_the_old(hosts: tuple[HostInMemory, HostInMemory]) -> None:
    one, two = hosts
    two.settings = replace(two.settings, public_ip=IPAddress("192.0.2.77"))  # behind NAT there is no host-gw
    one.put_config(VXLAN)
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two))
        watched = [Watched(host) for host in hosts]
        one.put_config(HOST_GW)
        await until(lambda: backend_type(one, one.lease) == "host-gw")
        await until(lambda: "config-changed" in two.conditions())
        await until(lambda: offered(one, one.lease) == ["host-gw", "vxlan"])
        assert reached("vxlan", one, two)
    assert [each.lost for each in watched] == [[], []]
    async with running(one, two):  # and so it is after a restart in the middle
        await until(lambda: reached("vxlan", one, two))
        assert "config-changed" in two.conditions()
        one.put_config(VXLAN)
        await until(lambda: "config-changed" not in two.conditions() and backend_type(one, one.lease) == "vxlan")
        assert reached("vxlan", one, two)


async def test_a_host_that_was_down_comes_back_to_the_new_type_without_a_gap(hosts: tuple[HostInMemory, HostInMemory]) -> None:
    one, two = hosts
    one.put_config(VXLAN)
    async with one.run():
        async with two.run():
            await until(lambda: reached("vxlan", one, two))
        watched = [Watched(host) for host in hosts]
        one.put_config(IPIP)
        await until(lambda: backend_type(one, one.lease) == "ipip")
        async with two.run():
            await until(lambda: reached("ipip", one, two))
            await until(lambda: not any(device(host, "flannel.1") for host in hosts))
            assert [backend_type(one, host.lease) for host in hosts] == ["ipip", "ipip"]
        assert [each.lost for each in watched] == [[], []]


async def test_a_restart_in_the_middle_goes_on_from_where_it_was(hosts: tuple[HostInMemory, HostInMemory]) -> None:
    one, two = hosts
    one.put_config(VXLAN)
    one.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two))
        one.put_config(IPIP)
        await until(lambda: reached("ipip", one, two) and offered(one, one.lease) == ["ipip", "vxlan"])
    watched = Watched(one)
    async with running(one, two):
        await until(lambda: reached("ipip", one, two))
        assert "flannel.1" in way(one, "10.5.9.0-24")
        assert backend_type(one, one.lease) == "ipip"
        one.delete("10.5.9.0-24")
        await until(lambda: not device(one, "flannel.1"))
    assert [line for line in watched.lost if "10.5.9.0" not in line] == []


async def test_a_stopped_agent_has_nothing_to_do_in_the_middle_of_a_move_but_what_is_missing(
    hosts: tuple[HostInMemory, HostInMemory],
) -> None:
    one, two = hosts
    one.put_config(VXLAN)
    one.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two))
        one.put_config(IPIP)
        await until(lambda: reached("ipip", one, two) and offered(one, one.lease) == ["ipip", "vxlan"])
        await until(lambda: former(one) == 1)
    await until(lambda: one.kernel.get(Key("route", "10.5.9.0/24")) is not None)
    known = Remembered.read(one.settings)
    assert lines((await of_stopped(one.kernel, one.settings, known, known.view.config)).steps) == []
    missing = [one.kernel.get(Key("link", name)) for name in ("flannel.1", "flannel.ipip")]
    await one.kernel.apply([Step("remove", item, item) for item in missing if item is not None])
    steps = lines((await of_stopped(one.kernel, one.settings, known, known.view.config)).steps)
    assert sorted(line.split()[:4] for line in steps if " link " in f" {line} ") == [
        ["ip", "link", "add", name] for name in ("flannel.1", "flannel.ipip")
    ]


@pytest.mark.parametrize(
    "bounds",
    [{"SubnetMax": "10.5.250.0"}, {"SubnetMin": "10.5.100.0"}, {"SubnetMin": "10.5.100.0", "SubnetMax": "10.5.120.0"}],
    ids=["ours fits", "ours fits, too", "another one is leased"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_other_bounds_of_what_is_handed_out_leave_the_old_one_to_who_needs_it(
    hosts: tuple[HostInMemory, HostInMemory], bounds: dict[str, str], at_once: bool
) -> None:
    one, two = hosts
    one.put_config({**VXLAN, "SubnetMax": "10.5.240.0"})
    one.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))  # a flanneld
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two) and "flannel.1" in way(one, "10.5.9.0-24"))
        watched = [Watched(host) for host in hosts]
        if not at_once:
            one.put_config({**IPIP, "SubnetMax": "10.5.240.0"})
            await until(lambda: reached("ipip", one, two) and offered(one, one.lease) == ["ipip", "vxlan"])
        leases = one.lease, two.lease
        one.put_config({**IPIP, **bounds})
        await until(lambda: all(carried(host) == {**IPIP, **bounds} for host in hosts))
        await until(lambda: len(bounds) == 1 or (one.lease not in leases and two.lease not in leases))
        await until(lambda: reached("ipip", one, two) and all(host.settled for host in hosts))
        await until(lambda: offered(one, one.lease) == ["ipip", "vxlan"])
        assert ["flannel.1" in way(host, "10.5.9.0-24") for host in hosts] == [True, True]
        assert [line for each in watched for line in each.lost if not any(net.partition("-")[0] in line for net in leases)] == []
        assert len(bounds) > 1 or [each.lost for each in watched] == [[], []]


@pytest.mark.parametrize("after", ["vxlan", "ipip"])
async def test_nat_that_comes_while_host_gw_is_left_ends_it_here_and_nothing_else(
    hosts: tuple[HostInMemory, HostInMemory], after: str
) -> None:
    one, two = hosts
    one.settings = replace(one.settings, public_ip=IPAddress("192.0.2.1"))
    one.put_config(HOST_GW)
    one.put_peer("10.5.9.0-24", host_gw_value("192.0.2.9"))  # a flanneld
    async with running(one, two):
        await until(lambda: reached("host-gw", one, two) and "eth1" in way(one, "10.5.9.0-24"))
        one.put_config({"vxlan": VXLAN, "ipip": IPIP}[after])
        await until(lambda: reached(after, one, two) and offered(one, one.lease) == sorted(["host-gw", after]))
        watched = Watched(one)
        address = InterfaceAddress(IPAddress("192.0.2.77"), 24)
        one.kernel.set_interface(Interface("eth1", 2, 1500, True, (address,)))
        await until(lambda: "local 192.0.2.77" in str(one.kernel.get(Key("link", DEVICES[after]))))
        await until(lambda: one.settled and reached(after, one, two) and not offered(one, one.lease))
        assert "task-failed" not in " ".join(one.conditions())
        assert [line for line in watched.lost if "10.5.9.0" not in line] == []


@pytest.mark.parametrize(("before", "after"), [("host-gw", "vxlan"), ("host-gw", "ipip")])
@pytest.mark.parametrize("flannels", [0, 1])
async def test_what_the_network_goes_on_preferring_is_left_as_its_type(
    hosts: tuple[HostInMemory, HostInMemory], before: str, after: str, flannels: int
) -> None:
    one, two = hosts
    one.put_config({**NETWORK, "Backend": {"Type": before}})
    for number in range(flannels):
        one.put_peer(f"10.5.{9 - number}.0-24", host_gw_value(f"192.0.2.{9 - number}"))
    async with running(one, two):
        await until(lambda: reached(before, one, two))
        watched = [Watched(host) for host in hosts]
        one.put_config({**NETWORK, "Backend": {"Type": after, "Prefer": [before]}})
        await until(lambda: [backend_type(one, host.lease) for host in hosts] == [after, after])
        for number in range(flannels):  # kept for who has nothing else
            await until(lambda: "type-unfinished host-gw" in one.conditions())
            assert "eth1" in way(one, "10.5.9.0-24")
            value = vxlan_value("192.0.2.9", MAC) if after == "vxlan" else ipip_value("192.0.2.9")
            one.put_peer(f"10.5.{9 - number}.0-24", value)
        await until(lambda: [offered(one, host.lease) for host in hosts] == [[before], [before]])
        await until(lambda: all(former(host) == 0 and host.settled and not host.conditions() for host in hosts))
        assert reached(before, one, two)
        assert [each.lost for each in watched] == [[], []]


@pytest.mark.parametrize("offers", [None, {"host-gw"}, {"host-gw", "other"}])
def test_a_peer_that_has_nothing_but_what_is_preferred_needs_the_type_before(offers: set[str] | None) -> None:
    carriers, local = moving("host-gw", "vxlan")
    carriers = replace(carriers, prefer=("host-gw",), offered=frozenset({"host-gw"}))
    said = None if offers is None else Offer(IPAddress("192.0.2.9"), None, dict.fromkeys(offers, (None, None)))
    path = carriers.path(lease("host-gw", offer=said), local)
    assert (path.carrier, path.preferred) == ("host-gw", False)
    both = Offer(IPAddress("192.0.2.9"), None, {"host-gw": (None, None)})
    path = carriers.path(lease("vxlan", {"VtepMAC": MAC}, both), local)
    assert (path.carrier, path.preferred) == ("host-gw", True)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("prefer", [["host-gw", "wireguard"], ["wireguard", "host-gw"], ["wireguard"]])
async def test_a_peer_that_is_slow_to_have_the_new_type_stays_reached_by_what_is_preferred(
    hosts: tuple[HostInMemory, HostInMemory], prefer: list[str], begun: bool
) -> None:
    """``begun``: it has set it up, and is started anew before its lease says so: then it begins with what the lease says."""
    one, _ = hosts
    data = {"PublicKey": key_text(clamped(bytes(range(32)))), "Port": 51820}
    told = {"PublicIP": "192.0.2.9", "BackendType": "wireguard", "BackendData": data}
    one.put_config({**NETWORK, "Backend": {"Type": "wireguard"}})
    one.put_peer("10.5.9.0-24", json.dumps(told))
    offering(one, "10.5.9.0-24", "192.0.2.9", {"host-gw": (None, None)})
    async with one.run():
        await until(lambda: one.settled)
        watched = Watched(one)
        one.put_config({**NETWORK, "Backend": {"Type": "vxlan", "Prefer": prefer}})
        await until(lambda: backend_type(one, one.lease) == "vxlan" and way(one, "10.5.9.0-24") != "None")
        if begun:
            vxlan = ({"VNI": 1, "VtepMAC": MAC}, None)
            offering(one, "10.5.9.0-24", "192.0.2.9", {"host-gw": (None, None), "vxlan": vxlan})
            await asyncio.sleep(5 * beside.LINGER_S)
            offering(one, "10.5.9.0-24", "192.0.2.9", {"host-gw": (None, None)})
        for _ in range(5):
            await asyncio.sleep(beside.LINGER_S)
            assert way(one, "10.5.9.0-24").endswith("dev eth1" if "host-gw" in prefer else "dev flannel-wg")
        one.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
        await until(lambda: offered(one, one.lease) == sorted(prefer))
        assert watched.lost == []


def carried(host: HostInMemory) -> dict[str, object]:
    """The config that the kernel's side has."""
    assert host.agent is not None
    assert host.agent._network is not None
    found = host.agent._network.steering.carried
    return {} if found is None else dict(json.loads(found[0].text))


def former(host: HostInMemory) -> int:
    """How many Types before are kept."""
    path = host.settings.state_dir / "cluster.json"
    return len(Remembered.read(host.settings).view.former) if path.exists() else 0


async def test_no_peer_is_moved_to_a_datapath_that_has_not_begun(
    hosts: tuple[HostInMemory, HostInMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = hosts
    begun = False
    monkeypatch.setattr(DatapathSupervisor, "begun", property(lambda _: begun))
    one.put_config(VXLAN)
    async with running(one, two):
        await until(lambda: reached("vxlan", one, two))
        one.put_config(IPIP)
        await until(lambda: all(device(host, "flannel.ipip") for host in hosts))
        await until(lambda: all(host.settled for host in hosts))
        assert reached("vxlan", one, two)
        assert [backend_type(one, host.lease) for host in hosts] == ["vxlan", "vxlan"]
        begun = True
        await until(lambda: reached("ipip", one, two))


async def test_a_peer_that_is_faster_than_this_host_stays_reached(hosts: tuple[HostInMemory, HostInMemory]) -> None:
    """What the peers offer is waited for; meanwhile the leases already name the new Type."""
    one, _ = hosts
    one.put_config(VXLAN)
    one.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with one.run():
        await until(lambda: "flannel.1" in way(one, "10.5.9.0-24"))
        one.registry.fail("offers", RegistryUnavailableError("no answer"), float("inf"))
        watched = Watched(one)
        one.put_config(HOST_GW)
        one.put_peer("10.5.9.0-24", host_gw_value("192.0.2.9"))
        await until(lambda: way(one, "10.5.9.0-24") == "10.5.9.0/24 via 192.0.2.9 dev eth1")
        await until(lambda: not device(one, "flannel.1"))
        assert watched.lost == []
        assert "peer-unreadable" not in " ".join(one.conditions())


# ------------------------------------------------------------------------------------------------------------- the rules

UPLINK = Uplink("eth1", 3, 1500, IPAddress("192.0.2.1"), public_ip=IPAddress("192.0.2.1"))
OWN = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), create_revision=1)


def moving(before: str, after: str, *, ready: bool = True) -> tuple[Preferring, Local]:
    old, new = (json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": name}}) for name in (before, after))
    (config, base), (_, backend) = plugins.parse(new), plugins.parse(old)
    outgoing = Outgoing(backend, old)
    macs = {"flannel.1": "aa:aa:aa:aa:aa:aa"}
    local = Local(config, UPLINK, OWN, macs, {IPAddress("192.0.2.9"): "eth1"})
    return Preferring(base, {outgoing.name: outgoing}, (), {}, frozenset(), (outgoing.name,), ready), local


def lease(name: str, data: object = None, offer: Offer | None = None) -> Lease:
    attrs = LeaseAttrs(IPAddress("192.0.2.9"), None, "" if name == "udp" else name, data)
    return Lease(IPNetwork("10.5.9.0/24"), attrs, etcd_lease=1, create_revision=5, mod_revision=5, offer=offer)


HAS_VXLAN = Offer(IPAddress("192.0.2.9"), None, {"vxlan": ({"VtepMAC": MAC}, None)})


def test_a_peer_is_sent_to_by_the_new_type_where_both_ends_have_it() -> None:
    carriers, local = moving("vxlan", "host-gw")
    path = carriers.path(lease("host-gw", offer=HAS_VXLAN), local)
    assert (path.carrier, path.reason) == ("host-gw", "both have it")
    assert [str(item) for item in path.routes] == ["10.5.9.0/24 via 192.0.2.9 dev eth1"]
    assert len(path.setup) == 2  # the way back stays set up


@pytest.mark.parametrize(
    ("peer", "ready", "on_link", "reason"),
    [
        (lease("vxlan", {"VtepMAC": MAC}), True, True, "host-gw: not offered by the peer yet"),
        (lease("host-gw", offer=HAS_VXLAN), False, True, "host-gw: not set up on this host yet"),
        (lease("host-gw", offer=HAS_VXLAN), True, False, "host-gw: not on one link"),
    ],
)
def test_and_by_the_old_one_where_not(peer: Lease, ready: bool, on_link: bool, reason: str) -> None:
    carriers, local = moving("vxlan", "host-gw", ready=ready)
    path = carriers.path(peer, local if on_link else replace(local, on_link={}))
    assert (path.carrier, path.reason) == ("vxlan", reason)
    assert [str(item) for item in path.routes] == ["10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"]


def test_a_peer_that_has_lost_the_old_one_is_reached_by_the_new_whatever_is_against_it() -> None:
    carriers, local = moving("vxlan", "host-gw", ready=False)
    assert carriers.path(lease("host-gw"), replace(local, on_link={})).carrier == "host-gw"


def test_what_cannot_be_read_of_the_new_one_leaves_the_old_one_and_else_is_an_error() -> None:
    carriers, local = moving("host-gw", "vxlan")
    both = Offer(IPAddress("192.0.2.9"), None, {"host-gw": (None, None)})
    path = carriers.path(lease("vxlan", {"VtepMAC": "junk"}, both), local)
    assert (path.carrier, path.reason.split(":")[0]) == ("host-gw", "vxlan")
    with pytest.raises(MalformedError, match="VtepMAC"):
        carriers.path(lease("vxlan", {"VtepMAC": "junk"}), local)


def test_peers_that_had_one_route_for_all_get_one_each() -> None:
    carriers, local = moving("udp", "vxlan")
    path = carriers.path(lease("udp"), local)
    assert [str(item) for item in path.routes] == ["10.5.9.0/24 dev flannel0"]
    assert "10.5.0.0/16 dev flannel0" not in [str(item) for item in carriers.host(local)]


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("vxlan", "host-gw", ""),
        ("vxlan", "alloc", "alloc has a way of its own"),
        ("extension", "vxlan", "extension has a way of its own"),
        ("ipip", "udp", "the kernel has one ipip device for each local address, and both want 192.0.2.1"),
    ],
)
def test_which_cannot_stand_beside_each_other(before: str, after: str, why: str) -> None:
    asked = []
    for name in (before, after):
        config, backend = plugins.parse(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": name, "Engine": "kernel"}}))
        asked.append((config, backend.choose("").backend if name == "udp" else backend))  # type: ignore[attr-defined]
    local = Local(asked[1][0], UPLINK, OWN, {"flannel.1": "aa:aa:aa:aa:aa:aa"})
    assert obstacle(asked[0], asked[1], local) == why


def test_other_subnets_are_no_move_of_the_type_alone() -> None:
    old, new = (
        plugins.parse(json.dumps({"Network": net, "Backend": {"Type": "host-gw"}})) for net in ("10.5.0.0/16", "10.6.0.0/16")
    )
    assert obstacle(old, new, Local(new[0], UPLINK, OWN)) == "the subnets are others, too"


# --------------------------------------------------------------------------------------------------- whose peer is it


def member(name: str = "vxlan") -> Membership:
    config, backend = plugins.parse(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": name}}))
    found = Membership(config, backend.accepts, OWN)
    found.prefer({name: Published(backend)})
    return found


def test_a_peer_that_turns_to_a_type_that_is_not_ours_is_reached_as_before_until_it_says_otherwise() -> None:
    found = member()
    before, after = lease("vxlan", {"VtepMAC": MAC}), replace(lease("host-gw"), mod_revision=9)
    found.put(before)
    changes = found.put(after)
    told = changes.peers["10.5.9.0-24"]
    assert told is not None
    assert told.attrs == before.attrs
    assert changes.refused.get("10.5.9.0-24") is None
    assert found.leases["10.5.9.0-24"].attrs == after.attrs
    # What it offers itself counts from then on.
    data = Offer(IPAddress("192.0.2.9"), None, {"vxlan": ({"VtepMAC": OTHER_MAC}, None)})
    told = found.offer("10.5.9.0-24", data).peers["10.5.9.0-24"]
    assert told is not None
    assert told.attrs.backend_data == {"VtepMAC": OTHER_MAC}
    changes = found.offer("10.5.9.0-24", None)
    assert changes.peers == {"10.5.9.0-24": None}
    assert "its backend is host-gw" in str(changes.refused["10.5.9.0-24"])


def test_whoever_comes_to_its_subnet_from_elsewhere_has_said_nothing_before() -> None:
    found = member()
    found.put(lease("vxlan", {"VtepMAC": MAC}))
    other = replace(lease("host-gw"), attrs=LeaseAttrs(IPAddress("192.0.2.8"), None, "host-gw"), mod_revision=9)
    assert found.put(other).peers == {"10.5.9.0-24": None}


def test_what_a_lease_has_said_before_counts_for_a_while_and_as_long_as_etcd_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer whose lease names another Type, and that says nothing of the one before: it may be about to."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    host = HostInMemory(MemoryStore(), tmp_path)
    host.timeouts = Timeouts()
    host.put_config(VXLAN)
    route, vxlan, other = (
        Key("route", "10.5.9.0/24"),
        vxlan_value("192.0.2.9", "02:00:00:00:00:09"),
        '{"PublicIP":"192.0.2.9","BackendType":"other"}',
    )

    async def minutes() -> None:
        async with host.run():
            for silent in (False, True):
                host.put_peer("10.5.9.0-24", vxlan)
                await asyncio.sleep(5)
                assert host.kernel.get(route) is not None
                host.put_peer("10.5.9.0-24", other)
                await asyncio.sleep(IMPLIED_S / 2)
                assert host.kernel.get(route) is not None
                if silent:
                    host.store.stop()
                    await asyncio.sleep(20 * IMPLIED_S)
                    assert host.kernel.get(route) is not None
                    host.store.start()
                    await asyncio.sleep(60)
                await asyncio.sleep(IMPLIED_S)
                assert host.kernel.get(route) is None
                assert "peer-unusable 10.5.9.0-24" in host.conditions()

    run(minutes())
