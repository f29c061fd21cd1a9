"""What would the kernel do? A kernel in memory that passes the same tests as the real one (tests/contract/test_kernel.py).

It knows what the agent can meet: exclusive additions, gateways that are not on-link, devices that take their objects along, changes
by other hands. Methods without ``async`` are those other hands: an operator at a shell, another daemon, the hardware.
"""

from __future__ import annotations

import asyncio
import errno
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.forward_accept import ForwardAccept
from flannelpy.core.forwarding import FORWARD, Hindrance
from flannelpy.core.lookup import Found, Lookup
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
from flannelpy.core.uplink import EVERYTHING, DefaultRoute, FactsQuery, HostFacts, Interface, InterfaceAddress, RouteAnswer
from flannelpy.kernel import Result
from flannelpy.kernel.channel import error
from flannelpy.kernel.drivers import driver_of
from flannelpy.kernel.fake_echo import Air, FakeEcho
from flannelpy.kernel.fake_lookup import looked_up, net_of, refused_by, ruled_by
from flannelpy.kernel.fake_notices import FakeNotices, News
from flannelpy.kernel.fake_routes import Ground, carried, without
from flannelpy.kernel.fake_scope import is_seen, known_elsewhere
from flannelpy.kernel.fake_wireguard import fresh, public_key, put
from flannelpy.kernel.nexthops import demand_had, refused

UNSET = "1"
"""What a setting holds that nobody wrote: accept_ra's default, the one the agent changes."""


class FakeKernel:
    """A host with ``interfaces`` of its own, up and addressed; everything else comes by ``apply`` or by other hands."""

    def __init__(self, interfaces: Iterable[Interface] = (), default_routes: Iterable[DefaultRoute] = ()) -> None:
        self.interfaces = {item.name: item for item in interfaces}
        """The host's own, by name."""
        self.default_routes = tuple(default_routes)
        self._next_index = max((item.index for item in self.interfaces.values()), default=1) + 1
        self._links: dict[str, Link] = {}
        self._indices: dict[str, int] = {}
        self._objects: dict[Key, Object] = {}
        self._routes: dict[Key, Route] = {}
        self.unknown: set[str] = set()
        """Kinds that this kernel was built without: ``fou``, ``ipip``, ``nexthop``."""
        self.firewall: tuple[Hindrance, ...] = ()
        """The host's own FORWARD chains, as far as they are in the way."""
        self.rules = Ruleset()
        self._states: list[Ruleset] = []
        self.reintroduced: list[int] = []
        self.air = Air()
        self.counters: dict[str, dict[str, int]] = {}
        self.detours = dict[IPNetwork, Found]()
        self.policy_rules = list[PolicyRule]()
        self.sysctls = dict.fromkeys(("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"), "1")
        """Routes and rules of other hands, and settings of the host, that the agent only looks at."""
        self.taken_ports: set[int] = set()
        """UDP ports that programs of the host are bound to."""
        self._faults: dict[Key | str, tuple[Exception, int]] = {}
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
            found.append(Interface(link.name, self._indices[link.name], link.mtu, link.up, addresses, link.mac or ""))
        defaults = self.default_routes if query.default_routes else ()
        if query.names is not None:
            leave_by = {route.index for route in defaults}
            found = [item for item in found if item.index in leave_by or not query.names.isdisjoint(item.names)]
        return HostFacts(tuple(sorted(found, key=lambda item: item.index)), defaults)

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        self._called("route_to")
        for interface in self.interfaces.values():
            for own in interface.addresses:
                if interface.up and address in net_of(own):
                    return RouteAnswer(interface.name, interface.index, own.address)
        covering = [route for route in self._routes.values() if address in route.dst]
        best = max(covering, key=lambda route: (route.dst.prefixlen, -route.metric), default=None)
        if best is not None:
            if best.kind != "unicast" or best.dev is None:
                return None
            return RouteAnswer(best.dev, self._index(best.dev), self._source(best.dev, address.version), best.via)
        for default in self.default_routes:
            name = next((item.name for item in self.interfaces.values() if item.index == default.index), None)
            if name is not None and default.version == address.version:
                return RouteAnswer(name, default.index, self._source(name, address.version), None)
        return None

    async def look_up(self, lookups: Sequence[Lookup]) -> list[Found]:
        self._called("look_up")
        there = (await self.facts()).interfaces
        found = looked_up(lookups, self.detours, self._routes.values(), there, self.sysctls)
        rules = [ruled_by(self.policy_rules, lookup, there) for lookup in lookups]
        return [refused_by(rule) or answer for rule, answer in zip(rules, found, strict=True)]

    async def policy_rule(self, lookup: Lookup) -> PolicyRule | None:
        self._called("policy_rule")
        return ruled_by(self.policy_rules, lookup, (await self.facts()).interfaces)

    async def settings(self, names: Iterable[str]) -> dict[str, str]:
        self._called("settings")
        return {name: self.sysctls[name] for name in names if name in self.sysctls}

    async def routes_at(self, routes: Iterable[Route]) -> Sequence[Route]:
        self._called("routes_at")
        return [self._routes[key] for key in {route.key: None for route in routes} if key in self._routes]

    async def nexthops(self) -> bool:
        self._called("nexthops")
        return "nexthop" not in self.unknown

    async def reintroduce(self, index: int) -> None:
        self._called("reintroduce")
        self.reintroduced.append(index)

    async def counted(self, table: str) -> dict[str, int]:
        self._called("counted")
        return dict(self.counters.get(table, {}))

    async def counted_by_source(self, table: str, name: str) -> dict[str, int]:
        return await self.counted(f"{table} {name}")

    async def hindrances(self) -> tuple[Hindrance, ...]:
        self._called("hindrances")
        return self.firewall

    async def filter_rules(self) -> Ruleset:
        self._called("filter_rules")
        return self.rules

    async def firewall_state(self) -> Hashable:
        self._called("firewall_state")
        if not self._states or self._states[-1] is not self.rules:
            self._states.append(self.rules)
        return len(self._states)

    async def foreign_rules(self) -> Ruleset:
        self._called("foreign_rules")
        return self.rules

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        self._called("observe")
        kinds = None if keys is None else {key.kind for key in keys}
        unset = [Sysctl(name, UNSET) for name in scope.sysctls if self._find(Key("sysctl", name)) is None]
        present = [item for item in unset if not self._sysctl_missing(item)]
        everything = (*self._links.values(), *self._objects.values(), *self._routes.values(), *present)
        return HostState.from_iterable(
            item for item in everything if (kinds is None or item.key.kind in kinds) and is_seen(item, scope)
        )

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        self._called("apply")
        results = []
        kept: set[str | None] = set()  # devices that were not made anew after all
        missing = dict[int, KernelError]()
        for step in steps:
            try:
                self._fault(step.key)
                demand_had(step, missing)
                if not (step.item.lives_on in kept and step.op == "add" and self._find(step.key) == step.item):
                    self._carry_out(step)
            except KernelError as reason:
                results.append(Result(step, reason))
                missing |= refused(results[-1:])
                kept |= {step.item.lives_on} if step.op == "remake" else set()
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

    async def public_key(self, private: Secret[bytes]) -> str:
        self._called("public_key")
        if "wireguard" in self.unknown:
            raise KernelError("this kernel has no wireguard devices: load the module wireguard", errno.EOPNOTSUPP)
        return public_key(private.reveal())

    def echo(self, version: int) -> FakeEcho:
        self._called("echo")
        return self.air.open(version)

    def notices(self, scope: Scope) -> FakeNotices:
        self._called("notices")
        found = FakeNotices(scope, is_seen, self._fault)
        self._subscriptions.add(found)
        return found

    async def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.close()

    # ---------------------------------------------------------------------------------------------- other hands

    def fail(self, key: Key, code: int, times: int = 1) -> None:
        """Let the next ``times`` steps with ``key`` fail with an errno."""
        self._faults[key] = (error((code, "")), times)

    def fail_call(self, method: str, reason: Exception, times: int = 1) -> None:
        """Let the next ``times`` calls of a method of the contract raise this; next_notice: also where somebody waits already."""
        self._faults[method] = (reason, times)
        if method == "next_notice":
            self._tell(News())

    def overflow(self) -> None:
        """Lose notifications, as the kernel does where nobody reads them (ENOBUFS)."""
        for subscription in self._subscriptions:
            subscription.forget()
        self._tell(News(lost=True))

    def set_interface(self, interface: Interface) -> None:
        """An interface of the host's own came or changed."""
        before = self.interfaces.get(interface.name)
        self.interfaces[interface.name] = interface
        addressed = known_elsewhere(interface) != (() if before is None else known_elsewhere(before))
        self._tell(News(links={interface.index: interface.name}, addressed=addressed))

    def take_interface(self, name: str) -> None:
        """An interface of the host's own went."""
        gone = self.interfaces.pop(name)
        for link in list(self._links.values()):
            if link.detail is not None and driver_of(link.detail).lower(link.detail) == name:
                self._delete_link(link.name)
        self._routes = {key: route for key, route in self._routes.items() if route.dev != name}
        self._tell(News(links={gone.index: name}, took_along=name, routed=frozenset({4, 6}), addressed=bool(known_elsewhere(gone))))

    def rename_interface(self, name: str, new: str) -> None:
        """An interface of the host's own has another name; what lives on it stays."""
        renamed = self.interfaces[new] = replace(self.interfaces.pop(name), name=new)
        self._routes = {key: replace(route, dev=new) if route.dev == name else route for key, route in self._routes.items()}
        self._tell(News(links={renamed.index: new}, took_along=name, routed=frozenset({4, 6})))

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
        elif key.kind == "nft":
            self._drop_table(key.id)
        elif (item := self._find(key)) is not None:
            self._drop(item)

    def flush_routes(self, dev: str) -> None:
        """``ip route flush dev DEV``."""
        for route in [route for route in self._routes.values() if route.dev == dev]:
            self._drop(route)

    def flush_ruleset(self) -> None:
        """``nft flush ruleset``."""
        for item in [item for item in self._objects.values() if isinstance(item, NftTable)]:
            self._drop_table(item.name)

    def flush_forward(self) -> None:
        """``iptables -F FORWARD``: the kernel tells nobody."""
        self._objects = {key: item for key, item in self._objects.items() if key.kind != "forward"}

    def set_down(self, dev: str) -> None:
        """``ip link set DEV down``: the routes through it are gone, and with a word its neighbours and IPv6 addresses."""
        for item in [item for item in self._objects.values() if item.lives_on == dev]:
            if isinstance(item, Neighbour) or (isinstance(item, Address) and item.net.version == 6):
                self._drop(item)
        self._objects = {key: item for key, item in self._objects.items() if not (isinstance(item, Nexthop) and item.dev == dev)}
        self._routes = {key: route for key, route in self._routes.items() if route.dev != dev}
        if dev in self._links:
            self._links[dev] = replace(self._links[dev], up=False)
            self._tell(News(self._links[dev], took_along=dev))
        else:
            self.interfaces[dev] = replace(self.interfaces[dev], up=False)
            self._tell(News(took_along=dev, links={self.interfaces[dev].index: dev}, routed=frozenset({4, 6})))

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
                self._demand_free(step, "fou", errno.EADDRINUSE)
                self._objects[fou.key] = fou  # without a word: the kernel tells nobody
            case Link() as link:
                self._make_link(step, link)
            case Address() as address:
                self._index(address.dev)
                if self._find(address.key) is None and not (address.net.version == 6 and self._has(address)):
                    self._put(address)  # IPv6 has each address once: one of another length is there, and stays as it is
            case Neighbour() | FdbEntry() as entry:
                self._index(entry.dev)
                self._put(entry)
            case Nexthop() as nexthop:
                self._ground.demand_nexthop(nexthop, exclusive=step.op == "add")
                self._put(nexthop)
            case Route() as route:
                self._ground.demand_route(route)
                if step.op == "add" and route.key in self._routes:
                    raise error((errno.EEXIST, ""))
                self._put(route)
            case WireguardDevice() | WireguardPeer() as told:
                self._index(told.dev)
                put(self._objects, told, self.taken_ports)
            case XfrmPolicy() as policy:
                self._demand_free(step, "xfrm", errno.EEXIST)
                self._put(policy)
            case Sysctl() as sysctl:
                if self._sysctl_missing(sysctl):
                    raise KernelError(f"/proc/sys/{sysctl.name}: No such file or directory", errno.ENOENT)
                self._put(sysctl)
            case ForwardAccept() as rule:
                chains = [one for one in self.firewall if (one.tool, one.version) == (rule.tool, rule.version)]
                if not any(one.docker or rule.chain == FORWARD for one in chains):
                    raise KernelError("No such file or directory", errno.ENOENT)
                self._objects[rule.key] = rule  # without a word, too
            case NftSet() as made:
                self._objects.setdefault(Key("nft", made.table), NftTable(made.table, ""))
                if made.key not in self._objects:
                    self._put(made)
            case NftElement() as element:
                if Key("set", f"{element.table} {element.set}") not in self._objects:
                    raise error((errno.ENOENT, ""))
                self._put(element)
            case NftTable() as table:
                if table.body.count("{") != table.body.count("}"):
                    raise KernelError("syntax error, unexpected end of file", 0)
                self._put(table)

    def _demand_free(self, step: Step, module: str, code: int) -> None:
        """Raises KernelError where the kernel was built without a module, and with ``code`` where what is new is there."""
        if module in self.unknown:
            raise KernelError(f"this kernel has no {module}: load the module {module}", errno.EOPNOTSUPP)
        if step.op == "add" and step.key in self._objects:
            raise error((code, ""))

    def _remove(self, step: Step) -> None:
        """Exactly what was observed; what is not there is gone."""
        item = step.item
        if isinstance(item, Link):
            self._delete_link(item.name)
        elif isinstance(item, Fou | ForwardAccept | WireguardPeer):
            self._objects.pop(item.key, None)
        elif isinstance(item, WireguardDevice):
            pass  # it goes with its link
        elif isinstance(item, Route):
            if self._routes.get(item.key) == item:
                self._drop(item)
        elif isinstance(item, NftTable):
            self._drop_table(item.name)
        elif isinstance(item, NftSet) and f" @{item.name} " in getattr(self._find(Key("nft", item.table)), "body", ""):
            raise error((errno.EBUSY, ""))
        elif not isinstance(item, Sysctl) and item.key in self._objects:
            self._drop(self._objects[item.key])

    def _make_link(self, step: Step, link: Link) -> None:
        if step.op == "change":
            if link.name not in self._links:
                raise error((errno.ENODEV, ""))
            before = self._links[link.name]
            self._demand_lower(link)
            changed = replace(before, mtu=link.mtu, up=link.up, mac=link.mac or before.mac, detail=link.detail)
            self._put(changed)
            if changed.mac != before.mac:  # neighbours are resolved anew from the new address; permanent ones go, too
                for item in [item for item in self._objects.values() if isinstance(item, Neighbour) and item.dev == link.name]:
                    self._drop(item)
            return
        self._demand_room(link)
        if step.op == "remake":
            self._delete_link(link.name)
        if link.name in self._links or link.name in self.interfaces:
            raise error((errno.EEXIST, ""))
        self._indices[link.name] = self._take_index()
        if link.kind == "wireguard":
            self._objects[Key("wg", link.name)] = fresh(link.name)
        self._put(link)

    def _demand_lower(self, link: Link) -> None:
        lower = None if link.detail is None else driver_of(link.detail).lower(link.detail)
        if lower is not None and self._index_of(lower) == 0:
            raise KernelError(f"the underlay device {lower} is not there", errno.ENODEV)

    def _demand_room(self, link: Link) -> None:
        """What a device needs, before one of its name is deleted. Raises KernelError."""
        if link.kind == "tun":
            raise KernelError(f"{link.name} is opened by its pump, which has not made it yet", errno.ENODEV)
        if link.kind in self.unknown:
            raise KernelError(f"this kernel has no {link.kind} devices: load the module {link.kind}", errno.EOPNOTSUPP)
        detail = link.detail
        if detail is None:
            raise KernelError(f"a device of type {link.kind} is not made here", errno.EOPNOTSUPP)
        self._demand_lower(link)
        driver = driver_of(detail)
        for other in self._links.values():
            if other.name == link.name or type(other.detail) is not type(detail):
                continue
            if what := driver.clash(detail, other.detail):
                raise KernelError(f"{other.name} is a device of the same kind with the same {what}", errno.EEXIST)
        port = driver.port(detail)
        if link.up and port is not None and port.number in self.taken_ports:
            raise KernelError(f"UDP port {port.number}, which {link.name} needs, is taken by another program", errno.EADDRINUSE)

    # --------------------------------------------------------------------------------------------------- storage

    @property
    def _ground(self) -> Ground:
        return Ground(self._links, self.interfaces, self._routes, self._objects)

    def _put(self, item: Object) -> None:
        if isinstance(item, Link):
            self._links[item.name] = item
        elif isinstance(item, Route):
            replaced = self._routes.get(item.key)
            self._routes[item.key] = item
            if replaced is not None and item.proto != replaced.proto:
                self._tell(News(item, replaced=replaced))
                return
        elif isinstance(item, Nexthop):
            before = self._objects.get(item.key)
            self._routes = carried(self._routes, item)
            self._objects[item.key] = item
            self._tell(News(item, replaced=before))
            return
        else:
            self._objects[item.key] = item
        self._tell(News(item, links={self._indices[item.name]: item.name} if isinstance(item, Link) else {}))

    def _drop(self, item: Object) -> None:
        if isinstance(item, Route):
            del self._routes[item.key]
        else:
            del self._objects[item.key]
        if isinstance(item, Nexthop):
            self._routes = without(self._routes, [item.id])
        if isinstance(item, NftSet):
            for each in [each for each in self._objects.values() if isinstance(each, NftElement)]:
                if (each.table, each.set) == (item.table, item.name):
                    self._drop(each)
        if isinstance(item, Address) and item.net.version == 4:
            if not self._has_ipv4(item.dev):
                self._disable_ipv4(item.dev)
            self._tell(News(gone=item, took_along=item.dev))
        else:
            self._tell(News(gone=item))

    def _drop_table(self, name: str) -> None:
        """A table goes with its sets and their elements."""
        for item in [item for item in self._objects.values() if isinstance(item, NftSet | NftElement) and item.table == name]:
            del self._objects[item.key]
            self._tell(News(gone=item))
        if (table := self._objects.get(Key("nft", name))) is not None:
            self._drop(table)

    def _disable_ipv4(self, dev: str) -> None:
        """The last IPv4 address of a device takes the device's IPv4 routes and neighbours along."""
        self._routes = {key: route for key, route in self._routes.items() if route.dev != dev or route.dst.version == 6}
        for item in [item for item in self._objects.values() if isinstance(item, Neighbour) and item.dev == dev]:
            if item.dst.version == 4:
                del self._objects[item.key]

    def _delete_link(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is None:
            return
        index = self._indices.pop(name)
        self._objects = {key: item for key, item in self._objects.items() if item.lives_on != name}
        self._routes = {key: route for key, route in self._routes.items() if route.dev != name}
        self._tell(News(gone=link, took_along=name, links={index: name}))

    def _find(self, key: Key) -> Object | None:
        if key.kind == "link":
            return self._links.get(key.id)
        if key.kind == "route":
            return self._routes.get(key)
        return self._objects.get(key)

    def _called(self, method: str) -> None:
        self.calls[method] += 1
        self._fault(method)

    def _fault(self, what: Key | str) -> None:
        if what not in self._faults:
            return
        reason, times = self._faults.pop(what)
        if times > 1:
            self._faults[what] = (reason, times - 1)
        raise reason

    def _tell(self, news: News) -> None:
        for subscription in self._subscriptions:
            subscription.tell(news)

    def _has_ipv4(self, dev: str) -> bool:
        return any(isinstance(item, Address) and item.dev == dev and item.net.version == 4 for item in self._objects.values())

    def _has(self, address: Address) -> bool:
        theirs = [one for one in self._objects.values() if isinstance(one, Address)]
        return any((one.dev, one.net.ip) == (address.dev, address.net.ip) for one in theirs)

    def _source(self, dev: str, version: int) -> IPAddress | None:
        if dev in self.interfaces:
            return next((own.address for own in self.interfaces[dev].addresses if own.address.version == version), None)
        nets = [item.net for item in self._objects.values() if isinstance(item, Address) and item.dev == dev]
        return next((net.ip for net in nets if net.version == version), None)

    def _sysctl_missing(self, item: Sysctl) -> bool:
        return item.lives_on not in (None, "all", "default") and not self._index_of(str(item.lives_on))

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
