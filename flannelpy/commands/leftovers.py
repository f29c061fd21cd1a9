"""What did the agents of one network make on this host? Found by the marks of docs/ownership.md and by what the last run kept.

Nothing is changed here. What is not surely ours stays, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from netaddr import IPNetwork

from flannelpy.agent import holders
from flannelpy.agent.lock import Held
from flannelpy.core.claims import EVERYTHING
from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.marks import DEFAULT_PREFIX, OURS, table_name
from flannelpy.core.model import parse_subnet_key
from flannelpy.core.objects import ROUTE_PROTOCOL, HostState, Link, NftTable, Object, Route, Scope
from flannelpy.core.plan import MADE, Plan, plan
from flannelpy.host import processes, subnet_env, view_file
from flannelpy.host import state as state_file
from flannelpy.host.files import read_file
from flannelpy.host.state import State
from flannelpy.kernel import Kernel
from flannelpy.kernel.forward_text import networks_in

_ALL = (IPNetwork("0.0.0.0/0"), IPNetwork("::/0"))
_FIREWALL = frozenset({"set", "element", "nft", "forward"})
"""Kinds of what no flanneld takes over: everything else may carry its packets by now."""
_LOOKS = 3
"""How often an observation is made anew that is incomplete, because the tables moved."""


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one agent of this host. ``prefix``: as a person gave it, else the one that the state file names."""

    state_dir: Path
    run_dir: Path
    subnet_file: Path
    prefix: str | None = None
    claims: Path = field(default_factory=holders.claims_directory)
    proc: Path = processes.PROC


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of our last run: ``left`` are claims of those who were killed, ``notes`` what a person should know.

    ``flanneld``: processes that run here. One that came after us has taken over what it found, under our MAC and subnet.
    """

    prefix: str
    state: State
    left: tuple[tuple[str, Path], ...] = ()
    notes: tuple[str, ...] = ()
    flanneld: tuple[int, ...] = ()

    @property
    def devices(self) -> frozenset[str]:
        """Devices that are ours by name."""
        claimed = (name.removeprefix("device ") for name, _ in self.left if name.startswith("device "))
        return frozenset(name for name in (*self.state.devices, *claimed) if OURS.fullmatch(name))

    @property
    def fou_ports(self) -> frozenset[int]:
        """FOU ports that are ours."""
        claimed = (name.removeprefix("udp-port ") for name, _ in self.left if name.startswith("udp-port "))
        return frozenset({*self.state.fou_ports, *(int(text) for text in claimed if re.fullmatch(r"[0-9]{1,5}", text))})

    @property
    def claims(self) -> list[str]:
        """What no other agent may have while it is taken away."""
        named = [f"device {name}" for name in sorted(self.devices)] + [f"udp-port {port}" for port in sorted(self.fou_ports)]
        return [f"table {table_name(self.prefix)}", *named]


def recall(places: Places) -> Known:
    """What the state directory and the claims say. Raises FlannelpyError where they are another network's."""
    notes: list[str] = []
    state = State()
    path = places.state_dir / state_file.FILE
    try:
        state = state_file.parse(read_file(path, state_file.LARGEST))
    except FileNotFoundError:
        pass
    except (FlannelpyError, ValueError) as error:
        said = str(error) if str(path) in str(error) else f"{path}: {error!s:.120}"
        notes.append(f"{said}; it is no use, only what carries our marks counts")
    if places.prefix is not None and state.prefix and state.prefix != places.prefix:
        raise FlannelpyError(
            f"{path} is of the network {state.prefix}, not {places.prefix}: expected the --state-dir of {places.prefix}"
        )
    prefix = places.prefix or state.prefix or DEFAULT_PREFIX
    return Known(prefix, state, holders.left(places.claims, prefix), tuple(notes), processes.flanneld(places.proc))


def in_use(places: Places, known: Known) -> str:
    """Who runs and has what is to be taken away, as a sentence; empty where nobody has."""
    other = holders.holder(places.run_dir)
    if other is not None:
        return f"--run-dir {places.run_dir}: {other} runs"
    found: Held | None = holders.held(places.claims, known.claims)
    return "" if found is None else str(found)


# ----------------------------------------------------------------------------------------------------------- in the kernel


async def find(kernel: Kernel, places: Places, known: Known) -> tuple[Plan, tuple[str, ...]]:
    """The steps that take it all away, and what stays although it looks like ours, in words. Raises KernelError."""
    table = table_name(known.prefix)
    scope = Scope(known.devices, (), table=table, fou_ports=known.fou_ports, policies=known.state.policies)
    first = await _observe(kernel, scope)
    networks = (*_networks(known.state.networks), *_told(places, known), *_in_table(first))
    scope = replace(scope, networks=tuple(dict.fromkeys(networks)))
    observed = await _observe(kernel, scope)
    if through := _through(places, observed) - scope.links:
        scope = replace(scope, links=scope.links | through)
        observed = await _observe(kernel, scope)
    if known.flanneld:
        return _beside_flanneld(known, observed, scope)
    strangers = tuple(_strangers(known, observed))
    observed = _without(observed, {link.name for link, _why in strangers})
    marked = await _observe(kernel, Scope(networks=_ALL, table=table))
    notes = [why for _link, why in strangers]
    unknown = [item for item in marked if isinstance(item, Route) and item.proto == ROUTE_PROTOCOL and item.key not in observed]
    unknown = [item for item in unknown if item.dev not in scope.links]
    if unknown:
        more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        notes.append(f"route {unknown[0]}{more}: marked like ours, but in no network known here; ip route flush proto 102 takes it")
    return plan(HostState(), observed, scope), tuple(notes)


def _beside_flanneld(known: Known, observed: HostState, scope: Scope) -> tuple[Plan, tuple[str, ...]]:
    """Our firewall goes. What it found of the rest a flanneld takes as it is, and does not make anew."""
    firewall = HostState.from_iterable(item for item in observed if item.key.kind in _FIREWALL)
    names = ", ".join(item.name for item in observed if isinstance(item, Link)) or "routes"
    said = f"flanneld runs here (process {', '.join(map(str, known.flanneld))}) and may have taken over what carries packets"
    notes = [f"{said}: {names} and all that belongs to it stay"] if len(list(observed)) > len(list(firewall)) else []
    return plan(HostState(), firewall, scope), tuple(notes)


def _through(places: Places, observed: HostState) -> frozenset[str]:
    """Devices that routes of ours lead through, by names of ours, which no other agent has."""
    found = {item.dev for item in observed if isinstance(item, Route) and item.proto == ROUTE_PROTOCOL and item.dev is not None}
    return frozenset(dev for dev in found if OURS.fullmatch(dev) and holders.held(places.claims, [f"device {dev}"]) is None)


async def _observe(kernel: Kernel, scope: Scope) -> HostState:
    observed = await kernel.observe(scope)
    for _ in range(_LOOKS):
        if not observed.incomplete:
            break
        observed = await kernel.observe(scope)
    return observed


def _strangers(known: Known, observed: HostState) -> Iterator[tuple[Link, str]]:
    """Devices with a name of ours that we did not make: of a kind that no backend makes, or with another MAC than we gave."""
    for item in observed:
        if not isinstance(item, Link):
            continue
        mac = known.state.macs.get(item.name)
        if item.kind not in MADE:
            yield item, f"link {item.name}: it is a {item.kind or 'device of no kind'}, which is none of ours; it stays"
        elif mac is not None and item.mac is not None and item.mac != mac:
            yield item, f"link {item.name}: its MAC is {item.mac}, ours had {mac}: somebody else made it; it stays"


def _without(observed: HostState, devices: set[str]) -> HostState:
    return HostState.from_iterable(item for item in observed if item.lives_on not in devices) if devices else observed


def _networks(texts: Iterable[str]) -> Iterator[IPNetwork]:
    for text in texts:
        yield IPNetwork(text)


def _told(places: Places, known: Known) -> Iterator[IPNetwork]:
    """The networks of the subnet file, where it is ours."""
    if is_ours(places, known):
        told = subnet_env.read(places.subnet_file)
        yield from (network for network in (told.network, told.network6) if network is not None)


def _in_table(observed: Iterable[Object]) -> Iterator[IPNetwork]:
    """The networks that our own firewall speaks of: it is there before our routes are."""
    for item in observed:
        if isinstance(item, NftTable):
            yield from (network for network in networks_in(item.body) if network.prefixlen and not network.is_multicast())


# ------------------------------------------------------------------------------------------------------------ on the disk


def is_ours(places: Places, known: Known) -> bool:
    """True where the subnet file tells a subnet that we have leased."""
    told = subnet_env.read(places.subnet_file)
    return (told.subnet is not None or told.subnet6 is not None) and (told.subnet, told.subnet6) in set(_leased(places, known))


def own_subnets(places: Places, known: Known) -> tuple[IPNetwork | None, IPNetwork | None] | None:
    """The subnets of our lease, IPv4 and IPv6; None where nothing tells of one."""
    with suppress(MalformedError):
        if known.state.lease_key:
            return _halves(*parse_subnet_key(known.state.lease_key))
    told = subnet_env.read(places.subnet_file)
    return (told.subnet, told.subnet6) if is_ours(places, known) else None


def _leased(places: Places, known: Known) -> Iterator[tuple[IPNetwork | None, IPNetwork | None]]:
    """Our subnets, as far as they were kept."""
    with suppress(MalformedError):
        if known.state.lease_key:
            yield _halves(*parse_subnet_key(known.state.lease_key))
    for file in (view_file.FILE, view_file.PROMISED):
        with suppress(FlannelpyError, FileNotFoundError, ValueError):
            view = view_file.parse(read_file(places.state_dir / file, view_file.LARGEST))
            if view.prefix == known.prefix and view.own is not None:
                yield _halves(view.own.subnet, view.own.subnet6)


def _halves(subnet: IPNetwork, subnet6: IPNetwork | None) -> tuple[IPNetwork | None, IPNetwork | None]:
    return (None if subnet == EVERYTHING else subnet.cidr), (None if subnet6 is None else subnet6.cidr)
