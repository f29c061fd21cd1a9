"""What would a stopped agent change on this host, if it were started, or under another config? What it would desire by what it kept
(config, leases, our own) and by this host as it is, against the kernel. Nothing is done.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy import plugins
from flannelpy.agent.alongside import UNKNOWN, alongside, left_alone
from flannelpy.agent.carriage import Carriage, parsed, resolve
from flannelpy.agent.context import Context
from flannelpy.agent.facts import Facts
from flannelpy.agent.keys import HostKeys
from flannelpy.agent.report import Reporter
from flannelpy.agent.sync.firewall import Firewall
from flannelpy.agent.sync.fragments import Fragments, Target
from flannelpy.agent.sync.scope import find_scope
from flannelpy.agent.systemd import Notifier
from flannelpy.agent.view import Cursor
from flannelpy.core.backend import NoFdStore
from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.forwarding import Hindrance, forward_rules
from flannelpy.core.lookup import Found, Lookup
from flannelpy.core.membership import Membership
from flannelpy.core.model import Family
from flannelpy.core.objects import HostState, Key, NftTable, Route, Scope
from flannelpy.core.offer import type_of
from flannelpy.core.packet_filter import Ruleset
from flannelpy.core.plan import Plan, Step, plan
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.secret import Secret
from flannelpy.core.underlay import Shield
from flannelpy.core.uplink import EVERYTHING, FactsQuery, HostFacts, RouteAnswer, Wish
from flannelpy.host import state as state_file
from flannelpy.host import view_file, wireguard_key
from flannelpy.host.files import read_file, write_file
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView
from flannelpy.kernel import Echo, Kernel, Notices, Result
from flannelpy.registry.memory import MemoryRegistry, MemoryStore
from flannelpy.settings import Settings


@dataclass(frozen=True, slots=True)
class Forecast:
    """``steps``: what would be done; ``mtu``: the overlay's; ``notes``: what a person should know of it."""

    steps: Plan
    mtu: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a stopped agent kept, read without touching it."""

    state: State
    view: KeptView

    @classmethod
    def read(cls, settings: Settings) -> Remembered:
        """Raises FlannelpyError where it is not enough to go by."""
        prefix, directory = settings.endpoint.prefix, settings.state_dir
        path = directory / view_file.FILE
        try:
            view = view_file.parse(read_file(path, view_file.LARGEST))
        except FileNotFoundError:
            raise FlannelpyError(f"{path}: there is none: no agent of this host has been in a cluster; start one first") from None
        except ValueError as error:
            raise FlannelpyError(f"{path}: expected a view of the cluster ({error!s:.120})") from None
        if view.prefix != prefix:
            raise FlannelpyError(f"{path} is of the network {view.prefix}, not {prefix}: expected the --state-dir of {prefix}")
        if view.own is None:
            raise FlannelpyError(f"{path}: there is no lease of this host in it")
        try:
            state = state_file.parse(read_file(directory / state_file.FILE, state_file.LARGEST))
        except FileNotFoundError:
            state = State()
        except ValueError as error:
            raise FlannelpyError(f"{directory / state_file.FILE}: expected a state file ({error!s:.120})") from None
        return cls(state if state.prefix == prefix else State(), view)


async def of_stopped(kernel: Kernel, settings: Settings, known: Remembered, text: str) -> Forecast:
    """What an agent with these settings would do under the config ``text``. Raises FlannelpyError (ConfigError, KernelError)."""
    async with _context(kernel, settings) as context:
        return await _forecast(context, known, text)


async def _forecast(context: Context, known: Remembered, text: str) -> Forecast:
    settings, kernel, own = context.settings, context.kernel, known.view.own
    assert own is not None
    facts = Facts(kernel, context.wish, context.reporter)
    asked = parsed(settings, text)
    await facts.look(asked[0], frozenset(known.state.devices))
    if facts.uplink is None:
        raise FlannelpyError(facts.missing)
    keys = HostKeys(context)
    carriage = await resolve(context, text, asked, (facts.uplink, ()), known.state.macs, keys, None)
    carriage = await alongside(context, carriage, known.view, known.state, keys)
    config, backend = carriage.config, carriage.backend
    if not carriage.fits(own):
        return Forecast(
            (), carriage.mtu, (f"{own} is none of this network's: the host gets another subnet, and all changes with it",)
        )
    own = replace(own, attrs=carriage.attrs)
    devices = frozenset({*known.state.devices, *carriage.devices})
    bridges = [net for net in (own.subnet, own.subnet6) if net is not None and net.prefixlen]
    underlay = await facts.underlay(devices, bridges, _etcd(settings))
    membership = Membership()
    spoken = plugins.Spoken(carriage.backends)
    membership.configure(config, spoken.accepts, carriage.host, underlay, spoken)
    membership.set_own(own)
    membership.replace(known.view.leases)
    types = {type_of(own.attrs), backend.name, *carriage.preference.leaving}
    others = sum(lease.key != own.key and type_of(lease.attrs) not in types for lease in known.view.leases)
    notes = [f"{others} of the other hosts' leases are for another backend: their part is known when they have changed over"]
    notes = notes if others else []
    scope = find_scope(carriage, known.state, settings.endpoint.prefix)
    desired = await _desired(context, carriage, facts, membership, scope, Shield.of(underlay, config.networks), own.key)
    observed = await kernel.observe(scope)
    steps, unknown = left_alone(plan(desired, observed, scope), carriage, observed)
    notes += [UNKNOWN] if unknown else []
    if text == known.view.config and any(step.op == "change" and isinstance(step.item, NftTable) for step in steps):
        notes.append("the firewall's table may be the same in other words: a start writes it anew, and its counters begin at 0")
    return Forecast(steps, carriage.mtu, tuple(notes))


async def _desired(
    context: Context,
    carriage: Carriage,
    facts: Facts,
    membership: Membership,
    scope: Scope,
    shield: Shield,
    own_key: str,
) -> HostState:
    own = replace(membership.leases[own_key], attrs=carriage.attrs)
    hindrances = await context.kernel.hindrances()

    def forward(networks: Iterable[IPNetwork], owner: str) -> HostState:
        return forward_rules(hindrances, networks, owner)[0]

    parts = (carriage.config, carriage.backends, carriage.devices, scope.table, own)
    able = context.kernel.nexthops if context.settings.nexthop_objects else None
    fragments = Fragments(context.reporter, Cursor(membership.peers, lambda: None), facts, able)
    firewall = Firewall(context.settings, *parts, forward, carriage.uplink.name, fragments.change_firewall)
    fragments.set_target(
        Target(carriage.preference.over(carriage.backend), carriage.local(own), scope, firewall.host, firewall.peer, shield)
    )
    await fragments.refresh()
    while fragments.waiting:
        await fragments.refresh()
    for owner, why in fragments.broken.items():
        raise FlannelpyError(f"{owner}: {why}")
    return fragments.desired.state


def _etcd(settings: Settings) -> list[tuple[IPAddress, str]]:
    """The registry, where it is known by an address."""
    found = []
    for url in settings.endpoint.urls:
        try:
            address = IPAddress(urlsplit(url).hostname or "")
        except (AddrFormatError, ValueError):
            continue  # a name
        if not address.is_loopback():
            found.append((address, settings.registry_name.value))
    return found


@asynccontextmanager
async def _context(kernel: Kernel, settings: Settings) -> AsyncIterator[Context]:
    """An agent's surroundings in which nothing can be changed: the key is looked at in a copy."""
    with TemporaryDirectory(prefix="flannelpy-plan-") as folder:
        directory = Path(folder)
        _copy_key(settings.wireguard_key_file or settings.state_dir / wireguard_key.FILE, directory / wireguard_key.FILE)
        settings = replace(settings, state_dir=directory, wireguard_key_file=None)
        wish = Wish(settings.iface, settings.iface_regex, settings.iface_can_reach, settings.public_ip, settings.public_ipv6)
        reporter = Reporter(time.monotonic, settings.registry_name)
        reporter.listeners.clear()
        registry = MemoryRegistry(MemoryStore())
        yield Context(
            settings, wish, registry, Spectator(kernel), reporter, Notifier(""), NoFdStore(), time.monotonic, random=Random(0)
        )


def _copy_key(source: Path, target: Path) -> None:
    try:
        write_file(target, read_file(source, wireguard_key.LARGEST).decode(), state_file.MODE)
    except (FlannelpyError, FileNotFoundError, UnicodeDecodeError):
        return


class Spectator:
    """A kernel that is looked at: nothing is carried out, and all of that succeeds."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def facts(self, query: FactsQuery = EVERYTHING) -> HostFacts:
        """As the kernel says."""
        return await self._kernel.facts(query)

    async def route_to(self, address: IPAddress) -> RouteAnswer | None:
        """As the kernel says."""
        return await self._kernel.route_to(address)

    async def routes_at(self, routes: Iterable[Route]) -> Sequence[Route]:
        """As the kernel says."""
        return await self._kernel.routes_at(routes)

    async def look_up(self, lookups: Sequence[Lookup]) -> Sequence[Found]:
        """As the kernel says."""
        return await self._kernel.look_up(lookups)

    async def policy_rule(self, lookup: Lookup) -> PolicyRule | None:
        """As the kernel says."""
        return await self._kernel.policy_rule(lookup)

    async def settings(self, names: Iterable[str]) -> Mapping[str, str]:
        """As the kernel says."""
        return await self._kernel.settings(names)

    async def nexthops(self) -> bool:
        """As the kernel says."""
        return await self._kernel.nexthops()

    async def reintroduce(self, index: int) -> None:
        """Nothing."""

    async def hindrances(self) -> Sequence[Hindrance]:
        """As the kernel says."""
        return await self._kernel.hindrances()

    async def filter_rules(self) -> Ruleset:
        """As the kernel says."""
        return await self._kernel.filter_rules()

    async def firewall_state(self) -> Hashable:
        """As the kernel says."""
        return await self._kernel.firewall_state()

    async def foreign_rules(self) -> Ruleset:
        """As the kernel says."""
        return await self._kernel.foreign_rules()

    async def counted(self, table: str) -> Mapping[str, int]:
        """As the kernel says."""
        return await self._kernel.counted(table)

    async def counted_by_source(self, table: str, name: str) -> Mapping[str, int]:
        """As the kernel says."""
        return await self._kernel.counted_by_source(table, name)

    async def observe(self, scope: Scope, keys: Iterable[Key] | None = None) -> HostState:
        """As the kernel says."""
        return await self._kernel.observe(scope, keys)

    async def apply(self, steps: Sequence[Step]) -> Sequence[Result]:
        """Nothing."""
        return [Result(step) for step in steps]

    async def rehearse(self, steps: Sequence[Step]) -> Sequence[Result]:
        """In an empty namespace, as the kernel does."""
        return await self._kernel.rehearse(steps)

    async def public_key(self, private: Secret[bytes]) -> str:
        """In an empty namespace, as the kernel does."""
        return await self._kernel.public_key(private)

    def echo(self, version: Family) -> Echo:
        """Nobody is asked: raises KernelError."""
        raise KernelError(f"no probes by IPv{version}: it is only looked at")

    def notices(self, scope: Scope) -> Notices:
        """As the kernel says."""
        return self._kernel.notices(scope)

    async def close(self) -> None:
        """Whoever made the kernel closes it."""
