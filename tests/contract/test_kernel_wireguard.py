"""WireGuard: key, port and peers, on the kernel in memory and on this one; where that has none, on wireguard-go in its place.

tests/kernels has the module in its guest.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Address, HostState, Key, Link, Route, Scope, Wireguard, WireguardDevice, WireguardPeer
from flannelpy.core.plan import Step, plan
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import clamped, key_text
from flannelpy.kernel import Kernel
from flannelpy.kernel.netlink import NetlinkKernel
from flannelpy.kernel.rehearsal import TRIAL_DEVICE, trial_of_key

from .kernel_support import Host, RealHost

DEV = f"fwg{os.getpid()}"
"""All network namespaces share one directory of sockets."""

BUILT = Path(__file__).resolve().parents[2] / ".venv" / "cache"
"""Where ``make test`` builds wireguard-go."""
SCOPE = Scope(frozenset({DEV}), (IPNetwork("10.5.0.0/16"), IPNetwork("fd05::/48")), "eth1")
PRIVATE = Secret(clamped(bytes(range(32))))
LINK = Link(DEV, "wireguard", 1420, detail=Wireguard())
DEVICE = WireguardDevice(DEV, 51820, PRIVATE)
HOST = HostState.of(
    LINK, DEVICE, Address(IPNetwork("10.5.72.0/32"), DEV), Route(IPNetwork("10.5.0.0/16"), dev=DEV, link_scope=True)
)
PSK = Secret(bytes(range(1, 33)))


def peer(number: int, seed: str = "") -> WireguardPeer:
    """The peer with 10.5.NUMBER.0/24, or beyond; another ``seed`` is another key."""
    key = key_text(clamped(Random(f"{number}{seed}").randbytes(32)))
    subnet = IPNetwork((int(IPAddress("10.5.0.0")) + number * 256, 24), version=4)
    return WireguardPeer(DEV, key, (IPAddress("192.0.2.9"), 51820), (subnet,))


async def having_wireguard(kernel: Kernel) -> None:
    """Skip where this cannot be had."""
    try:
        await kernel.public_key(PRIVATE)
    except KernelError as refusal:
        pytest.skip(f"{refusal}; no wireguard-go either: make test builds it (with Go)")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wireguard-go, where it was built; whatever it has made here goes with its device."""
    monkeypatch.setenv("PATH", f"{BUILT}{os.pathsep}{os.environ['PATH']}")
    yield
    subprocess.run(["ip", "link", "del", DEV], capture_output=True, check=False)


@pytest_asyncio.fixture
async def wg(host: Host, program: None) -> Host:
    """A host that has WireGuard, by its kernel or by wireguard-go."""
    await having_wireguard(host.kernel)
    return host


@pytest_asyncio.fixture
async def real_wg(real: RealHost, program: None) -> RealHost:
    """The one in a network namespace."""
    await having_wireguard(real.kernel)
    return real


async def reach(host: Host, wanted: HostState) -> list[str]:
    """Have the kernel hold this, and see it hold it; the kinds of steps it took."""
    steps = plan(wanted, await host.kernel.observe(SCOPE), SCOPE)
    results = await host.kernel.apply(steps)
    assert [str(result.error) for result in results if result.error] == []
    assert (await host.kernel.observe(SCOPE)).objects == wanted.objects
    return [f"{step.op} {step.item.noun}" for step in steps]


def at(*peers: WireguardPeer) -> HostState:
    return HOST | HostState.of(*peers)


async def test_a_device_with_its_key_its_port_and_a_peer_comes_and_goes(wg: Host) -> None:
    assert await reach(wg, at(peer(9))) == ["add link", "add wg", "add addr", "add wgpeer", "add route"]
    assert await reach(wg, at(peer(9))) == []
    assert await reach(wg, HostState()) == ["remove link"]


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": (IPAddress("192.0.2.77"), 51820)},
        {"endpoint": (IPAddress("192.0.2.9"), 1)},
        {"endpoint": (IPAddress("2001:db8::9"), 51821)},
        {"allowed_ips": (IPNetwork("10.5.9.0/24"), IPNetwork("fd05:0:0:9::/64"))},
        {"allowed_ips": (IPNetwork("10.5.10.0/24"),)},
        {"keepalive_s": 25},
        {"preshared_key": PSK},
    ],
    ids=str,
)
async def test_a_peer_changes_in_place_and_back(wg: Host, changes: dict[str, object]) -> None:
    await reach(wg, at(peer(9)))
    assert await reach(wg, at(replace(peer(9), **changes))) == ["change wgpeer"]  # type: ignore[arg-type]
    assert await reach(wg, at(peer(9))) == ["change wgpeer"]


@pytest.mark.parametrize("changes", [{"listen_port": 51999}, {"private_key": Secret(clamped(bytes(32)))}], ids=str)
async def test_key_and_port_change_in_place(wg: Host, changes: dict[str, object]) -> None:
    await reach(wg, at(peer(9)))
    assert await reach(wg, HostState({**at(peer(9)).objects, DEVICE.key: replace(DEVICE, **changes)})) == ["change wg"]  # type: ignore[arg-type]


async def test_another_key_of_a_peer_takes_its_addresses_before_the_old_one_goes(wg: Host) -> None:
    old, new = peer(9), peer(9, "new")
    await reach(wg, at(old))
    assert await reach(wg, at(new)) == ["add wgpeer", "remove wgpeer"]


async def test_an_address_has_one_owner(wg: Host) -> None:
    await reach(wg, at(peer(9)))
    thief = replace(peer(77), allowed_ips=peer(9).allowed_ips)
    await wg.kernel.apply([Step("add", thief)])
    observed = await wg.kernel.observe(SCOPE)
    assert observed.get(peer(9).key) == replace(peer(9), allowed_ips=())
    assert observed.get(thief.key) == thief
    assert await reach(wg, at(peer(9))) == ["change wgpeer", "remove wgpeer"]


async def test_two_peers_trade_their_subnets(wg: Host) -> None:
    one, other = peer(9), peer(10)
    await reach(wg, at(one, other))
    traded = at(replace(one, allowed_ips=other.allowed_ips), replace(other, allowed_ips=one.allowed_ips))
    assert await reach(wg, traded) == ["change wgpeer", "change wgpeer"]


@pytest.mark.parametrize("count", [1, 200, 1500])
async def test_many_peers_come_and_go(wg: Host, count: int) -> None:
    peers = [peer(number) for number in range(count)]
    assert (await reach(wg, at(*peers))).count("add wgpeer") == count
    assert await reach(wg, at(*peers[: count // 2])) == ["remove wgpeer"] * (count - count // 2)


async def test_a_peer_of_thousands_of_addresses_is_observed_whole(wg: Host) -> None:
    allowed = tuple(IPNetwork((int(IPAddress("10.64.0.0")) + number, 32), version=4) for number in range(1500))
    await reach(wg, at(replace(peer(9), allowed_ips=allowed), peer(10)))


async def test_removing_what_is_not_there_is_success(wg: Host) -> None:
    await reach(wg, HOST)
    results = await wg.kernel.apply([Step("remove", peer(9), peer(9)), Step("remove", replace(peer(9), dev="gone0"), peer(9))])
    assert [result.error for result in results] == [None, None]


async def test_a_peer_of_a_device_that_is_not_there(wg: Host) -> None:
    (result,) = await wg.kernel.apply([Step("add", peer(9))])
    assert result.error is not None
    assert result.error.code == errno.ENODEV


async def test_a_port_that_somebody_has_is_told(wg: Host) -> None:
    wg.take_port(51820)
    results = await wg.kernel.apply([Step("add", LINK), Step("add", DEVICE)])
    assert [str(result.error) for result in results if result.error] == [
        f"UDP port 51820, which {DEV} needs, is taken by another program"
    ]
    wg.give_port(51820)
    assert await reach(wg, HOST) == ["change wg", "add addr", "add route"]


def by_openssl(private: bytes) -> str:
    """The public key of a private one."""
    der = bytes.fromhex("302e020100300506032b656e04220420") + private  # RFC 8410
    words = ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"]
    return key_text(subprocess.run(words, input=der, capture_output=True, check=True).stdout[-32:])


@pytest.mark.parametrize("seed", range(3))
async def test_the_public_key_is_the_private_ones(wg: Host, seed: int) -> None:
    private = clamped(Random(seed).randbytes(32))
    assert await wg.kernel.public_key(Secret(private)) == by_openssl(private)
    assert len(await wg.kernel.observe(replace(SCOPE, links=frozenset({"flannelpy-wg"})))) == 0


async def test_of_many_peers_in_a_message_those_that_are_refused_are_told_apart(real_wg: RealHost) -> None:
    real = real_wg
    await reach(real, HOST)
    peers = [replace(peer(number), preshared_key=Secret(b"short") if number % 3 == 1 else PSK) for number in range(8)]
    results = await real.kernel.apply([Step("add", each) for each in peers])
    assert [result.error is None for result in results] == [number % 3 != 1 for number in range(8)]
    observed = await real.kernel.observe(SCOPE)
    assert [each for each in peers if each.key in observed] == [each for each in peers if each.preshared_key == PSK]


async def test_without_a_namespace_of_its_own_the_trial_device_goes_again(real: RealHost) -> None:
    assert isinstance(real.kernel, NetlinkKernel)
    scope = replace(SCOPE, links=frozenset({TRIAL_DEVICE}))
    alone = NetlinkKernel(userspace=False)
    try:
        await alone.public_key_here(PRIVATE, undo=True)
    except KernelError as refusal:
        pytest.skip(f"{refusal}; tests/kernels asks one that has it")
    finally:
        await alone.close()
    left = trial_of_key(Secret(clamped(bytes(32))))[0]
    assert [result.error for result in await real.kernel.apply([left])] == [None]
    assert await real.kernel.public_key_here(PRIVATE, undo=True) == by_openssl(PRIVATE.reveal())
    assert len(await real.kernel.observe(scope)) == 0


async def test_without_the_module_it_is_said_which(host: Host) -> None:
    try:
        await host.kernel.public_key(PRIVATE)
    except KernelError as refusal:
        assert str(refusal) == "this kernel has no wireguard devices: load the module wireguard"  # noqa: PT017
    assert Key("link", "flannelpy-wg") not in await host.kernel.observe(replace(SCOPE, links=frozenset({"flannelpy-wg"})))
