"""Who holds which subnet, until when, and what is wrong with it? For ``flannelpy lease list``.

What is wrong is decided where the agents decide it: ``core.membership`` judges each lease as a peer's, ``core.claims`` knows whose
it is, ``core.pool`` what is free.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from math import inf, isinf
from typing import Any, cast

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.backend import Backend, Local, Uplink
from flannelpy.core.claims import EVERYTHING, halves, possible
from flannelpy.core.config import NetworkConfig, Pool
from flannelpy.core.desired import Desired
from flannelpy.core.errors import BackendError, ConfigError, MalformedError, RegistryError, UsageError
from flannelpy.core.foreign import cut
from flannelpy.core.hostname import is_name
from flannelpy.core.membership import Membership
from flannelpy.core.model import NO_ADDRESS, Lease
from flannelpy.core.names import Names
from flannelpy.core.offer import Offer
from flannelpy.core.pool import free_runs, overlap
from flannelpy.plugins import Published, parse
from flannelpy.registry import Malformed, Offered, Registry, Snapshot

ASKED_AT_ONCE = 64
ASKED_WITHIN_S = 20.0
"""For the time that leases have left: how many questions are open at a time, and how long all of them may take."""
NAMES_WITHIN_S = 2.0
LONGEST_NAME = 253
"""Letters of a node's name in Kubernetes."""

_NOWHERE = Uplink("uplink", 0, 1500)
"""Of a host that is none: what a backend says of a peer's lease is asked on nobody's behalf."""


@dataclass(frozen=True, slots=True)
class Row:
    """One key. ``left_s``: seconds until it ends, infinity for a reservation, None where nobody said. ``name``: what Kubernetes
    calls the host, elsewhere what it calls itself; empty where nobody has said.
    """

    read: Lease | Malformed
    left_s: float | None = None
    wrong: tuple[str, ...] = ()
    ours: bool = False
    name: str = ""

    @property
    def node(self) -> str:
        """What Kubernetes calls the host."""
        return self.read.holder if isinstance(self.read, Lease) else ""


@dataclass(frozen=True, slots=True)
class Room:
    """How many subnets of a pool nothing touches."""

    pool: Pool
    free: int

    def __str__(self) -> str:
        return f"{self.pool.network}: {self.free:,} of {self.pool.count:,} subnets are free"


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything that is to be shown; ``unjudged`` says why the leases could not be judged, and is empty where they were."""

    rows: tuple[Row, ...]
    rooms: tuple[Room, ...]
    revision: int
    unjudged: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """Whom a person asks for: a subnet, an address in one, a host's address (``net``), or what a host calls itself (``name``)."""

    net: IPNetwork | None
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> About:
        """Raises UsageError."""
        address, slash, length = text.partition("/")
        try:
            whole = IPAddress(address)
            bits = 32 if whole.version == 4 else 128
            if slash and not (length.isascii() and length.isdigit()):
                raise ValueError
            return cls(IPNetwork((int(whole), int(length) if slash else bits), version=whole.version).cidr)
        except (AddrFormatError, ValueError):
            if _may_be_name(text):
                return cls(None, text)
            expected = "an address or a subnet, like 10.5.9.7 or 10.5.9.0/24, or a host's name"
            raise UsageError(f"{cut(text, 60)!r}: expected {expected}") from None

    def only(self, listing: Listing) -> Listing:
        """The rows that it is about. Raises UsageError where it is the name of several hosts: anybody may call himself so."""
        rows = tuple(row for row in listing.rows if isinstance(row.read, Lease) and self._is(row, row.read))
        if self.name and len(hosts := {_host(row.read): None for row in rows if isinstance(row.read, Lease)}) > 1:
            some = ", ".join(map(str, list(hosts)[:4]))
            raise UsageError(f"{self.name!r}: {len(hosts)} hosts call themselves so: expected one of their addresses, {some}")
        return replace(listing, rows=rows)

    def _is(self, row: Row, lease: Lease) -> bool:
        if self.net is None:
            return row.name.lower() == self.name.lower()
        hosts = [each for each in (lease.public_ip, lease.attrs.public_ipv6) if each is not None and each != NO_ADDRESS]
        return any(overlap(self.net, net) for net in halves(lease)) or any(host in self.net for host in hosts)

    def __str__(self) -> str:
        if self.net is None:
            return self.name
        single = self.net.prefixlen == (32 if self.net.version == 4 else 128)
        return str(self.net.ip if single else self.net)


def _may_be_name(text: str) -> bool:
    """True for what a host may be called, a node of Kubernetes too; nothing that ends in a number, which is a wrong address."""
    return len(text) <= LONGEST_NAME and all(map(is_name, labels := text.split("."))) and not labels[-1].isdigit()


def _host(lease: Lease) -> IPAddress | None:
    """Whose it is, by the same rule as claims.same_host: by IPv4 address, without one by IPv6 address."""
    return lease.public_ip if lease.public_ip != NO_ADDRESS else lease.attrs.public_ipv6


# --------------------------------------------------------------------------------------------------------- putting together


async def ask(registry: Registry, where: str, ours: Sequence[IPNetwork]) -> Listing:
    """Everything there is to show; ``where`` is the config's key. A config that cannot be used leaves the leases unjudged."""
    stored, snapshot = await registry.config(), await registry.snapshot()
    left = await ask_time_left(registry, snapshot.leases)
    names = await ask_names(registry)
    try:
        config, backend = parse(stored.text)
    except ConfigError as error:
        joint = " " if stored.text is None else ": "
        return put_together(snapshot, left, None, None, ours, f"the config at {where}{joint}{error}", names)
    return put_together(snapshot, left, config, backend, ours, names=names)


async def ask_time_left(registry: Registry, leases: Iterable[Lease]) -> dict[str, float]:
    """Seconds that each lease has left, by key; who was not answered for in time is left out."""
    left: dict[str, float] = {}
    waiting = iter(tuple(leases))

    async def ask() -> None:
        for lease in waiting:
            left[lease.key] = inf if lease.reserved else await registry.remaining(lease)

    try:
        async with asyncio.timeout(ASKED_WITHIN_S), asyncio.TaskGroup() as asking:
            for _ in range(ASKED_AT_ONCE):
                asking.create_task(ask())
    except* (RegistryError, TimeoutError):
        pass  # the table is complete but for the times
    return left


async def ask_names(registry: Registry) -> Names:
    """What hosts call themselves; nothing where that cannot be read."""
    names = Names()
    with suppress(RegistryError, TimeoutError):
        async with asyncio.timeout(NAMES_WITHIN_S), aclosing(cast(AsyncGenerator[Offered, None], registry.offers())) as offers:
            async for offered in offers:
                for key, value in offered.values.items():
                    with suppress(MalformedError):
                        names.tell(key, None if value is None else Offer.from_json(value))
                break
    return names


def put_together(
    snapshot: Snapshot,
    left: Mapping[str, float],
    config: NetworkConfig | None,
    backend: Backend | None,
    ours: Sequence[IPNetwork],
    unjudged: str = "",
    names: Names | None = None,
) -> Listing:
    """The listing, in the order of addresses, what cannot be read last. ``ours``: the subnets that this host's agent has told."""
    names = names or Names()
    wrong = _faults(snapshot.leases, config, backend)
    rows = [
        Row(
            lease,
            left.get(lease.key),
            tuple(wrong[lease.key]),
            any(net in ours for net in halves(lease)),
            names.of(lease),
        )
        for lease in sorted(snapshot.leases, key=lambda lease: (lease.subnet, lease.subnet6 or EVERYTHING))
    ]
    rows += [Row(bad, wrong=(bad.why,)) for bad in snapshot.malformed]
    rooms = () if config is None else tuple(_rooms(config, snapshot.leases))
    return Listing(tuple(rows), rooms, snapshot.revision, unjudged)


def _faults(leases: Sequence[Lease], config: NetworkConfig | None, backend: Backend | None) -> dict[str, list[str]]:
    """What is wrong with each lease, by key."""
    wrong: dict[str, list[str]] = defaultdict(list)
    if config is not None:
        membership = Membership()
        if backend is None:
            membership.configure(config, None, None)
        else:
            membership.configure(config, backend.accepts, None, identity=Published(backend))
        for key, why in membership.replace(leases).refused.items():
            if why:
                wrong[key].append(why)
        if backend is not None:
            for key, why in _unreachable(membership.peers, backend, Local(config, _NOWHERE)).items():
                wrong[key].append(why)
    hosts: dict[object, list[Lease]] = defaultdict(list)
    for lease in leases:
        wrong[lease.key] = [why.removeprefix(f"{lease}: ") for why in wrong[lease.key]]
        if (host := _host(lease)) is not None:
            hosts[host].append(lease)
    for address, held in hosts.items():
        for lease in held if len(held) > 1 else ():
            others = [subnets_text(other) for other in held if other is not lease]
            more = f" and {len(others) - 2} more" if len(others) > 2 else ""
            wrong[lease.key].append(f"{address} holds {', '.join(others[:2])}{more} too")
    return wrong


def _unreachable(peers: Mapping[str, Lease], backend: Backend, local: Local) -> dict[str, str]:
    """Why a host that speaks this backend would leave a lease out: it cannot be read, or an older one has what it claims."""
    wrong: dict[str, str] = {}
    desired = Desired()
    for key, lease in peers.items():
        try:
            desired.put(key, backend.path(lease, local).state, lease.create_revision)
        except (MalformedError, BackendError) as error:
            wrong[key] = str(error)
    for key, (holder, claimed) in desired.conflicts.items():
        wrong[key] = f"claims {claimed}, which the older lease {peers[holder]} has"
    return wrong


def _rooms(config: NetworkConfig, leases: Sequence[Lease]) -> Iterable[Room]:
    taken = [net for lease in leases if possible(lease, config) for net in halves(lease)]
    for pool in (config.v4, config.v6):
        if pool is not None:
            yield Room(pool, sum(end - start for start, end in free_runs(pool, taken)))


# ----------------------------------------------------------------------------------------------------------------- showing


def subnets_text(lease: Lease) -> str:
    """``10.5.9.0/24``, with its IPv6 subnet behind a comma where it has one: as ``flannelpy lease`` takes it."""
    return ",".join(map(str, halves(lease)))


def to_json(listing: Listing) -> str:
    """For programs: flannel's names where flannel has one."""
    leases, malformed = [], []
    for row in listing.rows:
        if isinstance(row.read, Malformed):
            malformed.append({"key": row.read.key, "why": row.read.why})
        else:
            leases.append(_fields(row, row.read))
    pools = [
        {"network": str(room.pool.network), "subnetLen": room.pool.length, "free": room.free, "total": room.pool.count}
        for room in listing.rooms
    ]
    whole = {
        "revision": listing.revision,
        "unjudged": listing.unjudged or None,
        "pools": pools,
        "leases": leases,
        "malformed": malformed,
    }
    return json.dumps(whole, indent=2)


def _fields(row: Row, lease: Lease) -> dict[str, Any]:
    left = row.left_s
    return {
        "key": lease.key,
        **({"node": row.node} if row.node else {"hostname": row.name} if row.name else {}),
        "subnet": None if lease.subnet == EVERYTHING else str(lease.subnet),
        "subnet6": None if lease.subnet6 is None else str(lease.subnet6),
        **json.loads(lease.attrs.to_json()),
        "reservation": lease.reserved,
        "secondsLeft": None if left is None or isinf(left) else left,
        "createRevision": lease.create_revision,
        "modRevision": lease.mod_revision,
        "thisHost": row.ours,
        "wrong": list(row.wrong),
    }
