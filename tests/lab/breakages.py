"""What may go wrong with packets between two hosts, at random: a fault of the lab's, or what somebody types into ip, nft or sysctl.

Of the words in capitals, ``netns_lab.faults`` knows some; here are also OWNNET (the subnet of the host where it happens), C1 and C2
(the containers' addresses). What happens on the other host speaks of subnets only: this host's echo requests come from another
address than the container's packets, so that a rule there for one container is nothing that can be seen from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from netns_lab import faults
from netns_lab.faults import DEVICES, FAULTS, PORTS
from netns_lab.host import Host
from netns_lab.lab import Lab

EVERYWHERE = (
    "ip saddr OWNNET",
    "ip daddr OWNNET",
    "ip saddr PEERNET",
    "ip daddr PEERNET",
    "ip saddr != 10.1.0.0/16",
    "ip saddr { OWNNET, 192.0.2.0/24 }",
    "iifname BRIDGE",
    "oifname BRIDGE",
    "iifname DEV",
    "oifname DEV",
    'iifname "dock*"',
    "iifname eth1",
    "oifname eth1",
    "ip daddr PEERIP",
    "ip saddr PEERIP",
    "udp dport PORT",
    "udp dport 53",
    "udp dport 8000-9000",
    "tcp dport 22",
    "tcp dport != 22",
    "meta l4proto udp",
    "ip protocol icmp",
    "icmp type echo-request",
    "icmp type echo-reply",
    "meta length > 1000",
    "meta length < 60",
    "ip6 saddr fd00::/8",
    "meta mark 0x77",
    "ct state invalid",
)
HERE = (
    *EVERYWHERE,
    "ip saddr C1",
    "ip daddr C1",
    "ip saddr C2",
    "ip daddr C2",
    "ip saddr . ip daddr { C1 . C2 }",
    "ip daddr 10.1.0.0-10.1.255.255",
    "ct state new ip saddr OWNNET",
    "ct state established ip daddr OWNNET",
)
ROUTES = (
    ("ip route add PEERPART via 10.0.2.2 dev eth0", "ip route del PEERPART via 10.0.2.2 dev eth0"),
    ("ip route add blackhole PEERPART", "ip route del blackhole PEERPART"),
    ("ip route add unreachable PEERPART", "ip route del unreachable PEERPART"),
    ("ip route add prohibit C2/32", "ip route del prohibit C2/32"),
    ("ip route add blackhole PEERIP/32", "ip route del blackhole PEERIP/32"),
    ("ip route add PEERIP/32 via 10.0.2.2 dev eth0", "ip route del PEERIP/32 via 10.0.2.2 dev eth0"),
    ("ip route add 198.51.100.0/24 via 10.0.2.2 dev eth0", "ip route del 198.51.100.0/24"),
    ("ip neigh replace PEERIP lladdr 02:00:00:00:00:77 nud permanent dev eth1", "ip neigh del PEERIP dev eth1"),
    ("ip link set BRIDGE down", "ip link set BRIDGE up"),
    ("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"),
    ("sysctl -qw net.ipv4.conf.BRIDGE.forwarding=0", "sysctl -qw net.ipv4.conf.BRIDGE.forwarding=1"),
    ("sysctl -qw net.ipv4.conf.all.rp_filter=1", "sysctl -qw net.ipv4.conf.all.rp_filter=0"),
    ("iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT"),
    ("iptables-nft -I FORWARD -s OWNNET -p icmp -j DROP", "iptables-nft -D FORWARD -s OWNNET -p icmp -j DROP"),
    ("iptables-nft -A FORWARD -d OWNNET -j REJECT", "iptables-nft -D FORWARD -d OWNNET -j REJECT"),
)
RULES = ("to PEERNET", "to OWNNET", "from OWNNET", "iif BRIDGE", "from 198.51.100.0/24", "fwmark 0x77")
TABLES = ("blackhole default", "unreachable default", "default via 10.0.2.2 dev eth0", "198.51.100.0/24 via 10.0.2.2 dev eth0")
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_TABLE = "labbreakage"

_NOT_SEEN = frozenset({"container", "etcd"})


@dataclass(frozen=True, slots=True)
class Breakage:
    """``fault``: the name of one of the lab's; else ``inject`` and ``heal`` for sh(1). ``on``: the host's number."""

    on: int
    inject: str = ""
    heal: str = ""
    fault: str = ""

    def __str__(self) -> str:
        return f"h{self.on}: {self.fault or self.inject}"


def at_random(random: Random, backend: str) -> Breakage:
    """One of them; the same for the same state of ``random``."""
    on = random.choice((1, 1, 1, 2))
    kind = random.choice(("fault", "nft", "nft", "nft", "route", "route", "rule"))
    if kind == "fault":
        fitting = [fault.name for fault in FAULTS if fault.fits(backend) and fault.where not in _NOT_SEEN]
        return Breakage(on, fault=random.choice(fitting))
    if kind == "nft":
        return Breakage(on, _nft(random, HERE if on == 1 else EVERYWHERE), f"nft delete table inet {_TABLE}")
    if kind == "rule":
        selector, table = random.choice(RULES), random.choice(TABLES)
        return Breakage(
            on,
            f"ip route add {table} table 66 && ip rule add {selector} lookup 66 pref 100",
            f"ip rule del {selector} lookup 66 pref 100; ip route flush table 66",
        )
    inject, heal = random.choice([pair for pair in ROUTES if on == 1 or "C2/32" not in pair[0]])
    return Breakage(on, inject, heal)


def _nft(random: Random, selectors: tuple[str, ...]) -> str:
    hook = random.choice(HOOKS)
    verdicts = ("drop", "drop", "accept", "counter", *(("reject",) if hook in ("input", "forward", "output") else ()))
    policy = random.choice(("accept", "accept", "accept", "drop"))
    lines = [f"add table inet {_TABLE}"]
    lines.append(
        f"add chain inet {_TABLE} c {{ type filter hook {hook} priority {random.choice((-150, 0, 10))}; policy {policy}; }}"
    )
    if random.random() < 0.3:
        lines.append(f"add chain inet {_TABLE} more")
        lines.append(f"add rule inet {_TABLE} more {random.choice(selectors)} {random.choice(verdicts)}")
        lines.append(f"add rule inet {_TABLE} c {random.choice(selectors)} {random.choice(('jump', 'goto'))} more")
    lines += [
        f"add rule inet {_TABLE} c {random.choice(selectors)} {random.choice(verdicts)}" for _ in range(random.choice((1, 2)))
    ]
    return f"nft '{'; '.join(lines)}'"


async def inject(lab: Lab, one: Breakage) -> None:
    """Put it in. Raises LabError."""
    host = lab.host(one.on)
    await _known(lab)
    if one.fault:
        await faults.inject(lab, faults.fault(one.fault), host)
    else:
        await host.exec("sh", "-ec", filled(one.inject, words(lab, host)))


async def heal(lab: Lab, one: Breakage) -> None:
    """Take it out again; also what was put in by half."""
    await _known(lab)
    if one.fault:
        await faults.heal(lab)
    else:
        host = lab.host(one.on)
        await host.attempt("sh", "-c", filled(one.heal, words(lab, host)))


async def _known(lab: Lab) -> None:
    """Subnets are told by a file, which one of the faults takes away until the agent has it back."""
    await lab.until(lambda: all("FLANNEL_SUBNET" in host.subnet_env() for host in lab.hosts), timeout_s=40, what="subnet files")


def words(lab: Lab, host: Host) -> dict[str, str]:
    """What the words in capitals stand for, on this host."""
    peer = next(each for each in lab.hosts if each is not host)
    backend = lab.topology.backend
    return {
        "DEV": DEVICES.get(backend, "eth1"),
        "PORT": PORTS.get(backend, "9"),
        "BRIDGE": lab.topology.bridge,
        "OWNNET": str(host.subnet),
        "PEERNET": str(peer.subnet),
        "PEERPART": str(next(iter(peer.subnet.subnet(peer.subnet.prefixlen + 1)))),
        "PEERIP": str(peer.address),
        "C1": str(lab.container("c1").address),
        "C2": str(lab.container("c2").address),
    }


def filled(text: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\b[A-Z][A-Z0-9]+\b", lambda found: known.get(found[0], found[0]), text)
