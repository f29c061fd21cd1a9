"""wireguard: encrypted UDP by the kernel, one device for both families or one for each. flannel-compat 9.5, wg(8), wireguard.com.

A peer is a public key, where to send to, and which addresses may come from it. The kernel looks a destination up among those of all
peers, so one route for the whole Network is enough; and it drops whatever no peer's key vouches for, so no guard is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Local, Path
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError, MalformedError
from flannelpy.core.json_members import Members
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import Address, HostState, Link, Object, Route, Wireguard, WireguardDevice, WireguardPeer
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import NO_KEY, KeyPair, key_bytes, told_key, told_port

DEVICE, DEVICE6 = "flannel-wg", "flannel-wg-v6"

OVERHEAD = 80
"""Bytes around a packet: IPv6 40, UDP 8, WireGuard's head 16 and tag 16. Over IPv4 60 would do; flannel takes 80 off, always."""

LISTEN_PORT, LISTEN_PORT_V6 = 51_820, 51_821

KEEPALIVE_S = 25
"""What wg(8) advises; the first one goes out when the peer is set."""

Mode = Literal["separate", "auto", "ipv4", "ipv6"]
MODES: tuple[Mode, ...] = ("separate", "auto", "ipv4", "ipv6")


@dataclass(frozen=True, slots=True)
class WireguardOptions:
    """The ``Backend`` object. ``mtu`` is the underlay's, 0 takes the interface's; ``keepalive_s`` in seconds, 0 is off."""

    listen_port: int = LISTEN_PORT
    listen_port_v6: int = LISTEN_PORT_V6
    mtu: int = 0
    mode: Mode = "separate"
    keepalive_s: int = 0
    psk: Secret[bytes] = NO_KEY


class WireguardBackend:
    """Device ``flannel-wg``, and in mode separate ``flannel-wg-v6`` for IPv6. Both have one key."""

    name = "wireguard"
    families: tuple[Family, ...] = (4, 6)
    accepts: frozenset[str] | None = frozenset({"wireguard"})
    wants_on_link = False
    enclosed = needs_key = needs_answer = True
    needs_link = False

    def __init__(self, options: WireguardOptions, stands_beside: bool = False) -> None:
        self.options, self.separate, self.stands_beside = options, options.mode == "separate", stands_beside

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> WireguardBackend:
        members = Members(options, "Backend.")
        return cls(
            WireguardOptions(
                listen_port=members.unsigned("ListenPort", LISTEN_PORT, 0, 65_535) or LISTEN_PORT,
                listen_port_v6=members.unsigned("ListenPortV6", LISTEN_PORT_V6, 0, 65_535) or LISTEN_PORT_V6,
                mtu=members.unsigned("MTU", 0, 0, 65_535),
                mode=_mode(members),
                keepalive_s=members.unsigned("PersistentKeepaliveInterval", 0, 0, 65_535),
                psk=_psk(members),
            )
        )

    def beside(self) -> WireguardBackend:
        """With a route a peer instead of one for all; and asking each for an answer, which a keep-alive does at once."""
        options = replace(self.options, keepalive_s=self.options.keepalive_s or KEEPALIVE_S)
        return WireguardBackend(options, stands_beside=True)

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        options = self.options
        if not self.separate:
            for mode, pool, name in (("ipv4", config.v4, "EnableIPv4"), ("ipv6", config.v6, "EnableIPv6")):
                if options.mode == mode and pool is None:
                    raise ConfigError(f"Backend.Mode {mode}: expected {name} true, which it is not")
            return {DEVICE: False}
        if config.v4 and config.v6 and options.listen_port == options.listen_port_v6:
            raise ConfigError(f"Backend.ListenPortV6 {options.listen_port_v6}: expected another port than ListenPort")
        return {device: False for device, pool in ((DEVICE, config.v4), (DEVICE6, config.v6)) if pool}

    def overhead(self, underlay: Family) -> int:
        return OVERHEAD

    def mtu(self, local: Local) -> int:
        underlay = min(self.options.mtu or local.uplink.mtu, local.uplink.mtu)
        mtu, version = underlay - OVERHEAD, 6 if local.config.v6 else 4
        least = 1280 if version == 6 else 68
        if mtu < least:
            raise ConfigError(f"MTU {underlay} of the underlay leaves {mtu} bytes for IPv{version}: at least {least} are needed")
        return mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        found = {}
        for device, data in ((DEVICE, attrs.backend_data), (DEVICE6, attrs.backend_v6_data)):
            with suppress(MalformedError):
                found[device] = told_key(data)
        return found

    def attrs(self, local: Local) -> LeaseAttrs:
        config, uplink, key = local.config, local.uplink, _keys(local).public
        # In a single tunnel flannel publishes ListenPortV6 for IPv6, where nobody listens (F17).
        port6 = self.options.listen_port_v6 if self.separate else self.options.listen_port
        return LeaseAttrs(
            public_ip=uplink.public_ip or NO_ADDRESS,
            public_ipv6=uplink.public_ipv6 if config.v6 else None,
            backend_type=self.name,
            backend_data={"PublicKey": key, "Port": self.options.listen_port} if config.v4 else None,
            backend_v6_data={"PublicKey": key, "Port": port6} if config.v6 else None,
        )

    def host(self, local: Local) -> HostState:
        config, own, options = local.config, local.own, self.options
        objects: list[Object] = []
        for device in self.devices(config):
            port = options.listen_port_v6 if device == DEVICE6 else options.listen_port
            link = Link(device, "wireguard", self.mtu(local), detail=Wireguard())
            objects += [link, WireguardDevice(device, port, _keys(local).private)]
        if config.v4:
            address = Address(IPNetwork((own.subnet.first, 32), version=4), DEVICE)
            objects += [address, Route(config.v4.network, dev=DEVICE, link_scope=True)]
        if config.v6 and own.subnet6:
            device = DEVICE6 if self.separate else DEVICE
            address = Address(IPNetwork((own.subnet6.first, 128), version=6), device)
            objects += [address, Route(config.v6.network, dev=device)]
        return HostState.of(*(item for item in objects if not (self.stands_beside and isinstance(item, Route))))

    def path(self, lease: Lease, local: Local) -> Path:
        subnet = lease.subnet if local.config.v4 and lease.subnet.prefixlen else None
        subnet6 = lease.subnet6 if local.config.v6 else None
        data, data6, options, peers = lease.attrs.backend_data, lease.attrs.backend_v6_data, self.options, []
        if self.separate:
            if subnet:
                peers.append(self._peer(DEVICE, lease, (subnet,), 4, (data, options.listen_port), local))
            if subnet6:
                peers.append(self._peer(DEVICE6, lease, (subnet6,), 6, (data6, options.listen_port_v6), local))
        else:
            # Everybody's one device listens at the port that is told for IPv4; what a flannel says for IPv6 is not true (F17).
            told = data if subnet else data6
            if subnet and subnet6 and data6 is not None and told_key(data6) != told_key(data):
                raise MalformedError("BackendV6Data.PublicKey: expected that of BackendData, for there is one tunnel")
            if subnets := tuple(net for net in (subnet, subnet6) if net):
                peers.append(self._peer(DEVICE, lease, subnets, self._family(lease, local), (told, options.listen_port), local))
        routes = [Route(net, dev=item.dev) for item in peers for net in item.allowed_ips] if self.stands_beside else []
        return Path.of(*peers, *routes, mtu=self.mtu(local))

    def _peer(
        self, device: str, lease: Lease, subnets: tuple[IPNetwork, ...], family: Family, told: tuple[object, int], local: Local
    ) -> WireguardPeer:
        """``told``: what its lease says, and the port where that says none."""
        data, usual_port = told
        key = told_key(data)
        if key == _keys(local).public:
            raise MalformedError(f"BackendData.PublicKey {key} is our own: two hosts cannot share it")
        outer = lease.public_ip if family == 4 else lease.attrs.public_ipv6
        if outer is None or outer == NO_ADDRESS:
            name = "PublicIP" if family == 4 else "PublicIPv6"
            raise MalformedError(f"{name} is missing: expected where to send {' and '.join(map(str, subnets))}")
        endpoint = IPAddress(outer), told_port(data) or usual_port
        return WireguardPeer(device, key, endpoint, subnets, self.options.keepalive_s, self.options.psk)

    def _family(self, lease: Lease, local: Local) -> Family:
        """Over which family one tunnel for both goes to a peer. Two hosts need not agree: the kernel answers where it was asked."""
        theirs, theirs6, uplink = lease.public_ip, lease.attrs.public_ipv6, local.uplink
        if self.options.mode != "auto":
            return 4 if self.options.mode == "ipv4" else 6
        if theirs6 is None or uplink.public_ipv6 is None:
            return 4
        if uplink.public_ip is None or theirs == NO_ADDRESS:
            return 6
        if not theirs.is_ipv4_private_use():
            return 4
        return 4 if theirs6.is_ipv6_unique_local() or uplink.public_ipv6.is_ipv6_unique_local() else 6

    def datapath(self, local: Local) -> None:
        return None


def _keys(local: Local) -> KeyPair:
    if local.keys is None:
        raise BackendError("no key yet")
    return local.keys


def _mode(members: Members) -> Mode:
    given = members["Mode"] if "Mode" in members else None
    for mode in MODES:
        if given == mode or (given in (None, "") and mode == "separate"):
            return mode
    raise members.wrong("Mode", f"{', '.join(MODES[:-1])} or {MODES[-1]}")


def _psk(members: Members) -> Secret[bytes]:
    text = members.text("PSK")
    try:
        return Secret(key_bytes(text)) if text else NO_KEY
    except ValueError as error:
        raise members.wrong("PSK", str(error).removeprefix("expected ")) from None
