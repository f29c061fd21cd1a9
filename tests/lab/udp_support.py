"""What do udp's lab tests share? Two hosts with a container each, and a real userspace datapath on each that does what a test says.

  ca 10.5.72.2 -- cbr0 - ha - flannel0 ~ UDP 8285 ~ flannel0 - hb - cbr0 -- cb 10.5.9.2
                         192.0.2.1 ======= veth ======= 192.0.2.2                          198.51.100.9 is nobody's, on ha's veth

Each is driven by a small process (this file, run as a program) in its host's namespace.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from backends.udp import Udp, supervisor, tun
from backends.udp.counters import COUNTERS
from flannelpy.core.backend import Local, NoFdStore, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Lease, LeaseAttrs

PREFIX = f"udp-{os.getpid()}-"
HA, HB, CA, CB = (PREFIX + name for name in ("a", "b", "ca", "cb"))
MTU = 1472
BOUND_S = 5.0


# ------------------------------------------------------------------------------------------------- the driver process


def lease(subnet: str, public_ip: str) -> Lease:
    return Lease(IPNetwork(subnet), LeaseAttrs(IPAddress(public_ip)))


async def drive(subnet: str, address: str, options: str) -> None:
    """Run one datapath as told on stdin, one JSON object a line; each is answered by one on stdout."""
    uplink = Uplink("eth1", 2, MTU + 28, address=IPAddress(address), public_ip=IPAddress(address))
    local = Local(NetworkConfig.parse('{"Network": "10.5.0.0/16"}'), uplink, lease(subnet, address))
    told = json.loads(options)
    if "cores" in told:
        supervisor.cores = lambda: told["cores"]
    datapath = Udp.from_options(told).datapath(local)
    datapath.queues.offload = told.get("offload", True)
    if "tun_features" in told:  # as a kernel that knows only these
        tun.tun_features = lambda _: told["tun_features"]
    running: asyncio.Task[None] | None = None
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        word, argument = json.loads(line)
        answer: object = None
        try:
            if word == "open":
                await datapath.open(NoFdStore())
            elif word == "run":
                running = asyncio.create_task(datapath.run())
            elif word == "update":
                datapath.update({f"{net.replace('/', '-')}": lease(net, at) if at else None for net, at in argument.items()})
            elif word == "adopt":
                uplink = replace(uplink, mtu=argument)
                answer = datapath.adopt(replace(local, uplink=uplink))
            elif word == "refused":
                answer = datapath.status().refused
            elif word == "counters":
                answer = {name: count for name, count in datapath.counters().items() if count}
            elif word == "queues":
                answer = [
                    {
                        "tun": pair.tun,
                        "socket": os.fstat(pair.socket.fileno()).st_ino,
                        "memory": os.fstat(pair.counters.fd).st_ino,
                        "beat": pair.counters.beat(),
                        **dict(zip(COUNTERS, pair.counters.read(), strict=True)),
                    }
                    for pair in datapath.queues.pairs
                ]
            elif word == "outcome":
                assert running is not None
                await running
            elif word == "stop":
                assert running is not None
                running.cancel()
                await asyncio.wait([running])
            elif word == "close":
                await datapath.close()
        except FlannelpyError as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
    if running is not None:
        running.cancel()
        await asyncio.wait([running])
    await datapath.close()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(drive(*sys.argv[1:4]))
    sys.exit()


# --------------------------------------------------------------------------------------------------------- namespaces


def ip(*words: str) -> None:
    subprocess.run(["ip", *" ".join(words).split()], check=True, capture_output=True, text=True)


def inside(namespace: str, command: str, *, check: bool = True) -> str:
    """What ``command`` prints, run in a namespace."""
    words = ["ip", "netns", "exec", namespace, *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def socket_in(namespace: str, family: int, kind: int, proto: int = 0) -> socket.socket:
    """A socket that lives in a namespace: made by a thread that enters it (setns(2) is per thread)."""
    made: list[socket.socket] = []

    def make() -> None:
        with Path(f"/run/netns/{namespace}").open() as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0x40000000):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.socket(family, kind, proto))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    made[0].settimeout(BOUND_S)
    return made[0]


def capture(namespace: str, device: str, proto: int = 0x0800) -> socket.socket:
    """A packet socket on one device of a namespace; on flannel0 it reads IP packets, on others Ethernet frames' payload."""
    sock = socket_in(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(proto))
    sock.bind((device, proto))
    return sock


def first(sock: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    """The first packet captured that is wanted, within the bound."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        packet = sock.recv(65536)
        if wanted(packet):
            return packet
    raise AssertionError("no such packet")


def start_s() -> float:
    """How long a process with what a worker imports takes to start on this machine now."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-P", "-c", "import uvloop, backends.udp.worker.process, backends.udp.worker.fast_path"], check=True
    )
    return time.monotonic() - began


def until(true: Callable[[], bool], within_s: float = BOUND_S) -> None:
    """Wait for a fact with a bound."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "not within the bound"
        time.sleep(0.01)


@dataclass
class Host:
    """One namespace and the driver in it."""

    name: str
    subnet: str
    address: str
    process: subprocess.Popen[str] = field(init=False)

    def begin(self, options: str = "{}") -> None:
        words = ["ip", "netns", "exec", self.name, sys.executable, __file__, self.subnet, self.address, options]
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment)

    def tell(self, word: str, argument: object = None) -> Any:
        """One command to the driver, and its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([word, argument]) + "\n")
        line = self.process.stdout.readline()
        assert line, f"the driver in {self.name} is gone"
        return json.loads(line)

    @property
    def counters(self) -> dict[str, int]:
        """The counters, once they stand still where they do: a packet is counted a moment after it is sent or written."""
        counted: dict[str, int] = self.tell("counters")
        for _ in range(20):
            time.sleep(0.02)
            before, counted = counted, self.tell("counters")
            if counted == before:
                break
        return counted

    def counts(self, name: str, value: int) -> bool:
        return self.counters.get(name, 0) == value

    def configure(self) -> None:
        """What the agent's kernel part would: address, MTU, up, sysctl, route."""
        base = IPNetwork(self.subnet).network
        for words in (
            f"addr replace {base}/32 dev flannel0",
            f"link set flannel0 mtu {MTU} up",
            "route replace 10.5.0.0/16 dev flannel0",
        ):
            ip(f"-n {self.name} {words}")
        inside(self.name, "sysctl -qw net.ipv4.conf.flannel0.accept_local=1")

    def workers(self) -> list[int]:
        """The process ids of all workers."""
        return [int(word) for word in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def worker(self) -> int | None:
        """The worker's process id, if there is one."""
        return next(iter(self.workers()), None)

    def cpu_s(self) -> float:
        """Processor time that the worker has used, in seconds."""
        fields = Path(f"/proc/{self.worker()}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Close the driver's stdin, which ends it; kill it where it does not."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(BOUND_S)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()


def runs(process: int | None) -> bool:
    """False for one that is gone, or dead and not yet reaped."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def add_container(host: str, container: str, subnet: str) -> None:
    """A bridge on the host, and a container on it; ``subnet`` is the first three numbers of theirs."""
    ip(f"-n {host} link add cbr0 type bridge")
    ip(f"-n {host} addr add {subnet}.1/24 dev cbr0")
    ip(f"-n {host} link set cbr0 up")
    ip(f"link add c0 netns {host} type veth peer eth0 netns {container}")
    ip(f"-n {host} link set c0 master cbr0 mtu {MTU} up")
    ip(f"-n {container} addr add {subnet}.2/24 dev eth0")
    ip(f"-n {container} link set eth0 mtu {MTU} up")
    ip(f"-n {container} route add default via {subnet}.1")


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """The namespaces and their links; without datapaths."""
    with ExitStack() as undo:
        for name in (HA, HB, CA, CB):
            ip(f"netns add {name}")
            undo.callback(ip, f"netns del {name}")
            ip(f"-n {name} link set lo up")
        ip(f"link add eth1 netns {HA} type veth peer eth1 netns {HB}")
        for host, container, address, subnet in ((HA, CA, "192.0.2.1", "10.5.72"), (HB, CB, "192.0.2.2", "10.5.9")):
            ip(f"-n {host} addr add {address}/24 dev eth1")
            ip(f"-n {host} link set eth1 up")
            add_container(host, container, subnet)
            inside(host, "sysctl -qw net.ipv4.ip_forward=1")
        ip(f"-n {HA} addr add 198.51.100.9/32 dev eth1")
        ip(f"-n {HB} route add 198.51.100.9 dev eth1")
        yield


@contextmanager
def running(a: Host, b: Host, a_options: str = "{}", b_options: str | None = None) -> Iterator[None]:
    """Both datapaths open, configured and running, each knowing the other; ``b`` with ``a``'s options where it has none."""
    with ExitStack() as undo:
        for host, peer, options in ((a, b, a_options), (b, a, a_options if b_options is None else b_options)):
            host.begin(options)
            undo.callback(host.end)
            assert host.tell("open") is None
            host.tell("update", {peer.subnet: peer.address})
            host.configure()
            host.tell("run")
        yield


@pytest.fixture
def hosts(network: None) -> Iterator[tuple[Host, Host]]:
    """Both datapaths open, configured and running, each knowing the other."""
    a, b = Host(HA, "10.5.72.0/24", "192.0.2.1"), Host(HB, "10.5.9.0/24", "192.0.2.2")
    with running(a, b):
        until(lambda: pings(CA, "10.5.9.2") and pings(CB, "10.5.72.2"))
        yield a, b


def pings(namespace: str, address: str) -> bool:
    return " 0% packet loss" in inside(namespace, f"ping -c1 -W1 {address}", check=False)


def flood(namespace: str, target: str, go_on: Callable[[int], bool]) -> None:
    """Small datagrams as fast as they go, as long as ``go_on`` of their number says so."""
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        number = 0
        while go_on(number):
            sender.sendto(number.to_bytes(8, "big"), (target, 4000))
            number += 1
