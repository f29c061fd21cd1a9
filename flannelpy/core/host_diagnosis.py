"""What of this host keeps its containers from other hosts, although all that is ours is in its place? Judged by facts handed in.

Each answer maps a subject to what is wrong with it, in words that end in a command that mends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from flannelpy.core.host_facts import Interface

BRIDGES = ("docker0", "cni0")
"""Bridges that Docker and the CNI plugins make where nothing else is said."""

FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ALL_FILTERS = "net/ipv4/conf/all/rp_filter"
STRICT = 1


def dotted(name: str) -> str:
    """A setting's name as ``sysctl -w`` takes it; a device's dots become slashes there (sysctl(8))."""
    return name.translate(str.maketrans("/.", "./"))


def setting_names(families: Iterable[int], devices: Iterable[str]) -> list[str]:
    """The settings that ``not_forwarding`` and ``strict`` want to know of these devices."""
    names = [FORWARDING[version] for version in families]
    if names and names[0] == FORWARDING[4]:
        names.append(_ALL_FILTERS)
        names += [f"net/ipv4/conf/{device}/{what}" for device in devices for what in ("forwarding", "rp_filter")]
    return names


def not_forwarding(settings: Mapping[str, str], families: Iterable[int], devices: Iterable[str]) -> dict[str, str]:
    """IP versions that this host does not forward, or devices from which it does not (IPv4 asks the one a packet comes in by)."""
    wrong = dict[str, str]()
    for version in families:
        whole = FORWARDING[version]
        alone = [f"net/ipv4/conf/{device}/forwarding" for device in devices] if version == 4 else []
        off = [whole] if settings.get(whole) == "0" else [name for name in alone if settings.get(name) == "0"]
        what = "containers here reach no other host, nor does anybody reach them"
        wrong |= {name: f"{dotted(name)} is 0: {what}: sysctl -w {dotted(name)}=1" for name in off}
    return wrong


def strict(settings: Mapping[str, str], device: str) -> str:
    """The setting by which the reverse path filter of ``device`` is strict, the larger of two counting; empty where it is not."""
    held = {name: settings.get(name, "") for name in (_ALL_FILTERS, f"net/ipv4/conf/{device}/rp_filter")}
    values = {name: int(value) for name, value in held.items() if value.isdecimal()}
    if max(values.values(), default=0) != STRICT:
        return ""
    return next(name for name, value in values.items() if value == STRICT)


def filtered(device: str, setting: str, peer: str) -> str:
    """That the reverse path filter drops what ``peer`` sends."""
    why = f"{device} takes only packets whose answer would leave by it ({dotted(setting)} is 1)"
    own = dotted(f"net/ipv4/conf/{device}/rp_filter")
    return f"{why}, and the way back to {peer} is another: sysctl -w {own}=2"


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a container bridge has to fit: the networks, what is leased to us of them, the MTU in bytes; our own devices."""

    networks: tuple[IPNetwork, ...]
    leased: tuple[IPNetwork, ...]
    mtu: int
    devices: frozenset[str] = frozenset()

    def serves(self, interface: Interface) -> bool:
        """True where an interface has an address in our subnet, as the bridge of our containers has."""
        return interface.name not in self.devices and any(_within(held.address, self.leased) for held in interface.addresses)


def bridges_astray(bridges: Iterable[Interface], overlay: Overlay) -> tuple[dict[str, str], dict[str, str]]:
    """Bridges with an address of the overlay that is another host's, or of more than our subnet: to their containers the others are
    on the bridge. And Docker's, where nothing here is in our subnet at all.

    Of interfaces by other names nothing is said: one with an address inside of the networks may be the host's own way out.
    """
    wrong, elsewhere = dict[str, str](), dict[str, str]()
    bridges, ours = list(bridges), " and ".join(map(str, overlay.leased))
    served = any(overlay.serves(bridge) for bridge in bridges)
    for bridge in (one for one in bridges if one.name in BRIDGES):
        held = [one for one in bridge.addresses if not one.address.is_link_local()]
        text = " and ".join(f"{one.address}/{one.prefixlen}" for one in held)
        astray = [one for one in held if _within(one.address, overlay.networks) and not _within(one.address, overlay.leased)]
        said = f"{bridge.name} has {text or 'no address'}, this host's subnet is {ours}"
        docker = bridge.name == "docker0"
        mend = "systemctl restart docker" if docker else f"ip link del {bridge.name}, and start its containers anew"
        by_options = f"flannelpy docker-opts, then {mend}" if docker else mend
        if astray:
            wrong[bridge.name] = f"{said}: {mend}"
        elif any(one.address in net and one.prefixlen < net.prefixlen for one in held for net in overlay.leased):
            wrong[bridge.name] = f"{said}: {by_options}"
        elif not served and docker and held:
            elsewhere[bridge.name] = f"{said}: {by_options}"
    return wrong, elsewhere


def bridges_down(bridges: Iterable[Interface], overlay: Overlay) -> dict[str, str]:
    """Bridges of our containers that somebody has switched off. One without a port has no carrier, and is up all the same."""
    return {
        bridge.name: f"{bridge.name} is switched off: ip link set {bridge.name} up"
        for bridge in bridges
        if not bridge.up and overlay.serves(bridge)
    }


def mtus_too_large(bridges: Iterable[Interface], overlay: Overlay) -> dict[str, str]:
    """Bridges of our containers that promise them more bytes than the overlay carries. One without a port promises nothing yet."""
    return {
        bridge.name: f"{bridge.name} has MTU {bridge.mtu}, the overlay {overlay.mtu}: ip link set {bridge.name} mtu {overlay.mtu}, "
        "and give the containers the MTU of the subnet file (flannelpy docker-opts)"
        for bridge in bridges
        if bridge.running and overlay.serves(bridge) and bridge.mtu > overlay.mtu > 0
    }


def _within(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(net.version == address.version and address in net for net in networks)
