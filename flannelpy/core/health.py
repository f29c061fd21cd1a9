"""What is wrong now? The conditions that hold, about whom and since when, and what of it is to be reported.

Whoever writes keys into etcd can make conditions begin and end, as many and as often as he likes; so what is kept is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from flannelpy.core.conditions import Condition, RegistryName, conditions_at
from flannelpy.core.foreign import FIELD, LINE, cut

CHANGES, CHANGED_S = 20, 60.0
"""A condition whose detail changes is reported again, so often within so many seconds; then once in a while."""


SUBJECTS, COUNTED = 100, 100_000
"""Of so many subjects of one code it is known what is the matter with each; so many more are only counted, and beyond that it is
known that there are more. Whoever writes keys into etcd decides how many subjects there are."""

SHOWN = 200
"""Letters of a subject's name that are kept where it is longer than a person reads."""

COUNTED_S = 1.0
"""Between two reports of how many they are."""


@dataclass(frozen=True, slots=True)
class Active:
    """A condition that holds: about whom (``subject``: a lease key, a kernel key, or empty), and since when.

    ``ended``: when it stopped holding, while its hold-down runs (it counts as held until then); ``flapped``: it came back at
    least once within it. ``reported``: when it was reported, the last times, and ``reported_detail`` what was said then.
    """

    condition: Condition
    subject: str
    detail: str
    since: float
    ended: float | None = None
    flapped: bool = False
    reported: tuple[float, ...] = ()
    reported_detail: str = ""

    @property
    def text(self) -> str:
        """The one line that a person reads."""
        return self.condition.text.format(detail=self.detail)

    @property
    def due(self) -> float | None:
        """When it is to be reported next; None where nothing about it is new, or it was a blip."""
        if self.reported:
            if self.detail == self.reported_detail:
                return None
            return self.reported[0] + CHANGED_S if len(self.reported) >= CHANGES else self.reported[-1]
        return None if self.ended is not None and not self.flapped else self.since + self.condition.after

    @property
    def over_at(self) -> float | None:
        """When it is over for good; None while it holds."""
        return None if self.ended is None else self.ended + self.condition.after


@dataclass(frozen=True, slots=True)
class Transition:
    """Something to report: a condition that began (or changed its detail) or, ``resolved``, ended.

    ``count``: of how many subjects; of more than one nothing is known but that.
    """

    active: Active
    resolved: bool = False
    count: int = 1


@dataclass(slots=True)
class _Rest:
    """Subjects of one code that are only counted, by their hashes; ``reported`` is how many of them were reported, and when."""

    condition: Condition
    since: float
    subjects: set[int] = field(default_factory=set)
    reported: int = 0
    reported_at: float = -math.inf

    @property
    def active(self) -> Active:
        """All of them as one."""
        count = len(self.subjects)
        return Active(self.condition, "", f"{'more than ' if count >= COUNTED else ''}{count:,} others like these", self.since)

    def news(self, now: float) -> tuple[Transition | None, float | None]:
        """How many have joined or gone since that was last reported; or when it is to be reported."""
        count = len(self.subjects)
        if count == self.reported:
            return None, None
        due = self.reported_at + COUNTED_S if self.reported else self.since + self.condition.after
        if due > now:
            return None, due
        told = Transition(self.active, resolved=count < self.reported, count=abs(count - self.reported))
        self.reported, self.reported_at = count, now
        return told, None


@dataclass(slots=True)
class Health:
    """The conditions that hold now. Pure: ``now`` is handed in, in seconds of any monotonic clock.

    A condition with an ``after`` must hold for so long before it is reported, and must be gone for so long before it is over: one
    that flaps faster is reported once, and stays. Of a code with many subjects the first are kept, and the others counted.
    """

    registry: RegistryName = RegistryName.ETCD
    """How the conditions name it."""
    _active: dict[tuple[str, str], Active] = field(default_factory=dict)
    _subjects: dict[str, int] = field(default_factory=dict)
    _rest: dict[str, _Rest] = field(default_factory=dict)
    _resolved: list[Active] = field(default_factory=list)

    def set(self, code: str, now: float, details: Mapping[str, str]) -> None:
        """``code`` holds for exactly these subjects, with these details: begins, changes and ends by difference."""
        known = {_named(subject): detail for subject, detail in details.items()}
        for held, subject in list(self._active):
            if held == code and subject not in known:
                self.end(code, now, subject)
        if (rest := self._rest.get(code)) is not None:
            rest.subjects.clear()
        for subject, detail in known.items():
            self.begin(code, now, detail, subject)

    def begin(self, code: str, now: float, detail: str, subject: str = "") -> None:
        """``code`` holds for ``subject``. Nothing new where it does already, with the same detail, of which a line is kept."""
        subject, detail = _named(subject), cut(detail, LINE)
        old, rest = self._active.get((code, subject)), self._rest.get(code)
        if old is None and self._subjects.get(code, 0) >= SUBJECTS:
            rest = self._rest.setdefault(code, rest or _Rest(conditions_at(self.registry)[code], now))
            if len(rest.subjects) < COUNTED:
                rest.subjects.add(hash(subject))
        elif old is None:
            if rest is not None:
                rest.subjects.discard(hash(subject))
            self._subjects[code] = self._subjects.get(code, 0) + 1
            self._active[code, subject] = Active(conditions_at(self.registry)[code], subject, detail, now)
        elif old.ended is not None:
            self._active[code, subject] = replace(old, detail=detail, ended=None, flapped=True)
        elif old.detail != detail:
            self._active[code, subject] = replace(old, detail=detail)

    def end(self, code: str, now: float, subject: str = "") -> None:
        """``code`` holds no longer for ``subject``. Nothing new where it did not hold."""
        subject = _named(subject)
        old, rest = self._active.get((code, subject)), self._rest.get(code)
        if old is None and rest is not None:
            rest.subjects.discard(hash(subject))
        if old is None or old.ended is not None:
            return
        if old.condition.after:
            self._active[code, subject] = replace(old, ended=now)
        else:
            self._drop(old)

    def news(self, now: float) -> tuple[list[Transition], float | None]:
        """What to report now, each thing once; and when to ask again, where something waits for its time."""
        for active in [active for active in self._active.values() if active.over_at is not None and active.over_at <= now]:
            self._drop(active)
        news = [Transition(active, resolved=True) for active in self._resolved]
        self._resolved.clear()
        hidden = self._hidden()
        waiting: list[float] = []
        for key, active in self._active.items():
            due = None if active.condition.code in hidden else active.due
            if due is not None and due <= now:
                self._active[key] = replace(active, reported=(*active.reported, now)[-CHANGES:], reported_detail=active.detail)
                news.append(Transition(self._active[key]))
            elif due is not None:
                waiting.append(due)
            if active.over_at is not None:
                waiting.append(active.over_at)
        for code, rest in list(self._rest.items()):
            told, due = (None, None) if code in hidden else rest.news(now)
            if told is not None:
                news.append(told)
            if due is not None:
                waiting.append(due)
            if not rest.subjects and not rest.reported:
                del self._rest[code]
        return news, min(waiting, default=None)

    def _drop(self, active: Active) -> None:
        del self._active[active.condition.code, active.subject]
        self._subjects[active.condition.code] -= 1
        if active.reported:
            self._resolved.append(active)

    def _hidden(self) -> frozenset[str]:
        """Codes of which something that holds says the same from closer by."""
        return frozenset(code for condition in self._holding() for code in condition.hides)

    def __iter__(self) -> Iterator[Active]:
        """What a person is to see: what holds and nothing closer by says, and what was reported and may come back any moment."""
        hidden = self._hidden()
        for active in self._active.values():
            if active.reported if active.ended is not None else active.condition.code not in hidden:
                yield active
        yield from (rest.active for rest in self._rest.values() if rest.subjects and rest.condition.code not in hidden)

    def _holding(self) -> Iterator[Condition]:
        """What holds this very moment, for each subject once."""
        yield from (active.condition for active in self._active.values() if active.ended is None)
        yield from (rest.condition for rest in self._rest.values() if rest.subjects)

    def holds(self, code: str) -> bool:
        """True where ``code`` holds for anybody, this very moment."""
        return any(condition.code == code for condition in self._holding())

    @property
    def blocks_ready(self) -> bool:
        """True while something holds that makes the agent unfit to carry traffic."""
        return any(condition.unready for condition in self._holding())


def _named(subject: str) -> str:
    """What a subject is known by; a name without end is not kept whole."""
    return (
        subject if len(subject) <= FIELD else f"{subject[:SHOWN]}... ({len(subject):,} letters, {hash(subject) & 0xFFFFFFFF:08x})"
    )
