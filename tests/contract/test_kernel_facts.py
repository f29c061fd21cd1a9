"""The contract of a kernel that is asked about its host: no more than is needed, and also while the host does not stand still."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import HostState, Route
from flannelpy.core.plan import Step
from flannelpy.core.uplink import FactsQuery, HostFacts, InterfaceAddress
from flannelpy.kernel import Notice
from flannelpy.kernel.notices import Notices

from .kernel_support import HOST, PATIENCE_S, SCOPE, Host, RealHost, fresh_namespace, hear, ip, peer, real_only, shell


def shown(facts: HostFacts) -> dict[str, list[str]]:
    """Interfaces with their global addresses."""
    return {one.name: [str(held.address) for held in one.addresses if held.scope == "global"] for one in facts.interfaces}


ETH1 = {"eth1": ["192.0.2.1", "2001:db8::1"]}


# ------------------------------------------------------------------------------------------------- as much as is asked for


async def test_one_interface_by_its_name_with_its_addresses_alone(host: Host) -> None:
    host.add_interface("br7")
    facts = await host.kernel.facts(FactsQuery(frozenset({"eth1", "gone0", "a" * 15, "b" * 100, "c" * 200}), False))
    assert (shown(facts), facts.default_routes) == (ETH1, ())


async def test_default_routes_bring_the_interfaces_that_they_leave_by(host: Host) -> None:
    host.add_interface("br7")
    facts = await host.kernel.facts(FactsQuery(frozenset(), True))
    assert shown(facts) == ETH1
    assert [(route.version, route.index) for route in facts.default_routes] == [(4, facts.interfaces[0].index)]
    both = await host.kernel.facts(FactsQuery(frozenset({"eth1", "br7"}), True))
    assert shown(both) == {**ETH1, "br7": []}


async def test_nothing_is_asked_for(host: Host) -> None:
    assert await host.kernel.facts(FactsQuery(frozenset(), False)) == HostFacts()


async def test_a_link_without_a_carrier_does_not_run_and_one_that_knows_of_none_does(real: RealHost) -> None:
    ip(
        "link add here7 type veth peer name there7",
        "link set here7 up",
        "link set lo up",
        "link add idle7 type vxlan id 7 dstport 4007",
    )
    ip("link set idle7 up", "link add br7 type bridge", "link set br7 up")
    names = frozenset({"here7", "lo", "idle7", "br7"})

    async def running() -> set[str]:
        return {one.name for one in (await real.kernel.facts(FactsQuery(names, False))).interfaces if one.running}

    assert await running() == {"lo", "idle7"}
    ip("link set there7 up")
    assert await running() == {"lo", "idle7", "here7"}
    ip("link set there7 down")
    assert await running() == {"lo", "idle7"}
    ip("link set idle7 down")
    assert await running() == {"lo"}


async def test_other_names_of_an_interface_are_names(real: RealHost) -> None:
    long = "a-name-that-is-longer-than-fifteen-letters"
    ip("link property add dev eth1 altname enp0s3", f"link property add dev eth1 altname {long}")
    for name in ("enp0s3", long):
        (eth1,) = (await real.kernel.facts(FactsQuery(frozenset({name}), False))).interfaces
        assert (eth1.name, set(eth1.altnames)) == ("eth1", {"enp0s3", long})
        assert f" {eth1.mac} " in shell("ip -o link show eth1")
    everything = await real.kernel.facts()
    assert next(one for one in everything.interfaces if one.name == "eth1") == eth1


async def test_default_routes_are_found_before_thousands_of_others_are_read(
    real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the kernel's order: by metric, whatever was added first."""
    ip("route add default via 192.0.2.253 metric 50", "route add 0.0.0.0/8 via 192.0.2.9", "route add 0.0.0.0/1 via 192.0.2.9")
    ip(*(f"route add 10.{i >> 8}.{i & 255}.0/24 via 192.0.2.9" for i in range(3000)))
    ip("link add eth2 type veth peer name eth2p", "link set eth2 up", "addr add 198.51.100.1/24 dev eth2")
    ip("route add default via 198.51.100.9 metric 20")
    ip("route add default via 2001:db8::9 dev eth1 metric 30")
    read: list[int] = []
    from flannelpy.kernel import messages

    original = messages.read_route
    monkeypatch.setattr(messages, "read_route", lambda *where: read.append(1) or original(*where))
    facts = await real.kernel.facts(FactsQuery(frozenset(), True))
    names = {one.index: one.name for one in facts.interfaces}
    assert [(route.version, names[route.index]) for route in facts.default_routes] == [
        (4, "eth1"),
        (4, "eth2"),
        (4, "eth1"),
        (6, "eth1"),
    ]
    assert len(read) < 50


# ------------------------------------------------------------------------------------------------- while it does not stand still

CHURN = """
for round in 1 2; do
    for i in $(seq 150); do echo link add v$i type veth peer name w$i; echo link set v$i up; echo addr add 198.18.$i.1/24 dev v$i
    echo route add 2001:db8:$i::/64 dev v$i; done | ip -force -batch -
    for i in $(seq 150); do echo link del v$i; done | ip -force -batch -
done
"""


@contextmanager
def churn() -> Iterator[subprocess.Popen[bytes]]:
    """Hundreds of interfaces with addresses and routes that come and go, until it has ended."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(["sh", "-c", CHURN], stdin=silent, stdout=silent, stderr=silent)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def test_facts_and_observations_while_hundreds_of_interfaces_come_and_go(real: RealHost) -> None:
    wanted = HOST | HostState.from_iterable(item for number in range(80, 250) for item in peer(number))
    assert not [result.error for result in await real.kernel.apply([Step("add", item) for item in wanted]) if result.error]
    notices = real.kernel.notices(SCOPE)
    rounds = 0
    with churn() as running:
        while running.poll() is None:
            by_name = await real.kernel.facts(FactsQuery(frozenset({"eth1"}), False))
            by_route = await real.kernel.facts(FactsQuery(frozenset(), True))
            everything = await real.kernel.facts()
            assert shown(by_name) == ETH1
            assert shown(by_route)["eth1"] == shown(everything)["eth1"] == ETH1["eth1"]
            observed = await real.kernel.observe(SCOPE)
            assert observed.incomplete or observed.objects == wanted.objects
            assert all(wanted.get(key) == item for key, item in observed.objects.items())  # what is told is true
            rounds += 1
    assert rounds > 0
    assert (await real.kernel.observe(SCOPE)).objects == wanted.objects
    heard = await hear(notices, lambda heard: any(name.startswith("v") for name in heard.links.values()) or heard.lost)
    assert heard.objects == {}
    assert heard.resync == heard.lost


async def test_a_dump_that_never_stands_still_is_used_and_said_to_be_incomplete(
    real: RealHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flannelpy.kernel.channel import Channel

    original = Channel.dump

    def interrupted(self: Channel, request: bytes) -> Iterator[object]:
        yield from original(self, request)
        raise InterruptedError

    await real.kernel.apply([Step("add", item) for item in HOST | peer(9)])
    monkeypatch.setattr(Channel, "dump", interrupted)
    monkeypatch.setattr("flannelpy.kernel.dump.PAUSES_S", (0.0, 0.0))
    observed = await real.kernel.observe(SCOPE)
    assert (observed.objects, observed.incomplete) == ((HOST | peer(9)).objects, True)
    assert shown(await real.kernel.facts())["eth1"] == ETH1["eth1"]
    notices = real.kernel.notices(SCOPE)
    monkeypatch.undo()
    await real.kernel.apply([Step("add", item) for item in peer(10)])
    await hear(notices, lambda heard: all(heard.objects.get(item.key) == item for item in peer(10)))
    assert not (await real.kernel.observe(SCOPE)).incomplete


# ------------------------------------------------------------------------------------------------------ what goes wrong


async def test_notices_outlive_a_time_without_descriptors(real: RealHost) -> None:
    await real.kernel.apply([Step("add", item) for item in HOST])
    notices = real.kernel.notices(SCOPE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = asyncio.create_task(hear(notices, lambda heard: heard.lost))
    await asyncio.sleep(0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # no new one, whoever asks
        with pytest.raises(KernelError, match="Too many open files"):
            await real.kernel.facts()
        with pytest.raises(KernelError, match="Too many open files"):
            real.kernel.notices(SCOPE)
        notices._deaf = notices._subscribe  # type: ignore[attr-defined]
        notices._waiter.set_result(None)  # type: ignore[attr-defined]
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not waiting.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    heard = await waiting
    assert heard == Notice(resync=True, lost=True)
    await real.kernel.apply([Step("add", item) for item in peer(10)])
    await hear(notices, lambda heard: all(heard.objects.get(item.key) == item for item in peer(10)))


async def test_notices_outlive_their_socket(real: RealHost) -> None:
    await real.kernel.apply([Step("add", item) for item in HOST])
    notices = real.kernel.notices(SCOPE)
    assert isinstance(notices, Notices)
    for sock, _digest in notices._sockets:
        sock.close()
    assert await anext(notices) == Notice(resync=True, lost=True)
    await real.kernel.apply([Step("add", item) for item in peer(10)])
    await hear(notices, lambda heard: all(heard.objects.get(item.key) == item for item in peer(10)))


async def test_closing_ends_a_pause(real: RealHost, monkeypatch: pytest.MonkeyPatch) -> None:
    notices = real.kernel.notices(SCOPE)
    assert isinstance(notices, Notices)

    def never() -> None:
        raise KernelError("no")

    monkeypatch.setattr("flannelpy.kernel.notices.PAUSES_S", (1000.0,))
    notices._deaf = never

    async def listen() -> list[Notice]:
        return [notice async for notice in notices]

    waiting = asyncio.create_task(listen())
    for _ in range(5):
        await asyncio.sleep(0)
    notices.close()
    async with asyncio.timeout(PATIENCE_S):
        assert await waiting == []


HOPS = [
    ("", "", [(4, "eth1")]),
    ("nexthop via 192.0.2.7 dev eth1 nexthop via 192.0.2.8 dev eth1 weight 3", "", [(4, "eth1")]),
    ("nexthop via 192.0.2.7 dev eth1 nexthop via 198.51.100.7 dev eth1p", "", [(4, "")]),
    # as two routers on one link make it, where systemd-networkd takes in what they say
    ("", "nexthop via fe80::7 dev eth1 nexthop via fe80::8 dev eth1", [(4, "eth1"), (6, "eth1")]),
    ("", "nexthop via fe80::7 dev eth1 nexthop via fe80::8 dev eth1p", [(4, "eth1"), (6, "")]),
]


@real_only
@pytest.mark.parametrize(("hops", "hops6", "told"), HOPS)
async def test_a_default_route_by_several_gateways_on_one_link_leaves_by_that(
    hops: str, hops6: str, told: list[tuple[int, str]]
) -> None:
    with fresh_namespace():
        host = RealHost()
        ip("addr add 198.51.100.1/24 dev eth1p", "addr add fe80::1/64 dev eth1 nodad", "addr add fe80::2/64 dev eth1p nodad")
        shell(f"ip route replace default {hops}" if hops else ":")
        shell(f"ip -6 route add default proto ra {hops6}" if hops6 else ":")
        facts = await host.kernel.facts()
        await host.close()
    names = {interface.index: interface.name for interface in facts.interfaces}
    assert [(route.version, names.get(route.index, "")) for route in facts.default_routes] == told


@real_only
async def test_an_address_that_another_host_has_is_told_as_that() -> None:
    with fresh_namespace():
        host = RealHost()
        notices = host.kernel.notices(SCOPE)
        ip("addr add 2001:db8::7/64 dev eth1p nodad", "addr add 2001:db8::7/64 dev eth1", "addr add 2001:db8::8/64 dev eth1")
        await hear(
            notices, lambda _heard: "dadfailed" in (said := shell("ip -6 addr show dev eth1")) and said.count("tentative") == 1
        )
        facts = await host.kernel.facts(FactsQuery(frozenset({"eth1"}), default_routes=False))
        await host.close()
    (eth1,) = facts.interfaces
    found = {str(held.address): held.duplicate for held in eth1.addresses if held.address.version == 6}
    assert found == {"2001:db8::1": False, "2001:db8::7": True, "2001:db8::8": False}


@pytest.mark.parametrize("method", ["facts", "route_to", "routes_at", "observe", "apply", "rehearse", "notices", "next_notice"])
async def test_every_call_of_the_one_in_memory_can_fail_for_a_while(method: str) -> None:
    from .kernel_support import FakeHost

    fake = FakeHost().fake
    notices = fake.notices(SCOPE)

    async def call() -> object:
        match method:
            case "facts":
                return await fake.facts()
            case "route_to":
                return await fake.route_to(IPAddress("192.0.2.9"))
            case "routes_at":
                return await fake.routes_at([item for item in peer(9) if isinstance(item, Route)])
            case "observe":
                return await fake.observe(SCOPE)
            case "apply":
                return await fake.apply([])
            case "rehearse":
                return await fake.rehearse([])
            case "notices":
                return fake.notices(SCOPE)
            case _:
                fake.overflow()
                return await anext(notices)

    await call()
    for reason in (KernelError("no", 5), ValueError("a bug")):
        fake.fail_call(method, reason, times=2)
        for _ in range(2):
            with pytest.raises(type(reason)):
                await call()
        await call()


async def test_a_default_route_names_its_gateway(host: Host) -> None:
    host.set_gateway("192.0.2.254")
    assert [str(route.via) for route in (await host.kernel.facts()).default_routes] == ["192.0.2.254"]


async def test_an_address_that_other_links_know_is_told_and_a_link_local_one_is_none(host: Host) -> None:
    notices = host.kernel.notices(SCOPE)
    host.add_interface("br7")
    host.add_uplink_address(InterfaceAddress(IPAddress("192.0.2.77"), 24))
    heard = await hear(notices, lambda heard: heard.addressed)
    assert "eth1" in heard.links.values()
    host.add_uplink_address(InterfaceAddress(IPAddress("169.254.7.7"), 32))
    host.add_uplink_address(InterfaceAddress(IPAddress("fe80::77"), 64))
    host.add_interface("br8")
    heard = await hear(notices, lambda heard: "br8" in heard.links.values())
    assert not heard.addressed
    host.remove_interface("br7")
    heard = await hear(notices, lambda heard: "br7" in heard.links.values())
    assert not heard.addressed
    notices.close()
