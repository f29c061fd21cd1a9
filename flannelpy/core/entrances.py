"""Where do other hosts' packets come in? UDP ports and IP protocols, which a firewall has to let through and nobody else may have.

A backend says it (``Receives``); of one that does not, what it guards says it, and a ``port`` of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flannelpy.core.backend import Backend, Beside, Guarded
from flannelpy.core.config import NetworkConfig
from flannelpy.core.filter_match import IPIP, UDP
from flannelpy.core.forward_accept import command
from flannelpy.core.model import Family
from flannelpy.core.packet_filter import Ruleset

_FILTER = re.compile(r" nft table ip6? filter\b")
_PLACE = re.compile(r"\bchain (?P<chain>\S+) of nft table (?P<table>\S+ \S+)")

ESP = 50
_NAMES = {IPIP: "ipencap", ESP: "esp"}
"""As /etc/protocols has them."""
_OF_UFW = (ESP,)
"""What ufw takes behind ``proto``; of others it knows nothing (ufw(8))."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """What other hosts send to. ``port`` 0: the protocol has none. ``device``: of ours, that takes it in; empty where none does.
    ``families``: of IP, outside. ``option``: of ``Backend``, that says another port.

    ``answers``: peers send from the port that they are sent to, so that what comes may be an answer to a firewall that keeps
    states. ``openly``: nothing comes here from or to a host behind NAT.
    """

    protocol: int = UDP
    port: int = 0
    device: str = ""
    families: tuple[Family, ...] = (4,)
    option: str = ""
    answers: bool = True
    openly: bool = False

    def __str__(self) -> str:
        return f"UDP {self.port}" if self.protocol == UDP else f"IP protocol {self.protocol}"


@runtime_checkable
class Receives(Protocol):
    """What a backend has besides where it is known what has to come in for it."""

    def entrances(self, config: NetworkConfig) -> tuple[Entrance, ...]:
        """All of them, for the families of this config; none where packets come as they are."""
        ...


def entrances(config: NetworkConfig, backends: Iterable[Backend | Beside]) -> list[Entrance]:
    """What has to come in for these, each once."""
    return list(dict.fromkeys(each for backend in backends for each in _entrances(config, backend)))


def port_by(held: Iterable[Entrance], device: str) -> int:
    """The UDP port at which a device of ours takes in packets; 0 where it is not known."""
    return next((each.port for each in held if each.device == device and each.protocol == UDP), 0)


def _entrances(config: NetworkConfig, backend: Backend | Beside) -> tuple[Entrance, ...]:
    if isinstance(backend, Receives):
        return backend.entrances(config)
    devices = [*backend.devices(config)]
    device = devices[0] if len(devices) == 1 else ""
    if isinstance(backend, Guarded) and backend.guarded is not None:
        port, families = backend.guarded.port, backend.guarded.families
        return (Entrance(UDP, port.number, device, families) if port.datagram else Entrance(port.number, 0, device, families),)
    number = getattr(backend, "port", 0)
    return (Entrance(UDP, number, device),) if isinstance(number, int) and number else ()


def let_in(rules: Ruleset, dropped: str, interface: str, entrance: Entrance, version: int) -> str:
    """How whoever has made the rule that a ruling names would let it in, for good; ``dropped`` is the ruling's."""
    port, protocol = entrance.port, entrance.protocol
    name = "udp" if protocol == UDP else _NAMES.get(protocol, str(protocol))
    if dropped.endswith(" firewalld") or " firewalld " in dropped:
        what = f"--add-port={port}/udp" if protocol == UDP else f"--add-protocol={name}"
        return f"firewall-cmd --permanent {what} && firewall-cmd --reload (the zone that {interface} is in)"
    if any(chain.startswith("ufw") for _family, _table, chain in rules.chains):
        if protocol == UDP:
            return f"ufw allow in on {interface} to any port {port} proto udp"
        if protocol in _OF_UFW:
            return f"ufw allow in on {interface} proto {name}"
        return f"-A ufw-before-input -i {interface} -p {name} -j ACCEPT in /etc/ufw/before.rules, above COMMIT; ufw reload"
    if iptables(dropped):
        what = f"-p {name}" + (f" --dport {port}" if port else "")
        tables = command("legacy" if "-legacy" in dropped else "nft", version)
        return f"{tables} -I INPUT -i {interface} {what} -j ACCEPT, and where your rules are kept"
    what = f"udp dport {port}" if protocol == UDP else f"meta l4proto {name}"
    place = _PLACE.search(dropped)
    put = "let it in there:" if place is None else f"nft insert rule {place['table']} {place['chain']}"
    return f"{put} iifname {interface} {what} accept"


def iptables(dropped: str) -> bool:
    """Whether a ruling names iptables' table ``filter``. One of another family by that name (nftables.conf's ``inet filter``) drops
    what iptables has accepted.
    """
    return _FILTER.search(dropped) is not None or ("-legacy" in dropped and " -t " not in dropped)
