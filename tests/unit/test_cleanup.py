"""What does ``flannelpy cleanup`` take for ours, and does it leave everything else alone, whatever there is?"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent import holders
from flannelpy.agent.lock import Claimant, Claims, hold_lock
from flannelpy.commands import cleanup, leftovers
from flannelpy.commands.leftovers import Known, Places
from flannelpy.commands.litter import litter
from flannelpy.commands.reservations import Subnets
from flannelpy.core.dialect import lines
from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.forwarding import Hindrance
from flannelpy.core.model import LeaseAttrs
from flannelpy.core.objects import (
    BOOT_PROTOCOL,
    Address,
    FdbEntry,
    Fou,
    HostState,
    Ipip,
    Link,
    Neighbour,
    NftTable,
    Object,
    Route,
    Vxlan,
    Wireguard,
    WireguardPeer,
    XfrmPolicy,
)
from flannelpy.core.plan import Step, plan
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.host import state as state_file
from flannelpy.host.state import State
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry.memory import MemoryRegistry, MemoryStore

NETWORK = IPNetwork("10.5.0.0/16")
MAC, THEIR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:99"
STATE = State("/coreos.com/network", {"flannel.1": MAC}, "10.5.72.0-24", (str(NETWORK),), ("flannel.1",), (8285,), policies=True)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    state_file.write(tmp_path / "state", STATE)
    return Places(tmp_path / "state", tmp_path / "run", tmp_path / "flannel" / "subnet.env", claims=tmp_path / "claims")


def vxlan(name: str, mac: str, vni: int) -> Link:
    return Link(name, "vxlan", 1450, mac, detail=Vxlan(vni, "eth1", IPAddress("192.0.2.1"), 8472 + vni))


def policy(dst: str) -> XfrmPolicy:
    return XfrmPolicy("out", IPNetwork("10.5.72.0/24"), IPNetwork(dst), IPAddress("192.0.2.1"), IPAddress("192.0.2.9"))


def ours(peers: int) -> list[Object]:
    """What an agent with so many peers makes."""
    found: list[Object] = [
        Fou(8285),
        vxlan("flannel.1", MAC, 1),
        Address(IPNetwork("10.5.72.0/32"), "flannel.1"),
        NftTable("flannelpy", "chain forward {\n\tip saddr 10.5.0.0/16 accept\n}"),
        ForwardAccept("nft", "FORWARD", "flannelpy", source=NETWORK),
        Route(IPNetwork("10.5.72.0/24"), kind="unreachable"),
        policy("10.5.9.0/24"),
    ]
    for number in range(peers):
        gateway, mac = IPAddress(f"10.5.{number + 100}.0"), f"02:00:00:00:01:{number:02x}"
        found += [
            Neighbour(gateway, mac, "flannel.1"),
            FdbEntry(mac, IPAddress(f"192.0.2.{number + 10}"), "flannel.1"),
            Route(IPNetwork(f"{gateway}/24"), gateway, "flannel.1", onlink=True),
        ]
    return found


NUMBER = st.integers(0, 60)
FOREIGN = st.one_of(
    st.builds(
        lambda n, at: Route(IPNetwork(f"10.5.{n}.0/25"), IPAddress(at), "eth1", proto=BOOT_PROTOCOL), NUMBER, st.just("192.0.2.9")
    ),
    st.builds(lambda n: Route(IPNetwork(f"10.5.{n}.128/25"), IPAddress("192.0.2.9"), "eth1", proto=4), NUMBER),
    st.builds(lambda n: Route(IPNetwork(f"10.6.{n}.0/24"), IPAddress("192.0.2.9"), "eth1"), NUMBER),  # another agent's
    st.builds(lambda n: vxlan(f"flannel.{n + 2}", THEIR_MAC, n + 2), NUMBER),
    st.just(Link("flannel.ipip", "ipip", 1480, detail=Ipip(IPAddress("192.0.2.1"), ttl=0))),
    st.builds(lambda n: Fou(9000 + n), NUMBER),
    st.builds(lambda n: policy(f"10.6.{n}.0/24"), NUMBER),
    st.sampled_from(["mine", "flannelpy-other", "flannelpy2"]).map(lambda name: NftTable(name, "chain x {\n}")),
    st.sampled_from(["theirs", "flannelpy-other"]).map(lambda owner: ForwardAccept("nft", "FORWARD", owner, source=NETWORK)),
)


def host(*items: Object) -> FakeKernel:
    kernel = FakeKernel([Interface("eth1", 2, 1500, True, (InterfaceAddress(IPAddress("192.0.2.1"), 24),))])
    kernel.firewall = (Hindrance(4, "ip filter", "FORWARD", "policy drop", "nft", False),)
    results = asyncio.run(kernel.apply(plan(HostState.from_iterable(items), HostState())))
    assert [result for result in results if result.error is not None] == []
    return kernel


def there(kernel: FakeKernel, items: list[Object]) -> list[str]:
    return [str(item) for item in items if kernel.get(item.key) == item]


@settings(max_examples=60, deadline=None)
@given(st.lists(FOREIGN, max_size=12, unique_by=lambda item: item.key), st.integers(0, 5), st.booleans())
def test_whatever_others_have_stays_and_all_of_ours_goes(foreign: list[Object], peers: int, half: bool) -> None:
    mine = ours(peers)
    kernel = host(*foreign, *(mine[:4] if half else mine))
    known = Known("/coreos.com/network", STATE)
    nowhere = Places(Path("/nowhere"), Path("/nowhere"), Path("/nowhere/subnet.env"), claims=Path("/nowhere"))

    async def twice() -> tuple[list[str], list[str]]:
        steps, _notes = await leftovers.find(kernel, nowhere, known)
        await cleanup.take_away(kernel, steps)
        return lines(steps), lines((await leftovers.find(kernel, nowhere, known))[0])

    first, second = asyncio.run(twice())
    assert there(kernel, foreign) == [str(item) for item in foreign]
    assert there(kernel, mine) == []
    assert (len(first) >= 3, second) == (True, [])


def test_what_goes_reads_as_it_is_typed(places: Places) -> None:
    steps, notes = asyncio.run(leftovers.find(host(*ours(2)), places, leftovers.recall(places)))
    assert notes == ()
    assert sorted(lines(steps)) == [
        "ip fou del port 8285",
        "ip link del flannel.1 type vxlan",
        "ip route del unreachable 10.5.72.0/24 proto 102",
        "ip xfrm policy delete src 10.5.72.0/24 dst 10.5.9.0/24 dir out",
        "iptables -D FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT",
        "nft delete table inet flannelpy",
    ]


OUTER, PEERS_SUBNET = IPAddress("192.0.2.1"), IPNetwork("10.5.9.0/24")
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Wg="
CARRIED: dict[str, tuple[tuple[Object, ...], list[str]]] = {
    "ipip": (
        (
            Link("flannel.ipip", "ipip", 1480, detail=Ipip(OUTER, ttl=0)),
            Address(IPNetwork("10.5.72.0/32"), "flannel.ipip"),
            Route(PEERS_SUBNET, IPAddress("192.0.2.2"), "flannel.ipip", onlink=True),
        ),
        ["ip link del flannel.ipip type ipip"],
    ),
    "wireguard": (
        (
            Link("flannel-wg", "wireguard", 1420, detail=Wireguard()),
            Address(IPNetwork("10.5.72.0/32"), "flannel-wg"),
            WireguardPeer("flannel-wg", KEY, (IPAddress("192.0.2.2"), 51820), (PEERS_SUBNET,)),
            Route(PEERS_SUBNET, dev="flannel-wg"),
        ),
        ["ip link del flannel-wg type wireguard"],
    ),
    "udp by the kernel": (
        (
            Fou(8285),
            Link("flannel0", "ipip", 1472, detail=Ipip(OUTER, port=8285, ttl=64)),
            Address(IPNetwork("10.5.72.0/32"), "flannel0"),
            Route(PEERS_SUBNET, IPAddress("192.0.2.2"), "flannel0", onlink=True),
            Route(IPNetwork("10.5.0.0/16"), kind="unreachable"),
        ),
        ["ip fou del port 8285", "ip link del flannel0 type ipip", "ip route del unreachable 10.5.0.0/16 proto 102"],
    ),
}
"""What the other backends make on a host, and what takes it away."""
THEIRS = (Link("tunl9", "ipip", 1480, detail=Ipip(IPAddress("192.0.2.77"), ttl=0)), Fou(9000))


@pytest.mark.parametrize("remembered", [True, False], ids=["state file", "claims only"])
@pytest.mark.parametrize("backend", CARRIED)
def test_each_backends_devices_and_ports_go_and_others_like_them_stay(tmp_path: Path, backend: str, remembered: bool) -> None:
    mine, expected = CARRIED[backend]
    devices = tuple(item.name for item in mine if isinstance(item, Link))
    ports = tuple(item.port for item in mine if isinstance(item, Fou))
    kernel = host(*mine, *THEIRS)
    assert there(kernel, list(mine)) == [str(item) for item in mine]
    if remembered:
        known = Known("/coreos.com/network", State("/coreos.com/network", {}, "10.5.72.0-24", (str(NETWORK),), devices, ports))
    else:
        left = [*(f"device {name}" for name in devices), *(f"udp-port {port}" for port in ports), f"network {NETWORK}"]
        known = Known("/coreos.com/network", State(networks=(str(NETWORK),)), tuple((name, tmp_path / name) for name in left))
    nowhere = Places(tmp_path / "state", tmp_path / "run", tmp_path / "subnet.env", claims=tmp_path / "claims")

    async def twice() -> tuple[list[str], list[str]]:
        steps, _notes = await leftovers.find(kernel, nowhere, known)
        await cleanup.take_away(kernel, steps)
        return lines(steps), lines((await leftovers.find(kernel, nowhere, known))[0])

    first, second = asyncio.run(twice())
    assert (sorted(first), second) == (expected, [])
    assert there(kernel, list(mine)) == []
    assert there(kernel, list(THEIRS)) == [str(item) for item in THEIRS]


def test_a_device_that_has_another_mac_than_we_gave_it_is_somebody_elses(places: Places) -> None:
    kernel = host(vxlan("flannel.1", THEIR_MAC, 1))
    steps, notes = asyncio.run(leftovers.find(kernel, places, leftovers.recall(places)))
    assert steps == ()
    assert notes == (f"link flannel.1: its MAC is {THEIR_MAC}, ours had {MAC}: somebody else made it; it stays",)


@pytest.mark.parametrize("text", ["", "{", '{"prefix": 7}', "\0" * 100])
def test_of_a_corrupt_state_file_nothing_is_used_and_it_stays(places: Places, text: str) -> None:
    path = places.state_dir / "state.json"
    path.write_text(text)
    known = leftovers.recall(places)
    assert (known.devices, known.fou_ports, len(known.notes)) == (frozenset(), frozenset(), 1)
    assert "only what carries our marks counts" in known.notes[0]
    assert path.read_text() == text
    kernel = host(*ours(2))
    steps, notes = asyncio.run(leftovers.find(kernel, places, known))
    # The network stands in our own table, and marked routes in it lead through our device; nothing tells of the FOU port.
    assert "ip route del unreachable 10.5.72.0/24 proto 102" in lines(steps)
    assert "nft delete table inet flannelpy" in lines(steps)
    assert "ip link del flannel.1 type vxlan" in lines(steps)
    assert not [line for line in lines(steps) if "fou" in line]
    assert notes == ()
    # Without a peer nothing tells that the device is ours.
    steps, _notes = asyncio.run(leftovers.find(host(*ours(0)), places, known))
    assert not [line for line in lines(steps) if "link" in line]


def test_marked_routes_in_no_network_that_is_known_are_named_and_stay(places: Places) -> None:
    kernel = host(Route(IPNetwork("10.9.1.0/24"), IPAddress("192.0.2.9"), "eth1"))
    steps, (note,) = asyncio.run(leftovers.find(kernel, places, leftovers.recall(places)))
    assert steps == ()
    assert note.startswith("route 10.9.1.0/24 via 192.0.2.9 dev eth1: marked like ours")


def test_what_a_killed_agent_had_claimed_is_ours_without_a_state_file(places: Places) -> None:
    (places.state_dir / "state.json").unlink()
    claims = Claims(Claimant(os.getpid(), str(places.run_dir), "/coreos.com/network"), places.claims)
    assert claims.claim(["device flannel.1", "udp-port 8285", "table flannelpy"]) is None
    known = leftovers.recall(places)
    assert (known.devices, known.fou_ports) == (frozenset(), frozenset())
    for descriptor in claims._held.values():  # killed: nobody takes the files away
        os.close(descriptor)
    claims._held.clear()
    known = leftovers.recall(places)
    assert (known.devices, known.fou_ports) == ({"flannel.1"}, {8285})
    assert leftovers.recall(Places(places.state_dir, places.run_dir, places.subnet_file, "/other", places.claims)).devices == set()


def test_a_state_file_of_another_network_is_refused(places: Places) -> None:
    other = Places(places.state_dir, places.run_dir, places.subnet_file, "/other", places.claims)
    with pytest.raises(
        FlannelpyError, match=r"is of the network /coreos\.com/network, not /other: expected the --state-dir of /other"
    ):
        leftovers.recall(other)


def test_who_runs_is_seen_without_a_trace(places: Places) -> None:
    assert leftovers.in_use(places, leftovers.recall(places)) == ""
    assert not places.run_dir.exists()
    with hold_lock(places.run_dir, "/coreos.com/network"):
        assert str(os.getpid()) in leftovers.in_use(places, leftovers.recall(places))
    assert leftovers.in_use(places, leftovers.recall(places)) == ""
    claims = Claims(Claimant(os.getpid(), "/run/second", "/other"), places.claims)
    claims.claim(["device flannel.1"])
    assert leftovers.in_use(places, leftovers.recall(places)).startswith("device flannel.1 belongs to another flannelpy (process")
    claims.close()
    assert holders.held(places.claims, ["device flannel.1"]) is None


@pytest.fixture
def written(places: Places) -> Places:
    places.subnet_file.parent.mkdir()
    places.subnet_file.write_text("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\n")
    for name in ("wireguard.key", "cluster.json", "cluster.json.corrupt", ".state.json.new", "notes.txt"):
        (places.state_dir / name).write_text("x")
    places.run_dir.mkdir()
    (places.run_dir / "lock").write_text("")
    return places


def removed(places: Places, *, with_state: bool) -> list[str]:
    for piece in (pieces := litter(places, leftovers.recall(places), with_state=with_state)):
        piece.do()
    return [piece.text for piece in pieces]


def test_files_go_and_the_identity_stays_but_for_what_is_in_the_kernel_no_more(written: Places) -> None:
    root = written.run_dir.parent
    assert removed(written, with_state=False) == [
        f"rm {root}/flannel/subnet.env",
        f"rmdir {root}/flannel",
        f"rm {root}/run/lock",
        f"rmdir {root}/run",
        f"{root}/state/state.json: forget devices, FOU ports and networks",
    ]
    kept = state_file.parse((written.state_dir / "state.json").read_bytes())
    assert (kept.macs, kept.lease_key, kept.devices, kept.networks) == ({"flannel.1": MAC}, "10.5.72.0-24", (), ())
    assert not written.run_dir.exists()
    assert removed(written, with_state=False) == []


def test_with_state_all_that_the_agent_keeps_goes_and_what_others_put_there_stays(written: Places) -> None:
    removed(written, with_state=True)
    assert [each.name for each in written.state_dir.iterdir()] == ["notes.txt"]


def test_a_subnet_file_of_another_subnet_stays(written: Places) -> None:
    written.subnet_file.write_text("FLANNEL_SUBNET=10.5.73.1/24\n")
    assert not any("subnet.env" in line for line in removed(written, with_state=True))
    assert written.subnet_file.exists()


def with_process(places: Places, name: str, namespace: str) -> Places:
    """A /proc with us in one network namespace, and somebody else."""
    proc = places.run_dir.parent / "proc"
    for process, where in (("self", "net:[1]"), ("12", namespace)):
        (proc / process / "ns").mkdir(parents=True)
        (proc / process / "ns/net").symlink_to(where)
    (proc / "12/comm").write_text(f"{name}\n")
    (proc / "12/cmdline").write_text(f"/opt/bin/{name}\0--iface=eth1\0")
    return replace(places, proc=proc)


@pytest.mark.parametrize("device", [vxlan("flannel.1", MAC, 1), vxlan("flannel.1", THEIR_MAC, 1), None])
def test_what_a_flanneld_has_taken_over_stays(written: Places, device: Link | None) -> None:
    """Back to flanneld (docs/running.md), then the package is removed: it would not make its device anew."""
    taken = Route(IPNetwork("10.5.100.0/24"), IPAddress("10.5.100.0"), "flannel.1", onlink=True, proto=BOOT_PROTOCOL)
    left = Route(IPNetwork("10.5.9.0/24"), IPAddress("192.0.2.9"), "eth1")  # host-gw: it finds it there, and is content
    theirs: list[Object] = [left] if device is None else [device, Address(IPNetwork("10.5.72.0/32"), "flannel.1"), taken, left]
    firewall = [item for item in ours(0) if isinstance(item, NftTable | ForwardAccept)]
    places = with_process(written, "flanneld", "net:[1]")
    kernel = host(*theirs, *firewall)

    async def twice() -> list[tuple[list[str], tuple[str, ...]]]:
        told = []
        for _ in range(2):
            steps, notes = await leftovers.find(kernel, places, leftovers.recall(places))
            await cleanup.take_away(kernel, steps)
            told.append((lines(steps), notes))
        return told

    (first, notes), (second, _) = asyncio.run(twice())
    assert (len(first), second) == (2, [])
    assert there(kernel, theirs) == [str(item) for item in theirs]
    assert [kernel.get(item.key) for item in firewall] == [None, None]
    which = "routes" if device is None else "flannel.1"
    assert notes == (
        f"flanneld runs here (process 12) and may have taken over what carries packets: {which} and all that belongs to it stay",
    )
    assert not any("flannel/" in line or "flannel\n" in line for line in removed(places, with_state=True))
    assert places.subnet_file.exists()


@pytest.mark.parametrize("peers", [0, 2])
def test_what_has_stayed_beside_a_flanneld_goes_once_it_has_ended(written: Places, peers: int) -> None:
    kernel = host(*ours(peers))

    async def once(places: Places) -> None:
        steps, _notes = await leftovers.find(kernel, places, leftovers.recall(places))
        await cleanup.take_away(kernel, steps)

    places = with_process(written, "flanneld", "net:[1]")
    asyncio.run(once(places))
    removed(places, with_state=False)
    asyncio.run(once(written))
    assert there(kernel, ours(peers)) == []
    assert f"{written.state_dir}/state.json: forget devices, FOU ports and networks" in removed(written, with_state=False)


@pytest.mark.parametrize(("name", "namespace"), [("flanneld", "net:[2]"), ("flannelpy", "net:[1]"), ("flanneld2", "net:[1]")])
def test_a_flanneld_of_another_namespace_has_nothing_of_this_one(written: Places, name: str, namespace: str) -> None:
    places = with_process(written, name, namespace)
    kernel = host(*ours(1))
    steps, notes = asyncio.run(leftovers.find(kernel, places, leftovers.recall(places)))
    assert ("ip link del flannel.1 type vxlan" in lines(steps), notes) == (True, ())
    assert f"rm {places.subnet_file}" in removed(places, with_state=False)


@pytest.mark.parametrize("runs", [True, False])
async def test_the_lease_of_a_flanneld_that_runs_is_not_given_back(written: Places, runs: bool) -> None:
    places = with_process(written, "flanneld", "net:[1]") if runs else written
    found = await cleanup._work(FakeKernel([]), places, cleanup.Wish(release=True), change=False)
    assert (found.lease is None, any("the lease stays" in note for note in found.notes)) == (runs, runs)


def test_what_the_kernel_refuses_is_named_and_the_rest_is_done() -> None:
    kernel = host(*ours(0))
    kernel.fail(Fou(8285).key, errno.EBUSY)
    steps = [Step("remove", item, item) for item in (Fou(8285), NftTable("flannelpy", ""))]
    with pytest.raises(KernelError, match="ip fou del port 8285: Device or resource busy"):
        asyncio.run(cleanup.take_away(kernel, steps))  # type: ignore[arg-type]
    assert kernel.get(NftTable("flannelpy", "").key) is None


VALUE = '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}'


@pytest.mark.parametrize(
    ("value", "ttl_s", "address", "said", "stays"),
    [
        (VALUE, 60, "192.0.2.1", "released 10.5.72.0/24", False),
        (VALUE, 60, "", "released 10.5.72.0/24", False),
        (VALUE, 60, "192.0.2.7", "another host has it by now; it stays", True),
        (VALUE, 0, "192.0.2.1", "it is a reservation and stays", True),
        (None, 60, "192.0.2.1", "it is gone already", False),
    ],
)
async def test_the_lease_is_given_back_where_it_is_ours(
    value: str | None, ttl_s: int, address: str, said: str, stays: bool
) -> None:
    registry = MemoryRegistry(MemoryStore())
    if value is not None:
        await registry.create(IPNetwork("10.5.72.0/24"), LeaseAttrs.from_json(value), subnet6=None, ttl_s=ttl_s)
    own = cleanup.Own(Subnets.parse("10.5.72.0/24"), "/coreos.com/network", address)
    assert said in await cleanup.give_back(registry, own)
    assert bool((await registry.snapshot()).leases) is stays


def test_which_lease_is_ours_is_forgotten_once_it_is_given_back(written: Places) -> None:
    known = leftovers.recall(written)
    assert leftovers.own_subnets(written, known) == (IPNetwork("10.5.72.0/24"), None)
    for piece in litter(written, known, with_state=False, released=True):
        piece.do()
    assert leftovers.own_subnets(written, leftovers.recall(written)) is None
