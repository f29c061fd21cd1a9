"""What does an agent say of itself? The document behind ``flannelpy status``: values, and their JSON, in and out.

The agent makes it (``agent.status``), the command reads it (``commands.ask``). Names in JSON are flannel's where flannel has
one. Times are ISO 8601 in UTC. What is not known yet is null; no secret is in it.
"""

from __future__ import annotations

import collections.abc
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from flannelpy.core.backend import DatapathStatus
from flannelpy.core.errors import MalformedError
from flannelpy.explain import places

SOCKET = places.SOCKET
"""The agent's socket in its run directory."""
SCHEMA = 2
"""Grows when a name in the document goes, or means something else."""
PAGE = places.STATUS
"""The document's path on it."""


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """``endpoint``: who is spoken to now, or tried next. ``revision``: the last that was seen, of the leases. ``name``: what it is,
    ``etcd`` or ``the API server``.
    """

    reachable: bool
    endpoint: str
    endpoints: tuple[str, ...]
    prefix: str
    unreachable_since: str | None = None
    revision: int | None = None
    name: str = "etcd"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """``engine`` and ``reason`` where the backend has several; ``devices`` as ``ip link`` would be told to make them."""

    type: str
    mtu: int
    devices: tuple[str, ...] = ()
    engine: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class UplinkStatus:
    """``mtu`` in bytes; ``reasons``: a line for each candidate that fell out, the last for the one that won."""

    interface: str
    mtu: int
    reasons: tuple[str, ...]
    address: str | None
    address6: str | None
    public_ip: str | None
    public_ipv6: str | None


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """``state``: held, unconfirmed, lost (asked for again) or from-disk. ``seconds_left``: when it would end if nobody extended it;
    None for a reservation, and where it is not known. ``name``: what peers call this host.
    """

    key: str
    subnet: str | None
    subnet6: str | None
    public_ip: str
    public_ipv6: str | None
    state: str
    reservation: bool
    seconds_left: float | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SubnetFileStatus:
    """``written``: by this run of the agent."""

    path: str
    written: bool


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """What echo requests to a peer have brought back. ``state``: reachable, unreachable, silent (it has never answered) or unknown
    (not asked for long enough), ``why`` says what is in the way, ``since`` when its silence began; ``rtt_ms`` through the overlay,
    smoothed; ``loss`` of the last packets, 0 to 1; ``size``: of the largest, in bytes, and ``size_passes`` whether it is answered;
    ``last_seen``: when the last answer came through the overlay.
    """

    state: str
    why: str
    since: str | None
    rtt_ms: float | None
    loss: float
    size: int
    size_passes: bool | None
    last_seen: str | None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another host's lease. ``state``: in-sync (the kernel holds what reaches it), pending, refused (by the kernel), excluded,
    or stale (its key is gone; it is kept for ``seconds_left`` more); ``why`` says why it is not in sync. ``dropped``: its packets
    that source validation did not let in, as far as they are counted by peer. ``probe``: whether it is there; None where it is not
    asked. ``carrier`` and ``reason``: by what it is reached, where the network has a choice (Prefer). ``name``: what it calls
    itself, as anybody may; in Kubernetes its node's.
    """

    key: str
    subnet: str | None
    subnet6: str | None
    public_ip: str
    public_ipv6: str | None
    backend_type: str
    state: str
    why: str | None = None
    seconds_left: float | None = None
    dropped: int | None = None
    probe: ProbeStatus | None = None
    carrier: str | None = None
    reason: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ConditionStatus:
    """Something that is wrong; ``subject``: a lease key, a kernel object, or empty."""

    code: str
    severity: str
    subject: str
    text: str
    remedy: str
    since: str
    blocks_ready: bool


@dataclass(frozen=True, slots=True)
class RepairStatus:
    """A kernel object that somebody else changed, and what was done."""

    at: str
    step: str


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """Kernel objects by kind. ``in_sync``: those of the desired that are there as desired, as far as the kernel has told.

    ``retries``: how often the kernel has refused something.
    """

    desired: Mapping[str, int]
    in_sync: Mapping[str, int]
    repairs: int
    last_repair: RepairStatus | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """What the kernel's guard lets in, by ``rule``. ``dropped``: packets by reason since our nft table was made. ``strangers``:
    those of no peer by their source, of up to 64 sources, each for an hour after its last. None where the kernel did not say.
    """

    rule: str
    dropped: Mapping[str, int] | None = None
    strangers: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class SourceCheckStatus:
    """``dropped``: packets that were to be forwarded with a source of somebody else's, since our nft table was made."""

    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One agent at one moment. ``why_not`` is empty where it is ready; ``network`` is the config as derived; ``probes_off``: why no
    peer is asked whether it is there.
    """

    schema: int | None = SCHEMA
    version: str
    pid: int
    since: str
    ready: bool
    why_not: tuple[str, ...]
    etcd: EtcdStatus
    network: Mapping[str, Any] | None = None
    backend: BackendStatus | None = None
    pump: DatapathStatus | None = None
    guard: GuardStatus | None = None
    container_source_check: SourceCheckStatus | None = None
    uplink: UplinkStatus | None = None
    lease: LeaseStatus | None = None
    subnet_file: SubnetFileStatus
    peers: tuple[PeerStatus, ...] = ()
    probes_off: str | None = None
    kernel: KernelStatus | None = None
    conditions: tuple[ConditionStatus, ...]


# ------------------------------------------------------------------------------------------------------------------- JSON


def to_json(status: Status) -> str:
    """On one line; every name is there, whatever its value."""
    return json.dumps(status, default=_members, separators=(",", ":"))


def from_json(text: str | bytes) -> Status:
    """The inverse; names that are not known are passed over. Raises MalformedError: where, what is there, what was expected."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise MalformedError(f"not JSON: {error}") from None
    status: Status = _read(Status, value, "")
    return status


def _members(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    return {name: getattr(value, field) for field, name in _names(kind).items()}


_FLANNELS = {"public_ip": "PublicIP", "public_ipv6": "PublicIPv6", "backend_type": "BackendType"}


@cache
def _names(kind: Any) -> dict[str, str]:
    """The fields of a dataclass and what each is called in JSON."""

    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(map(str.capitalize, rest))

    return {field.name: _FLANNELS.get(field.name, camel(field.name)) for field in fields(kind)}


_hints = cache(get_type_hints)


def _read(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the dataclass ``kind``."""
    if not isinstance(value, dict):
        raise _unlike("an object", value, where)
    hints = _hints(kind)
    return kind(**{field: _value(hints[field], value.get(name), f"{where}.{name}") for field, name in _names(kind).items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as what a field is declared to be: a dataclass, a tuple, a mapping, one of them or None, text, a number."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None else _value(inner[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _unlike("a list", value, where)
        return tuple(_value(inner[0], each, f"{where}[{at}]") for at, each in enumerate(value))
    if origin is collections.abc.Mapping:
        if not isinstance(value, dict):
            raise _unlike("an object", value, where)
        return {name: _value(inner[1], each, f"{where}.{name}") for name, each in value.items()}
    if is_dataclass(kind):
        return _read(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _unlike({str: "text", bool: "true or false"}.get(kind, "a number"), value, where)
    return value


def _unlike(expected: str, value: Any, where: str) -> MalformedError:
    shown = json.dumps(value)
    return MalformedError(f"{where.lstrip('.') or 'all of it'}: {shown[:40]}: expected {expected}")
