"""How does the agent see and change the kernel it runs on? ``NetlinkKernel``, in the network namespace of its thread.

Bulk objects (routes, nexthops, neighbours, FDB entries) are messages packed with ``struct``, some hundred a send; so are all dumps
and notices. Devices and addresses, which are few and have deep attributes, are encoded by pyroute2, imported at the first change of
one (links.py). Measured on two shared cores: this module imports in 54 ms, 43 of them asyncio and netaddr; pyroute2 would add 65. A
neighbour or FDB entry takes 4-5 us where pyroute2 needs 600-900, 5,000 routes are read in 33 ms instead of 713, a peer's three
messages are out and acknowledged in 0.15 ms. 10,000 peers take 1.4 s, 1.26 of them the kernel's own insertion of routes.

Everything is synchronous inside (channel.py says why that is safe); between batches, and between datagrams of a dump, the loop gets
a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from netaddr import IPAddress

from flannelpy.core.curve25519 import public_of
from flannelpy.core.errors import KernelError
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.forwarding import Hindrance
from flannelpy.core.lookup import Found, Lookup
from flannelpy.core.model import Family
from flannelpy.core.objects import (
    Address,
    FdbEntry,
    Fou,
    HostState,
    Key,
    Link,
    Neighbour,
    Nexthop,
    NftElement,
    NftSet,
    NftTable,
    Object,
    Route,
    Scope,
    Sysctl,
    WireguardDevice,
    WireguardPeer,
    XfrmPolicy,
)
from flannelpy.core.packet_filter import Ruleset
from flannelpy.core.plan import Step
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.secret import Secret
from flannelpy.core.uplink import EVERYTHING, FactsQuery, HostFacts, RouteAnswer
from flannelpy.core.wireguard import key_text
from flannelpy.kernel import Result, links, messages, nexthops, wireguard_go
from flannelpy.kernel.channel import GONE, Channel, Failure, error
from flannelpy.kernel.counters import counted, counted_by_source
from flannelpy.kernel.devices import Devices, index_of, name_of
from flannelpy.kernel.dump import IN_A_TURN, Dumped, dump_routes, observe_addresses, observe_fdb, observe_neighbours, observe_routes
from flannelpy.kernel.echo import EchoSocket
from flannelpy.kernel.elements import AT_ONCE, Elements
from flannelpy.kernel.facts import read_facts
from flannelpy.kernel.forward import Forward
from flannelpy.kernel.fou import FouPorts
from flannelpy.kernel.lookup import look_up
from flannelpy.kernel.messages import AF_INET, AF_INET6, CREATE, EXCL, FAMILY, REPLACE, REQUEST
from flannelpy.kernel.modules import Modules
from flannelpy.kernel.nft import Nft
from flannelpy.kernel.notices import Notices
from flannelpy.kernel.reintroduce import reintroduce
from flannelpy.kernel.sieve import Sieve, as_route
from flannelpy.kernel.wireguard import WireguardDevices
from flannelpy.kernel.xfrm import BATCH, XfrmPolicies

UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})
"""How a route look-up says no: no route, unreachable, prohibit, blackhole, or no such family in this kernel."""

BATCH_MOST, BATCH_LEAST = 256, 16
BATCH_S = 0.005
"""A batch holds as many messages as the kernel carries out in about this time, in seconds: so long the loop stands still. It
matters with thousands of on-link routes with distinct gateways on one device: each takes the kernel longer than the one before."""

NOTICE_BYTES = 8 << 20
"""Notifications that may pile up while nobody reads: some 10,000 messages."""

PROC_SYS = Path("/proc/sys")
Packed = (Address, Neighbour, FdbEntry, Nexthop, Route)
"""Kinds whose steps are sent many at a time."""


class NetlinkKernel:
    """The kernel of this host. Cheap to make; the first use opens sockets in the namespace of the calling thread."""

    def __init__(self, notice_bytes: int = NOTICE_BYTES, modules: Modules | None = None, userspace: bool = True) -> None:
        """``userspace`` False: only the kernel itself carries something, no program in its place."""
        self._modules = modules or Modules()
        self._notice_bytes = notice_bytes
        self._channel: Channel | None = None
        self._nft = Nft()
        self._forward = Forward(self._nft)
        self._elements = Elements()
        self._fou = FouPorts(self._modules)
        self._wireguard = WireguardDevices()
        self._policies = XfrmPolicies()
        self._devices = Devices(self._ask, userspace)
        self._batch = BATCH_MOST
        self._subscriptions: set[Notices] = set()

    # ---------------------------------------------------------------------------------------------------- facts

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        """See ``Kernel.facts``."""
        return await read_facts(query)

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        """``ip route get ADDRESS``; None where the kernel would not send."""
        channel = self._open()
        try:
            data, head = channel.get(messages.get_route(channel.reserve(1), address))
        except KernelError as reason:
            if reason.code in UNREACHABLE:
                return None
            raise
        kind, index, source, via = messages.read_answer(data, head.body, head.end)
        if not index or kind in (
            messages.ROUTE_KINDS["unreachable"],
            messages.ROUTE_KINDS["blackhole"],
            messages.ROUTE_KINDS["prohibit"],
        ):
            return None
        return RouteAnswer(name_of(index), index, source, via)

    async def look_up(self, lookups: Sequence[Lookup]) -> list[Found]:
        """See ``Kernel.look_up``."""
        return look_up(self._open(), lookups, name_of)

    async def policy_rule(self, lookup: Lookup) -> PolicyRule | None:
        """See ``Kernel.policy_rule``."""
        from flannelpy.kernel.policy import policy_rule

        return await policy_rule(lookup)

    async def settings(self, names: Iterable[str]) -> dict[str, str]:
        """See ``Kernel.settings``."""
        return read_settings(names)

    async def routes_at(self, routes: Iterable[Route]) -> Sequence[Route]:
        """See ``Kernel.routes_at``; a dump takes 33 ms for 5,000 routes."""
        keys = {route.key: (route.dst.version, route.dst.first, route.dst.prefixlen) for route in routes}
        places = set(keys.values())

        def read(data: bytes, body: int, end: int) -> Route | None:
            info = messages.read_route(data, body, end)
            if info is None or (info.version, info.dst, info.prefixlen) not in places or data[body + 3]:
                return None  # one for a type of service stands beside ours
            found = as_route(info, name_of(info.device) if info.device else None)
            return found if found.key in keys else None

        return [route for version in sorted({place[0] for place in places}) for route in await dump_routes(FAMILY[version], read)]

    async def nexthops(self) -> bool:
        """See ``Kernel.nexthops``."""
        return nexthops.usable(self._open(), read_settings([nexthops.TOLD_IN_FULL]))

    async def reintroduce(self, index: int) -> None:
        await reintroduce(index)

    async def hindrances(self) -> tuple[Hindrance, ...]:
        """See ``Kernel.hindrances``."""
        return await self._forward.hindrances()

    async def filter_rules(self) -> Ruleset:
        """See ``Kernel.filter_rules``."""
        return await self._forward.filter_rules()

    async def firewall_state(self) -> Hashable:
        """See ``Kernel.firewall_state``."""
        legacy = await self._forward.legacy()
        return self._elements.generation(), *(hash((where, *lines)) for where, lines in legacy.items())

    async def foreign_rules(self) -> Ruleset:
        """See ``Kernel.foreign_rules``."""
        return await self._forward.foreign_rules()

    async def counted(self, table: str) -> dict[str, int]:
        """See ``Kernel.counted``."""
        return await counted(table)

    async def counted_by_source(self, table: str, name: str) -> dict[str, int]:
        """See ``Kernel.counted_by_source``."""
        return await counted_by_source(table, name)

    # ----------------------------------------------------------------------------------------------- observation

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        """What is there of what may be ours; with ``keys``, of the kinds that they name.

        One dump a kind: the kernel has no exact look-up of a route (``ip route get`` answers with whatever matches best). It is
        asked for what notices may have missed, not for every change.
        """
        kinds = None if keys is None else {key.kind for key in keys}

        def wanted(kind: str) -> bool:
            return kinds is None or kind in kinds

        sieve = Sieve(scope, self._devices.name_of)
        for name in (*scope.links, *([scope.uplink] if scope.uplink else [])):
            if index := index_of(name) if name in scope.links else self._devices.remember(name):
                sieve.meet(name, index)
        found: list[Object] = []
        dumps: list[Dumped[Any]] = []
        if wanted("link"):
            found += self._observe_links(sieve)
        wireguard = {item.name for item in found if isinstance(item, Link) and item.kind == "wireguard"}
        for index in sieve.links:
            if wanted("addr"):
                found += await observe_addresses(sieve, index)
            if wanted("neigh"):
                dumps.append(await observe_neighbours(sieve, index))
            if wanted("fdb"):
                dumps.append(await observe_fdb(sieve, index))
            if wanted("nexthop"):
                dumps.append(await nexthops.observe(sieve, index))
            name = sieve.links[index]
            if (name in wireguard) if kinds is None else not kinds.isdisjoint(("wg", "wgpeer")):
                dumps.append(await self._wireguard.observe(name, index))
        if wanted("fou"):
            found += self._fou.observe(scope.fou_ports)
        if wanted("xfrm"):
            dumps.append(await self._policies.observe(scope))
        if wanted("sysctl"):
            found += _observe_sysctls(scope)
        if wanted("route"):
            dumps += [await observe_routes(sieve, family) for family in (AF_INET, AF_INET6)]
        if wanted("forward"):
            found += await self._forward.observe(scope.table)
        if (wanted("nft") or wanted("set") or wanted("element")) and (listed := await self._nft.list(scope.table)) is not None:
            table, sets = listed
            found += [table, *sets]
            if wanted("element"):
                dumps += [await self._elements.list(scope.table, each.name) for each in sets if not each.dynamic]
        objects: dict[Key, Object] = {}
        for number, item in enumerate(chain(found, *dumps), 1):
            objects.setdefault(item.key, item)  # of two routes to one destination the kernel uses, and dumps, the first
            if not number % IN_A_TURN:
                await asyncio.sleep(0)
        return HostState(objects, incomplete=not all(one.complete for one in dumps))

    def _observe_links(self, sieve: Sieve) -> list[Link]:
        found = []
        channel = self._open()
        for index in sieve.links:
            try:
                data, head = channel.get(messages.get_link(channel.reserve(1), index))
            except KernelError as reason:
                if reason.code in GONE:
                    continue
                raise
            link = sieve.link(messages.read_link(data, head.body, head.end))
            if link is not None:
                found.append(link)
        return found

    # ----------------------------------------------------------------------------------------------------- apply

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Carry out the steps in order: runs of packed kinds in batches, the others one by one."""
        results: list[Result] = []
        missing: dict[int, KernelError] = {}
        while len(results) < len(steps):
            at = len(results)
            if isinstance(steps[at].item, Packed):
                end = at + 1
                while end < len(steps) and end < at + self._batch and isinstance(steps[end].item, Packed):
                    end += 1
                done = self._apply_packed(nexthops.before_their_routes(steps[at:end]), missing)
                missing |= nexthops.refused(done)
                results += done
            elif isinstance(steps[at].item, NftElement):
                run = list(takewhile(lambda step: isinstance(step.item, NftElement), steps[at : at + AT_ONCE]))
                results += [Result(step, error) for step, error in zip(run, self._elements.apply(run), strict=True)]
            elif isinstance(steps[at].item, XfrmPolicy):
                run = list(takewhile(lambda step: isinstance(step.item, XfrmPolicy), steps[at : at + BATCH]))
                results += [Result(step, error) for step, error in zip(run, self._policies.apply(run), strict=True)]
            elif isinstance(steps[at].item, WireguardPeer):
                run = _peers_of_one_device(steps[at : at + BATCH_MOST])
                outcome = await self._wireguard.apply_peers(index_of(run[0].item.lives_on or ""), run)
                results += [Result(step, error) for step, error in zip(run, outcome, strict=True)]
            else:
                results.append(await self._apply_single(steps[at]))
            await asyncio.sleep(0)
        return await self._forgive(results)

    async def _forgive(self, results: list[Result]) -> list[Result]:
        """Where a device was not made anew after all, what was to be put on its successor is still there: that is no failure."""
        kept = {one.step.item.lives_on for one in results if one.error and one.step.op == "remake"}
        if not any(_is_there(one) and one.step.item.lives_on in kept for one in results):
            return results
        sieve = Sieve(Scope(frozenset(name for name in kept if name)), name_of)
        for name in sieve.scope.links:
            sieve.meet(name, index_of(name))
        there = {*await observe_routes(sieve, AF_INET), *await observe_routes(sieve, AF_INET6)}
        return [Result(one.step) if _is_there(one) and one.step.item in there else one for one in results]

    def _apply_packed(self, steps: Sequence[Step], missing: Mapping[int, KernelError]) -> list[Result]:
        """``missing``: nexthop objects that could not be had, which is what becomes of the routes by them."""
        started = time.thread_time()  # not the wall's: on a busy host that says how long others had the processor
        channel = self._open()
        first = channel.reserve(len(steps))
        errors: dict[int, KernelError] = {}
        requests: list[bytes] = []
        places: list[int] = []
        index_by = _Indices()  # resolved for each batch: a device may have been made anew since the last
        for place, step in enumerate(steps):
            try:
                requests.append(_encode(step, first + len(requests), index_by, missing))
                places.append(place)
            except KernelError as reason:
                errors[place] = reason
        for place, failed in self._transact(channel, requests, first).items():
            errors[places[place]] = error(failed)
        taken = [place for place, failed in errors.items() if failed.code == errno.EEXIST]
        for place, item in [(place, item) for place in taken if isinstance(item := steps[place].item, Nexthop)]:
            if (still := nexthops.take_over(channel, item, index_by(item.dev))) is None:
                del errors[place]
            else:
                errors[place] = still
        for place in [place for place, failed in errors.items() if failed.code == errno.EINVAL]:
            from flannelpy.kernel.onlink import insist

            encode = partial(_encode, steps[place], index_of=index_by, missing=missing)
            if (still := insist(channel, steps[place], errors[place], encode, index_by)) is None:
                del errors[place]
            else:
                errors[place] = still
        self._pace(time.thread_time() - started, len(steps))
        return [Result(step, _verdict(step, errors.get(place))) for place, step in enumerate(steps)]

    def _transact(self, channel: Channel, requests: list[bytes], first: int) -> dict[int, Failure]:
        """Failures by place. Where the kernel cannot be asked at all, every request failed so."""
        if not requests:
            return {}
        requests[-1] = messages.with_ack(requests[-1])
        try:
            return channel.transact(requests, first)
        except KernelError as reason:
            self._shut()  # what is still in its queue would be taken for answers to the next batch
            return dict.fromkeys(range(len(requests)), (reason.code, ""))

    def _pace(self, took_s: float, count: int) -> None:
        if took_s > 2 * BATCH_S:
            self._batch = max(BATCH_LEAST, self._batch // 2)
        elif took_s < BATCH_S and count == self._batch:
            self._batch = min(BATCH_MOST, self._batch * 2)

    async def _apply_single(self, step: Step) -> Result:
        try:
            match step.item:
                case Fou():
                    await self._apply_fou(step, step.item)
                case Link():
                    await self._devices.apply(step, step.item)
                case WireguardDevice():
                    if step.op != "remove":  # it goes with its link
                        await self._wireguard.set_device(index_of(step.item.dev), step.item)
                case Sysctl():
                    _apply_sysctl(step, step.item)
                case ForwardAccept():
                    await (self._forward.remove(step.item) if step.op == "remove" else self._forward.add(step.item))
                case NftSet():
                    await (self._nft.remove_set(step.item) if step.op == "remove" else self._nft.add_set(step.item))
                case NftTable():
                    await (self._nft.remove(step.item.name) if step.op == "remove" else self._nft.replace(step.item))
        except KernelError as reason:
            return Result(step, _verdict(step, reason))
        return Result(step)

    async def _apply_fou(self, step: Step, item: Fou) -> None:
        if step.op == "remove":
            self._fou.remove(item.port)
            return
        if step.op == "change":
            with contextlib.suppress(KernelError):  # what stays in the way is told by the addition
                self._fou.remove(item.port)
        await self._fou.add(item)

    def _ask(self, request: Callable[[int], bytes]) -> None:
        """One request that answers with success or failure. Raises KernelError."""
        channel = self._open()
        first = channel.reserve(1)
        failed = self._transact(channel, [request(first)], first)
        if failed:
            raise error(failed[0])

    async def rehearse(self, steps: Sequence[Step]) -> Sequence[Result]:
        """See ``Kernel.rehearse``."""
        from flannelpy.kernel.rehearsal import rehearse

        return await rehearse(partial(NetlinkKernel, modules=self._modules, userspace=False), steps)

    async def public_key(self, private: Secret[bytes]) -> str:
        """See ``Kernel.public_key``."""
        from flannelpy.kernel.rehearsal import in_empty_namespace

        async def derive(kernel: NetlinkKernel, fresh: bool) -> str:
            return await kernel.public_key_here(private, undo=not fresh)

        make = partial(NetlinkKernel, modules=self._modules, userspace=False)
        try:
            return await in_empty_namespace(make, derive, "a wireguard device")
        except KernelError as reason:
            if reason.code != errno.EOPNOTSUPP or wireguard_go.installed() is None:
                raise
            return key_text(public_of(private.reveal()))

    async def public_key_here(self, private: Secret[bytes], undo: bool) -> str:
        """The same in this kernel's namespace; with ``undo``, what is made goes again, and what another try has left before it."""
        from flannelpy.kernel.rehearsal import TRIAL_DEVICE, trial_of_key

        trial = trial_of_key(private)
        gone = [Step("remove", trial[0].item, trial[0].item)] if undo else []
        try:
            for result in await self.apply([*gone, *trial]):
                if result.error is not None:
                    raise result.error
            return self._wireguard.public_key(TRIAL_DEVICE, index_of(TRIAL_DEVICE))
        finally:
            await self.apply(gone)

    # --------------------------------------------------------------------------------------------------- sockets

    def echo(self, version: Family) -> EchoSocket:
        return EchoSocket(version)

    def notices(self, scope: Scope) -> Notices:
        """Subscribe, now. Raises KernelError where that cannot be."""
        found = Notices(scope, self._nft, self._notice_bytes, self._devices.name_of)
        self._subscriptions = {found, *(old for old in self._subscriptions if not old.closed)}
        return found

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()
        self._nft.close()
        self._elements.close()
        self._fou.close()
        self._wireguard.close()
        self._policies.close()
        self._shut()

    def _open(self) -> Channel:
        if self._channel is None:
            self._channel = Channel()
        return self._channel

    def _shut(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class _Indices:
    """Device indices by name, each looked up once."""

    def __init__(self) -> None:
        self._found: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """Raises KernelError (ENODEV) where there is none."""
        index = self._found.get(name)
        if index is None:
            index = self._found[name] = index_of(name)
        if not index:
            raise error((errno.ENODEV, ""))
        return index


def _encode(step: Step, sequence: int, index_of: _Indices, missing: Mapping[int, KernelError]) -> bytes:
    """The message of a step of a packed kind. Raises KernelError where its device, or its nexthop object, is not there."""
    item, remove = step.item, step.op == "remove"
    if isinstance(item, Route):
        nexthops.demand_had(step, missing)
        if item.link_scope and item.dst.version == 6:
            raise KernelError("IPv6 routes have no scope", errno.EINVAL)
        index = 0 if item.dev is None else index_of(item.dev)
        if remove:
            return messages.route(messages.RTM_DELROUTE, REQUEST, sequence, item, index)
        flags = REQUEST | CREATE | (EXCL if step.op == "add" else REPLACE)
        return messages.route(messages.RTM_NEWROUTE, flags, sequence, item, index)
    flags = REQUEST if remove else REQUEST | CREATE | REPLACE
    kind = messages.RTM_DELNEIGH if remove else messages.RTM_NEWNEIGH
    if isinstance(item, Neighbour):
        return messages.neighbour(kind, flags, sequence, item, index_of(item.dev))
    if isinstance(item, FdbEntry):
        return messages.fdb(kind, flags, sequence, item, index_of(item.dev))
    if isinstance(item, Nexthop):
        return nexthops.encode(step, item, sequence, 0 if remove else index_of(item.dev))
    assert isinstance(item, Address)
    encode = links.remove_address if remove else links.add_address
    return encode(sequence, item, index_of(item.dev))


def _peers_of_one_device(steps: Sequence[Step]) -> list[Step]:
    """The peers at the beginning, as far as they are of one device."""
    dev = steps[0].item.lives_on
    return list(takewhile(lambda step: isinstance(step.item, WireguardPeer) and step.item.dev == dev, steps))


def _is_there(result: Result) -> bool:
    return result.error is not None and result.error.code == errno.EEXIST and result.step.op == "add"


def _verdict(step: Step, failed: KernelError | None) -> KernelError | None:
    """Removing what is not there is success."""
    return None if failed is not None and step.op == "remove" and failed.code in GONE else failed


def _observe_sysctls(scope: Scope) -> list[Sysctl]:
    return [Sysctl(name, value) for name, value in read_settings(scope.sysctls).items()]


def read_settings(names: Iterable[str]) -> dict[str, str]:
    """What these settings hold; without those of a device or a module that is not there."""
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            found[name] = (PROC_SYS / name).read_text().strip()
    return found


def _apply_sysctl(step: Step, item: Sysctl) -> None:
    if step.op == "remove":
        return
    try:
        with (PROC_SYS / item.name).open("r+") as file:  # never creates
            file.write(item.value)
    except OSError as reason:
        raise KernelError(f"/proc/sys/{item.name}: {reason.strerror}", reason.errno or 0) from None
