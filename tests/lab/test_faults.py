"""Does each fault of the lab do what it says, and is nothing of it left when it is healed?

c1 - h1 ==== vxlan 1, udp or host-gw ==== h2 - c2         etcd 192.168.50.5
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netns_lab import faults
from netns_lab.errors import LabError
from netns_lab.faults import DEAD, FAULTS, LARGE_DEAD, Fault
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_traceback, settled_overlay  # noqa: F401

COMMAND = Path(__file__).resolve().parents[2] / "netns-lab" / "lab"
BACKENDS = ("vxlan", "udp", "host-gw")

# What the kernel learns by itself, or counts, is no part of what a fault has left.
SHOWN = """
ip addr | grep -Ev 'valid_lft|inet6 fe80' | sed -E 's/ state [A-Z]+//; s/^[0-9]+: //'
ip -4 route show table all; ip rule; ip neigh show nud permanent
nft -s list ruleset; cat /proc/sys/net/ipv4/ip_forward
"""


async def shown(lab: Lab) -> set[str]:
    """What an operator sees in each box, in words."""
    found = set()
    for box in (*lab.hosts, *lab.containers, lab.box("net"), lab.box("etcd")):
        found |= {f"{box.name}: {line.strip()}" for line in (await box.exec("sh", "-c", SHOWN)).splitlines()}
    return found | {f"{host.name}: {key}={value}" for host in lab.hosts for key, value in host.subnet_env().items()}


async def until_as(lab: Lab, before: set[str]) -> None:
    """Nothing is left, and nothing is missing."""

    async def so() -> bool:
        after = await shown(lab)
        assert (sorted(after - before), sorted(before - after)) == ([], [])
        return True

    await lab.until(so, timeout_s=30, what="everything as before")


async def passes(lab: Lab, size: int) -> bool:
    """Whether packets of this many bytes pass from c1 to c2."""
    target = str(lab.container("c2").address)
    words = ("ping", "-c", "2", "-i", "0.1", "-W", "0.5", "-M", "do", "-s", str(size - 28), target)
    return (await lab.container("c1").attempt(*words)).code == 0


async def until_so(lab: Lab, mtu: int, fault: Fault | None) -> None:
    """Small packets and full ones pass, or not, as the fault says."""

    async def so() -> bool:
        small, full = await asyncio.gather(passes(lab, 84), passes(lab, mtu))
        dead, large_dead = fault is not None and fault.traffic is DEAD, fault is not None and fault.traffic is LARGE_DEAD
        return (small, full) == (not dead, not dead and not large_dead)

    await lab.until(so, timeout_s=40, what=f"traffic: {fault.traffic if fault else 'flows'}")


CASES = [
    pytest.param(
        [fault for fault in FAULTS if fault.fits(backend)], marks=pytest.mark.topology(hosts=2, backend=backend), id=backend
    )
    for backend in BACKENDS
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", CASES)
async def test_each_fault_does_what_it_says_and_leaves_nothing(overlay: Lab, every: list[Fault]) -> None:
    lab, mtu = overlay, int(overlay.host(1).subnet_env()["FLANNEL_MTU"])
    await until_so(lab, mtu, None)
    before = await shown(lab)
    for fault in every:
        print(fault.name)
        await faults.inject(lab, fault, lab.host(1))
        assert [each.name for each in faults.injected(lab)] == [fault.name]
        await until_so(lab, mtu, fault)
        assert [each.name for each in await faults.heal(lab)] == [fault.name]
        assert faults.injected(lab) == []
        await until_so(lab, mtu, None)
        await until_as(lab, before)
    assert {path.name for path in lab.directory.glob("fault-*")} <= {f"fault-{fault.name}" for fault in every}


@pytest.mark.topology(hosts=2)
async def test_several_faults_are_healed_in_the_opposite_order(overlay: Lab) -> None:
    lab, one, mtu = overlay, overlay.host(1), int(overlay.host(1).subnet_env()["FLANNEL_MTU"])
    before = await shown(lab)
    for name in ("policy-rule", "uplink-down", "bridge-elsewhere"):
        await faults.inject(lab, faults.fault(name), one)
    with pytest.raises(LabError, match="policy-rule is in this lab already"):
        await faults.inject(lab, faults.fault("policy-rule"), one)
    assert [each.name for each in await faults.heal(lab, "uplink-down")] == ["uplink-down"]
    with pytest.raises(LabError, match="uplink-down is not in this lab; policy-rule, bridge-elsewhere is"):
        await faults.heal(lab, "uplink-down")
    await faults.heal(lab)
    await until_so(lab, mtu, None)
    await until_as(lab, before)


@pytest.mark.topology(hosts=2)
async def test_a_fault_that_cannot_be_put_in_leaves_nothing(overlay: Lab) -> None:
    lab, one = overlay, overlay.host(1)
    await one.exec("ip", "rule", "add", "to", str(lab.host(2).subnet), "lookup", "66", "pref", "100")
    before = await shown(lab)
    broken = Fault("broken", "half of it fails", DEAD, "ip link add labx type dummy && false", "ip link del labx")
    with pytest.raises(LabError):
        await faults.inject(lab, broken, one)
    assert faults.injected(lab) == []
    assert await shown(lab) == before
    for wrong, said in (("no-such", "expected one of port-filtered"), ("", "expected one of")):
        with pytest.raises(LabError, match=said):
            faults.fault(wrong)


@pytest.mark.topology(hosts=2, backend="host-gw")
async def test_a_fault_of_another_backend_is_refused(overlay: Lab) -> None:
    with pytest.raises(LabError, match="mac-changed is of vxlan; this lab has host-gw"):
        await faults.inject(overlay, faults.fault("mac-changed"), overlay.host(1))


def test_the_command_shows_puts_in_and_takes_out() -> None:
    """As a teacher types it: another process each time."""
    name = f"tflt{os.getpid()}"

    def lab(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, COMMAND, *words, "--name", name], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    listed = lab("fault")
    assert all(fault.name in listed for fault in FAULTS)
    assert "no lab named" in lab("fault", "ip-forward-off", code=1)
    try:
        lab("up", "--hosts", "2")
        assert "no fault nonsense: expected one of" in lab("fault", "nonsense", code=1)
        assert "no host h7" in lab("fault", "ip-forward-off", "--on", "h7", code=1)
        assert "ip-forward-off is in h2" in lab("fault", "ip-forward-off", "--on", "h2")
        assert "h2" in next(line for line in lab("fault").splitlines() if "ip-forward-off" in line)
        lab("ping", "c1", "c2", code=1)
        assert "healed: ip-forward-off" in lab("heal")
        assert "no fault is in this lab" in lab("heal")
        lab("ping", "c1", "c2")
    finally:
        lab("down")


def test_every_fault_is_told_apart_and_says_what_it_does() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    assert len({json.dumps([fault.inject, fault.where]) for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.says
        assert fault.heal or fault.traffic is faults.FLOWS  # what the agent does not put right has to be healed
