"""A host in a network with Prefer, in memory: what it tells, what it makes of what others tell, and what becomes of it all."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from netaddr import IPAddress

from flannelpy.agent import beside
from flannelpy.agent.sync import audit
from flannelpy.core.errors import RegistryAuthError, RegistryUnavailableError
from flannelpy.core.objects import Key, Route, WireguardPeer
from flannelpy.core.offer import Offer
from flannelpy.core.wireguard import clamped, key_text
from flannelpy.registry.memory import MemoryStore

from .agents import PREFIX, HostInMemory, until, vxlan_value

PLAIN = {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "vxlan"}}
PREFER = {**PLAIN, "Backend": {"Type": "vxlan", "Prefer": ["host-gw", "wireguard"]}}
NEAR, FAR = "192.0.2.9", "198.51.100.9"
MAC = "02:00:00:00:00:09"
DIRECT, TUNNEL, ENCRYPTED = f"10.5.9.0/24 via {NEAR} dev eth1", "10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink", "dev flannel-wg"
THEIR_KEY = key_text(clamped(Random(9).randbytes(32)))
WG = Key("wgpeer", f"{THEIR_KEY} dev flannel-wg")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr(audit, "SILENT_S", 0.001)
    monkeypatch.setattr(beside, "LINGER_S", 0.05)
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(PREFER)
    made.put_peer("10.5.9.0-24", vxlan_value(NEAR, MAC))
    return made


def offering(host: HostInMemory, value: str | bytes | None, key: str = "10.5.9.0-24") -> None:
    name = f"{PREFIX}/flannelpy/hosts/{key}"
    host.store.delete(name) if value is None else host.store.put(name, value)


def offer(at: str = NEAR, *names: str) -> str:
    data = {"host-gw": (None, None), "wireguard": ({"PublicKey": THEIR_KEY, "Port": 51820}, None)}
    return Offer(IPAddress(at), None, {name: data[name] for name in names or data}).to_json()


def way(host: HostInMemory, number: int = 9) -> str:
    return str(host.kernel.get(Key("route", f"10.5.{number}.0/24")))


def told(host: HostInMemory) -> str | None:
    record = host.store.records.get(f"{PREFIX}/flannelpy/hosts/{host.lease}".encode())
    return None if record is None else (record.value or b"").decode()


def answer(host: HostInMemory) -> None:
    """The peer has proved to the kernel who it is."""
    peer = host.kernel.get(WG)
    assert isinstance(peer, WireguardPeer)
    host.kernel.plant(replace(peer, answered=True))


async def test_a_host_tells_what_it_offers_on_its_leases_own_etcd_lease(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: told(host))
        said = json.loads(told(host) or "")
        assert (said["PublicIP"], sorted(said["Carriers"])) == ("192.0.2.1", ["host-gw", "wireguard"])
        record = host.store.records[f"{PREFIX}/flannelpy/hosts/{host.lease}".encode()]
        assert record.etcd_lease == host.record(host.lease).etcd_lease != 0
        value = json.loads(host.value(host.lease))
        assert sorted(value) == ["BackendData", "BackendType", "PublicIP", "PublicIPv6"]  # the lease is as any flannel's


async def test_a_peer_on_the_link_that_offers_it_is_reached_directly_and_back(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: way(host) == TUNNEL)
        neighbour = Key("neigh", "10.5.9.0 dev flannel.1")
        for _ in range(2):
            offering(host, offer(NEAR, "host-gw"))
            await until(lambda: way(host) == DIRECT)
            assert host.kernel.get(neighbour) is not None  # so that the way back is one route
            offering(host, None)
            await until(lambda: way(host) == TUNNEL)


@pytest.mark.parametrize("order", [["host-gw", "wireguard"], ["wireguard"], ["wireguard", "host-gw"]])
async def test_a_peer_that_is_not_on_the_link_is_encrypted_to_once_it_has_answered(host: HostInMemory, order: list[str]) -> None:
    host.put_config({**PLAIN, "Backend": {"Type": "vxlan", "Prefer": order}})
    host.put_peer("10.5.9.0-24", vxlan_value(FAR, MAC))
    offering(host, offer(FAR))
    async with host.run():
        await until(lambda: host.kernel.get(WG))
        assert way(host) == TUNNEL
        answer(host)
        await until(lambda: ENCRYPTED in way(host))
        offering(host, offer(FAR, "host-gw"))
        await until(lambda: way(host) == TUNNEL and host.kernel.get(WG) is None)
        offering(host, offer(FAR))
        await until(lambda: host.kernel.get(WG))
        assert way(host) == TUNNEL  # one that comes anew has to answer anew


@pytest.mark.parametrize("order", [["host-gw", "wireguard"], ["wireguard"]])
@pytest.mark.parametrize("kind", ["vxlan", "ipip"])
async def test_what_the_kernel_lacks_is_offered_soon_after_it_has_it(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch, order: list[str], kind: str
) -> None:
    monkeypatch.setattr(beside, "LACKING_S", 0.05)
    host.kernel.unknown.add("wireguard")
    host.put_config({**PLAIN, "Backend": {"Type": kind, "Prefer": order}})
    async with host.run():
        await until(lambda: host.settled)
        await asyncio.sleep(0.2)
        assert "wireguard" not in (told(host) or "")
        host.kernel.unknown.clear()  # modprobe wireguard
        async with asyncio.timeout(5):
            await until(lambda: '"wireguard"' in (told(host) or ""))
            await until(lambda: host.kernel.get(Key("link", "flannel-wg")))


async def test_turned_off_it_is_the_type_at_once_and_what_peers_still_send_by_stays_a_while(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value(FAR, MAC))
    offering(host, offer(FAR))
    async with host.run():
        await until(lambda: host.kernel.get(WG))
        answer(host)
        await until(lambda: ENCRYPTED in way(host))
        seen = []
        host.put_config(PLAIN)
        await until(lambda: way(host) == TUNNEL)
        seen.append(host.kernel.get(WG))
        await until(lambda: "Retiring" in (told(host) or ""))  # so that the peers go on letting in what we sent before
        await until(lambda: host.kernel.get(Key("link", "flannel-wg")) is None)
        assert seen[0] is not None
        await until(lambda: told(host) is None)


async def test_a_peer_that_has_turned_it_off_is_let_in_as_long_as_it_may_still_send_by_it(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value(FAR, MAC))
    offering(host, offer(FAR))
    async with host.run():
        await until(lambda: host.kernel.get(WG))
        answer(host)
        await until(lambda: ENCRYPTED in way(host))
        before = host.kernel.get(WG)
        for _ in range(3):
            offering(host, offer(FAR).replace("Carriers", "Retiring").replace("{", '{"Carriers":{},', 1))
            await until(lambda: way(host) == TUNNEL)
            assert host.kernel.get(WG) == before
            offering(host, offer(FAR))
            await until(lambda: ENCRYPTED in way(host))  # with the session that it has: no other handshake
        offering(host, offer(FAR).replace("Carriers", "Retiring").replace("{", '{"Carriers":{},', 1))
        await until(lambda: way(host) == TUNNEL)
        offering(host, None)
        await until(lambda: host.kernel.get(WG) is None)


@pytest.mark.parametrize("value", ["{", "[]", '{"PublicIP":"192.0.2.9","Carriers":5}', "x" * 100_000, offer(FAR), "\x1b[2J"])
async def test_junk_beside_a_lease_leaves_its_host_with_the_type(host: HostInMemory, value: str) -> None:
    host.put_peer("10.5.8.0-24", vxlan_value("192.0.2.8", "02:00:00:00:00:08"))
    offering(host, value)
    offering(host, value, "no-lease")
    offering(host, offer("192.0.2.8", "host-gw"), "10.5.8.0-24")
    async with host.run():
        await until(lambda: way(host, 8) == "10.5.8.0/24 via 192.0.2.8 dev eth1")
        assert way(host) == TUNNEL
        offering(host, offer(NEAR, "host-gw"))
        await until(lambda: way(host) == DIRECT)
        offering(host, None, "no-lease")
        await until(lambda: "offer-unusable" not in host.conditions())


async def test_who_wants_none_of_it_takes_its_offer_back_and_is_as_any_flannel(host: HostInMemory) -> None:
    offering(host, offer(NEAR, "host-gw"))
    async with host.run():
        await until(lambda: told(host) and way(host) == DIRECT)
    host.settings = replace(host.settings, prefer="none")
    async with host.run():
        await until(lambda: told(host) is None and way(host) == TUNNEL)


async def test_a_restart_finds_the_way_as_it_was_and_does_not_leave_it_for_a_moment(host: HostInMemory) -> None:
    offering(host, offer(NEAR, "host-gw"))
    async with host.run():
        await until(lambda: way(host) == DIRECT)
    made: list[str] = []
    apply = host.kernel.apply

    async def noting(steps):  # type: ignore[no-untyped-def]
        made.extend(str(step) for step in steps if isinstance(step.item, Route))
        return await apply(steps)

    host.kernel.apply = noting  # type: ignore[method-assign]
    async with host.run():
        assert way(host) == DIRECT
    assert made == []


async def test_where_offers_cannot_be_read_or_written_all_else_goes_on(host: HostInMemory) -> None:
    offering(host, offer(NEAR, "host-gw"))
    for method in ("offer", "offers"):
        host.registry.fail(method, RegistryAuthError("permission denied"), float("inf"))
    async with host.run():
        assert way(host) == TUNNEL
        assert told(host) is None
        await until(lambda: {"offers-refused read", "offers-refused written"} <= set(host.conditions()))
        host.registry.mend("offer", "offers")
        await until(lambda: told(host) and way(host) == DIRECT)
        await until(
            lambda: not any(active.ended is None for active in host.agent.health if active.condition.code == "offers-refused")
        )


async def test_an_etcd_that_is_away_is_told_once_and_not_of_the_offers_too(host: HostInMemory) -> None:
    for method in ("offer", "offers"):
        host.registry.fail(method, RegistryUnavailableError("no answer"), float("inf"))
    async with host.run():
        await asyncio.sleep(0.5)
        assert host.conditions() == {}


@pytest.mark.parametrize("room", [1, 2, 5])
async def test_junk_that_fills_the_room_keeps_nobody_in_it_from_changing(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr("flannelpy.agent.offers.MOST", room)
    offering(host, offer(NEAR, "host-gw"))
    async with host.run():
        await until(lambda: way(host) == DIRECT)
        for number in range(20):
            offering(host, "junk", f"10.5.{100 + number}.0-24")
        offering(host, offer(FAR))  # not where its lease says: it counts no longer
        await until(lambda: way(host) == TUNNEL)
        offering(host, offer(NEAR, "host-gw"))
        await until(lambda: way(host) == DIRECT)


async def test_what_somebody_writes_over_our_own_is_put_right(host: HostInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannelpy.agent.offers.AGAIN_S", 0.01)
    async with host.run():
        await until(lambda: told(host))
        ours = told(host)
        for value in ("junk", None):
            offering(host, value, host.lease)
            await until(lambda: told(host) == ours)


async def test_a_lease_that_ends_with_its_offer_leaves_the_way_as_it_is(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannelpy.agent.offers.BELIEF_S", 0.01)
    grant = host.store.grant(1000)
    host.store.put(f"{PREFIX}/subnets/10.5.9.0-24", vxlan_value(NEAR, MAC), grant)
    host.store.put(f"{PREFIX}/flannelpy/hosts/10.5.9.0-24", offer(NEAR, "host-gw"), grant)
    async with host.run():
        await until(lambda: way(host) == DIRECT)
        host.store.revoke(grant)
        assert host.agent is not None
        departures = host.agent._network.cluster.departures  # type: ignore[union-attr]
        await until(lambda: [each.state for each in departures.kept.values()] == ["kept-after-expiry"])
        assert way(host) == DIRECT
