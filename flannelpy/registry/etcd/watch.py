"""What changed? Two watches on one stream, the config's and the leases', which survive whatever happens to etcd.

Each of the two goes on from the revision after its last event, whatever the other one has seen: etcd may be further with one than
with the other. They are told apart by the keys of their events; a proxy answers the requests in any order. An answer to a question
proves that etcd is there, and nothing else: it never moves a revision (etcd answers it before events it still holds back).

A handshake is no success: what comes after it may be what breaks the stream. So pauses between tries grow until an event has come
or a question was answered, and a stream that dies twice before that, at one revision, has something ahead that it cannot get past:
then the leases are to be listed anew, and watched from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from flannelpy.core.errors import (
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryUnavailableError,
    WatchGapError,
)
from flannelpy.registry import Batch, ConfigChanged, Event
from flannelpy.registry.etcd.channel import Link
from flannelpy.registry.etcd.records import Keys, decode_delete, decode_put
from flannelpy.registry.etcd.stream import Pace, Stream
from flannelpy.registry.etcd.wire import rpc
from flannelpy.registry.etcd.words import TooLargeError

log = logging.getLogger(__name__)

_DELETE = 1  # mvccpb.Event.EventType

DEATHS = 2
"""So many streams in a row that died between handshake and first event are a gap. Each gap that does not help doubles it."""

_REFUSALS = ("permission denied", "token", "user name", "auth")
"""In etcd's reason for cancelling a watch: who we are is the matter. It may also give no reason."""


@dataclass(slots=True)
class Watch:
    """Every change of one cluster's keys from a revision on, over as many streams as it takes."""

    link: Link
    keys: Keys
    pace: Pace
    next_config: int
    next_subnets: int
    delivered: int
    decode: Callable[[Any, Keys], Event]
    """What an event means that is not the config's."""
    _created: int = 0
    _deaths: int = 0
    _failing: RegistryError | None = None

    @classmethod
    def since(cls, revision: int, link: Link, keys: Keys, pace: Pace, decode: Callable[[Any, Keys], Event] | None = None) -> Watch:
        """A watch that begins with ``revision``."""
        return cls(link, keys, pace, revision, revision, max(0, revision - 1), decode or _lease_event)

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Batches for ever, or until the link is closed. The first one after every (re)connect is empty: both watches stand.

        Raises WatchGapError where changes may have been missed.
        """
        while True:
            try:
                async with contextlib.aclosing(self._stream()) as batches:
                    async for batch in batches:
                        yield batch
            except WatchGapError:
                raise
            except RegistryError as error:
                if self.link.closed:
                    return
                self._failed(error)
                gap = self._stuck(error)
            await asyncio.sleep(self.link.backoff.pause())
            if gap is not None:
                self.link.gaps += 1
                raise gap

    async def _stream(self) -> AsyncGenerator[Batch, None]:
        """Batches until the stream ends, which it does with a RegistryError."""
        self._created = 0
        async with (
            self.link.hold() as wire,
            Stream.open(self.link, wire, self.pace, self._requests(), self.keys.config, self._answered) as stream,
        ):
            while True:
                if (batch := self._digest(await stream.read(), stream)) is not None:
                    yield batch

    def _requests(self) -> list[Any]:
        create = rpc.WatchCreateRequest
        config = create(key=self.keys.config, start_revision=self.next_config, fragment=True)
        subnets = create(key=self.keys.subnets, range_end=self.keys.end, start_revision=self.next_subnets, fragment=True)
        return [rpc.WatchRequest(create_request=each) for each in (config, subnets)]

    def _digest(self, response: Any, stream: Stream) -> Batch | None:
        """What a response means; None for the first half of the handshake. Raises where the watch cannot stand."""
        if response.canceled:
            raise self._refused(response, stream)
        if not response.events:
            self._check(response.header, stream.where)
        if response.created:
            self._created += 1
            return Batch((), self.delivered, connected=True) if self._created == 2 else None
        if not response.events:
            return None
        self._recovered()
        last = response.events[-1].kv.mod_revision
        # Where more of this answer is to come, some of it may belong to the same revision: a stream that breaks in between has to
        # bring it once more.
        told = last - 1 if response.fragment else last
        if response.events[0].kv.key == self.keys.config:
            self.next_config = told + 1
            events = tuple(_config_event(event) for event in response.events)
        else:
            self.next_subnets = told + 1
            events = tuple(self.decode(event, self.keys) for event in response.events)
        self.delivered = max(self.delivered, told)
        return Batch(events, self.delivered)

    def _check(self, header: Any, where: str) -> None:
        """A store that is behind what we have seen was restored from a backup; to wait for it to catch up would skip all that is
        written until then. Told at once, or others may have written as much before we ask again.

        A proxy that makes a header itself leaves the cluster out, and its revision is our own start revision.
        """
        if header.cluster_id and header.revision < self.delivered:
            raise WatchGapError(f"{where}: at revision {header.revision}, expected {self.delivered} or later; restored?")

    def _answered(self, header: Any, where: str) -> None:
        """A question beside the stream was answered: etcd is there."""
        self._check(header, where)
        if self._created == 2:
            self._recovered()

    def _refused(self, response: Any, stream: Stream) -> RegistryError:
        """Why etcd ended a watch. ``created`` may be set too: a watch it refuses is created and cancelled in one answer."""
        oldest = response.compact_revision
        if oldest:
            return WatchGapError(f"{stream.where}: history before revision {oldest} is compacted; expected to go on before it")
        stream.forget_token()
        why = response.cancel_reason or "no reason given"
        if response.cancel_reason and not any(word in why for word in _REFUSALS):
            return RegistryRefusedError(f"{stream.where}: watch refused: {why}")
        return RegistryAuthError(f"{stream.where}: watch refused: {why}; expected the right to read the prefix")

    def _stuck(self, error: RegistryError) -> WatchGapError | None:
        """A gap, where trying again from the same revision would end as it did before."""
        if isinstance(error, TooLargeError):
            return WatchGapError(f"{error}; listing anew")
        if self._created < 2 or not isinstance(error, RegistryUnavailableError):
            return None
        self._deaths += 1
        if self._deaths < DEATHS << min(self.link.gaps, 8):
            return None
        return WatchGapError(f"{error}; {self._deaths} times before revision {self.next_subnets}")

    def _failed(self, error: RegistryError) -> None:
        if self._failing is None:
            log.debug("watch: %s; trying again", error)
        # Once is no trouble: a refused watch may only want a fresh token, which the next try brings.
        if self.link.trouble is not None or type(error) is type(self._failing):
            self.link.trouble = error
        self._failing = error

    def _recovered(self) -> None:
        if self._failing is not None:
            log.debug("watch: etcd answers again")
        self.link.trouble = self._failing = None
        self.link.backoff.settled()
        self.link.gaps = self._deaths = 0


def _config_event(event: Any) -> Event:
    text = None if event.type == _DELETE else event.kv.value.decode(errors="replace")
    return ConfigChanged(text, event.kv.mod_revision)


def _lease_event(event: Any, keys: Keys) -> Event:
    kv = event.kv
    name = keys.name(kv.key)
    if event.type == _DELETE:
        return decode_delete(name, kv.mod_revision)
    return decode_put(name, kv.value, etcd_lease=kv.lease, create_revision=kv.create_revision, mod_revision=kv.mod_revision)
