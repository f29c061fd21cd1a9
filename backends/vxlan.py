"""vxlan: one VXLAN device a family; the kernel encapsulates. flannel-compat 9.1, RFC 7348, ip-link(8).

Of each peer the kernel needs three things, and learns none of them by itself: the neighbour entry (overlay gateway -> inner MAC),
so that it never sends ARP into the overlay; the FDB entry (inner MAC -> outer address); the route, last.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from flannelpy.core.backend import GuardedPort, Local, Path
from flannelpy.core.backend_options import Given, Option
from flannelpy.core.config import NetworkConfig
from flannelpy.core.ends import End, attrs_of, ends, own_ends
from flannelpy.core.entrances import Entrance
from flannelpy.core.errors import ConfigError, MalformedError
from flannelpy.core.filter_match import UDP
from flannelpy.core.model import Family, Lease, LeaseAttrs
from flannelpy.core.objects import Address, FdbEntry, HostState, Link, Neighbour, Object, Route, Sysctl, Vxlan
from flannelpy.core.shared_options import DIRECT_ROUTING, GUARD, UNDERLAY_MTU, direct_route, guarded, mtu_within, source_rule
from flannelpy.core.usual import completed
from flannelpy.core.vtep import demand_vni, told_mac

OUTER_IPV4 = 50
"""Bytes that VXLAN over IPv4 adds: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348 section 5). Over IPv6: 20 more."""

KERNEL_PORT = 8472
"""The port of a config with Port 0: the kernel's own default, not IANA's 4789."""

IFNAMSIZ = 15
"""Longest name of a device (netdevice(7))."""


@completed
class VxlanBackend:
    """Devices ``flannel.<VNI>`` and ``flannel-v6.<VNI>``."""

    name = "vxlan"
    families: tuple[Family, ...] = (4, 6)
    options = (
        Option("VNI", 1, "the device is `flannel.VNI`, for IPv6 `flannel-v6.VNI`", most=2**24 - 1),
        Option("Port", KERNEL_PORT, "UDP port of the cluster; 0 is 8472, too", zero=True),
        UNDERLAY_MTU,
        Option("GBP", False, "group based policy extension"),
        Option("Learning", False, "source learning; not needed"),
        DIRECT_ROUTING,
        GUARD,
    )

    def __init__(self, given: Given) -> None:
        self.given, vni = given, given["VNI"]
        self.wants_on_link = given["DirectRouting"]
        self.enclosed = not self.wants_on_link  # else also by whichever device reaches a peer
        self.device: Mapping[Family, str] = {4: f"flannel.{vni}", 6: f"flannel-v6.{vni}"}
        # UDP 8, VXLAN 8 with the VNI in its bytes 4 to 6, Ethernet 14 with the EtherType in its last two (RFC 7348 section 5)
        port = GuardedPort("vxlan", given["Port"], inner=30, ethertype=28, vni=vni)
        self.guarded = guarded(port, source_rule(given), self.families)

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        names = [self.device[version] for version in config.families]
        for name in names:
            if len(name) > IFNAMSIZ:
                raise ConfigError(f"Backend.VNI {self.given['VNI']}: the device {name} would need more than {IFNAMSIZ} letters")
        return dict.fromkeys(names, True)

    def entrances(self, config: NetworkConfig) -> tuple[Entrance, ...]:
        # The source port is another one for each flow, so that no packet is an answer to one of ours (RFC 7348 section 5).
        port, held = self.given["Port"], config.families
        return tuple(Entrance(UDP, port, self.device[family], (family,), "Port", answers=False) for family in held)

    def overhead(self, underlay: Family) -> int:
        return OUTER_IPV4 if underlay == 4 else OUTER_IPV4 + 20

    def mtu(self, local: Local) -> int:
        """The smaller of the devices': containers have one MTU for both families (flannel says M-50 always, F28)."""
        return min(self._device_mtu(local, version) for version in local.config.families)

    def _device_mtu(self, local: Local, version: Family) -> int:
        return mtu_within(local.uplink, self.given["MTU"], self.overhead(version), version)

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        found = {}
        for device, data in ((self.device[4], attrs.backend_data), (self.device[6], attrs.backend_v6_data)):
            with suppress(MalformedError):
                found[device] = told_mac(data)
        return found

    def attrs(self, local: Local) -> LeaseAttrs:
        vni = self.given["VNI"]
        data = {version: {"VNI": vni, "VtepMAC": local.macs[self.device[version]]} for version in local.config.families}
        return attrs_of(local, self.name, data.get(4), data.get(6))

    def host(self, local: Local) -> HostState:
        return HostState.of(*(item for end in own_ends(local) for item in self._host(end, local)))

    def _host(self, end: End, local: Local) -> tuple[Object, ...]:
        # ``local`` is the interface's address even where another one is advertised: from a source that is not its own the kernel
        # sends nothing (F3). The MAC is given at creation, so that systemd's MACAddressPolicy leaves it alone.
        given, device = self.given, self.device[end.version]
        detail = Vxlan(given["VNI"], local.uplink.name, end.outer, given["Port"], given["Learning"], given["GBP"])
        return (
            Link(device, "vxlan", self._device_mtu(local, end.version), local.macs[device], detail=detail),
            Address(end.base_net, device),
            Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0"),
        )

    def path(self, lease: Lease, local: Local) -> Path:
        objects = [item for end in ends(lease, local) for item in self._peer(end, local)]
        direct = not any(isinstance(item, FdbEntry) for item in objects)
        return Path.of(*objects, mtu=local.uplink.mtu if direct else self.mtu(local))

    def _peer(self, end: End, local: Local) -> tuple[Object, ...]:
        mac, device = told_mac(end.data), self.device[end.version]
        demand_vni(end.data, self.given["VNI"])
        if mac == local.macs.get(device):
            raise MalformedError(f"BackendData.VtepMAC {mac} is our own device's: two hosts cannot share it")
        if self.wants_on_link and (direct := direct_route(end.subnet, end.outer, local)):
            return (direct,)
        # The gateway is nobody's address, a handle for the peer's VTEP: gateway -> inner MAC -> outer address.
        gateway = end.base
        neighbour, fdb = Neighbour(gateway, mac, device), FdbEntry(mac, end.outer, device)
        return neighbour, fdb, Route(end.subnet, via=gateway, dev=device, onlink=True)
