"""The whole agent on a kernel and a registry in memory: what each event does, and what it leaves alone."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.sync import audit
from flannelpy.core.errors import FlannelpyError, RegistryError, RegistryRefusedError, RegistryUnavailableError
from flannelpy.core.objects import FdbEntry, Key, Neighbour, Route, Sysctl
from flannelpy.registry import Snapshot
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value

MAC = "02:00:00:00:00:99"
PEER = "route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


async def test_from_nothing_to_ready(host: HostInMemory) -> None:
    async with host.run():
        lease = host.lease.replace("-", "/")
        mac = next(line for line in host.state() if line.startswith("link")).split()[3]
        assert sorted(host.state()) == sorted(
            [
                f"link flannel.1 address {mac} mtu 1450 up type vxlan id 1 dev eth1 local 192.0.2.1 dstport 8472 nolearning",
                f"addr {lease.replace('/24', '/32')} dev flannel.1",
                "sysctl net/ipv6/conf/flannel.1/accept_ra=0",
                "nft table inet flannelpy (58 lines)",
                "set inet flannelpy hosts4 { type ipv4_addr }",
                "set inet flannelpy strangers4 { type ipv4_addr; size 64; flags dynamic,timeout; timeout 1h }",
                "set inet flannelpy refused4 { type ipv4_addr; size 1024; flags dynamic }",
                "set inet flannelpy vxlan4_24 { typeof ip saddr . @th,336,24 }",
            ]
        )
        assert host.notes.sent[0] == "READY=1"
        assert host.settings.subnet_file.read_text().splitlines()[0] == "FLANNEL_NETWORK=10.5.0.0/16"
        assert host.conditions() == {}


async def test_a_peer_comes_changes_and_goes(host: HostInMemory) -> None:
    async with host.run():
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
        await until(lambda: host.holds(PEER))
        assert host.holds(f"fdb {MAC} dst 192.0.2.9 dev flannel.1 self permanent")
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:98"))
        await until(lambda: host.holds("neigh 10.5.9.0 lladdr 02:00:00:00:00:98 dev flannel.1 nud permanent"))
        await until(lambda: host.kernel.get(Key("fdb", f"{MAC} dev flannel.1")) is None)  # field-problems F13
        host.delete("10.5.9.0-24")
        await until(lambda: not host.holds(PEER))


async def test_work_is_proportional_to_the_change(host: HostInMemory) -> None:
    for number in range(100, 200):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"198.51.100.{number}", f"02:00:00:00:01:{number:02x}"))
    async with host.run():
        await until(lambda: not host.agent._network.reconciler.dirty._event.is_set())  # type: ignore[union-attr]
        steps, looks = len(host.kernel.applied), host.kernel.calls["observe"]
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
        await until(lambda: host.holds(PEER))
        assert len(host.kernel.applied) - steps == 5  # of which two let it in
        assert host.kernel.calls["observe"] == looks


async def test_a_renewal_of_a_peer_does_not_touch_the_kernel(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        steps = len(host.kernel.applied)
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        assert len(host.kernel.applied) - steps == 5  # of which two let it in


async def test_garbage_in_the_registry_is_said_and_harms_nobody(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        host.put_peer("nonsense", "{}")
        host.put_peer("10.5.20.0-24", "not JSON")
        host.put_peer("10.5.21.0-24", '{"PublicIP": null}')
        host.put_peer("10.6.1.0-24", vxlan_value("192.0.2.20", MAC))
        host.store.put(f"{PREFIX}/subnets-oops", "x")
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        assert host.holds(PEER)
        assert set(host.conditions()) == {
            "lease-malformed nonsense",
            "lease-malformed 10.5.20.0-24",
            "lease-malformed 10.5.21.0-24",
            "peer-unusable 10.6.1.0-24",
        }
        host.delete("nonsense")
        await until(lambda: "lease-malformed nonsense" not in host.conditions())


async def test_two_peers_with_one_mac_the_older_is_programmed(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        assert "peer-unusable 10.5.10.0-24" in host.conditions()
        host.delete("10.5.9.0-24")
        await until(lambda: host.holds(f"fdb {MAC} dst 192.0.2.10 dev flannel.1 self permanent"))
        assert host.conditions() == {}


@pytest.mark.parametrize("what", ["route", "neigh", "fdb", "addr", "link", "nft"])
async def test_what_others_take_away_is_put_back(host: HostInMemory, what: str, caplog: pytest.LogCaptureFixture) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        before = sorted(host.state())
        host.kernel.take(next(step.key for step in host.kernel.applied if step.key.kind == what))
        assert sorted(host.state()) != before
        await until(lambda: sorted(host.state()) == before)
    assert "was changed by somebody else" in caplog.text


async def test_a_lost_notification_leads_to_a_full_look(host: HostInMemory) -> None:
    async with host.run():
        looks = host.kernel.calls["observe"]
        host.kernel.overflow()
        await until(lambda: host.kernel.calls["observe"] > looks)


async def test_a_sysctl_that_cannot_be_set_is_told_and_holds_up_nothing(host: HostInMemory) -> None:
    host.kernel.fail(Key("sysctl", "net/ipv6/conf/flannel.1/accept_ra"), errno.EROFS, times=100)
    async with host.run():
        assert host.settings.subnet_file.exists()
        await until(lambda: "kernel-refused sysctl 30" in host.conditions())


async def test_a_sysctl_that_somebody_sets_is_put_right_though_no_notice_tells(
    host: HostInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "SILENT_S", 0.001)
    wanted = Sysctl("net/ipv6/conf/flannel.1/accept_ra", "0")
    async with host.run():
        host.kernel.plant(replace(wanted, value="2"))
        await until(lambda: host.kernel.get(wanted.key) == wanted)


async def test_a_step_that_fails_is_told_tried_again_and_holds_up_nobody(host: HostInMemory) -> None:
    bad = Key("route", "10.5.9.0/24")
    host.kernel.fail(bad, errno.EINVAL, times=2)
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
    async with host.run():
        assert host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink")
        assert "Invalid argument" in host.conditions()["kernel-refused route 22"]
        await until(lambda: host.holds(PEER))
        await until(lambda: host.conditions() == {})


async def test_a_route_of_somebody_else_is_never_overwritten(host: HostInMemory) -> None:
    theirs = Route(IPNetwork("10.5.9.0/24"), dev="eth1", proto=4)
    host.kernel.plant(theirs)
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: "kernel-refused route 17" in host.conditions())
        assert host.conditions()["kernel-refused route 17"] == (
            "route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink: 10.5.9.0/24 dev eth1 proto static is there and is not ours"
            " (to make room: ip route del 10.5.9.0/24 dev eth1 proto static); trying again"
        )
        assert host.kernel.get(theirs.key) == theirs


async def test_leftovers_of_a_vanished_peer_go_and_those_of_living_peers_are_adopted(host: HostInMemory) -> None:
    """What a flanneld leaves: routes of protocol boot through our device. field-problems F13."""
    async with host.run():
        pass
    gone = IPAddress("10.5.33.0")
    host.kernel.plant(Route(IPNetwork("10.5.33.0/24"), via=gone, dev="flannel.1", onlink=True, proto=3))
    host.kernel.plant(Neighbour(gone, MAC, "flannel.1"))
    host.kernel.plant(FdbEntry(MAC, IPAddress("192.0.2.33"), "flannel.1"))
    host.kernel.plant(Route(IPNetwork("10.5.9.0/24"), via=IPAddress("10.5.9.0"), dev="flannel.1", onlink=True, proto=3))
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    steps = len(host.kernel.applied)
    async with host.run():
        await until(lambda: host.kernel.get(Key("route", "10.5.33.0/24")) is None)
        await until(lambda: host.kernel.get(Key("fdb", f"{MAC} dev flannel.1")) is None)
    made = [f"{step.item.noun} {step.op}" for step in host.kernel.applied[steps:]]
    assert made.index("route change") < made.index("route remove")


async def test_a_host_that_starts_without_etcd_comes_up_from_what_it_kept(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
    lease, before = host.lease, sorted(host.state())
    for key in {step.key for step in host.kernel.applied}:
        if key.kind in ("link", "nft"):
            host.kernel.take(key)  # a reboot
    host.settings.subnet_file.unlink()
    host.registry.down = True
    async with host.run():
        assert host.lease == lease
        await until(lambda: sorted(host.state()) == before)
        assert "view-stale" in host.conditions()
        host.store.delete(f"{PREFIX}/subnets/10.5.9.0-24")  # while nobody could see it
        host.registry.down = False
        await until(lambda: not host.holds(PEER))
        await until(lambda: host.conditions() == {})
        assert host.lease == lease


@pytest.mark.parametrize(
    "error", [RegistryRefusedError("no"), RegistryError("an answer of more than 8 MiB"), RegistryUnavailableError("no"), None]
)
async def test_a_listing_that_fails_is_done_without_as_a_silent_etcd(
    error: RegistryError | None, host: HostInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config is answered all the time; None: the listing never ends."""
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
    lease, before = host.lease, sorted(host.state())
    for key in {step.key for step in host.kernel.applied}:
        if key.kind in ("link", "nft"):
            host.kernel.take(key)  # a reboot
    host.settings.subnet_file.unlink()

    async def fail() -> Snapshot:
        if error is None:
            await asyncio.Event().wait()
        assert error is not None
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(host.registry, "snapshot", fail)
        async with host.run():
            assert host.lease == lease
            await until(lambda: sorted(host.state()) == before)
            assert "view-stale" in host.conditions()
            if error is not None:
                patch.undo()
                await until(lambda: host.conditions() == {})
                assert host.lease == lease


async def test_etcd_that_lost_its_data_takes_nobody_away_before_they_had_time_to_return(host: HostInMemory) -> None:
    for number in (9, 10):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:00:{number:02x}"))
    async with host.run():
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        lease, steps = host.lease, len(host.kernel.applied)
        config = host.store.records[f"{PREFIX}/config".encode()].value
        host.store.lose_data()
        host.store.put(f"{PREFIX}/config", config)
        await until(lambda: "registry-reset" in host.conditions())
        await until(lambda: f"{PREFIX}/subnets/{lease}".encode() in host.store.records)
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
        assert len(host.kernel.applied) == steps
        await until(lambda: not host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        assert host.holds("route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink")
        await until(lambda: host.conditions() == {})


async def test_a_peer_whose_key_goes_and_comes_again_keeps_its_route(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        steps = len(host.kernel.applied)
        host.delete("10.5.9.0-24")
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        assert len(host.kernel.applied) - steps == 5  # of which two let it in


async def test_a_config_change_that_loses_nothing_is_taken_over(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        lease, steps = host.lease, len(host.kernel.applied)
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "MTU": 1400}})
        await until(lambda: "FLANNEL_MTU=1350" in host.settings.subnet_file.read_text())
        assert host.lease == lease
        assert [str(step.item) for step in host.kernel.applied[steps:] if step.op != "change"] == []
        await until(lambda: host.conditions() == {})


async def test_what_somebody_changes_again_and_again_is_repaired_with_pauses(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    route = Key("route", "10.5.9.0/24")
    async with host.run():
        for _ in range(5):
            await until(lambda: host.holds(PEER))
            host.kernel.take(route)
        await until(lambda: host.holds(PEER))
        host.kernel.take(route)
        await until(lambda: f"kernel-contested {route}" in host.conditions())
        assert not host.holds(PEER)
        await until(lambda: host.holds(PEER))


async def test_nothing_is_swept_before_the_lease_is_confirmed(host: HostInMemory) -> None:
    """Fail static: a restart while etcd is away takes nothing out of the kernel."""
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
    before = sorted(host.state())
    host.registry.down = True
    async with host.run(ready=False):
        await until(lambda: "registry-unreachable" in host.conditions())
        assert sorted(host.state()) == before


async def test_a_restart_finds_everything_as_it_was(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        lease = host.lease
    before, steps = sorted(host.state()), len(host.kernel.applied)
    async with host.run():
        assert host.lease == lease
    assert sorted(host.state()) == before
    assert [str(step) for step in host.kernel.applied[steps:]] == []


async def test_our_key_deleted_is_taken_again_and_the_kernel_left_alone(host: HostInMemory) -> None:
    async with host.run():
        lease, steps = host.lease, len(host.kernel.applied)
        host.delete(lease)
        key = f"{PREFIX}/subnets/{lease}".encode()
        await until(lambda: key in host.store.records)
        assert len(host.kernel.applied) == steps


async def test_the_config_is_waited_for_and_taken_at_once(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    async with host.run(ready=False):
        await until(lambda: "config-unusable" in host.conditions())
        assert "/coreos.com/network/config is missing: expected JSON like" in host.conditions()["config-unusable"]
        host.put_config("{broken")
        await until(lambda: "not JSON" in host.conditions()["config-unusable"])
        host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "pigeon"}})
        await until(lambda: "nobody provides it" in host.conditions()["config-unusable"])
        host.put_config(VXLAN)
        await until(lambda: host.ready)
        assert host.conditions() == {}


async def test_a_subnet_file_that_cannot_be_written_keeps_us_unready(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    (tmp_path / "1").write_text("a file where a directory should be")
    async with host.run(ready=False):
        await until(lambda: "subnet-file" in host.conditions())
        assert host.notes.sent == []
        assert "state-dir" in host.conditions()


async def test_two_hosts_reach_each_other(tmp_path: Path) -> None:
    store = MemoryStore()
    one, two = HostInMemory(store, tmp_path, 1), HostInMemory(store, tmp_path, 2)
    one.put_config(VXLAN)
    async with one.run(), two.run():
        for here, there in ((one, two), (two, one)):
            base = there.lease.removesuffix("-24")
            await until(lambda here=here, base=base: here.holds(f"route {base}/24 via {base} dev flannel.1 onlink"))
    assert one.lease != two.lease


async def test_a_watch_with_a_gap_is_followed_by_a_listing(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds(PEER))
        host.registry.down = True
        await asyncio.sleep(0)
        host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:98"))  # changed across the gap: F5
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        host.store.compact()
        host.registry.down = False
        await until(lambda: host.holds("neigh 10.5.9.0 lladdr 02:00:00:00:00:98 dev flannel.1 nud permanent"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))


async def test_a_host_that_gets_another_subnet_ends_where_that_was_asked_for(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, exit_on_subnet_change=True)
    host.put_config(VXLAN)
    async with host.run():
        before = host.lease
        host.put_peer(before, vxlan_value("192.0.2.200", "02:00:00:00:02:00"))  # a thief
        await until(lambda: host.over)
        assert host.lease != before  # the subnet file tells of the new one
        with pytest.raises(BaseExceptionGroup) as caught:
            host.raise_failure()
    assert caught.group_contains(FlannelpyError, match="ending, as --exit-on-subnet-change asks", depth=1)


async def test_a_lease_is_given_back_at_the_end_where_that_was_asked_for(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, release_on_exit=True)
    host.put_config(VXLAN)
    async with host.run():
        key = f"{PREFIX}/subnets/{host.lease}".encode()
        assert key in host.store.records
    assert key not in host.store.records
    assert not host.settings.subnet_file.exists()


async def test_a_reservation_is_not_given_back(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, release_on_exit=True)
    host.put_config(VXLAN)
    host.put_peer("10.5.201.0-24", '{"PublicIP": "192.0.2.1"}')
    async with host.run():
        assert host.lease == "10.5.201.0-24"
    assert f"{PREFIX}/subnets/10.5.201.0-24".encode() in host.store.records
