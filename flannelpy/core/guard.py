"""Who may send encapsulated packets to this host, and what may be in them? Source validation, for every backend by one rule.

What flannel carries legitimately must pass by default: where nobody masquerades, a remote host's own address, a client that another
host routes into the overlay, and what a NodePort forwards are inner sources outside the Network. core.backend.SourceRule.

Raw payload is matched after the outer packet was reassembled (the input hook comes behind that), so no piece slips by; and whatever
is too short to have an address is dropped, because each rule lets in what fits and the last one drops. Sources that are the host's
own, and martians, are the kernel's to drop: its device has no accept_local. In a packet that the kernel has aggregated (GRO) the
headers are those of the first, and all its parts are of one flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from flannelpy.core.backend import Guard, GuardedPort
from flannelpy.core.model import NO_ADDRESS, Lease
from flannelpy.core.objects import HostState, NftElement, NftSet

_FAMILY = {4: "ip", 6: "ip6"}
_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_SOURCE = {4: 12, 6: 8}
"""Bytes from the beginning of an IP header to its source; the destination follows."""
_ETHERTYPE = {4: 0x800, 6: 0x86DD}
_ARP = 0x806

COUNTERS = ("outer_source", "inner_protocol", "inner_destination", "inner_source")
"""Why a packet was dropped, in the order in which it is looked at."""


@dataclass(frozen=True, slots=True)
class Side:
    """One family of the overlay on this host: the whole ``network``, our ``own`` subnet, the ``length`` that subnets have, and
    which ``others`` peers' have.
    """

    network: IPNetwork
    own: IPNetwork
    length: int
    others: tuple[int, ...] = ()

    @property
    def version(self) -> int:
        return int(self.network.version)


MOST_STRANGERS = 64
MOST_REFUSED = 1024
"""Addresses whose dropped packets are counted apart, strangers' for an hour after the last; those of more are in the sums only."""

_COUNTING = {
    "strangers": f"size {MOST_STRANGERS}\nflags dynamic,timeout\ntimeout 1h",
    "refused": f"size {MOST_REFUSED}\nflags dynamic",
}


def strangers(version: int) -> str:
    """The set of who was no peer, and of how many packets of each were dropped."""
    return f"strangers{version}"


def refused(version: int) -> str:
    """The same of peers."""
    return f"refused{version}"


class Sets:
    """What the sets of a guard are called, in the table ``table``. A name says what is in it: one of two kinds is two sets."""

    def __init__(self, guard: Guard, table: str) -> None:
        self._guard = guard
        self._table = table

    def hosts(self, version: int) -> str:
        """Outer sources of peers."""
        return f"hosts{version}"

    def pairs(self, version: int, length: int) -> str:
        """A peer's address with the first ``length`` bits of what it may send as: one look-up of a hash, however many peers."""
        return f"{self._guard.port.name}{version}_{length}"

    def made(self, sides: list[Side]) -> Iterator[NftSet]:
        """The sets themselves."""
        for side in sides:
            version = side.version
            yield NftSet(self._table, self.hosts(version), f"type {_ADDRESS[version]}")
            for name in _reported(self._guard):
                yield NftSet(self._table, f"{name}{version}", f"type {_ADDRESS[version]}\n{_COUNTING[name]}")
            if self._guard.rule == "peers":
                continue
            for length in sorted({side.length, *_asked_later(self._guard, side)}):
                yield NftSet(self._table, self.pairs(version, length), f"typeof {_pair(self._guard, version, _read(length))}")


def guard_sets(guard: Guard, table: str, sides: list[Side]) -> HostState:
    """The sets that the rules ask."""
    return HostState.from_iterable(Sets(guard, table).made(sides))


def guard_chains(guard: Guard, sides: list[Side]) -> list[str]:
    """Counters and chains, as nft prints them; each without the line between them."""
    return guards_chains([(guard, sides)])


def guards_chains(guards: Sequence[tuple[Guard, list[Side]]]) -> list[str]:
    """The same of several guards, each with its sides: counters are shared, and so is who is counted apart."""
    parts = [f"\tcounter {name} {{\n\t}}\n" for name in COUNTERS] if guards else []
    counted = set[str]()
    for number, (guard, sides) in enumerate(guards):
        lead = f"{guard.port.name}_" if number else ""
        rules = [rule for side in sides for rule in _sort(guard, side, f"{lead}guard{side.version}")]
        parts.append(chain(f"{lead}guard", ["type filter hook input priority filter - 10; policy accept;", *rules]))
        for side in sides:
            for name in _reported(guard):  # behind a full set the rest of its rule is not looked at: the drop is one of its own
                where = f"{name}{side.version}"
                if where not in counted:
                    counting = f"update @{where} {{ {_FAMILY[side.version]} saddr counter }}"
                    parts.append(chain(where, [counting, "drop"]))
                counted.add(where)
            parts.append(chain(f"{lead}guard{side.version}", list(_judge(guard, side, lead))))
            if guard.rule != "peers":
                parts.append(chain(f"{lead}guard{side.version}_source", list(_judge_source(guard, side))))
    return parts


def _sort(guard: Guard, side: Side, judge: str) -> Iterator[str]:
    """What most packets to the port are is let in by one look-up and no jump; of another VNI it would be, too. The rest is judged.

    The port comes first: the kernel reads it in its loop over the rules, and every packet to this host, from inside the overlay as
    well, comes by here.
    """
    version, port = side.version, guard.port
    to_port = f"th dport {port.number} meta l4proto 17" if port.datagram else ""
    if guard.rule != "peers":
        frame = "" if port.ethertype is None else f" @th,{8 * port.ethertype},16 0x{_ETHERTYPE[version]:x}"
        arrives = f"{to_port}{frame}" if port.datagram else _protocol(port, version)
        yield f"{arrives} {_inside(_destination(port, version), side.own)} {_look_up(guard, version, side.length)} accept"
    vni = "" if port.vni is None else f" @th,96,24 0x{port.vni:x}"
    arrives = f"{to_port} meta nfproto ipv{version}{vni}" if port.datagram else _protocol(port, version)
    yield f"{arrives} jump {judge}"


def _protocol(port: GuardedPort, version: int) -> str:
    """As nft prints it, with numbers of protocols instead of names."""
    return f"{_FAMILY[version]} {'protocol' if version == 4 else 'nexthdr'} {port.number}"


def _destination(port: GuardedPort, version: int) -> int:
    """Bytes from behind the outer IP header to the inner destination."""
    return port.inner + _SOURCE[version] + _width(version) // 8


def guard_elements(guard: Guard, table: str, sides: list[Side], lease: Lease) -> HostState:
    """What lets this peer in."""
    sets, found = Sets(guard, table), list[NftElement]()
    for side in sides:
        version = side.version
        outer, subnet = (lease.public_ip, lease.subnet) if version == 4 else (lease.attrs.public_ipv6, lease.subnet6)
        if outer is None or outer == NO_ADDRESS or subnet is None or not subnet.prefixlen:
            continue
        host = _packed(outer)
        found.append(NftElement(table, sets.hosts(version), host))
        if guard.rule == "peers":
            continue
        first = _bytes(subnet.first, version)
        size = _read(subnet.prefixlen) // 8
        found.append(NftElement(table, sets.pairs(version, subnet.prefixlen), host + _padded(first[:size])))
        if guard.rule == "strict" and outer not in side.network:
            found.append(NftElement(table, sets.pairs(version, _width(version)), host + host))
    return HostState.from_iterable({item.key: item for item in found}.values())


def _judge(guard: Guard, side: Side, lead: str) -> Iterator[str]:
    version, port = side.version, guard.port
    yield f"{_FAMILY[version]} saddr != @{Sets(guard, '').hosts(version)} {_drop('outer_source', strangers(version))}"
    if guard.rule == "peers":
        return
    if port.ethertype is not None:
        if version == 4:
            yield f"@th,{8 * port.ethertype},16 0x{_ARP:x} return"
        yield f"@th,{8 * port.ethertype},16 != 0x{_ETHERTYPE[version]:x} {_drop('inner_protocol', refused(version))}"
    yield f"{_inside(_destination(port, version), side.own)} goto {lead}guard{version}_source"
    if version == 6 and port.ethertype is not None:  # a neighbour solicitation or advertisement is IPv6's ARP
        yield f"@th,{8 * (port.inner + 6)},8 0x3a @th,{8 * (port.inner + 40)},8 0x87-0x88 return"
    yield _drop("inner_destination", refused(version))


def _judge_source(guard: Guard, side: Side) -> Iterator[str]:
    version = side.version
    if guard.rule == "default":
        yield f"{_inside(guard.port.inner + _SOURCE[version], side.network, '!= ')} return"
    for length in _asked_later(guard, side):
        yield f"{_look_up(guard, version, length)} return"
    yield _drop("inner_source", refused(version))


def _asked_later(guard: Guard, side: Side) -> list[int]:
    """Lengths of what peers may send as, beside the one that is asked for first: a set of ranges would be asked once, but of what
    goes out of one the kernel takes milliseconds to find the place, the longer the more there is (nft_set_pipapo).
    """
    whole = {_width(side.version)} if guard.rule == "strict" else set[int]()
    return sorted({*side.others, *whole} - {side.length}, reverse=True)


def _look_up(guard: Guard, version: int, length: int) -> str:
    return f"{_pair(guard, version, _read(length))}{_mask(length)} @{Sets(guard, '').pairs(version, length)}"


def _drop(reason: str, where: str) -> str:
    return f'counter name "{reason}" goto {where}'


def _reported(guard: Guard) -> tuple[str, ...]:
    """Whose drops are counted apart: by the rule ``peers`` nobody is refused but strangers."""
    return ("strangers",) if guard.rule == "peers" else ("strangers", "refused")


def _read(length: int) -> int:
    """Bits that are read for the first ``length`` of an address: raw payload is read in whole bytes, and masked in whole words."""
    return length if length % 8 == 0 else -(-length // 32) * 32


def _mask(length: int) -> str:
    """What is left of these bits, where it is not all of them."""
    return "" if length % 8 == 0 else f" & 0x{(1 << length) - 1 << _read(length) - length:x}"


def _pair(guard: Guard, version: int, length: int) -> str:
    return f"{_FAMILY[version]} saddr . @th,{8 * (guard.port.inner + _SOURCE[version])},{length}"


def _inside(at: int, net: IPNetwork, sign: str = "") -> str:
    """An address ``at`` so many bytes behind the outer IP header lies in ``net``; as nft prints it."""
    if net.prefixlen and not net.prefixlen % 8:
        return f"@th,{8 * at},{net.prefixlen} {sign}0x{net.first >> (_width(net.version) - net.prefixlen):x}"
    return f"@th,{8 * at},{_width(net.version)} {sign}0x{net.first:x}-0x{net.last:x}"


def _width(version: int) -> int:
    return 32 if version == 4 else 128


def _packed(address: IPAddress) -> bytes:
    return _bytes(int(address), address.version)


def _bytes(value: int, version: int) -> bytes:
    """An address as the kernel has it."""
    return value.to_bytes(_width(version) // 8, "big")


def _padded(value: bytes) -> bytes:
    """In words of four bytes, as the kernel keeps a part of a key."""
    return value + bytes(-len(value) % 4)


def chain(name: str, lines: list[str]) -> str:
    """A chain as nft prints it."""
    return "\n".join([f"\tchain {name} {{", *(f"\t\t{line}" for line in lines), "\t}"]) + "\n"
