"""Policies of IPsec, on the kernel in memory and on this one, where it has XFRM."""

from __future__ import annotations

import errno
import socket
import subprocess
from dataclasses import replace

import pytest
import pytest_asyncio
from netaddr import IPAddress, IPNetwork

from flannelpy.core.dialect import typed
from flannelpy.core.objects import HostState, Key, Scope, XfrmPolicy
from flannelpy.core.plan import Step, plan
from flannelpy.core.xfrm import DIRECTIONS, Direction
from flannelpy.kernel.xfrm import NETLINK_XFRM

from .kernel_support import NETWORK, Host, RealHost, code, hear, ip, shell

SCOPE = Scope(networks=(NETWORK,), uplink="eth1", policies=True)
OURS, PUBLIC = IPNetwork("10.5.72.0/24"), IPAddress("192.0.2.1")


def policy(number: int, direction: Direction = "out") -> XfrmPolicy:
    """Of the peer with 10.5.NUMBER.0/24, at 192.0.2.NUMBER."""
    theirs, public = IPNetwork(f"10.5.{number}.0/24"), IPAddress(f"192.0.2.{number}")
    if direction == "out":
        return XfrmPolicy(direction, OURS, theirs, PUBLIC, public)
    return XfrmPolicy(direction, theirs, OURS, public, PUBLIC)


def peer(number: int) -> HostState:
    return HostState.of(*(policy(number, direction) for direction in DIRECTIONS))


def having_xfrm() -> None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM).close()
    except OSError as error:
        pytest.skip(f"this machine's kernel has no XFRM: {error.strerror}")


@pytest_asyncio.fixture
async def there(host: Host) -> Host:
    if isinstance(host, RealHost):
        having_xfrm()
    return host


@pytest_asyncio.fixture
async def here(real: RealHost) -> RealHost:
    """The one in a network namespace."""
    having_xfrm()
    return real


async def reach(host: Host, wanted: HostState) -> list[str]:
    """Have the kernel hold this, and see it hold it; the steps it took."""
    steps = plan(wanted, await host.kernel.observe(SCOPE), SCOPE)
    results = await host.kernel.apply(steps)
    assert [str(result.error) for result in results if result.error] == []
    assert (await host.kernel.observe(SCOPE)).objects == wanted.objects
    return [f"{step.op} {step.item.noun}" for step in steps]


async def test_a_peers_policies_come_and_go(there: Host) -> None:
    assert await reach(there, peer(9)) == ["add xfrm"] * 3
    assert await reach(there, peer(9)) == []
    assert await reach(there, peer(9) | peer(10)) == ["add xfrm"] * 3
    assert await reach(there, peer(10)) == ["remove xfrm"] * 3
    assert await reach(there, HostState()) == ["remove xfrm"] * 3


async def test_a_peer_that_moves_is_changed_in_place(there: Host) -> None:
    await reach(there, peer(9))
    moved = HostState.of(*(replace(item, outer_dst=IPAddress("192.0.2.77")) for item in peer(9) if isinstance(item, XfrmPolicy)))
    assert await reach(there, moved) == ["change xfrm"] * 3
    dearer = HostState.of(*(replace(item, priority=100) for item in moved if isinstance(item, XfrmPolicy)))
    assert await reach(there, dearer) == ["change xfrm"] * 3


async def test_many_are_one_batch_after_the_other(there: Host) -> None:
    many = HostState.from_iterable(policy(number, way) for number in range(100, 250) for way in DIRECTIONS)
    assert await reach(there, many) == ["add xfrm"] * len(many)
    assert await reach(there, HostState()) == ["remove xfrm"] * len(many)


async def test_what_is_there_is_not_added_and_what_is_gone_is_removed_already(there: Host) -> None:
    first = await there.kernel.apply([Step("add", policy(9))])
    assert code(first) is None
    again = await there.kernel.apply([Step("add", policy(9)), Step("add", policy(10)), Step("remove", policy(11), policy(11))])
    assert [code(again, at) for at in range(3)] == [errno.EEXIST, None, None]


async def test_only_what_lies_inside_the_networks_and_is_asked_for_is_seen(there: Host) -> None:
    outside = XfrmPolicy("out", OURS, IPNetwork("10.6.9.0/24"), PUBLIC, IPAddress("192.0.2.9"))
    await there.kernel.apply([Step("add", policy(9)), Step("add", outside)])
    assert list((await there.kernel.observe(SCOPE)).objects) == [policy(9).key]
    assert len(await there.kernel.observe(replace(SCOPE, policies=False))) == 0
    assert len(await there.kernel.observe(SCOPE, [Key("route", "10.5.9.0/24")])) == 0
    assert len(await there.kernel.observe(SCOPE, [policy(9).key])) == 1


async def test_the_kernel_tells_of_policies(there: Host) -> None:
    notices = there.kernel.notices(SCOPE)
    deaf = there.kernel.notices(replace(SCOPE, policies=False))
    item, moved = policy(9), replace(policy(9), outer_dst=IPAddress("192.0.2.77"))
    await there.kernel.apply([Step("add", item)])
    assert (await hear(notices, lambda heard: bool(heard.objects))).objects == {item.key: item}
    await there.kernel.apply([Step("change", moved, item)])
    assert (await hear(notices, lambda heard: bool(heard.objects))).objects == {item.key: moved}
    await there.kernel.apply([Step("remove", moved, moved)])
    assert (await hear(notices, lambda heard: bool(heard.objects))).objects == {item.key: None}
    there.add_interface("br7")  # the first that the other one hears of
    assert (await hear(deaf, lambda heard: bool(heard.links))).objects == {}
    notices.close()
    deaf.close()


# ------------------------------------------------------------------------------------------------- other hands, for real


def listed() -> str:
    """What ``ip`` shows, one policy a line."""
    return shell("ip -o xfrm policy list").replace("\\", "").replace("\t", " ")


async def test_a_policy_is_what_ip_makes_of_it(here: RealHost) -> None:
    """What we send is shown by ip(8) as it stands in our words; and what ip(8) makes of those words is what we want."""
    await here.kernel.apply([Step("add", policy(9, way)) for way in DIRECTIONS])
    ours = sorted(listed().splitlines())
    assert "tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel" in " ".join(" ".join(ours).split())
    shell("ip xfrm policy flush")
    for way in DIRECTIONS:
        shell(typed(Step("add", policy(9, way))))
    assert sorted(listed().splitlines()) == ours
    assert (await here.kernel.observe(SCOPE)).objects == peer(9).objects
    moved = replace(policy(9), outer_dst=IPAddress("192.0.2.77"))
    shell(typed(Step("change", moved, policy(9))))
    assert (await here.kernel.observe(SCOPE)).get(moved.key) == moved
    for way in DIRECTIONS:
        shell(typed(Step("remove", policy(9, way), policy(9, way))))
    assert listed() == ""


FOREIGN = {
    "another number": "src 10.5.72.0/24 dst 10.5.9.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 12 mode tunnel",
    "no tunnel": "src 10.5.72.0/24 dst 10.5.9.0/24 dir out tmpl proto esp reqid 11 mode transport",
    "a refusal": "src 10.5.72.0/24 dst 10.5.9.0/24 dir out action block",
    "a protocol": "src 10.5.72.0/24 dst 10.5.9.0/24 proto tcp dir out tmpl src 192.0.2.1"
    " dst 192.0.2.9 proto esp reqid 11 mode tunnel",
    "a mark": "src 10.5.72.0/24 dst 10.5.9.0/24 dir out mark 1 tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel",
    "a device": "src 10.5.72.0/24 dst 10.5.9.0/24 dev eth1 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel",
    "two layers": "src 10.5.72.0/24 dst 10.5.9.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel"
    " tmpl src 192.0.2.1 dst 192.0.2.9 proto ah reqid 11 mode transport",
    "IPv6": "src fd05::/64 dst fd05:1::/64 dir out tmpl src fd00::1 dst fd00::2 proto esp reqid 11 mode tunnel",
    "outside": "src 10.5.72.0/24 dst 10.6.9.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel",
}


@pytest.mark.parametrize("words", FOREIGN.values(), ids=FOREIGN)
async def test_somebody_elses_policy_is_nothing_of_ours(here: RealHost, words: str) -> None:
    notices = here.kernel.notices(SCOPE)
    try:
        ip(f"xfrm policy add {words}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel refuses it: {error.stderr}")
    before = listed()
    assert len(await here.kernel.observe(SCOPE)) == 0
    await here.kernel.apply([Step("add", policy(10))])
    assert list((await hear(notices, lambda heard: bool(heard.objects))).objects) == [policy(10).key]
    await reach(here, HostState())
    assert listed() == before
    notices.close()


async def test_one_in_our_place_is_left_there_and_ours_refused(here: RealHost) -> None:
    ip(f"xfrm policy add {FOREIGN['another number']}")
    before = listed()
    assert code(await here.kernel.apply([Step("add", policy(9))])) == errno.EEXIST
    assert listed() == before


async def test_a_flush_is_heard(here: RealHost) -> None:
    await reach(here, peer(9))
    notices = here.kernel.notices(SCOPE)
    ip("xfrm policy flush")
    assert (await hear(notices, lambda heard: heard.resync or len(heard.objects) == 3)).objects in (
        {},
        dict.fromkeys(peer(9).objects),
    )
    assert len(await here.kernel.observe(SCOPE)) == 0
    notices.close()
