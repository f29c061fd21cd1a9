"""What can be wrong, and what does the operator do about it? A table of conditions, and the set of those that hold now.

Status, readiness, metrics, logs and docs/conditions.md are views of this table; none of them decides by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum


class Severity(IntEnum):
    """How bad: INFO is for knowing, WARNING wants a look, ERROR means that packets are or will be lost."""

    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that can be wrong. ``text`` is filled in with ``{detail}``; ``after`` is how long it must hold, in seconds, before
    anybody is told (a blip is no news). ``hides``: codes that say the same thing from further away and are not told beside it.
    """

    code: str
    severity: Severity
    text: str
    remedy: str
    after: float = 0.0
    hides: tuple[str, ...] = ()
    unready: bool = False
    """True where the agent is not ready to carry traffic while this holds."""


_ALL = (
    Condition(
        "config-unusable",
        Severity.ERROR,
        "network config {detail}; waiting for it to be mended",
        "write a config: flannelpy config put FILE (flannelpy config check FILE tells whether it is right)",
        unready=True,
    ),
    Condition(
        "config-changed",
        Severity.WARNING,
        "the network config has changed: {detail}; going on with the one before",
        "restart flannelpy on every host when it suits you; a restart takes the new config",
    ),
    Condition(
        "registry-unreachable",
        Severity.WARNING,
        "etcd does not answer: {detail}; what is programmed stays as it is",
        "check etcd and the way to it; the agent goes on by itself when it answers",
        after=2.0,
    ),
    Condition(
        "registry-tls",
        Severity.ERROR,
        "etcd's TLS: {detail}; trying again",
        "check --etcd-cafile, --etcd-certfile, --etcd-keyfile and the scheme of --etcd-endpoints",
    ),
    Condition(
        "registry-auth",
        Severity.ERROR,
        "etcd refuses us: {detail}; trying again",
        "check --etcd-username, the password, and the role's permission on the prefix",
    ),
    Condition(
        "registry-refused",
        Severity.ERROR,
        "etcd answers and refuses {detail}; trying again",
        "no space: compact and defragment etcd, then etcdctl alarm disarm; a learner or a corrupt member: take it out of "
        "--etcd-endpoints",
        after=2.0,
    ),
    Condition(
        "registry-cut-off",
        Severity.WARNING,
        "etcd is out of reach: {detail}; what is programmed stays as it is",
        "bring the link up; the agent goes on by itself",
        after=2.0,
    ),
    Condition(
        "no-free-subnet",
        Severity.ERROR,
        "{detail}; waiting for one",
        "release leases of hosts that are gone, or use a larger Network",
        unready=True,
    ),
    Condition(
        "lease-lost",
        Severity.ERROR,
        "our lease is gone from etcd: {detail}; asking for it again",
        "none needed; if it stays, another host may hold the subnet",
        after=2.0,
        hides=("lease-unconfirmed",),
    ),
    Condition(
        "lease-unconfirmed",
        Severity.WARNING,
        "our lease could not be confirmed: {detail}; packets keep flowing",
        "check etcd and the way to it",
        after=5.0,
    ),
    Condition(
        "subnet-conflict",
        Severity.ERROR,
        "two hosts claim one subnet: {detail}",
        "see that every host has an address and a --public-ip of its own",
    ),
    Condition(
        "subnet-changed",
        Severity.ERROR,
        "our subnet is another one now: {detail}",
        "restart Docker, so that its bridge takes the new subnet from the subnet file",
    ),
    Condition(
        "duplicate-public-ip",
        Severity.ERROR,
        "another host publishes our address: {detail}",
        "give each host its own --public-ip or --iface",
    ),
    Condition(
        "lease-malformed",
        Severity.WARNING,
        "a key in etcd is not a lease: {detail}; it is passed over",
        "delete the key if nobody needs it; nothing but leases belongs below <prefix>/subnets",
    ),
    Condition(
        "peer-unusable",
        Severity.WARNING,
        "a peer's lease cannot be used: {detail}; no route to it, the others are not affected",
        "look at the lease in etcd, and at the host that wrote it",
    ),
    Condition(
        "peer-unreadable",
        Severity.WARNING,
        "a peer's lease does not say how to reach it: {detail}; no route to it, the others are not affected",
        "look at the lease in etcd, and at the host that wrote it",
    ),
    Condition(
        "peer-conflict",
        Severity.WARNING,
        "two leases cannot both be programmed: {detail}; the older one is",
        "give each host a lease of its own; a cloned machine may have copied another's state directory",
    ),
    Condition(
        "kernel-refused",
        Severity.ERROR,
        "{detail}",
        "the message says what the kernel missed; the agent tries again by itself",
        after=0.5,
    ),
    Condition(
        "kernel-contested",
        Severity.ERROR,
        "somebody else changes {detail} again and again; it is repaired with growing pauses",
        "find the other program: a second agent for the same device, a network manager, a script",
    ),
    Condition(
        "registry-reset",
        Severity.ERROR,
        "etcd has lost data: {detail}",
        "none needed where the other hosts are up; restore etcd's data where they are not",
    ),
    Condition(
        "view-stale",
        Severity.WARNING,
        "etcd has not been reached since the start: {detail}; packets flow by what was known then",
        "check etcd and the way to it; the agent corrects itself when it answers",
    ),
    Condition(
        "kernel-unreadable",
        Severity.ERROR,
        "the kernel's state cannot be read: {detail}; trying again",
        "flannelpy needs CAP_NET_ADMIN",
        unready=True,
    ),
    Condition(
        "engine-refused",
        Severity.WARNING,
        "{detail}",
        "load the modules fou and ipip (modprobe fou ipip) and restart flannelpy; or ask for auto",
    ),
    Condition(
        "datapath-failed",
        Severity.ERROR,
        "the packet pump cannot run: {detail}",
        "the message says what is missing; the agent tries again by itself",
        unready=True,
    ),
    Condition(
        "subnet-file",
        Severity.ERROR,
        "the subnet file cannot be written: {detail}; trying again",
        "make the directory writable, or choose another with --subnet-file",
        unready=True,
    ),
    Condition(
        "state-dir",
        Severity.WARNING,
        "the state directory cannot be used: {detail}; going on without it",
        "make the directory writable, or choose another with --state-dir",
    ),
    Condition(
        "uplink-changed",
        Severity.WARNING,
        "the uplink has changed: {detail}",
        "restart flannelpy to take the new one",
    ),
)

CONDITIONS: dict[str, Condition] = {condition.code: condition for condition in _ALL}


@dataclass(frozen=True, slots=True)
class Active:
    """A condition that holds: about whom (``subject``: a lease key, a kernel key, or empty), since when, told or not."""

    condition: Condition
    subject: str
    detail: str
    since: float
    told: bool = False

    @property
    def text(self) -> str:
        """The one line that a person reads."""
        return self.condition.text.format(detail=self.detail)


@dataclass(frozen=True, slots=True)
class News:
    """Something to tell: a condition that began (or changed its detail) or, ``over``, ended."""

    active: Active
    over: bool = False


@dataclass(slots=True)
class Health:
    """The conditions that hold now. Pure: ``now`` is handed in, in seconds of any monotonic clock."""

    _active: dict[tuple[str, str], Active] = field(default_factory=dict)
    _ended: list[Active] = field(default_factory=list)

    def begin(self, code: str, now: float, detail: str, subject: str = "") -> None:
        """``code`` holds for ``subject``. Said again with another detail, it is told again; with the same, it is no news."""
        old = self._active.get((code, subject))
        if old is not None and old.detail == detail:
            return
        since = now if old is None else old.since
        self._active[code, subject] = Active(CONDITIONS[code], subject, detail, since)

    def end(self, code: str, subject: str = "") -> None:
        """``code`` holds no longer for ``subject``. No news where it did not hold."""
        old = self._active.pop((code, subject), None)
        if old is not None and old.told:
            self._ended.append(old)

    def end_all_but(self, code: str, subjects: frozenset[str] | set[str]) -> None:
        """``code`` holds for none but these subjects."""
        for held, subject in list(self._active):
            if held == code and subject not in subjects:
                self.end(code, subject)

    def news(self, now: float) -> tuple[list[News], float | None]:
        """What to tell now, each thing once; and when to ask again, where a condition still waits for its ``after``."""
        told = [News(active, over=True) for active in self._ended]
        self._ended.clear()
        hidden = {code for active in self._active.values() for code in active.condition.hides}
        due: float | None = None
        for key, active in self._active.items():
            if active.told or active.condition.code in hidden:
                continue
            when = active.since + active.condition.after
            if when <= now:
                self._active[key] = Active(active.condition, active.subject, active.detail, active.since, told=True)
                told.append(News(active))
            else:
                due = when if due is None else min(due, when)
        return told, due

    def __iter__(self) -> Iterator[Active]:
        return iter(self._active.values())

    def holds(self, code: str) -> bool:
        """True where ``code`` holds for anybody."""
        return any(active.condition.code == code for active in self._active.values())

    @property
    def blocks_ready(self) -> bool:
        """True while something holds that makes the agent unfit to carry traffic."""
        return any(active.condition.unready for active in self._active.values())
