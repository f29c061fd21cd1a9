"""Is this watch stream still alive? One gRPC stream, and a question beside it whenever it is silent.

A watch may be silent for hours because nothing happens, or because nothing arrives any more. So while it is silent, etcd is asked
something cheap on the same connection, at most every few seconds: how many config keys there are. That is a linearizable read: a
member without a leader does not answer it, and neither does a proxy whose etcd is gone. etcd's own progress request is not used:
old proxies end when they get one, newer ones never answer (etcd pull request 14151).

Nothing waits between an event's arrival and its delivery; the timers here belong to a task of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from flannelpy.core.errors import RegistryError, RegistryUnavailableError
from flannelpy.registry.cancelling import cancelled
from flannelpy.registry.etcd.channel import Link
from flannelpy.registry.etcd.token import metadata, watch_metadata
from flannelpy.registry.etcd.wire import END, GRACE_S, CallError, Wire, rpc
from flannelpy.registry.etcd.words import is_heard, is_stale_token

FIRST_S = 1.0
"""The first question of a stream comes earlier: its answer ends what was said of the one before."""

WATCH = "watch"
"""What is late (``Link.late``): one stream after the other."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a watch is, in seconds: silence before a question is asked, wait for its answer (longer, where streams to all
    endpoints were given up for it: ``Link.patient``), first and longest backoff.
    """

    silence_s: float = 3.0
    answer_s: float = 2.0
    backoff_s: float = 0.2
    backoff_max_s: float = 2.0


@dataclass(slots=True)
class Stream:
    """A watch stream on one wire. ``question`` is the key that is asked for; ``answered`` takes each answer's header and the
    endpoint, and may raise what ends the stream.
    """

    link: Link
    wire: Wire
    pace: Pace
    call: Any
    token: str | None
    question: bytes
    answered: Callable[[Any, str], None]
    answer_s: float
    _heard_at: float = field(default_factory=time.monotonic)
    _cut: RegistryError | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, link: Link, wire: Wire, pace: Pace, requests: list[Any], question: bytes, answered: Callable[[Any, str], None]
    ) -> AsyncIterator[Stream]:
        """A stream on which ``requests`` were sent; cancelled when it is left."""
        token = await link.token.get(wire, link.endpoint.timeout_s)
        call = wire.watch.Watch(metadata=watch_metadata(token))
        self = cls(link, wire, pace, call, token, question, answered, link.patient(WATCH, pace.answer_s, len(link.addresses)))
        guard = asyncio.get_running_loop().create_task(self._guard(), name=f"guard of the watch at {wire.address}")
        guard.add_done_callback(self._guard_has_ended)
        try:
            link.asked()
            await self._send(requests)
            yield self
        finally:
            guard.cancel()
            call.cancel()

    @property
    def where(self) -> str:
        """The endpoint, for messages."""
        return str(self.wire.address)

    async def _send(self, requests: list[Any]) -> None:
        """Ask for the watches. A write waits without end, even for a cancelled call, where the connection is lost."""
        try:
            async with asyncio.timeout(self.answer_s):
                for request in requests:
                    await self._io(self.call.write(request))
        except TimeoutError:
            raise self._deaf() from None

    async def read(self) -> Any:
        """The next response, as it comes. Raises a RegistryError where the stream has ended or was found deaf."""
        response = await self._io(self.call.read())
        if response is END:
            raise RegistryUnavailableError(f"{self.where}: the watch ended; expected it to go on")
        self._heard_at = time.monotonic()
        if not response.canceled:
            self.link.heard()
        return response

    def forget_token(self) -> None:
        """etcd does not say why it refuses a watch; a token that expired is one reason."""
        self.link.token.forget(self.token)

    async def _io(self, work: Any) -> Any:
        try:
            return await work
        except CallError as error:
            if is_stale_token(error):
                self.forget_token()
            raise await self.link.explain(error, self.wire) from None
        except asyncio.InvalidStateError:  # writing to a call that has ended: its status says why
            raise RegistryUnavailableError(f"{self.where}: the watch ended; expected it to go on") from None
        except asyncio.CancelledError:
            if cancelled():
                raise
            raise self._cut or RegistryUnavailableError(f"{self.where}: the connection was closed by us") from None

    def _deaf(self) -> RegistryError:
        return RegistryUnavailableError(
            f"{self.where}: no sign of life on the watch for {self.answer_s:g} s; expected etcd to answer"
        )

    # -------------------------------------------------------------------------------------------------- guard

    async def _guard(self) -> None:
        """Ask while the stream is silent; raise where no answer comes."""
        patience_s = min(FIRST_S, self.pace.silence_s)
        while True:
            # With chance in it, or a cluster's hosts would all ask in one moment after each change.
            silence_s = patience_s * random.uniform(0.8, 1.2)
            await asyncio.sleep(max(0.0, self._heard_at + silence_s - time.monotonic()))
            if time.monotonic() - self._heard_at < silence_s:
                continue
            asked_at = time.monotonic()
            self.link.asked()
            answered = await self._ask()
            took_s = time.monotonic() - asked_at
            if answered:
                self.link.answered(WATCH, took_s, self.pace.answer_s)
            elif self._heard_at <= asked_at:
                self.link.late[WATCH] += took_s >= self.answer_s - GRACE_S  # else the connection broke
                raise self._deaf()
            self._heard_at = max(self._heard_at, asked_at)
            patience_s = self.pace.silence_s

    async def _ask(self) -> bool:
        """One question; False where no answer came. gRPC's deadline counts, which no busy loop of ours delays."""
        request = rpc.RangeRequest(key=self.question, count_only=True)
        try:
            answer = await self.wire.kv.Range(request, timeout=self.answer_s, metadata=metadata(self.token))
        except CallError as error:
            if not is_heard(error):
                return False
            self.link.heard()  # a refusal is an answer, too
            return True
        self.link.heard()
        self.answered(answer.header, self.where)
        return True

    def _guard_has_ended(self, guard: asyncio.Task[None]) -> None:
        """A stream without its guard may be deaf for ever: it is cut, whatever the guard has ended with."""
        if guard.cancelled():
            return
        error = guard.exception()
        self._cut = (
            error if isinstance(error, RegistryError) else RegistryError(f"{self.where}: the watch's guard failed: {error!r}")
        )
        self.call.cancel()
