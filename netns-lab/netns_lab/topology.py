"""What is a lab made of? Hosts, containers, etcd members and their addresses, as one value.

The builder, the drawing and the tables all read this value; none of them makes up an address of its own. Each host looks like
a Vagrant box on VirtualBox: ``eth0`` carries the same address on every host and the default route; what they share is ``eth1``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from netns_lab.errors import TopologyError

NAT_ADDRESS = IPNetwork("10.0.2.15/24")
"""eth0 of every host: VirtualBox's NAT gives this one address to every machine, which is why ``--iface eth1`` matters."""
NAT_GATEWAY = IPAddress("10.0.2.2")
OUTSIDE = IPAddress("203.0.113.1")
"""An address behind the gateway (RFC 5737). It knows no way back to a container: only masqueraded packets get answers."""

FIRST_HOST = 10
"""Host n is number FIRST_HOST + n on the segment: h1 is 192.168.50.11."""
ETCD_NUMBER = 5
"""etcd's machine is number 5 on the segment: 192.168.50.5."""
MOST_HOSTS = 200
MOST_CONTAINERS = 50

SHIPPED = Path(__file__).resolve().parent.parent / "topologies"
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """A container: a namespace on its host's bridge. ``number`` counts from 1 on each host and gives address .2, .3 ..."""

    name: str
    host: str
    number: int


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A host: its address on the private segment and its containers. ``number`` counts from 1."""

    name: str
    number: int
    address: IPNetwork
    address6: IPNetwork | None
    containers: tuple[ContainerPlan, ...]


@dataclass(frozen=True, slots=True)
class EtcdPlan:
    """etcd's machine: a namespace on the private segment in which all members run, each on a port of its own."""

    name: str
    address: IPNetwork
    members: int


@dataclass(frozen=True, slots=True)
class Topology:
    """What a person declares; everything else is derived. Checked when it is made: raises TopologyError."""

    hosts: int = 3
    containers: int = 1
    etcd: int = 1
    backend: str = "vxlan"
    network: str = "10.1.0.0/16"
    segment: str = "192.168.50.0/24"
    segment6: str = ""
    mtu: int = 1500
    bridge: str = "docker0"
    agent_options: tuple[str, ...] = ("--ip-masq",)
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys that join the network config as they are: ``SubnetLen``, ``Backend`` options and so on."""

    def __post_init__(self) -> None:
        _expect_range("hosts", self.hosts, 1, MOST_HOSTS)
        _expect_range("containers", self.containers, 0, MOST_CONTAINERS)
        _expect_range("mtu", self.mtu, 576, 65535)
        if self.etcd not in (0, 1, 3):
            raise TopologyError(f"etcd {self.etcd!r}: expected 0, 1 or 3 members")
        if not re.fullmatch(r"[a-z0-9-]+", _text("backend", self.backend)):
            raise TopologyError(f"backend {self.backend!r}: expected a name like vxlan, udp or host-gw")
        if not _DEVICE.fullmatch(_text("bridge", self.bridge)):
            raise TopologyError(f"bridge {self.bridge!r}: expected a device name of at most 15 characters")
        _network("network", self.network, 4)
        segment = _network("segment", self.segment, 4)
        if segment.size < FIRST_HOST + self.hosts + 2:
            raise TopologyError(f"segment {self.segment}: too small for {self.hosts} hosts, expected /24 or wider")
        for name, taken in (("network", NAT_ADDRESS.cidr), ("segment", NAT_ADDRESS.cidr), ("network", segment)):
            mine = IPNetwork(getattr(self, name))
            if mine in taken or taken in mine:
                raise TopologyError(f"{name} {mine} overlaps {taken}, which the lab uses: expected one of its own")
        if self.segment6:
            _network("segment6", self.segment6, 6)

    # ------------------------------------------------------------------------------------------------ derived

    @property
    def host_plans(self) -> tuple[HostPlan, ...]:
        """Every host with its addresses and containers, h1 first."""
        plans = []
        for number in range(1, self.hosts + 1):
            name = f"h{number}"
            containers = tuple(ContainerPlan(container_name(number, k), name, k) for k in range(1, self.containers + 1))
            at6 = _nth(self.segment6, FIRST_HOST + number) if self.segment6 else None
            plans.append(HostPlan(name, number, _nth(self.segment, FIRST_HOST + number), at6, containers))
        return tuple(plans)

    @property
    def container_plans(self) -> tuple[ContainerPlan, ...]:
        """Every container of every host."""
        return tuple(container for host in self.host_plans for container in host.containers)

    @property
    def etcd_plan(self) -> EtcdPlan | None:
        """etcd's machine, where there is one."""
        return EtcdPlan("etcd", _nth(self.segment, ETCD_NUMBER), self.etcd) if self.etcd else None

    @property
    def network_config(self) -> dict[str, Any]:
        """The network config for etcd. A ``Backend`` table in ``config`` adds to the Type, everything else is merged."""
        extra = {key: value for key, value in self.config.items() if key != "Backend"}
        backend = {"Type": self.backend, **self.config.get("Backend", {})}
        return {"Network": self.network, **extra, "Backend": backend}

    # ------------------------------------------------------------------------------------------------- in and out

    @classmethod
    def parse(cls, text: str, where: str = "topology") -> Topology:
        """Read TOML. Raises TopologyError that starts with ``where``."""
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise TopologyError(f"{where}: not TOML: {error}") from None
        except TopologyError as error:
            raise TopologyError(f"{where}: {error}") from None

    @classmethod
    def load(cls, name: str) -> Topology:
        """A shipped topology by name (``three``), or a TOML file by path."""
        path = Path(name) if name.endswith(".toml") or "/" in name else SHIPPED / f"{name}.toml"
        try:
            return cls.parse(path.read_text(), where=name)
        except FileNotFoundError:
            raise TopologyError(f"topology {name!r} is not there: expected a .toml file or one of {', '.join(shipped())}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise TopologyError(f"topology {name!r} cannot be read: {error}") from None

    @classmethod
    def from_dict(cls, members: Mapping[str, Any]) -> Topology:
        """From decoded TOML or JSON. Raises TopologyError for an unknown key or a value of the wrong kind."""
        known = {item.name for item in fields(cls)}
        for key in members:
            if key not in known:
                raise TopologyError(f"unknown key {key!r}: expected some of {', '.join(sorted(known))}")
        given = dict(members)
        options = given.get("agent_options", ())
        if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
            raise TopologyError(f"agent_options {options!r}: expected a list of strings")
        if "agent_options" in given:
            given["agent_options"] = tuple(options)
        config = given.get("config", {})
        if not isinstance(config, dict) or not isinstance(config.get("Backend", {}), dict):
            raise TopologyError("config: expected a table of network config keys, and Backend in it a table too")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` takes, ready for JSON."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**plain, "agent_options": list(self.agent_options), "config": dict(self.config)}

    def changed(self, **given: object) -> Topology:
        """The same with what is given; None stands for "as it was"."""
        wanted: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        return replace(self, **wanted)


def shipped() -> list[str]:
    """Names of the topologies that come with the lab."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def container_name(host: int, number: int) -> str:
    """``c2`` is the first container of h2, ``c2-2`` its second."""
    return f"c{host}" if number == 1 else f"c{host}-{number}"


def check_name(name: str) -> str:
    """A lab's name leads the names of its namespaces and of its directory. Raises LabError."""
    if not NAME.fullmatch(name):
        raise TopologyError(f"name {name!r}: expected a small letter, then small letters, digits or -, 20 characters at most")
    return name


def _nth(network: str, number: int) -> IPNetwork:
    base = IPNetwork(network)
    return IPNetwork(f"{IPAddress(base.first + number, base.version)}/{base.prefixlen}")


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TopologyError(f"{name} {value!r}: expected a string")
    return value


def _expect_range(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise TopologyError(f"{name} {value!r}: expected a whole number, {least} to {most}")


def _network(name: str, value: object, version: int) -> IPNetwork:
    text = _text(name, value)
    example = "10.1.0.0/16" if version == 4 else "fd00:50::/64"
    try:
        network = IPNetwork(text)
    except (AddrFormatError, ValueError):
        network = None
    if network is None or network.version != version or "/" not in text or network.ip != network.network:
        raise TopologyError(f"{name} {text!r}: expected an IPv{version} network like {example}")
    return network
