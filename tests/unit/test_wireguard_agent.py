"""A host of a wireguard network, in memory: its key over its lives, its peers as they come, change, roam and go."""

from __future__ import annotations

import base64
import json
import logging
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent import ownership
from flannelpy.agent.sync import audit
from flannelpy.core.objects import BOOT_PROTOCOL, Key, Link, Route, Wireguard, WireguardDevice, WireguardPeer
from flannelpy.core.secret import Secret
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.core.wireguard import clamped, key_text
from flannelpy.host import wireguard_key
from flannelpy.kernel.fake_wireguard import public_key
from flannelpy.registry.memory import MemoryStore

from .agents import HostInMemory, until, vxlan_value

PSK = base64.b64encode(bytes(range(1, 33))).decode()
CONFIG = {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "wireguard", "PSK": PSK}}


def key(name: str) -> str:
    return key_text(clamped(Random(name).randbytes(32)))


def value(at: str = "192.0.2.9", public: str | None = None, port: int = 51820) -> str:
    data = {"PublicKey": key("b") if public is None else public, "Port": port}
    return json.dumps({"PublicIP": at, "PublicIPv6": None, "BackendType": "wireguard", "BackendData": data})


def line(at: str = "192.0.2.9:51820", public: str | None = None, subnet: str = "10.5.9.0/24") -> str:
    public = key("b") if public is None else public
    return f"wgpeer flannel-wg peer {public} endpoint {at} allowed-ips {subnet} preshared-key (not shown)"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr(audit, "SILENT_S", 0.001)
    monkeypatch.setattr(ownership, "CLAIM_AGAIN_S", 0.1)
    made = HostInMemory(MemoryStore(), tmp_path, flannel_key_file=tmp_path / "run" / "wgkey")
    made.put_config(CONFIG)
    made.put_peer("10.5.9.0-24", value())
    return made


def key_file(host: HostInMemory) -> Path:
    return host.settings.wireguard_key_file or host.settings.state_dir / "wireguard.key"


def published(host: HostInMemory) -> str:
    """The public key in our lease."""
    return str(json.loads(host.value(host.lease))["BackendData"]["PublicKey"])


def in_kernel(host: HostInMemory) -> WireguardDevice:
    found = host.kernel.get(Key("wg", "flannel-wg"))
    assert isinstance(found, WireguardDevice)
    return found


def kept(host: HostInMemory) -> Secret[bytes]:
    return Secret(base64.b64decode(key_file(host).read_text()))


async def test_lease_kernel_and_file_have_one_key_and_only_its_owner_reads_it(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(line()))
        assert in_kernel(host) == WireguardDevice("flannel-wg", 51820, kept(host))
        assert published(host) == public_key(kept(host).reveal())
        assert stat.S_IMODE(key_file(host).stat().st_mode) == 0o600
        assert host.conditions() == {}


async def test_the_key_is_the_same_in_the_next_life_and_nothing_is_done(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(line()))
        before, steps = published(host), len(host.kernel.applied)
    async with host.run():
        await until(lambda: host.settled)
        assert published(host) == before
        assert [str(step) for step in host.kernel.applied[steps:]] == []


async def test_the_key_of_a_flannel_is_taken_over_once(host: HostInMemory) -> None:
    private = clamped(Random("flannel").randbytes(32))
    host.settings.flannel_key_file.parent.mkdir()
    host.settings.flannel_key_file.write_text(key_text(private))
    host.settings.flannel_key_file.chmod(0o400)
    async with host.run():
        assert published(host) == public_key(private)
    host.settings.flannel_key_file.chmod(0o600)
    host.settings.flannel_key_file.write_text(key_text(clamped(Random("later").randbytes(32))))
    async with host.run():
        assert published(host) == public_key(private)


async def test_the_file_may_be_elsewhere(tmp_path: Path, host: HostInMemory) -> None:
    host.settings = replace(host.settings, wireguard_key_file=tmp_path / "keys" / "ours")
    private = clamped(Random("given").randbytes(32))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ours").write_text(key_text(private) + "\n")
    async with host.run():
        assert published(host) == public_key(private)
        assert stat.S_IMODE(key_file(host).stat().st_mode) == 0o600
        assert not (host.settings.state_dir / "wireguard.key").exists()


@pytest.mark.parametrize("text", ["", "no key", key("x")[:-1], key("x") + key("x"), "\x00" * 44, "a" * 5000], ids=repr)
async def test_a_file_that_is_no_key_is_set_aside_and_the_host_goes_on(
    host: HostInMemory, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.settings.state_dir.mkdir(parents=True)
    key_file(host).write_text(text)
    async with host.run():
        await until(lambda: host.holds(line()))
        assert in_kernel(host).private_key == kept(host)
    assert key_file(host).with_name("wireguard.key.corrupt").read_text() == text
    said = [record.getMessage() for record in caplog.records if "a new key is made" in record.getMessage()]
    assert len(said) == 1
    assert str(key_file(host)) in said[0]
    assert not text.strip() or text not in said[0]


async def test_a_directory_that_cannot_be_written_stops_nobody(host: HostInMemory, caplog: pytest.LogCaptureFixture) -> None:
    host.settings.state_dir.parent.mkdir(parents=True)
    host.settings.state_dir.write_text("a file in its place")
    async with host.run():
        await until(lambda: host.holds(line()))
        assert published(host) == public_key(in_kernel(host).private_key.reveal())
    assert "the key lasts as long as this process" in caplog.text


async def test_another_key_of_a_peer_takes_the_place_of_the_old_one(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(line()))
        host.put_peer("10.5.9.0-24", value(public=key("b2")))
        await until(lambda: host.holds(line(public=key("b2"))))
        await until(lambda: not any(key("b") in text for text in host.state()))
        peers = [str(step) for step in host.kernel.applied if step.item.noun == "wgpeer"]
        assert [step.split(" endpoint")[0] for step in peers[-2:]] == [
            f"wgpeer add flannel-wg peer {key('b2')}",
            f"wgpeer del flannel-wg peer {key('b')}",
        ]


async def test_a_peer_that_goes_leaves_nothing(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(line()))
        host.delete("10.5.9.0-24")
        await until(lambda: not any(text.startswith("wgpeer") for text in host.state()))


PEER = WireguardPeer(
    "flannel-wg", key("b"), (IPAddress("192.0.2.9"), 51820), (IPNetwork("10.5.9.0/24"),), 0, Secret(base64.b64decode(PSK))
)


def whole(host: HostInMemory) -> list[object]:
    """Everything of ours in the kernel, with its secrets."""
    assert host.agent is not None
    assert host.agent._network is not None
    return [host.kernel.get(item.key) for item in host.agent._network.reconciler.desired.state]


@pytest.mark.parametrize(
    "harm",
    [
        lambda kernel: kernel.take(PEER.key),
        lambda kernel: kernel.plant(replace(PEER, allowed_ips=())),
        lambda kernel: kernel.plant(replace(PEER, keepalive_s=7)),
        lambda kernel: kernel.plant(replace(PEER, preshared_key=Secret(b""))),
        lambda kernel: kernel.plant(WireguardDevice("flannel-wg", 7, Secret(bytes(32)))),
        lambda kernel: kernel.take(Key("link", "flannel-wg")),
        lambda kernel: kernel.set_down("flannel-wg"),
    ],
    ids=["peer removed", "addresses", "keepalive", "preshared key", "key and port", "device removed", "device down"],
)
async def test_what_somebody_else_changes_is_repaired(host: HostInMemory, harm: Callable[..., None]) -> None:
    async with host.run():
        await until(lambda: host.settled and host.holds(line()))
        before = whole(host)
        harm(host.kernel)
        assert whole(host) != before
        await until(lambda: whole(host) == before)


async def test_what_a_flanneld_has_left_is_adopted(host: HostInMemory) -> None:
    private = Secret(clamped(Random("flannel").randbytes(32)))
    host.settings.flannel_key_file.parent.mkdir()
    host.settings.flannel_key_file.write_text(key_text(private.reveal()))
    route = Route(IPNetwork("10.5.0.0/16"), dev="flannel-wg", link_scope=True, proto=BOOT_PROTOCOL)
    dead = WireguardPeer("flannel-wg", key("dead"), (IPAddress("192.0.2.66"), 51820), (IPNetwork("10.5.66.0/24"),))
    link = Link("flannel-wg", "wireguard", 1420, detail=Wireguard())
    for item in (link, WireguardDevice("flannel-wg", 51820, private), PEER, dead, route):
        host.kernel.plant(item)
    async with host.run():
        await until(lambda: host.settled and host.kernel.get(dead.key) is None)
        steps = [f"{step.op} {step.key.kind}" for step in host.kernel.applied if step.key.kind not in ("nft", "set")]
        assert sorted(steps) == ["add addr", "change route", "remove wgpeer"]


async def test_a_peer_that_roams_is_let_alone_until_its_lease_says_another_address(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.settled and host.holds(line()))
        roamed = replace(PEER, endpoint=(IPAddress("203.0.113.7"), 4444))
        host.kernel.plant(roamed)
        observed = host.kernel.calls["observe"]
        await until(lambda: host.kernel.calls["observe"] > observed + 3)
        await until(lambda: host.settled)
        assert host.kernel.get(PEER.key) == roamed
        host.put_peer("10.5.9.0-24", value("192.0.2.10", port=4000))
        await until(lambda: host.holds(line("192.0.2.10:4000")))


async def test_a_dead_peer_of_another_hand_goes_at_the_next_full_look(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.settled and host.holds(line()))
        dead = WireguardPeer("flannel-wg", key("dead"), None, ())
        host.kernel.plant(dead)
        host.kernel.overflow()
        await until(lambda: host.kernel.get(dead.key) is None)


async def test_what_an_earlier_life_left_is_swept(host: HostInMemory) -> None:
    async with host.run():
        await until(lambda: host.holds(line()))
    host.delete("10.5.9.0-24")
    host.put_peer("10.5.10.0-24", value("192.0.2.10", key("c")))
    async with host.run():
        await until(lambda: host.holds(line("192.0.2.10:51820", key("c"), "10.5.10.0/24")))
        await until(lambda: host.kernel.get(PEER.key) is None)


async def test_of_two_leases_with_one_key_the_older_has_it(host: HostInMemory) -> None:
    host.put_peer("10.5.10.0-24", value("192.0.2.10"))
    async with host.run():
        await until(lambda: host.holds(line()))
        await until(lambda: any("10.5.10.0/24" in text and key("b") in text for text in host.conditions().values()))
        host.delete("10.5.9.0-24")
        await until(lambda: host.holds(line("192.0.2.10:51820", subnet="10.5.10.0/24")))


async def test_a_host_whose_key_an_older_lease_has_draws_another(host: HostInMemory) -> None:
    async with host.run():
        ours = published(host)
    assert host.lease != "10.5.9.0-24"
    host.store.delete(f"/coreos.com/network/subnets/{host.lease}")
    host.put_peer("10.5.10.0-24", value("192.0.2.10", ours))
    async with host.run():
        await until(lambda: published(host) != ours)
        await until(lambda: host.holds(line("192.0.2.10:51820", ours, "10.5.10.0/24")))
        await until(lambda: public_key(in_kernel(host).private_key.reveal()) == published(host))
        await until(lambda: kept(host) == in_kernel(host).private_key)


async def test_a_kernel_without_wireguard_is_told_and_gets_no_lease_until_it_has_it(host: HostInMemory) -> None:
    host.kernel.unknown.add("wireguard")
    async with host.run(ready=False):
        await until(lambda: any("load the module wireguard" in text for text in host.conditions().values()))
        assert sorted(host.published()) == ["10.5.9.0-24"]
        assert "config-unusable" in host.conditions()
        host.kernel.unknown.clear()
        await until(lambda: host.ready)
        await until(lambda: host.holds(line()))


async def test_a_config_that_the_kernel_cannot_follow_yet_leaves_everything_as_it_is(host: HostInMemory) -> None:
    host.put_config({**CONFIG, "Backend": {"Type": "vxlan"}})
    host.kernel.unknown.add("wireguard")
    async with host.run():
        lease = host.lease
        host.put_config(CONFIG)
        calls = host.kernel.calls["public_key"]
        await until(lambda: host.kernel.calls["public_key"] > calls + 2)
        assert any("load the module wireguard" in text for text in host.conditions().values())
        assert host.kernel.get(Key("link", "flannel.1")) is not None
        host.kernel.unknown.clear()
        await until(lambda: host.holds(line()))
        await until(lambda: host.kernel.get(Key("link", "flannel.1")) is None)
        assert host.lease == lease


@pytest.mark.parametrize("restarts", [0, 1, 2])
async def test_a_host_that_cannot_follow_yet_follows_its_own_address_also_after_restarts(host: HostInMemory, restarts: int) -> None:
    host.put_config({**CONFIG, "Backend": {"Type": "vxlan"}})
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    host.kernel.unknown.add("wireguard")
    route = Key("route", "10.5.9.0/24")
    async with host.run():
        lease = host.lease
        await until(lambda: host.kernel.get(route))
        host.put_config(CONFIG)
        await until(lambda: "config-changed" in host.conditions())
        move(host, restarts)
        await until(lambda: host.published()[lease] == f"192.0.2.{50 + restarts}")
    for life in range(restarts):
        async with host.run():
            move(host, life)
            await until(lambda here=f"192.0.2.{50 + life}": host.published()[lease] == here and host.settled)  # type: ignore[misc]
            assert "flannel.1" in str(host.kernel.get(route))
            assert list(host.conditions()) == ["config-changed"]
            if life == restarts - 1:
                host.kernel.unknown.clear()
                await until(lambda: json.loads(host.value(lease))["BackendType"] == "wireguard")
                assert "config-changed" not in host.conditions()


def move(host: HostInMemory, life: int) -> None:
    """The uplink of the host has another address."""
    held = (InterfaceAddress(IPAddress(f"192.0.2.{50 + life}"), 24),)
    host.kernel.set_interface(Interface("eth1", 2, 1500, True, held))


@pytest.mark.parametrize("after", ["vxlan", "host-gw", "ipip"])
async def test_a_kernel_that_has_lost_wireguard_is_no_hindrance_to_another_type(host: HostInMemory, after: str) -> None:
    """The network moves on while the host is down, and it comes up with a kernel that cannot have what it had."""
    async with host.run():
        await until(lambda: host.settled)
        lease = host.lease
    host.kernel.unknown.add("wireguard")
    host.kernel.take(Key("link", "flannel-wg"))
    host.put_config({**CONFIG, "Backend": {"Type": after}})
    async with host.run():
        await until(lambda: json.loads(host.value(lease))["BackendType"] == after)
        assert "task-failed" not in " ".join(host.conditions())


async def test_a_port_that_is_free_again_is_taken_soon(host: HostInMemory) -> None:
    host.kernel.taken_ports.add(51820)
    async with host.run(ready=False):
        await until(lambda: any("UDP port 51820, which flannel-wg needs, is taken" in text for text in host.conditions().values()))
        host.kernel.taken_ports.clear()
        await until(lambda: host.ready and host.holds(line()))
        await until(lambda: host.conditions() == {})


async def test_no_secret_is_in_a_log_or_in_a_file_that_others_read(host: HostInMemory, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with host.run():
        await until(lambda: host.settled and host.holds(line()))
        host.kernel.plant(replace(PEER, preshared_key=Secret(b"")))
        await until(lambda: host.kernel.get(PEER.key) == PEER)
        host.put_config({**CONFIG, "Backend": {"Type": "wireguard", "PSK": key("another psk")}})
        await until(lambda: host.kernel.get(PEER.key) != PEER)
        private = key_text(kept(host).reveal())
    secrets = (private, PSK, key("another psk"))
    assert not any(secret in caplog.text for secret in secrets)
    for file in (path for path in host.settings.state_dir.parent.rglob("*") if path.is_file()):
        open_to_others = stat.S_IMODE(file.stat().st_mode) & 0o077
        assert not open_to_others or not any(secret in file.read_text() for secret in secrets), file


@pytest.mark.parametrize("seed", range(5))
def test_every_key_that_is_drawn_is_another_and_clamped(seed: int) -> None:
    drawn = {wireguard_key.draw().reveal() for _ in range(20)}
    assert len(drawn) == 20
    assert all(clamped(each) == each for each in drawn)
