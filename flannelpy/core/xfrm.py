"""Which packets does the kernel encrypt, and between whom? Policies of IPsec (RFC 4301, ip-xfrm(8)).

A policy names packets by source and destination, and says in which tunnel they must be. The keys of a tunnel are an IKE daemon's
business; while there is none, what a policy names is dropped, and never sent in the open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

from netaddr import IPAddress, IPNetwork

from flannelpy.core.key import Key

Direction = Literal["in", "out", "fwd"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
"""By their numbers in the kernel (XFRM_POLICY_*)."""

REQID = 11
"""Our mark, flannel's own: the policies, and the keys that the IKE daemon makes for them, find each other by it."""


@dataclass(frozen=True, slots=True)
class XfrmPolicy:
    """Packets from ``src`` to ``dst`` are in ESP, from host ``outer_src`` to host ``outer_dst``.

    ``out``: they are put in. ``in``, ``fwd``: they must have come so, for this host itself or to be forwarded.
    """

    noun: ClassVar[str] = "xfrm"

    direction: Direction
    src: IPNetwork
    dst: IPNetwork
    outer_src: IPAddress
    outer_dst: IPAddress
    priority: int = 0
    key: Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", Key("xfrm", f"src {self.src} dst {self.dst} dir {self.direction}"))

    @property
    def lives_on(self) -> None:
        """No device."""
        return

    def satisfied_by(self, observed: object) -> bool:
        """True where what was observed under the same key is as good as this."""
        return self == observed

    @property
    def selector(self) -> str:
        """What ``ip xfrm policy delete`` takes."""
        return self.key.id

    def __str__(self) -> str:
        priority = f" priority {self.priority}" if self.priority else ""
        ends = f"src {self.outer_src} dst {self.outer_dst}"
        return f"{self.selector}{priority} tmpl {ends} proto esp reqid {REQID} mode tunnel"


@runtime_checkable
class UsesXfrm(Protocol):
    """What a backend has besides where its peers are reached by such policies."""

    uses_xfrm: bool
    """Always true."""


IKE_PROGRAM = "charon"
IKE_PLACES = ("/usr/lib/ipsec", "/usr/libexec/ipsec", "/usr/libexec/strongswan", "/usr/lib/strongswan")
"""Where distributions have strongSwan's IKE daemon, after PATH."""
IKE_PACKAGES = "apt-get install strongswan-charon strongswan-swanctl libstrongswan-standard-plugins"
IKE_LIBRARY, IKE_EXTRA = "vici", "pip install 'flannelpy[ipsec]'"

IKE_DIRECTORY, IKE_SOCKET = "ipsec", "charon.vici"
"""Where in the run directory an IKE daemon of ours has its files, and of these its socket: by that one it is found again."""

IKE_CONF, IKE_LOG, IKE_TERMS = "strongswan.conf", "charon.log", "terms"
"""The others: what it reads, what it writes, and by what it is known which terms it was told."""
