"""Do other hosts' packets get in? What the host's own rules say to each port and protocol of the backend, and who has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from netaddr import IPAddress

from flannelpy.commands.doctor.about import About
from flannelpy.commands.doctor.host import chosen
from flannelpy.core.entrances import Entrance, let_in
from flannelpy.core.filter_match import UDP, Packet
from flannelpy.core.firewall_drops import SYMMETRIC
from flannelpy.core.host_facts import Interface
from flannelpy.core.packet_filter import Hook, Ruleset, judge
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.host.ike import left
from flannelpy.host.ports import holder

_HOOKS: tuple[Hook, ...] = ("prerouting", "input")


async def incoming(about: About) -> AsyncIterator[Finding]:
    """Whether the host's own rules let in what peers send, by each family: the first peer, or else a neighbour."""
    held = about.entrances
    if not held:
        yield Finding("incoming", SKIPPED, _none(about))
        return
    name = await chosen(about)
    uplink = next((one for one in (await about.kernel.facts()).interfaces if one.name == name), None)
    if uplink is None:
        yield Finding("incoming", SKIPPED, "no uplink yet")
    elif uplink.loopback:
        yield Finding("incoming", SKIPPED, f"by which link packets come to an address of {name} is not known")
    else:
        rules = await about.kernel.foreign_rules()
        for entrance in held:
            for finding in _looks(about, rules, uplink, entrance):
                yield finding


def _looks(about: About, rules: Ruleset, uplink: Interface, entrance: Entrance) -> Iterator[Finding]:
    ends = [(own, family) for family in entrance.families if (own := about.address_of(uplink, family)) is not None]
    if not ends:
        families = " or ".join(f"IPv{family}" for family in entrance.families)
        yield Finding("incoming", SKIPPED, f"{entrance} comes by {families}, of which {uplink.name} has no address")
    for own, family in ends:
        if entrance.openly and _public(about, family) not in (None, own):
            yield Finding("incoming", SKIPPED, f"{entrance} is not used: this host is behind NAT")
            continue
        yield _judged(about, rules, entrance, Packet(_peer(about, own), own, uplink.name, "", entrance.protocol, entrance.port))


def _judged(about: About, rules: Ruleset, entrance: Entrance, packet: Packet) -> Finding:
    """Of what may be an answer, too: dropped is only what is dropped as such as well."""
    what = f"{entrance} from {packet.source} on {packet.arrives}"
    rulings = [judge(rules, hook, packet) for hook in _HOOKS]
    dropped = next((one.dropped for one in rulings if one.dropped), "")
    doubts = [doubt for one in rulings for doubt in one.doubts]
    if not dropped and not doubts:
        return Finding("incoming", OK, f"{what} is let in")
    remedy = let_in(rules, dropped or doubts[0], packet.arrives, entrance, packet.version)
    if not dropped:
        return Finding("incoming", WARNING, f"{what} may be dropped by {doubts[0]}", remedy)
    answer = replace(packet, states=SYMMETRIC)
    if entrance.answers and not any(judge(rules, hook, answer).dropped for hook in _HOOKS):
        said = f"{what} is dropped by {dropped}, but for a while after this host itself has sent there"
        return Finding("incoming", WARNING, said, remedy)
    if entrance in about.spare:
        return Finding("incoming", WARNING, f"{what} is dropped by {dropped}: what Prefer names for it is not used", remedy)
    said = f"{what} is dropped by {dropped}: no packet of the overlay comes in"
    return Finding("incoming", WARNING if about.preflight else FAILED, said, remedy)


def _public(about: About, version: int) -> IPAddress | None:
    """What peers are told to send to; None where that is not known."""
    asked = about.settings.public_ip if version == 4 else about.settings.public_ipv6
    lease = None if about.status is None else about.status.lease
    told = "" if lease is None else lease.public_ip if version == 4 else lease.public_ipv6
    return _address(told) or asked


def _peer(about: About, own: IPAddress) -> IPAddress:
    for peer in () if about.status is None else about.status.peers:
        if address := _address(peer.public_ip if own.version == 4 else peer.public_ipv6):
            return address
    return IPAddress(int(own) ^ 1, own.version)


def _address(text: str | None) -> IPAddress | None:
    """One that somebody has: of a network without IPv4, PublicIP is 0.0.0.0."""
    found = IPAddress(text) if text else None
    return found if found is not None and int(found) else None


def _none(about: About) -> str:
    if about.backend is None:
        return about.unknown
    return f"{about.backend.name} names no port or protocol: its packets come as they are, or by a way of its own"


async def port(about: About) -> AsyncIterator[Finding]:
    """Whether the overlay's UDP ports are free; where an agent runs, it has them, or says who else."""
    held = [each for each in about.entrances if each.protocol == UDP]
    if about.status is not None:
        yield Finding("port", SKIPPED, "the running agent has it")
        return
    if not held:
        others = " and ".join(map(str, about.entrances))
        yield Finding("port", SKIPPED, f"no UDP port: it is {others}, which nobody else can take" if others else _none(about))
        return
    there = {one.name for one in (await about.kernel.facts()).interfaces}
    for number in dict.fromkeys(each.port for each in held):
        mine = [each for each in held if each.port == number]
        who = await asyncio.to_thread(holder, number)
        ours = any(each.device in there for each in mine) if who else False
        daemon = await asyncio.to_thread(left, about.settings.run_dir) if who and not ours else None
        if daemon is not None and who.startswith(f"process {daemon} "):
            yield Finding("port", OK, f"UDP port {number} is our own charon's")
        elif who and not ours:
            stop = "; ".join(dict.fromkeys(f"stop it, or set Backend.{each.option}" if each.option else "stop it" for each in mine))
            yield Finding("port", FAILED, f"UDP port {number} is taken by {who}", f"ss -lunp 'sport = :{number}'; {stop}")
        else:
            yield Finding("port", OK, f"UDP port {number} is {'our device' + chr(39) + 's' if who else 'free'}")
