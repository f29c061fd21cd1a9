"""Does udp's kernel engine do its work where the kernel has fou and ipip? Runs in the guest of ``guest.py``.

    a 192.168.90.1, overlay 10.1.x.1 ---- bridge, etcd 192.168.90.254 ---- 192.168.90.2, overlay 10.1.y.1 b
                                               |
                                  192.168.90.3 c, a stranger

Agents are real, with a real etcd; they are forked off this process, because importing them takes the guest ten seconds. Each check
says one line on the console (``@@ ok NAME`` or ``@@ failed NAME: why``), each figure another (``@@ figure NAME VALUE``).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvloop
from netaddr import IPAddress, IPNetwork

from backends.udp.backend import Udp
from flannelpy import logs
from flannelpy.agent.agent import run as run_agent
from flannelpy.core.backend import Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import Fou, HostState, Scope
from flannelpy.core.plan import Step, plan
from flannelpy.kernel.netlink import NetlinkKernel
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.settings import load
from netns_lab.etcd import binary

assert EtcdRegistry  # imported here, so that no agent has to

CLONE_NEWNET = 0x40000000
PATIENCE_S = 180.0
LOAD_S = 2
ALTERNATIONS = 5
NUMBER = {"a": 1, "b": 2, "c": 3}
FLANNELD = Path(__file__).parents[2] / ".venv" / "cache" / "flanneld"
"""Where ``make flanneld`` builds the real one."""
ENDPOINT = "http://192.168.90.254:2379"
PORT = 8285
START = time.monotonic()


def say(*words: object) -> None:
    print("@@", *words, f"({time.monotonic() - START:.1f} s)", flush=True)


@contextlib.contextmanager
def check(name: str) -> Iterator[None]:
    """One check: what goes wrong in it is said, and the next one has its turn."""
    try:
        yield
        say("ok", name)
    except Exception as error:  # noqa: BLE001 - the edge of a check
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        say("failed", f"{name}: {type(error).__name__} {error} {said}".replace("\n", " | "))
        traceback.print_exc()


def shell(command: str, host: str | None = None, timeout_s: float = 30.0) -> str:
    """What a shell command says, in a host's namespace. Raises CalledProcessError."""
    words = ["ip", "netns", "exec", host] if host else []
    done = subprocess.run([*words, "sh", "-c", command], capture_output=True, text=True, timeout=timeout_s, check=True)
    return done.stdout


def until(fact: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)


def enter(host: str) -> None:
    """This process into a host's namespace."""
    with Path(f"/run/netns/{host}").open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


# ---------------------------------------------------------------------------------------------------------------- hosts


def make_hosts() -> None:
    shell("modprobe -a veth bridge dummy vxlan tun nf_tables; ip link add br0 type bridge; ip link set br0 up; ip link set lo up")
    shell("ip addr add 192.168.90.254/24 dev br0")
    for host, number in NUMBER.items():
        shell(f"ip netns add {host}; ip link add p{host} type veth peer name eth1 netns {host}; ip link set p{host} master br0 up")
        shell(f"ip addr add 192.168.90.{number}/24 dev eth1; ip link set eth1 up; ip link set lo up", host)


def start_etcd() -> subprocess.Popen[bytes]:
    urls = [f"--{name}={ENDPOINT}" for name in ("listen-client-urls", "advertise-client-urls")]
    process = subprocess.Popen(
        [binary(), "--data-dir=/run/etcd", *urls, "--listen-peer-urls=http://127.0.0.1:2380", "--log-level=error"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    config = json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}})

    def put() -> bool:
        words = [binary("etcdctl"), f"--endpoints={ENDPOINT}", "put", "/coreos.com/network/config", config]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    until(put, "etcd answers")
    return process


class Host:
    """One of ``a`` and ``b``, with an agent or without."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.public_ip = f"192.168.90.{NUMBER[name]}"
        self.file = Path(f"/run/{name}/subnet.env")
        self.log = Path(f"/run/{name}.log")
        self.pid = 0
        self.registry = {"etcd-endpoints": ENDPOINT}
        """The options that say where its agent's lease is."""
        self.environ: dict[str, str] = {}
        self.settle_in: Callable[[], None] = lambda: None
        """What its agent's process does in the host's namespace before anything else."""

    @property
    def subnet(self) -> IPNetwork:
        found = re.search(r"FLANNEL_SUBNET=(\S+)/", self.file.read_text())
        assert found
        return IPNetwork(f"{found[1]}/24").cidr

    @property
    def inside(self) -> str:
        """The host's own address within its subnet, as its bridge would have it."""
        return str(self.subnet.ip + 1)

    def start(self, engine: str) -> None:
        """A new agent, in place of one that ran."""
        self.stop()
        self.file.unlink(missing_ok=True)
        words = {
            **self.registry,
            "iface": "eth1",
            "udp-engine": engine,
            "subnet-file": str(self.file),
            "state-dir": f"/run/{self.name}/state",
            "run-dir": f"/run/{self.name}/run",
            "probe": "false",  # packets are counted
        }
        self.pid = os.fork()
        if not self.pid:
            with self.log.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            try:
                enter(self.name)
                self.settle_in()
                os._exit(uvloop.run(_live(words, self.environ)))
            except BaseException:  # noqa: BLE001 - the edge of a process
                traceback.print_exc()
                os._exit(1)

    def await_ready(self) -> None:
        until(self.file.exists, f"{self.name} is ready: {self.log.read_text()[-400:]}")
        shell(f"ip link add br1 type dummy; ip link set br1 up; ip addr add {self.inside}/24 dev br1; true", self.name)

    def stop(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
            self.pid = 0


@contextlib.contextmanager
def flanneld(host: Host, prefix: Sequence[str] = ()) -> Iterator[None]:
    """The real one as this host, for the time of the block; ``prefix``: the words before its own where it needs more than a network
    namespace.
    """
    shell("modprobe br_netfilter")  # without it flanneld ends
    host.file.parent.mkdir(exist_ok=True)
    words = [str(FLANNELD), f"-etcd-endpoints={ENDPOINT}", "-iface=eth1", f"-subnet-file={host.file}", "-ip-masq=false"]
    with host.log.open("ab") as log:
        daemon = subprocess.Popen([*prefix, "ip", "netns", "exec", host.name, *words], stdout=log, stderr=log)
    try:
        until(host.file.exists, f"flanneld is ready: {host.log.read_text()[-600:]}")
        yield
    finally:
        daemon.terminate()
        daemon.wait()
        for line in host.log.read_text().splitlines()[-80:]:
            print(host.name, line)


def check_flanneld(work: Callable[[], None]) -> None:
    """A check with the real one, where it has been built."""
    if FLANNELD.exists():
        with check("flanneld"):
            work()
    else:
        say("skipped", "flanneld: make flanneld builds it")


def finish(etcd: subprocess.Popen[bytes], *hosts: Host) -> None:
    """End all, and show what the agents have said."""
    for host in hosts:
        host.stop()
        for line in host.log.read_text().splitlines():
            print(host.name, line)
    etcd.kill()
    etcd.wait()


async def _live(words: dict[str, str], environ: dict[str, str]) -> int:
    logs.set_up("info", "text")
    return await run_agent(load({name: [value] for name, value in words.items()}, environ))


def finish_checksums(host: Host, before_the_wire: bool) -> None:
    """veth hands unfinished checksums and super-packets to a socket, where TCP stalls; a real NIC finishes both before the wire."""
    shell(f"ethtool -K eth1 tx {'off' if before_the_wire else 'on'}", host.name)


@contextlib.contextmanager
def wire(*hosts: Host) -> Iterator[None]:
    """Packets leave no longer than the MTU, and who receives them gathers what belongs together, as on cards.

    Behind a veth device that takes super-packets nothing is gathered (veth_skb_is_eligible_for_gro); so it is with the bridge's.
    """
    for host in hosts:
        shell(f"ethtool -K p{host.name} tso off gso off")
        shell("ethtool -K eth1 tx off tso off gso off; ethtool -K eth1 gro on", host.name)
    yield
    for host in hosts:
        shell(f"ethtool -K p{host.name} tso on gso on")
        shell("ethtool -K eth1 tso on gso on; ethtool -K eth1 gro off tx off", host.name)


def ping(one: Host, other: Host, *options: str) -> None:
    out = shell(f"ping -n -c2 -i .3 -W2 {' '.join(options)} -I {one.inside} {other.inside}", one.name)
    assert " 0% packet loss" in out, out


def pinged(here: Host, there: Host, *options: str) -> bool:
    """Whether each of a few pings was answered; ``options`` win over what stands before them."""
    words = f"ping -n -c2 -i .3 -W2 {' '.join(options)} -I {here.inside} {there.inside}; true"
    return " 0% packet loss" in shell(words, here.name)


def settle(*hosts: Host) -> None:
    """Wait for the agents, and give each host an address inside its subnet."""
    for host in hosts:
        until(host.file.exists, f"{host.name} is ready: {host.log.read_text()[-600:]}")
        if host.inside not in shell("ip -br addr", host.name):
            shell("ip link add br1 type dummy 2>/dev/null; ip link set br1 up; ip addr flush dev br1 scope global", host.name)
            shell(f"ip addr add {host.inside}/24 dev br1", host.name)


def meet(one: Host, other: Host) -> None:
    """Ping and full MTU with DF, both ways; and a transfer of which every byte is right."""
    deadline = time.monotonic() + PATIENCE_S
    while True:  # a peer's route comes with its lease
        try:
            ping(one, other)
            break
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
    ping(other, one)
    for here, there in ((one, other), (other, one)):
        ping(here, there, "-M", "do", "-s", str(1472 - 28))
        too_long = f"ping -n -c1 -W1 -M do -s {1472 - 27} -I {here.inside} {there.inside}; true"
        assert "0 received" in shell(too_long, here.name)
        transfer(here, there)


def outer_checksums(sender: Host, receiver: Host, *, repaired: bool) -> None:
    """What a kernel sends is gathered for a peer's socket; and so it is again after somebody has taken the checksums away."""
    with wire(sender, receiver):
        if repaired:
            take_checksums(sender.public_ip, sender.name)
            until(lambda: " encap-csum" in shell("ip -d link show flannel0", sender.name), "outer checksums are back")
        before = received(receiver)
        transfer(sender, receiver)
        frames, reads = (now - then for now, then in zip(received(receiver), before, strict=True))
    assert frames > (1 << 20) // 1472, f"{frames} frames: no MTU-sized ones"
    assert reads * 2 < frames, f"{frames} frames were {reads} reads of the socket"


def take_checksums(address: str, host: str | None = None) -> None:
    """By an operator's hand. ip of Debian 12 keeps no port that it is not told: it swaps the bytes."""
    ends = f"local {address} remote any ttl 64 pmtudisc encap fou encap-sport {PORT} encap-dport {PORT}"
    shell(f"ip link change flannel0 type ipip {ends} noencap-csum", host)


def received(host: Host) -> tuple[int, int]:
    """Frames that came by the wire, and what was read from UDP sockets; what was gathered is read once (udp_recvmsg)."""
    frames = int(shell("cat /sys/class/net/eth1/statistics/rx_packets", host.name))
    names, values = (line.split() for line in shell("grep ^Udp: /proc/net/snmp", host.name).splitlines())
    return frames, int(dict(zip(names, values, strict=True))["InDatagrams"])


def transfer(sender: Host, receiver: Host) -> None:
    data = os.urandom(1 << 20)
    server, client = (socket_in(host.name, socket.SOCK_STREAM) for host in (receiver, sender))
    with server, client:
        server.bind((receiver.inside, 7))
        server.listen()
        client.bind((sender.inside, 0))
        client.settimeout(20)
        client.connect((receiver.inside, 7))
        taken, _ = server.accept()
        pid = os.fork()
        if not pid:
            client.sendall(data)
            os._exit(0)
        client.close()
        digest = hashlib.sha256()
        with taken:
            taken.settimeout(20)
            while block := taken.recv(65536):
                digest.update(block)
        os.waitpid(pid, 0)
    assert digest.digest() == hashlib.sha256(data).digest(), "bytes differ"


def socket_in(host: str, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """A socket of a host's namespace; a socket stays in the one it was made in."""
    with Path("/proc/self/ns/net").open() as home:
        enter(host)
        try:
            return socket.socket(socket.AF_INET, kind, protocol)
        finally:
            ctypes.CDLL(None).setns(home.fileno(), CLONE_NEWNET)


def goodput(sender: str, receiver: str, address: str, source: str | None = None) -> float:
    """Megabits in a second of one TCP stream; 0 where it stalls."""
    bind = f"-B {source}" if source else ""
    server = subprocess.Popen(["ip", "netns", "exec", receiver, "iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    try:
        until(lambda: shell("ss -Hltn sport = :5201", receiver), "iperf3 listens")
        report = json.loads(shell(f"timeout 20 iperf3 -J -c {address} -t {LOAD_S} {bind}", sender))
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6
    except (subprocess.CalledProcessError, KeyError):
        return 0.0
    finally:
        server.kill()
        server.wait()


# --------------------------------------------------------------------------------------------------------------- checks


async def objects_come_and_go() -> None:
    """The contract of the objects that other kernels cannot be asked for: made, observed, kept, replaced, removed."""
    config = NetworkConfig.parse('{"Network": "10.1.0.0/16"}')
    backend = Udp(engine="kernel")

    def lease(third: int, public_ip: str) -> Lease:
        return Lease(IPNetwork(f"10.1.{third}.0/24"), LeaseAttrs(IPAddress(public_ip)))

    local = Local(config, Uplink("eth1", 2, 1500, IPAddress("192.168.90.3")), lease(72, "192.168.90.3"))
    wanted = backend.host(local) | backend.path(lease(9, "192.168.90.2"), local).state
    scope = Scope(frozenset({"flannel0"}), config.networks, "eth1", fou_ports=backend.fou_ports)
    kernel = NetlinkKernel()
    try:
        tried = await kernel.rehearse(plan(backend.rehearsal, HostState()))
        assert [str(result.error) for result in tried if result.error] == []
        assert len(await kernel.observe(scope)) == 0, "the rehearsal left something"
        assert [result.error for result in await kernel.apply(plan(wanted, HostState()))] == [None] * len(wanted)
        observed = await kernel.observe(scope)
        assert observed == wanted, f"{[str(item) for item in observed]}"
        shown = shell("ip -d link show flannel0; ip fou show; ip route")
        ends = ("encap fou", "encap-sport 8285", "encap-dport 8285", " encap-csum")
        for part in ("mtu 1472", "ipip ", "local 192.168.90.3", "ttl 64", *ends):
            assert part in shown, f"{part} in {shown}"
        made = socket.if_nametoindex("flannel0")
        take_checksums("192.168.90.3")  # as an earlier version has made it
        steps = plan(wanted, await kernel.observe(scope), scope)
        assert [(step.op, step.key.kind) for step in steps] == [("change", "link")], steps
        assert [result.error for result in await kernel.apply(steps)] == [None]
        assert await kernel.observe(scope) == wanted
        assert socket.if_nametoindex("flannel0") == made, "it was made anew, and could be changed"
        for part in (
            "port 8285 ipproto 4",
            "unreachable 10.1.0.0/16",
            "10.1.9.0/24 via 192.168.90.2 dev flannel0 proto 102 onlink",
        ):
            assert part in shown, f"{part} in {shown}"
        again = await kernel.rehearse(plan(backend.rehearsal, HostState()))
        assert [str(result.error) for result in again if result.error] == []
        other = Fou(PORT, 41)
        assert [result.error for result in await kernel.apply([Step("change", other, Fou(PORT))])] == [None]
        assert (await kernel.observe(scope)).get(other.key) == other
        steps = plan(HostState(), await kernel.observe(scope), scope)
        assert [result.error for result in await kernel.apply(steps)] == [None] * len(steps)
        assert len(await kernel.observe(scope)) == 0
        gone = await kernel.apply([Step("remove", Fou(PORT), Fou(PORT))])
        assert gone[0].error is None, "removing what is not there is success"
    finally:
        await kernel.close()


def echoes(host: str) -> int:
    """Echo requests that a host has taken in."""
    lines = [line.split() for line in shell("grep ^Icmp: /proc/net/snmp", host).splitlines()]
    return int(dict(zip(*lines, strict=True))["InEchos"])


def echo_request(source: str, destination: str) -> bytes:
    """An IPv4 packet with a ping."""

    def total(data: bytes) -> bytes:
        count = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
        while count >> 16:
            count = (count & 0xFFFF) + (count >> 16)
        return (~count & 0xFFFF).to_bytes(2, "big")

    icmp = bytes([8, 0, 0, 0, 0, 1, 0, 1])
    icmp = icmp[:2] + total(icmp) + icmp[4:]
    head = bytes([0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0]) + IPAddress(source).packed + IPAddress(destination).packed
    return head[:10] + total(head) + head[12:] + icmp


def guard(a: Host, b: Host) -> None:
    """Only what a peer sends comes in: from its subnet or from outside of the network, and into ours."""

    def send(sender: str, inner_source: str, inner_destination: str) -> None:
        with socket_in(sender, socket.SOCK_DGRAM) as sock:
            sock.sendto(echo_request(inner_source, inner_destination), (a.public_ip, PORT))

    for sender, inner_source, inner_destination, what in (
        ("c", b.inside, a.inside, "a stranger's"),
        ("b", "10.1.250.1", a.inside, "from a subnet that is not the sender's"),
        ("b", a.inside, a.inside, "from our own subnet"),
        ("b", a.public_ip, a.inside, "from our own address"),
        ("b", b.inside, a.public_ip, "to what is not in our subnet"),
        ("c", "192.168.90.77", a.inside, "a stranger's from outside"),
        ("b", b.inside, a.inside, "in: the peer's own, once more"),
        ("b", b.public_ip, a.inside, "in: the peer host's own address"),
        ("b", "192.168.90.77", a.inside, "in: a client that the peer routes"),
    ):
        before = echoes("a")
        send(sender, inner_source, inner_destination)
        send("b", b.inside, a.inside)  # comes in, behind the other
        wanted = 2 if what.startswith("in: ") else 1
        until(lambda before=before, wanted=wanted: echoes("a") >= before + wanted, "an echo request")  # type: ignore[misc]
        assert echoes("a") == before + wanted, what


def restart_under_pings(a: Host, b: Host) -> None:
    """With nothing of ours in the path, the agent may go and come."""
    words = ["ip", "netns", "exec", "a", "ping", "-n", "-i", ".1", "-W2", "-I", a.inside, b.inside]
    pings = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        b.start("kernel")
        b.await_ready()
        assert "another engine" not in b.log.read_text()
    finally:
        pings.send_signal(signal.SIGINT)
        said, _ = pings.communicate(timeout=10)
    assert " 0% packet loss" in said, said[-200:]


def c_pumps() -> float:
    """Goodput of the plainest pump in C, one packet per system call, between the same hosts."""
    program = Path(os.environ.get("PACKET_PUMP", ""))
    if not program.is_file():
        return 0.0
    pumps = []
    for host, other in (("a", "b"), ("b", "a")):
        words = [str(program), "cpump0", f"192.168.90.{NUMBER[host]}", f"192.168.90.{NUMBER[other]}", "8286", "1472"]
        pumps.append(subprocess.Popen(["ip", "netns", "exec", host, *words], stdin=subprocess.DEVNULL))
        until(lambda host=host: "cpump0" in shell("ip -br link", host), "the device is there")  # type: ignore[misc]
        shell(f"ip addr add 10.9.0.{NUMBER[host]}/24 dev cpump0; ip link set cpump0 mtu 1472 up", host)
    try:
        return goodput("a", "b", "10.9.0.2")
    finally:
        for process in pumps:
            process.terminate()
            process.wait()


def kernels(a: Host, b: Host) -> dict[str, float]:
    """Goodput of the engine and of a VXLAN made by hand, in turn: medians, after one of each that does not count."""
    for host, other in (("a", "b"), ("b", "a")):
        ends = f"local 192.168.90.{NUMBER[host]} remote 192.168.90.{NUMBER[other]}"
        shell(f"ip link add vx type vxlan id 1 {ends} dev eth1 dstport 8472", host)
        shell(f"ip addr add 10.8.0.{NUMBER[host]}/24 dev vx; ip link set vx up", host)
    found: dict[str, list[float]] = {"kernel to kernel": [], "vxlan": []}
    for _ in range(1 + ALTERNATIONS):
        found["kernel to kernel"].append(goodput("a", "b", b.inside, a.inside))
        found["vxlan"].append(goodput("a", "b", "10.8.0.2"))
    return {name: statistics.median(values[1:]) for name, values in found.items()}


@contextlib.contextmanager
def holder_of_port(host: str) -> Iterator[None]:
    """Another program has the port, at an address that only the kernel's engine would want, too."""
    shell(f"ip fou del port {PORT}", host)
    program = f"import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', {PORT})); time.sleep(60)"
    holder = subprocess.Popen(["ip", "netns", "exec", host, sys.executable, "-c", program])
    try:
        until(lambda: f"127.0.0.1:{PORT}" in shell("ss -lun", host), "the port is taken")
        yield
    finally:
        holder.kill()
        holder.wait()


def engine_of(host: Host) -> str:
    """Which one is seen to carry packets."""
    shown = shell("ip -d link show flannel0; ip fou show", host.name)
    kernel = "ipip" in shown and f"port {PORT} ipproto 4" in shown
    userspace = "tun" in shown and "ipproto" not in shown
    return "kernel" if kernel else "userspace" if userspace else shown


def main() -> None:
    say("kernel", os.uname().release)
    make_hosts()
    with check("objects"):
        pid = os.fork()
        if not pid:
            try:
                enter("c")
                uvloop.run(objects_come_and_go())
                os._exit(0)
            except BaseException:  # noqa: BLE001 - the edge of a process
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
    etcd = start_etcd()
    a, b = Host("a"), Host("b")
    figures: dict[str, float] = {}
    try:
        for host, engine in ((a, "auto"), (b, "kernel")):
            host.file.parent.mkdir()
            host.log.touch()
            host.start(engine)
        for host in (a, b):
            host.await_ready()
            finish_checksums(host, before_the_wire=True)
        had = str(b.subnet)
        with check("auto is the kernel"):
            assert "udp engine: kernel" in a.log.read_text()
            assert [engine_of(host) for host in (a, b)] == ["kernel", "kernel"]
        with check("kernel to kernel"):
            meet(a, b)
        with check("a subnet of nobody is unreachable"):
            assert "No route to host" in shell("ip route get 10.1.250.1 2>&1; true", "a")
        with check("guard"):
            guard(a, b)
        with check("a restart loses no packet"):
            restart_under_pings(a, b)
        with check("goodput of kernels"):
            for host in (a, b):
                finish_checksums(host, before_the_wire=False)
            figures |= kernels(a, b)
            figures["packet pump in C"] = c_pumps()
            for host in (a, b):
                finish_checksums(host, before_the_wire=True)
        with check("from kernel to userspace"):
            b.start("userspace")
            b.await_ready()
            assert (str(b.subnet), engine_of(b)) == (had, "userspace"), f"{b.subnet} {engine_of(b)}"
        with check("kernel and userspace"):
            meet(a, b)
        with check("on a wire userspace reads many datagrams at once"):
            outer_checksums(a, b, repaired=False)
        with check("outer checksums that somebody took away are back"):
            outer_checksums(a, b, repaired=True)
        with check("goodput across"):
            figures["kernel to userspace"] = goodput("a", "b", b.inside, a.inside)
            figures["userspace to kernel"] = goodput("b", "a", a.inside, b.inside)
        with check("goodput in user space"):
            a.start("userspace")
            a.await_ready()
            meet(a, b)
            figures["userspace to userspace"] = goodput("a", "b", b.inside, a.inside)
        with check("back to the kernel"):
            b.start("kernel")
            b.await_ready()
            assert (str(b.subnet), engine_of(b)) == (had, "kernel"), f"{b.subnet} {engine_of(b)}"
            meet(a, b)
        b.stop()
        with check("a port that is taken"), holder_of_port("b"):
            b.start("kernel")
            b.await_ready()
            assert "UDP port 8285 is taken" in b.log.read_text()
            assert engine_of(b) == "userspace"
            meet(a, b)
        for name, value in figures.items():
            say("figure", f"{name}: {value:.0f} Mbit/s, {value / figures['vxlan']:.2f} of vxlan")
    finally:
        finish(etcd, a, b)
    say("end")


if __name__ == "__main__":
    assert shutil.which("iperf3")
    main()
