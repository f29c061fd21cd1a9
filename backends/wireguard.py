"""wireguard: encrypted UDP by the kernel, one device for both families or one for each. flannel-compat 9.5, wg(8), wireguard.com.

A peer is a public key, where to send to, and which addresses may come from it. The kernel looks a destination up among those of all
peers, so one route for the whole Network is enough; and it drops whatever no peer's key vouches for, so no guard is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Local, Path
from flannelpy.core.backend_options import Given, Option
from flannelpy.core.config import NetworkConfig
from flannelpy.core.ends import attrs_of
from flannelpy.core.entrances import Entrance
from flannelpy.core.errors import BackendError, ConfigError, MalformedError
from flannelpy.core.filter_match import UDP
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import Address, HostState, Link, Object, Route, Wireguard, WireguardDevice, WireguardPeer
from flannelpy.core.secret import Secret
from flannelpy.core.shared_options import UNDERLAY_MTU, mtu_within
from flannelpy.core.usual import completed
from flannelpy.core.wireguard import NO_KEY, KeyPair, key_bytes, told_key, told_port

DEVICE, DEVICE6 = "flannel-wg", "flannel-wg-v6"

OVERHEAD = 80
"""Bytes around a packet: IPv6 40, UDP 8, WireGuard's head 16 and tag 16. Over IPv4 60 would do; flannel takes 80 off, always."""

LISTEN_PORT, LISTEN_PORT_V6 = 51_820, 51_821

KEEPALIVE_S = 25
"""What wg(8) advises; the first one goes out when the peer is set."""

MODES = ("separate", "auto", "ipv4", "ipv6")


def preshared_key(text: str) -> Secret[bytes]:
    """Raises ValueError."""
    return Secret(key_bytes(text))


@completed
class WireguardBackend:
    """Device ``flannel-wg``, and in mode separate ``flannel-wg-v6`` for IPv6. Both have one key."""

    name = "wireguard"
    families: tuple[Family, ...] = (4, 6)
    enclosed = needs_key = needs_answer = True
    needs_link = False
    options = (
        Option("ListenPort", LISTEN_PORT, "UDP port of `flannel-wg`; 0 is 51820", zero=True),
        Option("ListenPortV6", LISTEN_PORT_V6, "UDP port of `flannel-wg-v6`, in mode `separate` only; 0 is 51821", zero=True),
        Option(
            "Mode",
            MODES[0],
            "with both families: `separate`, a tunnel for each, IPv6 over IPv6; `ipv4` or `ipv6`, one tunnel for both, over that"
            " family; `auto`, one tunnel, over whichever suits the peer",
            words=MODES,
            zero=True,
        ),
        Option(
            "PSK",
            None,
            "a preshared key, 32 bytes in base64 (`wg genpsk`), on top of the hosts' keys; the same on all hosts, and never shown",
            parse=preshared_key,
            secret=True,
        ),
        Option("PersistentKeepaliveInterval", 0, "seconds between packets that keep a NAT's mapping open; 0 is off"),
        UNDERLAY_MTU,
    )

    def __init__(self, given: Given, stands_beside: bool = False) -> None:
        self.given, self.separate, self.stands_beside = given, given["Mode"] == "separate", stands_beside
        self.port: Mapping[str, int] = {DEVICE: given["ListenPort"], DEVICE6: given["ListenPortV6"]}

    def beside(self) -> WireguardBackend:
        """With a route a peer instead of one for all; and asking each for an answer, which a keep-alive does at once."""
        keepalive_s = self.given["PersistentKeepaliveInterval"] or KEEPALIVE_S
        return WireguardBackend({**self.given, "PersistentKeepaliveInterval": keepalive_s}, stands_beside=True)

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        if not self.separate:
            for mode, pool, name in (("ipv4", config.v4, "EnableIPv4"), ("ipv6", config.v6, "EnableIPv6")):
                if self.given["Mode"] == mode and pool is None:
                    raise ConfigError(f"Backend.Mode {mode}: expected {name} true, which it is not")
            return {DEVICE: False}
        if config.v4 and config.v6 and self.port[DEVICE] == self.port[DEVICE6]:
            raise ConfigError(f"Backend.ListenPortV6 {self.port[DEVICE6]}: expected another port than ListenPort")
        return {device: False for device, pool in ((DEVICE, config.v4), (DEVICE6, config.v6)) if pool}

    def entrances(self, config: NetworkConfig) -> tuple[Entrance, ...]:
        over: Mapping[str, tuple[Family, ...]] = {"separate": (4,), "ipv4": (4,), "ipv6": (6,), "auto": (4, 6)}
        families, option = {DEVICE: over[self.given["Mode"]], DEVICE6: (6,)}, {DEVICE: "ListenPort", DEVICE6: "ListenPortV6"}
        return tuple(Entrance(UDP, self.port[name], name, families[name], option[name]) for name in self.devices(config))

    def overhead(self, underlay: Family) -> int:
        return OVERHEAD

    def mtu(self, local: Local) -> int:
        return mtu_within(local.uplink, self.given["MTU"], OVERHEAD, 6 if local.config.v6 else 4)

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        found = {}
        for device, data in ((DEVICE, attrs.backend_data), (DEVICE6, attrs.backend_v6_data)):
            with suppress(MalformedError):
                found[device] = told_key(data)
        return found

    def attrs(self, local: Local) -> LeaseAttrs:
        key = _keys(local).public
        # In a single tunnel flannel publishes ListenPortV6 for IPv6, where nobody listens (F17).
        data, data6 = ({"PublicKey": key, "Port": self.port[device]} for device in (DEVICE, DEVICE6 if self.separate else DEVICE))
        return attrs_of(local, self.name, data, data6)

    def host(self, local: Local) -> HostState:
        config, own = local.config, local.own
        objects: list[Object] = []
        for device in self.devices(config):
            link = Link(device, "wireguard", self.mtu(local), detail=Wireguard())
            objects += [link, WireguardDevice(device, self.port[device], _keys(local).private)]
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
        data, data6, peers = lease.attrs.backend_data, lease.attrs.backend_v6_data, []
        if self.separate:
            if subnet:
                peers.append(self._peer(DEVICE, lease, (subnet,), 4, data, local))
            if subnet6:
                peers.append(self._peer(DEVICE6, lease, (subnet6,), 6, data6, local))
        else:
            # Everybody's one device listens at the port that is told for IPv4; what a flannel says for IPv6 is not true (F17).
            told = data if subnet else data6
            if subnet and subnet6 and data6 is not None and told_key(data6) != told_key(data):
                raise MalformedError("BackendV6Data.PublicKey: expected that of BackendData, for there is one tunnel")
            if subnets := tuple(net for net in (subnet, subnet6) if net):
                peers.append(self._peer(DEVICE, lease, subnets, self._family(lease, local), told, local))
        routes = [Route(net, dev=item.dev) for item in peers for net in item.allowed_ips] if self.stands_beside else []
        return Path.of(*peers, *routes, mtu=self.mtu(local))

    def _peer(
        self, device: str, lease: Lease, subnets: tuple[IPNetwork, ...], family: Family, told: object, local: Local
    ) -> WireguardPeer:
        """``told``: what its lease says. Where that names no port, it has ours."""
        key = told_key(told)
        if key == _keys(local).public:
            raise MalformedError(f"BackendData.PublicKey {key} is our own: two hosts cannot share it")
        outer = lease.public_ip if family == 4 else lease.attrs.public_ipv6
        if outer is None or outer == NO_ADDRESS:
            name = "PublicIP" if family == 4 else "PublicIPv6"
            raise MalformedError(f"{name} is missing: expected where to send {' and '.join(map(str, subnets))}")
        endpoint = IPAddress(outer), told_port(told) or self.port[device]
        keepalive_s, psk = self.given["PersistentKeepaliveInterval"], self.given["PSK"] or NO_KEY
        return WireguardPeer(device, key, endpoint, subnets, keepalive_s, psk)

    def _family(self, lease: Lease, local: Local) -> Family:
        """Over which family one tunnel for both goes to a peer. Two hosts need not agree: the kernel answers where it was asked."""
        theirs, theirs6, uplink = lease.public_ip, lease.attrs.public_ipv6, local.uplink
        if self.given["Mode"] != "auto":
            return 4 if self.given["Mode"] == "ipv4" else 6
        if theirs6 is None or uplink.public_ipv6 is None:
            return 4
        if uplink.public_ip is None or theirs == NO_ADDRESS:
            return 6
        if not theirs.is_ipv4_private_use():
            return 4
        return 4 if theirs6.is_ipv6_unique_local() or uplink.public_ipv6.is_ipv6_unique_local() else 6


def _keys(local: Local) -> KeyPair:
    if local.keys is None:
        raise BackendError("no key yet")
    return local.keys
