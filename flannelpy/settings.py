"""How shall this agent run? Flags and environment -> Settings; an error names the flag, the value and what was expected.

A flag wins over ``FLANNELPY_*``, that wins over flannel's ``FLANNELD_*``; an empty variable is an unset one.
Source: flannel-compat 1 and 2.
"""

from __future__ import annotations

import os
import posixpath
import re
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from netaddr import AddrFormatError, IPAddress

from flannelpy.core import hostname
from flannelpy.core.backend import HostOptions
from flannelpy.core.conditions import RegistryName
from flannelpy.core.errors import UsageError
from flannelpy.core.re2 import compile_re2
from flannelpy.core.secret import Secret
from flannelpy.host.files import read_given
from flannelpy.options import ACCEPTED, ALL, BY_NAME, ETCD, KUBE, OUR_ENV, Given
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import parse_endpoints

if TYPE_CHECKING:
    from flannelpy.registry.kube.access import Access

Parsed = TypeVar("Parsed")

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json", "journal")
UDP_ENGINES = ("auto", "kernel", "userspace", "pump")

_OTHERS = stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH
"""What a file with a secret in it does not allow; a group of its own may read it."""

FLANNEL_KEY_FILE = "WIREGUARD_KEY_FILE"
FLANNEL_KEY = Path("/run/flannel/wgkey")
"""Where flannel keeps its WireGuard key: the variable, which no flag of its own goes with, and the default (flannel-compat 9.5)."""

_NOT_OPTIONS = frozenset({OUR_ENV + "OPTIONS", OUR_ENV + "CLAIMS_DIR"})
"""Variables of ours that are no option's twin: the systemd unit's line of flags, and where agents of one machine meet."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run, checked. ``renew_margin_s`` in seconds; ``healthz_port`` 0 is off; ``notes`` are to be logged at start."""

    endpoint: Endpoint
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: IPAddress | None = None
    public_ip: IPAddress | None = None
    public_ipv6: IPAddress | None = None
    subnet_file: Path = Path("/run/flannel/subnet.env")
    renew_margin_s: float = 3600.0
    lease_ttl_s: int = 86_400
    exit_on_subnet_change: bool = False
    release_on_exit: bool = False
    ip_masq: bool = False
    masq_fully_random: bool = True
    forward_rules: bool = True
    container_source_check: bool = True
    nexthop_objects: bool = True
    blackhole_route: bool = False
    probe: bool = True
    udp_engine: str | None = None
    udp_workers: int | None = None
    prefer: str | None = None
    hostname: str = ""
    """What this host calls itself; empty: nothing."""
    healthz_ip: IPAddress = IPAddress("127.0.0.1")  # noqa: RUF009 - never changed in place
    healthz_port: int = 0
    state_dir: Path = Path("/var/lib/flannelpy")
    wireguard_key_file: Path | None = None
    flannel_key_file: Path = FLANNEL_KEY
    run_dir: Path = Path("/run/flannelpy")
    log_level: str = "info"
    log_format: str = "text"
    resolver_file: Path = Path("/etc/resolv.conf")
    kube: Access | None = None
    """How Kubernetes is reached, where leases are its nodes; ``endpoint`` then only names the network."""
    notes: tuple[str, ...] = ()

    @property
    def config_place(self) -> str:
        """Where the network config is, in words."""
        return f"{self.endpoint.prefix}/config" if self.kube is None else str(self.kube.net_config)

    @property
    def registry_name(self) -> RegistryName:
        """How a person calls what leases are in."""
        return RegistryName.ETCD if self.kube is None else RegistryName.API_SERVER

    @property
    def host_options(self) -> HostOptions:
        """What this host says to a backend, over what the network config says."""
        said = {"Engine": self.udp_engine, "Workers": self.udp_workers}
        udp = {name: value for name, value in said.items() if value is not None}
        return {"udp": udp} if udp else {}


def load(given: Given, environ: Mapping[str, str]) -> Settings:
    """Everything the agent needs to know. Raises UsageError: which flag or variable, its value, what was expected."""
    source = _Source(given, environ)
    kube = _kubernetes(source)
    return Settings(
        endpoint=_endpoint(source) if kube is None else Endpoint((kube.api_url or kube.kubeconfig or "in-cluster",), kube.prefix),
        kube=kube,
        iface=source.each("iface", _interface),
        iface_regex=source.each("iface-regex", _pattern),
        iface_can_reach=source.optional("iface-can-reach", _address),
        public_ip=source.optional("public-ip", _public(4)),
        public_ipv6=source.optional("public-ipv6", _public(6)),
        subnet_file=source.value("subnet-file", _path),
        renew_margin_s=60.0 * source.value("subnet-lease-renew-margin", _whole(1, 1439, "minutes")),
        lease_ttl_s=source.value("subnet-lease-ttl", _whole(5, 9_000_000, "seconds")),
        exit_on_subnet_change=source.value("exit-on-subnet-change", _boolean),
        release_on_exit=source.value("release-on-exit", _boolean),
        ip_masq=source.value("ip-masq", _boolean),
        masq_fully_random=not source.value("ip-masq-fully-random-disable", _boolean),
        forward_rules=source.value("iptables-forward-rules", _boolean),
        container_source_check=source.value("container-source-check", _boolean),
        nexthop_objects=source.value("nexthop-objects", _boolean),
        blackhole_route=source.value("ip-blackhole-route", _boolean),
        probe=source.value("probe", _boolean),
        udp_engine=source.optional("udp-engine", _one_of(UDP_ENGINES)),
        udp_workers=source.optional("udp-workers", _whole(1, 64, "worker processes")),
        prefer=source.optional("prefer", _one_of(("none",))),
        hostname=source.value("hostname", _hostname) if source.found("hostname") else hostname.spoken(socket.gethostname()),
        healthz_ip=source.value("healthz-ip", _address),
        healthz_port=source.value("healthz-port", _whole(0, 65535, "a port; 0 is off")),
        state_dir=source.value("state-dir", _path),
        wireguard_key_file=source.optional("wireguard-key-file", _path),
        flannel_key_file=Path(environ.get(FLANNEL_KEY_FILE) or FLANNEL_KEY),
        run_dir=source.value("run-dir", _path),
        log_level=source.value("log-level", _one_of(LOG_LEVELS)),
        log_format=source.value("log-format", _one_of(LOG_FORMATS)),
        notes=_notes(source),
    )


def load_endpoint(given: Given, environ: Mapping[str, str]) -> Endpoint:
    """Only how to reach etcd, for commands that need no more. Raises UsageError."""
    return _endpoint(_Source(given, environ))


def load_kube(given: Given, environ: Mapping[str, str]) -> Access | None:
    """Only how Kubernetes is reached; None where leases are in etcd. Raises UsageError."""
    return _kubernetes(_Source(given, environ))


def load_subnet_file(given: Given, environ: Mapping[str, str]) -> Path:
    """Only where this host's agent tells its subnet. Raises UsageError."""
    return _Source(given, environ).value("subnet-file", _path)


def load_run_dir(given: Given, environ: Mapping[str, str]) -> Path:
    """Only where this host's agent can be asked. Raises UsageError."""
    return _Source(given, environ).value("run-dir", _path)


def load_cleanup(given: Given, environ: Mapping[str, str]) -> tuple[Path, Path, Path, str | None]:
    """State directory, run directory, subnet file, and the prefix where one was given. Raises UsageError."""
    source = _Source(given, environ)
    state_dir, run_dir, subnet_file = (source.value(name, _path) for name in ("state-dir", "run-dir", "subnet-file"))
    return state_dir, run_dir, subnet_file, source.value("etcd-prefix", _prefix) if source.found("etcd-prefix") else None


def load_public(given: Given) -> tuple[IPAddress | None, IPAddress | None]:
    """The address of the host that is spoken of, IPv4 and IPv6; never from the environment, which speaks of this host.

    Raises UsageError.
    """
    source = _Source(given, {})
    return source.optional("public-ip", _public(4)), source.optional("public-ipv6", _public(6))


# ------------------------------------------------------------------------------------------------ where values come from


class _Source:
    """Looks up an option on the command line, then in the environment, and remembers where it was found."""

    def __init__(self, given: Given, environ: Mapping[str, str]) -> None:
        self.given = given
        self.environ = environ

    def found(self, name: str) -> list[tuple[str, str]]:
        """(where, text) of each value that was written; empty where the option was not used."""
        option = BY_NAME[name]
        if values := self.given.get(name):
            return [(option.flag, _utf8(option.flag, value)) for value in values]
        for variable in option.variables:
            if text := self.environ.get(variable):
                return [(variable, _utf8(variable, text))]
        return []

    def text(self, name: str) -> str:
        """The last value written, or the default."""
        found = self.found(name)
        return found[-1][1] if found else BY_NAME[name].default

    def value(self, name: str, parse: Callable[[str], Parsed]) -> Parsed:
        """The last value written, or the default, understood by ``parse``."""
        found = self.found(name)
        return parse(BY_NAME[name].default) if not found else _understand(*found[-1], parse)

    def optional(self, name: str, parse: Callable[[str], Parsed]) -> Parsed | None:
        """The same for an option that may be absent or empty."""
        return self.value(name, parse) if self.text(name) else None

    def each(self, name: str, parse: Callable[[str], Parsed]) -> tuple[Parsed, ...]:
        """Every value of a repeatable option; a variable holds exactly one."""
        return tuple(_understand(where, text, parse) for where, text in self.found(name))

    def where(self, name: str) -> str:
        """What to call the option in an error: the flag, or the variable it came from."""
        found = self.found(name)
        return found[-1][0] if found else BY_NAME[name].flag


class _Unexpected(Exception):  # noqa: N818 - says what was expected; becomes a UsageError where the flag is known
    """A value that cannot be; the text says what was expected."""


def _utf8(where: str, text: str) -> str:
    """The same text. Bytes that are not UTF-8 come from the system as lone surrogates, which nothing behind us can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: letter {error.start + 1} is not UTF-8; expected UTF-8 text") from None
    return text


def _understand(where: str, text: str, parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(text)
    except _Unexpected as error:
        raise UsageError(f"{where} {text!r}: {error}") from None


# ------------------------------------------------------------------------------------------------------------------ etcd


def _endpoint(source: _Source) -> Endpoint:
    cafile, certfile, keyfile, password_file = (
        source.optional(name, _readable_file) or ""
        for name in ("etcd-cafile", "etcd-certfile", "etcd-keyfile", "etcd-password-file")
    )
    username, password = source.text("etcd-username"), source.text("etcd-password")
    if certfile and not keyfile:
        raise UsageError(f"{source.where('etcd-certfile')} {certfile!r}: expected --etcd-keyfile with it")
    if keyfile and not certfile:
        raise UsageError(f"{source.where('etcd-keyfile')} {keyfile!r}: expected --etcd-certfile with it")
    if password and password_file:
        raise UsageError(f"{source.where('etcd-password')} and {source.where('etcd-password-file')}: expected only one of them")
    secret = "etcd-password" if password else "etcd-password-file"
    if (password or password_file) and not username:
        raise UsageError(f"{source.where(secret)}: expected --etcd-username with it")
    if username and not (password or password_file):
        raise UsageError(
            f"{source.where('etcd-username')} {username!r}: expected --etcd-password-file (or --etcd-password) with it"
        )
    return Endpoint(
        urls=_endpoints(source),
        prefix=source.value("etcd-prefix", _prefix),
        cafile=cafile,
        certfile=certfile,
        keyfile=keyfile,
        username=username,
        password=Secret(password),
        password_file=password_file,
    )


def _endpoints(source: _Source) -> tuple[str, ...]:
    """etcd's URLs, canonical. What holds an @ is refused before anything can show it: a password may stand before it."""
    where, text = source.where("etcd-endpoints"), source.text("etcd-endpoints")
    for part in text.split(","):
        if "@" in part:
            raise UsageError(f"{where} '...@{part.rpartition('@')[2]}': expected no user in it; --etcd-username is for that")
    return parse_endpoints(text, where)


def _prefix(text: str) -> str:
    """Cleaned as flannel's path joining does: no doubled and no trailing slash, none added in front."""
    if not text:
        raise _Unexpected("expected a path like /coreos.com/network")
    clean = posixpath.normpath(text)
    return "/" + clean.strip("/") if clean.strip("/") and clean.startswith("/") else clean.strip("/")


def _readable_file(text: str) -> str:
    try:
        read_given(Path(text))
    except (OSError, ValueError) as error:
        raise _Unexpected(f"expected a readable file: {getattr(error, 'strerror', error)}") from None
    return text


def _mode(file: str) -> int:
    """Its permissions; 0 where it is gone meanwhile."""
    try:
        return stat.S_IMODE(Path(file).stat().st_mode)
    except OSError:
        return 0


def _closed(file: str) -> str:
    """The mode that shuts others out, and not us."""
    try:
        ours = os.geteuid() in (0, Path(file).stat().st_uid)
    except OSError:
        ours = True
    return "600" if ours else "640, and a group of ours"


# ------------------------------------------------------------------------------------------------------------ Kubernetes


def _kubernetes(source: _Source) -> Access | None:
    """How Kubernetes is reached; None without ``--kube-subnet-mgr``."""
    if not source.value("kube-subnet-mgr", _boolean):
        return None
    from flannelpy.registry.kube.access import Access, find_node, parse_api_url, parse_prefix

    return Access(
        parse_api_url(source.text("kube-api-url"), source.where("kube-api-url")),
        source.optional("kubeconfig-file", _readable_file) or "",
        parse_prefix(source.text("kube-annotation-prefix"), source.where("kube-annotation-prefix")),
        source.value("net-config-path", _path),
        *find_node(source.environ),
        source.value("set-node-network-unavailable", _boolean),
    )


# -------------------------------------------------------------------------------------------------- one parser a kind of value


def _interface(text: str) -> str:
    if not text.strip():
        raise _Unexpected("expected an interface's name or address")
    return text.strip()


def _pattern(text: str) -> str:
    try:
        compile_re2(text)
    except ValueError as error:
        raise _Unexpected(f"expected a regular expression: {error}") from None
    return text


def _address(text: str) -> IPAddress:
    try:
        return IPAddress(text.strip())
    except (AddrFormatError, ValueError):
        raise _Unexpected("expected an IP address") from None


def _public(version: Literal[4, 6]) -> Callable[[str], IPAddress]:
    """An address that packets can be sent to, of one family."""

    def parse(text: str) -> IPAddress:
        try:
            address = IPAddress(text.strip(), version)
        except (AddrFormatError, ValueError):
            raise _Unexpected(f"expected an IPv{version} address") from None
        if int(address) == 0 or address.is_multicast() or (version == 4 and int(address) == 2**32 - 1):
            raise _Unexpected("expected an address of one host")
        return address

    return parse


def _whole(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()) or not low <= int(text) <= high:
            raise _Unexpected(f"expected a whole number from {low} to {high} ({what})")
        return int(text)

    return parse


def _boolean(text: str) -> bool:
    """The words that flannel's flag library takes."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise _Unexpected("expected true or false")


def _path(text: str) -> Path:
    if not text:
        raise _Unexpected("expected a path")
    return Path(text)


def _hostname(text: str) -> str:
    if text and not hostname.is_name(text):
        raise _Unexpected(f"expected a name of letters, digits, - and dots between them, {hostname.MOST} at most")
    return text


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise _Unexpected(f"expected {' or '.join(filter(None, (', '.join(words[:-1]), words[-1])))}")
        return text.lower()

    return parse


# ----------------------------------------------------------------------------------------------- what is said about the options


def _notes(source: _Source) -> tuple[str, ...]:
    """Lines for the log at start: what was accepted without meaning, and what deserves a better place."""
    notes = [f"{source.where(option.name)} has no effect: {option.why}" for option in ACCEPTED if source.found(option.name)]
    others, place = (ETCD, "Kubernetes") if source.value("kube-subnet-mgr", _boolean) else (KUBE[1:], "etcd")
    if unused := [source.where(option.name) for option in others if source.found(option.name)]:
        notes.append(f"{' and '.join(unused)} not used: as --kube-subnet-mgr stands, leases are in {place}")
    twins = [where for option in ALL for where, _ in source.found(option.name)[-1:] if where == option.variables[1]]
    if twins:
        notes.append(f"taken from flanneld's environment: {', '.join(twins)}")
    if source.given.get("etcd-password"):
        notes.append("--etcd-password can be read by everybody on this host; --etcd-password-file cannot")
    notes += [
        f"{source.where(name)} {file!r} is open to others (mode {mode:o}); expected {_closed(file)}"
        for name in ("etcd-password-file", "etcd-keyfile")
        if (file := source.text(name)) and (mode := _mode(file)) & _OTHERS
    ]
    tls = [option.flag for option in ETCD if option.name in ("etcd-cafile", "etcd-certfile") and source.text(option.name)]
    if tls and "https://" not in source.text("etcd-endpoints"):
        notes.append(f"{' and '.join(tls)} not used: no endpoint begins with https://")
    known = {variable for option in ALL for variable in option.variables} | _NOT_OPTIONS
    notes += [
        f"{name}: no such option, ignored" for name in sorted(source.environ) if name.startswith(OUR_ENV) and name not in known
    ]
    return tuple(notes)
