"""Does ``flannelpy trace`` say of a packet what really becomes of it? Whatever is broken at random, a real ping agrees.

c1 - h1 ==== vxlan, udp or host-gw ==== h2 - c2         trace and ping as a person types them on h1

TRACE_BREAKAGES is how many, TRACE_SEED which ones: breakage n of a seed is the same whatever was before it (TRACE_FIRST=n begins
there).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from random import Random
from typing import Any

import pytest
from netaddr import IPNetwork

from netns_lab import faults
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab import breakages
from tests.lab.agent_support import lab_name, no_traceback, settled_overlay, until  # noqa: F401
from tests.lab.host_support import BACKENDS, until_they_meet

SEED = int(os.environ.get("TRACE_SEED", "1"))
FIRST = int(os.environ.get("TRACE_FIRST", "0"))
WANTED = int(os.environ.get("TRACE_BREAKAGES", "0"))
LEAST, WITHIN_S = 3, 35.0
"""Without TRACE_BREAKAGES: so many at the least, and more for so long."""
SETTLED_S = 60.0
REAL = {"passes": (True, True), "large": (True, False), "stopped": (False, False)}
"""What small and full packets do."""


async def trace(host: Host, *words: str) -> dict[str, Any]:
    """Its document; the exit code fits to it."""
    program = host.agent_words()[: -len(host.agent_options())][:-3]
    files = (f"--subnet-file={host.subnet_file}", f"--state-dir={host.state_dir}", f"--run-dir={host.run_dir}")
    outcome = await host.attempt(*program, "trace", *words, "--json", *files, *host.agent_options())
    assert outcome.code in (0, 1, 3), (outcome.code, outcome.stdout, outcome.stderr)
    document: dict[str, Any] = json.loads(outcome.stdout) if outcome.stdout else {"outcome": "", "verdict": outcome.stderr}
    assert document.get("exitCode", 1) == outcome.code
    return document


async def passes(lab: Lab, size: int) -> bool:
    """Whether a packet of this many bytes passes from c1 to c2, and is answered."""
    target = str(lab.container("c2").address)
    words = ("ping", "-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size - 28), target)
    return (await lab.container("c1").attempt(*words)).code == 0


async def really(lab: Lab, mtu: int) -> tuple[bool, bool]:
    """What small and full packets do."""
    small, full = await asyncio.gather(passes(lab, 84), passes(lab, mtu))
    return small, full


async def until_all_is_well(lab: Lab, mtu: int, what: str) -> None:
    async def well() -> bool:
        return await really(lab, mtu) == (True, True)

    await until(well, SETTLED_S, f"packets pass, {what}")


async def until_they_agree(lab: Lab, mtu: int, what: str) -> str:
    """What trace says, once it and the pings before and after it say the same; in the meantime agents may be repairing."""
    seen: list[object] = []

    async def agree() -> bool:
        before = await really(lab, mtu)
        document = await trace(lab.host(1), str(lab.container("c2").address), "--from", str(lab.container("c1").address))
        after = await really(lab, mtu)
        seen[:] = [before, document["outcome"], document["verdict"], after, document.get("hops")]
        if document["outcome"] == "unknown":  # it must be true that this host cannot ask, and that must be why
            return (
                "this host's own echo requests are dropped here" in document["verdict"]
                and not (await lab.ping("h1", "c2", wait_s=1)).ok
            )
        return before == after == REAL.get(document["outcome"])

    await until(agree, SETTLED_S, f"trace and ping agree, {what}", lambda: seen)
    return f"{seen[1]}: {seen[2]}"


@pytest.mark.timeout(max(400, WANTED * 60))
@pytest.mark.topology(hosts=2)
async def test_whatever_breaks_trace_and_ping_agree(overlay: Lab) -> None:
    lab, mtu = overlay, int(overlay.host(1).subnet_env()["FLANNEL_MTU"])
    await until_all_is_well(lab, mtu, "at first")
    began, number, outcomes = time.monotonic(), FIRST, list[str]()
    while len(outcomes) < WANTED or (not WANTED and (len(outcomes) < LEAST or time.monotonic() < began + WITHIN_S)):
        random = Random(f"{SEED} {number}")
        made = [breakages.at_random(random, "vxlan") for _ in range(random.choice((1, 1, 1, 2)))]
        made = made if len({str(one).split()[0:2] and (one.on, one.heal or one.fault) for one in made}) == len(made) else made[:1]
        what = f"seed {SEED} number {number}: {'; '.join(map(str, made))}"
        put: list[breakages.Breakage] = []
        try:
            for one in made:
                put.append(one)
                await breakages.inject(lab, one)
            outcomes.append(await until_they_agree(lab, mtu, what))
            print(f"{what}\n    {outcomes[-1]}")
        finally:
            for one in reversed(put):
                await breakages.heal(lab, one)
        await until_all_is_well(lab, mtu, f"after {what}")
        number += 1
    print(f"{len(outcomes)} breakages in {time.monotonic() - began:.0f} s")


NAMED = {
    "ip-forward-off": ("forwarding", "sysctl -w net.ipv4.ip_forward=1"),
    "forward-drop": ("forward", "nft insert rule inet labfault_forward c"),
    "bridge-elsewhere": ("bridge", "systemctl restart docker"),
    "longer-route": ("route", "ip route del"),
    "policy-rule": ("route", "ip rule del pref 100 from all to"),
    "port-filtered": ("input", "nft delete rule inet labfault_port_filtered"),
    "one-way": ("output", "nft delete rule inet labfault_one_way"),
    "uplink-down": ("uplink", "ip link set eth1 up"),
    "port-filtered-on-the-way": ("answer", "flannelpy doctor"),
    "mtu-black-hole": ("answer", "Backend.MTU"),
}


@pytest.mark.timeout(600)
@pytest.mark.topology(hosts=2)
async def test_the_cause_is_named_with_what_mends_it(overlay: Lab) -> None:
    lab, one, mtu = overlay, overlay.host(1), int(overlay.host(1).subnet_env()["FLANNEL_MTU"])
    await until_all_is_well(lab, mtu, "at first")
    for name, (hop, remedy) in NAMED.items():
        seen: list[object] = []

        async def named(hop: str = hop, remedy: str = remedy, seen: list[object] = seen) -> bool:
            document = await trace(one, str(lab.container("c2").address))
            seen[:] = [document]
            return document.get("stoppedBy") == hop and remedy in document["remedy"]

        await faults.inject(lab, faults.fault(name), one)
        await until(named, SETTLED_S, f"{name} is named", lambda seen=seen: seen)  # type: ignore[misc]
        await faults.heal(lab)
        await until_all_is_well(lab, mtu, f"after {name}")


@pytest.mark.parametrize("backend", BACKENDS)
async def test_with_an_agent_and_without_it_gets_through(overlay: Lab, backend: str) -> None:
    lab, one, two = overlay, overlay.host(1), overlay.host(2)
    await until_they_meet(lab, backend)

    async def through(*words: str) -> bool:
        document = await trace(one, *words)
        assert (document["outcome"], words) == ("passes", words), document
        return True

    for target in (str(lab.container("c2").address), str(two.subnet), str(two.address), str(lab.container("c1").address)):
        await lab.until(lambda target=target: through(target), timeout_s=30, every_s=0.2)  # type: ignore[misc]
    program = one.agent_words()[: -len(one.agent_options())][:-3]
    files = (f"--run-dir={one.run_dir}", f"--subnet-file={one.subnet_file}")
    outcome = await one.attempt(*program, "ping", str(two.address), "--count", "2", *files)
    assert (outcome.code, "2 of 2, small and full" in outcome.stdout) == (0, True), outcome
    nobody = await trace(one, str(two.subnet[200]))
    assert (nobody["outcome"], nobody["stoppedBy"]) == ("stopped", "answer")
    await one.agent.stop()
    if backend != "udp":  # a pump goes with its agent
        await lab.until(lambda: through(str(lab.container("c2").address)), timeout_s=30, every_s=0.2)


@pytest.mark.topology(
    hosts=2, segment6="fd00:50::/64", config={"EnableIPv6": True, "IPv6Network": "fd00:10:1::/48"}, agent_options=()
)
async def test_both_families_get_through_and_our_own_guard_is_understood(overlay: Lab) -> None:
    lab, one, two = overlay, overlay.host(1), overlay.container("c2")
    for target in (str(two.address), str(two.address6)):

        async def through(target: str = target) -> bool:
            document = await trace(one, target)
            odd = {hop["name"]: hop["said"] for hop in document["hops"] if hop["state"] != "passes"}
            assert (document["outcome"], odd) == ("passes", {}), document
            return True

        await lab.until(through, timeout_s=40, every_s=0.2)
    half = next(iter(IPNetwork(two.host.subnet_env()["FLANNEL_IPV6_SUBNET"]).cidr.subnet(65)))
    await one.exec("ip", "-6", "route", "add", "blackhole", str(half))

    async def stopped() -> bool:
        document = await trace(one, str(two.address6))
        return document["stoppedBy"] == "route"

    await lab.until(stopped, timeout_s=40, every_s=0.2)


@pytest.mark.topology(hosts=2)
async def test_who_is_not_root_is_told_what_could_not_be_asked(overlay: Lab) -> None:
    one = overlay.host(1)
    program = one.agent_words()[: -len(one.agent_options())][:-3]
    files = (f"--subnet-file={one.subnet_file}", f"--run-dir={one.run_dir}", *one.agent_options())
    target = str(overlay.container("c2").address)
    bare = ("setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-all")
    outcome = await one.attempt(*bare, *program, "trace", target, *files)
    assert (outcome.code, "Traceback" in outcome.stdout + outcome.stderr) == (1, False), outcome
    assert "cannot be told: firewall: its rules cannot be read" in outcome.stdout
