"""Where do leases live? In etcd v3, under flannel's keys, byte for byte (flannel-compat 4).

Every write is a compare-and-swap. A write that timed out may have been carried out all the same: it is sent once more, and where it
then loses, what stands in etcd decides; our own value under our own new etcd lease is our success.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import ConflictError, RegistryError, RegistryUnavailableError, TakenError
from flannelpy.core.model import LEASE_TTL_S, Lease, LeaseAttrs, subnet_key
from flannelpy.registry import Batch, Endpoint, Offered, Snapshot, StoredConfig
from flannelpy.registry.etcd.backoff import Backoff
from flannelpy.registry.etcd.channel import Call, Link
from flannelpy.registry.etcd.listing import Listing
from flannelpy.registry.etcd.names import resolve
from flannelpy.registry.etcd.offers import OfferReader
from flannelpy.registry.etcd.records import Keys
from flannelpy.registry.etcd.stream import Pace
from flannelpy.registry.etcd.watch import Watch
from flannelpy.registry.etcd.wire import END, Wire, rpc
from flannelpy.registry.etcd.words import LEASE_EXISTS, LEASE_UNKNOWN

REVOKE_TIMEOUT_S = 1.0
"""Giving an etcd lease back is a courtesy: it would end by itself."""

FEW, AT_ONCE = 2, 50
"""Etcd leases of which each is asked about; and questions at a time, where more are."""

OWED = 64
"""How many etcd leases are remembered that are to be given back, or may be."""


class EtcdRegistry:
    """The registry of one cluster in etcd. Making one costs nothing and reaches nobody; UsageError for a malformed URL."""

    def __init__(self, endpoint: Endpoint, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._endpoint = endpoint
        self._beside: Link | None = None  # a connection of its own, for what hosts offer
        self._offered: dict[str, str] = {}
        self._link = Link(endpoint, backoff=Backoff(self._pace.backoff_s, self._pace.backoff_max_s))
        self._keys = Keys.under(endpoint.prefix)
        self._listing = Listing(self._link, self._keys)
        self._owed: deque[int] = deque(maxlen=OWED)
        """Etcd leases of ours that nothing needs, to be given back when etcd answers again."""
        self._resolved: dict[str, frozenset[IPAddress]] = {}  # by the host of an endpoint
        self._undecided: dict[str, deque[int]] = {}
        """Etcd leases on one of which a key hangs, nobody knows on which: the next write of it that succeeds decides."""

    # ------------------------------------------------------------------------------------------------- reading

    async def config(self) -> StoredConfig:
        """The network config as stored."""
        answer = await self._link.ask(_kv("Range", rpc.RangeRequest(key=self._keys.config)))
        if not answer.kvs:
            return StoredConfig(None, 0, answer.header.revision)
        stored = answer.kvs[0]
        return StoredConfig(stored.value.decode(errors="replace"), stored.mod_revision, answer.header.revision)

    async def snapshot(self) -> Snapshot:
        """Every lease now, all at one revision."""
        return await self._listing.read()

    def watch(self, from_revision: int) -> AsyncIterator[Batch]:
        """Every change from ``from_revision`` on; survives reconnects by itself. Raises WatchGapError.

        A batch that says ``connected`` comes when both watches stand, and again after each reconnect.
        """
        return Watch.since(from_revision, self._link, self._keys, self._pace).batches()

    # ------------------------------------------------------------------------------------------------- writing

    async def put_config(self, text: str, expected: StoredConfig | None = None) -> int:
        """Write the config; with ``expected`` only if it is still that (ConflictError). Returns the revision."""
        key, value = self._keys.config, text.encode()
        if expected is None:
            answer = await self._link.ask(_kv("Put", rpc.PutRequest(key=key, value=value)))
            return int(answer.header.revision)
        revision, there = await self._put_if(_at(key, expected.mod_revision), value, 0)
        if revision:
            return revision
        found = f"at revision {there.mod_revision}" if there else "absent"
        raise ConflictError(f"config at {key.decode()}: {found}, expected revision {expected.mod_revision}; nothing was written")

    async def create(
        self, subnet: IPNetwork, attrs: LeaseAttrs, *, subnet6: IPNetwork | None = None, ttl_s: int = LEASE_TTL_S
    ) -> Lease:
        """Take a subnet that nobody holds. Raises TakenError; then nothing was written. ``ttl_s`` 0 writes a reservation."""
        name = subnet_key(subnet, subnet6)
        key = self._keys.lease(name)
        absent = rpc.Compare(key=key, target=rpc.Compare.VERSION, result=rpc.Compare.EQUAL, version=0)
        etcd_lease = await self._grant(ttl_s)
        try:
            revision, _ = await self._put_if(absent, attrs.to_json().encode(), etcd_lease)
            if not revision:
                raise TakenError(f"{name}: somebody holds this subnet already; nothing was written")
        except BaseException:
            # Even where the put was carried out unheard: its key ends with the lease, and nothing stays behind.
            await self._give_back(etcd_lease)
            raise
        await self._give_back(*self._undecided.pop(name, ()))
        return Lease(subnet, attrs, subnet6, etcd_lease, revision, revision)

    async def renew(self, lease: Lease, attrs: LeaseAttrs, *, ttl_s: int = LEASE_TTL_S) -> Lease:
        """Write ``attrs`` under ``lease.key`` with a fresh etcd lease, if the key is still at ``lease.mod_revision``.

        The old etcd lease is revoked afterwards: only then does the key no longer hang on it. A reservation stays one.
        """
        key = self._keys.lease(lease.key)
        etcd_lease = 0 if lease.reserved else await self._grant(ttl_s, but=lease.etcd_lease)
        try:
            revision, there = await self._put_if(_at(key, lease.mod_revision), attrs.to_json().encode(), etcd_lease)
            if not revision:
                raise _conflict(lease, there)
        except RegistryError as error:
            # Not where it is undecided: then the key may hang on the new lease, and would be deleted with it.
            if error.undecided:
                self._undecided.setdefault(lease.key, deque(maxlen=OWED)).extend((lease.etcd_lease, etcd_lease))
            else:
                await self._give_back(etcd_lease)
            raise
        renewed = Lease(lease.subnet, attrs, lease.subnet6, etcd_lease, lease.create_revision, revision)
        if (text := self._offered.get(lease.key)) is not None:
            with contextlib.suppress(RegistryError):  # whoever watches it writes it anew
                await self.offer(renewed, text)
        await self._give_back(lease.etcd_lease, *self._undecided.pop(lease.key, ()))
        return renewed

    async def offer(self, lease: Lease, text: str | None) -> None:
        """See ``Registry.offer``."""
        self._offered = {} if text is None else {lease.key: text}
        key = self._keys.host(lease.key)
        write = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        if text is not None:
            write = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=text.encode(), lease=lease.etcd_lease))
        held = self._keys.lease(lease.key)
        look = rpc.RequestOp(request_range=rpc.RangeRequest(key=held))
        request = rpc.TxnRequest(compare=[_at(held, lease.mod_revision)], success=[write], failure=[look])
        answer, _ = await self._link.settle(_kv("Txn", request))
        if not answer.succeeded:
            raise _conflict(lease, _found(answer))

    def offers(self) -> AsyncIterator[Offered]:
        """See ``Registry.offers``."""
        if self._beside is None:
            self._beside = Link(self._endpoint, backoff=Backoff(self._pace.backoff_s, self._pace.backoff_max_s))
        return OfferReader(self._beside, self._keys, self._pace).follow()

    async def release(self, lease: Lease) -> None:
        """Delete the key if it is still at ``lease.mod_revision``. Raises ConflictError. Its etcd lease ends by itself."""
        key = self._keys.lease(lease.key)
        request = rpc.TxnRequest(
            compare=[_at(key, lease.mod_revision)],
            success=[rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key))],
        )
        answer, repeated = await self._link.settle(_kv("Txn", request))
        there = None if answer.succeeded else _found(answer)
        if not answer.succeeded and not (repeated and there is None):
            raise _conflict(lease, there)

    async def _put_if(self, condition: Any, value: bytes, etcd_lease: int) -> tuple[int, Any]:
        """Put under the condition's key. Returns the key's new revision, or 0 and what stands there (None: nothing)."""
        key = condition.key
        request = rpc.TxnRequest(
            compare=[condition],
            success=[rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=etcd_lease))],
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key))],
        )
        answer, repeated = await self._link.settle(_kv("Txn", request))
        if answer.succeeded:
            return answer.header.revision, None
        there = _found(answer)
        if repeated and there is not None and there.value == value and there.lease == etcd_lease:
            return there.mod_revision, None
        return 0, there

    # -------------------------------------------------------------------------------------------- etcd's leases

    async def _grant(self, ttl_s: int, but: int = 0) -> int:
        """A new etcd lease; 0, which is none, for a ``ttl_s`` of 0. What is owed is given back before, but for ``but``.

        Its number is ours to choose, so that a question that is asked twice makes one, and one that may have been made can be
        given back when etcd answers again. Nothing hangs on it yet.
        """
        if not ttl_s:
            return 0
        owed, self._owed = self._owed, deque((each for each in self._owed if each == but), OWED)
        await self._give_back(*(each for each in owed if each != but))
        etcd_lease = secrets.randbits(62) + 1
        try:
            answer, _ = await self._link.settle(_lease("LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_s, ID=etcd_lease)))
        except RegistryError as error:
            if LEASE_EXISTS in str(error):
                return etcd_lease  # by an earlier try of this question
            if error.undecided:
                self._owed.append(etcd_lease)
            raise
        return int(answer.ID)

    async def _give_back(self, *etcd_leases: int) -> None:
        """Revoke etcd leases that nothing needs. Where one cannot be, it and all after it are owed; another is tried first then."""
        waiting = deque(dict.fromkeys(each for each in etcd_leases if each))
        try:
            while waiting and await self._revoke(waiting[0]):
                waiting.popleft()
        finally:
            waiting.rotate(-1)
            self._owed.extend(waiting)

    async def _revoke(self, etcd_lease: int) -> bool:
        """Give an etcd lease back where possible. True where it is gone."""
        try:
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._link.ask(_lease("LeaseRevoke", rpc.LeaseRevokeRequest(ID=etcd_lease)))
        except TimeoutError:
            return False
        except RegistryError as error:
            return LEASE_UNKNOWN in str(error)
        return True

    async def keep_alive(self, lease: Lease) -> float:
        """Extend the lease's etcd lease to its full TTL; returns the seconds it now has. Reservation: infinity."""
        if lease.reserved:
            return math.inf
        request = rpc.LeaseKeepAliveRequest(ID=lease.etcd_lease)

        async def exchange(wire: Wire, **how: Any) -> Any:
            call = wire.lease.LeaseKeepAlive(**how)
            try:
                await call.write(request)
                if (answer := await call.read()) is END:
                    raise RegistryUnavailableError(f"{wire.address}: etcd ended a keep-alive unanswered; expected an answer")
                return answer
            finally:
                call.cancel()

        answer = await self._link.ask(exchange)
        if answer.TTL <= 0:
            raise ConflictError(f"{lease.key}: etcd no longer knows lease {lease.etcd_lease:x}; expected it to live")
        return float(answer.TTL)

    async def remaining(self, lease: Lease) -> float:
        """Seconds until the lease expires, 0 when it is gone: expired, revoked, or no longer the key's."""
        if lease.reserved:
            return math.inf
        request = rpc.LeaseTimeToLiveRequest(ID=lease.etcd_lease, keys=True)
        answer = await self._link.ask(_lease("LeaseTimeToLive", request))
        held = self._keys.lease(lease.key) in answer.keys
        return float(max(0, answer.TTL)) if held else 0.0

    async def outliving(self, leases: Sequence[Lease]) -> frozenset[str]:
        """See ``Registry.outliving``. Of more than a few all etcd leases are listed: that takes a member 0.3 us for each that there
        is, and a question about one takes the members 0.1 ms. A user who may not list them asks about each.
        """
        asked = list({lease.etcd_lease for lease in leases if not lease.reserved})
        alive = await self._etcd_leases() if len(asked) > FEW else None
        if alive is None:
            alive = set[int]()
            for first in range(0, len(asked), AT_ONCE):
                requests = [rpc.LeaseTimeToLiveRequest(ID=number) for number in asked[first : first + AT_ONCE]]
                answers = await asyncio.gather(*(self._link.ask(_lease("LeaseTimeToLive", request)) for request in requests))
                alive |= {answer.ID for answer in answers if answer.TTL > 0}
        return frozenset(lease.key for lease in leases if lease.reserved or lease.etcd_lease in alive)

    async def _etcd_leases(self) -> set[int] | None:
        """All that there are; None where they are not told. A member tells what it knows itself: so it has to catch up first."""

        async def exchange(wire: Wire, **how: Any) -> Any:
            await wire.kv.Range(rpc.RangeRequest(key=self._keys.config, count_only=True), **how)
            return await wire.lease.LeaseLeases(rpc.LeaseLeasesRequest(), **how)

        try:
            answer = await self._link.ask(exchange)
        except RegistryError:
            return None
        return {each.ID for each in answer.leases}

    # -------------------------------------------------------------------------------------------------- life

    @property
    def alive(self) -> bool:
        """False once a question has been open for longer than the liveness bound."""
        return self._link.alive

    @property
    def trouble(self) -> RegistryError | None:
        """What keeps the watch from going on; None where it goes on, or there is none."""
        return self._link.trouble

    @property
    def silent_s(self) -> float:
        """How long the oldest question has been without an answer, in seconds; 0 where none is open."""
        return self._link.silent_s

    @property
    def endpoint(self) -> str:
        """Who is spoken to now, or tried next."""
        return str(self._link.address)

    async def addresses(self) -> frozenset[IPAddress]:
        """See ``Registry.addresses``: of a name that nobody resolves now, what it was before."""
        hosts = list(dict.fromkeys(address.host for address in self._link.addresses))
        found = await asyncio.gather(*map(resolve, hosts))
        self._resolved |= {host: addresses for host, addresses in zip(hosts, found, strict=True) if addresses}
        return frozenset().union(*self._resolved.values())

    def reconnect(self) -> None:
        """Connections from an address that is gone lead nowhere: have new ones. What is under way fails, and is repeated."""
        for link in (self._link, self._beside):
            if link is not None:
                link.reconnect()

    async def close(self) -> None:
        """End all streams and connections. May be called twice."""
        for link in (self._link, self._beside):
            if link is not None:
                await link.close()


def _kv(method: str, request: Any) -> Call:
    return lambda wire, **how: getattr(wire.kv, method)(request, **how)


def _lease(method: str, request: Any) -> Call:
    return lambda wire, **how: getattr(wire.lease, method)(request, **how)


def _at(key: bytes, mod_revision: int) -> Any:
    """The condition that a key is still at a revision; 0 is a key that is not there."""
    return rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=mod_revision)


def _found(answer: Any) -> Any:
    """What the losing branch read; None where the key is absent."""
    kvs = answer.responses[0].response_range.kvs
    return kvs[0] if kvs else None


def _conflict(lease: Lease, there: Any) -> ConflictError:
    found = f"changed at revision {there.mod_revision}" if there else "deleted"
    return ConflictError(f"{lease.key}: {found}, expected revision {lease.mod_revision}; nothing was written")
