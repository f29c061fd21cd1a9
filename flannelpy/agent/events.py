"""What happened lately? Peers that came, left and moved, conditions that began and ended, kept in a ring and said in the log."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from flannelpy.agent.report import Clock
from flannelpy.core.conditions import Transition
from flannelpy.core.model import Lease
from flannelpy.core.rate import Rate

log = logging.getLogger("flannelpy")

KEPT = 2_000
LONGEST = 300
"""How many events are kept, and letters of each."""

AT_ONCE, EVERY_S = 10, 1.0
"""Lines about peers that are logged by themselves; what comes faster is counted."""


@dataclass(frozen=True, slots=True)
class Event:
    """``number`` counts them; ``at`` is on the wall clock, in seconds since the epoch; ``kind`` is one of joined, left,
    moved, began, resolved.
    """

    number: int
    at: float
    kind: str
    subject: str
    text: str


class Events:
    """The ring. ``wall`` is the wall clock, ``clock`` a monotonic one."""

    def __init__(self, clock: Clock, wall: Callable[[], float]) -> None:
        self.ring: deque[Event] = deque(maxlen=KEPT)
        self._clock = clock
        self._wall = wall
        self._peers: dict[str, Lease] = {}
        self._rate = Rate(AT_ONCE, EVERY_S)
        self._count = 0

    def peers(self, changed: Mapping[str, Lease | None], *, quiet: bool) -> None:
        """These peers came, changed, or (None) went. ``quiet``: whom we find at our start is no news."""
        for key, lease in changed.items():
            before = self._peers.pop(key, None)
            if lease is None:
                if before is not None:
                    self._note("left", key, f"peer {before} left")
                continue
            self._peers[key] = lease
            if before is None and not quiet:
                self._note("joined", key, f"peer {lease} joined")
            elif before is not None and before.attrs != lease.attrs:
                was = "" if before.public_ip == lease.public_ip else f", it was at {before.public_ip}"
                self._note("moved", key, f"peer {lease} changed{was}")

    def conditions(self, news: Sequence[Transition]) -> None:
        """These began or ended (a listener of ``agent.report``, which logs them itself)."""
        for item in news:
            active = item.active
            self._keep("resolved" if item.resolved else "began", active.subject or active.condition.code, active.text)

    def to_json(self) -> str:
        """All that are kept, the oldest first."""
        return json.dumps({"events": [asdict(event) for event in self.ring]})

    def _note(self, kind: str, subject: str, text: str) -> None:
        self._keep(kind, subject, text)
        if self._rate.allows(self._clock()):
            more, self._rate.left_out = self._rate.left_out, 0
            log.info("%s%s", text, f" (and {more} more changes of peers before)" if more else "")

    def _keep(self, kind: str, subject: str, text: str) -> None:
        self._count += 1
        self.ring.append(Event(self._count, self._wall(), kind, subject[:LONGEST], text[:LONGEST]))
