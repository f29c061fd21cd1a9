"""Which engine carries udp's packets, and what does the kernel hold where it is the kernel itself? flannel-compat 9.4."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork
from pyroute2.netlink import genlmsg, nla
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from backends.udp import Udp
from backends.udp.fou import TRIAL_DEVICE
from flannelpy.agent.datapath import make_way
from flannelpy.agent.sync import audit
from flannelpy.core.backend import Engines, Guard, GuardedPort, Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs
from flannelpy.core.objects import Fou, HostState, Ipip, Key, Link, NftElement, Scope
from flannelpy.core.plan import plan, text
from flannelpy.kernel import fou, genl, links, messages
from flannelpy.kernel.fake import FakeKernel
from flannelpy.kernel.sieve import Sieve
from flannelpy.plugins import parse
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import HostInMemory, until

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
US = IPAddress("192.0.2.1")
UPLINK = Uplink("eth1", 2, 1500, address=US, public_ip=IPAddress("198.51.100.1"))
REFUSAL = "this kernel has no fou: load the module fou"
SEQUENCE = 7
TUNNEL = Link("flannel0", "ipip", 1472, detail=Ipip(US, 8285, checksum=True))


def lease(subnet: str, public_ip: str) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip)))


LOCAL = Local(CONFIG, UPLINK, lease("10.5.72.0/24", "198.51.100.1"))
PEER = lease("10.5.9.0/24", "192.0.2.9")


def voiced(state: HostState) -> list[str]:
    return [f"{item.noun} {item}" for item in state]


# ------------------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({}, "auto"),
        ({"Engine": None}, "auto"),
        ({"engine": "kernel"}, "kernel"),
        ({"ENGINE": "pump"}, "userspace"),
        ({"Engine": "userspace"}, "userspace"),
    ],
)
def test_the_config_may_say_which(options: Mapping[str, Any], engine: str) -> None:
    assert Udp.from_options(options).engine == engine


@pytest.mark.parametrize("wrong", ["fou", "", 1, True])
def test_an_engine_that_cannot_be(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"Backend.Engine .*: expected auto, kernel, userspace or pump"):
        Udp.from_options({"Engine": wrong})


def test_the_hosts_word_comes_first() -> None:
    config = json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "engine": "kernel", "Port": 9000}})
    for host_options, engine in (
        ({}, "kernel"),
        ({"udp": {"Engine": "pump"}}, "userspace"),
        ({"vxlan": {"Engine": "x"}}, "kernel"),
    ):
        backend = parse(config, host_options)[1]
        assert isinstance(backend, Udp)
        assert (backend.engine, backend.port) == (engine, 9000)


@pytest.mark.parametrize(
    ("asked", "refusal", "engine", "reason", "refused"),
    [
        ("auto", "", "kernel", "udp engine: kernel", ""),
        ("auto", REFUSAL, "userspace", f"udp engine: userspace; kernel unavailable: {REFUSAL}", ""),
        ("kernel", "", "kernel", "udp engine: kernel, as asked for", ""),
        (
            "kernel",
            REFUSAL,
            "userspace",
            f"udp engine: userspace; kernel unavailable: {REFUSAL}",
            f"udp's engine kernel: {REFUSAL}; userspace carries the packets",
        ),
        ("userspace", "", "userspace", "udp engine: userspace, as asked for", ""),
    ],
)
def test_what_is_chosen(asked: Any, refusal: str, engine: str, reason: str, refused: str) -> None:
    chosen = Udp(9000, "peers", asked).choose(refusal)
    assert isinstance(chosen.backend, Udp)
    assert (chosen.backend.engine, chosen.backend.port, chosen.backend.guard) == (engine, 9000, "peers")
    assert (chosen.reason, chosen.refused) == (reason, refused)


def test_what_is_tried() -> None:
    assert isinstance(Udp(), Engines)
    assert text(plan(Udp().rehearsal, HostState())) == "\n".join(
        [
            "fou add port 8285 ipproto 4",
            f"link add {TRIAL_DEVICE} mtu 1472 down type ipip local 127.255.255.254 remote any ttl 64"
            " encap fou encap-sport 8285 encap-dport 8285 encap-csum",
        ]
    )
    assert len(Udp(engine="userspace").rehearsal) == 0


# ---------------------------------------------------------------------------------------------------- what is to be there


def test_the_host_and_its_peers_read_like_a_shell_session() -> None:
    backend = Udp(engine="kernel")
    assert text(plan(backend.host(LOCAL) | backend.path(PEER, LOCAL).state, HostState())) == "\n".join(
        [
            "fou add port 8285 ipproto 4",
            "link add flannel0 mtu 1472 up type ipip local 192.0.2.1 remote any ttl 64"
            " encap fou encap-sport 8285 encap-dport 8285 encap-csum",
            "addr add 10.5.72.0/32 dev flannel0",
            "route add unreachable 10.5.0.0/16",
            "route add 10.5.9.0/24 via 192.0.2.9 dev flannel0 onlink",
        ]
    )
    assert backend.datapath(LOCAL) is None


def test_what_goes_goes_before_its_port() -> None:
    backend = Udp(engine="kernel")
    steps = plan(HostState(), backend.host(LOCAL) | backend.path(PEER, LOCAL).state)
    assert [step.key.kind for step in steps][-2:] == ["link", "fou"]


def test_a_peer_without_ipv4_is_nothing() -> None:
    assert len(Udp(engine="kernel").path(Lease(IPNetwork("0.0.0.0/0"), LeaseAttrs(NO_ADDRESS)), LOCAL).state) == 0


def test_an_interface_without_ipv4_is_refused() -> None:
    with pytest.raises(ConfigError, match="interface eth1 has no IPv4 address"):
        Udp(engine="kernel").host(Local(CONFIG, Uplink("eth1", 2, 1500), LOCAL.lease))


FOU = GuardedPort("udp", 8285, inner=8)


@pytest.mark.parametrize(
    ("guard", "engine", "expected"),
    [
        ("default", "kernel", Guard(FOU, "default")),
        ("strict", "kernel", Guard(FOU, "strict")),
        ("peers", "kernel", Guard(FOU, "peers")),
        ("off", "kernel", None),
        ("strict", "userspace", None),
        ("strict", "auto", None),
    ],
)
def test_the_userspace_datapath_guards_itself(guard: Any, engine: Any, expected: Guard | None) -> None:
    assert Udp(8285, guard, engine).guarded == expected


@pytest.mark.parametrize("other", [Link("flannel0", "tun", 1472), Link("flannel0", "ipip", 1472), Link("flannel0", "sit", 1472)])
def test_a_device_of_another_engine_is_made_anew(other: Link) -> None:
    assert TUNNEL.must_be_remade(other)
    assert other.must_be_remade(TUNNEL)
    assert not TUNNEL.must_be_remade(Link("flannel0", "ipip", 1400, up=False, detail=Ipip(US, 8285)))


# ------------------------------------------------------------------------------------------------------------- on the wire


class fou_attributes(genlmsg):  # noqa: N801 - named as pyroute2 names them
    """linux/fou.h, for pyroute2's encoder; a port is in network order."""

    prefix = "FOU_ATTR_"
    nla_map = (
        ("FOU_ATTR_UNSPEC", "none"),
        ("FOU_ATTR_PORT", "be16"),
        ("FOU_ATTR_AF", "uint8"),
        ("FOU_ATTR_IPPROTO", "uint8"),
        ("FOU_ATTR_TYPE", "uint8"),
    )

    class be16(nla):  # noqa: N801
        fields = (("value", ">H"),)


FAMILY = 29


def library(command: int, flags: int, *attributes: tuple[str, int]) -> bytes:
    made = fou_attributes()
    named = [(f"FOU_ATTR_{name}", {"value": value} if name == "PORT" else value) for name, value in attributes]
    header = {"type": FAMILY, "flags": flags, "sequence_number": SEQUENCE, "pid": 0}
    made.setvalue({"cmd": command, "version": 1, "attrs": named, "header": header})
    made.encode()
    return bytes(made.data)


def test_a_port_on_the_wire() -> None:
    whole = (("PORT", 8285), ("AF", 2), ("TYPE", 1), ("IPPROTO", 4))
    assert fou.add(SEQUENCE, FAMILY, Fou(8285)).hex(" ", 4) == library(1, 5, *whole).hex(" ", 4)
    assert fou.remove(SEQUENCE, FAMILY, 8285).hex(" ", 4) == library(2, 5, *whole[:2]).hex(" ", 4)
    assert fou.dump(SEQUENCE, FAMILY).hex(" ", 4) == library(3, 0x301).hex(" ", 4)


def test_the_familys_number_is_asked_for_by_its_name() -> None:
    assert genl.get_family(SEQUENCE, "fou").hex(" ", 4) == "1c000000 10000100 07000000 00000000 03010000 08000200 666f7500"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ((("AF", 2), ("PORT", 8285), ("IPPROTO", 4), ("TYPE", 1)), Fou(8285)),
        ((("AF", 2), ("PORT", 5555), ("IPPROTO", 47), ("TYPE", 1)), Fou(5555, 47)),
        ((("AF", 2), ("PORT", 8285), ("IPPROTO", 0), ("TYPE", 2)), Fou(8285, 0)),  # GUE: the protocol stands in each packet
        ((("AF", 10), ("PORT", 8285), ("IPPROTO", 41), ("TYPE", 1)), None),
    ],
)
def test_a_port_is_read(attributes: tuple[tuple[str, int], ...], expected: Fou | None) -> None:
    data = library(1, 0, *attributes)
    assert fou.read(data, 16, len(data)) == expected


def ipip_by_library(**changed: object) -> bytes:
    """RTM_NEWLINK by pyroute2, in the order of iproute2; ``changed`` by the tail of an attribute's name."""
    values: dict[str, object] = {
        "LOCAL": "192.0.2.1",
        "REMOTE": "0.0.0.0",
        "TTL": 64,
        "TOS": 0,
        "PMTUDISC": 1,
        "ENCAP_TYPE": 1,
        "ENCAP_FLAGS": 1,
        "ENCAP_SPORT": 8285,
        "ENCAP_DPORT": 8285,
        **changed,
    }
    data = {"attrs": [(f"IFLA_IPIP_{name}", value) for name, value in values.items()]}
    info = {"attrs": [("IFLA_INFO_KIND", "ipip"), ("IFLA_INFO_DATA", data)]}
    made = ifinfmsg()
    made.setvalue(
        {
            "index": 0,
            "flags": 1,
            "change": 1,
            "attrs": [("IFLA_IFNAME", "flannel0"), ("IFLA_MTU", 1472), ("IFLA_LINKINFO", info)],
            "header": {"type": 16, "flags": 0x605, "sequence_number": SEQUENCE, "pid": 0},
        }
    )
    made.encode()
    return bytes(made.data)


def observed(data: bytes) -> Link | None:
    return Sieve(Scope(frozenset({"flannel0"})), str).link(messages.read_link(data, 16, len(data)))


def test_the_device_on_the_wire_and_back() -> None:
    made = links.create(SEQUENCE, TUNNEL, 0)
    assert made.hex(" ", 4) == ipip_by_library().hex(" ", 4)
    assert observed(made) == TUNNEL


@pytest.mark.parametrize(
    "changed",
    [
        {"LINK": 3},
        {"REMOTE": "192.0.2.9"},
        {"TTL": 0},
        {"TOS": 1},
        {"ENCAP_TYPE": 0},
        {"ENCAP_TYPE": 2},
        {"ENCAP_FLAGS": 2},
        {"ENCAP_FLAGS": 5},
        {"ENCAP_SPORT": 0},
        {"ENCAP_DPORT": 5555},
        {"COLLECT_METADATA": True},
    ],
    ids=str,
)
def test_a_device_that_is_not_what_we_would_make_is_made_anew(changed: dict[str, object]) -> None:
    found = observed(ipip_by_library(**changed))
    assert found is not None
    assert TUNNEL.must_be_remade(found)


@pytest.mark.parametrize("flags", [0, 1])
def test_a_device_without_outer_checksums_is_mended_in_place(flags: int) -> None:
    found = observed(ipip_by_library(ENCAP_FLAGS=flags))
    assert found is not None
    assert not TUNNEL.must_be_remade(found)
    steps = plan(HostState.of(TUNNEL), HostState.of(found))
    assert [str(step) for step in steps] == ([] if flags else [f"link replace {TUNNEL}"])


# ----------------------------------------------------------------------------------------------------------- from one to the other

SCOPE = Scope(frozenset({"flannel0", "flannel.1"}), CONFIG.networks, "eth1", fou_ports=frozenset({8285}))


async def test_what_the_kernel_engine_left_makes_way_for_userspace() -> None:
    kernel = FakeKernel()
    theirs = Fou(5555)
    for item in (*Udp(engine="kernel").host(LOCAL), theirs, Link("flannel.1", "tun", 1450)):
        kernel.plant(item)
    kernel.applied.clear()
    await make_way(kernel, SCOPE, Udp(engine="userspace").host(LOCAL))
    assert [str(step) for step in kernel.applied] == [f"link del {TUNNEL}", "fou del port 8285 ipproto 4"]
    assert kernel.get(theirs.key) == theirs


async def test_the_userspace_datapaths_own_device_stays() -> None:
    kernel = FakeKernel()
    for item in Udp(engine="userspace").host(LOCAL):
        kernel.plant(item)
    kernel.applied.clear()
    await make_way(kernel, SCOPE, Udp(engine="userspace").host(LOCAL))
    assert kernel.applied == []


async def test_another_protocol_at_our_port_is_changed() -> None:
    kernel = FakeKernel()
    kernel.plant(Fou(8285, 41))
    steps = plan(HostState.of(Fou(8285)), await kernel.observe(SCOPE), SCOPE)
    assert [str(step) for step in steps] == ["fou replace port 8285 ipproto 4"]
    assert [result.error for result in await kernel.apply(steps)] == [None]
    assert plan(HostState.of(Fou(8285)), await kernel.observe(SCOPE), SCOPE) == ()


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}})
    return made


async def test_an_agent_takes_the_kernel_where_it_can(host: HostInMemory) -> None:
    def let_in() -> list[str]:
        return [item.words for key in host.kernel.planted() if isinstance(item := host.kernel.get(key), NftElement)]

    async with host.run():
        assert host.holds("fou port 8285 ipproto 4")
        assert host.holds(f"link {TUNNEL}")
        assert host.holds("route unreachable 10.5.0.0/16")
        assert "@udp4_24 accept" in getattr(host.kernel.get(Key("nft", "flannelpy")), "body", "")
        host.put_peer("10.5.9.0-24", '{"PublicIP":"192.0.2.9","PublicIPv6":null}')
        await until(lambda: host.holds("route 10.5.9.0/24 via 192.0.2.9 dev flannel0 onlink"))
        await until(lambda: let_in() == ["192.0.2.9", "192.0.2.9 . 10.5.9.0"])
        host.put_peer("10.5.9.0-24", '{"PublicIP":"192.0.2.8","PublicIPv6":null}')
        await until(lambda: let_in() == ["192.0.2.8", "192.0.2.8 . 10.5.9.0"])
        host.delete("10.5.9.0-24")
        await until(lambda: let_in() == [])
        assert host.conditions() == {}
    state = json.loads((host.settings.state_dir / "state.json").read_text())
    assert state["fou_ports"] == [8285]


async def test_an_agent_that_may_not_have_the_kernel_says_so(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, udp_engine="kernel")
    host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Engine": "pump"}})
    host.kernel.unknown = {"fou"}
    async with host.run(ready=False):
        await until(lambda: "datapath-failed" in host.conditions())  # 192.0.2.1 is nobody's here: it was tried, no more
        assert host.conditions()["engine-refused"] == f"udp's engine kernel: {REFUSAL}; userspace carries the packets"


async def test_a_port_that_somebody_has_leaves_userspace(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Engine": "kernel"}})
    host.kernel.fail(Key("fou", "8285"), errno.EADDRINUSE)
    async with host.run(ready=False):
        await until(lambda: "datapath-failed" in host.conditions())
        assert "UDP port 8285 is taken (ss -lunp 'sport = :8285' names who has it)" in host.conditions()["engine-refused"]


async def test_looking_for_a_free_port_leaves_nothing(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path, udp_engine="pump")
    host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}})
    async with host.run(ready=False):
        await until(lambda: "datapath-failed" in host.conditions())
        assert host.kernel.get(Key("fou", "8285")) is None


async def test_a_port_that_somebody_took_away_is_back_at_the_next_look(host: HostInMemory) -> None:
    async with host.run():
        host.kernel.take(Key("fou", "8285"))
        host.kernel.overflow()
        await until(lambda: host.kernel.get(Key("fou", "8285")) is not None)


async def test_a_port_that_went_without_a_notice_is_missed_soon(host: HostInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SILENT_S", 0.001)
    async with host.run():
        host.kernel.take(Key("fou", "8285"))
        await until(lambda: host.kernel.get(Key("fou", "8285")) is not None)


async def test_the_port_of_an_earlier_config_is_swept(host: HostInMemory) -> None:
    async with host.run():
        pass
    host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 9000}})
    async with host.run():
        assert host.holds("fou port 9000 ipproto 4")
        await until(lambda: host.kernel.get(Key("fou", "8285")) is None)


async def test_the_rehearsal_leaves_nothing(host: HostInMemory) -> None:
    assert [result.error for result in await host.kernel.rehearse(plan(Udp().rehearsal, HostState()))] == [None, None]
    assert len(await host.kernel.observe(Scope(frozenset({TRIAL_DEVICE}), fou_ports=frozenset({8285})))) == 0
