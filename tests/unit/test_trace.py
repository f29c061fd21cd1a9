"""What does trace say of a packet, on a kernel in memory? Every hop both ways, with an agent and without."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace

import click
import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.commands.doctor.about import About
from flannelpy.commands.trace.run import journey_of, page
from flannelpy.core.config import NetworkConfig
from flannelpy.core.envelope import Envelope
from flannelpy.core.errors import FlannelpyError, KernelError, UsageError
from flannelpy.core.lookup import Found
from flannelpy.core.objects import (
    Address,
    FdbEntry,
    Key,
    Link,
    Neighbour,
    Object,
    Route,
    Vxlan,
    Wireguard,
    WireguardPeer,
    XfrmPolicy,
)
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.secret import Secret
from flannelpy.core.trace import Journey, back_hop, route_hop
from flannelpy.core.wireguard import NO_KEY, WireguardDevice
from flannelpy.explain.status import PeerStatus, ProbeStatus
from flannelpy.explain.trace import exit_code, to_json, verdict
from flannelpy.kernel.fake import FakeKernel

from .test_doctor import STATUS, about, fake, interface  # noqa: F401 - about is a fixture
from .test_packet_filter import ACCEPT, DROP, asks, meta, table

MAC, GATEWAY, PUBLIC = "02:00:00:00:00:09", IPAddress("10.5.9.0"), IPAddress("192.0.2.9")
DST, SUBNET = "10.5.9.2", IPNetwork("10.5.9.0/24")
PROBE = ProbeStatus("reachable", "", None, 0.4, 0.0, 1450, True, None)
PEER = PeerStatus("10.5.9.0-24", str(SUBNET), None, str(PUBLIC), None, "vxlan", "in-sync", probe=PROBE)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not answer in memory never will."""
    monkeypatch.setattr("flannelpy.commands.trace.asking.EVERY_S", 0.001)
    monkeypatch.setattr("flannelpy.commands.trace.asking.PATIENCE_S", 0.01)


@pytest.fixture
def host(about: About) -> About:  # noqa: F811
    """A host that reaches a peer by vxlan."""
    about.status = replace(STATUS, peers=(PEER,))
    kernel = fake(about)
    kernel.sysctls |= {"net/ipv4/conf/docker0/forwarding": "1", "net/ipv4/conf/flannel.1/forwarding": "1"}
    device = Vxlan(1, "eth1", IPAddress("192.0.2.1"))
    for item in (
        Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=device),
        Neighbour(GATEWAY, MAC, "flannel.1"),
        FdbEntry(MAC, PUBLIC, "flannel.1"),
        Route(SUBNET, via=GATEWAY, dev="flannel.1", onlink=True),
    ):
        kernel.plant(item)
    return about


def stopped(journey: Journey) -> tuple[str, str, str]:
    """Where, why and what to do; nothing where it gets through."""
    return ("", "", "") if journey.stop is None else (journey.stop.name, journey.stop.said, journey.stop.remedy)


async def test_where_all_is_well_it_gets_through(host: About) -> None:
    journey = await journey_of(host, DST, None)
    assert (journey.outcome, exit_code(journey), journey.peer) == ("passes", 0, str(PUBLIC)), journey
    assert {hop.state for hop in journey.hops} == {"passes"}
    named = ["bridge", "forwarding", "route", "forward", "device", "neighbour", "fdb", "outer route", "uplink", "output", "peer"]
    assert [hop.name for hop in journey.hops] == [*named, "input", "way back", "forward back", "answer"]
    document = json.loads(to_json(journey, "9.9"))
    assert (document["schema"], document["outcome"], document["exitCode"], document["stoppedBy"]) == (1, "passes", 0, None)
    assert document["hops"][0] == {
        "name": "bridge",
        "state": "passes",
        "said": "docker0, 10.5.7.1/24",
        "remedy": "",
        "mtu": 1450,
    }
    assert verdict(journey) == "gets through: 10.5.7.253 to 10.5.9.2 and back"
    shown = page(journey, 400, colours=False)
    assert [line.split("  ")[0].strip() for line in shown[1:]] == [hop.name for hop in journey.hops]
    narrow = page(journey, 60, colours=True)
    assert len(narrow) > len(shown)
    assert all(len(click.unstyle(line)) <= 60 for line in narrow)
    assert all(echo.closed for echo in fake(host).air.echoes)


Break = Callable[[About, FakeKernel], object]


def silent(*addresses: str, size: int = 0) -> Break:
    def act(_host: About, kernel: FakeKernel) -> None:
        kernel.air.silent = lambda address, large: str(address) in addresses and large >= size

    return act


def sysctl(name: str, value: str = "0") -> Break:
    return lambda _host, kernel: kernel.sysctls.__setitem__(name, value)


def detour(net: str, found: Found) -> Break:
    return lambda _host, kernel: kernel.detours.__setitem__(IPNetwork(net), found)


def both(*acts: Break) -> Break:
    return lambda host, kernel: [act(host, kernel) for act in acts]


def rules(**words: str) -> Break:
    """Everything from one interface is dropped at a hook."""
    rule = [asks(meta(words["key"]), words["name"]), DROP]
    return lambda _host, kernel: setattr(kernel, "rules", table(rule, hook=words["hook"]))


def told(**words: object) -> Break:
    return lambda host, _kernel: setattr(
        host,
        "status",
        replace(STATUS, peers=(replace(PEER, probe=replace(PROBE, **words)),)),  # type: ignore[arg-type]
    )


NOBODY = silent(DST, str(GATEWAY), str(PUBLIC))
FAULTS: dict[str, tuple[str, str, str, Break]] = {
    "no bridge": ("bridge", "no bridge", "docker-opts", lambda _host, kernel: kernel.take_interface("docker0")),
    "the bridge elsewhere": (
        "bridge",
        "docker0 has 10.5.8.1/24",
        "systemctl restart docker",
        lambda _host, kernel: kernel.set_interface(interface("docker0", 3, "10.5.8.1/24")),
    ),
    "the bridge is down": (
        "bridge",
        "docker0 is down",
        "ip link set docker0 up",
        lambda _host, kernel: kernel.set_interface(replace(interface("docker0", 3, "10.5.7.1/24"), up=False)),
    ),
    "ip_forward": ("forwarding", "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1", sysctl("net/ipv4/ip_forward")),
    "forwarding of the bridge": (
        "forwarding",
        "docker0.forwarding is 0",
        "sysctl -w net.ipv4.conf.docker0.forwarding=1",
        sysctl("net/ipv4/conf/docker0/forwarding"),
    ),
    "forwarding of our device": (
        "forwarding",
        "flannel/1.forwarding is 0",
        "sysctl -w net.ipv4.conf.flannel/1.forwarding=1",
        sysctl("net/ipv4/conf/flannel.1/forwarding"),
    ),
    "no route": (
        "route",
        "no route leads to 10.5.9.0/24 of 192.0.2.9 (ENETUNREACH)",
        "systemctl restart flannelpy",
        lambda _host, kernel: kernel.take(Key("route", str(SUBNET))),
    ),
    "a longer route": (
        "route",
        "go by 10.5.9.0/25 via 192.0.2.254 dev eth1",
        "ip route del 10.5.9.0/25",
        detour("10.5.9.0/25", Found("eth1", IPAddress("192.0.2.254"), IPNetwork("10.5.9.0/25"))),
    ),
    "a policy rule": (
        "route",
        "of table 66",
        "ip rule del ... lookup 66",
        detour("10.5.9.0/24", Found("eth1", None, IPNetwork("0.0.0.0/0"), 66)),
    ),
    "a policy rule that is known": (
        "route",
        "of table 66",
        "ip rule del pref 100 from all to 10.5.9.0/24 lookup 66",
        both(
            lambda _host, kernel: kernel.policy_rules.append(PolicyRule(4, 100, table=66, destination=IPNetwork("10.5.9.0/24"))),
            detour("10.5.9.0/24", Found("eth1", None, IPNetwork("0.0.0.0/0"), 66)),
        ),
    ),
    "a policy rule to a table with a black hole": (
        "route",
        "for a policy rule says so",
        "ip rule del pref 100 from all to 10.5.9.0/24 lookup 66",
        both(
            lambda _host, kernel: kernel.policy_rules.append(PolicyRule(4, 100, table=66, destination=IPNetwork("10.5.9.0/24"))),
            detour("10.5.9.0/24", Found(code=errno.EINVAL)),
        ),
    ),
    "a policy rule that refuses what containers send": (
        "route",
        "go nowhere, not by 10.5.9.0 dev flannel.1, for a policy rule says so",
        "ip rule del pref 100 from all iif docker0 blackhole",
        lambda _host, kernel: kernel.policy_rules.append(PolicyRule(4, 100, "blackhole", arrives="docker0")),
    ),
    "a policy rule that refuses what comes back": (
        "way back",
        "goes nowhere, not to docker0, for a policy rule says so",
        "ip rule del pref 100 from all iif flannel.1 blackhole",
        lambda _host, kernel: kernel.policy_rules.append(PolicyRule(4, 100, "blackhole", arrives="flannel.1")),
    ),
    "a longer route with several hops": (
        "route",
        "go by 10.5.9.0/25, not by 10.5.9.0 dev flannel.1",
        "ip route del 10.5.9.0/25",
        detour("10.5.9.0/25", Found("", None, IPNetwork("10.5.9.0/25"), hops=(("eth1", None), ("eth1", None)))),
    ),
    "a policy rule about the peer itself": (
        "outer route",
        "for a policy rule says so",
        "ip rule del pref 7 from all to 192.0.2.9/32 prohibit",
        both(
            lambda _host, kernel: kernel.policy_rules.append(PolicyRule(4, 7, "prohibit", destination=IPNetwork("192.0.2.9/32"))),
            both(detour("192.0.2.9/32", Found(code=errno.EACCES)), NOBODY),
        ),
    ),
    "a blackhole": ("route", "blackhole", "ip rule show", detour("10.5.9.0/24", Found(code=errno.EINVAL))),
    "FORWARD": ("forward", "chain c of nft table inet t", "nft delete rule", rules(hook="forward", key="iifname", name="docker0")),
    "FORWARD's policy": (
        "forward",
        "chain c of nft table inet t (policy drop)",
        "nft insert rule inet t c ip saddr 10.5.7.0/24 accept && nft insert rule inet t c ip daddr 10.5.7.0/24 accept",
        lambda _host, kernel: setattr(kernel, "rules", table(policy="drop")),
    ),
    "FORWARD back": ("forward back", "drops it", "nft delete rule", rules(hook="forward", key="oifname", name="docker0")),
    "OUTPUT": ("output", "drops it", "nft delete rule", both(rules(hook="output", key="oifname", name="eth1"), NOBODY)),
    "INPUT": ("input", "drops it", "nft delete rule", both(rules(hook="input", key="iifname", name="eth1"), NOBODY)),
    "our device is down": (
        "device",
        "flannel.1 is down",
        "ip link set flannel.1 up",
        both(
            lambda _host, kernel: kernel.set_down("flannel.1"),
            lambda _host, kernel: kernel.plant(Route(SUBNET, via=GATEWAY, dev="flannel.1", onlink=True)),
            NOBODY,
        ),
    ),
    "no neighbour": (
        "neighbour",
        "no permanent entry",
        "flannelpy plan",
        both(lambda _host, kernel: kernel.take(Key("neigh", f"{GATEWAY} dev flannel.1")), NOBODY),
    ),
    "no fdb entry": (
        "fdb",
        "has no entry on flannel.1",
        "flannelpy plan",
        both(lambda _host, kernel: kernel.take(Key("fdb", f"{MAC} dev flannel.1")), NOBODY),
    ),
    "another fdb entry": (
        "fdb",
        "is sent to 192.0.2.99; the lease says 192.0.2.9",
        "flannelpy plan",
        both(lambda _host, kernel: kernel.plant(FdbEntry(MAC, IPAddress("192.0.2.99"), "flannel.1")), NOBODY),
    ),
    "no way to the peer": (
        "outer route",
        "no way to 192.0.2.9 (ENETUNREACH)",
        "ip route get 192.0.2.9",
        both(detour("192.0.2.9/32", Found(code=errno.ENETUNREACH)), NOBODY),
    ),
    "in circles": (
        "outer route",
        "go in circles",
        "ip route del 192.0.2.9/32 dev flannel.1",
        both(detour("192.0.2.9/32", Found("flannel.1", None, IPNetwork("192.0.2.9/32"))), NOBODY),
    ),
    "to the peer by another link": (
        "outer route",
        "192.0.2.9 is reached by 192.0.2.9/32 via 192.0.2.254 dev eth0, not by the uplink eth1",
        "ip route del 192.0.2.9/32",
        both(detour("192.0.2.9/32", Found("eth0", IPAddress("192.0.2.254"), IPNetwork("192.0.2.9/32"))), NOBODY),
    ),
    "to the peer by a default route": (
        "outer route",
        "192.0.2.9 is reached by default via 10.0.2.2 dev eth0, not by the uplink eth1",
        "ip route add 192.0.2.9 via GATEWAY dev eth1; where eth0 is the way: --iface=eth0",
        both(detour("192.0.2.9/32", Found("eth0", IPAddress("10.0.2.2"), IPNetwork("0.0.0.0/0"))), NOBODY),
    ),
    "in circles by a default route": (
        "outer route",
        "go in circles",
        "ip route add 192.0.2.9 via GATEWAY dev eth1",
        both(detour("192.0.2.9/32", Found("flannel.1", None, IPNetwork("0.0.0.0/0"))), NOBODY),
    ),
    "the way back by a default route": (
        "way back",
        "goes by default via 192.0.2.254 dev eth1, not to docker0",
        "ip link set docker0 up; ip route get 10.5.7.2",
        detour("10.5.7.0/25", Found("eth1", IPAddress("192.0.2.254"), IPNetwork("0.0.0.0/0"))),
    ),
    "POSTROUTING back": (
        "forward back",
        "drops it",
        "nft delete rule",
        rules(hook="postrouting", key="iifname", name="flannel.1"),
    ),
    "no carrier": (
        "uplink",
        "eth1 has no carrier",
        "ethtool eth1",
        both(
            lambda _host, kernel: kernel.set_interface(replace(interface("eth1", 2, "192.0.2.1/24", mtu=1500), running=False)),
            NOBODY,
        ),
    ),
    "the way back": (
        "way back",
        "goes by 10.5.7.0/25 dev eth1, not to docker0",
        "ip route del 10.5.7.0/25 dev eth1",
        detour("10.5.7.0/25", Found("eth1", None, IPNetwork("10.5.7.0/25"))),
    ),
    "rp_filter of our device": (
        "way back",
        "flannel.1 drops what comes from there",
        "sysctl -w net.ipv4.conf.flannel/1.rp_filter=2",
        both(
            sysctl("net/ipv4/conf/flannel.1/rp_filter", "1"),
            detour("10.5.9.2/32", Found("", GATEWAY, SUBNET)),
        ),
    ),
    "nobody there": ("answer", "its host answers through the overlay, 10.5.9.2 does not", "flannelpy doctor", silent(DST)),
    "the port is filtered": ("answer", "UDP 8472 is dropped there", "tcpdump -ni any udp port 8472", silent(DST, str(GATEWAY))),
    "the host is down": ("answer", "192.0.2.9 does not answer either", "ping 192.0.2.9", NOBODY),
    "what the agent knows": (
        "answer",
        "192.0.2.9: one way only",
        "flannelpy doctor",
        both(NOBODY, told(state="unreachable", why="one way only")),
    ),
    "only large ones": ("answer", "1450 bytes are lost", "Backend.MTU", silent(DST, size=1000)),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_the_first_thing_that_stops_it_is_named_with_its_remedy(host: About, name: str) -> None:
    where, said, remedy, act = FAULTS[name]
    act(host, fake(host))
    journey = await journey_of(host, DST, "10.5.7.2")
    found = stopped(journey)
    assert (found[0], said in found[1], remedy in found[2]) == (where, True, True), journey
    assert exit_code(journey) == 3
    assert (journey.outcome == "large") == (name == "only large ones")


@pytest.mark.parametrize("name", ["no fdb entry", "no way to the peer", "OUTPUT", "to the peer by another link"])
async def test_what_an_answer_contradicts_has_stopped_nothing(host: About, name: str) -> None:
    FAULTS[name][3](host, fake(host))
    silent()(host, fake(host))
    journey = await journey_of(host, DST, None)
    assert journey.outcome == "passes"
    assert any(hop.state == "note" and "answers come all the same" in hop.said for hop in journey.hops)


@pytest.mark.parametrize(("hook", "key"), [("output", "oifname"), ("input", "iifname")])
async def test_a_host_that_mutes_itself_proves_nothing(host: About, hook: str, key: str) -> None:
    """Packets of containers do not pass output and input, this host's own do."""
    fake(host).plant(Address(IPNetwork("10.5.7.0/32"), "flannel.1"))
    rules(hook=hook, key=key, name="flannel.1")(host, fake(host))
    assert (await journey_of(host, DST, None)).outcome == "passes"
    NOBODY(host, fake(host))
    journey = await journey_of(host, DST, None)
    assert (journey.outcome, journey.hops[-1].state) == ("unknown", "unknown")
    assert "this host's own echo requests are dropped here" in verdict(journey)


async def test_large_requests_of_this_host_that_it_drops_itself_prove_nothing(host: About) -> None:
    fake(host).plant(Address(IPNetwork("10.5.7.0/32"), "flannel.1"))
    long = [asks(meta("length"), 1000, ">"), asks(meta("oifname"), "flannel.1"), DROP]
    fake(host).rules = table(long, hook="output")
    silent(DST, size=1000)(host, fake(host))
    journey = await journey_of(host, DST, None)
    assert (journey.outcome, journey.hops[-1].state) == ("passes", "note")
    fake(host).rules = table(long, hook="forward")
    journey = await journey_of(host, DST, None)
    assert (journey.outcome, stopped(journey)[0], exit_code(journey)) == ("large", "forward", 3)
    assert verdict(journey).startswith("large packets are stopped at forward: ")


async def test_a_firewall_that_nobody_may_read_is_not_known(host: About) -> None:
    fake(host).fail_call("filter_rules", KernelError("Operation not permitted", errno.EPERM))
    journey = await journey_of(host, DST, None)
    assert (journey.outcome, exit_code(journey)) == ("unknown", 1)
    assert "Operation not permitted" in verdict(journey)


async def test_without_a_socket_nobody_is_asked(host: About) -> None:
    fake(host).fail_call("echo", KernelError("no ICMP socket", errno.EPERM))
    journey = await journey_of(host, DST, None)
    assert (journey.outcome, journey.hops[-1].said) == ("unknown", "nobody can be asked: no ICMP socket")


async def test_without_an_agent_the_kernel_is_looked_at_all_the_same(host: About) -> None:
    host.status, host.silent = None, "there is no such socket"
    journey = await journey_of(host, DST, None)
    assert journey.outcome == "passes"
    assert any(hop.name == "peer" and "there is no such socket" in hop.said for hop in journey.hops)
    fake(host).take(Key("neigh", f"{GATEWAY} dev flannel.1"))
    NOBODY(host, fake(host))
    assert stopped(await journey_of(host, DST, None))[0] == "neighbour"


@pytest.mark.parametrize(("dst", "address"), [("192.0.2.9", "10.5.9.0"), ("10.5.9.0/24", "10.5.9.0"), (DST, DST)])
async def test_a_peer_has_several_names(host: About, dst: str, address: str) -> None:
    journey = await journey_of(host, dst, None)
    assert (str(journey.destination), journey.outcome) == (address, "passes")


async def test_a_container_of_this_host_is_behind_the_bridge(host: About) -> None:
    journey = await journey_of(host, "10.5.7.9", None)
    assert [hop.name for hop in journey.hops] == ["bridge", "answer"]
    silent("10.5.7.9")(host, fake(host))
    assert "is there such a container?" in stopped(await journey_of(host, "10.5.7.9", None))[1]


async def test_without_a_device_a_policy_says_how_it_goes(host: About) -> None:
    options = {"Type": "ipsec", "PSK": "x" * 96}
    host.config = NetworkConfig.parse(json.dumps({"Network": "10.5.0.0/16", "Backend": options}))
    host.backend = plugins.load(host.config)
    kernel = fake(host)
    kernel.plant(Route(SUBNET, dev="eth1", link_scope=True))
    policy = XfrmPolicy("out", IPNetwork("10.5.7.0/24"), SUBNET, IPAddress("192.0.2.1"), PUBLIC)
    kernel.plant(policy)
    journey = await journey_of(host, DST, None)
    assert "policy: in ESP from 192.0.2.1 to 192.0.2.9; ip xfrm state shows its keys" in [
        f"{hop.name}: {hop.said}" for hop in journey.hops
    ]
    assert journey.stop is None
    kernel.take(policy.key)
    journey = await journey_of(host, DST, None)
    assert journey.stop is not None
    assert (journey.stop.name, journey.stop.remedy) == ("policy", "ip xfrm policy; flannelpy plan")


DPORT = {"payload": {"protocol": "udp", "field": "dport"}}
KEY = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="


def carried_by(host: About, backend: dict[str, object] | None, *items: Object) -> None:
    """By another backend than vxlan, or one that is not known; with these in the kernel."""
    kernel = fake(host)
    for key in list(kernel.planted()):
        kernel.take(key)
    for item in items:
        kernel.plant(item)
    kernel.sysctls[f"net/ipv4/conf/{items[0].key.id}/forwarding"] = "1"
    host.config = host.backend = None
    if backend is not None:
        host.take(json.dumps({"Network": "10.5.0.0/16", "Backend": backend}))
    silent(DST, str(GATEWAY))(host, kernel)


WG = (
    Link("flannel-wg", "wireguard", 1420, detail=Wireguard()),
    WireguardPeer("flannel-wg", KEY, (PUBLIC, 51820), (SUBNET,), 0, NO_KEY),
    Route(IPNetwork("10.5.0.0/16"), dev="flannel-wg", link_scope=True),
)
TUN = (Link("flannel0", "tun", 1472), Route(IPNetwork("10.5.0.0/16"), dev="flannel0"))


@pytest.mark.parametrize(
    ("backend", "items", "port"),
    [
        ({"Type": "wireguard"}, WG, 51820),
        ({"Type": "wireguard", "ListenPort": 4444}, WG, 4444),
        ({"Type": "vxlan", "Prefer": ["wireguard"]}, WG, 51820),
        (None, (*WG, WireguardDevice("flannel-wg", 5555, Secret(bytes(32)))), 5555),
        ({"Type": "udp", "Engine": "userspace", "Port": 9}, TUN, 9),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
async def test_what_comes_in_is_judged_at_the_port_of_its_device(
    host: About, backend: dict[str, object] | None, items: tuple[Object, ...], port: int, opened: bool
) -> None:
    carried_by(host, backend, *items)
    fake(host).rules = table([asks(DPORT, port if opened else port + 1), ACCEPT], [DROP], hook="input")
    journey = await journey_of(host, DST, None)
    assert [hop.state for hop in journey.hops if hop.name == "input"] == ["passes" if opened else "stops"], journey


async def test_of_a_port_that_is_not_known_nothing_is_judged(host: About) -> None:
    carried_by(host, None, *TUN)
    fake(host).rules = table([asks(DPORT, 8285), ACCEPT], [DROP], hook="input")
    journey = await journey_of(host, DST, None)
    assert [hop.state for hop in journey.hops if hop.name in ("port", "input")] == ["note"], journey


async def test_an_address_of_nobody_is_told(host: About) -> None:
    silent("10.5.200.1")(host, fake(host))
    journey = await journey_of(host, "10.5.200.1", None)
    (found,) = [hop for hop in journey.hops if hop.state == "stops"]
    assert (journey.outcome, found.name, found.remedy) == ("stopped", "peer", "flannelpy lease list 10.5.200.1")
    assert "no host has leased a subnet with 10.5.200.1" in found.said
    assert "answer" not in [hop.name for hop in journey.hops], "there is nobody who could be down"


@pytest.mark.parametrize(
    ("dst", "source", "kind", "said"),
    [
        ("8.8.8.8", None, UsageError, "expected an address in 10.5.0.0/16"),
        (DST, "10.5.8.2", UsageError, "--from 10.5.8.2: expected an address in 10.5.7.0/24"),
        (DST, "nonsense", UsageError, "--from 'nonsense'"),
        ("10.5.7.0/24", None, UsageError, "this host's own subnet"),
        ("10.5.33.0/24", None, FlannelpyError, "no host that the agent knows of has 10.5.33.0/24"),
        ("\x1b[31m..", None, UsageError, "expected an address, a subnet, or a host's name"),
    ],
)
async def test_what_cannot_be_asked_is_refused(host: About, dst: str, source: str | None, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        await journey_of(host, dst, source)
    assert said in str(caught.value)


async def test_a_host_without_a_subnet_says_so(host: About) -> None:
    host.status, host.told = None, type(host.told)()
    with pytest.raises(FlannelpyError, match="no subnet that is known"):
        await journey_of(host, DST, None)


def test_the_envelope_is_what_a_capture_shows() -> None:
    here, there = IPAddress("10.5.7.2"), IPAddress("10.5.9.2")
    vxlan = Envelope(port=8472, vni=1).transport(here, there)
    assert (vxlan[2:4].hex(), vxlan[8:16].hex(), vxlan[28:30].hex()) == ("2118", "0800000000000100", "0800")
    assert vxlan[42:50] == int(here).to_bytes(4, "big") + int(there).to_bytes(4, "big")
    assert [Envelope(port=1, vni=1).overhead(4), Envelope(port=1).overhead(4), Envelope(4).overhead(4)] == [50, 28, 20]
    assert Envelope(port=51820, hidden=True).overhead(4) == 60
    assert Envelope(port=8285).transport(here, there)[20:24] == int(here).to_bytes(4, "big")


@pytest.mark.parametrize("via", ["fd00:9::", "fd00:9::1"])
@pytest.mark.parametrize(
    ("code", "rule"), [(errno.ENETUNREACH, "pref 100 from all unreachable"), (errno.EINVAL, ""), (errno.EXDEV, "")]
)
def test_a_route_of_ipv6_is_told_whole_and_never_by_the_reverse_path_filter(via: str, code: int, rule: str) -> None:
    """Which IPv6 has none of; a gateway that ends in two colons ends no sentence."""
    wanted = Route(IPNetwork("fd00:9::/64"), via=IPAddress(via), dev="flannel-v6.1", onlink=True)
    hop = route_hop(wanted, Found(code=code), Found("flannel-v6.1", IPAddress(via)), "fd00:9::/64", 1430, rule)
    assert f"not by {via} dev flannel-v6.1" in hop.said
    assert hop.remedy.startswith(f"ip -6 rule del {rule}" if rule else "ip -6 rule show")
    assert "rp_filter" not in hop.said


async def test_that_the_agent_has_left_a_peer_out_is_said_with_its_reason(host: About) -> None:
    fake(host).take(Key("route", str(SUBNET)))
    host.status = replace(STATUS, peers=(replace(PEER, state="excluded", why="would take 10.5.9.1/32 on eth1 into the overlay"),))
    where, said, remedy = stopped(await journey_of(host, DST, None))
    assert where == "route"
    assert said.endswith("the agent has left it out: excluded, would take 10.5.9.1/32 on eth1 into the overlay")
    assert remedy == "flannelpy status --peers"


def test_a_rule_that_takes_answers_elsewhere_is_named() -> None:
    elsewhere = Found("eth0", IPAddress("192.0.2.254"), IPNetwork("0.0.0.0/0"), 100)
    hop = back_hop(elsewhere, "docker0", "flannel.1", IPAddress("10.5.7.2"), 24, "pref 5 from all iif flannel.1 lookup 100")
    assert hop.said == (
        "an answer to 10.5.7.2 goes by default via 192.0.2.254 dev eth0 of table 100, not to docker0, for a policy rule says so"
    )
    assert hop.remedy == "ip rule del pref 5 from all iif flannel.1 lookup 100"
    six = back_hop(Found(code=errno.EINVAL), "docker0", "flannel-v6.1", IPAddress("fd00:7::2"), 64)
    assert six.remedy.startswith("ip -6 rule show")
    assert "rp_filter" not in six.said
