"""Nexthop objects, on the fake and on a real kernel: routes by them, what goes with them, and those that are somebody else's."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from netaddr import IPAddress, IPNetwork

from flannelpy.core.nexthops import by_nexthops
from flannelpy.core.objects import HostState, Key, Nexthop, Object, Route
from flannelpy.core.plan import Step, plan
from flannelpy.kernel import Kernel, messages
from flannelpy.kernel.channel import Channel
from flannelpy.kernel.messages import ACK, CREATE, EXCL, REQUEST
from flannelpy.kernel.netlink import NetlinkKernel

from .kernel_support import HOST, SCOPE, FakeHost, Host, RealHost, code, fresh_namespace, hear, ip, peer, real_only, shell

NUMBER = 0x0A050900
DEVICES = {"flannel.1"}


def carried(*numbers: int) -> HostState:
    """What reaches these peers, by nexthop objects."""
    state = HostState()
    for number in numbers:
        state |= by_nexthops(peer(number), DEVICES, ())
    return state


def plain(*numbers: int) -> HostState:
    """What reaches these peers, without."""
    state = HostState()
    for number in numbers:
        state |= peer(number)
    return state


async def reach(kernel: Kernel, desired: HostState) -> None:
    """Observe, plan, apply; all must go well, and the next plan must be empty."""
    results = await kernel.apply(plan(HOST | desired, await kernel.observe(SCOPE), SCOPE))
    assert [f"{result.step}: {result.error}" for result in results if result.error] == []
    observed = await kernel.observe(SCOPE)
    assert observed.objects == (HOST | desired).objects
    assert plan(HOST | desired, observed, SCOPE) == ()


def plant(host: Host, item: Nexthop) -> None:
    """Another hand makes a nexthop object, over whatever has its number."""
    if isinstance(host, FakeHost):
        host.fake.plant(item)
    else:
        onlink = "onlink" if item.onlink else ""
        ip(f"nexthop replace id {item.id} via {item.via} dev {item.dev} {onlink} proto {item.proto}")


def take(host: Host, item: Nexthop) -> None:
    """Another hand deletes one."""
    if isinstance(host, FakeHost):
        host.fake.take(item.key)
    else:
        ip(f"nexthop del id {item.id}")


HIS = Nexthop(NUMBER, IPAddress("192.0.2.254"), "eth1", proto=4)
ITEM = carried(9).get(Key("nexthop", str(NUMBER)))
ROUTE = Key("route", "10.5.9.0/24")


def ours() -> Nexthop:
    assert isinstance(ITEM, Nexthop)
    return ITEM


async def test_the_kernel_has_them(host: Host) -> None:
    assert await host.kernel.nexthops()


@real_only
async def test_a_kernel_that_tells_of_routes_by_numbers_only_is_one_without_them() -> None:
    with fresh_namespace():
        real = RealHost()
        told = [await real.kernel.nexthops()]
        shell("echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode")
        told.append(await real.kernel.nexthops())
        await real.close()
    assert told == [True, False]


async def test_what_was_applied_is_observed(host: Host) -> None:
    await reach(host.kernel, carried(9, 10))
    await reach(host.kernel, carried(10))
    await reach(host.kernel, HostState())


async def test_from_one_form_to_the_other_and_back(host: Host) -> None:
    await reach(host.kernel, plain(9, 10))
    await reach(host.kernel, carried(9, 10))
    await reach(host.kernel, plain(9, 10))


async def test_observation_by_keys(host: Host) -> None:
    await reach(host.kernel, carried(9))
    observed = await host.kernel.observe(SCOPE, [ours().key])
    assert list(observed) == [ours()]


async def test_a_change_of_form_is_told_as_a_change(host: Host) -> None:
    await reach(host.kernel, plain(9))
    notices = host.kernel.notices(SCOPE)
    for form in (carried(9), plain(9)):
        wanted = form.get(ROUTE)
        await reach(host.kernel, form)
        gone = False
        for _ in range(3):  # the route's own, the nexthop object's
            heard = await hear(notices, lambda heard: bool(heard.objects))
            gone |= heard.objects.get(ROUTE, wanted) is None
            if heard.objects.get(ROUTE) == wanted:
                break
        assert heard.objects.get(ROUTE) == wanted
        assert not gone


async def test_one_that_is_deleted_takes_its_route_along(host: Host) -> None:
    await reach(host.kernel, carried(9, 10))
    notices = host.kernel.notices(SCOPE)
    take(host, ours())
    heard = await hear(notices, lambda heard: ours().key in heard.objects)
    assert heard.objects == {ours().key: None}
    assert not heard.resync
    observed = await host.kernel.observe(SCOPE)
    assert ROUTE not in observed
    assert ours().key not in observed
    await reach(host.kernel, carried(9, 10))


async def test_one_that_comes_back_before_it_was_missed_asks_for_a_look(host: Host) -> None:
    await reach(host.kernel, carried(9))
    notices = host.kernel.notices(SCOPE)
    take(host, ours())
    plant(host, ours())
    heard = await hear(notices, lambda heard: heard.objects.get(ours().key) is not None)
    assert heard.resync
    await reach(host.kernel, carried(9))


async def test_a_peer_that_comes_back_at_once_asks_for_none(host: Host) -> None:
    await reach(host.kernel, carried(9))
    notices = host.kernel.notices(SCOPE)
    await reach(host.kernel, HostState())
    await reach(host.kernel, carried(9))
    heard = await hear(notices, lambda heard: heard.objects.get(ROUTE) is not None)
    assert heard.objects[ours().key] == ours()
    assert not heard.resync


async def test_somebody_elses_is_neither_seen_nor_changed(host: Host) -> None:
    await reach(host.kernel, HostState())
    plant(host, HIS)
    plant(host, replace(HIS, id=7, dev="flannel.1", via=IPAddress("10.5.8.0"), onlink=True))
    assert [item.key for item in await host.kernel.observe(SCOPE) if isinstance(item, Nexthop)] == []
    results = await host.kernel.apply(plan(HOST | carried(9, 10), await host.kernel.observe(SCOPE), SCOPE))
    refused = {result.step.item.noun: str(result.error) for result in results if result.error}
    assert refused == {"nexthop": "File exists", "route": "its nexthop object could not be had: File exists"}
    assert code([result for result in results if result.error]) == errno.EEXIST
    observed = await host.kernel.observe(SCOPE)
    assert ROUTE not in observed
    assert observed.get(Key("route", "10.5.10.0/24")) == carried(10).get(Key("route", "10.5.10.0/24"))
    assert await exists(host, HIS)
    await reach(host.kernel, plain(9) | carried(10))
    await reach(host.kernel, HostState())
    assert await exists(host, HIS)


async def exists(host: Host, item: Nexthop) -> bool:
    if isinstance(host, FakeHost):
        return host.fake.get(item.key) == item
    return f"id {item.id} via {item.via} dev {item.dev}" in shell("ip nexthop")


async def test_ours_that_was_taken_over_is_said_to_be_gone(host: Host) -> None:
    await reach(host.kernel, carried(9))
    notices = host.kernel.notices(SCOPE)
    plant(host, HIS)
    heard = await hear(notices, lambda heard: ours().key in heard.objects)
    assert heard.objects[ours().key] is None


async def test_one_of_ours_that_is_in_the_way_is_made_right(host: Host) -> None:
    """As where what was observed is not what there is any more."""
    await reach(host.kernel, HostState())
    plant(host, replace(ours(), via=IPAddress("10.5.99.0")))
    assert [result.error for result in await host.kernel.apply([Step("add", ours())])] == [None]
    assert (await host.kernel.observe(SCOPE)).get(ours().key) == ours()


async def test_one_that_leads_elsewhere_leads_its_route_there(host: Host) -> None:
    await reach(host.kernel, carried(9))
    moved = replace(ours(), via=IPAddress("10.5.77.0"))
    plant(host, moved)
    route = (await host.kernel.observe(SCOPE)).get(ROUTE)
    assert isinstance(route, Route)
    assert (route.via, route.nhid) == (IPAddress("10.5.77.0"), NUMBER)
    await reach(host.kernel, carried(9))


async def test_they_go_with_their_device(host: Host) -> None:
    await reach(host.kernel, carried(9, 10))
    host.set_down("flannel.1")
    observed = await host.kernel.observe(SCOPE)
    assert [item for item in observed if isinstance(item, Nexthop | Route)] == []
    await reach(host.kernel, carried(9, 10))
    host.delete_link("flannel.1")
    assert len(await host.kernel.observe(SCOPE)) == 0
    items: Iterable[Object] = carried(9, 10)
    assert [result.error for result in await host.kernel.apply([Step("remove", item, item) for item in items])] == [None] * 8


# ---------------------------------------------------------------------------------------------- the real kernel only


@real_only
async def test_an_operator_reads_them(real: RealHost) -> None:
    await reach(real.kernel, carried(9))
    assert shell("ip nexthop").split() == f"id {NUMBER} via 10.5.9.0 dev flannel.1 scope link proto 102 onlink".split()
    assert shell("ip route show dev flannel.1").split() == f"10.5.9.0/24 nhid {NUMBER} via 10.5.9.0 proto 102 onlink".split()


@real_only
async def test_what_a_packet_meets_is_the_same(real: RealHost) -> None:
    """Gateway, device, source and MTU of a look-up, by either form."""
    await reach(real.kernel, plain(9))
    without = shell("ip route get 10.5.9.7; ip route get 10.5.9.7 from 10.5.72.0")
    await reach(real.kernel, carried(9))
    assert shell("ip route get 10.5.9.7; ip route get 10.5.9.7 from 10.5.72.0") == without
    assert "via 10.5.9.0 dev flannel.1 src 10.5.72.0" in without


@real_only
def test_ours_is_what_the_command_makes() -> None:
    """A nexthop object made by ``ip nexthop add`` and one of our bytes read back alike, but for the number."""
    with fresh_namespace():
        real = RealHost()
        ip("link add flannel.1 type veth peer name p", "link set p up", "link set flannel.1 up")
        ip("nexthop add id 5 via 10.5.9.0 dev flannel.1 onlink proto 102")
        with Channel() as channel:
            index = socket.if_nametoindex("flannel.1")
            item = Nexthop(6, IPAddress("10.5.9.0"), "flannel.1", onlink=True)
            first = channel.reserve(1)
            request = messages.nexthop(messages.RTM_NEWNEXTHOP, REQUEST | ACK | CREATE | EXCL, first, item, index)
            assert channel.transact([request], first) == {}
            told = [channel.get(messages.get_nexthop(channel.reserve(1), number)) for number in (5, 6)]
            read = [messages.read_nexthop(data, head.body, head.end) for data, head in told]
            assert read[1] == read[0]._replace(id=6)
            assert read[1].plain
            bodies = [data[head.body : head.end].replace(messages.U32.pack(6), messages.U32.pack(5)) for data, head in told]
            assert bodies[0] == bodies[1]
        asyncio.run(real.close())


@contextmanager
def sending(address: str) -> Iterator[list[OSError]]:
    """Datagrams to ``address`` from this namespace as fast as one thread can, while the block runs; what went wrong."""
    failed: list[OSError] = []
    over = threading.Event()
    begun = threading.Event()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(True)

    def send() -> None:
        while not over.is_set():
            try:
                sock.sendto(b"x", (address, 9))
            except OSError as error:
                failed.append(error)
            begun.set()

    thread = threading.Thread(target=send)
    thread.start()
    begun.wait()
    try:
        yield failed
    finally:
        over.set()
        thread.join()
        sock.close()


@real_only
async def test_no_packet_is_without_a_route_while_the_form_changes(real: RealHost) -> None:
    assert isinstance(real.kernel, NetlinkKernel)
    await reach(real.kernel, plain(9, 10))
    ip("route del default")  # else it would take what finds no other
    with sending("10.5.9.7") as failed:
        for _ in range(100):
            await reach(real.kernel, carried(9, 10))
            await reach(real.kernel, plain(9, 10))
        assert failed == []
        await real.kernel.apply([Step("remove", item, item) for item in plain(9) if isinstance(item, Route)])
        deadline = time.monotonic() + 10.0
        while not failed and time.monotonic() < deadline:  # a packet without a route is seen
            time.sleep(0.001)  # noqa: ASYNC251 - the sender is another thread
    assert {error.errno for error in failed} == {errno.ENETUNREACH}


@real_only
async def test_what_else_there_is_of_the_kind_is_nothing_of_ours(real: RealHost) -> None:
    """Groups, blackholes, another family: read, and passed over."""
    await reach(real.kernel, carried(9))
    ip("nexthop add id 20 blackhole proto 102", f"nexthop add id 21 group {NUMBER} proto 102")
    ip("nexthop add id 22 dev flannel.1 proto 102", "nexthop add id 23 via 192.0.2.9 dev eth1 proto 102")
    ip("route add 10.5.77.0/24 nhid 21 proto 102")
    observed = await real.kernel.observe(SCOPE)
    assert [item.id for item in observed if isinstance(item, Nexthop)] == [NUMBER]
    route = observed.get(Key("route", "10.5.77.0/24"))
    assert route is None or isinstance(route, Route)
    assert observed.get(ROUTE) == Route(IPNetwork("10.5.9.0/24"), IPAddress("10.5.9.0"), "flannel.1", onlink=True, nhid=NUMBER)
