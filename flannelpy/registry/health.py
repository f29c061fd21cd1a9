"""Is the registry well? What became of the last calls of each kind, and the conditions that follow: the only writer of registry-*.

A kind of call that fails is not well again because another kind succeeds: an etcd out of space answers every read. So the last
outcome of each kind is kept, and the conditions are derived from these, by difference:

    registry-unreachable   nothing answers                        one text, however many kinds fail
    registry-tls           no trust                               one text
    registry-auth          the user is refused                    one text; of each kind by itself where others are let in
    registry-refused       etcd answers and refuses               of each kind by itself: no space, a learner, corrupt

While this host's own link is down nobody need look at etcd, and of that the uplink's condition speaks.

What is said of an outage at its beginning is said until its end. Otherwise the many voices (a call that timed out, a connection
that was refused, a watch that is silent) would each be news, for as long as it lasts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryTlsError, RegistryUnavailableError
from flannelpy.registry import Registry

UNREACHABLE, TLS, AUTH, REFUSED = "registry-unreachable", "registry-tls", "registry-auth", "registry-refused"
CODES = (UNREACHABLE, TLS, AUTH, REFUSED)

SETTLE_S = 1.5
"""So long the text of something new may change: the first word is often that a connection broke, the second why none is made.
Shorter than what must hold before it is reported (``after`` in core/conditions)."""

ANOTHER_S = 60.0
"""Between two different causes of one refusal."""

DECIDE_S = 1.0
"""A refused user is reported so much later: by then it shows whether all kinds of call are refused, or only some."""

UNREPEATED_S, UNREPEATED_REFUSAL_S = 15.0, 180.0
"""A failure that nobody has repeated for so long, while etcd answers others, is over. Retries are at most 5 and 60 s apart."""

LINK_S = 5.0
"""So long after a link is up again it is still the reason."""

_ENDPOINT = re.compile(r"https?://\S+: ")


class Report(Protocol):
    """Who reports to people: a condition holds for these subjects, with these details, and for no others."""

    def set(self, code: str, details: Mapping[str, str]) -> None:
        """What holds under ``code`` now, by subject."""
        ...


class Kind(StrEnum):
    """Calls that fail together. The value is the subject of a condition."""

    READ = "read"
    WRITE = "write"
    WATCH = "watch"
    KEEP_ALIVE = "keep-alive"
    NODE = "node"
    """What we were given, where subnets are assigned."""

    @property
    def plural(self) -> str:
        """As it begins a sentence's part."""
        return {Kind.WATCH: "the watch", Kind.NODE: "our node"}.get(self, f"{self.value}s")


@dataclass(slots=True)
class Failing:
    """A kind whose last call failed: with what, since when without a success between, and when last."""

    error: RegistryError
    since: float
    last: float


@dataclass(slots=True)
class Reported:
    """A text that was reported, the cause in it, and since when."""

    text: str
    cause: str
    since: float
    changed: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """In one word, for a status line: ``code`` is empty where all is well, ``since`` in the clock's seconds."""

    code: str = ""
    text: str = ""
    since: float = 0.0

    @property
    def answers(self) -> bool:
        """False where nothing comes back at all; an etcd that refuses us has been reached."""
        return self.code != UNREACHABLE


@dataclass(slots=True)
class RegistryHealth:
    """The health of one registry. ``clock`` is monotonic, in seconds. Nothing here raises."""

    registry: Registry
    report: Report
    clock: Callable[[], float]
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many, by kind and outcome: answered, or failed. A watch is answered with each batch of events."""
    _failing: dict[Kind, Failing] = field(default_factory=dict)
    _succeeded: dict[Kind, float] = field(default_factory=dict)
    _reported: dict[tuple[str, str], Reported] = field(default_factory=dict)
    _by_kind: bool | None = None
    """Whether a refused user is reported by kind; decided once, when it is first reported."""
    _link_down: str = ""
    _link_down_at: float | None = None
    _said: dict[str, dict[str, str]] = field(default_factory=dict)

    # ------------------------------------------------------------------------------------------------- listening

    def succeeded(self, kind: Kind) -> None:
        """A call of this kind was answered."""
        self.calls[kind.value, "answered"] += 1
        self._succeed(kind, self.clock())
        self._publish(self.clock())

    def failed(self, kind: Kind, error: RegistryError) -> None:
        """A call of this kind failed."""
        self.calls[kind.value, "failed"] += 1
        self._fail(kind, error, self.clock())
        self._publish(self.clock())

    def link_down(self, name: str | None) -> None:
        """This host's link to etcd is down; None or empty: it is up."""
        if name:
            self._link_down, self._link_down_at = name, None
        elif self._link_down and self._link_down_at is None:
            self._link_down_at = self.clock()
        self._publish(self.clock())

    def look(self, now: float) -> None:
        """Once a second: how is the watch, and who has been silent? Says everything once more, too."""
        trouble = self.registry.trouble
        if trouble is not None:
            self._fail(Kind.WATCH, trouble, now)
        elif self.registry.alive:
            self._succeed(Kind.WATCH, now)
        elif not self._failing or Kind.WATCH in self._failing:
            # Where a call has failed, it knows better why: one that is not trusted does not answer either.
            self._fail(Kind.WATCH, RegistryUnavailableError(f"{self.registry.endpoint}: no answer"), now)
        for kind, failing in list(self._failing.items()):
            if self._is_over(failing, now):
                del self._failing[kind]
        self._said.clear()
        self._publish(now)

    @property
    def verdict(self) -> Verdict:
        """The worst that holds now."""
        silent = [each.since for each in self._failing.values() if _code(each.error) == UNREACHABLE]
        if self._link_down and silent:
            return Verdict(UNREACHABLE, f"{self._link_down} of this host is down", min(silent))
        for code in CODES:
            found = [reported for (each, _), reported in self._reported.items() if each == code]
            if found:
                first = min(found, key=lambda reported: reported.since)
                return Verdict(code, first.text, first.since)
        return Verdict()

    def _succeed(self, kind: Kind, now: float) -> None:
        self._succeeded[kind] = now
        self._failing.pop(kind, None)

    def _fail(self, kind: Kind, error: RegistryError, now: float) -> None:
        before = self._failing.get(kind)
        going_on = before is not None and _code(before.error) == _code(error)
        self._failing[kind] = Failing(error, before.since if before is not None and going_on else now, now)

    def _is_over(self, failing: Failing, now: float) -> bool:
        patience_s = UNREPEATED_S if _code(failing.error) == UNREACHABLE else UNREPEATED_REFUSAL_S
        return now - failing.last > patience_s and any(when > failing.last for when in self._succeeded.values())

    # --------------------------------------------------------------------------------------------------- reporting

    def _publish(self, now: float) -> None:
        texts = self._derive(now)
        for key in [key for key in self._reported if key not in texts]:
            del self._reported[key]
        for key, text in texts.items():
            self._settle(key, text, now)
        for code in CODES:
            details = {subject: reported.text for (each, subject), reported in self._reported.items() if each == code}
            if self._said.get(code) != details:
                self._said[code] = details
                self.report.set(code, details)

    def _settle(self, key: tuple[str, str], text: str, now: float) -> None:
        """Keep to the text that was reported, unless it is new, or another refusal than before."""
        reported, cause = self._reported.get(key), _ENDPOINT.sub("", text)
        if reported is None:
            self._reported[key] = Reported(text, cause, now, now)
            return
        another = key[0] != UNREACHABLE and cause != reported.cause and now - reported.changed >= ANOTHER_S
        if another or now - reported.since <= SETTLE_S:
            self._reported[key] = Reported(text, cause, reported.since, now if another else reported.changed)

    def _derive(self, now: float) -> dict[tuple[str, str], str]:
        """What should be reported, by code and subject."""
        by_code: dict[str, dict[Kind, Failing]] = {}
        for kind in Kind:
            if kind in self._failing:
                by_code.setdefault(_code(self._failing[kind].error), {})[kind] = self._failing[kind]
        texts = {(REFUSED, kind.value): f"{kind.plural}: {each.error}" for kind, each in by_code.get(REFUSED, {}).items()}
        if silent := by_code.get(UNREACHABLE):
            texts |= self._silence(list(silent.values()), now)
        if distrusted := by_code.get(TLS):
            texts[TLS, ""] = _latest(list(distrusted.values()))
        return texts | self._refused_users(by_code.get(AUTH, {}), now)

    def _silence(self, silent: list[Failing], now: float) -> dict[tuple[str, str], str]:
        if self._link_down_at is not None and now - self._link_down_at > LINK_S:
            self._link_down, self._link_down_at = "", None
        if self._link_down:
            return {}
        # That something was refused tells more than that nothing came.
        precise = [each for each in silent if "no answer" not in str(each.error) and "no sign of life" not in str(each.error)]
        return {(UNREACHABLE, ""): _latest(precise or silent)}

    def _refused_users(self, refused: dict[Kind, Failing], now: float) -> dict[tuple[str, str], str]:
        if not refused:
            self._by_kind = None
            return {}
        since = min(each.since for each in refused.values())
        if self._by_kind is None:
            if now - since < DECIDE_S:
                return {}
            self._by_kind = any(when > since for kind, when in self._succeeded.items() if kind not in refused)
        if not self._by_kind:
            return {(AUTH, ""): _latest(list(refused.values()))}
        return {(AUTH, kind.value): f"{kind.plural}: {each.error}" for kind, each in refused.items()}


def _code(error: RegistryError) -> str:
    if isinstance(error, RegistryUnavailableError):
        return UNREACHABLE
    if isinstance(error, RegistryTlsError):
        return TLS
    return AUTH if isinstance(error, RegistryAuthError) else REFUSED


def _latest(failures: list[Failing]) -> str:
    return str(max(failures, key=lambda each: each.last).error)
