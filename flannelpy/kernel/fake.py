"""What would the kernel do? A kernel in memory that passes the same tests as the real one (tests/contract/test_kernel.py).

It knows what the agent can meet: exclusive additions, gateways that are not on-link, devices that take their objects along, changes
by other hands. Methods without ``async`` are those other hands: an operator at a shell, another daemon, the hardware.
"""

from __future__ import annotations

import asyncio
import errno
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import (
    BOOT_PROTOCOL,
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    Fou,
    HostState,
    Key,
    Link,
    Neighbour,
    NftTable,
    Object,
    Route,
    Scope,
    Sysctl,
)
from flannelpy.core.plan import Step
from flannelpy.core.uplink import EVERYTHING, DefaultRoute, FactsQuery, HostFacts, Interface, InterfaceAddress, RouteAnswer
from flannelpy.kernel import Notice, Result
from flannelpy.kernel.channel import error

KERNEL_PROTOCOL = 2

UNSET = "1"
"""What a setting holds that nobody wrote: accept_ra's default, the one the agent changes."""


class FakeKernel:
    """A host with ``interfaces`` of its own, up and addressed; everything else comes by ``apply`` or by other hands."""

    def __init__(self, interfaces: Iterable[Interface] = (), default_routes: Iterable[DefaultRoute] = ()) -> None:
        self.interfaces = {item.name: item for item in interfaces}
        """The host's own, by name."""
        self._default_routes = tuple(default_routes)
        self._next_index = max((item.index for item in self.interfaces.values()), default=1) + 1
        self._links: dict[str, Link] = {}
        self._indices: dict[str, int] = {}
        self._objects: dict[Key, Object] = {}
        self._routes: dict[IPNetwork, Route] = {}
        self.unknown: set[str] = set()
        """Kinds that this kernel was built without: ``fou``, ``ipip``."""
        self._faults: dict[Key, tuple[int, int]] = {}
        self._broken: dict[str, tuple[KernelError, int]] = {}
        self._subscriptions: weakref.WeakSet[FakeNotices] = weakref.WeakSet()
        self.applied: list[Step] = []
        """Every step that was carried out, in order."""
        self.calls: Counter[str] = Counter()
        """How often each method of the contract was called."""

    # -------------------------------------------------------------------------------------------------- contract

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        self._called("facts")
        found = list(self.interfaces.values())
        for link in self._links.values():
            mine = [item.net for item in self._objects.values() if isinstance(item, Address) and item.dev == link.name]
            addresses = tuple(InterfaceAddress(net.ip, net.prefixlen) for net in mine)
            found.append(Interface(link.name, self._indices[link.name], link.mtu, link.up, addresses))
        if query.names is not None:
            leaving = {route.index for route in self._default_routes} if query.default_routes else set()
            found = [item for item in found if query.names.intersection((item.name, *item.altnames)) or item.index in leaving]
        return HostFacts(tuple(sorted(found, key=lambda item: item.index)), self._default_routes if query.default_routes else ())

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        self._called("route_to")
        for interface in self.interfaces.values():
            for own in interface.addresses:
                if interface.up and address in _net(own):
                    return RouteAnswer(interface.name, interface.index, own.address)
        covering = [route for dst, route in self._routes.items() if address in dst]
        best = max(covering, key=lambda route: route.dst.prefixlen, default=None)
        if best is not None:
            if best.kind != "unicast" or best.dev is None:
                return None
            return RouteAnswer(best.dev, self._index(best.dev), self._source(best.dev, address.version), best.via)
        for default in self._default_routes:
            name = next((item.name for item in self.interfaces.values() if item.index == default.index), None)
            if name is not None and default.version == address.version:
                return RouteAnswer(name, default.index, self._source(name, address.version), None)
        return None

    async def route_at(self, dst: IPNetwork) -> Route | None:
        self._called("route_at")
        return self._routes.get(dst)

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        self._called("observe")
        self._fault(Key("observe", ""))
        kinds = None if keys is None else {key.kind for key in keys}
        unset = [Sysctl(name, UNSET) for name in scope.sysctls if self._find(Key("sysctl", name)) is None]
        present = [item for item in unset if not self._sysctl_missing(item)]
        everything = (*self._links.values(), *self._objects.values(), *self._routes.values(), *present)
        return HostState.from_iterable(
            item for item in everything if (kinds is None or item.key.kind in kinds) and self._is_seen(item, scope)
        )

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        self._called("apply")
        results = []
        for step in steps:
            try:
                self._fault(step.key)
                self._carry_out(step)
            except KernelError as reason:
                results.append(Result(step, reason))
                continue
            self.applied.append(step)
            results.append(Result(step))
        await asyncio.sleep(0)
        return results

    async def rehearse(self, steps: Sequence[Step]) -> Sequence[Result]:
        self._called("rehearse")
        elsewhere = FakeKernel()
        elsewhere.unknown = self.unknown
        return await elsewhere.apply(steps)

    def notices(self, scope: Scope) -> FakeNotices:
        found = FakeNotices(scope, self._is_seen)
        self._subscriptions.add(found)
        return found

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()

    # ---------------------------------------------------------------------------------------------- other hands

    def fail(self, key: Key, code: int, times: int = 1) -> None:
        """Let the next ``times`` steps with ``key`` fail with an errno. ``Key("observe", "")`` is an observation."""
        self._faults[key] = (code, times)

    def fail_call(self, method: str, error: KernelError, times: int = 1) -> None:
        """Let the next ``times`` calls of a method of the contract raise this."""
        self._broken[method] = (error, times)

    def _called(self, method: str) -> None:
        self.calls[method] += 1
        if method in self._broken:
            failure, times = self._broken[method]
            if times <= 1:
                del self._broken[method]
            else:
                self._broken[method] = (failure, times - 1)
            raise failure

    def overflow(self) -> None:
        """Lose notifications, as the kernel does where nobody reads them (ENOBUFS)."""
        for subscription in self._subscriptions:
            subscription.overflow()

    def set_facts(self, facts: HostFacts) -> None:
        """The host's own interfaces and default routes are these now."""
        self.interfaces = {item.name: item for item in facts.interfaces if item.name not in self._links}
        self._default_routes = facts.default_routes
        self._tell(links=facts.interfaces, default_route=True)

    def set_interface(self, interface: Interface) -> None:
        """An interface of the host's own came or changed."""
        self.interfaces[interface.name] = interface
        self._tell(links=(interface,))

    def plant(self, item: Object) -> None:
        """Put an object there by another hand, over whatever is under its key."""
        if isinstance(item, Link) and item.name not in self._links:
            self._indices[item.name] = self._take_index()
        self._put(item)

    def planted(self) -> list[Key]:
        """The keys of all objects that are there, in order."""
        return sorted([*(item.key for item in self._objects.values()), *(item.key for item in self._routes.values())])

    def take(self, key: Key) -> None:
        """Remove an object by another hand."""
        if key.kind == "link":
            self._delete_link(key.id)
        elif (item := self._find(key)) is not None:
            self._drop(item)

    def flush_routes(self, dev: str) -> None:
        """``ip route flush dev DEV``."""
        for route in [route for route in self._routes.values() if route.dev == dev]:
            self._drop(route)

    def flush_ruleset(self) -> None:
        """``nft flush ruleset``."""
        for item in [item for item in self._objects.values() if isinstance(item, NftTable)]:
            self._drop(item)

    def set_down(self, dev: str) -> None:
        """``ip link set DEV down``: the routes through it are gone."""
        if dev in self._links:
            self._links[dev] = replace(self._links[dev], up=False)
            self._routes = {dst: route for dst, route in self._routes.items() if route.dev != dev}
            self._tell(self._links[dev], everything=dev)
        else:
            self.interfaces[dev] = replace(self.interfaces[dev], up=False)
            self._routes = {dst: route for dst, route in self._routes.items() if route.dev != dev}
            self._tell(everything=dev, links=(self.interfaces[dev],))

    def get(self, key: Key) -> Object | None:
        """What is under a key, whoever put it there."""
        return self._find(key)

    # ------------------------------------------------------------------------------------------------- carry out

    def _carry_out(self, step: Step) -> None:
        if step.op == "remove":
            self._remove(step)
            return
        match step.item:
            case Fou() as fou:
                if "fou" in self.unknown:
                    raise KernelError("this kernel has no fou: load the module fou", errno.EOPNOTSUPP)
                if step.op == "add" and fou.key in self._objects:
                    raise error((errno.EADDRINUSE, ""))
                self._objects[fou.key] = fou  # without a word: the kernel tells nobody
            case Link() as link:
                self._make_link(step, link)
            case Address() as address:
                self._index(address.dev)
                if self._find(address.key) is None:
                    self._put(address)
            case Neighbour() | FdbEntry() as entry:
                self._index(entry.dev)
                self._put(entry)
            case Route() as route:
                self._demand_usable(route)
                if step.op == "add" and route.dst in self._routes:
                    raise error((errno.EEXIST, ""))
                self._put(route)
            case Sysctl() as sysctl:
                if self._sysctl_missing(sysctl):
                    raise KernelError(f"/proc/sys/{sysctl.name}: No such file or directory", errno.ENOENT)
                self._put(sysctl)
            case NftTable() as table:
                if table.body.count("{") != table.body.count("}"):
                    raise KernelError("syntax error, unexpected end of file", 0)
                self._put(table)

    def _remove(self, step: Step) -> None:
        """Exactly what was observed; what is not there is gone."""
        item = step.item
        if isinstance(item, Link):
            self._delete_link(item.name)
        elif isinstance(item, Fou):
            self._objects.pop(item.key, None)
        elif isinstance(item, Route):
            if self._routes.get(item.dst) == item:
                self._drop(item)
        elif not isinstance(item, Sysctl) and item.key in self._objects:
            self._drop(self._objects[item.key])

    def _make_link(self, step: Step, link: Link) -> None:
        if step.op == "change":
            if link.name not in self._links:
                raise error((errno.ENODEV, ""))
            before = self._links[link.name]
            changed = replace(before, mtu=link.mtu, up=link.up, mac=link.mac or before.mac)
            self._put(changed)
            if changed.mac != before.mac:  # neighbours are resolved anew from the new address; permanent ones go, too
                for item in [item for item in self._objects.values() if isinstance(item, Neighbour) and item.dev == link.name]:
                    self._drop(item)
            return
        if step.op == "remake":
            self._delete_link(link.name)
        if link.kind == "tun":
            raise KernelError(f"{link.name} is opened by its pump, which has not made it yet", errno.ENODEV)
        if link.kind in self.unknown:
            raise KernelError(f"this kernel has no {link.kind} devices: load the module {link.kind}", errno.EOPNOTSUPP)
        if link.vxlan is None and link.ipip is None:
            raise KernelError(f"a device of type {link.kind} is not made here", errno.EOPNOTSUPP)
        if link.ipip is not None:
            if any(other.ipip and other.ipip.local == link.ipip.local for other in self._links.values() if other.name != link.name):
                raise error((errno.EEXIST, ""))  # two tunnels with the same ends
        elif link.vxlan is not None and self._index_of(link.vxlan.dev) == 0:
            raise KernelError(f"the underlay device {link.vxlan.dev} is not there", errno.ENODEV)
        if link.name in self._links or link.name in self.interfaces:
            raise error((errno.EEXIST, ""))
        self._indices[link.name] = self._take_index()
        self._put(link)

    def _demand_usable(self, route: Route) -> None:
        """The kernel's own checks of a route. Raises KernelError."""
        if route.link_scope and route.dst.version == 6:
            raise KernelError("IPv6 routes have no scope", errno.EINVAL)
        if route.dst.ip != route.dst.network:
            raise error((errno.EINVAL, "Invalid prefix for given prefix length"))
        if route.kind != "unicast":
            return
        if route.dev is not None:
            self._index(route.dev)
            up = self._links[route.dev].up if route.dev in self._links else self.interfaces[route.dev].up
            if not up:
                raise error((errno.ENETDOWN, ""))
        if route.via is not None and not route.onlink and not self._on_link(route.via, route.dev):
            code = errno.ENETUNREACH if route.via.version == 4 else errno.EHOSTUNREACH
            raise error((code, "Nexthop has invalid gateway" if route.via.version == 4 else ""))

    def _on_link(self, gateway: IPAddress, dev: str | None) -> bool:
        for interface in self.interfaces.values():
            if dev in (None, interface.name) and any(gateway in _net(own) for own in interface.addresses):
                return True
        return any(gateway in dst for dst, route in self._routes.items() if route.via is None and route.dev == dev)

    # --------------------------------------------------------------------------------------------------- storage

    def _put(self, item: Object) -> None:
        if isinstance(item, Link):
            self._links[item.name] = item
        elif isinstance(item, Route):
            replaced = self._routes.get(item.dst)
            self._routes[item.dst] = item
            if replaced is not None and item.proto != replaced.proto:
                self._tell(item, replaced=replaced)
                return
        else:
            self._objects[item.key] = item
        self._tell(item)

    def _drop(self, item: Object) -> None:
        if isinstance(item, Route):
            del self._routes[item.dst]
        else:
            del self._objects[item.key]
        if isinstance(item, Address) and item.net.version == 4:
            if not self._has_ipv4(item.dev):
                self._disable_ipv4(item.dev)
            self._tell(gone=item, everything=item.dev)
        else:
            self._tell(gone=item)

    def _disable_ipv4(self, dev: str) -> None:
        """The last IPv4 address of a device takes the device's IPv4 routes and neighbours along."""
        self._routes = {dst: route for dst, route in self._routes.items() if route.dev != dev or dst.version == 6}
        for item in [item for item in self._objects.values() if isinstance(item, Neighbour) and item.dev == dev]:
            if item.dst.version == 4:
                del self._objects[item.key]

    def _delete_link(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is None:
            return
        del self._indices[name]
        self._objects = {key: item for key, item in self._objects.items() if not _is_on(item, name)}
        self._routes = {dst: route for dst, route in self._routes.items() if route.dev != name}
        self._tell(gone=link, everything=name)

    def _find(self, key: Key) -> Object | None:
        if key.kind == "link":
            return self._links.get(key.id)
        if key.kind == "route":
            return self._routes.get(IPNetwork(key.id))
        return self._objects.get(key)

    def _fault(self, key: Key) -> None:
        code, times = self._faults.get(key, (0, 0))
        if times:
            self._faults[key] = (code, times - 1)
            raise error((code, ""))

    def _tell(
        self,
        item: Object | None = None,
        gone: Object | None = None,
        replaced: Object | None = None,
        everything: str | None = None,
        links: Iterable[Interface] = (),
        default_route: bool = False,
    ) -> None:
        for subscription in self._subscriptions:
            subscription.tell(item, gone, replaced, everything)
            subscription.tell_host(links, default_route)

    def _is_seen(self, item: Object, scope: Scope) -> bool:
        """True where an observation of ``scope`` holds ``item``."""
        match item:
            case Fou():
                return item.port in scope.fou_ports
            case Link():
                return item.name in scope.links
            case Address():
                return item.dev in scope.links and (
                    not item.net.ip.is_link_local() if item.net.version == 6 else scope.covers(IPNetwork(str(item.net.ip)))
                )
            case Neighbour() | FdbEntry():
                return item.dev in scope.links
            case Sysctl():
                return item.name in scope.sysctls
            case NftTable():
                return item.name == scope.table
        if item.proto == ROUTE_PROTOCOL:
            return item.dev in scope.links or scope.covers(item.dst)
        if item.dev in scope.links:
            return item.kind == "unicast" and item.proto != KERNEL_PROTOCOL
        return (
            item.kind == "unicast"
            and item.proto == BOOT_PROTOCOL
            and item.dev == scope.uplink is not None
            and scope.covers(item.dst)
        )

    def _has_ipv4(self, dev: str) -> bool:
        return any(isinstance(item, Address) and item.dev == dev and item.net.version == 4 for item in self._objects.values())

    def _source(self, dev: str, version: int) -> IPAddress | None:
        if dev in self.interfaces:
            return next((own.address for own in self.interfaces[dev].addresses if own.address.version == version), None)
        nets = [item.net for item in self._objects.values() if isinstance(item, Address) and item.dev == dev]
        return next((net.ip for net in nets if net.version == version), None)

    def _sysctl_missing(self, item: Sysctl) -> bool:
        parts = item.name.split("/")
        return (
            parts[:1] == ["net"] and parts[2:3] == ["conf"] and self._index_of(parts[3]) == 0 and parts[3] not in ("all", "default")
        )

    def _index_of(self, name: str) -> int:
        if name in self._indices:
            return self._indices[name]
        return self.interfaces[name].index if name in self.interfaces else 0

    def _index(self, name: str) -> int:
        index = self._index_of(name)
        if not index:
            raise error((errno.ENODEV, ""))
        return index

    def _take_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1


class FakeNotices:
    """What the fake says to one subscriber; coalesced until it is read. One consumer."""

    def __init__(self, scope: Scope, is_seen: Callable[[Object, Scope], bool]) -> None:
        self._scope = scope
        self._is_seen = is_seen
        self._draft = Notice()
        self._closed = False
        self._woken = asyncio.Event()

    def tell(self, item: Object | None, gone: Object | None, replaced: Object | None, everything: str | None) -> None:
        """Note a change that the host made to its objects; what is outside the scope is passed over."""
        objects, routed = dict(self._draft.objects), set(self._draft.routed)
        for old in (gone, replaced):
            if old is not None and self._is_seen(old, self._scope) and not isinstance(old, Sysctl):
                objects[old.key] = None
        if item is not None and self._is_seen(item, self._scope) and not isinstance(item, Sysctl):
            objects[item.key] = item
        routed |= {one.dst.version for one in (item, gone) if isinstance(one, Route) and one.proto != ROUTE_PROTOCOL}
        resync = everything is not None and (everything in self._scope.links or everything == self._scope.uplink)
        self._say(replace(self._draft, objects=objects, resync=self._draft.resync or resync, routed=frozenset(routed)))

    def tell_host(self, links: Iterable[Interface], default_route: bool) -> None:
        """Note a change of the host's own."""
        seen = {**self._draft.links, **{link.index: link.name for link in links}}
        self._say(replace(self._draft, links=seen, default_route=self._draft.default_route or default_route))

    def _say(self, notice: Notice) -> None:
        self._draft = notice
        if notice != Notice():
            self._woken.set()

    def overflow(self) -> None:
        self._say(Notice(resync=True, lost=True))

    def close(self) -> None:
        self._closed = True
        self._woken.set()

    async def aclose(self) -> None:
        self.close()

    def __aiter__(self) -> FakeNotices:
        return self

    async def __anext__(self) -> Notice:
        await self._woken.wait()
        if self._closed:
            raise StopAsyncIteration
        self._woken.clear()
        notice, self._draft = self._draft, Notice()
        return notice


def _is_on(item: Object, name: str) -> bool:
    """True for what a device takes along when it goes."""
    if isinstance(item, Sysctl):
        return item.name.split("/")[3:4] == [name]
    return isinstance(item, Address | Neighbour | FdbEntry | Route) and item.dev == name


def _net(own: InterfaceAddress) -> IPNetwork:
    return IPNetwork(f"{own.address}/{own.prefixlen}")
