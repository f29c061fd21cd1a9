"""What carries packets between the two hosts of ``bench_udp``, and how is each way set up and taken away again?

    python -m netns_lab.bench_udp_ways make kernel 1        in a host's namespace: what an agent would have the kernel hold
    python -m netns_lab.bench_udp_ways carry 1              the same: our datapath in user space, until SIGTERM

A way has two ends, which need not be alike: udp's engines are each host's own choice.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from netns_lab.errors import LabError
from netns_lab.etcd import binary
from netns_lab.ledger import Ledger
from netns_lab.namespaces import Namespace, Process, batch, open_socket

if TYPE_CHECKING:
    from flannelpy.core.backend import Local
    from flannelpy.core.model import Lease
    from flannelpy.core.objects import HostState

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "netns-lab" / "refpump"
BUILT = ROOT / ".venv" / "cache"
FLANNELD = Path(os.environ.get("FLANNELD") or BUILT / "flanneld")
SOCKETS = Path("/run/wireguard")

PORT = 8285
WIREGUARD_PORT = 51820
DEVICE = "flannel0"
UPLINK_MTU = 1500
NETWORK = "10.99.0.0/16"
WITHIN_S = 60.0
SOL_UDP, UDP_SEGMENT = 17, 103


@dataclass(frozen=True, slots=True)
class Way:
    """How it is called, its colour in the picture, the bytes that it takes of each packet, and what each of its ends is."""

    label: str
    colour: str
    overhead: int
    ends: tuple[str, str]


WAYS: Mapping[str, Way] = {
    "direct": Way("direct route", "#8d99ae", 0, ("direct", "direct")),
    "vxlan": Way("kernel VXLAN", "#457b9d", 50, ("vxlan", "vxlan")),
    "ipip": Way("kernel ipip", "#7aa6c2", 20, ("ipip", "ipip")),
    "wireguard": Way("WireGuard", "#b56576", 80, ("wireguard", "wireguard")),
    "c": Way("C pump", "#e09f3e", 28, ("c", "c")),
    "flanneld": Way("flanneld udp", "#9e6b4a", 28, ("flanneld", "flanneld")),
    "pump": Way("userspace", "#2a9d8f", 28, ("pump", "pump")),
    "kernel": Way("kernel FOU", "#1b6f63", 28, ("kernel", "kernel")),
    "mixed": Way("FOU to userspace", "#6c9a3b", 28, ("kernel", "pump")),
}
"""In the order of the report. Of ``mixed`` the way back is from userspace to FOU."""

PUMPS = frozenset({"c", "flanneld", "pump"})
"""Ends that are processes."""


def address(number: int) -> str:
    """A host's own."""
    return f"192.0.2.{number}"


def mtu_of(kind: str) -> int:
    return UPLINK_MTU - WAYS[kind].overhead


def wireguard() -> str:
    """Who stands in for a kernel without WireGuard; empty where nobody does."""
    return shutil.which("wireguard-go", path=f"{BUILT}{os.pathsep}{os.environ['PATH']}") or ""


class Ends:
    """Both hosts, and what stands on them for a way. ``programs``: what was compiled, by name."""

    def __init__(self, ledger: Ledger, hosts: Sequence[Namespace], programs: Mapping[str, Path]) -> None:
        self._ledger = ledger
        self._hosts = hosts
        self._programs = programs

    async def missing(self, kind: str) -> str:
        """Why there cannot be this way here; empty where it can be."""
        ends, host = WAYS[kind].ends, self._hosts[0]
        if "c" in ends and "refpump" not in self._programs:
            return "no C compiler (apt-get install gcc): there are no ratios to it"
        if "flanneld" in ends and not os.access(FLANNELD, os.X_OK):
            return f"no flanneld at {FLANNELD}: make flanneld builds it (with Go), FLANNELD= names another"
        if "wireguard" in ends and not wireguard() and not await self._can(host, "wireguard"):
            return "the kernel has none, and there is no wireguard-go: make test builds it (with Go)"
        if "ipip" in ends and not await self._can(host, "ipip local 192.0.2.1 remote any ttl 64"):
            return "the kernel has no ipip devices"
        if "kernel" in ends:
            port = (await host.attempt("ip", "fou", "add", "port", str(PORT), "ipproto", "4")).code == 0
            await host.attempt("ip", "fou", "del", "port", str(PORT))
            if not port or not await self._can(host, "ipip local 192.0.2.1 remote any ttl 64 encap fou encap-dport 5"):
                return "the kernel has no FOU"
        return ""

    async def _can(self, host: Namespace, detail: str) -> bool:
        made = (await host.attempt("ip", "link", "add", "trial0", "type", *detail.split())).code == 0
        await host.attempt("ip", "link", "del", "trial0")
        return made

    async def wire(self, kind: str, on: bool, uneven: bool) -> None:
        """Have packets leave no longer than the MTU, checksummed, and gathered where they arrive, as between cards; or not.

        ``uneven``: the kernel sends no segments by a device without checksums, which no card is; then a userspace end keeps them.
        """
        for host, end in zip(self._hosts, WAYS[kind].ends, strict=True):
            tx = "on" if not on or (uneven and end == "pump") else "off"
            await host.exec("ethtool", "-K", "eth1", "tx", tx)
            await host.exec("ethtool", "-K", "eth1", "tso", "off" if on else "on", "gso", "off" if on else "on")
            await host.exec("ethtool", "-K", "eth1", "gro", "on" if on else "off")

    async def needs_checksums(self) -> bool:
        """Does UDP_SEGMENT fail where the device leaves checksums to the kernel (EIO, up to Linux 6.10)? Asked by doing it."""
        host = self._hosts[0]
        await host.exec("ethtool", "-K", "eth1", "tx", "off")
        try:
            with open_socket(host.path, socket.AF_INET, socket.SOCK_DGRAM) as trial:
                trial.sendmsg([bytes(200)], [(SOL_UDP, UDP_SEGMENT, (100).to_bytes(2, sys.byteorder))], 0, (address(2), 9))
        except OSError as error:
            if error.errno != errno.EIO:
                raise LabError(f"UDP_SEGMENT: {error.strerror}") from None
            return True
        finally:
            await host.exec("ethtool", "-K", "eth1", "tx", "on")
        return False

    # ------------------------------------------------------------------------------------------------------ standing

    async def stand(self, kind: str, pumps: list[Process]) -> None:
        """Set the way up; its processes are added to ``pumps`` as they start."""
        if "flanneld" in WAYS[kind].ends:
            pumps.append(await self._etcd())
        for number, (host, end) in enumerate(zip(self._hosts, WAYS[kind].ends, strict=True), 1):
            peer = 3 - number
            match end:
                case "direct":
                    await batch([f"route add 10.99.{peer}.0/24 via {address(peer)}"], inside=host.path)
                case "vxlan":
                    await batch(_vxlan(number, peer), inside=host.path)
                    entry = f"02:00:00:00:00:0{peer} dev vx0 dst {address(peer)} self permanent"
                    await host.exec("bridge", "fdb", "add", *entry.split())
                case "ipip":
                    await batch(_ipip(number, peer), inside=host.path)
                case "kernel" | "wireguard":
                    made = host.spawn(
                        "make", self._make(end, number), log=self._ledger.directory / f"{end}-{number}.log", lasting=False
                    )
                    if await made.wait(WITHIN_S):
                        raise LabError(f"{end} in {host.name}: {made.tail(1)}")
                case _:
                    await self._pump(host, end, number, pumps)

    async def clear(self, pumps: Sequence[Process]) -> None:
        """Take it away, whatever of it there is."""
        for pump in reversed(pumps):
            await pump.stop()
        for number, host in enumerate(self._hosts, 1):
            for device in (DEVICE, "vx0", "ip0", "wg0"):
                await host.attempt("ip", "link", "del", device)
            await host.attempt("ip", "fou", "del", "port", str(PORT))
            for route in (f"10.99.{3 - number}.0/24", NETWORK, f"unreachable {NETWORK}"):
                await host.attempt("ip", "route", "del", *route.split())
            # A worker ends a moment after the process that it was started by, and the next way wants its port.
            await until(f"a free port {PORT}", host, "sh", "-c", f"! ss -Hlun sport = :{PORT} | grep -q .")

    def _make(self, end: str, number: int) -> list[str]:
        words = [sys.executable, "-m", "netns_lab.bench_udp_ways", "make", end, str(number)]
        python = ["env", f"PYTHONPATH={ROOT}:{ROOT}/netns-lab", f"PATH={BUILT}{os.pathsep}{os.environ['PATH']}", *words]
        if end != "wireguard":
            return python
        own = self._ledger.directory / f"wireguard-{number}"  # wireguard-go has one directory of sockets for all namespaces
        own.mkdir(exist_ok=True)
        SOCKETS.mkdir(mode=0o755, exist_ok=True)
        return ["unshare", "--mount", "sh", "-c", f"mount --bind {own} {SOCKETS} && exec {shlex.join(python)}"]

    async def _pump(self, host: Namespace, end: str, number: int, pumps: list[Process]) -> None:
        match end:
            case "c":
                words = [str(self._programs["refpump"]), DEVICE, address(number), address(3 - number), str(PORT), str(mtu_of("c"))]
            case "flanneld":
                subnet = self._ledger.directory / f"flanneld-{number}.env"  # who finds one asks for that subnet again
                subnet.write_text(f"FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET=10.99.{number}.1/24\n")
                where = ("--etcd-endpoints=http://192.0.2.1:2379", "--iface=eth1", f"--subnet-file={subnet}")
                words = [str(FLANNELD), *where, "--healthz-port=0"]
            case _:
                words = [sys.executable, "-m", "netns_lab.bench_udp_ways", "carry", str(number)]
        log = self._ledger.directory / f"{end}-{number}.log"
        pumps.append(host.spawn(end, words, log=log, env={"PYTHONPATH": f"{ROOT}:{ROOT}/netns-lab"}, lasting=False))
        await until(f"{DEVICE} in {host.name}", host, "ip", "link", "show", "dev", DEVICE, among=pumps)
        if end != "flanneld":
            lines = (f"addr add 10.99.{number}.0/32 dev {DEVICE}", f"link set {DEVICE} mtu {mtu_of('pump')} up")
            await batch([*lines, f"route add {NETWORK} dev {DEVICE}"], inside=host.path)

    async def _etcd(self) -> Process:
        """flanneld's, on the first host; a network, and no lease yet."""
        host, url = self._hosts[0], "http://192.0.2.1:2379"
        data = self._ledger.directory / "etcd"
        shutil.rmtree(data, ignore_errors=True)
        urls = (f"--listen-client-urls={url}", f"--advertise-client-urls={url}", "--listen-peer-urls=http://127.0.0.1:2380")
        words = [binary(), f"--data-dir={data}", *urls, "--log-level=error"]
        etcd = host.spawn("etcd", words, log=self._ledger.directory / "etcd.log", lasting=False)
        put = (binary("etcdctl"), f"--endpoints={url}", "put", "/coreos.com/network/config")
        config = f'{{"Network": "{NETWORK}", "Backend": {{"Type": "udp", "Port": {PORT}}}}}'
        await until("etcd", host, *put, config, among=[etcd])
        return etcd


async def until(what: str, where: Namespace, *words: str, among: Sequence[Process] = ()) -> None:
    """Until the command succeeds. Raises LabError where it does not within the bound, or one ``among`` these has ended."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN_S
    while (await where.attempt(*words)).code:
        dead = next((pump for pump in among if pump.exit_code is not None), None)
        if dead is not None:
            raise LabError(f"{dead.role} ended with {dead.exit_code}: {dead.tail()}")
        if loop.time() > deadline:
            raise LabError(f"not there after {WITHIN_S:g} s: {what}")
        await asyncio.sleep(0.02)


def _vxlan(number: int, peer: int) -> list[str]:
    """As the vxlan backend has it: gateway, its MAC and the peer's address by hand, nothing learned."""
    mac = f"02:00:00:00:00:0{peer}"
    return [
        f"link add vx0 address 02:00:00:00:00:0{number} type vxlan id 1 local {address(number)} dev eth1 dstport 8472 nolearning",
        f"addr add 10.99.{number}.0/32 dev vx0",
        f"link set vx0 mtu {mtu_of('vxlan')} up",
        f"neigh add 10.99.{peer}.0 lladdr {mac} dev vx0 nud permanent",
        f"route add 10.99.{peer}.0/24 via 10.99.{peer}.0 dev vx0 onlink",
    ]


def _ipip(number: int, peer: int) -> list[str]:
    """As the ipip backend has it."""
    return [
        f"link add ip0 type ipip local {address(number)} remote any ttl inherit nopmtudisc",
        f"addr add 10.99.{number}.0/32 dev ip0",
        f"link set ip0 mtu {mtu_of('ipip')} up",
        f"route add 10.99.{peer}.0/24 via {address(peer)} dev ip0 onlink",
    ]


# ------------------------------------------------------------------------------------------------- in a host's namespace


async def make(end: str, number: int) -> None:
    """What the agent would have the kernel hold on host ``number``. Raises LabError with what is refused."""
    from flannelpy.core.objects import HostState
    from flannelpy.core.plan import plan
    from flannelpy.kernel.netlink import NetlinkKernel

    kernel = NetlinkKernel()
    try:
        for result in await kernel.apply(plan(_udp_state(number) if end == "kernel" else _wireguard_state(number), HostState())):
            if result.error is not None:
                raise LabError(f"{result.step}: {result.error}")
    finally:
        await kernel.close()


def _udp_state(number: int) -> HostState:
    from backends.udp import Udp

    backend, local = Udp(PORT, engine="kernel"), _local(number)
    return backend.host(local) | backend.path(_lease(3 - number), local).state


def _wireguard_state(number: int) -> HostState:
    from netaddr import IPAddress, IPNetwork

    from flannelpy.core.curve25519 import public_of
    from flannelpy.core.objects import Address, HostState, Link, Route
    from flannelpy.core.secret import Secret
    from flannelpy.core.wireguard import Wireguard, WireguardDevice, WireguardPeer, key_text

    peer = 3 - number
    subnet, keys = IPNetwork(f"10.99.{peer}.0/24"), (bytes([number]) * 32, bytes([peer]) * 32)
    return HostState.of(
        Link("wg0", "wireguard", mtu_of("wireguard"), detail=Wireguard()),
        WireguardDevice("wg0", WIREGUARD_PORT, Secret(keys[0])),
        WireguardPeer("wg0", key_text(public_of(keys[1])), (IPAddress(address(peer)), WIREGUARD_PORT), (subnet,)),
        Address(IPNetwork(f"10.99.{number}.0/32"), "wg0"),
        Route(subnet, dev="wg0"),
    )


async def carry(number: int) -> None:
    """Our datapath on host ``number``, as the agent would run it, until SIGTERM."""
    from backends.udp import Udp
    from flannelpy.core.backend import NoFdStore

    datapath = Udp(PORT, engine="userspace").datapath(_local(number))
    assert datapath is not None
    peer = _lease(3 - number)
    datapath.update({peer.key: peer})
    await datapath.open(NoFdStore())
    await datapath.run()


def _lease(side: int) -> Lease:
    from netaddr import IPAddress, IPNetwork

    from flannelpy.core.model import Lease, LeaseAttrs

    return Lease(IPNetwork(f"10.99.{side}.0/24"), LeaseAttrs(IPAddress(address(side))))


def _local(number: int) -> Local:
    from netaddr import IPAddress

    from flannelpy.core.backend import Local, Uplink
    from flannelpy.core.config import NetworkConfig

    here = IPAddress(address(number))
    uplink = Uplink("eth1", 2, UPLINK_MTU, address=here, public_ip=here)
    return Local(NetworkConfig.parse(f'{{"Network": "{NETWORK}"}}'), uplink, _lease(number))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", end, number]:
            uvloop.run(make(end, int(number)))
        case ["carry", number]:
            uvloop.run(carry(int(number)))
