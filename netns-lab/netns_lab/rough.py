"""What does a bad cable do to what runs over it? A wire that loses, moves and doubles frames, and counts what it did.

    h1 eth1 === port h1 ~ rough ~ rough-h1 === rough-in in br0 === everybody else

The frames are those of a wire. A veth hands over super-packets and unfinished checksums, a network card does not, so both are off
where frames go in. What receives them may join them again (GRO), as it does behind a card.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from netns_lab.errors import LabError
from netns_lab.namespaces import Namespace, batch, run

SOURCE = Path(__file__).resolve().parents[1] / "rough" / "rough.c"
WITHIN_S = 5.0
GRO_WAITS_NS = 20_000
"""How long the receiving device gathers frames before it hands them up; a card's interrupts come about as often."""
_COUNTS = struct.Struct("=7Q")


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of the frames, each from 0 to 1, and where the choices begin. Raises LabError."""

    loss: float = 0.0
    reordering: float = 0.0
    duplication: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("loss", "reordering", "duplication"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise LabError(f"{name} {share!r}: expected a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the frames of one direction. ``refused``: a device would not have them; ``overrun``: they came too fast."""

    seen: int
    lost: int
    moved: int
    doubled: int
    sent: int
    refused: int
    overrun: int

    def __str__(self) -> str:
        dropped = self.refused + self.overrun
        return f"{self.seen} frames: {self.lost} lost, {self.moved} moved, {self.doubled} doubled, {dropped} dropped"


class Rough:
    """A wire that is carrying."""

    def __init__(self, counts: Path) -> None:
        self._counts = counts

    @property
    def outbound(self) -> Counts:
        """From the left device to the right one; on a host's cable, from the host."""
        return self._read(0)

    @property
    def inbound(self) -> Counts:
        """From the right device to the left one; on a host's cable, to the host."""
        return self._read(1)

    def _read(self, which: int) -> Counts:
        return Counts(*_COUNTS.unpack_from(self._counts.read_bytes(), which * _COUNTS.size))


@asynccontextmanager
async def joined(namespace: Namespace, left: str, right: str, rates: Rates, directory: Path) -> AsyncIterator[Rough]:
    """Carry frames between two devices of a namespace for the time of the block. Raises LabError."""
    program, counts, log = directory / f"rough-{left}", directory / f"{left}.counts", directory / f"{left}.rough.log"
    if shutil.which("cc") is None:
        raise LabError("the rough wire needs a C compiler; make setup installs one")
    built = await run(["cc", "-O2", "-o", str(program), str(SOURCE)])
    if built.code:
        raise LabError(f"{SOURCE.name} does not compile: {built.stderr.strip().splitlines()[-1]}")
    for path in (counts, log):  # of an earlier wire
        path.unlink(missing_ok=True)
    shares = (f"{share:.9f}" for share in (rates.loss, rates.reordering, rates.duplication))
    words = [str(program), left, right, str(counts), str(rates.seed), *shares]
    process = namespace.spawn(f"rough {left}", words, log=log, lasting=False)
    try:
        deadline = time.monotonic() + WITHIN_S
        while "carrying" not in process.printed():
            if process.exit_code is not None or time.monotonic() > deadline:
                raise LabError(f"{namespace.name}: the rough wire does not carry: {process.tail(1)}")
            await asyncio.sleep(0.01)
        yield Rough(counts)
    finally:
        await process.stop()


@asynccontextmanager
async def cable(switch: Namespace, port: str, ends: Mapping[str, Namespace], rates: Rates, directory: Path) -> AsyncIterator[Rough]:
    """Make the cable between a switch's port and its bridge rough for the time of the block.

    ``ends``: by port, the namespaces whose eth1 is to send and receive as a card does, this one among them. Raises LabError.
    """
    ours = f"rough-{port}"
    await batch([f"link add {ours} type veth peer name rough-in", f"link set {port} nomaster"], switch.path)
    try:
        for device in {ours, "rough-in", *ends}:
            await switch.exec("ethtool", "-K", device, "tx", "off")
        for end in ends.values():
            await _as_behind_a_card(end)
        await batch(["link set rough-in master br0 up", f"link set {ours} up"], switch.path)
        async with joined(switch, port, ours, rates, directory) as rough:
            yield rough
    finally:
        await switch.attempt("ip", "link", "del", "rough-in")
        await switch.attempt("ip", "link", "set", port, "master", "br0")
        for name, end in ends.items():
            await end.attempt("ethtool", "-K", "eth1", "gro", "off", "tx", "on")
            await switch.attempt("ethtool", "-K", name, "tx", "on")


async def _as_behind_a_card(end: Namespace) -> None:
    """Let eth1 send frames as they are on a wire, and join those that it receives, as a card's driver does.

    A frame that comes alone would be handed up at once; the timer makes it wait for those that follow
    (Documentation/networking/napi.rst, "Software IRQ coalescing"). A veth joins only what comes from one that cannot segment.
    """
    await end.exec("ethtool", "-K", "eth1", "tx", "off", "gro", "on")
    timer = f"mount -t sysfs sysfs /sys && echo {GRO_WAITS_NS} > /sys/class/net/eth1/gro_flush_timeout"
    await end.exec("unshare", "--mount", "sh", "-c", timer)
