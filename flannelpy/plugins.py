"""Which backends are installed, and which does a config ask for? Found by entry point (group ``flannelpy.backends``).

A third party's package that declares one needs no change here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

from flannelpy.core.backend import NO_HOST_OPTIONS, Backend, Beside, Enclosed, HostOptions, StandsBeside
from flannelpy.core.backend_options import Option, secrets
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError, FlannelpyError, MalformedError
from flannelpy.core.json_members import Members
from flannelpy.core.model import Family, LeaseAttrs
from flannelpy.core.offer import type_of
from flannelpy.core.secret import hide, reveal
from flannelpy.core.usual import completed

GROUP = "flannelpy.backends"


def names() -> list[str]:
    """Every backend Type that is installed, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(config: NetworkConfig, host_options: HostOptions = NO_HOST_OPTIONS) -> Backend:
    """The backend that the config asks for, made with its options, under those of this host.

    Raises ConfigError for an option that cannot be, BackendError for a Type that nobody provides.
    """
    for point in entry_points(group=GROUP):
        if point.name == config.backend_type:
            options = {**reveal(config.backend_options), **host_options.get(point.name, {})}
            backend: Backend = completed(point.load()).from_options(options)
            return backend
    raise BackendError(f"Backend.Type {config.backend_type!r}: nobody provides it; installed are {', '.join(names())}")


PREFER = "Prefer"


def preferred(config: NetworkConfig, backend: Backend, host_options: HostOptions = NO_HOST_OPTIONS) -> Mapping[str, Beside]:
    """The carriers that two hosts of this network may use between them instead of ``backend``, the first before the second.

    Each finds its options in the same ``Backend`` object. Raises ConfigError.
    """
    members = Members(config.backend_options, "Backend.")
    asked = members[PREFER] if PREFER in members else None
    if asked is None or asked == []:
        return {}
    if not isinstance(backend, Enclosed):
        raise members.wrong(PREFER, f"none with the Type {backend.name}, which has a way of its own")
    found: dict[str, Beside] = {}
    for name in asked if isinstance(asked, list) else [None]:
        carrier: object = load(replace(config, backend_type=name), host_options) if name in names() else None
        if not isinstance(carrier, StandsBeside):
            raise members.wrong(PREFER, "a list of host-gw and wireguard")
        if name != backend.name:
            found[str(name)] = beside = carrier.beside()
            beside.devices(config)  # raises where a device cannot be named
    return found


def tables(config: NetworkConfig, backend: Backend) -> tuple[Option, ...]:
    """The options that count in the ``Backend`` object of this config: the Type's, and those of what is preferred to it."""
    found = {option.name: option for option in backend.options}
    for carrier in preferred(config, backend).values():
        for option in getattr(carrier, "options", ()):
            found.setdefault(option.name, option)
    return tuple(found.values())


def of_type(name: str) -> tuple[Option, ...]:
    """The options that a Type has. Raises BackendError where nobody provides it."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            options: tuple[Option, ...] = completed(point.load()).options
            return options
    raise BackendError(f"Backend.Type {name!r}: nobody provides it; installed are {', '.join(names())}")


def lease_only(config: NetworkConfig, backend: Backend) -> Mapping[Family, str]:
    """The families that the config turns on and of which ``backend`` only takes leases; with each, what to warn of, or nothing."""
    words: Mapping[Family, str] = getattr(backend, "lease_only", {})
    if not any(family in backend.families for family in config.families):
        return {}
    return {family: words[family] for family in config.families if family in words}


@dataclass(frozen=True, slots=True)
class Published:
    """``identities`` of a backend that may be anybody's: what it raises for a value of others is one kind of error."""

    backend: Backend | Beside

    def __call__(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        """Raises FlannelpyError."""
        try:
            return dict(self.backend.identities(attrs))
        except FlannelpyError:
            raise
        except Exception as error:
            raise MalformedError(f"its value cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Spoken:
    """``identities`` where several backends are in use: each lease is read by the one whose it is."""

    backends: tuple[Backend, ...]

    def __call__(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        """Raises FlannelpyError."""
        backend = next((each for each in self.backends if each.name == type_of(attrs)), self.backends[0])
        return Published(backend)(attrs)

    @property
    def accepts(self) -> frozenset[str] | None:
        """The BackendTypes of peers that one of them can talk to; None is any."""
        found = frozenset[str]()
        for each in self.backends:
            if each.accepts is None:
                return None
            found |= each.accepts
        return found


def parse(text: str | bytes | None, host_options: HostOptions = NO_HOST_OPTIONS) -> tuple[NetworkConfig, Backend]:
    """A stored config and the backend it asks for; None is an absent one. Raises ConfigError with what is wrong with it."""
    if text is None:
        raise ConfigError('is missing: expected JSON like {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
    config = NetworkConfig.parse(text)
    try:
        backend = load(config, host_options)
    except BackendError as error:
        raise ConfigError(str(error)) from None
    possible = {*backend.families, *lease_only(config, backend)}
    missing = [f"IPv{family}" for family in config.families if family not in possible]
    if missing:
        raise ConfigError(f"Backend.Type {backend.name}: it does not carry {' and '.join(missing)}, which the config turns on")
    backend.devices(config)  # raises where a device cannot be named
    preferred(config, backend, host_options)  # raises where it names what cannot be
    marked: Collection[str] = (*getattr(backend, "secrets", ()), *secrets(tables(config, backend)))
    return replace(config, backend_options=hide(config.backend_options, {name.lower() for name in marked})), backend
