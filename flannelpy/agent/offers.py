"""What do we offer the other hosts beside the network's Type, and what do they offer us? Told and followed by keys of their own,
in which each host says what it calls itself, too.

Nothing waits for it for long, and nothing else fails with it: where those keys cannot be read or written, peers are reached as the
last that was read says, and where nothing was, by the Type.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.cluster import Cluster
from flannelpy.agent.context import Context
from flannelpy.core.errors import ConflictError, MalformedError, RegistryError, RegistryUnavailableError, WatchGapError
from flannelpy.core.foreign import printable
from flannelpy.core.model import Lease, parse_subnet_key
from flannelpy.core.offer import Offer
from flannelpy.registry import Offered

log = logging.getLogger("flannelpy")

FIRST_RETRY_S, LAST_RETRY_S = 0.2, 30.0

PATIENCE_S = 2.0
"""How long a start waits for what the peers offer: until then nothing is known to have gone."""

BELIEF_S = 1.0
"""An offer that is gone is believed so much later: with a lease that ends it goes, too, and such a peer is kept as it is."""

IMPLIED_S = 10.0
"""A peer whose lease names another Type is reached by the one before for so long, unless it says that it may be."""

AGAIN_S = 5.0
"""What somebody else has written over our own is put right this often at the most."""

NAMED = 2_000
"""Where a network begins with more leases, names alone are not followed: etcd would have a second watch of every host for them."""

MOST = 50_000
"""Keys that are looked at; more hosts than a network of ours has."""
MOST_BYTES = 16 << 20
"""Of their values; an honest one has some hundred."""


@dataclass(slots=True)
class _Own:
    """What is to stand beside our lease, and what was heard there last."""

    lease: Lease
    text: str | None
    heard: bytes | None
    offer: Offer | None = None

    @property
    def stands(self) -> bool:
        """Whether it was heard there."""
        return self.heard == (None if self.text is None else self.text.encode())


class Offers:
    """``wake`` is called when it becomes known what the peers offer, or that this is not waited for any longer."""

    def __init__(self, context: Context, cluster: Cluster, wake: Callable[[], None]) -> None:
        self.known = False
        """True once the peers' offers were listed, or waited for long enough."""
        self._context = context
        self._cluster = cluster
        self._wake = wake
        self._own: _Own | None = None
        self._changed = asyncio.Event()
        self._following = asyncio.Event()
        self._awaited = False  # what is heard decides how peers are reached; else it is their names alone
        self._gone: dict[str, asyncio.TimerHandle] = {}
        self._refused = set[str]()
        self._implied = set[str]()  # in doubt for no other reason
        self._plain = True  # we say our name, and nothing that anybody is reached by
        self._live = False
        self._peers = cluster.cursor(self._notice)

    def _notice(self) -> None:
        """Peers have changed: of one whose lease names another Type it is asked what else it takes."""
        for key in self._peers.take():
            if key in self._cluster.offers.implied and key not in self._gone:
                self.follow()
                self._implied.add(key)
                self._doubt(key, IMPLIED_S)

    def follow(self) -> None:
        """Hear what the peers offer, from now on; it is to be heard before anything is decided by it."""
        self._following.set()
        if not self._awaited:
            self._awaited = True
            asyncio.get_running_loop().call_later(PATIENCE_S, self._know)

    def settle(self, carriage: Carriage, held: Lease | None) -> bool:
        """Tell and hear what hosts may use beside the Type; False while it is still to be heard for the first time."""
        preference = carriage.preference
        self._cluster.prefer({carriage.backend.name: carriage.backend, **preference.standing})
        named = self._context.settings.kube is None  # there a host is called what its node is
        if held is not None:
            offer, name = carriage.offer, self._context.settings.hostname if named else ""
            self._plain = offer is None
            if name:
                offer = replace(offer or Offer.of(carriage.attrs, ()), hostname=name)
            self.tell(held, offer, may_wait=not preference.outgoing)
        if preference.standing:
            self.follow()
        elif named and len(self._cluster.view.leases) <= NAMED:
            self._following.set()
        return self.known or not self._awaited

    def tell(self, lease: Lease, offer: Offer | None, *, may_wait: bool = False) -> None:
        """Beside our lease is to stand this; None: nothing, also where a life before this one has left something there.

        ``may_wait``: where it says all that it said before and more, for all hosts may have more to say at this moment.
        """
        before = self._own
        text = None if offer is None else offer.to_json()
        if before is None or (before.lease, before.text) != (lease, text):
            same = before is not None and before.lease.key == lease.key
            self._own = _Own(lease, text, before.heard if before is not None and same else None, offer)
            if may_wait and before is not None and same and _adds(before.offer, offer):
                after_s = self._context.spread(len(self._cluster.view.leases))
                asyncio.get_running_loop().call_later(after_s, self._changed.set)
            else:
                self._changed.set()
            heard = None if before is None or same or before.heard in (None, (before.text or "").encode()) else before.heard
            if before is not None and heard is not None and self._has_room(heard):
                self._hear(before.lease.key, heard)  # of whoever has that subnet now, or it counts for nobody

    def _know(self) -> None:
        if not self.known:
            self.known = True
            self._wake()

    async def publish(self) -> None:
        """Write what is to be told whenever it is another, or stands there otherwise, for ever."""
        delay = FIRST_RETRY_S
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._own is None:
                continue
            try:
                await self._context.registry.offer(self._own.lease, self._own.text)
            except RegistryError as error:
                self._tell_refusal("written", error, matters=not self._plain)
                if not isinstance(error, ConflictError):  # else the lease is another one by now, and we are told
                    self._changed.set()
                await asyncio.sleep(self._context.random.uniform(delay / 2, delay))
                delay = min(2 * delay, LAST_RETRY_S)
            else:
                delay = FIRST_RETRY_S
                self._tell_refusal("written", None)

    async def listen(self) -> None:
        """Follow what stands beside the leases, for ever."""
        await self._following.wait()
        delay = FIRST_RETRY_S
        while True:
            try:
                news = cast(AsyncGenerator[Offered, None], self._context.registry.offers())
                async with aclosing(news):
                    async for offered in news:
                        self._live = True
                        self._take(offered)
                        self._tell_refusal("read", None)
                        delay = FIRST_RETRY_S
            except RegistryError as error:
                self._live = False
                self._tell_refusal("read", error, matters=self._awaited)
                if isinstance(error, WatchGapError):  # which all hosts have at one moment, and each lists all there is then
                    await asyncio.sleep(self._context.spread(len(self._cluster.view.leases)))
            await asyncio.sleep(self._context.random.uniform(delay / 2, delay))
            delay = min(2 * delay, LAST_RETRY_S)

    def _tell_refusal(self, what: str, error: RegistryError | None, *, matters: bool = True) -> None:
        """etcd answers, and refuses these keys. Where it does not answer, that is told already; a gap is listed anew; and without
        names all goes on.
        """
        if error is None:
            self._context.reporter.end("offers-refused", what)
        elif matters and not isinstance(error, RegistryUnavailableError | ConflictError | WatchGapError):
            self._context.reporter.begin("offers-refused", f"{what}: {error}", what)
        else:
            log.debug("what hosts offer could not be %s: %s", what, error)

    def _take(self, offered: Offered) -> None:
        values = dict(offered.values)
        if offered.whole:
            own = () if self._own is None else (self._own.lease.key,)
            before = {*self._cluster.offers.keys, *self._cluster.names, *self._refused, *own}
            values = {**dict.fromkeys(before), **values}
        for name, value in values.items():
            if self._own is not None and name == self._own.lease.key:
                self._hear_own(self._own, value)
            elif value is None:
                self._implied.discard(name)
                self._doubt(name)
            elif self._knows(name) or self._has_room(value):
                self._hear(name, value)
        if offered.whole:
            self._know()

    def _knows(self, name: str) -> bool:
        """Whoever fills the room with junk keeps nobody who was in it from saying something else."""
        return name in self._cluster.offers.keys or name in self._cluster.names or name in self._refused

    def _has_room(self, value: bytes) -> bool:
        names = self._cluster.names
        return len(names) + len(self._refused) < MOST and names.size + len(value) <= MOST_BYTES

    def _hear_own(self, own: _Own, value: bytes | None) -> None:
        """Somebody else has written beside our lease, or etcd has lost it."""
        own.heard = value
        if not own.stands:
            asyncio.get_running_loop().call_later(AGAIN_S, self._put_back, own)

    def _put_back(self, own: _Own) -> None:
        """Where nothing else is told by now, which has its own time, and what was written was not heard since."""
        if own is self._own and not own.stands:
            self._changed.set()

    def _hear(self, name: str, value: bytes) -> None:
        offer, why = _read(name, value)
        if offer is not None and not offer.data and name in self._cluster.offers.implied:
            self._name(name, offer, len(value))  # it says what it is called, and not yet what it is reached by
            return
        if (timer := self._gone.pop(name, None)) is not None:
            timer.cancel()
        self._implied.discard(name)
        if offer is None:
            self._refused.add(name)
            self._context.reporter.begin("offer-unusable", f"beside {printable(name, 100)}: {why}", name)
            self._cluster.offer(name, None)
            self._cluster.names.tell(name, None)
            return
        self._forgive(name)
        self._name(name, offer, len(value))
        self._cluster.offer(name, offer if offer.data else None)

    def _name(self, key: str, offer: Offer, size: int) -> None:
        """What a host calls itself; it is often heard a moment later than that the host has come."""
        self._cluster.names.tell(key, offer, size)
        lease = self._cluster.view.leases.get(key)
        if lease is not None and (name := self._cluster.names.of(lease)):
            self._context.events.label(key, name)

    def _forgive(self, name: str) -> None:
        if name in self._refused:
            self._refused.discard(name)
            self._context.reporter.end("offer-unusable", name)

    def _doubt(self, name: str, after_s: float = BELIEF_S) -> None:
        """It is gone, for now."""
        self._forgive(name)
        if name not in self._gone:
            self._gone[name] = asyncio.get_running_loop().call_later(after_s, self._believe, name)

    def _believe(self, name: str) -> None:
        del self._gone[name]
        lease, said = self._cluster.view.leases.get(name), self._cluster.offers.says(name)
        if (lease is not None and lease.departing) or (name in self._cluster.offers.implied and not self._live):
            # Its host may be there all the same, or say so unheard: it stays reached, and called, as it is.
            self._doubt(name, BELIEF_S if name in self._cluster.offers.keys else IMPLIED_S)
            return
        only, self._implied = name in self._implied, self._implied - {name}
        self._cluster.offer(name, said.heard if only and said is not None else None)
        if not only:
            self._cluster.names.tell(name, None)


def _adds(before: Offer | None, now: Offer | None) -> bool:
    """True where nobody who goes by the offer before is misled."""
    if before is None or now is None or before.retiring or now.retiring:
        return False
    addresses = (before.public_ip, before.public_ipv6) == (now.public_ip, now.public_ipv6)
    return addresses and before.data.keys() < now.data.keys() and all(now.data[each] == said for each, said in before.data.items())


def _read(key: str, value: bytes) -> tuple[Offer | None, str]:
    """What stands beside the lease ``key``; None, and why, where that cannot be read."""
    try:
        parse_subnet_key(key)
        return Offer.from_json(value), ""
    except MalformedError as error:
        return None, str(error)
