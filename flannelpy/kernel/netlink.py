"""How does the agent see and change the kernel it runs on? ``NetlinkKernel``, in the network namespace of its thread.

Bulk objects (routes, neighbours, FDB entries) are messages packed with ``struct``, some hundred a send; so are all dumps and
notices. Devices and addresses, which are few and have deep attributes, are encoded by pyroute2, imported at the first change of one
(links.py). Measured on two shared cores: this module imports in 54 ms, 43 of them asyncio and netaddr; pyroute2 would add 65. A
neighbour or FDB entry takes 4-5 us where pyroute2 needs 600-900, 5,000 routes are read in 33 ms instead of 713, a peer's three
messages are out and acknowledged in 0.15 ms. 10,000 peers take 1.4 s, 1.26 of them the kernel's own insertion of routes.

Everything is synchronous inside (channel.py says why that is safe); between batches, and between datagrams of a dump, the loop gets
a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Address, FdbEntry, Fou, HostState, Key, Link, Neighbour, NftTable, Object, Route, Scope, Sysctl
from flannelpy.core.plan import Step
from flannelpy.core.uplink import EVERYTHING, DefaultRoute, FactsQuery, HostFacts, Interface, InterfaceAddress, RouteAnswer
from flannelpy.kernel import Result, links, messages
from flannelpy.kernel.channel import Channel, Failure, error
from flannelpy.kernel.fou import FouPorts
from flannelpy.kernel.messages import AF_BRIDGE, AF_INET, AF_INET6, CREATE, EXCL, REPLACE, REQUEST
from flannelpy.kernel.nft import Nft
from flannelpy.kernel.notices import Notices
from flannelpy.kernel.sieve import Sieve, as_route

T = TypeVar("T")

GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})
"""What removing a thing that is not there says: it is gone, which is what was asked for."""

UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})
"""How a route look-up says no: no route, unreachable, prohibit, blackhole, or no such family in this kernel."""

NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPFNOSUPPORT})

BATCH_MOST, BATCH_LEAST = 256, 16
BATCH_S = 0.005
"""A batch holds as many messages as the kernel carries out in about this time, in seconds: so long the loop stands still. It
matters with thousands of on-link routes with distinct gateways on one device: each takes the kernel longer than the one before."""

DUMP_ATTEMPTS, DUMP_PAUSE_S = 10, 0.02
NOTICE_BYTES = 8 << 20
"""Notifications that may pile up while nobody reads: some 10,000 messages."""

PROC_SYS = Path("/proc/sys")
SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
IFA_F_TEMPORARY, IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x01, 0x20, 0x80

Packed = (Address, Neighbour, FdbEntry, Route)
"""Kinds whose steps are sent many at a time."""


class NetlinkKernel:
    """The kernel of this host. Cheap to make; the first use opens sockets in the namespace of the calling thread."""

    def __init__(self, notice_bytes: int = NOTICE_BYTES) -> None:
        self._notice_bytes = notice_bytes
        self._channel: Channel | None = None
        self._nft = Nft()
        self._fou = FouPorts()
        self._batch = BATCH_MOST
        self._subscriptions: set[Notices] = set()

    # ---------------------------------------------------------------------------------------------------- facts

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        """Interfaces with addresses, and default routes. Raises KernelError where the kernel cannot be asked.

        Interfaces that are named are asked for by name: the others may come and go meanwhile. Where all are asked for and some come
        or go, each that was told is true all the same.
        """
        defaults = []
        for family in (AF_INET, AF_INET6) if query.default_routes else ():
            defaults += [DefaultRoute(route.version, route.device) for route in await self._dump_routes(family, _read_default)]
        addresses: dict[int, list[InterfaceAddress]] = {}
        if query.names is None:
            infos = await self._dump(messages.dump_links, messages.read_link, whole=False)
            for info in await self._dump(messages.dump_addresses, messages.read_address, whole=False):
                addresses.setdefault(info.device, []).append(_interface_address(info))
        else:
            infos = self._links(query.names, {route.index for route in defaults if route.index})
            for index in [info.device for info in infos]:
                request = partial(messages.dump_addresses, index=index)
                found = await self._dump_of(request, messages.read_address, whole=False)
                addresses[index] = [_interface_address(info) for info in found if info.device == index]
        interfaces = [
            Interface(
                info.name, info.device, info.mtu, info.up, tuple(addresses.get(info.device, ())), info.mac or "", info.altnames
            )
            for info in sorted(infos, key=lambda info: info.device)
        ]
        return HostFacts(tuple(interfaces), tuple(defaults))

    def _links(self, names: Iterable[str], indexes: Iterable[int]) -> list[messages.LinkInfo]:
        """The interfaces with these names (any that they have) and indexes; those that are not there are left out."""
        channel = self._open()
        requests = [partial(messages.get_link_named, name=name) for name in names]
        requests += [partial(messages.get_link, index=index) for index in indexes]
        found: dict[int, messages.LinkInfo] = {}
        for request in requests:
            try:
                data, head = channel.get(request(channel.reserve(1)))
            except KernelError as reason:
                if reason.code in GONE:
                    continue
                raise
            info = messages.read_link(data, head.body, head.end)
            found[info.device] = info
        return list(found.values())

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
        return RouteAnswer(_name_of(index), index, source, via)

    async def route_at(self, dst: IPNetwork) -> Route | None:
        """The main table's route to exactly ``dst``, whoever's; a dump of its family (33 ms for 5,000 routes)."""

        def read(data: bytes, body: int, end: int) -> Route | None:
            info = messages.read_route(data, body, end)
            if info is None or (info.dst, info.prefixlen) != (dst.first, dst.prefixlen):
                return None
            return as_route(info, _name_of(info.device) if info.device else None)

        found = await self._dump_routes(AF_INET if dst.version == 4 else AF_INET6, read)
        return found[0] if found else None

    # ----------------------------------------------------------------------------------------------- observation

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        """What is there of what may be ours; with ``keys``, of the kinds that they name.

        One dump a kind: the kernel has no exact look-up of a route (``ip route get`` answers with whatever matches best). It is
        asked for what notices may have missed, not for every change.
        """
        kinds = None if keys is None else {key.kind for key in keys}

        def wanted(kind: str) -> bool:
            return kinds is None or kind in kinds

        sieve = Sieve(scope, _name_of)
        for name in (*scope.links, *([scope.uplink] if scope.uplink else [])):
            if index := _index_of(name):
                sieve.meet(name, index)
        found: list[Object] = []
        if wanted("link"):
            found += self._observe_links(sieve)
        for index in sieve.links:
            if wanted("addr"):
                found += await self._observe_addresses(sieve, index)
            if wanted("neigh"):
                found += await self._observe_neighbours(sieve, index)
            if wanted("fdb"):
                found += await self._observe_fdb(sieve, index)
        if wanted("fou"):
            found += self._fou.observe(scope.fou_ports)
        if wanted("sysctl"):
            found += _observe_sysctls(scope)
        if wanted("route"):
            found += await self._observe_routes(sieve)
        if wanted("nft") and (table := await self._nft.list(scope.table)) is not None:
            found.append(table)
        objects: dict[Key, Object] = {}
        for item in found:
            objects.setdefault(item.key, item)  # of two routes to one destination the kernel uses, and dumps, the first
        return HostState(objects)

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

    async def _observe_addresses(self, sieve: Sieve, index: int) -> list[Address]:
        def read(data: bytes, body: int, end: int) -> Address | None:
            if messages.link_index(data, body) != index:
                return None
            info = messages.read_address(data, body, end)
            return None if info is None else sieve.address(info)

        return await self._dump_of(lambda sequence: messages.dump_addresses(sequence, index), read)

    async def _observe_neighbours(self, sieve: Sieve, index: int) -> list[Neighbour]:
        def read(data: bytes, body: int, end: int) -> Neighbour | None:
            return sieve.neighbour(messages.read_neighbour(data, body, end)) if messages.link_index(data, body) == index else None

        return await self._dump_of(lambda sequence: messages.dump_neighbours(sequence, 0, index), read)

    async def _observe_fdb(self, sieve: Sieve, index: int) -> list[FdbEntry]:
        def read(data: bytes, body: int, end: int) -> FdbEntry | None:
            return sieve.fdb(messages.read_neighbour(data, body, end)) if messages.link_index(data, body) == index else None

        return await self._dump_of(lambda sequence: messages.dump_neighbours(sequence, AF_BRIDGE, index), read)

    async def _observe_routes(self, sieve: Sieve) -> list[Route]:
        def read(data: bytes, body: int, end: int) -> Route | None:
            info = messages.read_route(data, body, end)
            return None if info is None else sieve.route(info)

        return [*await self._dump_routes(AF_INET, read), *await self._dump_routes(AF_INET6, read)]

    async def _dump_routes(self, family: int, read: Callable[[bytes, int, int], T | None]) -> list[T]:
        try:
            return await self._dump(lambda sequence: messages.dump_routes(sequence, family), read)
        except KernelError as reason:
            if reason.code == errno.ENOENT or (family == AF_INET6 and reason.code in NO_FAMILY):
                return []  # a routing table is made with its first route
            raise

    async def _dump_of(
        self, request: Callable[[int], bytes], read: Callable[[bytes, int, int], T | None], *, whole: bool = True
    ) -> list[T]:
        """A dump of one device, empty where the device went meanwhile."""
        try:
            return await self._dump(request, read, whole=whole)
        except KernelError as reason:
            if reason.code in GONE:
                return []
            raise

    async def _dump(
        self, request: Callable[[int], bytes], read: Callable[[bytes, int, int], T | None], *, whole: bool = True
    ) -> list[T]:
        """What ``read`` makes of each message of a dump; again from the start where the kernel says that the table moved below it.

        Each message is true, but one may be missing or twice: after some attempts the last one is taken as it is, and at once where
        nobody needs it ``whole``. On a socket of its own: the loop gets turns in between, in which others ask the kernel, too.
        """
        found: list[T] = []
        for attempt in range(DUMP_ATTEMPTS if whole else 1):
            await asyncio.sleep(0 if not attempt else DUMP_PAUSE_S)
            found = []
            try:
                with Channel() as channel:
                    for data, heads in channel.dump(request(channel.reserve(1))):
                        for head in heads:
                            item = read(data, head.body, head.end)
                            if item is not None:
                                found.append(item)
                        await asyncio.sleep(0)
            except InterruptedError:
                continue
            break
        return found

    # ----------------------------------------------------------------------------------------------------- apply

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Carry out the steps in order: runs of packed kinds in batches, the others one by one."""
        results: list[Result] = []
        while len(results) < len(steps):
            at = len(results)
            if isinstance(steps[at].item, Packed):
                end = at + 1
                while end < len(steps) and end < at + self._batch and isinstance(steps[end].item, Packed):
                    end += 1
                results += self._apply_packed(steps[at:end])
            else:
                results.append(await self._apply_single(steps[at]))
            await asyncio.sleep(0)
        return results

    def _apply_packed(self, steps: Sequence[Step]) -> list[Result]:
        started = time.thread_time()  # not the wall's: on a busy host that says how long others had the processor
        channel = self._open()
        first = channel.reserve(len(steps))
        errors: dict[int, KernelError] = {}
        requests: list[bytes] = []
        places: list[int] = []
        index_of = _Indices()  # resolved for each batch: a device may have been made anew since the last
        for place, step in enumerate(steps):
            try:
                requests.append(_encode(step, first + len(requests), index_of))
                places.append(place)
            except KernelError as reason:
                errors[place] = reason
        for place, failed in self._transact(channel, requests, first).items():
            errors[places[place]] = error(failed)
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
                    self._apply_fou(step, step.item)
                case Link():
                    self._apply_link(step, step.item)
                case Sysctl():
                    _apply_sysctl(step, step.item)
                case NftTable():
                    await (self._nft.remove(step.item.name) if step.op == "remove" else self._nft.replace(step.item))
        except KernelError as reason:
            return Result(step, _verdict(step, reason))
        return Result(step)

    def _apply_fou(self, step: Step, item: Fou) -> None:
        if step.op == "remove":
            self._fou.remove(item.port)
            return
        if step.op == "change":
            with contextlib.suppress(KernelError):  # what stays in the way is told by the addition
                self._fou.remove(item.port)
        self._fou.add(item)

    def _apply_link(self, step: Step, link: Link) -> None:
        index = _index_of(link.name)
        if step.op in ("remove", "remake") and index:
            self._ask(lambda sequence: messages.delete_link(sequence, index))
        if step.op == "change":
            if not index:
                raise error((errno.ENODEV, ""))
            before = step.before if isinstance(step.before, Link) else None
            self._ask(lambda sequence: links.change(sequence, link, before, index))
        elif step.op in ("add", "remake"):
            self._create(link)

    def _create(self, link: Link) -> None:
        parent = 0
        if link.vxlan is not None:
            parent = _index_of(link.vxlan.dev)
            if not parent:
                raise KernelError(f"the underlay device {link.vxlan.dev} is not there", errno.ENODEV)
        try:
            self._ask(lambda sequence: links.create(sequence, link, parent))
        except KernelError as reason:
            if reason.code == errno.EOPNOTSUPP and (link.vxlan or link.ipip) is not None:
                raise KernelError(f"this kernel has no {link.kind} devices: load the module {link.kind}", reason.code) from None
            raise

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

        return await rehearse(NetlinkKernel, steps)

    # --------------------------------------------------------------------------------------------------- sockets

    def notices(self, scope: Scope) -> Notices:
        """Subscribe, now. Raises KernelError where that cannot be."""
        found = Notices(scope, self._nft, self._notice_bytes, _name_of)
        self._subscriptions = {found, *(old for old in self._subscriptions if not old.closed)}
        return found

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()
        self._nft.close()
        self._fou.close()
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
            index = self._found[name] = _index_of(name)
        if not index:
            raise error((errno.ENODEV, ""))
        return index


def _encode(step: Step, sequence: int, index_of: _Indices) -> bytes:
    """The message of a step of a packed kind. Raises KernelError where its device is not there."""
    item, remove = step.item, step.op == "remove"
    if isinstance(item, Route):
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
    assert isinstance(item, Address)
    encode = links.remove_address if remove else links.add_address
    return encode(sequence, item, index_of(item.dev))


def _verdict(step: Step, failed: KernelError | None) -> KernelError | None:
    """Removing what is not there is success."""
    return None if failed is not None and step.op == "remove" and failed.code in GONE else failed


def _observe_sysctls(scope: Scope) -> list[Sysctl]:
    found = []
    for name in scope.sysctls:
        try:
            found.append(Sysctl(name, (PROC_SYS / name).read_text().strip()))
        except OSError:
            continue  # of a device or a module that is not there
    return found


def _apply_sysctl(step: Step, item: Sysctl) -> None:
    if step.op == "remove":
        return
    try:
        with (PROC_SYS / item.name).open("r+") as file:  # never creates
            file.write(item.value)
    except OSError as reason:
        raise KernelError(f"/proc/sys/{item.name}: {reason.strerror}", reason.errno or 0) from None


def _interface_address(info: messages.AddressInfo) -> InterfaceAddress:
    return InterfaceAddress(
        IPAddress(info.value, info.version),
        info.prefixlen,
        SCOPES.get(info.scope, str(info.scope)),
        deprecated=bool(info.flags & IFA_F_DEPRECATED),
        permanent=bool(info.flags & IFA_F_PERMANENT),
        temporary=info.version == 6 and bool(info.flags & IFA_F_TEMPORARY),  # the same bit says "secondary" in IPv4
    )


def _read_default(data: bytes, body: int, end: int) -> messages.RouteInfo | None:
    if data[body + 1]:  # prefix length
        return None
    info = messages.read_route(data, body, end)
    return info if info is not None and info.kind == messages.ROUTE_KINDS["unicast"] else None


def _index_of(name: str) -> int:
    """The index of a device, 0 where there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _name_of(index: int) -> str:
    """The name of a device, or ``if7`` where it went meanwhile."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
