"""When is which peer asked whether it is there? A schedule of echo requests: light, spread out, bounded; ``now`` is handed in.

In the steady state a peer gets one packet each ten seconds: a full one through the overlay, whose answer says all there is to say.
Only where it brings none, small ones and ones beside the overlay tell what is wrong. However many peers there are, a packet leaves
no sooner than ``GAP_S`` after the one before.

So few packets cannot prove of each of many peers that it is gone: a hundred packets take ten seconds. Where many fall silent at
once, and hardly one of them answers when it is asked again, each packet that is lost is believed to be of the same cause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random

from netaddr import IPAddress

from flannelpy.core.reachability import ALONE_S, CONFIRMED, LOST, Kind, Probed, Target, Verdict, judge

GAP_S = 0.101
"""Between two packets: not ten a second."""

EVERY_S = 10.0
"""How often a peer is asked, up to a hundred of them."""

FAILING_S, FAILING_SHARE = 2.0, 0.2
"""How often at first where it does not answer, later less often, down to ``EVERY_S``; all of these are so much of the packets."""

CROWD, CROWD_S = 3, 20.0
"""So many peers that have fallen silent within so many seconds, and were asked again in vain, are one failure of many peers."""

MISTAKEN = 0.25
"""Unless of all that seemed to be silent so many as a part of these have answered since: then packets are lost by chance."""

VISIT_OF, URGENT_OF_A_CROWD = 3, 8
"""Where there are both, one packet of so many is a visit, the others say more of a peer that is silent. Among a crowd, where first
of all each peer has to be asked once, one packet of so many is none.
"""

BESIDE_EVERY = 30
"""One visit in so many also asks beside the overlay: whether a host answers there has to be known before it matters."""

WITHIN_S = 1.0
"""An answer is waited for so long; one that comes later is welcome for as long as ``LATE_S``."""

LATE_S = 10.0

SMALL = 64
"""Bytes of a small packet, with its IP header."""

_ROTATION: tuple[Kind, ...] = ("small", "beside", "full")
_BURST: tuple[Kind, ...] = ("small", "beside", "full", "full")
_OLD_MTU_S = 600.0

LATER = len(_BURST)
"""Of what is asked besides the visits, what is no longer urgent."""

CUT_OFF = 100
"""A host is cut off where all of its peers are silent, or so many of more."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One echo request to be sent now. ``size``: in bytes with the IP header; ``token``: what its answer has to hold, 64 bits."""

    token: int
    address: IPAddress
    size: int


@dataclass(slots=True)
class _Peer:
    """A peer in the schedule. ``visits``: how often it was its turn; ``urgent``: how many packets are queued besides."""

    key: str
    seen: Probed
    visits: int = 0
    urgent: int = 0
    path_mtu_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sent:
    peer: _Peer
    kind: Kind
    probe: Probe
    at: float


class Schedule:
    """Whom to ask when, and what became of it. ``token``: draws 64 bits that nobody can guess."""

    def __init__(self, random: Random, token: Callable[[], int]) -> None:
        self._random = random
        self._token = token
        self._peers: dict[str, _Peer] = {}
        self._visits: list[tuple[float, int, _Peer]] = []
        self._urgent: list[tuple[int, int, _Peer, Kind]] = []
        self._waiting: deque[_Sent] = deque()
        self._sent: dict[int, _Sent] = {}
        self._late: deque[_Sent] = deque()
        self._numbers = count()
        self._free_at = 0.0
        self._turns = 0
        self._suspects: set[str] = set()
        self._recovered: deque[float] = deque()
        self._crowded = False
        self._answered = False
        self._missed: tuple[float, set[str]] | None = None

    # ------------------------------------------------------------------------------------------------------- peers

    def update(self, changes: Mapping[str, Target | None], now: float) -> None:
        """These peers came or changed; None for one that went. Of one that is asked elsewhere now all is forgotten."""
        for key, target in changes.items():
            known = self._peers.get(key)
            if target is None:
                self._peers.pop(key, None)
                self._suspects.discard(key)
            elif known is None or known.seen.target != target:
                peer = self._peers[key] = _Peer(key, Probed(target, now))
                self._suspects.discard(key)
                heappush(self._visits, (now + self._random.uniform(0.0, 0.5), next(self._numbers), peer))

    def forget(self, now: float) -> None:
        """Begin anew with every peer: the host was cut off, or asleep."""
        targets = {key: peer.seen.target for key, peer in self._peers.items()}
        self._peers, self._visits, self._urgent = {}, [], []
        self._sent.clear()
        self._waiting.clear()
        self._late.clear()
        self._suspects.clear()
        self._recovered.clear()
        self._answered, self._missed, self._crowded = False, None, False
        self.update(targets, now)

    def seen(self, key: str) -> Probed | None:
        """What is known of a peer."""
        peer = self._peers.get(key)
        return None if peer is None else peer.seen

    def __len__(self) -> int:
        return len(self._peers)

    # ----------------------------------------------------------------------------------------------------- packets

    def step(self, now: float, may: Callable[[str], bool] = lambda _key: True) -> tuple[Probe | None, float]:
        """What to send now, if anything, and when to ask again. ``may``: whether a peer can be sent to at all at this moment."""
        self._expire(now)
        probe = self._next(now, may) if now >= self._free_at else None
        if probe is not None:
            self._free_at = now + GAP_S
        return probe, self._wake(now)

    def heard(self, token: int, address: IPAddress, size: int, now: float) -> bool:
        """An answer came. False for one to nothing that was asked: another token, another host, another length, or a second one."""
        sent = self._sent.get(token)
        if sent is None or sent.probe.address != address or sent.probe.size != size:
            return False
        del self._sent[token]
        peer, seen = sent.peer, sent.peer.seen
        path, was_silent = seen.path(sent.kind), seen.small.lost >= CONFIRMED
        if sent.kind != "beside":
            if peer.key in self._suspects and (seen.small.lost or seen.full.lost):
                self._recovered.append(now)
            seen.together = False
        path.answered(now, now - sent.at)
        if sent.kind != "beside":
            seen.note(True)
            self._answered, self._missed = True, None
            if sent.kind == "small" and seen.full.lost and was_silent:
                seen.full.lost, seen.full.silent_since = 0, None  # those were lost with everything else
                self._ask(peer, "full")
            elif sent.kind == "full":
                seen.small.lost, seen.small.silent_since, seen.small.error = 0, None, ""
                if peer.visits <= 1 or seen.beside.lost:
                    self._ask(peer, "beside")
        return True

    def refused(self, token: int, why: str) -> None:
        """This host's kernel could not send it, or knows that nobody is there; it counts as lost when its time has come."""
        sent = self._sent.get(token)
        if sent is not None:
            sent.peer.seen.path(sent.kind).error = why

    def too_large(self, token: int, mtu: int, now: float) -> None:
        """The network has said how large packets may be on this way: then so large are the full ones."""
        sent = self._sent.pop(token, None)
        if sent is not None and SMALL < mtu < sent.probe.size:
            sent.peer.seen.path_mtu, sent.peer.path_mtu_at = mtu, now
            self._ask(sent.peer, "full")

    def arrived(self, address: IPAddress, now: float) -> None:
        """A peer's own request came in from this address of the overlay. Anybody may have sent it: it is worth a word, no more."""
        for key in self._suspects:
            seen = self._peers[key].seen
            if seen.target.through == address:
                seen.inbound = now

    # ---------------------------------------------------------------------------------------------------- verdicts

    def verdict(self, key: str, now: float) -> Verdict | None:
        """What is to be said of this peer."""
        peer = self._peers.get(key)
        return None if peer is None else judge(peer.seen, now)

    @property
    def urgent(self) -> int:
        """How many packets are due besides the visits."""
        return len(self._urgent)

    @property
    def suspected(self) -> int:
        """How many peers owe an answer."""
        return len(self._suspects)

    def suspects(self, now: float) -> Iterator[tuple[str, Verdict]]:
        """The peers of which something has to be said, or may have to be soon."""
        self._look_at_the_crowd(now)
        for key in list(self._suspects):
            seen = self._peers[key].seen
            verdict = judge(seen, now)
            if verdict.state == "reachable" and not seen.full.lost and not seen.small.lost:
                self._suspects.discard(key)
            yield key, verdict

    def alone(self, now: float) -> bool:
        """Nothing has come through the overlay from any of two or more peers, for long; and something did before."""
        if not self._answered or self._missed is None or len(self._peers) < 2:
            return False
        since, keys = self._missed
        return now - since >= ALONE_S and len(keys & self._peers.keys()) >= min(CUT_OFF, len(self._peers))

    # ----------------------------------------------------------------------------------------------------- inside

    def _next(self, now: float, may: Callable[[str], bool]) -> Probe | None:
        while True:
            visit = bool(self._visits) and self._visits[0][0] <= now
            self._spare_the_crowd()
            urgent = bool(self._urgent) and not (visit and self._urgent[0][0] >= LATER)
            if not urgent and not visit:
                return None
            turn = self._turns % URGENT_OF_A_CROWD > 0 if self._crowded else self._turns % VISIT_OF == 0
            if visit and (turn or not urgent):
                _due, _number, peer = heappop(self._visits)
                if self._peers.get(peer.key) is not peer:
                    continue
                kind = self._visit(peer, now)
            else:
                level, _number, peer, kind = heappop(self._urgent)
                peer.urgent -= level < LATER
                if self._peers.get(peer.key) is not peer:
                    continue
            if may(peer.key):
                self._turns += 1
                return self._probe(peer, kind, now)
            self._spare(peer, now)

    def _visit(self, peer: _Peer, now: float) -> Kind:
        """It is this peer's turn: how to ask, and when again."""
        seen = peer.seen
        silent_since = seen.full.silent_since if seen.full.lost >= LOST else None
        pause = max(EVERY_S, GAP_S * len(self._peers))
        if silent_since is not None:
            share = GAP_S * len(self._suspects) / FAILING_SHARE
            pause = min(pause, max(FAILING_S, share, (now - silent_since) / 10))
        heappush(self._visits, (now + pause * self._random.uniform(0.95, 1.0), next(self._numbers), peer))
        peer.visits += 1
        if seen.path_mtu is not None and now - peer.path_mtu_at > _OLD_MTU_S:
            seen.path_mtu = None
        if silent_since is not None:
            kind = _ROTATION[peer.visits % len(_ROTATION)]
            return "small" if kind == "beside" and seen.target.beside is None else kind
        if not peer.visits % BESIDE_EVERY:
            self._ask(peer, "beside")
        return "full"

    def _probe(self, peer: _Peer, kind: Kind, now: float) -> Probe:
        target = peer.seen.target
        address = target.beside if kind == "beside" and target.beside is not None else target.through
        probe = Probe(self._token(), address, peer.seen.size if kind == "full" else SMALL)
        sent = self._sent[probe.token] = _Sent(peer, kind, probe, now)
        self._waiting.append(sent)
        return probe

    def _spare(self, peer: _Peer, now: float) -> None:
        """It cannot be sent to: what is lost then says nothing of it."""
        for path in (peer.seen.small, peer.seen.full):
            path.lost, path.silent_since = 0, None
        peer.seen.began = max(peer.seen.began, now)

    def _ask(self, peer: _Peer, *kinds: Kind) -> None:
        """Besides the visits, and of all peers the first of these packets before the second of any."""
        for level, kind in enumerate(kinds):
            if peer.urgent < len(_BURST) and (kind != "beside" or peer.seen.target.beside is not None):
                peer.urgent += 1
                heappush(self._urgent, (level, next(self._numbers), peer, kind))

    def _spare_the_crowd(self) -> None:
        """What else is asked of a peer that has been told of with many others waits until nothing else is to be sent."""
        while self._urgent and self._urgent[0][0] < LATER and self._urgent[0][2].seen.together:
            level, number, peer, kind = heappop(self._urgent)
            peer.urgent -= 1
            if len(self._urgent) < len(_BURST) * len(self._peers):
                heappush(self._urgent, (level + LATER, number, peer, kind))

    def _look_at_the_crowd(self, now: float) -> None:
        """Have many fallen silent together? Then one packet that is lost says enough of a peer, until it answers."""
        while self._recovered and self._recovered[0] < now - CROWD_S:
            self._recovered.popleft()
        fresh = [seen for seen in map(self._seen_of, self._suspects) if (seen.full.silent_since or 0.0) >= now - CROWD_S]
        confirmed = sum(1 for seen in fresh if seen.full.lost + seen.small.lost >= CONFIRMED)
        self._crowded = confirmed >= CROWD and len(self._recovered) <= MISTAKEN * confirmed
        if self._crowded:
            for seen in fresh:
                seen.together = seen.together or bool(seen.full.lost)

    def _seen_of(self, key: str) -> Probed:
        return self._peers[key].seen

    def _expire(self, now: float) -> None:
        while self._waiting and self._waiting[0].at + WITHIN_S <= now:
            sent = self._waiting.popleft()
            if sent.probe.token in self._sent:
                self._late.append(sent)
                self._miss(sent)
        while self._late and self._late[0].at + LATE_S <= now:
            self._sent.pop(self._late.popleft().probe.token, None)

    def _miss(self, sent: _Sent) -> None:
        peer, seen = sent.peer, sent.peer.seen
        if self._peers.get(peer.key) is not peer:
            return
        if sent.kind != "beside":
            self._missed = self._missed or (sent.at, set())
            if len(self._missed[1]) < CUT_OFF:
                self._missed[1].add(peer.key)
        path = seen.path(sent.kind)
        if path.heard is not None and path.heard > sent.at:
            return  # a later one was answered: this one was lost by chance
        path.missed(sent.at)
        self._suspects.add(peer.key)
        if sent.kind != "beside":
            seen.note(False)
        if sent.kind == "full" and seen.full.lost in (1, LOST):
            self._ask(peer, *(_BURST if seen.heard is not None else _ROTATION[: 4 - seen.full.lost]))

    def _wake(self, now: float) -> float:
        due = [self._visits[0][0]] if self._visits else []
        due += [now] if self._urgent else []
        wake = max(min(due, default=now + EVERY_S), self._free_at)
        while self._waiting and self._waiting[0].probe.token not in self._sent:
            self._waiting.popleft()
        return min(wake, self._waiting[0].at + WITHIN_S) if self._waiting else wake
