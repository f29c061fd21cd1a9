"""What the udp backend publishes and programs, which options it takes, and what the pump remembers of its peers."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from backends.udp import Udp, tun
from backends.udp.counters import COUNTERS, make_counters
from backends.udp.protocol import DELETE, DEVICE_GONE, SET, START, Guard, Order, Setting, pack, unpack
from backends.udp.queues import Queues, QueuePair
from backends.udp.protocol import Offload
from backends.udp.supervisor import UserspaceDatapath
from flannelpy.core.backend import Backend, Datapath, DatapathStatus, HasStatus, Local, NoFdStore, Uplink, WorkerStatus
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import Sysctl
from flannelpy.plugins import load

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
UPLINK = Uplink("eth1", 3, 1500, address=IPAddress("192.0.2.1"), public_ip=IPAddress("198.51.100.1"))


def lease(subnet: str, public_ip: str) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip)))


LOCAL = Local(CONFIG, UPLINK, lease("10.5.72.0/24", "198.51.100.1"))


def test_it_is_what_a_config_without_backend_gets() -> None:
    backend: Backend = load(CONFIG)
    assert type(backend) is Udp
    assert (backend.name, backend.families, backend.accepts, backend.wants_on_link) == ("udp", (4,), None, False)
    assert (backend.port, backend.guard) == (8285, "strict")


def test_the_value_has_no_backend_type() -> None:
    assert Udp().attrs(LOCAL).to_json() == '{"PublicIP":"198.51.100.1","PublicIPv6":null}'


def test_the_host_holds_device_address_and_network_route() -> None:
    state = Udp().host(LOCAL)
    assert sorted(f"{item.noun} {item}" for item in state) == [
        "addr 10.5.72.0/32 dev flannel0",
        "link flannel0 mtu 1472 up type tun",
        "route 10.5.0.0/16 dev flannel0",
        "sysctl net/ipv4/conf/flannel0/accept_local=1",
    ]
    assert not any(getattr(item, "link_scope", False) for item in state)
    assert Udp().devices(CONFIG) == {"flannel0": False}


@pytest.mark.parametrize("guard", ["peers", "off"])
def test_where_inner_sources_are_not_checked_none_may_be_our_own(guard: Guard) -> None:
    assert "net/ipv4/conf/flannel0/accept_local=0" in map(str, Udp(guard=guard).host(LOCAL))
    assert not any(isinstance(item, Sysctl) for item in Udp(guard=guard, engine="kernel").host(LOCAL))


def test_a_peer_is_nothing_to_the_kernel() -> None:
    assert len(Udp().peer(lease("10.5.9.0/24", "192.0.2.2"), LOCAL)) == 0


def test_mtu_and_overhead() -> None:
    assert Udp().mtu(LOCAL) == 1472
    assert Udp().overhead(4) == 28
    assert Udp().mtu(Local(CONFIG, Uplink("eth1", 3, 96))) == 68
    with pytest.raises(ConfigError, match="interface eth1: MTU 95 is too small for udp, expected 96 or more"):
        Udp().mtu(Local(CONFIG, Uplink("eth1", 3, 95)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (8285, "strict")),
        ({"Port": 9000}, (9000, "strict")),
        ({"port": 1, "Guard": "off", "Engine": "auto", "VNI": 3}, (1, "off")),
        ({"Port": None, "Guard": None}, (8285, "strict")),
        ({"PORT": 65535, "GUARD": "peers"}, (65535, "peers")),
    ],
)
def test_options(options: Mapping[str, Any], expected: tuple[int, str]) -> None:
    made = Udp.from_options(options)
    assert (made.port, made.guard) == expected


@pytest.mark.parametrize("port", [0, 65536, -1, "8285", True, 8285.0, [], {}])
def test_a_port_that_cannot_be(port: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend.Port .*: expected a whole number, 1 to 65535$"):
        Udp.from_options({"Port": port})


def test_workers() -> None:
    for options, workers in (({}, 1), ({"Workers": None}, 1), ({"workers": 4}, 4), ({"WORKERS": 64}, 64)):
        assert Udp.from_options(options).workers == workers
    asked = Udp(9000, "peers", "auto", 4)
    for refusal in ("", "no fou"):
        assert isinstance(chosen := asked.choose(refusal).backend, Udp)
        assert chosen.workers == 4
    assert not Udp().can_become(asked)


@pytest.mark.parametrize("workers", [0, 65, -1, "4", True, 2.0, [], {}])
def test_workers_that_cannot_be(workers: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend.Workers .*: expected a whole number, 1 to 64$"):
        Udp.from_options({"Workers": workers})


@pytest.mark.parametrize("guard", ["Strict", "", 1, False, [], {}])
def test_a_guard_that_cannot_be(guard: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend.Guard .*: expected strict, peers or off$"):
        Udp.from_options({"Guard": guard})


# ----------------------------------------------------------------------------------------------------------- pump


class Wire:
    """Stands for the control stream to a worker: keeps the orders."""

    def __init__(self) -> None:
        self.stream = b""

    def write(self, data: bytes) -> None:
        self.stream += data

    def take(self) -> list[str]:
        """What was ordered since the last call, as text."""
        orders, rest = unpack(self.stream)
        assert rest == b""
        self.stream = b""
        return [f"{'set' if order.what == SET else 'delete'} {_text(order)}".rstrip() for order in orders]


def _text(order: Order) -> str:
    at = f" at {IPAddress(order.host, 4)}" if order.what == SET else ""
    return f"{IPAddress(order.network, 4)}/{order.length}{at}"


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def pump(wire: Wire) -> Iterator[UserspaceDatapath]:
    made = Udp().datapath(LOCAL)
    made._controls.add(wire)  # type: ignore[arg-type]
    yield made
    made._controls.clear()


def test_it_is_a_pump(pump: UserspaceDatapath) -> None:
    contract: Datapath = pump
    telling: HasStatus = pump
    assert contract is telling
    assert isinstance(pump, HasStatus)
    assert set(pump.counters().values()) == {0}
    every = ("header", "checksum", "tcp", "tcp ecn", "udp", "segment", "gather")
    assert pump.status() == DatapathStatus("flannel0", (), every, (), pump.counters())
    pump.queues.offloads = Offload.HEADER | Offload.TCP
    assert pump.status().offloads == ("header", "tcp")
    assert pump.status().missing == ("checksum", "tcp ecn", "udp", "segment", "gather")


def test_peers_are_sent_as_changes(pump: UserspaceDatapath, wire: Wire) -> None:
    nine, ten = lease("10.5.9.0/24", "192.0.2.2"), lease("10.5.10.0/24", "192.0.2.3")
    pump.update({nine.key: nine, ten.key: ten})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2", "set 10.5.10.0/24 at 192.0.2.3"]
    pump.update({nine.key: nine})
    assert wire.take() == []
    pump.update({nine.key: lease("10.5.9.0/24", "192.0.2.9"), ten.key: None, "10.5.11.0-24": None})
    assert wire.take() == ["delete 10.5.10.0/24", "set 10.5.9.0/24 at 192.0.2.9"]


def test_a_subnet_passes_from_one_key_to_another_in_any_order(pump: UserspaceDatapath, wire: Wire) -> None:
    old = lease("10.5.9.0/24", "192.0.2.2")
    new = Lease(old.subnet, LeaseAttrs(IPAddress("192.0.2.3")), subnet6=IPNetwork("fd00:9::/64"))
    pump.update({old.key: old})
    pump.update({new.key: new, old.key: None})
    assert wire.take()[-1] == "set 10.5.9.0/24 at 192.0.2.3"
    pump.update({old.key: old})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2"]
    pump.update({new.key: None})
    assert wire.take() == []
    pump.update({old.key: None})
    assert wire.take() == ["delete 10.5.9.0/24"]


def test_a_node_without_ipv4_is_no_peer(pump: UserspaceDatapath, wire: Wire) -> None:
    only6 = Lease(IPNetwork("0.0.0.0/0"), LeaseAttrs(IPAddress("0.0.0.0")), subnet6=IPNetwork("fd00:9::/64"))
    nine = lease("10.5.9.0/24", "192.0.2.2")
    pump.update({only6.key: only6, nine.key: nine})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2"]
    pump.update({nine.key: lease("10.5.9.0/24", "0.0.0.0")})
    assert wire.take() == ["delete 10.5.9.0/24"]


def test_host_bits_in_a_key_do_not_matter(pump: UserspaceDatapath, wire: Wire) -> None:
    pump.update({"10.5.9.7-24": lease("10.5.9.7/24", "192.0.2.2")})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2"]


async def test_a_worker_that_keeps_dying_is_replaced_at_once_then_ever_later(
    pump: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes = [-9, *[1] * 7, DEVICE_GONE]
    waited: list[float] = []

    async def live(lane: object, name: str) -> int:
        assert lane == "the lane"
        return codes.pop(0)

    async def sleep(delay: float) -> None:
        waited.append(delay)

    monkeypatch.setattr(pump, "_live", live)
    monkeypatch.setattr(pump.queues, "pairs", ("the lane",))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(BackendError, match="TUN device flannel0 was deleted"):
        await pump.run()
    assert waited == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert caplog.messages[0] == "udp worker was killed by signal 9; a new one starts now"
    assert caplog.messages[-1] == "udp worker ended with code 1; a new one in 5 s"
    monkeypatch.setattr(pump.queues, "pairs", ())
    assert pump.status().workers == (WorkerStatus(None, 8),)


async def test_each_of_several_workers_is_replaced_alone(
    pump: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fates = {"steady": [], "frail": [-9, 1, DEVICE_GONE], "slow": [-11]}
    waited: list[float] = []

    async def live(lane: str, name: str) -> int:
        return fates[lane].pop(0) if fates[lane] else await asyncio.get_running_loop().create_future()

    async def sleep(delay: float) -> None:
        waited.append(delay)

    monkeypatch.setattr(pump, "_live", live)
    monkeypatch.setattr(pump.queues, "pairs", tuple(fates))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(BackendError, match=r"^TUN device flannel0 was deleted$"):
        await pump.run()
    assert sorted(waited) == [0.0, 0.0, 0.1]
    assert sorted(caplog.messages) == [
        "udp worker 2 of 3 ended with code 1; a new one in 0.1 s",
        "udp worker 2 of 3 was killed by signal 9; a new one starts now",
        "udp worker 3 of 3 was killed by signal 11; a new one starts now",
    ]
    monkeypatch.setattr(pump.queues, "pairs", ())
    assert [worker.restarts for worker in pump.status().workers] == [0, 2, 1]


async def test_a_worker_that_dies_with_orders_unread_is_one_that_died(pump: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(setting: Setting) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec("sh", "-c", "kill -9 $$", pass_fds=(setting.control,))

    monkeypatch.setattr("backends.udp.pump.start", start)
    lane = QueuePair(os.open(os.devnull, os.O_RDONLY), socket.socket(), make_counters())
    try:
        assert await pump._live(lane, "udp worker") == -9
    finally:
        lane.close()


async def test_a_single_queue_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = Udp(workers=4).datapath(LOCAL)
    assert made is not None

    async def open_one(address: str, fd_store: object) -> None:
        monkeypatch.setattr(made.queues, "pairs", ("the lane",))

    monkeypatch.setattr(made.queues, "open", open_one)
    await made.open(NoFdStore())
    assert caplog.messages == ["udp worker: one and not 4, for this kernel's TUN has a single queue"]


def test_changes_go_to_every_worker_that_lives(pump: UserspaceDatapath, wire: Wire) -> None:
    second = Wire()
    pump._controls.add(second)  # type: ignore[arg-type]
    pump.update({"10.5.9.0-24": lease("10.5.9.0/24", "192.0.2.2")})
    assert wire.take() == second.take() == ["set 10.5.9.0/24 at 192.0.2.2"]


async def test_a_pump_that_is_not_open_says_so(pump: UserspaceDatapath) -> None:
    with pytest.raises(BackendError, match="the udp pump is not open"):
        await pump.run()


async def test_an_uplink_without_address_is_named() -> None:
    local = Local(CONFIG, Uplink("eth1", 3, 1500, public_ip=IPAddress("198.51.100.1")), LOCAL.lease)
    with pytest.raises(BackendError, match="interface eth1 has no IPv4 address"):
        await Udp().datapath(local).open(NoFdStore())


def test_the_worker_loads_nothing_of_the_control_plane() -> None:
    shown = "import sys, backends.udp.worker; print([name for name in ('grpc', 'pyroute2', 'netaddr') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", shown], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, "/dev/net/tun: not there, and udp needs it: modprobe tun; in a container also hand the device in"),
        (errno.ENODEV, "/dev/net/tun: the kernel has no TUN driver loaded, and udp needs it: modprobe tun"),
        (errno.EACCES, "/dev/net/tun: not permitted: expected to run as root"),
        (errno.EMFILE, "/dev/net/tun: Too many open files"),
    ],
)
def test_without_tun_the_remedy_is_told(code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BackendError) as caught:
        tun.open_tun("flannel0")
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- control


def test_orders_survive_any_cut_of_the_stream() -> None:
    orders = [Order(SET, 1, 24, 2), Order(DELETE, 3, 22), Order(START)]
    stream = pack(orders)
    for cut in range(len(stream) + 1):
        first, rest = unpack(stream[:cut])
        second, left = unpack(rest + stream[cut:])
        assert [*first, *second] == orders
        assert left == b""


def test_a_setting_survives_the_command_line() -> None:
    setting = Setting(7, 8, 9, 10, 1234, 8285, 1472, 168118272, 24, "peers")
    assert "guard=peers" in setting.words()
    assert "network=168118272" in setting.words()
    assert Setting.parse(setting.words()) == setting


def test_counters_are_shared_by_descriptor() -> None:
    counters = make_counters()
    values = [2**40 + index for index in range(len(counters.read()))]
    counters.live[:] = array("Q", values)
    assert counters.read() == values
    counters.close()


def test_counters_of_all_lanes_are_summed_and_outlive_them() -> None:
    held = Queues("flannel0", 8285, 2, offload=True)
    for closed in range(1, 3):
        held.pairs = tuple(QueuePair(os.open(os.devnull, os.O_RDONLY), socket.socket(), make_counters()) for _ in range(2))
        for number, lane in enumerate(held.pairs, 1):
            lane.counters.live[:] = array("Q", [number * index for index in range(len(COUNTERS))])
        counted = [3 * closed * index for index in range(len(COUNTERS))]
        assert held.counted() == counted
        held.close()
        assert held.counted() == counted
