"""What happens to a packet of a container of this host, hop by hop, and what stops it first? Values, and how each hop is judged.

Each judgement takes what was asked of the kernel, and answers in words that end in a command where something is in the way.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from netaddr import IPAddress, IPNetwork

from flannelpy.core.forwarding import Hindrance
from flannelpy.core.host_diagnosis import FORWARDING, Overlay, bridges_astray, dotted, mtus_too_large
from flannelpy.core.host_facts import Interface
from flannelpy.core.lookup import FILTERED, Found, detour, goes, ip, mend_outer, undo
from flannelpy.core.objects import Route
from flannelpy.core.packet_filter import Ruling

State = Literal["passes", "note", "large", "stops", "unknown"]
"""note: it passes, and something is worth a look; large: only small packets pass; unknown: it could not be found out."""

Outcome = Literal["passes", "large", "stopped", "unknown"]


@dataclass(frozen=True, slots=True)
class Hop:
    """What was looked at (``name``), what becomes of the packet there, and in words; ``remedy``: a command; ``mtu``: the largest
    packet that it passes whole, in bytes, 0 where that is no question. ``shared``: what this host sends itself passes here, too.
    """

    name: str
    state: State
    said: str
    remedy: str = ""
    mtu: int = 0
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Journey:
    """From where to where, whose host that is (empty: this one), and the hops in their order."""

    source: IPAddress
    destination: IPAddress
    peer: str
    hops: tuple[Hop, ...]

    @property
    def stop(self) -> Hop | None:
        """The first that stops it; else the first that stops large packets."""
        for state in ("stops", "large"):
            for hop in self.hops:
                if hop.state == state:
                    return hop
        return None

    @property
    def outcome(self) -> Outcome:
        """What is to be said of it all."""
        states = {hop.state for hop in self.hops}
        return "stopped" if "stops" in states else "unknown" if "unknown" in states else "large" if "large" in states else "passes"


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back from whom: ``small`` and ``full`` packets to the destination, through the overlay to its host, and beside it.

    True, False, or None where it was not asked; ``rtt_s``: of the destination's answer; ``carries``: what the way is known to
    carry, in bytes, where that is less than was sent; ``size``: of a full packet; ``error``: what this host's kernel said to it.
    """

    small: bool | None = None
    full: bool | None = None
    host: bool | None = None
    beside: bool | None = None
    rtt_s: float | None = None
    carries: int = 0
    size: int = 0
    error: str = ""


# ------------------------------------------------------------------------------------------------------------- this host


def bridge_hop(interfaces: Sequence[Interface], overlay: Overlay, source: IPAddress) -> tuple[Hop, Interface | None]:
    """The bridge that has the source's subnet, and whether it is up."""
    serving = [one for one in interfaces if overlay.serves(one) and one.addresses]
    bridge = next((one for one in serving if _covers(one, source)), serving[0] if serving else None)
    if bridge is None:
        stale, elsewhere = bridges_astray([one for one in interfaces if one.name not in overlay.devices], overlay)
        text = next(iter({**stale, **elsewhere}.values()), "")
        said, _, remedy = text.rpartition(": ") if text else ("", "", "")
        subnets = " and ".join(map(str, overlay.leased))
        said = said or f"no interface has an address in {subnets}: there is no bridge for containers"
        return Hop("bridge", "stops", said, remedy or "flannelpy docker-opts, then systemctl restart docker"), None
    if not bridge.up:
        return Hop("bridge", "stops", f"{bridge.name} is down", f"ip link set {bridge.name} up", bridge.mtu), bridge
    if large := mtus_too_large([bridge], overlay):
        said, _, remedy = next(iter(large.values())).rpartition(": ")
        return Hop("bridge", "note", said, remedy, bridge.mtu), bridge
    if not bridge.running:
        return Hop("bridge", "note", f"{bridge.name} is up, and no container is plugged into it", mtu=bridge.mtu), bridge
    return Hop("bridge", "passes", f"{bridge.name}, {_held(bridge)}", mtu=bridge.mtu), bridge


def forwarding_names(version: int, devices: Iterable[str]) -> list[str]:
    """The settings that ``forwarding_hop`` wants to know."""
    alone = [f"net/ipv4/conf/{device}/forwarding" for device in devices] if version == 4 else []
    return [FORWARDING[version], *alone]


def forwarding_hop(settings: Mapping[str, str], version: int, devices: Iterable[str]) -> Hop:
    """Whether the kernel forwards what comes in by these devices."""
    off = [name for name in forwarding_names(version, devices) if settings.get(name) == "0"]
    if off:
        name = dotted(off[0])
        return Hop("forwarding", "stops", f"{name} is 0: this host forwards nothing that comes in there", f"sysctl -w {name}=1")
    return Hop("forwarding", "passes", f"{dotted(FORWARDING[version])} is 1")


def route_hop(wanted: Route | None, found: Found, plain: Found, whose: str, mtu: int, rule: str = "", why: str = "") -> Hop:
    """The look-up as a container sends it, and as this host does (``plain``). ``wanted``: the route that should decide, None where
    none is there, and the agent says ``why``; ``rule``: the policy rule that decides in its place, where there is one.
    """
    if found.code in FILTERED and wanted is not None and wanted.dst.version == 4 and not plain.code and not rule:
        said = "the kernel drops what comes from there: the way back to its source is another (rp_filter)"
        return Hop("route", "stops", said, "sysctl -a -r rp_filter; ip route get SOURCE")
    if wanted is None:
        if not found.code:
            said = f"no route of ours leads to {whose}: it goes by {found}, outside of the overlay"
        else:
            said = f"no route leads to {whose} ({errno.errorcode.get(found.code, str(found.code))})"
        if why:
            return Hop("route", "stops", f"{said}; the agent has left it out: {why}", "flannelpy status --peers")
        return Hop("route", "stops", said, "flannelpy plan; systemctl restart flannelpy")
    if not goes(wanted, found):
        said, remedy = _cut(detour(wanted, found, whose, rule)[1])
        return Hop("route", "stops", said, remedy)
    return Hop("route", "passes", str(found), mtu=mtu)


def filtered_hop(device: str, address: IPAddress) -> Hop:
    """The reverse path filter of ``device`` takes nothing from ``address``."""
    own = dotted(f"net/ipv4/conf/{device}/rp_filter")
    said = f"{device} drops what comes from {address}: an answer would leave by another way (rp_filter)"
    return Hop("way back", "stops", said, f"sysctl -w {own}=2", shared=True)


def back_hop(found: Found, bridge: str, device: str, source: IPAddress, length: int, rule: str = "") -> Hop:
    """The way of an answer from ``device`` to the container; ``length``: of the prefix that is behind ``bridge``; ``rule``: as for
    the route.
    """
    if rule:
        where = "nowhere" if found.code else f"by {found} of table {found.table}"
        said = f"an answer to {source} goes {where}, not to {bridge}, for a policy rule says so"
        return Hop("way back", "stops", said, f"{ip(source.version)} rule del {rule}")
    if found.code in FILTERED and source.version == 4:
        own = dotted(f"net/ipv4/conf/{device}/rp_filter")
        said = f"{device} drops what comes from there: its answer would leave by another way (rp_filter)"
        return Hop("way back", "stops", said, f"sysctl -w {own}=2")
    if found.code:
        said = f"an answer to {source} goes nowhere from {device} ({errno.errorcode.get(found.code, str(found.code))})"
        return Hop("way back", "stops", said, f"{ip(source.version)} rule show; ip route get {source}")
    if found.dev not in ("", bridge):
        mend = undo(found, length, f"ip link set {bridge} up; ip route get {source}")
        return Hop("way back", "stops", f"an answer to {source} goes by {found}, not to {bridge}", mend)
    return Hop("way back", "passes", f"{source} is behind {bridge}")


def outer_hop(found: Found, address: IPAddress, uplink: str, ours: frozenset[str], *, bound: bool, rule: str = "") -> Hop:
    """The way of the encapsulated packet. ``bound``: its device is to send by the uplink; ``rule``: as for the route."""
    if found.code:
        said = f"no way to {address} ({errno.errorcode.get(found.code, str(found.code))})"
        said += ", for a policy rule says so" if rule else ""
        return Hop(
            "outer route",
            "stops",
            said,
            f"{ip(address.version)} rule del {rule}" if rule else f"ip route get {address}",
            shared=True,
        )
    if found.dev in ours:
        said = f"{address} itself is reached by {found}: the overlay's packets go in circles"
        mend = f"{ip(address.version)} rule del {rule}" if rule else mend_outer(found, address, uplink, ours)
        return Hop("outer route", "stops", said, mend, shared=True)
    if bound and uplink and found.dev not in ("", uplink):
        said = f"{address} is reached by {found}, not by the uplink {uplink}"
        mend = f"{ip(address.version)} rule del {rule}" if rule else mend_outer(found, address, uplink, ours)
        return Hop("outer route", "stops", said, mend, shared=True)
    return Hop("outer route", "passes", f"{address} by {found}", shared=True)


def uplink_hop(uplink: Interface | None, name: str, needed: int) -> Hop:
    """The interface that it leaves by. ``needed``: bytes of a full packet with all that is put around it."""
    if uplink is None:
        return Hop("uplink", "stops", f"there is no {name}", "ip link show", shared=True)
    if not uplink.up:
        return Hop("uplink", "stops", f"{name} is down", f"ip link set {name} up", uplink.mtu, shared=True)
    if not uplink.running:
        return Hop("uplink", "stops", f"{name} has no carrier: is its cable plugged in?", f"ethtool {name}", shared=True)
    if needed > uplink.mtu:
        said = f"{name} carries {uplink.mtu} bytes, a full packet takes {needed}: it is cut into pieces, or lost"
        return Hop("uplink", "note", said, "lower Backend.MTU: flannelpy config put FILE", uplink.mtu, shared=True)
    return Hop("uplink", "passes", name, mtu=uplink.mtu, shared=True)


def firewall_hop(name: str, small: Sequence[Ruling], full: Sequence[Ruling], *, shared: bool = False) -> Hop:
    """What the rules say of a small and of a full packet, at one or several hooks."""
    for state, rulings in (("stops", small), ("large", full)):
        for ruling in rulings:
            if not ruling.dropped:
                continue
            which = "it" if state == "stops" else "full packets"
            said, remedy = f"{ruling.dropped} drops {which}", ruling.remedy
            if ruling.ours:
                said, remedy = f"our own guard does not let {which} in: is the peer's lease another?", "flannelpy status --peers"
            return Hop(name, "stops" if state == "stops" else "large", said, remedy, shared=shared)
    doubts = [doubt for ruling in (*small, *full) for doubt in ruling.doubts]
    if doubts:
        said = f"may be dropped, which cannot be told from here: {doubts[0]}"
        return Hop(name, "note", said, "nft monitor trace", shared=shared)
    return Hop(name, "passes", "no rule drops it", shared=shared)


def hindered(hindrances: Iterable[Hindrance], network: IPNetwork) -> str:
    """Chains of hook forward that drop what no rule of theirs lets through, in words: where the rules themselves are not known."""
    found = [one for one in hindrances if one.why and one.concerns(network) and not one.speaks_of(network)]
    return "; ".join(f"{one.chain} of {one.table} ({one.why})" for one in found)


# -------------------------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True, slots=True)
class Muted:
    """What this host's firewall does to its own small and full echo requests, and to the answers."""

    small: Ruling | None = None
    full: Ruling | None = None


NOT_MUTED = Muted()


def answer_hop(answers: Answers, destination: IPAddress, host: str, port: str, why: str = "", muted: Muted = NOT_MUTED) -> Hop:
    """What echo requests of this host have brought back. ``host``: the peer's PublicIP; ``why``: what the agent says of it."""
    mute = muted.small if answers.small is False else muted.full if answers.full is False and not answers.carries else None
    if mute is not None and mute.dropped:
        if answers.small:
            said = f"{destination} answers; this host's own large requests are dropped here: {mute.dropped}"
            return Hop("answer", "note", said, mute.remedy)
        said = f"this host's own echo requests are dropped here, so that nobody can be asked: {mute.dropped}"
        return Hop("answer", "unknown", said, mute.remedy)
    if answers.small is None:
        return Hop("answer", "unknown", answers.error or "not asked")
    if answers.small:
        took = "" if answers.rtt_s is None else f" in {answers.rtt_s * 1000:.1f} ms"
        if answers.carries and answers.carries < answers.size:
            said = f"{destination} answers{took}; the way carries {answers.carries} bytes, not {answers.size}, and senders are told"
            return Hop("answer", "large", said, f"ip route get {destination}; lower Backend.MTU", answers.carries)
        if answers.full is False:
            said = f"{destination} answers{took}, but packets of {answers.size} bytes are lost on the way, and nobody tells"
            return Hop("answer", "large", said, f"tracepath -n {host}; lower Backend.MTU" if host else "lower the bridge's MTU")
        return Hop("answer", "passes", f"{destination} answers{took}, full packets, too", mtu=answers.size)
    if not host:
        return Hop("answer", "stops", f"{destination} does not answer: is there such a container?", f"ip neigh show {destination}")
    if answers.host:
        said = f"its host answers through the overlay, {destination} does not: is that container there, and does {host} forward?"
        return Hop("answer", "stops", said, f"on {host}: flannelpy doctor")
    if answers.error:
        return Hop("answer", "stops", answers.error, f"ip route get {destination}")
    if why:
        return Hop("answer", "stops", f"{host}: {why}", f"on {host}: flannelpy doctor")
    if answers.beside:
        said = f"{host} answers, but not through the overlay: {port} is dropped there, here or between"
        return Hop("answer", "stops", said, f"on {host}: flannelpy doctor; tcpdump -ni any {_dump(port)}")
    return Hop("answer", "stops", f"{host} does not answer either: it is down, or the network between", f"ping {host}")


def _dump(port: str) -> str:
    """What tcpdump is to show."""
    words = port.lower().split()
    return f"udp port {words[1]}" if len(words) == 2 and words[0] == "udp" else "icmp"


def settled(hops: Iterable[Hop], answered: bool) -> tuple[Hop, ...]:
    """Where an answer has come, nothing that this host's own packets pass can have stopped them, whatever it looked like."""
    return tuple(
        replace(hop, state="note", said=f"{hop.said} (answers come all the same)")
        if answered and hop.shared and hop.state in ("stops", "unknown")
        else hop
        for hop in hops
    )


def _covers(interface: Interface, address: IPAddress) -> bool:
    return any(
        held.address.version == address.version and address in IPNetwork(f"{held.address}/{held.prefixlen}")
        for held in interface.addresses
    )


def _held(interface: Interface) -> str:
    return " and ".join(f"{held.address}/{held.prefixlen}" for held in interface.addresses if not held.address.is_link_local())


def _cut(text: str) -> tuple[str, str]:
    """What is said, and the command behind it, which may hold colons."""
    said, remedy = [*re.split(r"(?<!:): ", text, maxsplit=1), ""][:2]  # what ends in two colons is an address
    return said, remedy
