"""Which command names the cause of which fault? A table, and what the commands really say of each.

A cause is looked for as an operator would: he types ``flannelpy status``, ``trace`` or ``events`` on either of the two hosts, and
reads the first lines. The words that have to be there are in the words of ``netns_lab.faults``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime

from netns_lab import faults
from netns_lab.cli import environment
from netns_lab.errors import LabError
from netns_lab.faults import Fault
from netns_lab.host import Host
from netns_lab.lab import Lab

FIRST_LINES = 24
"""So much of a command's output is read: a small terminal holds it."""
WIDE = "132"
STATUS, TRACE, EVENTS = "status", "trace", "events"


@dataclass(frozen=True, slots=True)
class Cause:
    """``name``: of the fault; ``command``: of flannelpy's, which names it; ``words``: in its first lines, on one of the hosts.
    ``quiet``: packets die, and status calls it no error all the same, and why.
    """

    name: str
    command: str
    words: tuple[str, ...]
    quiet: str = ""

    @property
    def fault(self) -> Fault:
        """As it is put in and taken out."""
        return faults.fault(self.name)


@dataclass(frozen=True, slots=True)
class Named:
    """``host``: where the command was typed; ``lines``: what it said; ``after_s``: since the fault began."""

    cause: Cause
    host: str
    typed: str
    lines: tuple[str, ...]
    after_s: float


CAUSES = (
    Cause("port-filtered", STATUS, ("UDP 8472 from PEERIP on eth1", "nft delete rule inet labfault_port_filtered")),
    Cause("port-filtered-on-the-way", STATUS, ("UDP 8472 is dropped", "firewall")),
    Cause("one-way", STATUS, ("UDP 8472 to PEERIP on eth1", "nft delete rule inet labfault_one_way")),
    Cause("peer-blocked", STATUS, ("UDP 8472 from PEERIP on eth1", "nft delete rule inet labfault_peer_blocked")),
    Cause("forward-drop", STATUS, ("labfault_forward", "nft insert rule inet labfault_forward")),
    Cause("mtu-black-hole", STATUS, ("packets of 1450 bytes are lost, small ones pass", "MTU")),
    Cause("ip-forward-off", STATUS, ("net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1")),
    Cause("bridge-elsewhere", STATUS, ("BRIDGE has 172.17.0.1/16", "docker-opts"), "it may be meant so"),
    Cause("longer-route", STATUS, ("PEERPART", "ip route del PEERPART")),
    Cause("policy-rule", STATUS, ("PEERNET", "ip rule del pref 100 from all to PEERNET lookup 66")),
    Cause("uplink-down", STATUS, ("the uplink eth1", "ip link set")),
    Cause("cable-pulled", STATUS, ("the uplink eth1 has no carrier", "cable")),
    Cause("device-forwarding-off", STATUS, ("net.ipv4.conf.flannel/1.forwarding is 0", "sysctl -w")),
    Cause("bridge-forwarding-off", STATUS, ("net.ipv4.conf.BRIDGE.forwarding is 0", "sysctl -w")),
    Cause("strict-reverse-path", STATUS, ("PEERPART", "ip route del PEERPART")),
    Cause("bridge-stale", STATUS, ("BRIDGE has 10.1.251.1/24", "systemctl restart docker")),
    Cause("bridge-down", STATUS, ("BRIDGE is switched off", "ip link set BRIDGE up")),
    Cause("bridge-mtu", STATUS, ("BRIDGE has MTU 1500", "ip link set BRIDGE mtu 1450")),
    Cause("route-blackhole", STATUS, ("PEERNET", "go nowhere", "ip route show table all")),
    Cause("route-unreachable", STATUS, ("PEERNET", "go nowhere", "ip route show table all")),
    Cause("route-prohibit", STATUS, ("PEERNET", "go nowhere", "ip route show table all")),
    Cause("peer-blackhole", STATUS, ("no way to PEERIP", "ip route get PEERIP")),
    Cause("peer-by-another-link", STATUS, ("PEERIP", "not by the uplink eth1", "ip route del")),
    Cause("rule-by-source", STATUS, ("ip rule del pref 100 from OWNNET lookup 66",)),
    Cause("rule-by-bridge", STATUS, ("ip rule del pref 100 from all iif BRIDGE lookup 66",)),
    Cause("rule-prohibit", STATUS, ("PEERNET", "ip rule del pref 100 from all to PEERNET prohibit")),
    Cause("wrong-neighbour", STATUS, ("nor does its host answer",)),
    Cause("iptables-from-containers", STATUS, ("OWNNET", "chain FORWARD", "nft delete rule ip filter FORWARD")),
    Cause("iptables-to-containers", STATUS, ("OWNNET", "chain FORWARD", "nft delete rule ip filter FORWARD")),
    Cause("nft-from-containers", STATUS, ("OWNNET", "nft delete rule inet labfault_nft_from_containers")),
    Cause("nft-to-containers", STATUS, ("OWNNET", "nft delete rule inet labfault_nft_to_containers")),
    Cause("nft-by-device", STATUS, ("OWNNET", "nft delete rule inet labfault_nft_by_device")),
    Cause("large-dropped", STATUS, ("large packets", "nft delete rule inet labfault_large_dropped")),
    Cause("address-gone", STATUS, ("eth1",)),
    Cause("agent-hung", STATUS, ("no answer within",)),
    Cause("etcd-unreachable", STATUS, ("etcd does not answer",)),
    Cause("host-off", STATUS, ("192.168.50.253", "is the host down?")),
    Cause("other-vni", STATUS, ("VNI 7: expected ours, 1",)),
    Cause("other-backend", STATUS, ("its backend is host-gw, ours is vxlan",)),
    Cause("no-mac", STATUS, ("10.1.252.0/24", "VtepMAC")),
    Cause("outside-network", STATUS, ("10.9.7.0/24", "outside the network")),
    Cause("no-lease", STATUS, ("hello", "etcdctl del")),
    Cause("no-json", STATUS, ("10.1.252.0", "JSON")),
    Cause("config-broken", STATUS, ("network config", "JSON")),
    Cause("config-missing", STATUS, ("network config", "missing")),
    Cause("device-deleted", EVENTS, ("repaired link add DEV",)),
    Cause("device-down", EVENTS, ("repaired link replace DEV",)),
    Cause("mac-changed", EVENTS, ("repaired link replace DEV",)),
    Cause("neighbours-flushed", EVENTS, ("repaired neigh",)),
    Cause("routes-flushed", EVENTS, ("repaired route", "PEERNET")),
    Cause("tables-flushed", EVENTS, ("repaired set add inet",)),
    Cause("lease-deleted", EVENTS, ("lost our lease OWNNET",)),
)
"""In the order of the page: what kills packets first. A container's own routes are not here: no agent looks into it."""

BY_NAME = {cause.name: cause for cause in CAUSES}


def typed(lab: Lab, cause: Cause) -> str:
    """What is typed: ``flannelpy status``."""
    words = {STATUS: STATUS, TRACE: f"{TRACE} {lab.container('c2').address}", EVENTS: f"{EVENTS} --since 5m"}
    return f"flannelpy {words[cause.command]}"


async def said(lab: Lab, host: Host, command: str, since: str) -> list[str]:
    """The first lines of what a command says there, on both of its outputs; of events those since then, in local time."""
    known = {**environment(lab, host.name), "COLUMNS": WIDE}
    settings = [f"{name}={value}" for name, value in known.items()]
    outcome = await host.attempt("env", *settings, *command.split(), timeout_s=60)
    lines = (outcome.stdout + outcome.stderr).splitlines()
    return [line for line in lines if EVENTS not in command or line >= since][:FIRST_LINES]


async def look_for(lab: Lab, cause: Cause, within_s: float) -> Named:
    """Put the fault in, on or around h1, and type the command on both hosts until it names the cause; it is for others to heal.

    Raises LabError after ``within_s``, with what was said last.
    """
    known = faults.known(lab, cause.fault, lab.host(1))
    words = tuple(faults.filled(word, known) for word in cause.words)
    began, since, command = time.monotonic(), f"{datetime.now():%Y-%m-%d %H:%M:%S}", typed(lab, cause)
    await faults.inject(lab, cause.fault, lab.host(1))
    while True:
        seen = {}
        for host in lab.hosts[:2]:
            lines = seen[host.name] = await said(lab, host, command, since)
            whole = " ".join(" ".join(lines).split())
            if all(word in whole for word in words):
                return Named(cause, host.name, command, tuple(lines), time.monotonic() - began)
        if time.monotonic() > began + within_s:
            raise LabError(f"{cause.name}: {command} has not said {words} within {within_s:g} s: {seen}")
        await asyncio.sleep(0.3)


async def errors(lab: Lab) -> list[str]:
    """What ``flannelpy status`` calls an error, on any host; also that nobody answers."""
    found = []
    for host in lab.hosts:
        status = await host.status()
        found += [each["text"] for each in status.get("conditions", ()) if each["severity"] == "error"]
        found += [f"{host.name}: no agent answers"] if not status else []
    return found


async def wrong(lab: Lab) -> list[str]:
    """What is said to be wrong on any host, however little."""
    found = []
    for host in lab.hosts:
        status = await host.status()
        found += [f"{host.name}: {each['text']}" for each in status.get("conditions", ()) if each["severity"] != "info"]
        found += [f"{host.name}: not ready"] if not status.get("ready") else []
        found += [f"{host.name}: {peer['PublicIP']} {peer['probe']}" for peer in status.get("peers", ()) if not _reached(peer)]
    return found


def _reached(peer: dict[str, dict[str, str] | None]) -> bool:
    return (peer["probe"] or {}).get("state") == "reachable"
