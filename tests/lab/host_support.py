"""What do the tests of a changing host share? What its agent says of itself, its leases, and how long peers were out of reach."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import Log, until

BACKENDS = [pytest.param(backend, marks=pytest.mark.topology(hosts=2, backend=backend)) for backend in ("vxlan", "host-gw", "udp")]
WITHIN_S = 30.0
"""For what takes less than a second where nobody else wants the processors."""


async def told(host: Host) -> dict[str, Any]:
    """What the host's agent says of itself; empty while it does not answer."""
    return await host.status()


async def conditions(host: Host) -> dict[str, str]:
    """What is wrong on a host, by code; the text of the first where there are several."""
    found: dict[str, str] = {}
    for each in (await told(host)).get("conditions", ()):
        found.setdefault(each["code"], each["text"])
    return found


async def until_nothing_is_wrong(*hosts: Host, timeout_s: float = WITHIN_S) -> None:
    """Wait until these hosts have no condition left and are ready."""
    for host in hosts:
        seen: list[object] = []
        await until(partial(_is_well, host, seen), timeout_s, f"{host.name} is well", partial(_said, seen, host))


async def _is_well(host: Host, seen: list[object]) -> bool:
    document = await told(host)
    seen[:] = [document.get("ready"), *(each["text"] for each in document.get("conditions", ()))]
    return seen == [True]


def _said(seen: list[object], host: Host) -> str:
    return f"{seen}; log: {Log.of(host).text[-1500:]}"


async def until_condition(host: Host, code: str, timeout_s: float = WITHIN_S) -> str:
    """Wait for a condition; its text."""
    seen: dict[str, str] = {}

    async def there() -> bool:
        seen.clear()
        seen.update(await conditions(host))
        return code in seen

    await until(there, timeout_s, f"{code} on {host.name}", lambda: (seen, Log.of(host).text[-1500:]))
    return seen[code]


def memory_mb(host: Host) -> float:
    """The most that its agent has ever held."""
    status = Path(f"/proc/{host.agent.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


async def change(host: Host, *lines: str) -> None:
    """Lines for ``ip``, all at once, as a script or a DHCP client does it."""
    await host.exec("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


async def meet(lab: Lab, *names: str) -> bool:
    """True where each of these containers (all, where none is named) pings each other."""
    wanted = names or tuple(container.name for container in lab.containers)
    pairs = [(one, other) for one in wanted for other in wanted if one != other]
    return all([(await lab.ping(one, other, wait_s=0.5)).ok for one, other in pairs])


async def until_they_meet(lab: Lab, what: str, *names: str, timeout_s: float = WITHIN_S) -> float:
    """Wait until they ping each other; how long it took at most, in seconds, which is printed."""
    began = time.monotonic()
    logs = "\n".join
    await until(
        lambda: meet(lab, *names), timeout_s, f"pings again, {what}", lambda: logs(Log.of(host).text[-1500:] for host in lab.hosts)
    )
    took = time.monotonic() - began
    print(f"{what}: pings again after at most {took:.2f} s")
    return took


def published(lab: Lab) -> dict[str, str]:
    """Where each lease says that its host is, by key."""
    return {key: json.loads(lab.etcd.get(key) or "{}").get("PublicIP", "") for key in lab.etcd.keys(f"{PREFIX}/subnets")}


def offering(lab: Lab) -> list[str]:
    """The keys of the leases whose hosts offer something besides the network's Type; all say beside them what they are called."""
    lead = f"{PREFIX}/flannelpy/hosts"
    values = {key: json.loads(lab.etcd.get(key) or "{}") for key in lab.etcd.keys(lead)}
    return sorted(key.rpartition("/")[2] for key, value in values.items() if value.get("Carriers"))


def lives(hosts: Sequence[Host]) -> list[tuple[int, str]]:
    """Each agent's process and subnet: equal before and after, nothing was restarted and nobody moved."""
    return [(host.agent.pid, str(host.subnet)) for host in hosts]


async def device(host: Host, name: str = "flannel.1") -> dict[str, Any]:
    """An interface as ``ip -json link`` tells it; empty where there is none."""
    outcome = await host.attempt("ip", "-json", "-details", "link", "show", name)
    found: list[dict[str, Any]] = json.loads(outcome.stdout) if outcome.code == 0 else [{}]
    return found[0]


async def relaunch(host: Host, *options: str) -> None:
    """Stop the agent where it runs, and start it with these in place of ``--iface=eth1``; not waited for."""
    if host.agent.running:
        await host.agent.stop()
    host.selector = options
    host.launch_agent()
