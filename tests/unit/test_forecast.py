"""What does ``flannelpy plan`` say, of an agent that runs and of one that does not? And is it a look and no more?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.alongside import UNKNOWN
from flannelpy.agent.forecast import Forecast, Remembered, Spectator, of_stopped
from flannelpy.agent.preview import of_running
from flannelpy.core.dialect import lines, typed
from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.objects import (
    Address,
    FdbEntry,
    Fou,
    Link,
    Neighbour,
    NftElement,
    NftSet,
    NftTable,
    Object,
    Route,
    Sysctl,
    Vxlan,
)
from flannelpy.core.plan import Op, Step
from flannelpy.explain import plan as documents
from flannelpy.registry.memory import MemoryStore

from .agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value

PEER = "10.5.9.0-24"


@pytest.fixture
async def host(tmp_path: Path) -> HostInMemory:
    """One whose agent has been here, with a peer, and has stopped."""
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    host.put_peer(PEER, vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.settled)
        await until(lambda: kept(host) and PEER in kept(host) and host.lease in kept(host))
        assert host.agent is not None
        assert await of_running(host.kernel, host.agent._network) == ((), ())
    return host


def kept(host: HostInMemory) -> str:
    path = host.settings.state_dir / "cluster.json"
    return path.read_text() if path.exists() else ""


def files(host: HostInMemory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in host.settings.state_dir.iterdir()}


async def forecast(host: HostInMemory, config: dict[str, object] | None = None) -> Forecast:
    known = Remembered.read(host.settings)
    before, did = files(host), list(host.kernel.applied)
    found = await of_stopped(host.kernel, host.settings, known, known.view.config if config is None else json.dumps(config))
    assert files(host) == before
    assert host.kernel.applied == did
    return found


async def test_a_stopped_agent_that_has_done_its_work_has_nothing_to_do(host: HostInMemory) -> None:
    found = await forecast(host)
    assert (lines(found.steps), found.mtu) == ([], 1450)


async def test_what_is_missing_is_put_back_and_what_is_too_much_is_taken_away(host: HostInMemory) -> None:
    route = next(step.item for step in host.kernel.applied if isinstance(step.item, Route) and "10.5.9.0/24" in str(step.item))
    litter = Route(IPNetwork("10.5.77.0/24"), IPAddress("192.0.2.77"), "eth1")
    await host.kernel.apply([Step("remove", route, route), Step("add", litter)])
    assert lines((await forecast(host)).steps) == [
        "ip route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink proto 102",
        "ip route del 10.5.77.0/24 via 192.0.2.77 dev eth1 proto 102",
    ]


async def test_another_backend_is_another_plan_and_its_peers_are_not_known_yet(host: HostInMemory) -> None:
    found = await forecast(host, {**VXLAN, "Backend": {"Type": "host-gw"}})
    assert "ip link del flannel.1 type vxlan" in lines(found.steps)
    assert (found.mtu, found.notes) == (
        1500,
        ("1 of the other hosts' leases are for another backend: their part is known when they have changed over",),
    )


async def test_what_is_preferred_is_set_up_and_nobody_knows_yet_who_is_reached_by_it(host: HostInMemory) -> None:
    wanted = {**VXLAN, "Backend": {"Type": "vxlan", "Prefer": ["host-gw", "wireguard"]}}
    found = await forecast(host, wanted)
    assert [line.split(" mtu ")[0] for line in lines(found.steps) if "link" in line] == ["ip link add flannel-wg"]
    assert UNKNOWN not in found.notes
    way = next(step.item for step in host.kernel.applied if isinstance(step.item, Route) and "10.5.9.0/24" in str(step.item))
    direct = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), "eth1")
    await host.kernel.apply([Step("change", direct, way)])
    found = await forecast(host, wanted)
    assert not any("10.5.9.0/24" in line and "route" in line for line in lines(found.steps))
    assert UNKNOWN in found.notes


async def test_another_vni_is_another_device(host: HostInMemory) -> None:
    found = lines((await forecast(host, {**VXLAN, "Backend": {"Type": "vxlan", "VNI": 7}})).steps)
    assert [line.split(" address ")[0] for line in found if "link" in line] == [
        "ip link add flannel.7",
        "ip link del flannel.1 type vxlan",
    ]


async def test_another_network_is_another_subnet(host: HostInMemory) -> None:
    found = await forecast(host, {"Network": "10.200.0.0/16", "Backend": {"Type": "vxlan"}})
    assert found.steps == ()
    assert found.notes[0].endswith("the host gets another subnet, and all changes with it")


async def test_an_agent_without_a_network_says_so(host: HostInMemory) -> None:
    steps, (note,) = await of_running(host.kernel, None)
    assert (steps, note) == ((), "the agent has no config, uplink or lease yet: flannelpy status says why")


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("cluster.json", None, "there is none: no agent of this host has been in a cluster"),
        ("cluster.json", "{", "expected a view of the cluster"),
        ("state.json", "{", "expected a state file"),
    ],
)
def test_what_was_not_kept_is_one_line_and_stays_as_it_is(tmp_path: Path, file: str, text: str | None, why: str) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.settings.state_dir.mkdir(parents=True)
    view = {"prefix": PREFIX, "config": "{}", "own": PEER, "revision": 1}
    value = vxlan_value("192.0.2.1", "02:00:00:00:00:01")
    (host.settings.state_dir / "cluster.json").write_text(json.dumps({**view, "leases": [[PEER, value, 1, 1, 1]]}))
    if text is None:
        (host.settings.state_dir / file).unlink()
    else:
        (host.settings.state_dir / file).write_text(text)
    before = files(host)
    with pytest.raises(FlannelpyError, match=why):
        Remembered.read(host.settings)
    assert files(host) == before


async def test_a_spectator_carries_nothing_out(host: HostInMemory) -> None:
    did = list(host.kernel.applied)
    (result,) = await Spectator(host.kernel).apply([Step("add", Fou(9999))])
    assert (result.error, host.kernel.applied) == (None, did)


NET = IPNetwork("10.5.9.0/24")
V6 = IPNetwork("fd00:5::/64")
VTEP = Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=Vxlan(1, "eth1", IPAddress("192.0.2.1")))


@pytest.mark.parametrize(
    ("op", "item", "line"),
    [
        ("add", Route(NET, IPAddress("10.5.9.0"), "flannel.1", onlink=True),
         "ip route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink proto 102"),
        ("remove", Route(NET, kind="unreachable"), "ip route del unreachable 10.5.9.0/24 proto 102"),
        ("change", Route(V6, dev="flannel-v6.1"), "ip -6 route replace fd00:5::/64 dev flannel-v6.1 proto 102"),
        ("remove", Route(NET, dev="x", proto=3), "ip route del 10.5.9.0/24 dev x proto 3"),
        ("remove", VTEP, "ip link del flannel.1 type vxlan"),
        (
            "add",
            VTEP,
            "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 dev eth1 local 192.0.2.1 dstport 8472 "
            "nolearning; ip link set flannel.1 up",
        ),
        ("add", Address(IPNetwork("10.5.72.0/32"), "flannel.1"), "ip addr add 10.5.72.0/32 dev flannel.1"),
        ("remove", Neighbour(IPAddress("10.5.9.0"), "02:00:00:00:00:09", "flannel.1"), "ip neigh del 10.5.9.0 dev flannel.1"),
        (
            "add",
            FdbEntry("02:00:00:00:00:09", IPAddress("192.0.2.9"), "flannel.1"),
            "bridge fdb add 02:00:00:00:00:09 dst 192.0.2.9 dev flannel.1 self permanent",
        ),
        ("add", Fou(8285), "ip fou add port 8285 ipproto 4"),
        ("change", Sysctl("net/ipv4/ip_forward", "1"), "sysctl -w net/ipv4/ip_forward=1"),
        ("add", NftTable("flannelpy", "a\nb\n"), "nft add table inet flannelpy (2 lines)"),
        ("remove", NftSet("flannelpy", "hosts4", "type ipv4_addr"), "nft delete set inet flannelpy hosts4"),
        (
            "remove",
            ForwardAccept("legacy", "DOCKER-USER", "flannelpy", V6),
            "ip6tables-legacy -D DOCKER-USER -s fd00:5::/64 -m comment --comment flannelpy -j ACCEPT",
        ),
    ],
)  # fmt: skip
def test_a_step_reads_as_it_is_typed(op: Op, item: Object, line: str) -> None:
    assert typed(Step(op, item, None if op == "add" else item)) == line


def test_sets_and_elements_of_a_table_that_goes_have_no_line_of_their_own() -> None:
    items = [NftTable("t", ""), NftSet("t", "s", ""), NftElement("t", "s", bytes(4)), NftSet("other", "s", "")]
    assert lines(Step("remove", item, item) for item in items) == ["nft delete table inet t", "nft delete set inet other s"]


@pytest.mark.parametrize("text", ["", "[]", '{"steps": "x", "notes": []}', '{"steps": [1], "notes": []}', '{"steps": []}'])
def test_an_answer_of_another_form_is_none(text: str) -> None:
    with pytest.raises(MalformedError):
        documents.from_json(text)


def test_an_answer_is_read_as_it_was_written() -> None:
    planned = documents.Planned(("ip route add x",), ("note",))
    assert documents.from_json(documents.to_json(planned)) == planned
