"""What can be wrong, and what does the operator do about it? A table of conditions, and the set of those that hold now.

Status, readiness, metrics, logs and docs/conditions.md are views of this table; none of them decides by itself.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from flannelpy.core.foreign import LINE, cut


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
        "flannelpy config put FILE writes one; flannelpy config check FILE says before whether it is right",
        unready=True,
    ),
    Condition(
        "config-changed",
        Severity.WARNING,
        "the network config in etcd cannot be used: {detail}; going on with the one before",
        "write a config that can be: flannelpy config check FILE, flannelpy config put FILE",
    ),
    Condition(
        "registry-unreachable",
        Severity.WARNING,
        "etcd does not answer: {detail}; what is programmed stays as it is",
        "look at etcd and the way to it: etcdctl endpoint health; the agent goes on by itself when etcd answers",
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
        "etcd answers, and refuses: {detail}; trying again",
        "the message says what etcd is missing (etcdctl alarm list, etcdctl endpoint status)",
        after=2.0,
    ),
    Condition(
        "no-free-subnet",
        Severity.ERROR,
        "{detail}; waiting for one",
        "flannelpy lease list shows who holds what; flannelpy lease release SUBNET for hosts that are gone, or a larger Network",
        unready=True,
    ),
    Condition(
        "lease-lost",
        Severity.ERROR,
        "our lease is gone from etcd: {detail}; asking for it again",
        "none needed; if it stays, flannelpy lease list shows who holds the subnet",
        after=2.0,
        hides=("lease-unconfirmed",),
    ),
    Condition(
        "lease-unconfirmed",
        Severity.WARNING,
        "our lease could not be confirmed: {detail}; packets keep flowing",
        "look at etcd and the way to it: etcdctl endpoint health",
        after=5.0,
    ),
    Condition(
        "subnet-conflict",
        Severity.ERROR,
        "two hosts claim one subnet: {detail}",
        "give every host an address and a --public-ip of its own; flannelpy lease list shows who holds what",
    ),
    Condition(
        "subnet-changed",
        Severity.ERROR,
        "our subnet has changed: {detail}",
        "systemctl restart docker, so that its bridge takes the new subnet from the subnet file",
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
        "a key in etcd is not a lease: {detail}; it is ignored",
        "etcdctl del KEY, if nobody needs it; nothing but leases belongs below <prefix>/subnets",
    ),
    Condition(
        "peer-unusable",
        Severity.WARNING,
        "a peer's lease cannot be used: {detail}; no route to it, the others are not affected",
        "flannelpy lease list shows the lease and its host; mend that host's options, or flannelpy lease release SUBNET",
    ),
    Condition(
        "peer-unreadable",
        Severity.WARNING,
        "a peer's lease does not say how to reach it: {detail}; no route to it, the others are not affected",
        "flannelpy lease list shows the lease and its host; restart flannelpy there, or flannelpy lease release SUBNET",
    ),
    Condition(
        "peer-conflict",
        Severity.WARNING,
        "two leases cannot both be programmed: {detail}; the older one is",
        "flannelpy lease list shows both; flannelpy lease release SUBNET for the wrong one (a clone has copied a state directory)",
    ),
    Condition(
        "kernel-refused",
        Severity.ERROR,
        "{detail}",
        "remove what is in the way (ip route del, ip link del), or load what is missing; the agent tries again by itself",
        after=0.5,
    ),
    Condition(
        "kernel-contested",
        Severity.ERROR,
        "somebody else changes {detail} again and again; it is repaired with growing pauses",
        "ip monitor shows the changes; look for a second agent for the same device, a network manager, a script",
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
        "look at etcd and the way to it: etcdctl endpoint health; the agent corrects itself when etcd answers",
    ),
    Condition(
        "backend-failed",
        Severity.ERROR,
        "what the host itself needs cannot be worked out: {detail}; what is programmed stays, trying again",
        "look at the network config; where it is a plugin's own fault, tell who wrote it (--log-level debug shows where)",
        unready=True,
    ),
    Condition(
        "kernel-unreadable",
        Severity.ERROR,
        "the kernel's state cannot be read: {detail}; trying again",
        "run it as root, or give the service AmbientCapabilities=CAP_NET_ADMIN",
        unready=True,
    ),
    Condition(
        "engine-refused",
        Severity.WARNING,
        "{detail}",
        "modprobe -a fou ipip, then systemctl restart flannelpy; or ask for the engine auto",
    ),
    Condition(
        "datapath-failed",
        Severity.ERROR,
        "the userspace datapath cannot run: {detail}",
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
        "uplink-missing",
        Severity.ERROR,
        "no uplink to send from: {detail}; what is programmed stays as it is",
        "bring the interface and its address back (ip addr), or choose another with --iface",
        unready=True,
    ),
    Condition(
        "uplink-down",
        Severity.ERROR,
        "the uplink {detail} is down: no packet reaches another host",
        "look at the cable or the switch, or: ip link set INTERFACE up",
        unready=True,
    ),
    Condition(
        "mtu-clamped",
        Severity.WARNING,
        "the MTU is smaller than the network config asks for: {detail}",
        "raise the MTU of the uplink, or lower Backend.MTU",
    ),
    Condition(
        "network-overlap",
        Severity.ERROR,
        "Network overlaps what this host needs outside of it: {detail}",
        "use a Network that no host, gateway, resolver or etcd is in: flannelpy config put FILE",
    ),
    Condition(
        "subnet-overlap",
        Severity.ERROR,
        "our subnet covers what this host needs outside of it: {detail}",
        "flannelpy lease release SUBNET, then systemctl restart flannelpy: it takes another one",
        unready=True,
    ),
    Condition(
        "task-failed",
        Severity.ERROR,
        "a part of the agent failed and was started again: {detail}",
        "this is a fault of flannelpy: please report it, with the traceback in the log",
        after=0.0,
    ),
)

CONDITIONS: dict[str, Condition] = {condition.code: condition for condition in _ALL}


CHANGES, CHANGED_S = 20, 60.0
"""A condition whose detail changes is reported again, so often within so many seconds; then once in a while."""


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
    """Something to report: a condition that began (or changed its detail) or, ``resolved``, ended."""

    active: Active
    resolved: bool = False


@dataclass(slots=True)
class Health:
    """The conditions that hold now. Pure: ``now`` is handed in, in seconds of any monotonic clock.

    A condition with an ``after`` must hold for so long before it is reported, and must be gone for so long before it is over: one
    that flaps faster is reported once, and stays.
    """

    _active: dict[tuple[str, str], Active] = field(default_factory=dict)
    _resolved: list[Active] = field(default_factory=list)

    def set(self, code: str, now: float, details: Mapping[str, str]) -> None:
        """``code`` holds for exactly these subjects, with these details: begins, changes and ends by difference."""
        for subject, detail in details.items():
            self.begin(code, now, detail, subject)
        self.end_all_but(code, now, details)

    def begin(self, code: str, now: float, detail: str, subject: str = "") -> None:
        """``code`` holds for ``subject``. Nothing new where it does already, with the same detail, of which a line is kept."""
        detail = cut(detail, LINE)
        old = self._active.get((code, subject))
        if old is None:
            self._active[code, subject] = Active(CONDITIONS[code], subject, detail, now)
        elif old.ended is not None:
            self._active[code, subject] = replace(old, detail=detail, ended=None, flapped=True)
        elif old.detail != detail:
            self._active[code, subject] = replace(old, detail=detail)

    def end(self, code: str, now: float, subject: str = "") -> None:
        """``code`` holds no longer for ``subject``. Nothing new where it did not hold."""
        old = self._active.get((code, subject))
        if old is None or old.ended is not None:
            return
        if old.condition.after:
            self._active[code, subject] = replace(old, ended=now)
        else:
            self._drop(old)

    def end_all_but(self, code: str, now: float, subjects: Container[str]) -> None:
        """``code`` holds for none but these subjects."""
        for held, subject in list(self._active):
            if held == code and subject not in subjects:
                self.end(code, now, subject)

    def news(self, now: float) -> tuple[list[Transition], float | None]:
        """What to report now, each thing once; and when to ask again, where something waits for its time."""
        for active in [active for active in self._active.values() if active.over_at is not None and active.over_at <= now]:
            self._drop(active)
        news = [Transition(active, resolved=True) for active in self._resolved]
        self._resolved.clear()
        hidden = {code for active in self._active.values() if active.ended is None for code in active.condition.hides}
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
        return news, min(waiting, default=None)

    def _drop(self, active: Active) -> None:
        del self._active[active.condition.code, active.subject]
        if active.reported:
            self._resolved.append(active)

    def __iter__(self) -> Iterator[Active]:
        """What a person is to see: what holds, and what was reported and may come back any moment."""
        return (active for active in self._active.values() if active.ended is None or active.reported)

    def holds(self, code: str) -> bool:
        """True where ``code`` holds for anybody, this very moment."""
        return any(active.condition.code == code and active.ended is None for active in self._active.values())

    @property
    def blocks_ready(self) -> bool:
        """True while something holds that makes the agent unfit to carry traffic."""
        return any(active.condition.unready and active.ended is None for active in self._active.values())
