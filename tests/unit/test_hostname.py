"""What is a host called, and where is it shown? A name stands beside the address; whoever tells another's gains nothing by it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent import offers
from flannelpy.agent.report import Reporter
from flannelpy.core.errors import RegistryAuthError, UsageError
from flannelpy.core.hostname import MOST, is_name, spoken
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.names import Names
from flannelpy.core.offer import Offer
from flannelpy.explain.events import Event
from flannelpy.explain.status import PeerStatus, from_json, to_json
from flannelpy.registry.memory import MemoryStore
from flannelpy.settings import load

from .agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value

KEY, AT, MAC = "10.5.9.0-24", "192.0.2.9", "02:00:00:00:00:09"
PREFER = {**VXLAN, "Backend": {"Type": "vxlan", "Prefer": ["host-gw"]}}


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path, hostname="h1")
    made.put_config(VXLAN)
    made.put_peer(KEY, vxlan_value(AT, MAC))
    return made


def calling(host: HostInMemory, name: object, at: str = AT, key: str = KEY) -> None:
    """The host with this lease says that it is called so."""
    host.store.put(f"{PREFIX}/flannelpy/hosts/{key}", json.dumps({"PublicIP": at, "Hostname": name, "Carriers": {}}))


def told(host: HostInMemory) -> dict[str, object] | None:
    record = host.store.records.get(f"{PREFIX}/flannelpy/hosts/{host.lease}".encode())
    return None if record is None else json.loads(record.value or b"{}")


def peer(host: HostInMemory) -> PeerStatus:
    assert host.agent is not None
    (found,) = from_json(to_json(host.agent.status())).peers
    return found


def events(host: HostInMemory, kind: str) -> list[Event]:
    assert host.agent is not None
    return [event for event in host.agent.events.read().events if event.kind == kind]


@pytest.mark.parametrize("name", ["h1", "H-1", "a.b.example.com", "1", "x" * MOST])
def test_names_of_hosts_are_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", ".a", "a.", "a..b", "a_b", "a b", "h1\x1b[2J", "h\u202e1", "x" * 64, "h1\n", None, 5, ["h"]]
)
def test_what_is_none_is_none(name: object) -> None:
    assert not is_name(name)
    value = json.dumps({"PublicIP": AT, "Hostname": name, "Carriers": {}})
    assert Offer.from_json(value).hostname == ""  # and its host may be reached all the same


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("h1", "h1"),
        ("h1.example.com", "h1.example.com"),
        (f"h1.{'x' * 70}", "h1"),
        ("my_host", ""),
        ("web_1.example.com", ""),
        ("localhost", ""),
        ("localhost.localdomain", ""),
        ("", ""),
    ],
)
def test_a_machine_calls_itself_what_can_be_told(machine: str, said: str) -> None:
    assert spoken(machine) == said


def test_a_name_counts_for_the_address_that_it_was_told_for() -> None:
    lease = Lease(IPNetwork("10.5.9.0/24"), LeaseAttrs(IPAddress(AT)))
    names = Names()
    assert names.of(lease) == ""
    names.tell(KEY, Offer(IPAddress("192.0.2.66"), None, {}, hostname="h9"))
    assert names.of(lease) == ""  # somebody else's: of the host that had the subnet before, or of a rogue
    names.tell(KEY, Offer(IPAddress(AT), None, {}, hostname="h9"))
    assert names.of(lease) == "h9"
    assert names.of(replace(lease, holder="node-9")) == "node-9"  # what the registry says wins
    names.tell(KEY, None)
    assert names.of(lease) == ""


def test_two_offers_with_other_names_are_the_same_offer() -> None:
    offer = Offer(IPAddress(AT), None, {"host-gw": (None, None)})
    assert replace(offer, hostname="h9") == offer  # nothing is programmed anew for a name
    assert Offer.from_json(replace(offer, hostname="h9").to_json()).hostname == "h9"


@pytest.mark.parametrize(
    ("given", "environ", "name"),
    [
        ({}, {}, "machine"),
        ({"hostname": ["h7"]}, {"FLANNELPY_HOSTNAME": "h8"}, "h7"),
        ({}, {"FLANNELPY_HOSTNAME": "h8"}, "h8"),
        ({"hostname": [""]}, {}, ""),
        ({}, {"FLANNELPY_HOSTNAME": ""}, "machine"),
    ],
)
def test_the_option(monkeypatch: pytest.MonkeyPatch, given: dict[str, list[str]], environ: dict[str, str], name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    assert load(given, environ).hostname == name


def test_an_option_that_is_no_name() -> None:
    with pytest.raises(UsageError, match=r"--hostname 'a_b': expected a name of letters, digits, - and dots"):
        load({"hostname": ["a_b"]}, {})


async def test_a_host_says_its_name_beside_its_lease_and_takes_it_back(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: told(host))
        assert told(host) == {"PublicIP": "192.0.2.1", "Hostname": "h1", "Carriers": {}}
        record = host.store.records[f"{PREFIX}/flannelpy/hosts/{host.lease}".encode()]
        assert record.etcd_lease == host.record(host.lease).etcd_lease != 0
        assert sorted(json.loads(host.value(host.lease))) == ["BackendData", "BackendType", "PublicIP", "PublicIPv6"]
        assert host.agent is not None
        lease = host.agent.status().lease
        assert lease is not None
        assert lease.name == "h1"
    host.settings = replace(host.settings, hostname="")
    async with host.run():
        await until(lambda: told(host) is None)


async def test_a_name_stands_beside_what_is_offered(host: HostInMemory) -> None:
    host.put_config(PREFER)
    async with host.run():
        await until(lambda: told(host))
        assert told(host) == {"PublicIP": "192.0.2.1", "Hostname": "h1", "Carriers": {"host-gw": {}}}
        host.put_config(VXLAN)
        await until(lambda: told(host) == {"PublicIP": "192.0.2.1", "Hostname": "h1", "Carriers": {}})


async def test_a_peers_name_comes_and_goes_and_touches_nothing(host: HostInMemory) -> None:
    async with host.run():
        assert peer(host).name is None
        applied = len(host.kernel.applied)
        calling(host, "h9")
        await until(lambda: peer(host).name == "h9")
        calling(host, "h-nine")
        await until(lambda: peer(host).name == "h-nine")
        calling(host, "\x1b[2J")
        await until(lambda: peer(host).name is None)
        calling(host, "h9")
        await until(lambda: peer(host).name == "h9")
        calling(host, "h9", at="192.0.2.66")
        await until(lambda: peer(host).name is None)
        calling(host, "h9")
        await until(lambda: peer(host).name == "h9")
        host.store.delete(f"{PREFIX}/flannelpy/hosts/{KEY}")
        await until(lambda: peer(host).name is None)
        assert len(host.kernel.applied) == applied
        assert not host.conditions()


@pytest.mark.parametrize("config", [VXLAN, PREFER])
async def test_events_of_a_peer_have_its_name_also_where_it_is_heard_later(host: HostInMemory, config: dict[str, object]) -> None:
    host.put_config(config)
    key = "10.5.8.0-24"
    async with host.run():
        await until(lambda: events(host, "started"))
        host.put_peer(key, vxlan_value("192.0.2.8", "02:00:00:00:00:08"))
        await until(lambda: events(host, "peer-joined"))
        assert [event.name for event in events(host, "peer-joined")] == [""]
        calling(host, "h8", "192.0.2.8", key)
        await until(lambda: [event.name for event in events(host, "peer-joined")] == ["h8"])
        (joined,) = events(host, "peer-joined")
        assert joined.told == "peer 10.5.8.0/24 at 192.0.2.8 joined (vxlan) [h8]"
        host.delete(key)
        await until(lambda: events(host, "peer-left"))
        (left,) = events(host, "peer-left")
        assert left.told == "peer 10.5.8.0/24 at 192.0.2.8 left: its key was deleted [h8]"


async def test_a_name_that_is_said_where_the_type_turns_ends_no_way(host: HostInMemory) -> None:
    """Lease and key come by two connections: until it is heard what a host takes besides, a name alone says nothing of it."""
    async with host.run():
        calling(host, "h9")
        await until(lambda: peer(host).name == "h9")
        host.put_peer(KEY, json.dumps({"PublicIP": AT, "PublicIPv6": None, "BackendType": "host-gw"}))
        assert host.agent is not None
        cluster = host.agent._network.cluster  # type: ignore[union-attr]
        await until(lambda: KEY in cluster.offers.implied)
        calling(host, "h9b")
        await until(lambda: cluster.names.of(cluster.view.leases[KEY]) == "h9b")
        assert KEY in cluster.view.peers


@pytest.mark.parametrize("method", ["offer", "offers"])
async def test_where_only_names_are_refused_nothing_is_wrong(
    host: HostInMemory, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, tried, trip = set[str](), list[str](), host.registry.trip
    monkeypatch.setattr(Reporter, "begin", lambda _self, code, *_rest: begun.add(code))

    def counted(called: str, **how: bool) -> None:
        tried.append(called)
        trip(called, **how)

    monkeypatch.setattr(host.registry, "trip", counted)
    host.registry.fail(method, RegistryAuthError("permission denied"), float("inf"))
    async with host.run():
        await until(lambda: tried.count(method) > 2)
    assert "offers-refused" not in begun


async def test_nobody_waits_for_names(host: HostInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannelpy.agent.offers.PATIENCE_S", 1e6)
    never = asyncio.Event()

    async def silent() -> object:
        await never.wait()
        yield None

    host.registry.offers = silent  # type: ignore[method-assign, assignment]
    async with host.run():
        assert host.ready  # where peers are reached by what they offer, it would not be for PATIENCE_S


async def test_junk_of_any_size_takes_bounded_room(host: HostInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannelpy.agent.offers.MOST_BYTES", 1000)
    async with host.run():
        calling(host, "h9")
        await until(lambda: peer(host).name == "h9")
        for number in range(20):
            said = json.dumps({"PublicIP": AT, "Carriers": {"x": {"BackendData": "y" * 300}}})
            host.store.put(f"{PREFIX}/flannelpy/hosts/10.5.{100 + number}.0-24", said)
        calling(host, "h9b")
        await until(lambda: peer(host).name == "h9b")
        assert host.agent is not None
        names = host.agent._network.cluster.names  # type: ignore[union-attr]
        assert 0 < names.size <= 1000
        assert len(names) < 5


@pytest.mark.parametrize(("most", "shown"), [(2, "h9"), (0, None)])
async def test_names_alone_are_not_followed_in_a_network_of_many_hosts(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch, most: int, shown: str | None
) -> None:
    monkeypatch.setattr(offers, "NAMED", most)
    calling(host, "h9")
    async with host.run():
        await until(lambda: told(host) is not None)  # it says its own all the same
        for _ in range(200):
            await asyncio.sleep(0)
        await until(lambda: not shown or peer(host).name == shown)
        assert peer(host).name == shown
