"""How is etcd asked, and what does its silence mean? One connection at a time, to whichever endpoint stands first.

A call goes to the endpoint that is connected. One that does not answer, or that refuses what another member would not, loses its
turn, and the call is repeated elsewhere within its deadline. Connecting outlives the calls that wait for it (``race``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from flannelpy.core.errors import RegistryError, RegistryUnavailableError
from flannelpy.registry import Endpoint
from flannelpy.registry.cancelling import cancelled
from flannelpy.registry.etcd.backoff import Backoff
from flannelpy.registry.etcd.endpoints import Address, parse_endpoint
from flannelpy.registry.etcd.race import Failures, Race, sum_up
from flannelpy.registry.etcd.token import Token, metadata
from flannelpy.registry.etcd.wire import GRACE_S, CallError, Wire, rpc
from flannelpy.registry.etcd.words import NotLetInError, costs_the_turn, explain, is_heard, is_stale_token, no_answer

__all__ = ["Call", "Link", "rpc"]

PATIENCE = 4
"""So many times as long as usual is waited at the most for an etcd that is slow (``Link.patient``), until it answers in half of the
usual time: one that is now slow and now a little less is not given up each time that it is slow again.
"""

LIVENESS_S = 5.0
"""A question open for longer means that the registry is not alive."""

Call = Callable[..., Awaitable[Any]]
"""Takes a wire and gRPC's ``timeout`` and ``metadata``; answers with a message."""


@dataclass(slots=True)
class Link:
    """The way to etcd: endpoints, the token, and whether anybody answers."""

    endpoint: Endpoint
    addresses: tuple[Address, ...] = ()
    closed: bool = False
    trouble: RegistryError | None = None
    """What the watch failed with last; it says so itself, and takes it back."""
    backoff: Backoff = field(default_factory=Backoff)
    """Of the watch: one that begins anew after a gap goes on with the pauses of the one before."""
    gaps: int = 0
    """How often a watch has found a gap since etcd's last sign of life."""
    late: Counter[str] = field(default_factory=Counter)
    """How often in a row no endpoint has answered in time, by what was asked for. What stands may be deaf, and is given up; but
    where others are no better, all of etcd is slow (its disks are), and to give up each time would leave it unheard for ever.
    """
    token: Token = field(init=False)
    _turn: int = 0
    _wire: Wire | None = None
    _connecting: asyncio.Task[Wire] | None = None
    _race: Race | None = None
    _wires: set[Wire] = field(default_factory=set)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)
    _asked_at: float | None = None

    def __post_init__(self) -> None:
        self.addresses = tuple(parse_endpoint(url) for url in self.endpoint.urls)
        self.token = Token(self.endpoint, self.heard, self._using)

    @property
    def address(self) -> Address:
        """The endpoint that is spoken to, or that has the next turn."""
        return self._wire.address if self._wire is not None else self.addresses[self._turn % len(self.addresses)]

    # ------------------------------------------------------------------------------------------------- asking

    async def ask(self, call: Call) -> Any:
        """The answer to a question that may be asked again.

        Raises RegistryUnavailableError, RegistryTlsError, RegistryAuthError, RegistryRefusedError, or TooLargeError.
        """
        answer, _ = await self._ask(call, len(self.addresses), "ask")
        return answer

    async def settle(self, call: Call) -> tuple[Any, bool]:
        """The answer to a compare-and-swap, and whether an earlier try of it may have been carried out unheard.

        One that timed out may have been applied, so it is sent a second time; its losing branch then reads what is there. Where
        that fails too, the error is ``undecided``.
        """
        return await self._ask(call, max(2, len(self.addresses)), "settle")

    async def _ask(self, call: Call, tries: int, kind: str) -> tuple[Any, bool]:
        """Each try has its share of the deadline. The time that connecting took is not taken from the first question's share."""
        whole_s = self.patient(kind, self.endpoint.timeout_s)
        until = time.monotonic() + whole_s
        failures: dict[Address, RegistryError] = {}
        unheard, late = False, list[bool]()
        for left in range(tries, 0, -1):
            stood = await self._stand(until)
            if not isinstance(stood, Wire):
                failures = stood | failures
                break
            try:
                async with self._using(stood) as wire:
                    asked_at = time.monotonic()
                    deadline = asked_at + max(whole_s / tries, (until - asked_at) / left)
                    answer = await self._ask_once(call, wire, deadline)
                    self.answered(kind, time.monotonic() - asked_at, self.endpoint.timeout_s / tries)
                    return answer, unheard
            except NotLetInError as error:  # nothing was sent yet, and there may be time to wait on
                failures[stood.address] = error
            except RegistryError as error:
                late.append(time.monotonic() >= deadline - GRACE_S)
                unheard = unheard or error.undecided
                if not costs_the_turn(error):
                    error.undecided = unheard
                    raise
                failures[stood.address] = error
            if time.monotonic() >= until:
                break
        self.late[kind] = self.late[kind] + 1 if late and all(late) else 0
        summed = sum_up(failures, self.addresses)
        summed.undecided = unheard
        raise summed

    def patient(self, kind: str, usual_s: float, endpoints: int = 1) -> float:
        """How long to wait for what is ``usual_s`` else: twice as long after each time that it was late, ``endpoints`` times."""
        return float(usual_s * min(PATIENCE, 1 << min(self.late[kind] // endpoints, 8)))

    def answered(self, kind: str, took_s: float, usual_s: float) -> None:
        """It was not late this time."""
        if took_s < usual_s / 2:
            self.late[kind] = 0

    async def _ask_once(self, call: Call, wire: Wire, deadline: float) -> Any:
        for first in (True, False):
            token = await self.token.get(wire, _left(deadline))
            try:
                # gRPC's deadline is the one that counts; ours is for a stream, whose writes wait without end for a connection
                # that was lost.
                async with asyncio.timeout(_left(deadline) + GRACE_S):
                    answer = await call(wire, timeout=_left(deadline), metadata=metadata(token))
            except TimeoutError:
                raise _undecided(no_answer(wire.address, self.endpoint)) from None
            except CallError as error:
                if first and token is not None and is_stale_token(error):
                    self.token.forget(token)
                    continue
                raise await self.explain(error, wire) from None
            except asyncio.CancelledError:
                if cancelled():
                    raise
                raise _undecided(RegistryUnavailableError(f"{wire.address}: the connection was closed by us")) from None
            self.heard()
            return answer
        raise AssertionError("unreachable")

    async def explain(self, error: Any, wire: Wire) -> RegistryError:
        """A gRPC error as one of ours; one that etcd itself has said ends its silence."""
        if is_heard(error):
            self.heard()
        explained = await explain(error, wire.address, self.endpoint)
        return _undecided(explained) if isinstance(explained, RegistryUnavailableError) else explained

    # -------------------------------------------------------------------------------------------------- wires

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[Wire]:
        """A wire that stands, kept open while inside. Raises what keeps every endpoint from standing within the deadline."""
        stood = await self._stand(time.monotonic() + self.endpoint.timeout_s)
        if not isinstance(stood, Wire):
            raise sum_up(stood, self.addresses)
        async with self._using(stood):
            yield stood

    @contextlib.asynccontextmanager
    async def _using(self, wire: Wire) -> AsyncIterator[Wire]:
        """One that proves deaf meanwhile, or refuses what another would not, loses its turn."""
        wire.users += 1
        try:
            yield wire
        except RegistryError as error:
            if costs_the_turn(error):
                self._drop(wire)
            raise
        finally:
            wire.users -= 1
            if wire.dropped and not wire.users:
                self._discard(wire)

    async def _stand(self, until: float) -> Wire | Failures:
        """The wire that stands, or why none does by then; what is under way goes on."""
        self.asked()
        if self._wire is not None and self._wire.stands:
            return self._wire
        if self._wire is not None:
            self._drop(self._wire)  # closed meanwhile: a call on it would fail before it was sent
        if self.closed:
            return self._closed
        if self._connecting is None or self._connecting.done():
            turn = self._turn % len(self.addresses)
            order = tuple(dict.fromkeys((*self.addresses[turn:], *self.addresses[:turn])))
            self._race = Race(order, self.endpoint, self._discard)
            self._connecting = asyncio.get_running_loop().create_task(self._connect(self._race), name="connect to etcd")
            self._connecting.add_done_callback(_retrieve)
        race, connecting = self._race, self._connecting
        assert race is not None
        await asyncio.wait([connecting], timeout=max(0.0, until - time.monotonic()))
        if not connecting.done() or (not connecting.cancelled() and isinstance(connecting.exception(), RegistryError)):
            return race.known()
        if connecting.cancelled():
            return self._closed
        wire = connecting.result()
        return await self._stand(until) if wire.dropped else wire  # somebody who woke before us found it deaf

    @property
    def _closed(self) -> Failures:
        return {self.address: RegistryUnavailableError("the registry was closed")}

    async def _connect(self, race: Race) -> Wire:
        wire = await race.run()
        self._wire = wire
        self._wires.add(wire)
        return wire

    def _drop(self, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None
            self._turn = self.addresses.index(wire.address) + 1
        wire.dropped = True
        if not wire.users:
            self._discard(wire)

    def _discard(self, wire: Wire) -> None:
        """Close it in the background; a second time does no harm."""
        self._wires.discard(wire)
        task = asyncio.get_running_loop().create_task(wire.close(), name=f"close {wire.address}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def reconnect(self) -> None:
        """Leave the wire that stands, and have another one to the same endpoint; calls on it end with RegistryUnavailableError."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.dropped = True
            self._discard(wire)  # at once, whoever is using it

    async def close(self) -> None:
        """Close every channel; calls on them end with RegistryUnavailableError. May be called twice."""
        self.closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        await self.token.close()
        wires, self._wires, self._wire = self._wires, set(), None
        await asyncio.gather(*(wire.close() for wire in wires), *self._closing)

    # ------------------------------------------------------------------------------------------------ liveness

    @property
    def alive(self) -> bool:
        """False once a question has been open for longer than LIVENESS_S, over all endpoints and repetitions."""
        return self.silent_s <= LIVENESS_S

    @property
    def silent_s(self) -> float:
        """How long the oldest open question has been without an answer; 0 where none is open."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    def asked(self) -> None:
        """Something was asked; the oldest open question counts."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def heard(self) -> None:
        """etcd answered."""
        self._asked_at = None


def _undecided(error: RegistryError) -> RegistryError:
    error.undecided = True
    return error


def _retrieve(task: asyncio.Task[Wire]) -> None:
    """Nobody may be waiting any longer for what it failed with."""
    if not task.cancelled():
        task.exception()


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
