"""Is a peer reached, and if not, what is in the way? A verdict from what echo requests to it have brought back; pure.

What never answered is no proof of anything: hosts may drop ICMP. So a silence counts where there were answers before, or where the
other address of the same host answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from netaddr import IPAddress

Kind = Literal["small", "full", "beside"]
"""small and full: through the overlay, of few bytes and as large as a container's packet may be; beside: to the PublicIP."""

State = Literal["reachable", "unreachable", "silent", "unknown"]
"""silent: it has never answered, and nothing says that it should have; unknown: it has not been asked for long enough."""

LOST, CONFIRMED, LARGE_LOST = 3, 2, 5
"""So many full packets lost in a row, and so many small ones, are no accident; nor so many full ones, where small ones pass."""

TOGETHER = (1, 0)
"""The same of a peer that has fallen silent together with many others: they are too many to be asked so often."""

FIRST = (2, 1)
"""The same of a peer that has never answered: nobody is used to it, and there may be many that do not exist."""

SETTLED_S = 4.0
"""What is wrong with a silent peer is found out within so many seconds; one word about it, not two."""

GRACE_S = 10.0
"""A peer that has never answered may still be setting up, in seconds since it was first asked."""

ALONE_S = 15.0
"""A host that hears from none of its peers for so long is cut off."""

REMEMBERED = 32
"""Of so many last packets through the overlay the loss is told."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a peer is asked. ``through``: its own address in the overlay, its PublicIP where nothing is encapsulated; ``beside``:
    its PublicIP, None where that is the same; ``size``: of a full packet, in bytes with the IP header; ``port``: what it is carried
    by, in words.
    """

    through: IPAddress
    beside: IPAddress | None
    size: int
    port: str = "the overlay's traffic"


@dataclass(slots=True)
class Path:
    """What became of the requests of one kind. ``lost``: in a row since the last answer, ``silent_since``: when the first of these
    was sent; ``heard``: when the last answer came; ``rtt_s``: how long answers take, smoothed; ``error``: what this host's kernel
    has said of them, since the last answer.
    """

    lost: int = 0
    silent_since: float | None = None
    heard: float | None = None
    rtt_s: float | None = None
    error: str = ""

    def answered(self, now: float, rtt_s: float) -> None:
        """An answer came."""
        self.rtt_s = rtt_s if self.rtt_s is None or self.lost else self.rtt_s + (rtt_s - self.rtt_s) / 4
        self.lost, self.silent_since, self.heard, self.error = 0, None, now, ""

    def missed(self, sent: float) -> None:
        """What was sent then has brought no answer in time."""
        self.silent_since = sent if not self.lost else self.silent_since
        self.lost += 1


UNASKED = Path()
"""What became of requests of which there was none: one for all peers. Nothing is written into it but what it says already."""


def _unasked() -> Path:
    return UNASKED


@dataclass(slots=True)
class Probed:
    """What is known of one peer. ``began``: when it was first asked; ``inbound``: when a request of its own last came through the
    overlay; ``path_mtu``: smaller than the full size, where the network says so; ``together``: it has fallen silent together with
    many others, and one lost packet says enough.
    """

    target: Target
    began: float
    small: Path = field(default_factory=_unasked)
    full: Path = field(default_factory=_unasked)
    beside: Path = field(default_factory=_unasked)
    inbound: float | None = None
    path_mtu: int | None = None
    together: bool = False
    noted: int = 0
    missed: int = 0
    """Of so many last packets through the overlay, a bit each, the newest the lowest: which were not answered."""

    def path(self, kind: Kind) -> Path:
        """The requests of this kind, to write down what becomes of one."""
        found = {"small": self.small, "full": self.full, "beside": self.beside}[kind]
        if found is UNASKED:
            found = Path()
            setattr(self, kind, found)
        return found

    @property
    def heard(self) -> float | None:
        """When the last answer came through the overlay."""
        return max((path.heard for path in (self.small, self.full) if path.heard is not None), default=None)

    @property
    def rtt_s(self) -> float | None:
        """How long an answer takes through the overlay, in seconds."""
        return self.small.rtt_s if self.full.rtt_s is None or self.full.lost else self.full.rtt_s

    @property
    def loss(self) -> float:
        """The part of the last packets through the overlay that was not answered, 0 to 1."""
        return self.missed.bit_count() / self.noted if self.noted else 0.0

    @property
    def size(self) -> int:
        """Of a full packet, in bytes."""
        return self.path_mtu or self.target.size

    def note(self, answered: bool) -> None:
        """How one more packet through the overlay has fared."""
        self.noted = min(self.noted + 1, REMEMBERED)
        self.missed = (self.missed << 1 | (not answered)) & ((1 << REMEMBERED) - 1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``why``: what is in the way and what to look at, in words without a clock; ``since``: when the silence began."""

    state: State
    why: str = ""
    since: float | None = None


UNKNOWN, REACHABLE = Verdict("unknown"), Verdict("reachable")


def judge(seen: Probed, now: float) -> Verdict:
    """What is to be said of a peer, by what was heard of it."""
    small, full = seen.small, seen.full
    if seen.heard is None and now - seen.began < GRACE_S:
        return UNKNOWN
    lost, confirmed = TOGETHER if seen.together else (LOST, CONFIRMED) if seen.heard is not None else FIRST
    if full.lost >= lost and full.silent_since is not None:
        passes = small.lost < CONFIRMED and small.heard is not None and small.heard >= full.silent_since
        if passes and full.lost >= LARGE_LOST:
            why = f"packets of {seen.size} bytes are lost, small ones pass: look at the MTU on the way, or lower Backend.MTU"
            return Verdict("unreachable", why, full.silent_since)
        if small.lost >= confirmed:
            since = min(full.silent_since, full.silent_since if small.silent_since is None else small.silent_since)
            if not seen.together and _undecided(seen, since) and now - since < SETTLED_S:
                return UNKNOWN if seen.heard is None else REACHABLE
            state, why = _silence(seen, since)
            return Verdict(state, why, since)
    return UNKNOWN if seen.heard is None else REACHABLE


def _undecided(seen: Probed, since: float) -> bool:
    """True where the host's other address has neither answered since nor been silent."""
    beside = seen.beside
    return seen.target.beside is not None and not beside.lost and (beside.heard is None or beside.heard < since)


def _silence(seen: Probed, since: float) -> tuple[State, str]:
    """Nothing comes through the overlay: what does its host's other address say, and what comes from it unasked?"""
    beside, target = seen.beside, seen.target
    inbound = seen.inbound is not None and seen.inbound >= since
    if error := seen.full.error or seen.small.error or beside.error:
        return "unreachable", error
    if beside.heard is not None and beside.heard >= since and beside.lost < CONFIRMED:
        if inbound:
            return (
                "unreachable",
                f"one way only: its packets come, ours get no answer; {target.port} is dropped on the way or there",
            )
        return "unreachable", f"its host answers, but not through the overlay: {target.port} is dropped there, here or between"
    if seen.heard is None and beside.heard is None:
        if inbound:
            return "silent", "no answer to probes, but its own packets come: does it drop ICMP?"
        return "silent", "no answer to probes, ever: is the host down, or does it drop ICMP?"
    if inbound:
        return "unreachable", "one way only: its packets come, ours get no answer"
    if target.beside is None:
        return "unreachable", "its host does not answer: it is down, or the network between"
    if not beside.lost:
        return "unreachable", "nothing comes through the overlay"
    if beside.heard is None:
        return "unreachable", f"it answers no more, and {target.beside} never has: host or network is down"
    return "unreachable", "nor does its host answer beside the overlay: it is down, or the network between"
