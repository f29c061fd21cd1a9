"""What goes wrong in a real network? One fault each, put into a lab that stands and taken out again, to learn from or to test with.

A fault is written as an operator would type it, in one box of the lab, with words in capitals for what the lab knows:

    DEV PORT BRIDGE     the overlay's device and UDP port, the containers' bridge; DEVICE: the device as sysctl(8) writes it
    OWNADDR OWNNET      the bridge's address, like 10.1.69.1/24, and this host's subnet
    PEERNET PEERPART    the other host's subnet, and the half of it in which its containers are
    PEERIP PEER HOST    the other host's address on the private segment, its name, and this host's
    AGENT SUBNETFILE    the agent's process, and the file that it writes
    ETCDCTL KEY OWNIP   a command for etcd, the key of this host's lease, its address
    KEPT                a file for what is to be put back

What was put in is written down in the lab's directory, so that another process can take it out.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from flannelpy.explain.places import SOCKET
from netns_lab.errors import LabError
from netns_lab.etcd import binary
from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab


class Traffic(StrEnum):
    """What containers of the two hosts notice, once the agents have done what they can."""

    FLOWS = "flows"
    LARGE_DEAD = "large packets die"
    DEAD = "dead"


FLOWS, LARGE_DEAD, DEAD = Traffic


@dataclass(frozen=True, slots=True)
class Fault:
    """``says``: what is done, in one line. ``inject`` and ``heal`` are for sh(1), in the box ``where``: host, net (the switch),
    etcd or container. An empty ``heal``: the agent puts it right by itself. ``backends``: where it makes sense; empty: everywhere.
    """

    name: str
    says: str
    traffic: Traffic
    inject: str
    heal: str = ""
    where: str = "host"
    backends: tuple[str, ...] = ()

    def fits(self, backend: str) -> bool:
        """Whether it can be put into a lab with this backend."""
        return not self.backends or backend in self.backends


ENCAPSULATED = ("vxlan", "udp")
_TABLE = "labfault"


def dropping(
    name: str, says: str, traffic: Traffic, hook: str, rule: str, *, where: str = "host", backends: tuple[str, ...] = ()
) -> Fault:
    """Packets that a firewall drops, in a table of its own."""
    family = "bridge" if where == "net" else "inet"
    table = f"{family} {_TABLE}_{name.replace('-', '_')}"
    chain = f"add chain {table} c {{ type filter hook {hook} priority 10; }}"
    inject = f"nft 'add table {table}; {chain}; add rule {table} c {rule} drop'"
    return Fault(name, says, traffic, inject, f"nft delete table {table}", where, backends)


FAULTS = (
    dropping(
        "port-filtered", "a firewall on the host drops the overlay's port", DEAD, "input", "udp dport PORT", backends=ENCAPSULATED
    ),
    dropping(
        "port-filtered-on-the-way",
        "the network between the hosts drops the overlay's port",
        DEAD,
        "forward",
        "udp dport PORT",
        where="net",
        backends=ENCAPSULATED,
    ),
    dropping(
        "one-way",
        "what the host sends to its peer never leaves",
        DEAD,
        "output",
        "ip daddr PEERIP udp dport PORT",
        backends=ENCAPSULATED,
    ),
    dropping("peer-blocked", "a firewall drops all that the peer sends", DEAD, "input", "ip saddr PEERIP", backends=ENCAPSULATED),
    Fault(
        "forward-drop",
        "the host's firewall forwards only what it knows, as a hardened host's does",
        DEAD,
        "nft 'add table inet labfault_forward; add chain inet labfault_forward c"
        " { type filter hook forward priority 10; policy drop; }'",
        "nft delete table inet labfault_forward",
    ),
    dropping(
        "mtu-black-hole",
        "the network drops packets over 1400 bytes and tells nobody",
        LARGE_DEAD,
        "forward",
        "ether type ip ip length > 1400",
        where="net",
    ),
    Fault(
        "ip-forward-off",
        "the kernel of the host forwards no packets",
        DEAD,
        "cat /proc/sys/net/ipv4/ip_forward > KEPT && echo 0 > /proc/sys/net/ipv4/ip_forward",
        "cat KEPT > /proc/sys/net/ipv4/ip_forward",
    ),
    Fault(
        "bridge-elsewhere",
        "the bridge has a subnet that is not the lease's",
        DEAD,
        "ip addr del OWNADDR dev BRIDGE && ip addr add 172.17.0.1/16 dev BRIDGE",
        "ip addr del 172.17.0.1/16 dev BRIDGE && ip addr add OWNADDR brd + dev BRIDGE",
    ),
    Fault(
        "longer-route",
        "a more specific route of somebody else leads part of the peer's subnet astray",
        DEAD,
        "ip route add PEERPART via 10.0.2.2 dev eth0",
        "ip route del PEERPART via 10.0.2.2 dev eth0",
    ),
    Fault(
        "policy-rule",
        "a rule sends what goes to the peer's subnet through a table that leads nowhere",
        DEAD,
        "ip route add blackhole default table 66 && ip rule add to PEERNET lookup 66 pref 100",
        "ip rule del to PEERNET lookup 66 pref 100 && ip route flush table 66",
    ),
    Fault("uplink-down", "the uplink is switched off", DEAD, "ip link set eth1 down", "ip link set eth1 up"),
    Fault("cable-pulled", "the uplink's cable is pulled", DEAD, "ip link set HOST down", "ip link set HOST up", "net"),
    Fault(
        "no-gateway",
        "a container has no default route",
        DEAD,
        "ip route show default > KEPT && ip route flush default",
        "ip route add $(cat KEPT)",
        "container",
    ),
    Fault("device-deleted", "somebody deletes the overlay's device", FLOWS, "ip link del DEV", backends=("vxlan",)),
    Fault("device-down", "somebody switches the overlay's device off", FLOWS, "ip link set DEV down", backends=ENCAPSULATED),
    Fault(
        "mac-changed",
        "somebody gives the overlay's device another MAC",
        FLOWS,
        "ip link set DEV address 02:00:00:00:00:99",
        backends=("vxlan",),
    ),
    Fault(
        "neighbours-flushed",
        "somebody flushes the overlay's neighbours",
        FLOWS,
        "ip neigh flush dev DEV nud permanent",
        backends=("vxlan",),
    ),
    Fault(
        "routes-flushed",
        "somebody flushes the routes of the overlay",
        FLOWS,
        "ip route flush proto 102",
        backends=("vxlan", "host-gw"),
    ),
    Fault("tables-flushed", "somebody reloads the firewall: nft flush ruleset", FLOWS, "nft flush ruleset"),
    Fault("subnet-file-deleted", "somebody deletes subnet.env", FLOWS, "rm SUBNETFILE"),
    Fault("agent-hung", "the agent stands still", FLOWS, "kill -STOP AGENT", "kill -CONT AGENT"),
    dropping("etcd-unreachable", "a firewall before etcd drops what comes", FLOWS, "input", "tcp dport 2379", where="etcd"),
    Fault("lease-deleted", "somebody deletes the host's lease in etcd", FLOWS, "ETCDCTL del KEY", where="etcd"),
    Fault(
        "address-twice",
        "another lease names this host's address",
        FLOWS,
        'ETCDCTL put -- PREFIX/subnets/10.1.254.0-24 \'{"PublicIP":"OWNIP","PublicIPv6":null}\'',
        "ETCDCTL del PREFIX/subnets/10.1.254.0-24",
        "etcd",
    ),
    Fault(
        "host-off",
        "a host that held a lease is gone for good",
        FLOWS,
        "ETCDCTL put -- PREFIX/subnets/10.1.253.0-24 "
        '\'{"PublicIP":"192.168.50.253","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:fd:00"}}\'',
        "ETCDCTL del PREFIX/subnets/10.1.253.0-24",
        "etcd",
        ("vxlan",),
    ),
)
"""Worst first: those that kill all traffic, then some, then none."""


def every() -> Mapping[str, Fault]:
    """All faults by their names, also those that are there to be found only."""
    from netns_lab.more_faults import MORE  # it is written with what is in here

    return {fault.name: fault for fault in (*FAULTS, *MORE)}


DEVICES = {"vxlan": "flannel.1", "udp": "flannel0"}
PORTS = {"vxlan": "8472", "udp": "8285"}


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that is in a lab: by its name, on which host, and how it is taken out."""

    name: str
    host: str
    box: str
    heal: str


def fault(name: str) -> Fault:
    """By its name. Raises LabError that tells which there are."""
    known = every()
    if name not in known:
        raise LabError(f"no fault {name}: expected one of {', '.join(known)}")
    return known[name]


async def inject(lab: Lab, which: Fault, on: Host) -> Injected:
    """Put a fault into the lab, on or around a host. Raises LabError where it is there already or cannot be had."""
    if not which.fits(lab.topology.backend):
        raise LabError(f"{which.name} is of {' and '.join(which.backends)}; this lab has {lab.topology.backend}")
    found = injected(lab)
    if any(each.name == which.name for each in found):
        raise LabError(f"{which.name} is in this lab already; heal it first")
    words = known(lab, which, on)
    box = {"host": on.name, "container": on.containers[0].name if on.containers else ""}.get(which.where, which.where)
    made = Injected(which.name, on.name, box, filled(which.heal, words))
    _keep(lab, [*found, made])  # first: what is half done is taken out again, too
    try:
        await lab.box(box).exec("sh", "-ec", filled(which.inject, words))
    except BaseException:
        await lab.box(box).attempt("sh", "-c", made.heal or ":")
        _keep(lab, found)
        raise
    return made


async def heal(lab: Lab, name: str | None = None) -> list[Injected]:
    """Take one fault or all of them out; returns those that were. What an agent puts right stays in while it does not run.

    Raises LabError, also where the one that is named stays.
    """
    found = injected(lab)
    chosen = [each for each in found if name in (None, each.name)]
    if name is not None and not chosen:
        raise LabError(f"{name} is not in this lab; {', '.join(each.name for each in found) or 'nothing'} is")
    for each in reversed(chosen):
        if each.heal:
            await lab.box(each.box).exec("sh", "-ec", each.heal)
    out = [each for each in chosen if each.heal or _runs(lab.host(each.host))]
    _keep(lab, [each for each in found if each not in out])
    if name is not None and not out:
        raise LabError(missing(chosen[0]))
    return out


def _runs(host: Host) -> bool:
    """Is an agent there, whoever started it?"""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(host.run_dir / SOCKET))
        return True
    return False


def missing(left: Injected) -> str:
    """What is still to be done about a fault that stays."""
    return f"{left.name} stays in {left.box} ({fault(left.name).says}): the agent of {left.host} puts that right, and does not run"


def injected(lab: Lab) -> list[Injected]:
    """What is in the lab now, the oldest first."""
    try:
        return [Injected(**each) for each in json.loads(_book(lab).read_text())]
    except FileNotFoundError:
        return []


def _book(lab: Lab) -> Path:
    return lab.directory / "faults.json"


def _keep(lab: Lab, found: list[Injected]) -> None:
    _book(lab).write_text(json.dumps([asdict(each) for each in found]))


def known(lab: Lab, which: Fault, on: Host) -> dict[str, str]:
    """What the words in capitals stand for."""
    peer = next((host for host in lab.hosts if host is not on), None)
    if peer is None:
        raise LabError("a fault needs a lab of two hosts at the least")
    backend, peer_net = lab.topology.backend, peer.subnet
    return {
        "DEV": DEVICES.get(backend, ""),
        "PORT": PORTS.get(backend, ""),
        "DEVICE": DEVICES.get(backend, "").replace(".", "/"),
        "OWNNET": str(on.subnet),
        "BRIDGE": lab.topology.bridge,
        "OWNADDR": on.subnet_env()["FLANNEL_SUBNET"],
        "PEERNET": str(peer_net),
        "PEERPART": str(next(iter(peer_net.subnet(peer_net.prefixlen + 1)))),
        "PEERIP": str(peer.address),
        "PEER": peer.name,
        "HOST": on.name,
        "OWNIP": str(on.address),
        "AGENT": str(lab.running_agents().get(on.name, "")),
        "SUBNETFILE": str(on.subnet_file),
        "ETCDCTL": f"ETCDCTL_API=3 {binary('etcdctl')} --endpoints={','.join(lab.etcd.urls)}",
        "KEY": on.lease_key,
        "PREFIX": PREFIX,
        "KEPT": str(lab.directory / f"fault-{which.name}"),
    }


def filled(text: str, words: Mapping[str, str]) -> str:
    """The text with what the words in capitals stand for."""
    return re.sub(r"\b[A-Z]{3,}\b", lambda found: words.get(found[0], found[0]), text)
