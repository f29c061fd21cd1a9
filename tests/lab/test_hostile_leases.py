"""Does anything that is written as a lease ever cost a good peer a packet? On each backend; is it named, and is all clean after it?

c1 192.168.101.2 - h1 192.168.50.11 == vxlan, host-gw, udp, ipip, wireguard in turn == h2 192.168.50.12 - c2 192.168.102.2
                   |                                                              etcd at 192.168.50.5, and a hundred keys
                   +-- 192.168.9.9/24 of its own, gateway 192.168.50.254, resolver 192.168.60.53: all inside Network
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab import hostile_support as hostile
from tests.lab.agent_support import SUBNETS, Log, lab_name, losing_nothing, no_traceback, remember_subnet, until  # noqa: F401
from tests.lab.host_support import change, memory_mb, told, until_they_meet
from tests.lab.wireguard_support import told as wireguard
from tests.lab.wireguard_support import wireguard_go  # noqa: F401

BACKENDS = [
    pytest.param(backend, marks=pytest.mark.topology(hosts=2, backend=backend)) for backend in ("vxlan", "host-gw", "udp", "ipip")
]
LOG_BYTES = 100_000
MEMORY_MB = 300
AT_ONCE = 20
"""Operations in a transaction."""
READY_S = SETTLED_S = 240.0
"""Seconds: in a guest without KVM everything takes twenty times as long, and more where its host is busy."""
LATE = ("192.168.250.0", "192.168.50.190", "02:00:00:00:00:5a", base64.b64decode(hostile.public_key(90)).hex())
"""Subnet, address, MAC and public key of a good peer that comes after them."""

pytestmark = pytest.mark.timeout(1000)


def write(lab: Lab, pairs: Mapping[str, str]) -> None:
    _transactions(lab, [f"put {json.dumps(key)} {json.dumps(value)}" for key, value in pairs.items()])


def take_away(lab: Lab, keys: Iterable[str]) -> None:
    _transactions(lab, [f"del {json.dumps(key)}" for key in keys])


def _transactions(lab: Lab, lines: list[str]) -> None:
    """Few, within etcd's bounds of 128 operations and 1.5 MiB."""
    together: list[str] = []
    for line in [*lines, ""]:
        if not line or len(together) == AT_ONCE or sum(map(len, together)) + len(line) > 1_300_000:
            lab.etcd.ctl("txn", stdin="\n" + "\n".join(together) + "\n\n\n")
            together = []
        together.append(line)


async def start(lab: Lab, backend: str, folder: Path) -> None:
    """Both hosts, in the midst of what must never go into the overlay."""
    one = lab.host(1)
    if backend == "ipip":  # where it is there, tunl0 has the ends that are not named
        if (await one.attempt("ip", "link", "add", "try0", "type", "ipip", "local", "127.0.0.9")).code:
            pytest.skip("this machine's kernel has no ipip; tests/kernels has it in a guest")
        await change(one, "link del try0")
    await change(one, f"address add {hostile.ANOTHER}/24 dev eth0", f"route replace default via {hostile.GATEWAY} dev eth1")
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {hostile.RESOLVER}\n")
    await lab.put_config({"Network": hostile.NETWORK, "SubnetMin": "192.168.100.0", "Backend": {"Type": backend}})
    for host in lab.hosts:
        remember_subnet(host, f"192.168.10{host.plan.number}.0/24", hostile.NETWORK)
        host.bound["/etc/resolv.conf"] = resolver
        host.launch_agent()
    for host in lab.hosts:
        await host.agent.ready(READY_S)
    await lab.connect_containers()
    await until_they_meet(lab, backend)


async def states(host: Host) -> dict[str, str]:
    """What becomes of each lease, by its key below ``subnets/``."""
    return {peer["key"]: peer["state"] for peer in (await told(host)).get("peers", ())}


async def texts(host: Host) -> list[str]:
    return sorted(each["text"] for each in (await told(host)).get("conditions", ()))


async def ours(host: Host) -> list[str]:
    """What the kernel holds: routes but its own, neighbours, FDB entries, rules without their counters; and peers of wireguard."""
    asked = (
        "ip route show table all; ip -6 route show table all; ip neigh show nud permanent; bridge fdb show; nft -st list ruleset"
        r" | sed 's/ packets [0-9]* bytes [0-9]*//'"
    )
    lines = (line.strip() for line in (await host.exec("sh", "-c", asked)).splitlines())
    peers = [f"{name} {value}" for name, value in await wireguard(host) if name in ("public_key", "allowed_ip", "endpoint")]
    return sorted([*(line for line in lines if "proto kernel" not in line), *peers])


def unnamed(names: Iterable[str], conditions: Iterable[str]) -> list[str]:
    """The keys below ``subnets/`` that no condition names, as a key or as the subnet that it stands for; but for those that claim
    our own subnet or address, of which one is named at a time.
    """
    together = "\n".join(conditions)

    def is_named(name: str) -> bool:
        key = (name if name.isprintable() else name.encode("unicode_escape").decode())[:40]
        return key in together or f"{key.removeprefix('0.0.0.0-0&').replace('-', '/')} at" in together

    return [name for name in names if not is_named(name) and not name.startswith(hostile.OURS)]


def told_of(lab: Lab, host: Host) -> str:
    """Who a host is by its own lease: its MAC or public key; nothing where its backend has no such thing."""
    data = json.loads(lab.etcd.get(f"{SUBNETS}/192.168.10{host.plan.number}.0-24")).get("BackendData") or {}
    return str(data.get("VtepMAC", data.get("PublicKey", "")))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_hostile_leases_cost_no_peer_anything_are_named_and_leave_nothing(lab: Lab, backend: str, tmp_path: Path) -> None:
    await start(lab, backend, tmp_path)
    await endure(lab, backend)


@pytest.mark.topology(hosts=2)
@pytest.mark.usefixtures("wireguard_go")
async def test_hostile_leases_by_wireguard(lab: Lab, tmp_path: Path) -> None:
    await start(lab, "wireguard", tmp_path)
    await endure(lab, "wireguard")


async def endure(lab: Lab, backend: str) -> None:
    one, two = lab.hosts
    bad = hostile.leases(backend, told_of(lab, two), told_of(lab, one))
    names = [key.removeprefix(f"{SUBNETS}/") for key in bad]
    assert len(names) >= 64
    late = {f"{SUBNETS}/192.168.250.0-24": hostile.value(backend, 90)}
    pid, log = one.agent.pid, Log.from_now(one)
    before, kernel = await texts(one), await ours(one)
    good = {"192.168.102.0-24": "in-sync"}
    async with losing_nothing(lab, "c1", "c2"):
        write(lab, bad)
        write(lab, late)
        seen: list[object] = []

        async def all_heard() -> bool:
            conditions = await texts(one)
            peers = [name for name, state in (await states(one)).items() if state == "in-sync"]
            seen[:] = peers, unnamed(names, conditions), [text for text in conditions if "claim one subnet" in text][1:]
            return seen == [["192.168.102.0-24", "192.168.250.0-24"], [], []]

        await until(all_heard, SETTLED_S, "none of them is a peer, and each is named", lambda: (seen, log.text[-2000:]))
        for address in ("192.168.50.5", hostile.GATEWAY, hostile.RESOLVER):
            assert "dev eth1" in await one.exec("ip", "route", "get", address)
        strange = [line for line in await ours(one) if line not in kernel and not any(word in line for word in LATE)]
        assert strange == []
        assert "\x1b" not in log.text
        assert "\x9b" not in log.text
        assert not [line for line in log.text.splitlines() if line.startswith("2026-01-01")]
    async with losing_nothing(lab, "c1", "c2"):
        take_away(lab, [*bad, *late])

        async def clean() -> bool:
            return await states(one) == good and await texts(one) == before and await ours(one) == kernel

        await until(clean, SETTLED_S, "all is as before", lambda: log.text[-2000:])
    assert one.agent.running
    assert (one.agent.pid, len(log.text) < LOG_BYTES, memory_mb(one) < MEMORY_MB) == (pid, True, True)
    print(f"{backend}: {len(bad)} leases, {len(log.text.encode()):,} bytes of log, at most {memory_mb(one):.0f} MB")
