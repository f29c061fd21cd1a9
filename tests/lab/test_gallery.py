"""Is the cause of every fault named, with what mends it, and is there silence afterwards?

c1 - h1 ==== vxlan ==== h2 - c2         etcd 192.168.50.5; one fault at a time on or around h1, a command typed on either host

One lab for all of them: each is taken out again, and the next one begins when nothing is wrong. A sample of ten; all with
GALLERY=all, as ``make test-gallery`` does.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from netns_lab import causes, faults
from netns_lab.causes import CAUSES, Cause
from netns_lab.errors import LabError
from netns_lab.faults import DEAD, FLOWS
from netns_lab.lab import Lab
from netns_lab.topology import Topology

PROMISED_S, WITHIN_S, SILENT_WITHIN_S = 15.0, 90.0, 90.0
"""What is promised on a machine that has nothing else to do is printed beside the time it took; a busy one has longer."""

SAMPLE = (
    "port-filtered",
    "mtu-black-hole",
    "ip-forward-off",
    "forward-drop",
    "bridge-stale",
    "longer-route",
    "rule-by-source",
    "iptables-from-containers",
    "other-vni",
    "device-deleted",
)
CHOSEN = CAUSES if os.environ.get("GALLERY") == "all" else [causes.BY_NAME[name] for name in SAMPLE]


class Standing:
    """A lab that stands for all tests of this file, in a loop of its own."""

    def __init__(self, runner: asyncio.Runner, lab: Lab) -> None:
        self.runner = runner
        self.lab = lab

    async def until_well(self, what: str) -> None:
        seen: list[str] = []

        async def well() -> bool:
            seen[:] = await causes.wrong(self.lab)
            return not seen and await self.passes(84) and await self.passes(1450)

        try:
            await self.lab.until(well, timeout_s=SILENT_WITHIN_S, every_s=0.3)
        except LabError:
            raise AssertionError(f"not well within {SILENT_WITHIN_S:g} s, {what}: {seen}") from None

    async def passes(self, size: int) -> bool:
        """Whether packets of so many bytes pass from c1 to c2."""
        words = ("ping", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size - 28))
        return (await self.lab.container("c1").attempt(*words, str(self.lab.container("c2").address))).code == 0

    async def look_for(self, cause: Cause) -> None:
        """Put the fault in, read what a person would, take it out."""
        lab, fault = self.lab, cause.fault
        await self.until_well(f"before {fault.name}")
        try:
            named = await causes.look_for(lab, cause, WITHIN_S)
            print(f"{fault.name}: named after {named.after_s:.1f} s of {PROMISED_S:g} by {named.typed} on {named.host}")
            if fault.traffic is not FLOWS:
                assert not await self.passes(1450), "packets pass all the same"
                assert (await self.passes(84)) is (fault.traffic is not DEAD)
                assert cause.quiet or await causes.errors(lab), "packets die, and no status calls that an error"
        finally:
            await faults.heal(lab)
        began = time.monotonic()
        await self.until_well(f"after {fault.name}")
        print(f"{fault.name}: silent {time.monotonic() - began:.1f} s after the mend")


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with asyncio.Runner() as runner:
        up = Lab.up(Topology(hosts=2), name=f"tgal{os.getpid()}")
        lab = runner.run(up.__aenter__())
        try:
            runner.run(lab.start_agents())
            runner.run(lab.connect_containers())
            yield Standing(runner, lab)
            logs = [path.read_text(errors="replace") for host in lab.hosts for path in host.directory.rglob("*log")]
            assert not any("Traceback" in text for text in logs)
        finally:
            runner.run(up.__aexit__(None, None, None))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("cause", CHOSEN, ids=lambda cause: cause.name)
def test_the_cause_is_named_and_there_is_silence_after_the_mend(standing: Standing, cause: Cause) -> None:
    standing.runner.run(standing.look_for(cause))


def test_the_gallery_is_large_and_each_fault_is_once_in_it() -> None:
    assert len({cause.name for cause in CAUSES}) == len(CAUSES) >= 40
    assert {cause.name for cause in CAUSES} <= faults.every().keys()
    missing = {name for name, fault in faults.every().items() if fault.fits("vxlan")} - {cause.name for cause in CAUSES}
    assert missing == {"no-gateway", "subnet-file-deleted", "address-twice"}, "a fault of the lab that nobody looks for"
