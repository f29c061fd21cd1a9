"""vxlan: one VXLAN device a family; the kernel encapsulates. flannel-compat 9.1, RFC 7348, ip-link(8).

Of each peer the kernel needs three things, and learns none of them by itself: the neighbour entry (overlay gateway -> inner MAC),
so that it never sends ARP into the overlay; the FDB entry (inner MAC -> outer address); the route, last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Guard, GuardedPort, Local, Path, SourceRule, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError, MalformedError
from flannelpy.core.foreign import printable
from flannelpy.core.json_members import Members
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import Address, FdbEntry, HostState, Link, Neighbour, Object, Route, Sysctl, Vxlan
from flannelpy.core.shared_options import direct_route, source_rule

OUTER_IPV4 = 50
"""Bytes that VXLAN over IPv4 adds: inner Ethernet 14, VXLAN 8, UDP 8, IPv4 20 (RFC 7348 section 5). Over IPv6: 20 more."""

KERNEL_PORT = 8472
"""The port of a config with Port 0: the kernel's own default, not IANA's 4789."""

IFNAMSIZ = 15
"""Longest name of a device (netdevice(7))."""

_MAC = re.compile(r"(?:[0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}")


@dataclass(frozen=True, slots=True)
class VxlanOptions:
    """The ``Backend`` object. ``mtu`` is the *underlay's*, as in flannel; 0 takes the interface's."""

    vni: int = 1
    port: int = KERNEL_PORT
    mtu: int = 0
    gbp: bool = False
    learning: bool = False
    direct_routing: bool = False
    guard: SourceRule | None = "default"


class VxlanBackend:
    """Devices ``flannel.<VNI>`` and ``flannel-v6.<VNI>``."""

    name = "vxlan"
    families: tuple[Family, ...] = (4, 6)
    accepts: frozenset[str] | None = frozenset({"vxlan"})

    def __init__(self, options: VxlanOptions) -> None:
        self.options = options
        self.wants_on_link = options.direct_routing
        self.enclosed = not options.direct_routing  # else also by whichever device reaches a peer
        self.device = f"flannel.{options.vni}"
        self.device6 = f"flannel-v6.{options.vni}"
        # UDP 8, VXLAN 8 with the VNI in its bytes 4 to 6, Ethernet 14 with the EtherType in its last two (RFC 7348 section 5)
        port = GuardedPort("vxlan", options.port, inner=30, ethertype=28, vni=options.vni)
        self.guarded = None if options.guard is None else Guard(port, options.guard, self.families)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> VxlanBackend:
        members = Members(options, "Backend.")
        return cls(
            VxlanOptions(
                vni=members.unsigned("VNI", 1, 0, 2**24 - 1),
                port=members.unsigned("Port", KERNEL_PORT, 0, 65_535) or KERNEL_PORT,
                mtu=members.unsigned("MTU", 0, 0, 65_535),
                gbp=members.boolean("GBP", False),
                learning=members.boolean("Learning", False),
                direct_routing=members.boolean("DirectRouting", False),
                guard=source_rule(members),
            )
        )

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        names = [name for name, pool in ((self.device, config.v4), (self.device6, config.v6)) if pool]
        for name in names:
            if len(name) > IFNAMSIZ:
                raise ConfigError(f"Backend.VNI {self.options.vni}: the device {name} would need more than {IFNAMSIZ} letters")
        return dict.fromkeys(names, True)

    def overhead(self, underlay: Family) -> int:
        return OUTER_IPV4 if underlay == 4 else OUTER_IPV4 + 20

    def mtu(self, local: Local) -> int:
        """The smaller of the devices': containers have one MTU for both families (flannel says M-50 always, F28)."""
        return min(self._device_mtu(local.uplink, version) for version in local.config.families)

    def _device_mtu(self, uplink: Uplink, version: Family) -> int:
        underlay = min(self.options.mtu or uplink.mtu, uplink.mtu)
        mtu = underlay - self.overhead(version)
        least = 68 if version == 4 else 1280
        if mtu < least:
            raise ConfigError(f"MTU {underlay} of the underlay leaves {mtu} bytes for IPv{version}: at least {least} are needed")
        return mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        found = {}
        for device, data in ((self.device, attrs.backend_data), (self.device6, attrs.backend_v6_data)):
            with suppress(MalformedError):
                found[device] = vtep_mac(data)
        return found

    def attrs(self, local: Local) -> LeaseAttrs:
        def data(device: str) -> dict[str, object]:
            return {"VNI": self.options.vni, "VtepMAC": local.macs[device]}

        config, uplink = local.config, local.uplink
        return LeaseAttrs(
            public_ip=uplink.public_ip or NO_ADDRESS,
            public_ipv6=uplink.public_ipv6 if config.v6 else None,
            backend_type=self.name,
            backend_data=data(self.device) if config.v4 else None,
            backend_v6_data=data(self.device6) if config.v6 else None,
        )

    def host(self, local: Local) -> HostState:
        objects: list[Object] = []
        own, uplink = local.own, local.uplink
        if local.config.v4 and uplink.address:
            objects += self._host(self.device, uplink.address, own.subnet, local)
        if local.config.v6 and uplink.address6 and own.subnet6:
            objects += self._host(self.device6, uplink.address6, own.subnet6, local)
        return HostState.of(*objects)

    def _host(self, device: str, local_address: IPAddress, subnet: IPNetwork, local: Local) -> list[Object]:
        # ``local`` is the interface's address even where another one is advertised: from a source that is not its own the kernel
        # sends nothing (F3). The MAC is given at creation, so that systemd's MACAddressPolicy leaves it alone.
        options, version = self.options, subnet.version
        whole = 32 if version == 4 else 128
        return [
            Link(
                device,
                "vxlan",
                mtu=self._device_mtu(local.uplink, version),
                mac=local.macs[device],
                detail=Vxlan(options.vni, local.uplink.name, local_address, options.port, options.learning, options.gbp),
            ),
            Address(IPNetwork((subnet.first, whole), version=version), device),
            Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0"),
        ]

    def path(self, lease: Lease, local: Local) -> Path:
        objects: list[Object] = []
        if local.config.v4 and lease.subnet.prefixlen:
            objects += self._peer(self.device, lease.subnet, lease.public_ip, lease.attrs.backend_data, local)
        if local.config.v6 and lease.subnet6:
            if lease.attrs.public_ipv6 is None:
                raise MalformedError(f"PublicIPv6 is missing: expected where to send {lease.subnet6}")
            objects += self._peer(self.device6, lease.subnet6, lease.attrs.public_ipv6, lease.attrs.backend_v6_data, local)
        direct = not any(isinstance(item, FdbEntry) for item in objects)
        return Path.of(*objects, mtu=local.uplink.mtu if direct else self.mtu(local))

    def _peer(self, device: str, subnet: IPNetwork, outer: IPAddress, data: object, local: Local) -> list[Object]:
        mac = vtep_mac(data)
        self._demand_vni(data)
        if mac == local.macs.get(device):
            raise MalformedError(f"BackendData.VtepMAC {mac} is our own device's: two hosts cannot share it")
        if self.options.direct_routing and (direct := direct_route(subnet, outer, local)):
            return [direct]
        gateway = IPAddress(subnet.first, subnet.version)  # nobody's address: a handle for the peer's VTEP
        return [
            Neighbour(gateway, mac, device),  # gateway -> inner MAC, so that no ARP is sent
            FdbEntry(mac, outer, device),  # inner MAC -> outer address
            Route(subnet, via=gateway, dev=device, onlink=True),
        ]

    def _demand_vni(self, data: object) -> None:
        """A peer of another VNI hears nothing of ours; one of an older flannel names none. Raises MalformedError."""
        members = Members(data) if isinstance(data, dict) else Members({})
        vni = members["VNI"] if "VNI" in members else None
        if vni is not None and (type(vni) is not int or vni != self.options.vni):
            raise MalformedError(f"BackendData.VNI {printable(str(vni), 60)}: expected ours, {self.options.vni}")

    def datapath(self, local: Local) -> None:
        return None


def vtep_mac(data: object) -> str:
    """The MAC in a lease's BackendData, lower-case with colons; any form that Go's reader takes. Raises MalformedError.

    The all-zero MAC is refused: in a vxlan FDB it is the default destination of everything unknown. So is a group address.
    """
    members = Members(data) if isinstance(data, dict) else None
    value = members["VtepMAC"] if members is not None and "VtepMAC" in members else None
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        raise MalformedError(f"BackendData.VtepMAC {value!r:.60}: expected a MAC like c6:d2:32:6f:8f:44")
    digits = value.lower().replace(":", "").replace("-", "").replace(".", "")
    if int(digits, 16) == 0 or int(digits[:2], 16) & 1:
        raise MalformedError(f"BackendData.VtepMAC {value!r}: expected the address of one device")
    usual = bytes.fromhex(digits).hex(":")
    return value if value == usual else usual  # the lease's own text, of which there need not be two
