"""What does etcd hold, and how is the lab doing? Read from outside, with etcdctl and ip; shown as tables."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netns_lab.etcd import EtcdFailedError
from netns_lab.lab import PREFIX, Lab
from netns_lab.pinging import Ping

if TYPE_CHECKING:  # rich costs 60 ms; it is imported where something is shown
    from rich.table import Table


WIDE = 140


@dataclass(frozen=True, slots=True)
class ListedLease:
    """A key below ``<prefix>/subnets`` as etcdctl shows it; ``ttl_s`` None where it has no etcd lease."""

    key: str
    public_ip: str
    backend_type: str
    backend_data: str
    ttl_s: int | None

    @property
    def subnet(self) -> str:
        return self.key.rpartition("/")[2].replace("-", "/")


async def leases(lab: Lab) -> list[ListedLease]:
    """Every lease, by ``etcdctl get`` and ``etcdctl lease timetolive``, in key order. Raises EtcdFailedError."""
    text = await asyncio.to_thread(lab.etcd.ctl, "get", "--prefix", f"{PREFIX}/subnets/", "-w", "json")
    return list(await asyncio.gather(*(_lease(lab, pair) for pair in json.loads(text).get("kvs", []))))


async def _lease(lab: Lab, pair: Mapping[str, Any]) -> ListedLease:
    key = base64.b64decode(pair["key"]).decode()
    try:
        value = json.loads(base64.b64decode(pair["value"]))
    except ValueError:
        value = {}
    ttl_s = None
    if pair.get("lease"):
        answer = await asyncio.to_thread(lab.etcd.ctl, "lease", "timetolive", f"{int(pair['lease']):x}", "-w", "json")
        ttl_s = int(json.loads(answer)["ttl"])
    data = json.dumps(value["BackendData"]) if value.get("BackendData") is not None else ""
    return ListedLease(key, str(value.get("PublicIP", "")), value.get("BackendType", ""), data, ttl_s)


def show(table: Table, wide: int = WIDE) -> None:
    """Print it as wide as the terminal or COLUMNS is; a word that is wider than its column makes the lines run over."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else wide)
    console.width = max(console.width, Measurement.get(console, console.options.update(width=1000), table).minimum)
    console.print(table)


def faults_table(lab: Lab | None) -> Table:
    """Every fault: what it is, what containers notice, and where it is in this lab."""
    from rich.table import Table

    from netns_lab.faults import every, injected

    there = {each.name: each.box for each in injected(lab)} if lab is not None else {}
    table = Table()
    for column in ("fault", "what is done", "traffic", *(("in",) if there else ())):
        table.add_column(column, overflow="fold", no_wrap=column == "fault")
    for fault in every().values():
        if lab is None or fault.fits(lab.topology.backend):
            table.add_row(fault.name, fault.says, fault.traffic.value, *((there.get(fault.name, ""),) if there else ()))
    return table


def lease_table(listed: list[ListedLease]) -> Table:
    """The leases as a person reads them."""
    from rich.table import Table

    table = Table()
    for column in ("subnet", "PublicIP", "BackendType", "BackendData", "TTL"):
        addresses = column in ("subnet", "PublicIP")
        table.add_column(column, justify="right" if column == "TTL" else "left", overflow="fold", no_wrap=addresses)
    for lease in listed:
        ttl = "none" if lease.ttl_s is None else f"{lease.ttl_s} s"
        table.add_row(lease.subnet, lease.public_ip, lease.backend_type or "(udp)", lease.backend_data, ttl)
    return table


def matrix_table(lab: Lab, results: Mapping[tuple[str, str], Ping]) -> Table:
    """Round trips in milliseconds, a row for each sender; ``lost`` where nothing came back."""
    from rich.table import Table

    names = [container.name for container in lab.containers]
    table = Table()
    table.add_column("ms from")
    for name in names:
        table.add_column(name, justify="right")
    for source in names:
        table.add_row(source, *(_cell(results.get((source, target))) for target in names))
    return table


def _cell(result: Ping | None) -> str:
    if result is None:
        return "·"
    return f"[green]{result.rtt_ms:.2f}[/]" if result.ok and result.rtt_ms is not None else "[bold red]lost[/]"


def matrix_summary(results: Mapping[tuple[str, str], Ping]) -> str:
    """``6 of 6 pings came back, 0.31 ms on average``."""
    rtts = [result.rtt_ms for result in results.values() if result.ok and result.rtt_ms is not None]
    mean = f", {sum(rtts) / len(rtts):.2f} ms on average" if rtts else ""
    return f"{sum(result.ok for result in results.values())} of {len(results)} pings came back{mean}"


async def status_table(lab: Lab) -> Table:
    """A line for each host: address, agent, lease with its time to live, MTU, containers."""
    from rich.table import Table

    try:
        ttls = {lease.key: lease.ttl_s for lease in await leases(lab)} if lab.topology.etcd else {}
    except EtcdFailedError:
        ttls = {}
    running = lab.running_agents()
    table = Table()
    for column in ("host", "eth1", "agent", "subnet", "TTL", "MTU", "containers"):
        table.add_column(column, overflow="fold", no_wrap=column != "containers")
    for host in lab.hosts:
        env = host.subnet_env()
        pid = running.get(host.name)
        subnet = str(host.subnet) if "FLANNEL_SUBNET" in env else ""
        ttl = ttls.get(host.lease_key) if subnet and lab.topology.etcd else None
        addresses = [f"{each.name} {each.address}" if subnet else each.name for each in host.containers]
        table.add_row(
            host.name,
            str(host.address),
            f"pid {pid}" if pid else "not running",
            subnet or "none",
            "" if ttl is None else f"{ttl} s",
            env.get("FLANNEL_MTU", ""),
            ", ".join(addresses),
        )
    return table
