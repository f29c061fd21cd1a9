"""Are the peers there? Each is asked now and then, and what is heard becomes a verdict in its row, and a condition.

``core.probing`` says whom to ask when, ``core.reachability`` what to make of it; here packets leave and come.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf

from flannelpy.agent.beat import next_beat
from flannelpy.agent.context import Context
from flannelpy.agent.view import Cursor
from flannelpy.core.errors import KernelError
from flannelpy.core.model import Family, Lease
from flannelpy.core.probing import Probe, Schedule
from flannelpy.core.reachability import Probed, Target, Verdict
from flannelpy.kernel import Echo, Heard, PacketTooLargeError

log = logging.getLogger("flannelpy")

PAUSED_S = 1.0
"""Between two looks whether peers can be asked at all."""

JUDGED_S, JUDGED_PEERS = 0.5, 100
"""Between two verdicts on the peers that do not answer: so long for each so many of them."""

TAKEN_S, TAKEN_PEERS = 1.0, 1000
"""Between two looks at which peers came and went, so long for each so many: one that flaps costs no more than that."""

MOST_REQUESTS = 100
"""Of others between two verdicts; what is more is not listened to: they are worth a word, and anybody may send them."""

ASLEEP_S = 5.0
"""A loop that did not turn for so long has heard nothing: what was lost meanwhile proves nothing."""

WITHOUT_S = 30.0
"""Between two attempts to have a socket."""

Aim = Callable[[Lease], Target | None]
CONDITIONS = ("peer-unreachable", "peer-silent", "peers-unreachable")


class _NoSocketError(Exception):
    """Nobody can be asked; says why."""


class Probes:
    """``aim``: where each peer is asked, the same object as long as that is the same; or why nobody is to be asked now.
    ``in_sync``: whether the kernel holds what reaches a peer.
    """

    def __init__(self, context: Context, cursor: Cursor, aim: Callable[[], Aim | str], in_sync: Callable[[str], bool]) -> None:
        self.off = "not begun"
        """Why nobody is asked; empty while they are."""
        self._context = context
        self._peers = cursor
        self._aim = aim
        self._in_sync = in_sync
        self._schedule = Schedule(context.random, lambda: secrets.randbits(64))
        self._echoes: dict[Family, Echo] = {}
        self._poke = asyncio.Event()
        self._said: dict[str, Mapping[str, str]] = {}
        self._requests = 0

    def of(self, key: str) -> tuple[Probed, Verdict] | None:
        """What is known of a peer, and what is to be said of it; None where it is not asked."""
        seen = self._schedule.seen(key)
        verdict = self._schedule.verdict(key, self._context.clock())
        return None if seen is None or verdict is None or self.off else (seen, verdict)

    async def run(self) -> None:
        """Ask, for ever, whenever that makes sense."""
        try:
            while True:
                pause_s = PAUSED_S
                try:
                    self.off = await self._ask()
                except _NoSocketError as error:
                    if self.off != str(error):
                        log.warning("peers are not probed: %s", error)
                    self.off, pause_s = str(error), WITHOUT_S
                self._close()
                self._peers.leave()
                self._schedule.forget(self._context.clock())
                self._report({}, {}, False)
                await asyncio.sleep(pause_s)
        finally:
            self._close()

    def _close(self) -> None:
        for echo in self._echoes.values():
            echo.close()
        self._echoes.clear()

    async def _ask(self) -> str:
        """As long as that makes sense. Returns why it does no more."""
        clock, schedule = self._context.clock, self._schedule
        aimed: Aim | None = None
        judged = due = clock()
        taken = -inf
        while not isinstance(aim := self._aim(), str):
            now = clock()
            if now >= taken + TAKEN_S * max(1.0, len(self._peers.current) / TAKEN_PEERS) or aim is not aimed:
                changed = self._peers.take() if aim is aimed else self._peers.current
                schedule.update({key: None if lease is None else aim(lease) for key, lease in changed.items()}, now)
                taken, aimed = now, aim
            if now - due > ASLEEP_S:
                schedule.forget(now)
            self._receive(now)
            probe, wake = schedule.step(now, self._in_sync)
            if probe is not None:
                self._send(probe, now)
            self.off = ""
            if now >= judged + JUDGED_S * max(1.0, schedule.suspected / JUDGED_PEERS):
                self._judge(now)
                judged = now
            due = min(wake, next_beat(now, JUDGED_S if schedule.suspected else PAUSED_S))
            await self._pause(due - now)
        return aim

    async def _pause(self, seconds: float) -> None:
        self._poke.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._poke.wait()

    # ------------------------------------------------------------------------------------------------------ packets

    def _send(self, probe: Probe, now: float) -> None:
        try:
            self._echo(probe.address.version).send(probe.address, probe.token, probe.size)
        except PacketTooLargeError as error:
            self._schedule.too_large(probe.token, error.mtu, now)
        except KernelError as error:
            if error.code != errno.EPERM:  # this host's own firewall drops it, and maybe nothing but ICMP: as lost as any other
                self._schedule.refused(probe.token, f"this host cannot send to {probe.address}: {error}")

    def _echo(self, version: Family) -> Echo:
        if version not in self._echoes:
            try:
                echo = self._context.kernel.echo(version)
            except KernelError as error:
                if error.code == errno.EAFNOSUPPORT:  # a kernel without IPv6: peers of IPv4 are asked all the same
                    raise
                raise _NoSocketError(str(error)) from None
            echo.listen(self._hear)
            self._echoes[version] = echo
        return self._echoes[version]

    def _hear(self) -> None:
        """Answers are taken where they come: only one that is part of a change makes the next packet due at once."""
        before = self._schedule.urgent
        self._receive(self._context.clock())
        if self._schedule.urgent > before:
            self._poke.set()

    def _receive(self, now: float) -> None:
        for echo in self._echoes.values():
            for item in echo.receive():
                if not isinstance(item, Heard):
                    self._schedule.refused(item.token, item.why)
                elif item.request:
                    self._schedule.arrived(item.address, now)
                    self._requests += 1
                    echo.hear_requests(self._requests < MOST_REQUESTS)
                else:
                    self._schedule.heard(item.token, item.address, item.size, now)

    # ----------------------------------------------------------------------------------------------------- verdicts

    def _judge(self, now: float) -> None:
        found: dict[str, dict[str, str]] = {"unreachable": {}, "silent": {}}
        for key, verdict in self._schedule.suspects(now):
            lease = self._peers.current.get(key)
            if verdict.state in found and lease is not None and not lease.departing:
                found[verdict.state][key] = f"{lease}: {verdict.why}"
        self._report(found["unreachable"], found["silent"], self._schedule.alone(now))
        self._requests = 0
        for echo in self._echoes.values():
            echo.hear_requests(any(found.values()))

    def _report(self, unreachable: Mapping[str, str], silent: Mapping[str, str], alone: bool) -> None:
        all_of_them = {"": f"{len(self._schedule):,}"} if alone else {}
        for code, details in zip(CONDITIONS, (unreachable, silent, all_of_them), strict=True):
            if self._said.get(code, {}) != details:
                self._said[code] = details
                self._context.reporter.set(code, details)
