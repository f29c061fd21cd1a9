"""``flannelpy status``: what an agent tells of itself in each state, how it reads, and what happens where nobody answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from netaddr import IPNetwork
from rich.console import Console

from flannelpy.agent.api import answering
from flannelpy.commands import ask
from flannelpy.commands.peers_text import peers_text
from flannelpy.commands.status_table import table
from flannelpy.core.backend import DatapathStatus, WorkerStatus
from flannelpy.core.errors import MalformedError
from flannelpy.core.objects import Key, Route
from flannelpy.core.secret import Secret
from flannelpy.explain import http
from flannelpy.explain.status import (
    SOCKET,
    BackendStatus,
    ConditionStatus,
    EtcdStatus,
    KernelStatus,
    LeaseStatus,
    PeerStatus,
    RepairStatus,
    Status,
    SubnetFileStatus,
    UplinkStatus,
    from_json,
    to_json,
)
from flannelpy.host import view_file
from flannelpy.registry.memory import MemoryStore

from .agents import PREFIX, VXLAN, HostInMemory, until, vxlan_value
from .test_cli import Outcome, Person

MAC = "02:00:00:00:00:99"
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PEER = PeerStatus("10.1.9.0-24", "10.1.9.0/24", None, "192.168.50.12", None, "", "in-sync")
WRONG = ConditionStatus(
    "registry-unreachable",
    "warning",
    "",
    "etcd does not answer: no sign of life on the watch; what is programmed stays as it is",
    "check etcd and the way to it; the agent goes on by itself when it answers",
    "2026-11-21T11:59:20.000+00:00",
    False,
)
BROKEN = replace(WRONG, code="duplicate-public-ip", severity="error")
WHOLE = Status(
    version="0.1.0",
    pid=7028,
    since="2026-11-21T08:47:59.500+00:00",
    ready=True,
    why_not=(),
    etcd=EtcdStatus(False, "http://192.168.50.5:2379", ("http://192.168.50.5:2379",), PREFIX, "2026-11-21T11:59:18.000+00:00", 42),
    network={
        "EnableIPv4": True,
        "EnableIPv6": False,
        "Network": "10.1.0.0/16",
        "SubnetLen": 24,
        "SubnetMin": "10.1.1.0",
        "SubnetMax": "10.1.255.0",
        "Backend": {"Type": "udp", "Port": 8285},
    },
    backend=BackendStatus(
        "udp",
        1472,
        ("flannel0 mtu 1472 up type tun",),
        "pump",
        "udp engine: pump; kernel unavailable: fou add port 8285 ipproto 4: this kernel has no FOU",
    ),
    pump=DatapathStatus(
        "flannel0",
        ("header", "checksum", "tcp"),
        ("udp", "gather"),
        (WorkerStatus(7040, 0), WorkerStatus(None, 2)),
        {"outbound_packets": 12345, "outbound_dropped_no_peer": 3, "inbound_packets": 0, "unreachables": 3},
    ),
    uplink=UplinkStatus(
        "eth1",
        1500,
        ("--iface eth9: no such interface", "--iface eth1: eth1, 192.168.50.11, MTU 1500"),
        "192.168.50.11",
        None,
        "192.168.50.11",
        None,
    ),
    lease=LeaseStatus("10.1.69.0-24", "10.1.69.0/24", None, "192.168.50.11", None, "held", False, 85000.5),
    subnet_file=SubnetFileStatus("/run/flannel/subnet.env", True),
    peers=(
        PEER,
        replace(PEER, key="10.1.10.0-24", subnet="10.1.10.0/24", state="stale", why="its lease has expired", seconds_left=540.0),
        replace(PEER, key="10.9.7.0-24", subnet="10.9.7.0/24", state="excluded", why="lies outside the network 10.1.0.0/16"),
    ),
    kernel=KernelStatus(
        {"link": 1, "route": 1}, {"link": 1, "route": 0}, 2, RepairStatus("2026-11-21T11:00:00.000+00:00", "route add 10.1.0.0/16")
    ),
    conditions=(WRONG,),
)
YOUNG = Status(
    version="0.1.0",
    pid=1,
    since="2026-11-21T12:00:00.000+00:00",
    ready=False,
    why_not=("waiting for etcd",),
    etcd=EtcdStatus(True, "http://etcd:2379", ("http://etcd:2379",), PREFIX),
    subnet_file=SubnetFileStatus("/run/flannel/subnet.env", False),
    conditions=(),
)


# ------------------------------------------------------------------------------------------------------------ the document


@pytest.mark.parametrize("status", [WHOLE, YOUNG], ids=["whole", "young"])
def test_what_is_written_is_what_is_read(status: Status) -> None:
    text = to_json(status)
    assert from_json(text) == status
    assert "\n" not in text


def test_the_shape_does_not_depend_on_what_is_known() -> None:
    whole, young = json.loads(to_json(WHOLE)), json.loads(to_json(YOUNG))
    assert list(whole) == list(young)
    assert (young["lease"], young["peers"], young["etcd"]["revision"]) == (None, [], None)
    assert whole["uplink"]["PublicIP"] == "192.168.50.11"
    assert whole["peers"][0]["BackendType"] == ""
    assert whole["subnetFile"] == {"path": "/run/flannel/subnet.env", "written": True}


def test_names_of_a_later_version_are_passed_over() -> None:
    later = {**json.loads(to_json(YOUNG)), "mood": "fine"}
    assert from_json(json.dumps(later)) == YOUNG


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pid": "1"}, 'pid: "1": expected a number'),
        ({"pid": True}, "pid: true: expected a number"),
        ({"ready": None}, "ready: null: expected true or false"),
        ({"etcd": []}, "etcd: []: expected an object"),
        ({"peers": {}}, "peers: {}: expected a list"),
        ({"whyNot": [7]}, "whyNot[0]: 7: expected text"),
        ({"pump": {"device": "x"}}, "pump.offloads: null: expected a list"),
        ({"network": "x"}, 'network: "x": expected an object'),
    ],
)
def test_another_shape_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(MalformedError) as caught:
        from_json(json.dumps({**json.loads(to_json(YOUNG)), **change}))
    assert str(caught.value) == said


@pytest.mark.parametrize("text", ["", "[]", b"\xff", '"x"', "null"])
def test_what_is_no_document_is_named(text: str | bytes) -> None:
    with pytest.raises(MalformedError, match=r"expected an object|not JSON"):
        from_json(text)


# ----------------------------------------------------------------------------------------------------------- how it reads


def read(status: Status, width: int) -> list[str]:
    console = Console(width=width, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123 - closed with the console
    with console.file:
        console.print(table(status, NOW))
    lines = [*console.export_text().splitlines(), *peers_text(status, NOW, width).splitlines()]
    return [line.rstrip() for line in lines]


@pytest.fixture
def in_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_utc")
def test_everything_is_told_on_a_wide_terminal() -> None:
    assert read(WHOLE, 200) == [
        "flannelpy     0.1.0, process 7028, since 2026-11-21 08:47:59 (3 h 12 min)",
        "ready         yes",
        "etcd          http://192.168.50.5:2379, /coreos.com/network, revision 42;"
        " registry-unreachable, see below, since 2026-11-21 11:59:18 (42 s)",
        "IPv4 network  10.1.0.0/16, subnets of /24, 10.1.1.0 to 10.1.255.0",
        'backend       udp {"Port": 8285}, MTU 1472',
        "engine        pump; kernel unavailable: fou add port 8285 ipproto 4: this kernel has no FOU",
        "device        flannel0 mtu 1472 up type tun",
        "offloads      header, checksum, tcp; not here: udp, gather",
        "worker        process 7040",
        "worker        not running, replaced 2 times",
        "outbound      12,345 packets, 3 dropped no peer",
        "inbound       nothing yet",
        "counters      3 unreachables",
        "uplink        --iface eth9: no such interface",
        "              --iface eth1: eth1, 192.168.50.11, MTU 1500",
        "lease         10.1.69.0/24 at 192.168.50.11, ends in 23 h 36 min unless extended",
        "subnet file   /run/flannel/subnet.env, written",
        "peers         3; 1 stale; 1 excluded",
        "kernel        1 of 2 objects in sync (link 1, route 0 of 1)",
        "repaired      2 times, last 2026-11-21 11:00:00 (1 h): route add 10.1.0.0/16",
        "conditions    warning: etcd does not answer: no sign of life on the watch; what is programmed stays as it is",
        "              registry-unreachable, since 2026-11-21 11:59:20 (40 s): check etcd and the way to it; the agent goes on by"
        " itself when it answers",
        "subnet        PublicIP       backend  state",
        "10.1.10.0/24  192.168.50.12  none     stale for 9 min more: its lease has expired",
        "10.9.7.0/24   192.168.50.12  none     excluded: lies outside the network 10.1.0.0/16",
        "10.1.9.0/24   192.168.50.12  none     in-sync",
    ]


def test_nothing_is_cut_off_on_a_narrow_terminal() -> None:
    wide, narrow = read(WHOLE, 400), read(WHOLE, 80)
    assert max(map(len, narrow)) <= 80
    assert " ".join(" ".join(narrow).split()) == " ".join(" ".join(wide).split())


def test_what_is_wrong_and_keeps_it_from_being_ready_is_told_once() -> None:
    blocked = replace(YOUNG, why_not=(WRONG.text,), conditions=(replace(WRONG, blocks_ready=True),))
    assert read(blocked, 200)[1] == "ready        no: registry-unreachable, see below"
    assert read(YOUNG, 80)[1:] == [
        "ready        no: waiting for etcd",
        "etcd         http://etcd:2379, /coreos.com/network",
        "subnet file  /run/flannel/subnet.env, not written",
        "conditions   none",
        "subnet  PublicIP  backend  state",
    ]


def test_an_older_lease_of_this_host_is_no_peer() -> None:
    assert WHOLE.lease is not None
    older = replace(PEER, key="10.1.70.0-24", subnet="10.1.70.0/24", public_ip=WHOLE.lease.public_ip, state="excluded")
    shown = read(replace(WHOLE, peers=(PEER, older)), 200)
    assert "peers         1" in shown
    assert any(line.startswith("10.1.70.0/24 ") for line in shown)


def test_the_worst_peers_and_conditions_come_first() -> None:
    states = ("in-sync", "stale", "excluded", "unheard-of", "pending", "refused")
    peers = tuple(replace(PEER, subnet=f"10.1.{number}.0/24", state=state) for number, state in enumerate(states))
    shown = read(replace(WHOLE, peers=peers, conditions=(WRONG, BROKEN)), 200)
    at = next(number for number, line in enumerate(shown) if line.startswith("subnet   "))
    assert [line.split()[-1] for line in shown[at + 1 :]] == ["unheard-of", "refused", "pending", "stale", "excluded", "in-sync"]
    (conditions,) = (line for line in shown if line.startswith("conditions"))
    assert "error: " in conditions


def test_the_command_that_mends_a_condition_is_whole() -> None:
    command = " && ".join(f"nft insert rule inet hardened forward ip6 daddr fd00:{number:x}::/48 accept" for number in range(8))
    wrong = replace(BROKEN, text=f"the host's firewall drops what the overlay forwards: it has no rule: {command}")
    assert command in " ".join(" ".join(read(replace(WHOLE, conditions=(wrong,)), 100)).split())


def test_a_host_with_only_an_ipv6_address_has_no_word_of_ipv4() -> None:
    only6 = replace(PEER, subnet=None, subnet6="fd00:5:0:9::/64", public_ip="0.0.0.0", public_ipv6="2001:db8::9")
    shown = "\n".join(read(replace(WHOLE, peers=(only6,)), 200))
    assert "fd00:5:0:9::/64  2001:db8::9  none     in-sync" in shown
    assert "0.0.0.0" not in shown


def test_what_others_wrote_is_safe_for_a_terminal() -> None:
    evil = replace(PEER, backend_type="\x1b[2J[bold]x")
    shown = read(replace(WHOLE, peers=(evil,)), 200)
    assert any("\\x1b[2J[bold]x" in line for line in shown)


# -------------------------------------------------------------------------------------------------------- what is gathered


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


def told(host: HostInMemory) -> Status:
    """What its agent says, by way of JSON."""
    assert host.agent is not None
    return from_json(to_json(host.agent.status()))


async def test_a_ready_agent_tells_everything(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds("route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"))
        status = told(host)
        assert status.ready
        assert (status.why_not, status.conditions) == ((), ())
        assert status.pid == os.getpid()
        assert abs(datetime.now(UTC) - datetime.fromisoformat(status.since)).total_seconds() < 60
        assert status.etcd.reachable
        assert status.etcd.revision == host.store.revision
        assert status.network is not None
        assert status.network["Network"] == "10.5.0.0/16"
        assert status.backend is not None
        assert (status.backend.type, status.backend.mtu, status.backend.engine) == ("vxlan", 1450, None)
        assert [device.split()[0] for device in status.backend.devices] == ["flannel.1"]
        assert status.pump is None
        assert status.uplink is not None
        assert status.uplink.reasons == ("--iface eth1: eth1, 192.0.2.1, MTU 1500",)
        lease = status.lease
        assert lease is not None
        assert (lease.key, lease.state, lease.reservation, lease.public_ip) == (host.lease, "held", False, "192.0.2.1")
        assert lease.seconds_left is not None
        assert 86_000 < lease.seconds_left <= 86_400
        assert status.subnet_file == SubnetFileStatus(str(host.settings.subnet_file), True)
        (peer,) = status.peers
        assert replace(peer, probe=None) == PeerStatus("10.5.9.0-24", "10.5.9.0/24", None, "192.0.2.9", None, "vxlan", "in-sync")
        assert status.kernel is not None
        kinds = {"addr": 1, "element": 2, "fdb": 1, "link": 1, "neigh": 1, "nft": 1, "route": 1, "set": 4, "sysctl": 1}
        assert status.kernel.desired == kinds
        assert status.kernel.in_sync == status.kernel.desired
        assert (status.kernel.repairs, status.kernel.last_repair) == (0, None)
        host.settings.subnet_file.unlink()
        assert not told(host).subnet_file.written


async def test_without_a_config_it_says_what_it_waits_for(host: HostInMemory) -> None:
    host.store.delete(f"{PREFIX}/config")
    async with host.run(ready=False):
        assert told(host).why_not == ("waiting for the network config",)
        await until(host.conditions)
        status = told(host)
        assert not status.ready
        (condition,) = status.conditions
        assert (condition.code, condition.severity, condition.blocks_ready) == ("config-unusable", "error", True)
        assert status.why_not == (condition.text,)
        assert (status.network, status.lease, status.kernel, status.peers) == (None, None, None, ())
        host.put_config(VXLAN)
        await until(lambda: told(host).ready)


async def test_etcd_behind_a_link_that_is_down_is_not_said_to_answer(host: HostInMemory) -> None:
    """The condition is the link's; that etcd has been heard of meanwhile would be untrue all the same."""
    async with host.run():
        assert told(host).etcd.reachable
        uplink = host.kernel.interfaces["eth1"]
        host.kernel.set_down("eth1")
        await until(lambda: "uplink-down" in host.conditions())
        host.registry.down = True
        await until(lambda: not told(host).etcd.reachable)
        assert "registry-unreachable" not in host.conditions()
        host.registry.down = False
        host.kernel.set_interface(uplink)
        await until(lambda: told(host).etcd.reachable and host.conditions() == {})


def kept_lease(host: HostInMemory) -> bool:
    """Does the next life begin with a lease, whatever etcd says?"""
    view = view_file.read(host.settings.state_dir, PREFIX)
    return view is not None and view.own is not None


async def test_without_etcd_it_waits_or_goes_on_with_what_it_kept(host: HostInMemory) -> None:
    host.registry.down = True
    async with host.run(ready=False):
        await until(host.conditions)
        status = told(host)
        assert (status.ready, status.why_not) == (False, ("waiting for etcd",))
        assert not status.etcd.reachable
        assert status.etcd.unreachable_since is not None
        host.registry.down = False
        await until(lambda: told(host).ready)
        assert told(host).etcd.unreachable_since is None
        await until(lambda: kept_lease(host))  # a thread writes it, after the agent is ready
    host.registry.down = True
    async with host.run():
        status = told(host)
        assert status.ready
        assert status.lease is not None
        assert (status.lease.state, status.lease.seconds_left) == ("from-disk", None)
        assert "view-stale" in [condition.code for condition in status.conditions]
        host.registry.down = False
        await until(lambda: (lease := told(host).lease) and lease.state == "held")


async def test_without_a_free_subnet_it_says_so(host: HostInMemory) -> None:
    host.put_config({"Network": "10.5.0.0/28", "Backend": {"Type": "vxlan"}})
    for number in (4, 8, 12):
        host.put_peer(f"10.5.0.{number}-30", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:00:{number:02x}"))
    async with host.run(ready=False):
        await until(lambda: "no-free-subnet" in host.conditions())
        status = told(host)
        assert status.why_not == (host.conditions()["no-free-subnet"],)
        assert status.lease is None
        assert [peer.state for peer in status.peers] == ["pending"] * 3


async def test_each_peer_says_how_it_stands(host: HostInMemory) -> None:
    def states() -> dict[str, tuple[str, str | None]]:
        return {peer.key: (peer.state, peer.why) for peer in told(host).peers}

    for number in (1, 2, 3, 5):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.1{number}", f"02:00:00:00:00:0{number}"))
    host.put_peer("10.5.4.0-24", vxlan_value("192.0.2.14", "02:00:00:00:00:03"))  # the MAC of another
    host.put_peer("10.9.6.0-24", vxlan_value("192.0.2.16", "02:00:00:00:00:06"))
    host.put_peer("10.5.7.0-24", vxlan_value("192.0.2.17", "x"))
    host.put_peer("10.5.8.0-24", '{"PublicIP":"192.0.2.18","PublicIPv6":null}')
    host.kernel.plant(Route(IPNetwork("10.5.5.0/24"), dev="eth1", proto=4))
    async with host.run():
        await until(lambda: states().get("10.5.5.0-24", ("", None))[0] == "refused")
        now = states()
        assert now["10.5.1.0-24"] == ("in-sync", None)
        state, why = now["10.5.4.0-24"]
        assert state == "excluded"
        assert why is not None
        assert "has the identity 02:00:00:00:00:03 of the older lease 10.5.3.0/24" in why
        assert now["10.9.6.0-24"] == ("excluded", "lies outside the network 10.5.0.0/16")
        assert now["10.5.7.0-24"][0] == "excluded"
        assert now["10.5.8.0-24"] == ("excluded", "a reservation that waits for its host")
        assert list(now) == [*(f"10.5.{n}.0-24" for n in (1, 2, 3, 4, 5, 7, 8)), "10.9.6.0-24"]  # ours is not among them
        lease = host.store.grant(60)
        host.store.put(f"{PREFIX}/subnets/10.5.2.0-24", vxlan_value("192.0.2.12", "02:00:00:00:00:02"), lease)
        await until(lambda: told(host).etcd.revision == host.store.revision)
        host.store.expire(f"{PREFIX}/subnets/10.5.2.0-24")
        await until(lambda: states()["10.5.2.0-24"] == ("stale", "its key is gone"))
        await until(lambda: states()["10.5.2.0-24"] == ("stale", "its lease has expired"))
        (kept,) = (peer for peer in told(host).peers if peer.key == "10.5.2.0-24")
        assert kept.seconds_left is not None
        assert 500 < kept.seconds_left <= 600


async def test_a_repair_is_told(host: HostInMemory) -> None:
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", MAC))
    async with host.run():
        await until(lambda: host.holds("route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"))
        host.kernel.take(Key("route", "10.5.9.0/24"))
        await until(lambda: (kernel := told(host).kernel) and kernel.repairs)
        kernel = told(host).kernel
        assert kernel is not None
        assert kernel.last_repair is not None
        assert kernel.last_repair.step == "route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"
        assert abs(datetime.now(UTC) - datetime.fromisoformat(kernel.last_repair.at)).total_seconds() < 60


async def test_a_reservation_does_not_end(host: HostInMemory) -> None:
    host.put_peer("10.5.210.0-24", '{"PublicIP":"192.0.2.1","PublicIPv6":null}')
    async with host.run():
        lease = told(host).lease
        assert lease is not None
        assert (lease.reservation, lease.seconds_left) == (True, None)


async def test_secrets_are_not_told(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 3, "PSK": "hunter2", "apiToken": "hunter2"}})
    settings = replace(host.settings.endpoint, username="u", password=Secret("hunter2"), keyfile="/k", password_file="/p")
    host.settings = replace(host.settings, endpoint=settings)
    async with host.run():
        assert host.agent is not None
        text = to_json(host.agent.status())
        assert "hunter2" not in text
        assert '"VNI":3' in text


# ------------------------------------------------------------------------------------------------------------- the socket


async def test_the_socket_is_there_for_the_time_of_the_block_and_only_for_us(tmp_path: Path) -> None:
    path = tmp_path / SOCKET
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # what a killed agent leaves
    async with answering(tmp_path, lambda: YOUNG):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert from_json(await asyncio.to_thread(ask.ask, path)) == YOUNG
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_a_socket_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / SOCKET).write_text("somebody's")
    async with answering(tmp_path, lambda: YOUNG):
        pass
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    async with answering(deep, lambda: YOUNG):
        pass
    end = "flannelpy status cannot ask this agent, all else goes on"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / SOCKET}: Address already in use; {end}",
        f"{deep / SOCKET}: AF_UNIX path too long; {end}",
    ]
    assert (tmp_path / SOCKET).read_text() == "somebody's"


async def test_who_does_not_take_the_answer_is_cut_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.2)
    large = replace(YOUNG, why_not=("x" * (4 << 20),))
    async with answering(tmp_path, lambda: large):
        rude = socket.socket(socket.AF_UNIX)
        with rude:
            rude.connect(str(tmp_path / SOCKET))
            rude.sendall(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n")
            assert len(await asyncio.to_thread(ask.ask, tmp_path / SOCKET)) > 4 << 20
            rude.settimeout(5)
            taken = await asyncio.to_thread(drain, rude, 0.6)
            assert taken < 4 << 20


def drain(sock: socket.socket, after_s: float) -> int:
    """Read to the end, once the other side must have lost its patience."""
    threading.Event().wait(after_s)
    taken = 0
    while chunk := sock.recv(65536):
        taken += len(chunk)
    return taken


async def test_a_rude_client_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    large = replace(YOUNG, why_not=("x" * (4 << 20),))
    with socket.socket(socket.AF_UNIX) as rude:
        async with asyncio.timeout(5), answering(tmp_path, lambda: large):
            rude.connect(str(tmp_path / SOCKET))
            rude.sendall(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n")
            assert await asyncio.to_thread(rude.recv, 10)


async def test_of_more_connections_than_anybody_needs_the_oldest_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 4)
    async with answering(tmp_path, lambda: YOUNG):
        with ExitStack() as held:
            silent = [held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(5)]
            for each in silent:
                each.settimeout(5)
                each.connect(str(tmp_path / SOCKET))
            assert await asyncio.to_thread(silent[0].recv, 10) == b""
            silent[-1].send(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await asyncio.to_thread(silent[-1].recv, 100)).startswith(b"HTTP/1.1 200")


# ------------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(monkeypatch, capsys)


@contextmanager
def somebody(run_dir: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Whoever listens where an agent would; ``answer`` has the first connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / SOCKET))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield
        finally:
            serving.join(10)
            assert not serving.is_alive()


def page(body: str, status: str = "200 OK") -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        asked = connection.recv(65536)
        assert asked.startswith(b"GET /status HTTP/1.1\r\n")
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode())

    return answer


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (WHOLE, 0),
        (YOUNG, 1),
        (replace(WHOLE, conditions=(WRONG, BROKEN)), 3),
        (replace(YOUNG, conditions=(BROKEN,)), 1),
    ],
    ids=["ready", "not ready", "with an error", "not ready, with an error"],
)
def test_the_exit_code_tells_whether_it_is_ready(person: Person, tmp_path: Path, status: Status, code: int) -> None:
    with somebody(tmp_path, page(to_json(status))):
        said = person.types("status", "--run-dir", str(tmp_path))
    assert (said.code, said.err) == (code, "")
    assert said.out.startswith("flannelpy ")
    assert f" 0.1.0, process {status.pid}, since " in said.out
    assert "10.9.7.0/24" not in said.out
    (tmp_path / SOCKET).unlink()
    with somebody(tmp_path, page(to_json(status))):
        said = person.types("--run-dir", str(tmp_path), "status", "--json")
    assert (said.code, said.err) == (code, "")
    assert json.loads(said.out) == json.loads(to_json(status))


def test_peers_are_shown_one_by_one_where_asked_for(person: Person, tmp_path: Path) -> None:
    with somebody(tmp_path, page(to_json(WHOLE))):
        said = person.types("status", "--peers", FLANNELPY_RUN_DIR=str(tmp_path), COLUMNS="80")
    assert said.code == 0
    assert "10.1.10.0/24  192.168.50.12  none     stale for 9 min more: its lease has" in said.out
    assert all(len(line) <= 80 and line == line.rstrip() for line in said.out.splitlines())


def test_a_picture_goes_into_a_file_or_to_stdout(person: Person, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.svg"
    for number, file in enumerate((str(drawn), "-", str(tmp_path / "not" / "there.svg"))):
        with somebody(tmp_path, page(to_json(replace(WHOLE, conditions=(BROKEN,))))):
            said = person.types("status", "--graph", file, "--run-dir", str(tmp_path))
        (tmp_path / SOCKET).unlink()
        if number == 0:
            assert said == Outcome(3, f"drawn: {drawn}\n", "")
        elif number == 1:
            assert (said.code, said.out, said.err) == (3, drawn.read_text(), "")
        else:
            assert said == Outcome(1, "", f"flannelpy: {file}: cannot be written: No such file or directory\n")
    assert drawn.read_text().startswith("<svg ")
    for other in ("--json", "--watch", "--peers", "--bad"):
        said = person.types("status", "--graph", "-", other, "--run-dir", str(tmp_path))
        assert (said.code, said.out) == (2, "")
        assert "expected no --json, --watch, --peers or --bad with it" in said.err


EXPECTED = "expected an agent with this --run-dir; systemctl status flannelpy tells whether it runs"


def test_nobody_to_ask_is_one_line(person: Person, tmp_path: Path) -> None:
    path = tmp_path / SOCKET
    for words in ((), ("--json",)):
        said = person.types("status", *words, "--run-dir", str(tmp_path))
        assert said == Outcome(1, "", f"flannelpy: {path}: there is no such socket; {EXPECTED}\n")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    said = person.types("status", "--run-dir", str(tmp_path))
    assert said == Outcome(1, "", f"flannelpy: {path}: the agent that made it is gone; {EXPECTED}\n")


def test_an_agent_that_does_not_answer_is_one_line(person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "WITHIN_S", 0.05)
    with somebody(tmp_path, lambda connection: [None for _ in iter(lambda: connection.recv(65536), b"")].clear()):
        said = person.types("status", "--run-dir", str(tmp_path))
    assert said == Outcome(1, "", f"flannelpy: {tmp_path / SOCKET}: no answer within 0.05 s; {EXPECTED}, its log what it does\n")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda connection: connection.recv(9) and connection.sendall(b"hello\r\n\r\n"), "what answers there is no flannelpy (Bad"),
        (lambda connection: None, "it hung up without an answer; "),
        (page("no", "404 Not Found"), "the agent does not know /status; is it of another version? Restart it after an upgrade"),
        (page("{"), "not JSON: "),
        (page("{}"), "version: null: expected text; is the agent of another version? Restart it after an upgrade"),
        (page('{"schema": 2, "version": "9"}'), "pid: null: expected a number; is the agent of another version?"),
        (page("502", "502 Bad Gateway"), "what answers there is no flannelpy (HTTPException('502 Bad Gateway: 502'))"),
    ],
)
def test_a_bad_answer_is_one_line(person: Person, tmp_path: Path, answer: Callable[[socket.socket], None], said: str) -> None:
    with somebody(tmp_path, answer):
        outcome = person.types("status", "--run-dir", str(tmp_path))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"flannelpy: {tmp_path / SOCKET}: {said}")
    assert outcome.err.count("\n") == 1


def test_json_passes_on_what_another_version_says(person: Person, tmp_path: Path) -> None:
    with somebody(tmp_path, page('{"version": "9", "ready": true}')):
        said = person.types("status", "--json", "--run-dir", str(tmp_path))
    assert (said.code, json.loads(said.out)) == (0, {"version": "9", "ready": True})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "h1"), "flannelpy: Got unexpected extra argument (h1)\n"),
        (("status", "--yaml"), "flannelpy: No such option '--yaml'\n"),
        (("status", "--run-dir="), "flannelpy: --run-dir '': expected a path\n"),
    ],
)
def test_wrong_usage_is_exit_2(person: Person, words: tuple[str, ...], said: str) -> None:
    outcome = person.types(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == said
