"""Does a real packet meet what ``flannelpy trace --live`` says it met? Healthy by each backend, and three breakages.

c1 - docker0 - h1 ==== vxlan, udp or host-gw ==== h2 - docker0 - c2         a packet comes to h1's docker0 by a port of its own
"""

from __future__ import annotations

from typing import Any

import pytest

from netns_lab import faults
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_traceback, settled_overlay, until  # noqa: F401
from tests.lab.host_support import BACKENDS, until_they_meet
from tests.lab.test_trace import trace

WITHIN_S = 60.0
DEVICES = {"vxlan": "flannel.1", "udp": "flannel0", "host-gw": ""}

pytestmark = pytest.mark.topology(hosts=2)


async def live(lab: Lab, *words: str) -> dict[str, Any]:
    """What it says on h1 of real packets to c2."""
    document = await trace(lab.host(1), str(lab.container("c2").address), "--live", *words)
    found: dict[str, Any] = document["live"]
    return found


async def ports(host: Host) -> list[str]:
    """Of the bridge, but for containers'."""
    links = (await host.exec("ip", "-br", "link")).splitlines()
    return [line for line in links if line.startswith("fplive")]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_packet_is_seen_wherever_it_passes_and_answered(overlay: Lab, backend: str) -> None:
    lab, one = overlay, overlay.host(1)
    await until_they_meet(lab, backend)
    for words in ((), ("--from", str(lab.container("c1").address))):
        seen: list[object] = []

        async def answered(words: tuple[str, ...] = words, seen: list[object] = seen) -> bool:
            seen[:] = [await live(lab, *words)]
            return bool(seen[0]["answered"])  # type: ignore[index]

        await until(answered, WITHIN_S, f"real packets are answered {words}", lambda seen=seen: seen)  # type: ignore[misc]
        found: Any = seen[0]
        last = max(one["sequence"] for one in found["sightings"])
        passed = [(one["place"], one["kind"]) for one in found["sightings"] if one["sequence"] == last]
        there = [each for each in ("docker0", DEVICES[backend], "eth1") if each]
        assert passed == [(each, "request") for each in there] + [(each, "answer") for each in reversed(there)]
        text = "\n".join(found["drawing"])
        assert f"{one.address} > {lab.host(2).address}, TTL 64" in text or backend == "host-gw"
        hops = 2 if backend == "udp" else 1  # a datapath in user space forwards, too
        assert f"> {lab.container('c2').address}, TTL {64 - hops}, DF" in text
        assert ("VXLAN        8  VNI 1" in text, "> 8285" in text) == (backend == "vxlan", backend == "udp")
    assert await ports(one) == []
    assert (await lab.ping("c1", "c2")).ok


BREAKAGES = {
    "port-filtered-on-the-way": ({84: "eth1", 1450: "eth1"}, "last seen to leave by eth1 to 192.168.50.12"),
    "port-filtered": ({84: "eth1", 1450: "eth1"}, "the answer was last seen to come in by eth1: this host did not let it through"),
    "mtu-black-hole": ({1450: "eth1"}, "small ones are answered: the way does not carry that many bytes"),
    "peer-down": ({84: "flannel.1", 1450: "flannel.1"}, "last seen"),
}
"""What is broken, where packets of a size are seen last that are not answered, and in words."""


@pytest.mark.timeout(400)
async def test_what_is_broken_shows_where_it_was_seen_last(overlay: Lab) -> None:
    lab, one = overlay, overlay.host(1)
    await until_they_meet(lab, "vxlan")
    for name, (lost, words) in BREAKAGES.items():
        seen: list[object] = []

        async def told(lost: dict[int, str] = lost, words: str = words, seen: list[object] = seen, name: str = name) -> bool:
            found = await live(lab)
            seen[:] = [found]
            said = {each["size"]: each for each in found["outcomes"] if not each["answered"]}
            where = {size: each["lastSeen"] for size, each in said.items()}
            if name == "peer-down":  # whether anything leaves depends on whether the kernel still knows the MAC
                return where.keys() == lost.keys() and all(place in ("flannel.1", "eth1") for place in where.values())
            return where == lost and all(words in each["said"] for each in said.values())

        if name == "peer-down":
            await lab.host(2).exec("ip", "link", "set", "eth1", "down")
        else:
            await faults.inject(lab, faults.fault(name), one)
        await until(told, WITHIN_S, f"{name} is told", lambda seen=seen: seen)  # type: ignore[misc]
        if name == "peer-down":
            await lab.host(2).exec("ip", "link", "set", "eth1", "up")
        else:
            await faults.heal(lab)
        await until_they_meet(lab, "vxlan")
    assert await ports(one) == []


async def test_who_may_not_is_told_in_a_line(overlay: Lab) -> None:
    one = overlay.host(1)
    program = one.agent_words()[: -len(one.agent_options())][:-3]
    files = (f"--subnet-file={one.subnet_file}", f"--run-dir={one.run_dir}", *one.agent_options())
    bare = ("setpriv", "--bounding-set=-net_admin,-net_raw", "--inh-caps=-all")
    outcome = await one.attempt(*bare, *program, "trace", str(overlay.container("c2").address), "--live", *files)
    assert (outcome.code, "Traceback" in outcome.stdout + outcome.stderr) == (1, False), outcome
    assert outcome.stdout.splitlines()[-1] == "--live: needs root (CAP_NET_ADMIN and CAP_NET_RAW)"
