"""What should the kernel hold? FOU ports, links, addresses, sysctls, neighbours, FDB entries, nexthops, routes, one nft table;
peers of WireGuard (``core.wireguard``), policies of IPsec (``core.xfrm``).

The table's sets and their elements are objects of their own: a peer that comes is an element more, and the table stays as it is.

Each object has a key (what the kernel would replace: two objects with one key cannot both exist) and a voice (``str``: as an
operator would type it after ``ip link add``, ``ip route add`` and so on). A ``HostState`` is a set of them. Objects that there are
thousands of make their key once and keep it: every book of the reconciler has an entry under it.
The same types say what is desired and what was observed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from netaddr import IPAddress, IPNetwork

from flannelpy.core.forward_accept import ForwardAccept as ForwardAccept
from flannelpy.core.key import Key as Key
from flannelpy.core.wireguard import Wireguard as Wireguard
from flannelpy.core.wireguard import WireguardDevice as WireguardDevice
from flannelpy.core.wireguard import WireguardPeer as WireguardPeer
from flannelpy.core.xfrm import XfrmPolicy as XfrmPolicy

ROUTE_PROTOCOL = 102
"""Our mark on routes (rtnetlink(7) rtm_protocol, ``ip route`` shows ``proto 102``): a fresh process knows its own by it."""

BOOT_PROTOCOL = 3
"""What flanneld and a bare ``ip route add`` leave (RTPROT_BOOT)."""


def _equals(self: Object, observed: Object) -> bool:
    """True where what was observed under the same key is as good as this."""
    return self == observed


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The properties of a vxlan device that are its own. ``dev``, ``local`` (to one of the same family) and ``learning`` can be
    changed in place, the others not.

    ``port`` is the UDP destination port, always explicit (the kernel's own default is 8472).
    """

    kind: ClassVar[str] = "vxlan"

    vni: int
    dev: str
    local: IPAddress
    port: int = 8472
    learning: bool = False
    gbp: bool = False

    @property
    def fixed(self) -> tuple[int, int, bool, int]:
        """What no kernel changes in place."""
        return self.vni, self.port, self.gbp, self.local.version

    def __str__(self) -> str:
        words = [f"id {self.vni} dev {self.dev} local {self.local} dstport {self.port}"]
        words.append("learning" if self.learning else "nolearning")
        if self.gbp:
            words.append("gbp")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Ipip:
    """The properties of an ipip device, which sends each packet to whichever address the route says.

    ``local`` is the outer source. ``port`` 0: a packet is in nothing but an IP header. Else it is in a UDP datagram (FOU), and
    this is source and destination port alike; ``checksum``: the datagram has one, which is the one thing that can be changed in
    place. ``ttl`` is the outer one: with a fixed one the outer DF bit is always set (the kernel refuses ``nopmtudisc`` with it), so
    nothing is ever fragmented outside; with 0, flannel's, TTL and DF are those of the packet inside.
    """

    kind: ClassVar[str] = "ipip"

    local: IPAddress
    port: int = 0
    ttl: int = 64
    checksum: bool = False

    @property
    def fixed(self) -> tuple[IPAddress, int, int]:
        """What makes another device of it."""
        return self.local, self.port, self.ttl

    def __str__(self) -> str:
        ends = f"local {self.local} remote any ttl {self.ttl if self.ttl else 'inherit nopmtudisc'}"
        if not self.port:
            return ends
        return f"{ends} encap fou encap-sport {self.port} encap-dport {self.port}{' encap-csum' if self.checksum else ''}"


Detail = Vxlan | Ipip | Wireguard
"""What is a device's kind's own: ``kind`` is the kernel's link kind, ``fixed`` what no kernel changes in place."""


@dataclass(frozen=True, slots=True)
class Fou:
    """A UDP port at which the kernel takes the datagram's payload for a packet of ``ipproto`` (4: IPv4). ip-fou(8)."""

    noun: ClassVar[str] = "fou"

    port: int
    ipproto: int = 4

    @property
    def key(self) -> Key:
        return Key("fou", str(self.port))

    @property
    def lives_on(self) -> None:
        return None

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"port {self.port} ipproto {self.ipproto}"


@dataclass(frozen=True, slots=True)
class Link:
    """A network device that is ours. ``kind`` is the kernel's link kind; a ``tun`` is opened by its pump, only configured here.

    ``detail`` None: the kind has none, or it was observed and our words cannot say it.
    """

    noun: ClassVar[str] = "link"

    name: str
    kind: str
    mtu: int
    mac: str | None = None
    up: bool = True
    detail: Detail | None = None

    @property
    def key(self) -> Key:
        return Key("link", self.name)

    @property
    def lives_on(self) -> str:
        """Itself."""
        return self.name

    satisfied_by = _equals

    def must_be_remade(self, observed: Link) -> bool:
        """True where no kernel can change ``observed`` into this one in place."""
        return (self.kind, self.detail and self.detail.fixed) != (observed.kind, observed.detail and observed.detail.fixed)

    def __str__(self) -> str:
        words = [self.name]
        if self.mac:
            words.append(f"address {self.mac}")
        words.append(f"mtu {self.mtu} {'up' if self.up else 'down'} type {self.kind}")
        if self.detail is not None:
            words.append(str(self.detail))
        return " ".join(words).rstrip()


@dataclass(frozen=True, slots=True)
class Address:
    """An address on one of our devices. ``net`` keeps its host bits (``10.5.72.0/32``)."""

    noun: ClassVar[str] = "addr"

    net: IPNetwork
    dev: str

    @property
    def key(self) -> Key:
        return Key("addr", f"{self.net} dev {self.dev}")

    @property
    def lives_on(self) -> str | None:
        """The device that it vanishes with."""
        return self.dev

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"{self.net} dev {self.dev}"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting: ``name`` is the path below /proc/sys. Set, observed and repaired, never undone."""

    noun: ClassVar[str] = "sysctl"

    name: str
    value: str

    @property
    def key(self) -> Key:
        return Key("sysctl", self.name)

    @property
    def lives_on(self) -> str | None:
        """The device that a setting below net/ipv4/conf or net/ipv6/conf is of."""
        parts = self.name.split("/")
        return parts[3] if parts[:3] in (["net", "ipv6", "conf"], ["net", "ipv4", "conf"]) else None

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour (ARP or ND) entry on a device of ours: overlay gateway -> inner MAC."""

    noun: ClassVar[str] = "neigh"

    dst: IPAddress
    mac: str
    dev: str
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key("neigh", f"{self.dst} dev {self.dev}"))

    @property
    def lives_on(self) -> str | None:
        """The device that it vanishes with."""
        return self.dev

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"{self.dst} lladdr {self.mac} dev {self.dev} nud permanent"


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent forwarding entry of a vxlan device of ours: inner MAC -> outer address."""

    noun: ClassVar[str] = "fdb"

    mac: str
    dst: IPAddress
    dev: str
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key("fdb", f"{self.mac} dev {self.dev}"))

    @property
    def lives_on(self) -> str | None:
        """The device that it vanishes with."""
        return self.dev

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"{self.mac} dst {self.dst} dev {self.dev} self permanent"


@dataclass(frozen=True, slots=True)
class Nexthop:
    """A nexthop object (ip-nexthop(8)): a gateway and its device by a number, which routes name (``Route.nhid``). Whoever takes it
    away takes its routes along, of which the kernel does not tell.
    """

    noun: ClassVar[str] = "nexthop"

    id: int
    via: IPAddress
    dev: str
    onlink: bool = False
    proto: int = ROUTE_PROTOCOL
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key("nexthop", str(self.id)))

    @property
    def lives_on(self) -> str | None:
        """The device that it vanishes with."""
        return self.dev

    satisfied_by = _equals

    def __str__(self) -> str:
        words = [f"id {self.id} via {self.via} dev {self.dev}"]
        if self.onlink:
            words.append("onlink")
        if self.proto != ROUTE_PROTOCOL:
            words.append(f"proto {self.proto}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table. ``kind``: its type (ip-route(8)); ``link_scope``: scope link, IPv4 only; ``metric`` 0: none.

    ``nhid``: the nexthop object that carries it, 0 for none; gateway and device are then said by that, and are here for who reads.
    """

    noun: ClassVar[str] = "route"

    dst: IPNetwork
    via: IPAddress | None = None
    dev: str | None = None
    onlink: bool = False
    kind: str = "unicast"
    link_scope: bool = False
    proto: int = ROUTE_PROTOCOL
    metric: int = 0
    nhid: int = 0
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key("route", f"{self.dst} metric {self.metric}" if self.metric else str(self.dst)))

    @property
    def lives_on(self) -> str | None:
        """The device that it vanishes with."""
        return self.dev

    satisfied_by = _equals

    def carried_by(self, nhid: int) -> Route:
        """The same by a nexthop object; ten thousand at a start, so the key and all else is taken as it is."""
        made = object.__new__(Route)
        for name in Route.__slots__:
            object.__setattr__(made, name, nhid if name == "nhid" else getattr(self, name))
        return made

    def __str__(self) -> str:
        words = [str(self.dst)] if self.kind == "unicast" else [self.kind, str(self.dst)]
        if self.nhid:
            words.append(f"nhid {self.nhid}")  # ip takes the one or the other
        else:
            words += [f"via {self.via}"] if self.via is not None else []
            words += [f"dev {self.dev}"] if self.dev is not None else []
            words += ["onlink"] if self.onlink else []
        if self.link_scope:
            words.append("scope link")
        if self.proto != ROUTE_PROTOCOL:
            words.append(f"proto {self.proto}")
        if self.metric:
            words.append(f"metric {self.metric}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class NftTable:
    """Our one nft table (family inet): its chains and counters, replaced as a whole; its sets stay, which are ``NftSet``.

    ``body`` stands between its braces, as ``nft list`` prints it.
    """

    noun: ClassVar[str] = "nft"

    name: str
    body: str

    @property
    def key(self) -> Key:
        return Key("nft", self.name)

    @property
    def lives_on(self) -> None:
        return None

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"table inet {self.name} ({self.body.count(chr(10))} lines)"


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set of our table. ``spec``: its lines as ``nft list`` prints them, without elements. A name never has two specs.

    Where it is ``dynamic`` rules fill it, and its elements are nobody's to add, to remove or to look for.
    """

    noun: ClassVar[str] = "set"

    table: str
    name: str
    spec: str

    @property
    def key(self) -> Key:
        return Key("set", f"{self.table} {self.name}")

    @property
    def dynamic(self) -> bool:
        return "\nflags dynamic" in self.spec

    @property
    def lives_on(self) -> None:
        return None

    satisfied_by = _equals

    def __str__(self) -> str:
        spec = self.spec.replace("\n", "; ")
        return f"inet {self.table} {self.name} {{ {spec} }}"


@dataclass(frozen=True, slots=True)
class NftElement:
    """An element of a set of ours, as the kernel has it: an address, and behind it the beginning of another, each filled up to
    words of four bytes. ``last``: the other end of a range; no set of ours holds ranges, but one that an older version left.

    Two peers may ask for one and the same (they share an address behind NAT); it is there as long as one of them is.
    """

    noun: ClassVar[str] = "element"

    table: str
    set: str
    first: bytes
    last: bytes | None = None
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        last = "" if self.last is None else f"-{self.last.hex()}"
        object.__setattr__(self, "key", Key("element", f"{self.table} {self.set} {self.first.hex()}{last}"))

    @property
    def lives_on(self) -> None:
        return None

    satisfied_by = _equals

    def __str__(self) -> str:
        return f"inet {self.table} {self.set} {{ {self.words} }}"

    @property
    def words(self) -> str:
        """The two addresses."""
        width = 4 if len(self.first) <= 8 else 16
        start, rest = _dotted(self.first[:width]), self.first[width:]
        if not rest:
            return start
        end = "" if self.last is None else "-" + _dotted(self.last[width:].ljust(width, b"\0"))
        return f"{start} . {_dotted(rest.ljust(width, bytes(1)))}{end}"


def _dotted(address: bytes) -> str:
    return str(IPAddress(int.from_bytes(address, "big"), 4 if len(address) == 4 else 6))


SHARED = frozenset({"element"})
"""Kinds of objects that several may ask for: what has one key is one and the same."""

Object = (
    Fou
    | Link
    | Address
    | Sysctl
    | Neighbour
    | FdbEntry
    | Nexthop
    | Route
    | NftTable
    | NftSet
    | NftElement
    | ForwardAccept
    | WireguardDevice
    | WireguardPeer
    | XfrmPolicy
)

_EMPTY: Mapping[Key, Object] = {}


@dataclass(frozen=True, slots=True)
class HostState:
    """A set of kernel objects by key; a value. Fragments are added up with ``|``.

    ``incomplete`` is said of an observation that may lack something, because the kernel's tables moved below it all the time.
    """

    objects: Mapping[Key, Object] = field(default_factory=lambda: _EMPTY)
    incomplete: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, *objects: Object) -> HostState:
        """A state of exactly these. Raises ValueError where two claim one key."""
        return cls.from_iterable(objects)

    @classmethod
    def from_iterable(cls, objects: Iterable[Object]) -> HostState:
        """As ``of``, from any iterable."""
        found: dict[Key, Object] = {}
        for item in objects:
            if item.key in found:
                raise ValueError(f"two objects claim {item.key}")
            found[item.key] = item
        return cls(found)

    def __or__(self, other: HostState) -> HostState:
        objects = {**self.objects, **other.objects}
        if len(objects) < len(self.objects) + len(other.objects):
            raise ValueError(f"two objects claim {next(key for key in other.objects if key in self.objects)}")
        return HostState(objects)

    def only(self, keys: Iterable[Key]) -> HostState:
        """The part that carries these keys; keys that are not there are passed over."""
        return HostState({key: self.objects[key] for key in keys if key in self.objects})

    def get(self, key: Key) -> Object | None:
        return self.objects.get(key)

    def __iter__(self) -> Iterator[Object]:
        return iter(self.objects.values())

    def __len__(self) -> int:
        return len(self.objects)

    def __contains__(self, key: Key) -> bool:
        return key in self.objects


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look for what may be ours (docs/ownership.md). An observation holds, and only holds:

    - links named in ``links``, and everything on them that is an address inside ``networks`` (IPv6: any that is not
      link-local), a permanent neighbour, a permanent FDB entry with a destination, a nexthop object with our protocol number, key,
      port and peers of WireGuard, or a unicast route of the main table that the kernel did not make itself (those go with their
      address);
    - main-table routes with our protocol number whose destination lies inside one of ``networks``;
    - main-table routes inside ``networks`` with protocol boot through ``uplink`` (a flanneld's host-gw routes, to adopt);
    - the nft table ``table`` with its sets and their elements, the sysctls in ``sysctls``, the FOU ports in ``fou_ports``, the
      rules in FORWARD chains that say ``table`` in their comment;
    - with ``policies``, the policies of IPsec with our number whose both ends lie inside one of ``networks``.
    """

    links: frozenset[str] = frozenset()
    networks: tuple[IPNetwork, ...] = ()
    uplink: str | None = None
    table: str = "flannelpy"
    sysctls: frozenset[str] = frozenset()
    fou_ports: frozenset[int] = frozenset()
    policies: bool = False

    def covers(self, net: IPNetwork) -> bool:
        """True where ``net`` lies inside one of the networks."""
        return any(whole.version == net.version and whole.first <= net.first and net.last <= whole.last for whole in self.networks)
