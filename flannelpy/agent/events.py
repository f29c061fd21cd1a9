"""What has happened, and when? A ring of the last events: peers that came and went, conditions, repairs, our lease, uplink, config.

Bounded in number and in bytes; peers have a share of their own, so that a cluster in motion does not push out what happened to
this host. What is noted is logged, too; above a rate only as a count.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from secrets import token_hex

from flannelpy.core.foreign import printable
from flannelpy.core.health import Transition
from flannelpy.core.line_rate import LineRate
from flannelpy.core.model import Lease
from flannelpy.explain.events import BEGAN, JOINED, LEFT, MOVED, RESOLVED, STARTED, Event, Events

log = logging.getLogger("flannelpy")

MOST, MOST_BYTES = 1000, 256 * 1024
"""Events of each share, and letters in them."""
LOGGED = 10
"""Lines about peers in a second; the rest of that second is counted in one more."""
LOOK_BACK = 200
"""A peer's name is heard a moment after its lease: so many of the last events about peers are looked at for it."""
LONGEST_WAIT_S = 25.0
"""How long a reader is kept waiting for something new."""

_VERBS = {JOINED: "joined", LEFT: "left", MOVED: "moved"}


@dataclass(slots=True)
class _Share:
    events: deque[Event] = field(default_factory=deque)
    size: int = 0
    forgotten: int = 0

    def add(self, event: Event) -> None:
        self.events.append(event)
        self.size += len(event.subject) + len(event.text)
        while len(self.events) > MOST or self.size > MOST_BYTES:
            gone = self.events.popleft()
            self.size -= len(gone.subject) + len(gone.text)
            self.forgotten += 1


class Ring:
    """The events of one agent's life. ``wall_clock``: seconds since the epoch."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self.life = token_hex(8)
        self.last = 0
        self._wall_clock = wall_clock
        self._peers, self._others = _Share(), _Share()
        self._rate = LineRate[tuple[str, str]]()
        self._second: Counter[str] | None = None
        self._newer = asyncio.Event()

    def note(self, kind: str, subject: str, text: str, level: int = logging.INFO, name: str = "") -> None:
        """This has happened: keep it and log it. ``text``: with its subject first, as a person reads it; ``name``: its peer's."""
        self.keep(kind, subject, text, name)
        if kind not in _VERBS:
            log.log(level, "%s", text)
            return
        if self._second is None:
            self._second = Counter()
            asyncio.get_running_loop().call_later(1.0, self._end_second)
        self._second[kind] += 1
        if self._second.total() <= LOGGED:
            log.info("%s", text)

    def keep(self, kind: str, subject: str, text: str, name: str = "") -> None:
        """The same for what is logged elsewhere."""
        self.last += 1
        at = datetime.fromtimestamp(self._wall_clock(), UTC).isoformat(timespec="milliseconds")
        share = self._peers if kind in _VERBS else self._others
        share.add(Event(self.last, at, kind, printable(subject), printable(text), name))
        self._newer.set()
        self._newer = asyncio.Event()

    def label(self, subject: str, name: str) -> None:
        """The peer with this lease is called so: the last that was noted of it may say it."""
        events = self._peers.events
        for place in range(len(events) - 1, max(-1, len(events) - 1 - LOOK_BACK), -1):
            if (event := events[place]).subject == subject:
                if not event.name:
                    events[place] = replace(event, name=name)
                return

    def conditions(self, news: Sequence[Transition]) -> None:
        """For ``Reporter.listeners``: what began, changed and ended; of one code so many in a minute, the rest as a count."""
        now = self._wall_clock()
        for (kind, code), count in self._rate.take_held(now).items():
            self.keep(kind, code, f"{code}: {count:,} more of the kind")
        for item in news:
            code, kind = item.active.condition.code, RESOLVED if item.resolved else BEGAN
            if self._rate.allows((kind, code), now, item.count):
                self.keep(kind, code, item.active.text if item.count == 1 else f"{code}: {item.count:,} more of the kind")

    def read(self, *, since_s: float | None = None, after: int = 0) -> Events:
        """Those of the last ``since_s`` seconds whose number is above ``after``, the oldest first."""
        begin = ""
        if since_s is not None:
            begin = datetime.fromtimestamp(max(0.0, self._wall_clock() - since_s), UTC).isoformat(timespec="milliseconds")
        shares = (self._peers, self._others)
        found = [event for share in shares for event in share.events if event.number > after and event.at >= begin]
        found.sort(key=lambda event: event.number)
        return Events(self.life, self.last, sum(share.forgotten for share in shares), tuple(found))

    async def wait(self, after: int, seconds: float) -> None:
        """Return when the last event is not ``after`` any more; at the latest after ``seconds``, cut to LONGEST_WAIT_S."""
        newer = self._newer
        if self.last != after:
            return
        try:
            async with asyncio.timeout(min(max(0.0, seconds), LONGEST_WAIT_S)):
                await newer.wait()
        except TimeoutError:
            pass

    def _end_second(self) -> None:
        counted, self._second = self._second, None
        if counted is not None and counted.total() > LOGGED:
            told = ", ".join(f"{counted[kind]:,} {verb}" for kind, verb in _VERBS.items() if counted[kind])
            log.info("peers: %s in the last second", told)


class PeerEvents:
    """Turns changes of the set of usable peers into events. ``why``: why the peer under a key is none any more, as words;
    ``name``: what a lease's host is called, as far as is known.
    """

    def __init__(self, ring: Ring, why: Callable[[str], str], name: Callable[[Lease], str]) -> None:
        self._ring = ring
        self._why = why
        self._name = name
        self._known: dict[str, Lease] | None = None
        self._hosts: dict[object, str] = {}

    def take(self, changes: Mapping[str, Lease | None]) -> None:
        """These changed: leases by key, None for one that is no peer any more. The first are those that are found at the start."""
        if self._known is None:
            self._known = {key: lease for key, lease in changes.items() if lease is not None}
            self._hosts = {_host(lease): key for key, lease in self._known.items()}
            self._ring.note(STARTED, "", f"peers at the start: {len(self._known):,}")
            return
        for key, lease in changes.items():
            before = self._known.get(key)
            if lease is None:
                self._went(key, before)
            elif before is None:
                self._came(key, lease)
            else:
                self._changed(key, before, lease)

    def _came(self, key: str, lease: Lease) -> None:
        assert self._known is not None
        other = self._known.get(self._hosts.get(_host(lease), ""))
        self._known[key], self._hosts[_host(lease)] = lease, key
        kind = lease.attrs.backend_type or "no backend"
        if other is None:
            self._note(JOINED, lease, f"peer {lease} joined ({kind})")
        else:
            self._note(MOVED, lease, f"peer {lease} moved: its host had {_subnets(other)} before")

    def _went(self, key: str, before: Lease | None) -> None:
        if before is None:
            return
        assert self._known is not None
        del self._known[key]
        if self._hosts.get(_host(before)) == key:
            del self._hosts[_host(before)]
        self._note(LEFT, before, f"peer {before} left: {self._why(key)}")

    def _changed(self, key: str, before: Lease, lease: Lease) -> None:
        assert self._known is not None
        self._known[key] = lease
        if self._hosts.get(_host(before)) == key:
            del self._hosts[_host(before)]
        self._hosts[_host(lease)] = key
        if told := list(_differences(before, lease)):
            self._note(MOVED, lease, f"peer {_subnets(lease)} moved: {', '.join(told)}")

    def _note(self, kind: str, lease: Lease, text: str) -> None:
        self._ring.note(kind, lease.key, text, name=self._name(lease))


def _differences(before: Lease, lease: Lease) -> Iterable[str]:
    old, new = before.attrs, lease.attrs
    fields = (
        ("PublicIP", old.public_ip, new.public_ip),
        ("PublicIPv6", old.public_ipv6, new.public_ipv6),
        ("backend", old.backend_type, new.backend_type),
    )
    for name, was, now in fields:
        if was != now:
            yield f"{name} {was or 'none'} -> {now or 'none'}"
    if (old.backend_data, old.backend_v6_data) != (new.backend_data, new.backend_v6_data):
        yield "its BackendData is another one"


def _host(lease: Lease) -> object:
    """What a host is known by."""
    return lease.public_ip if int(lease.public_ip) else lease.attrs.public_ipv6


def _subnets(lease: Lease) -> str:
    return str(lease).partition(" at ")[0]
