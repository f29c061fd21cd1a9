"""What really becomes of a packet? One with a mark in it arrives at the containers' bridge, and is watched for wherever it passes.

It comes by a port of its own on that bridge (``kernel.tap``), so that it takes the way of a container's. What happens on the other
host cannot be seen from here, only what comes back. ``core.sightings`` says what the sightings mean.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from netaddr import IPAddress

from flannelpy.commands.trace import asking
from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.sightings import Outcome, Sighting, Way, outcome, recognised, stage
from flannelpy.kernel.echo import MAGIC
from flannelpy.kernel.sniff import Frame, Sniffer, passes_between, passes_icmp
from flannelpy.kernel.tap import Tap, plugged

TRIES, EVERY_S, PATIENCE_S = 3, 0.3, 1.0
"""Packets of a size, between them, and after the last of them, in seconds."""

_IP, _ICMP = 20, 8


@dataclass(frozen=True, slots=True)
class Watched:
    """What became of small packets and of full ones; ``seen``: every sighting; ``mark``: what they were known by."""

    way: Way
    mark: bytes
    outcomes: tuple[Outcome, ...]
    seen: tuple[Sighting, ...]

    @property
    def answered(self) -> bool:
        """True where both were."""
        return all(one.answered for one in self.outcomes)


@dataclass(slots=True)
class _Watch:
    mark: bytes
    sniffers: Sequence[Sniffer]
    tap: Tap
    claimed: IPAddress | None
    sent: dict[int, float] = field(default_factory=dict)
    seen: list[Sighting] = field(default_factory=list)

    def look(self, seconds: float, until: int) -> None:
        """Take in what passes, for so long, or until the packet with this sequence is answered at the bridge."""
        poll = select.poll()
        for descriptor in (*(sniffer.fileno() for sniffer in self.sniffers), self.tap.fileno()):
            poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.answered(until):
            poll.poll(left * 1000)
            for sniffer in self.sniffers:
                for frame in sniffer.receive():
                    self._take(sniffer.device, frame)
            for data in self.tap.receive():
                if (answer := arp_answer(data, self.claimed, self.tap.mac)) is not None:
                    self.tap.send(answer)

    def answered(self, sequence: int) -> bool:
        """True where the answer to this packet has come to the bridge."""
        bridge = self.sniffers[0].device
        return any(one.kind == "answer" and one.sequence == sequence and one.place == bridge for one in self.seen)

    def _take(self, place: str, frame: Frame) -> None:
        known = recognised(frame.data, self.mark)
        if known is None or known[1] not in self.sent:
            return
        kind, sequence, said = known
        if any((one.place, one.sent, one.kind, one.sequence) == (place, frame.sent, kind, sequence) for one in self.seen):
            return
        after_s = frame.at_s - self.sent[sequence]
        self.seen.append(Sighting(place, frame.sent, kind, sequence, after_s, frame.data, said))


def watch(way: Way, source: IPAddress, target: IPAddress, full: int, *, invented: bool) -> Watched:
    """Send, and watch; some seconds at the most. ``full``: bytes of a full packet; ``invented``: nobody told us of the source.

    Raises FlannelpyError with one line: why that cannot be done here.
    """
    if source.version != 4:
        raise FlannelpyError("--live sends IPv4 only")
    if not way.bridge:
        raise FlannelpyError("--live sends as a container does, and there is no bridge of theirs that is up")
    try:
        from scapy.layers.inet import IP  # noqa: F401 - 0.3 s and 20 MB, for nobody else
    except ModuleNotFoundError:
        raise FlannelpyError("--live needs scapy: pip install 'flannelpy[live]'") from None
    try:
        with ExitStack() as stack:
            sniffers = [Sniffer(way.bridge, passes_icmp())]
            stack.callback(sniffers[0].close)
            for device in dict.fromkeys(each for each in (way.overlay, way.uplink) if each and each != way.blind):
                sniffers.append(Sniffer(device, _program(way, device)))
                stack.callback(sniffers[-1].close)
            tap = stack.enter_context(plugged(way.bridge, way.mtu))
            return _send(way, sniffers, tap, source, target, full, source if invented else None)
    except KernelError as error:
        raise FlannelpyError(f"--live: {error}") from None


def _program(way: Way, device: str) -> list[tuple[int, int, int, int]]:
    if device == way.uplink and way.envelope is not None and way.outer is not None:
        return passes_between(way.envelope.protocol, way.outer)
    return passes_icmp()


def _send(
    way: Way, sniffers: Sequence[Sniffer], tap: Tap, source: IPAddress, target: IPAddress, full: int, claimed: IPAddress | None
) -> Watched:
    mark = MAGIC + secrets.token_bytes(8)
    watch_ = _Watch(mark, sniffers, tap, claimed)
    outcomes: list[Outcome] = []
    for number, size in enumerate(dict.fromkeys((asking.SMALL, full))):
        sequences = range(1 + number * TRIES, 1 + (number + 1) * TRIES)
        for sequence in sequences:
            watch_.sent[sequence] = time.time()
            tap.send(frame(tap.mac, tap.bridge_mac, source, target, sequence, size, mark))
            watch_.look(PATIENCE_S if sequence == sequences[-1] else EVERY_S, sequence)
            if watch_.answered(sequence):
                break
        seen = [one for one in watch_.seen if one.sequence in sequences]
        missed = sum(sniffer.missed for sniffer in sniffers)
        outcomes.append(outcome(seen, way, size, missed, outcomes[0] if outcomes else None))
    seen = sorted(watch_.seen, key=lambda one: (one.sequence, stage(one, way), one.after_s))
    return Watched(way, mark, tuple(outcomes), tuple(seen))


def frame(mac: bytes, bridge: bytes, source: IPAddress, target: IPAddress, sequence: int, size: int, mark: bytes) -> bytes:
    """An echo request of ``size`` bytes with its IP header, from somebody on the bridge, not to be fragmented."""
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.l2 import Ether

    data = mark + bytes(max(0, size - _IP - _ICMP - len(mark)))
    header = IP(src=str(source), dst=str(target), flags="DF", ttl=64, id=secrets.randbits(16))
    packet = Ether(dst=bridge.hex(":"), src=mac.hex(":")) / header / ICMP(id=secrets.randbits(16), seq=sequence) / data
    return bytes(packet)


def arp_answer(data: bytes, claimed: IPAddress | None, mac: bytes) -> bytes | None:
    """What answers an ARP request for the address that we send from; None where it is none (RFC 826)."""
    from scapy.layers.l2 import ARP, Ether

    if claimed is None or data[12:14] != b"\x08\x06" or len(data) < 42:
        return None
    asked = ARP(data[14:42])
    if asked.op != 1 or asked.pdst != str(claimed):
        return None
    own = mac.hex(":")
    answer = ARP(op=2, hwsrc=own, psrc=asked.pdst, hwdst=asked.hwsrc, pdst=asked.psrc)
    return bytes(Ether(dst=asked.hwsrc, src=own) / answer)


def shown(watched: Watched) -> Iterable[Sighting]:
    """The sightings of the packets that tell: of each size the last that was sent, in their order."""
    last: dict[int, int] = {}
    for one in watched.seen:
        number = (one.sequence - 1) // TRIES
        last[number] = max(last.get(number, 0), one.sequence)
    return [one for one in watched.seen if one.sequence in last.values()]
