"""Whose is the address that was typed? A container's, a peer's name, PublicIP or subnet, one of this host; and from where."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.commands.aside import aside
from flannelpy.commands.doctor.about import About
from flannelpy.commands.terminal import warn
from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.foreign import cut
from flannelpy.core.model import Family
from flannelpy.explain.status import PeerStatus

_NOBODY = "0.0.0.0"

RESOLVE_S, OBJECT_S = 2.0, 0.5
"""How long the resolver may take to say whose a name is, and to say that it is not that of the peer who calls himself so."""


@dataclass(frozen=True, slots=True)
class Destination:
    """``address`` is where packets go. ``peer``: whose subnet it is in, None for this host's own (``local``) and where no agent has
    said; ``host``: the address of the peer itself in the overlay, as probes ask it.
    """

    address: IPAddress
    peer: PeerStatus | None = None
    local: bool = False
    host: IPAddress | None = None

    @property
    def public(self) -> IPAddress | None:
        """Where the peer is sent to."""
        if self.peer is None:
            return None
        text = self.peer.public_ip if self.address.version == 4 else self.peer.public_ipv6
        return IPAddress(text) if text and text != _NOBODY else None

    @property
    def left_out(self) -> str:
        """Why the agent has no route to the peer; empty where it has one, or knows of none."""
        peer = self.peer
        return "" if peer is None or peer.state == "in-sync" else f"{peer.state}, {peer.why}" if peer.why else peer.state


def networks(about: About) -> tuple[IPNetwork, ...]:
    """Of the overlay: as configured, else as the subnet file has it."""
    if about.config is not None:
        return about.config.networks
    return tuple(net for net in (about.told.network, about.told.network6) if net is not None)


async def destination(about: About, text: str) -> Destination:
    """Raises UsageError where it is nothing that one could send to, FlannelpyError where nobody is there."""
    if not about.subnets or not networks(about):
        why = about.silent or about.unknown or "the agent has no lease yet"
        raise FlannelpyError(f"this host has no subnet that is known, neither from an agent nor from a subnet file: {why}")
    try:
        net = IPNetwork(text)
    except (AddrFormatError, ValueError):
        return await _named(about, text)
    if "/" in text and net.ip == net.network and net.size > 1:
        peers = [peer for peer in _peers(about) if text in (peer.subnet, peer.subnet6)]
        if peers:
            return _host(about, peers[0], net.version)
        if any(net == own for own in about.subnets):
            raise UsageError(f"DST {text}: this host's own subnet: expected an address in it, or another host")
        raise FlannelpyError(f"no host that the agent knows of has {text}: flannelpy lease list {text}")
    return _address(about, net.ip)


def source(about: About, text: str | None, version: Family) -> IPAddress:
    """An address of a container; where none was typed, one near the end of the subnet, which most probably nobody has."""
    own = next((net for net in about.subnets if net.version == version), None)
    if own is None:
        raise FlannelpyError(f"this host has no IPv{version} subnet")
    if text is None:
        return IPAddress(own.last - 2 if own.size > 8 else own.last - 1, version)
    try:
        found = IPAddress(text)
    except (AddrFormatError, ValueError):
        raise UsageError(f"--from {cut(text, 40)!r}: expected an address in {own}, this host's subnet") from None
    if found not in own:
        raise UsageError(f"--from {found}: expected an address in {own}, this host's subnet")
    return found


def _peers(about: About) -> tuple[PeerStatus, ...]:
    return () if about.status is None else about.status.peers


def _address(about: About, address: IPAddress) -> Destination:
    for peer in _peers(about):
        if str(address) in (peer.public_ip, peer.public_ipv6):
            return _host(about, peer, 4 if address.version == 4 and peer.subnet is not None else 6)
    if any(address in own for own in about.subnets if own.version == address.version):
        return Destination(address, local=True)
    if not any(address in net for net in networks(about) if net.version == address.version):
        nets = " and ".join(map(str, networks(about)))
        raise UsageError(f"DST {address}: expected an address in {nets}, the overlay's, or another host's")
    for peer in _peers(about):
        if (net := _subnet(peer, address.version)) is not None and address in net:
            return Destination(address, peer, host=_own(about, net))
    return Destination(address)


async def _named(about: About, text: str) -> Destination:
    """The resolver is believed before a peer who calls himself so, as anybody may; it is not waited for where it is silent."""
    called = _called(about, text)
    patience_s = OBJECT_S if called else RESOLVE_S
    silent = ""
    try:
        found = await _resolved(text, patience_s)
    except TimeoutError:
        found, silent = frozenset(), f"the resolver has not said within {patience_s:g} s whose name that is"
    if not found:
        peer = _only(text, called)
        if peer is None:
            why = f"{silent}, and no host calls itself so: " if silent else ""
            raise UsageError(f"DST {cut(text, 40)!r}: {why}expected an address, a subnet, or a host's name")
        if silent:
            warn([f"DST {text}: {silent}; {peer.public_ip} calls itself so"])
        return _host(about, peer, 4 if peer.subnet is not None else 6)
    if any(_is_public(about, address) for address in found):
        return next(_address(about, each) for each in sorted(found) if _is_public(about, each))
    raise FlannelpyError(f"{text} is {_list(found)}, which is no peer's PublicIP: flannelpy status --peers")


async def _resolved(name: str, within_s: float) -> frozenset[IPAddress]:
    """Nothing where no such name is known. Raises TimeoutError."""
    try:
        async with asyncio.timeout(within_s):
            found = await aside(lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM), "resolver")
        return frozenset(IPAddress(str(each[4][0]).partition("%")[0]) for each in found)
    except TimeoutError:
        raise
    except (OSError, UnicodeError, ValueError):
        return frozenset()


def _called(about: About, name: str) -> list[PeerStatus]:
    """The peers who call themselves so."""
    return [peer for peer in _peers(about) if peer.name and peer.name.lower() == name.lower()]


def _only(name: str, called: list[PeerStatus]) -> PeerStatus | None:
    """The one peer with this name, which counts only where no resolver knows it. Raises UsageError where several have it."""
    if len(called) > 1:
        hosts = ", ".join(peer.public_ip for peer in called[:4])
        raise UsageError(f"DST {cut(name, 40)!r}: {len(called)} hosts call themselves so: expected one of their addresses, {hosts}")
    return called[0] if called else None


def whole_name(peer: PeerStatus) -> str:
    """A peer's address, and behind it what it is called."""
    return peer.public_ip + (f" [{peer.name}]" if peer.name else "")


def _is_public(about: About, address: IPAddress) -> bool:
    return any(str(address) in (peer.public_ip, peer.public_ipv6) for peer in _peers(about))


def _host(about: About, peer: PeerStatus, version: Family) -> Destination:
    net = _subnet(peer, version)
    if net is None:
        raise FlannelpyError(f"{peer.public_ip} has no IPv{version} subnet")
    own = _own(about, net)
    return Destination(own, peer, host=own)


def _subnet(peer: PeerStatus, version: int) -> IPNetwork | None:
    text = peer.subnet if version == 4 else peer.subnet6
    return None if text is None else IPNetwork(text)


def _own(about: About, net: IPNetwork) -> IPAddress:
    """The peer's own address in its subnet: its device's, which is the first; without a device the bridge's, as Docker makes it."""
    has_device = about.config is not None and about.backend is not None and about.backend.devices(about.config)
    return IPAddress(net.first + (0 if has_device else 1), net.version)


def _list(found: Iterable[IPAddress]) -> str:
    return ", ".join(map(str, sorted(found)))
