"""Which endpoint is spoken to? The one that stands first: they are tried side by side, each a moment after the one before.

A connection attempt takes what it takes, whoever waits for it: with TLS it needs four round trips, and none of them is wasted
because a call gave up meanwhile. Since a packet may also have been lost for good, a new attempt joins the ones under way every few
seconds. Happy eyeballs, RFC 8305 section 5.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flannelpy.core.errors import RegistryError, RegistryTlsError, RegistryUnavailableError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import Address
from flannelpy.registry.etcd.wire import Wire
from flannelpy.registry.etcd.words import explain, no_answer

STAGGER_S = 0.25
"""Between the attempts at two endpoints (RFC 8305: 250 ms)."""

AGAIN_S = 2.0
"""Before the next round of attempts, beside those that are under way."""

RACE_S = 12.0
"""After this nobody is waited for any longer."""


Failures = dict[Address, RegistryError]
"""Why an endpoint does not stand, or did not answer."""


@dataclass(slots=True)
class Race:
    """Attempts at several endpoints, the best first. ``discard`` closes what is not needed."""

    addresses: Sequence[Address]
    endpoint: Endpoint
    discard: Callable[[Wire], None]
    failures: Failures = field(default_factory=dict)
    """How the last attempt at each has ended, where it has."""
    _under_way: dict[asyncio.Task[Wire], Address] = field(default_factory=dict)

    async def run(self) -> Wire:
        """The first that stands. Raises a RegistryError where every endpoint has failed, or none stands in RACE_S."""
        try:
            async with asyncio.timeout(RACE_S):
                return await self._run()
        except TimeoutError:
            raise sum_up(self.known(), self.addresses) from None
        finally:
            await self._stop()

    async def _run(self) -> Wire:
        waiting, next_round = list(self.addresses), time.monotonic() + AGAIN_S
        while True:
            if not waiting and time.monotonic() >= next_round:
                waiting, next_round = list(self.addresses), time.monotonic() + AGAIN_S
            if waiting:
                address = waiting.pop(0)
                task = asyncio.get_running_loop().create_task(self._attempt(address), name=f"connect to {address}")
                self._under_way[task] = address
            pause = STAGGER_S if waiting else max(0.0, next_round - time.monotonic())
            done, _ = await asyncio.wait(self._under_way, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (wire := self._judge(task)) is not None:
                    return wire
            if not self._under_way and not waiting:
                raise sum_up(self.known(), self.addresses)

    def _judge(self, task: asyncio.Task[Wire]) -> Wire | None:
        address = self._under_way.pop(task)
        try:
            return task.result()
        except RegistryError as error:
            self.failures[address] = error
            return None

    async def _attempt(self, address: Address) -> Wire:
        wire = Wire.open(address, self.endpoint)
        try:
            why_not = await wire.stand()
            if why_not is not None:
                raise await explain(why_not, address, self.endpoint)
        except BaseException:
            self.discard(wire)
            raise
        return wire

    async def _stop(self) -> None:
        """End the others; one that stood in the same moment comes too late."""
        others = list(self._under_way)
        self._under_way.clear()  # or the race would hold on to their channels
        for task in others:
            task.cancel()
        for ended in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(ended, Wire):
                self.discard(ended)

    def known(self) -> Failures:
        """Why none stands yet, of all endpoints: for whoever cannot wait any longer."""
        return {each: self.failures.get(each) or no_answer(each, self.endpoint) for each in self.addresses}


def sum_up(failures: Failures, order: Sequence[Address]) -> RegistryError:
    """Of all endpoints' failures one error; TLS before silence, because somebody has to act on it.

    In the order of the option, whoever was tried first: an outage reads the same from beginning to end.
    """
    errors = [failures[address] for address in sorted(failures, key=order.index)]
    to_be_acted_on = [each for each in errors if isinstance(each, RegistryTlsError)]
    answered = [each for each in errors if not isinstance(each, RegistryUnavailableError)]
    worst = (to_be_acted_on or answered or errors)[0]
    summed = type(worst)("; ".join(dict.fromkeys(str(error) for error in errors)))
    summed.undecided = any(error.undecided for error in errors)
    return summed
