"""What changed? One gRPC stream with a watch on the config and one on the leases, which survives whatever happens to etcd.

Each of the two watches goes on from the revision after its last event, whatever the other one has seen: etcd may be further with
one than with the other. A progress answer proves that the stream lives, and nothing else; it never moves a revision (etcd
answers it before events it still holds back).

Nothing waits between an event's arrival and its delivery. The timers here belong to a task beside it that asks for progress while
the stream is silent and cuts it when no answer comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryUnavailableError, WatchGapError
from flannelpy.registry import Batch, ConfigChanged, Event
from flannelpy.registry.etcd.channel import END, CallError, Link, Wire, is_stale_token, rpc, watch_metadata
from flannelpy.registry.etcd.records import Keys, decode_delete, decode_put

log = logging.getLogger(__name__)

_PROGRESS = rpc.WatchRequest.FromString(b"\x1a\x00")
"""A WatchRequest with an empty progress_request, field 3: etcd 3.4 and later know it, these stubs only carry it through."""

_DELETE = 1  # mvccpb.Event.EventType


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a watch is, in seconds: silence before progress is asked for, wait for its answer, first and longest backoff."""

    silence_s: float = 2.0
    answer_s: float = 2.0
    backoff_s: float = 0.2
    backoff_max_s: float = 2.0


@dataclass(slots=True)
class Watch:
    """Every change of one cluster's keys from a revision on, over as many streams as it takes."""

    link: Link
    keys: Keys
    pace: Pace
    next_config: int
    next_subnets: int
    delivered: int
    _failing: RegistryError | None = None

    @classmethod
    def since(cls, revision: int, link: Link, keys: Keys, pace: Pace) -> Watch:
        """A watch that begins with ``revision``."""
        return cls(link, keys, pace, next_config=revision, next_subnets=revision, delivered=max(0, revision - 1))

    async def batches(self) -> AsyncIterator[Batch]:
        """Batches for ever, or until the link is closed. The first one after every (re)connect is empty: both watches stand.

        Raises WatchGapError where changes may have been missed.
        """
        wait_s = self.pace.backoff_s
        while True:
            try:
                async with self.link.hold() as wire, Stream.open(self.link, wire, self.pace, self._requests()) as stream:
                    while True:
                        if (batch := self._digest(await stream.read(), stream)) is not None:
                            wait_s = self.pace.backoff_s
                            self._recovered()
                            yield batch
            except WatchGapError:
                raise
            except RegistryError as error:
                if self.link.closed:
                    return
                self._failed(error)
            await asyncio.sleep(wait_s)
            wait_s = min(self.pace.backoff_max_s, wait_s * 2)

    def _requests(self) -> list[Any]:
        create = rpc.WatchCreateRequest
        return [
            rpc.WatchRequest(create_request=create(key=self.keys.config, start_revision=self.next_config)),
            rpc.WatchRequest(
                create_request=create(key=self.keys.subnets, range_end=self.keys.end, start_revision=self.next_subnets)
            ),
        ]

    def _digest(self, response: Any, stream: Stream) -> Batch | None:
        """What a response means; None for the first half of the handshake. Raises where the watch cannot stand."""
        if response.canceled:
            raise self._refused(response, stream)
        behind = response.header.revision
        if not response.events and behind < self.delivered:
            # A store that is behind what we have seen was restored from a backup; waiting for it to catch up would skip all that
            # is written until then. Told at once, or others may have written as much before we ask again.
            raise WatchGapError(f"{stream.where}: at revision {behind}, expected {self.delivered} or later; restored?")
        if response.created:
            stream.watches.append(response.watch_id)  # etcd creates them in the order they were asked for
            return Batch((), self.delivered, connected=True) if len(stream.watches) == 2 else None
        if not response.events:
            return Batch((), self.delivered)
        last = response.events[-1].kv.mod_revision
        if response.watch_id == stream.watches[0]:
            self.next_config = last + 1
            events = tuple(_config_event(event) for event in response.events)
        else:
            self.next_subnets = last + 1
            events = tuple(_lease_event(event, self.keys) for event in response.events)
        self.delivered = max(self.delivered, last)
        return Batch(events, self.delivered)

    def _refused(self, response: Any, stream: Stream) -> RegistryError:
        """Why etcd ended a watch. ``created`` may be set too: a watch it refuses is created and cancelled in one answer."""
        oldest = response.compact_revision
        if oldest:
            return WatchGapError(f"{stream.where}: history before revision {oldest} is compacted; expected to go on before it")
        stream.forget_token()
        why = response.cancel_reason or "no reason given"
        return RegistryAuthError(f"{stream.where}: watch refused: {why}; expected the right to read the prefix")

    def _failed(self, error: RegistryError) -> None:
        if self._failing is None:
            log.debug("watch: %s; trying again", error)
        # Once is no trouble: a refused watch may only want a fresh token, which the next try brings.
        self.link.trouble = error if type(error) is type(self._failing) else None
        self._failing = error

    def _recovered(self) -> None:
        if self._failing is not None:
            log.debug("watch: etcd answers again")
        self.link.trouble = self._failing = None


def _config_event(event: Any) -> Event:
    return ConfigChanged(None if event.type == _DELETE else event.kv.value.decode(errors="replace"))


def _lease_event(event: Any, keys: Keys) -> Event:
    kv = event.kv
    name = keys.name(kv.key)
    if event.type == _DELETE:
        return decode_delete(name, kv.mod_revision)
    return decode_put(name, kv.value, etcd_lease=kv.lease, create_revision=kv.create_revision, mod_revision=kv.mod_revision)


@dataclass(slots=True)
class Stream:
    """One gRPC watch stream and the task that makes sure it is not deaf."""

    link: Link
    wire: Wire
    pace: Pace
    call: Any
    token: str | None
    watches: list[int] = field(default_factory=list)
    _heard_at: float = field(default_factory=time.monotonic)
    _reading_since: float | None = field(default_factory=time.monotonic)
    _cut: str = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, link: Link, wire: Wire, pace: Pace, requests: list[Any]) -> AsyncIterator[Stream]:
        """A stream on which ``requests`` were sent; cancelled when it is left."""
        token = await link.token(wire, time.monotonic() + link.endpoint.timeout_s)
        call = wire.watch.Watch(metadata=watch_metadata(token))
        self = cls(link, wire, pace, call, token)
        guard = asyncio.get_running_loop().create_task(self._guard(), name=f"guard of the watch at {wire.address}")
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
        """Ask for the watches. A write waits without end, even for a cancelled call, where the connection never stands."""
        try:
            async with asyncio.timeout(self.pace.answer_s):
                for request in requests:
                    await self._io(self.call.write(request))
        except TimeoutError:
            raise RegistryUnavailableError(self._deaf()) from None

    async def read(self) -> Any:
        """The next response, as it comes. Raises a RegistryError where the stream has ended or was found deaf."""
        self._reading_since = time.monotonic()
        response = await self._io(self.call.read())
        self._reading_since = None
        if response is END:
            raise RegistryUnavailableError(f"{self.where}: the watch ended; expected it to go on")
        self._heard_at = time.monotonic()
        if not response.canceled:
            self.link.heard()
        return response

    def forget_token(self) -> None:
        """etcd does not say why it refuses a watch; a token that expired is one reason."""
        self.link.forget(self.token)

    async def _io(self, work: Any) -> Any:
        try:
            return await work
        except CallError as error:
            if is_stale_token(error):
                self.forget_token()
            raise await self.link.explain(error, self.wire) from None
        except asyncio.InvalidStateError:  # writing to a call that has ended: its status says why
            code, details = await self.call.code(), await self.call.details()
            raise RegistryUnavailableError(f"{self.where}: the watch ended ({code.name}: {details})") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RegistryUnavailableError(self._cut or f"{self.where}: the connection was closed by us") from None

    def _deaf(self) -> str:
        return f"{self.where}: no sign of life on the watch for {self.pace.answer_s:g} s; expected etcd to answer"

    async def _guard(self) -> None:
        """Cut the stream when a question stays unanswered while somebody listens; a slow consumer is not etcd's silence."""
        asked_at: float | None = self._heard_at
        while True:
            await asyncio.sleep(self.pace.silence_s if asked_at is None else self.pace.answer_s / 8)
            now = time.monotonic()
            if asked_at is None:
                if now - self._heard_at >= self.pace.silence_s:
                    asked_at = now
                    self.link.asked()
                    with contextlib.suppress(CallError, asyncio.InvalidStateError, TimeoutError):  # ended: who reads is told
                        async with asyncio.timeout(self.pace.answer_s):
                            await self.call.write(_PROGRESS)
            elif self._heard_at > asked_at:
                asked_at = None
            elif self._reading_since is not None and now - max(asked_at, self._reading_since) > self.pace.answer_s:
                # The loop itself may have stood still: what has arrived meanwhile is read first.
                await asyncio.sleep(self.pace.answer_s / 8)
                if self._heard_at <= asked_at:
                    self._cut = self._deaf()
                    self.call.cancel()
                    return
