"""What the agent's side of udp's userspace datapath keeps and tells its workers, and how it starts, watches and ends them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from netaddr import IPAddress, IPNetwork

from backends.alloc import Alloc
from backends.udp import Udp, launch, protocol, supervisor
from backends.udp.counters import CELLS, COUNTERS, HEARTBEAT, Counters, make_counters
from backends.udp.protocol import DELETE, DEVICE_GONE, GUARDS, NO_BULK, SET, START, Guard, Offload, Order, Setting, pack, unpack
from backends.udp.queues import QueuePair, Queues
from backends.udp.supervisor import UserspaceDatapath
from backends.udp.worker.forward import Forwarder
from backends.udp.worker.ingress import PASSED
from backends.udp.worker.process import Worker, apply
from flannelpy.core.backend import Backend, Datapath, DatapathStatus, HasStatus, Local, NoFdStore, Uplink, WorkerStatus
from flannelpy.core.config import NetworkConfig
from flannelpy.core.environment import bare
from flannelpy.core.errors import BackendError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.moving import Begins
from tests.unit.agents import descriptors, until

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16"}')
UPLINK = Uplink("eth1", 3, 1500, address=IPAddress("192.0.2.1"), public_ip=IPAddress("198.51.100.1"))


def lease(subnet: str, public_ip: str, revision: int = 0) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip)), create_revision=revision)


LOCAL = Local(CONFIG, UPLINK, lease("10.5.72.0/24", "198.51.100.1"))


class Held:
    """Stands for a queue pair: descriptors that are numbers."""

    tun = 7

    class socket:  # noqa: N801 - as the field is called
        @staticmethod
        def fileno() -> int:
            return 8

    class counters:  # noqa: N801
        fd = 10


PAIR = cast(QueuePair, Held)


class Wire:
    """Stands for a worker that was launched: keeps its orders."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def send(self, orders: Sequence[Order]) -> None:
        self.orders += orders

    def take(self) -> list[str]:
        """What was ordered since the last call, as text."""
        taken, self.orders = self.orders, []
        return [_text(order) for order in taken]


def _text(order: Order) -> str:
    match order.what:
        case protocol.SET:
            return f"set {IPAddress(order.network, 4)}/{order.length} at {IPAddress(order.host, 4)}"
        case protocol.DELETE:
            return f"delete {IPAddress(order.network, 4)}/{order.length}"
        case protocol.OVERLAY:
            return f"overlay {IPAddress(order.network, 4)}/{order.length}"
        case protocol.GUARD:
            return f"guard {GUARDS[order.host]}"
        case _:
            assert order == Order(protocol.PATHS)
            return "paths"


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def datapath(wire: Wire) -> Iterator[UserspaceDatapath]:
    made = Udp().datapath(LOCAL)
    made._workers.add(wire)  # type: ignore[arg-type]
    yield made
    made._workers.clear()


def test_it_is_a_datapath(datapath: UserspaceDatapath) -> None:
    contract: Datapath = datapath
    telling: HasStatus = datapath
    assert contract is telling
    assert isinstance(datapath, HasStatus)
    assert set(datapath.counters().values()) == {0}
    every = ("header", "checksum", "tcp", "tcp ecn", "udp", "gso", "gro")
    assert datapath.status() == DatapathStatus("flannel0", (), every, (), datapath.counters(), {})
    datapath.queues.offloads = Offload.HEADER | Offload.TCP
    assert datapath.status().offloads == ("header", "tcp")
    assert datapath.status().missing == ("checksum", "tcp ecn", "udp", "gso", "gro")


class Begun:
    """Stands for a worker that moves packets."""

    pid = 7

    async def ready(self) -> bool:
        return True


async def test_it_has_begun_when_every_worker_moves_packets(datapath: UserspaceDatapath) -> None:
    assert isinstance(datapath, Begins)
    assert not datapath.begun
    datapath.queues.pairs = (PAIR, PAIR)
    one, other = Begun(), Begun()
    await datapath._announce(one, "udp worker 1 of 2")  # type: ignore[arg-type]
    assert not datapath.begun
    await datapath._announce(other, "udp worker 2 of 2")  # type: ignore[arg-type]
    assert datapath.begun


def test_peers_are_sent_as_changes(datapath: UserspaceDatapath, wire: Wire) -> None:
    nine, ten = lease("10.5.9.0/24", "192.0.2.2"), lease("10.5.10.0/24", "192.0.2.3")
    datapath.update({nine.key: nine, ten.key: ten})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2", "set 10.5.10.0/24 at 192.0.2.3"]
    datapath.update({nine.key: nine})
    assert wire.take() == []
    datapath.update({nine.key: lease("10.5.9.0/24", "192.0.2.9"), ten.key: None, "10.5.11.0-24": None})
    assert wire.take() == ["delete 10.5.10.0/24", "set 10.5.9.0/24 at 192.0.2.9"]


def test_a_subnet_passes_from_one_key_to_another_in_any_order(datapath: UserspaceDatapath, wire: Wire) -> None:
    old = lease("10.5.9.0/24", "192.0.2.2", 5)
    new = Lease(old.subnet, LeaseAttrs(IPAddress("192.0.2.3")), subnet6=IPNetwork("fd00:9::/64"), create_revision=7)
    datapath.update({old.key: old})
    wire.take()
    datapath.update({new.key: new, old.key: None})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.3"]
    datapath.update({new.key: None, old.key: old})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2"]
    datapath.update({old.key: None})
    assert wire.take() == ["delete 10.5.9.0/24"]


def test_a_node_without_ipv4_is_no_peer(datapath: UserspaceDatapath, wire: Wire) -> None:
    only6 = Lease(IPNetwork("0.0.0.0/0"), LeaseAttrs(IPAddress("0.0.0.0")), subnet6=IPNetwork("fd00:9::/64"))
    nine = lease("10.5.9.0/24", "192.0.2.2")
    datapath.update({only6.key: only6, nine.key: nine})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2"]
    datapath.update({nine.key: lease("10.5.9.0/24", "0.0.0.0")})
    assert wire.take() == ["delete 10.5.9.0/24"]


def test_host_bits_in_a_key_do_not_matter(datapath: UserspaceDatapath, wire: Wire) -> None:
    datapath.update({"10.5.9.7-24": lease("10.5.9.7/24", "192.0.2.2")})
    assert wire.take() == ["set 10.5.9.0/24 at 192.0.2.2"]


async def test_a_worker_that_keeps_dying_is_replaced_at_once_then_ever_later(
    datapath: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes = [-9, *[1] * 7, DEVICE_GONE]
    waited: list[float] = []

    async def live(pair: object, name: str) -> int:
        assert pair == "the pair"
        return codes.pop(0)

    async def sleep(delay: float) -> None:
        waited.append(delay)

    monkeypatch.setattr(datapath, "_live", live)
    monkeypatch.setattr(datapath.queues, "pairs", ("the pair",))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(BackendError, match="TUN device flannel0 was deleted"):
        await datapath.run()
    assert waited == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert caplog.messages[0] == "udp worker was killed by signal 9; a new one starts now"
    assert caplog.messages[-1] == "udp worker ended with code 1; a new one in 5 s"
    monkeypatch.setattr(datapath.queues, "pairs", ())
    assert datapath.status().workers == (WorkerStatus(None, 8),)


async def test_each_of_several_workers_is_replaced_alone(
    datapath: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fates = {"steady": [], "frail": [-9, 1, DEVICE_GONE], "slow": [-11]}
    waited: list[float] = []

    async def live(pair: str, name: str) -> int:
        return fates[pair].pop(0) if fates[pair] else await asyncio.get_running_loop().create_future()

    async def sleep(delay: float) -> None:
        waited.append(delay)

    monkeypatch.setattr(datapath, "_live", live)
    monkeypatch.setattr(datapath.queues, "pairs", tuple(fates))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(BackendError, match=r"^TUN device flannel0 was deleted$"):
        await datapath.run()
    assert sorted(waited) == [0.0, 0.0, 0.1]
    assert sorted(caplog.messages) == [
        "udp worker 2 of 3 ended with code 1; a new one in 0.1 s",
        "udp worker 2 of 3 was killed by signal 9; a new one starts now",
        "udp worker 3 of 3 was killed by signal 11; a new one starts now",
    ]
    monkeypatch.setattr(datapath.queues, "pairs", ())
    assert [worker.restarts for worker in datapath.status().workers] == [0, 2, 1]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_as_its_device_goes_it_is_cancelled(
    datapath: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, workers: int, turns: int
) -> None:
    """Whoever let it go would otherwise hear of the device only, and open it anew."""
    for after in range(8):
        gone = asyncio.Event()

        async def live(_pair: object, _name: str, gone: asyncio.Event = gone) -> int:
            await gone.wait()
            for _ in range(turns):
                await asyncio.sleep(0)
            return DEVICE_GONE

        monkeypatch.setattr(datapath, "_live", live)
        monkeypatch.setattr(datapath.queues, "pairs", tuple(range(workers)))
        running = asyncio.create_task(datapath.run())
        for _ in range(4):
            await asyncio.sleep(0)
        gone.set()
        for _ in range(after):
            await asyncio.sleep(0)
        if running.cancel():
            with pytest.raises(asyncio.CancelledError):
                await running
        else:
            with pytest.raises(BackendError, match="TUN device flannel0 was deleted"):
                await running
        monkeypatch.setattr(datapath.queues, "pairs", ())


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_device_that_goes_unseen_by_its_workers_ends_it(
    datapath: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    ended: list[object] = []
    absences = iter(["", "", "was renamed to foo0"])

    async def live(pair: object, _name: str) -> int:
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            ended.append(pair)

    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(datapath, "_live", live)
    monkeypatch.setattr(datapath.queues, "pairs", tuple(range(workers)))
    monkeypatch.setattr(datapath.queues, "absence", lambda: next(absences))
    with pytest.raises(BackendError, match=r"^TUN device flannel0 was renamed to foo0$"):
        await datapath.run()
    assert sorted(map(str, ended)) == [str(number) for number in range(workers)]
    monkeypatch.setattr(datapath.queues, "pairs", ())


async def test_where_no_process_can_be_made_the_datapath_stays_open(
    datapath: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[object] = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.EAGAIN, "no"), DEVICE_GONE]

    async def live(pair: object, name: str) -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        assert isinstance(outcome, int)
        return outcome

    async def sleep(delay: float) -> None:
        pass

    monkeypatch.setattr(datapath, "_live", live)
    monkeypatch.setattr(datapath.queues, "pairs", ("the pair",))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(BackendError, match="TUN device flannel0 was deleted"):
        await datapath.run()
    monkeypatch.setattr(datapath.queues, "pairs", ())
    assert caplog.messages[0] == "udp worker cannot be started: Too many open files; a new one starts now"


@pytest.mark.parametrize(
    ("cores", "queues", "said"),
    [
        (8, 4, []),
        (8, 1, ["udp workers: one and not 4, for this kernel's TUN has a single queue"]),
        (2, 2, ["udp workers: 2 and not 4, for this host has no more cores"]),
    ],
)
async def test_fewer_workers_than_were_asked_for_are_told(
    cores: int, queues: int, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "cores", lambda: cores)
    made = Udp(workers=4).datapath(LOCAL)
    assert made is not None
    assert made._number == min(4, cores)

    async def open_some(address: str, fd_store: object) -> None:
        monkeypatch.setattr(made.queues, "pairs", ("a pair",) * queues)

    monkeypatch.setattr(made.queues, "open", open_some)
    with caplog.at_level("INFO"):
        await made.open(NoFdStore())
    assert caplog.messages == said


def test_changes_go_to_every_worker_that_lives(datapath: UserspaceDatapath, wire: Wire) -> None:
    second = Wire()
    datapath._workers.add(second)  # type: ignore[arg-type]
    datapath.update({"10.5.9.0-24": lease("10.5.9.0/24", "192.0.2.2")})
    assert wire.take() == second.take() == ["set 10.5.9.0/24 at 192.0.2.2"]


async def test_a_datapath_that_is_not_open_says_so(datapath: UserspaceDatapath) -> None:
    with pytest.raises(BackendError, match="the udp datapath is not open"):
        await datapath.run()


async def test_an_uplink_without_address_is_named() -> None:
    local = Local(CONFIG, Uplink("eth1", 3, 1500, public_ip=IPAddress("198.51.100.1")), LOCAL.lease)
    with pytest.raises(BackendError, match="interface eth1 has no IPv4 address"):
        await Udp().datapath(local).open(NoFdStore())


# ------------------------------------------------------------------------------------------------------- going on otherwise


def changed(**fields: Any) -> Local:
    return replace(LOCAL, uplink=replace(UPLINK, **fields))


def test_another_mtu_is_told_and_nothing_is_opened_anew(datapath: UserspaceDatapath, wire: Wire) -> None:
    for mtu in (1400, 9000):
        assert datapath.adopt(changed(mtu=mtu))
        assert wire.take() == ["paths"]
        assert datapath.adopt(changed(mtu=mtu))
        assert wire.take() == []


def test_a_lease_with_another_value_changes_nothing(datapath: UserspaceDatapath, wire: Wire) -> None:
    assert datapath.adopt(replace(LOCAL, lease=lease("10.5.72.0/24", "203.0.113.1", 9)))
    assert wire.take() == []


def test_another_network_and_another_guard_are_told(datapath: UserspaceDatapath, wire: Wire) -> None:
    wider = replace(LOCAL, config=NetworkConfig.parse('{"Network": "10.0.0.0/8"}'))
    assert datapath.adopt(wider, Udp(guard="strict"))
    assert wire.take() == ["overlay 10.0.0.0/8", "guard strict"]
    setting = datapath._setting(PAIR, 9)
    assert (setting.overlay, setting.overlay_length, setting.guard) == (0x0A000000, 8, "strict")  # a worker that starts now
    assert datapath.adopt(LOCAL, Udp(guard="default"))
    assert wire.take() == ["overlay 10.5.0.0/16", "guard default"]


@pytest.mark.parametrize(
    ("local", "backend"),
    [
        (changed(address=IPAddress("192.0.2.77")), None),
        (changed(address=None), None),
        (replace(LOCAL, lease=lease("10.5.73.0/24", "198.51.100.1")), None),
        (LOCAL, Udp(port=8286)),
        (LOCAL, Udp(workers=2)),
        (LOCAL, Udp(engine="kernel")),
        (LOCAL, Alloc()),
    ],
)
def test_what_needs_another_device_or_socket_is_left_to_a_new_one(
    datapath: UserspaceDatapath, wire: Wire, local: Local, backend: Backend | None
) -> None:
    before = datapath._setting(PAIR, 9)
    assert not datapath.adopt(local, backend)
    assert wire.take() == []
    assert datapath._setting(PAIR, 9) == before


def test_every_order_does_in_a_worker_what_it_says() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, Path(os.devnull).open("r+b") as tun:
        setting = Setting(tun.fileno(), 0, 0, 0, 0, 8285, 0x0A054800, 24, 0x0A050000, 16, "off")
        forwarder = Forwarder(setting, sock, [0] * CELLS)
        apply(forwarder, Order(protocol.SET, 0x0A050900, 24, 0xC0000202))
        assert forwarder.peers.find(0x0A050902) == ("192.0.2.2", 8285)
        apply(forwarder, Order(protocol.GUARD, host=GUARDS.index("default")))
        assert COUNTERS[forwarder.ingress.judge(0x0A05C802, "192.0.2.2")] == "inbound_dropped_inner_source"
        apply(forwarder, Order(protocol.OVERLAY, 0x0A060000, 16))
        assert forwarder.ingress.judge(0x0A05C802, "192.0.2.2") == PASSED
        forwarder.path_mtu._known[("192.0.2.2", 8285)] = 1372
        apply(forwarder, Order(protocol.PATHS))
        assert forwarder.path_mtu._known == {}
        apply(forwarder, Order(protocol.DELETE, 0x0A050900, 24))
        assert forwarder.peers.find(0x0A050902) is None


# ------------------------------------------------------------------------------------------------------- a real process


class Beat:
    """A heartbeat that a test holds."""

    def __init__(self, beating: bool = False) -> None:
        self.beating, self.value = beating, 0

    def __call__(self) -> int:
        self.value += self.beating
        return self.value


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes faster for whoever looks at a heartbeat."""
    monkeypatch.setattr(launch, "LOOK_EVERY_S", 0.01)


async def launched(monkeypatch: pytest.MonkeyPatch, script: str, beat: Callable[[], int]) -> launch.Launched:
    """A shell that does as told in the place of a worker; its control stream is descriptor 3."""

    async def execute(setting: Setting) -> asyncio.subprocess.Process:
        words = f"exec 3<&{setting.control}; {script}"
        return await asyncio.create_subprocess_exec("bash", "-c", words, pass_fds=(setting.control,))

    monkeypatch.setattr(launch, "_execute", execute)

    def setting(control: int) -> Setting:
        return Setting(0, 0, control, 0, 0, 8285, 0, 24, 0, 16, "off")

    return await launch.launch(setting, beat, "udp worker")


async def test_a_worker_that_dies_with_orders_unread_is_one_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await launched(monkeypatch, "kill -9 $$", Beat())
    worker.begin([])
    assert not await worker.ready()
    assert await worker.wait() == -9
    await worker.stop()


@pytest.mark.parametrize("ends", ["kill -9 $$", "exit 0", "exec 3<&-; exec sleep 0.05"])
@pytest.mark.parametrize("begun", [False, True])
async def test_orders_to_a_worker_that_is_gone_go_nowhere(monkeypatch: pytest.MonkeyPatch, ends: str, begun: bool) -> None:
    """At any moment of its end: its supervisor hears of that by its exit code, not by an error of who has a peer to tell."""
    worker = await launched(monkeypatch, ends, Beat(beating=True))
    order = Order(protocol.SET, 0x0A050900, 24, 0xC0000202)
    if begun:
        worker.begin([order])
    waiting = asyncio.create_task(worker.wait())
    while not waiting.done():
        worker.send([order])
        await asyncio.sleep(0.001)
    for _ in range(5):
        worker.send([order])
        await asyncio.sleep(0)
    worker.begin([order])
    assert waiting.result() == (-9 if "kill" in ends else 0)
    await worker.stop()


@pytest.mark.usefixtures("quick")
async def test_a_worker_that_stands_still_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    beat = Beat(beating=True)
    worker = await launched(monkeypatch, "kill -STOP $$; sleep 100", beat)
    try:
        waiting = asyncio.create_task(worker.wait())
        await until(lambda: beat.value > 2 * launch.START_LOOKS)  # as long as it beats
        assert not waiting.done()
        beat.beating = False
        assert await asyncio.wait_for(waiting, 20) == -9
    finally:
        await worker.stop()
    assert caplog.messages == [f"udp worker: process {worker.pid} stands still for 0.05 s: killed"]


@pytest.mark.usefixtures("quick")
async def test_a_start_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    worker = await launched(monkeypatch, "exec sleep 100", Beat())
    try:
        assert await asyncio.wait_for(worker.wait(), 20) == -9
    finally:
        await worker.stop()
    assert caplog.messages == [f"udp worker: process {worker.pid} stands still for 0.3 s: killed"]


async def test_a_worker_that_does_not_read_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    worker = await launched(monkeypatch, "exec sleep 100", Beat(beating=True))
    try:
        orders = [Order(protocol.SET, number, 32, number) for number in range(20_000)]
        worker.begin(orders * 10)  # a first table of any length is none
        for _ in range(100):
            worker.send(orders)
        assert await asyncio.wait_for(worker.wait(), 20) == -9
    finally:
        await worker.stop()
    assert " of orders unread: killed" in caplog.messages[0]


async def test_nothing_stays_open_where_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    def setting(control: int) -> Setting:
        return Setting(0, 0, control, 0, 0, 8285, 0, 24, 0, 16, "off")

    before = descriptors()
    for where, what in ((asyncio, "open_unix_connection"), (launch, "_execute")):
        with monkeypatch.context() as patched:
            patched.setattr(where, what, refuse)
            with pytest.raises(OSError, match="Too many"):
                await launch.launch(setting, Beat(), "udp worker")
        await until(lambda: descriptors() == before)


async def test_a_worker_gets_a_bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    async def execute(*words: str, **named: Any) -> None:
        given.update(named, words=words)

    monkeypatch.setenv("FLANNELPY_ETCD_PASSWORD", "hunter2")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", execute)
    await launch._execute(Setting(7, 8, 9, 10, 0, 8285, 0, 24, 0, 16, "off"))
    assert given["words"][1:4] == ("-P", "-m", "backends.udp.worker.process")
    assert given["env"] == bare(os.environ, "PYTHONHOME", PYTHONPATH=given["env"]["PYTHONPATH"])  # tests/unit/test_udp_launch.py
    assert "hunter2" not in str(given)
    assert given["pass_fds"] == (7, 8, 9, 10)


def obeying(setting: Setting, orders: Sequence[Order]) -> Forwarder:
    """A worker that was started so, and then told these."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, Path(os.devnull).open("r+b") as tun:
        made = Forwarder(setting._replace(tun=tun.fileno()), sock, [0] * CELLS)
        for order in orders:
            apply(made, order)
    return made


@pytest.mark.parametrize("moment", ["before", "at the fork", "after it", "begun"])
@pytest.mark.parametrize("change", [*product(GUARDS, GUARDS)], ids="-".join)
async def test_a_worker_works_by_the_terms_of_now_whenever_they_changed(
    monkeypatch: pytest.MonkeyPatch, moment: str, change: tuple[Guard, Guard]
) -> None:
    """Also where they change between its command line and its first order: it would let in what nobody lets in any more."""
    before, after = (Udp(guard=guard) for guard in change)
    datapath = before.datapath(LOCAL)
    assert datapath is not None
    wider = replace(LOCAL, config=NetworkConfig.parse('{"Network": "10.0.0.0/8"}'))
    settings, orders = list[Setting](), list[Order]()

    def pass_to(now: str) -> None:
        if now == moment:
            assert datapath.adopt(wider, after)

    class Process(Wire):
        pid = 7

        def begin(self, table: Sequence[Order]) -> None:
            orders.extend(table)

        async def ready(self) -> bool:
            return True

        async def wait(self) -> int:
            pass_to("begun")
            return 0

        async def stop(self) -> None:
            orders.extend(self.orders)

    async def launched(setting: Callable[[int], Setting], _beat: object, _name: str) -> Process:
        pass_to("before")
        settings.append(setting(9))
        pass_to("at the fork")
        await asyncio.sleep(0)
        pass_to("after it")
        return Process()

    monkeypatch.setattr(supervisor, "launch", launched)
    monkeypatch.setattr(Held.counters, "beat", Beat(), raising=False)
    nine = lease("10.5.9.0/24", "192.0.2.2")
    datapath.update({nine.key: nine})
    assert await datapath._live(PAIR, "udp worker") == 0
    worker, wanted = obeying(settings[0], orders), obeying(datapath._setting(PAIR, 9), [])
    for which in ("inner", "outer", "_strict", "_overlay", "_overlay_shift"):
        assert getattr(worker.ingress, which) == getattr(wanted.ingress, which), which
    assert worker.peers.find(0x0A050902) == ("192.0.2.2", 8285)


@pytest.mark.parametrize("there", [True, False])
def test_without_numpy_nothing_is_asked_of_the_kernel(
    there: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backends.udp.backend.find_spec", lambda name: object() if there else None)
    caplog.set_level("INFO")
    made = Udp().datapath(LOCAL)
    assert made is not None
    assert made.queues.offload is there
    assert ("one by one" in caplog.text) is not there


BUILT_FOR_OTHERS = "raise RuntimeError('NumPy was built with baseline optimizations: (X86_V2)\\nbut not this machine')"


@pytest.mark.parametrize(
    ("numpy", "said"),
    [
        (BUILT_FOR_OTHERS, "RuntimeError: NumPy was built with baseline optimizations: (X86_V2)"),
        ("raise ImportError('libopenblas.so.0: cannot open shared object file')", "ImportError: libopenblas"),
        ("", "ModuleNotFoundError: No module named 'numpy."),
    ],
)
def test_a_worker_that_cannot_load_numpy_says_so_in_a_line(numpy: str, said: str, tmp_path: Path) -> None:
    """A part of it was left when it was removed; or the machine's processor is older than those it was built for."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text(numpy)
    ours, theirs = socket.socketpair()
    counters = make_counters()
    with ours, theirs, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, Path(os.devnull).open("r+b") as tun:
        given = (tun.fileno(), sock.fileno(), theirs.fileno(), counters.fd)
        offloads = (Offload.HEADER | Offload.TCP).value
        setting = Setting(*given, os.getpid(), 8285, 0x0A054800, 24, 0x0A050000, 16, "default", offloads)
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "backends.udp.worker.process", *setting.words()],
            pass_fds=given,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    counters.close()
    assert done.returncode == NO_BULK
    assert done.stderr.startswith(f"udp worker: numpy cannot be loaded: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", [1, 3])
async def test_where_numpy_cannot_be_loaded_it_is_opened_anew_without_offloads(
    datapath: UserspaceDatapath, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    async def live(_pair: object, _name: str) -> int:
        return NO_BULK

    monkeypatch.setattr(datapath, "_live", live)
    monkeypatch.setattr(datapath.queues, "pairs", tuple(range(workers)))
    assert datapath.queues.offload
    with pytest.raises(
        BackendError, match=r"^numpy is there and cannot be loaded; without it the workers move packets one by one$"
    ):
        await datapath.run()
    assert not datapath.queues.offload
    monkeypatch.setattr(datapath.queues, "pairs", ())


# ----------------------------------------------------------------------------------------------------- a worker's own edge


def test_a_worker_loads_nothing_of_the_control_plane() -> None:
    names = ("grpc", "pyroute2", "netaddr", "flannelpy", "backends.udp.backend", "backends.udp.supervisor")
    shown = f"import sys, backends.udp.worker.process; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", shown], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "odd"), MemoryError()])
def test_whatever_a_turn_raises_ends_the_worker_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    counters = make_counters()
    with ours, Path(os.devnull).open("r+b") as tun:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        setting = Setting(tun.fileno(), udp.detach(), theirs.detach(), counters.fd, 0, 8285, 0, 24, 0, 16, "off")
        worker = Worker(setting)
        turns = []

        def turn() -> bool:
            turns.append(1)
            raise error

        monkeypatch.setattr(worker, "_turn", turn)
        ours.send(b"wake up")
        with pytest.raises(type(error)):
            worker.serve()
    assert turns == [1]
    assert counters.beat() == 1
    worker._counters.live.release()
    counters.close()


# -------------------------------------------------------------------------------------------------------- protocol


def test_orders_survive_any_cut_of_the_stream() -> None:
    orders = [Order(SET, 1, 24, 2), Order(DELETE, 3, 22), Order(START)]
    stream = pack(orders)
    for cut in range(len(stream) + 1):
        first, rest = unpack(stream[:cut])
        second, left = unpack(rest + stream[cut:])
        assert [*first, *second] == orders
        assert left == b""


def test_a_setting_survives_the_command_line() -> None:
    setting = Setting(7, 8, 9, 10, 1234, 8285, 168118272, 24, 168099840, 16, "peers")
    assert "guard=peers" in setting.words()
    assert "network=168118272" in setting.words()
    assert Setting.parse(setting.words()) == setting


def test_counters_are_shared_by_descriptor() -> None:
    counters = make_counters()
    values = [2**40 + index for index in range(len(counters.read()))]
    counters.live[:HEARTBEAT] = array("Q", values)
    assert counters.read() == values
    before = counters.beat()
    counters.live[HEARTBEAT] += 1
    assert counters.beat() != before
    counters.close()


@pytest.mark.parametrize("size", [0, 8, Counters.SIZE - 1, Counters.SIZE + 1, 1 << 30])
def test_no_worker_can_end_its_agent_by_its_counters(size: int) -> None:
    """Reading beyond the end of a file that is mapped is SIGBUS."""
    counters = make_counters()
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(counters.fd, size)
        assert counters.read() == [0] * len(COUNTERS)
    finally:
        counters.close()


def test_counters_of_all_pairs_are_summed_and_outlive_them() -> None:
    held = Queues("flannel0", 8285, 2, offload=True)
    for closed in range(1, 3):
        held.pairs = tuple(QueuePair(os.open(os.devnull, os.O_RDONLY), socket.socket(), make_counters()) for _ in range(2))
        for number, pair in enumerate(held.pairs, 1):
            pair.counters.live[:HEARTBEAT] = array("Q", [number * index for index in range(len(COUNTERS))])
        counted = [3 * closed * index for index in range(len(COUNTERS))]
        assert held.counted() == counted
        held.close()
        assert held.counted() == counted


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_keeps_no_descriptor_that_it_was_not_given(seed: int) -> None:
    """Some libraries open sockets that children inherit; whatever they leave open is closed."""
    count, random = 30, Random(seed)
    code = (
        "import os, sys\n"
        "from backends.udp.worker.confine import close_all_but\n"
        "kept = set(map(int, sys.argv[1:]))\n"
        "close_all_but({0, 1, 2, *kept})\n"
        "print(*os.listdir('/proc/self/fd'))"
    )
    opened = [os.dup(0) for _ in range(count)]
    try:
        kept = sorted(random.sample(opened, random.randrange(5)))
        found = subprocess.run(
            [sys.executable, "-c", code, *map(str, kept)], pass_fds=opened, capture_output=True, text=True, check=True
        )
    finally:
        for number in opened:
            os.close(number)
    assert set(map(int, found.stdout.split())) & set(opened) == set(kept)
