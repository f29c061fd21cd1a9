"""Where is a peer asked whether it is there? What its backend gives every host of the cluster says so: nobody publishes it.

A backend with a device of its own gives it the first address of the host's subnet, flannel's as ours; the kernel answers there.
Where there is no such device, packets go to the PublicIP, and so do probes. Of a peer with both families IPv4 is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from netaddr import IPAddress, IPNetwork

from flannelpy.agent.carriage import Carriage
from flannelpy.agent.datapath import DatapathSupervisor
from flannelpy.agent.facts import Facts
from flannelpy.agent.probes import Aim
from flannelpy.agent.steering import Steering
from flannelpy.agent.sync.reconcile import Reconciler
from flannelpy.core.model import NO_ADDRESS, Lease
from flannelpy.core.objects import Address, Fou, HostState, Ipip, Link, Vxlan, WireguardDevice
from flannelpy.core.reachability import Target
from flannelpy.settings import Settings


def aiming(
    settings: Settings, steering: Callable[[], Steering], facts: Facts, ready: Callable[[], bool]
) -> Callable[[], Aim | str]:
    """What says where each peer is asked, as things are now, or why nobody is."""
    known: tuple[Carriage, Lease, Aim] | None = None

    def aim() -> Aim | str:
        nonlocal known
        carriage, own = steering().carriage, steering().lease
        if not settings.probe:
            return "switched off on this host (--probe=false)"
        if carriage is None or own is None or not ready():
            return "the agent is starting"
        if not carriage.config.probe:
            return "switched off in the network config (Probe)"
        if facts.down or facts.missing:
            return "the uplink is down"
        if known is not None and known[0] is carriage and known[1] is own:
            return known[2]
        if known is None or not known[0].same(carriage) or not known[1].same_content(own):
            host = carriage.backend.host(carriage.local(own))
            port = carried_by(host, carriage.backend)
            moving = bool(carriage.preference.outgoing)  # some have a device with an address, and some have none
            held = frozenset(item.net.ip for item in host if isinstance(item, Address) and not moving)
            known = carriage, own, lambda lease: target(lease, own, held, carriage.mtu, port)
        known = carriage, own, known[2]
        return known[2]

    return aim


def reaches(reconciler: Reconciler, datapath: DatapathSupervisor, key: str) -> bool:
    """True where the kernel holds what reaches this peer, or somebody moves packets to it."""
    carried = datapath.has_datapath or bool(reconciler.desired.fragment(key).objects)
    return carried and reconciler.standing.why_not(key) is None


def target(lease: Lease, own: Lease, held: frozenset[IPAddress], mtu: int, port: str) -> Target | None:
    """Where to ask this peer; None where it has no address. ``held``: addresses that our kernel is to hold for ourselves;
    ``mtu``: the overlay's, in bytes; ``port``: what packets are carried by, in words.
    """
    halves = (
        (lease.subnet, own.subnet, None if lease.public_ip == NO_ADDRESS else lease.public_ip),
        (lease.subnet6, own.subnet6, lease.attrs.public_ipv6),
    )
    for theirs, ours, public in halves:
        if public is None or theirs is None or ours is None or not theirs.prefixlen:
            continue
        if _first(ours) in held:
            return Target(_first(theirs), public, mtu, port)
        return Target(public, None, mtu)
    return None


def _first(net: IPNetwork) -> IPAddress:
    return IPAddress(net.first, net.version)


def carried_by(host: HostState, backend: object) -> str:
    """What packets between hosts are carried by, as far as that is known: what a firewall has to let in."""
    port = getattr(backend, "port", None)  # a userspace datapath's
    return next(_ports(host), f"UDP {port}" if isinstance(port, int) else "the overlay's traffic")


def _ports(host: HostState) -> Iterator[str]:
    for item in host:
        if isinstance(item, Fou):
            yield f"UDP {item.port}"
        elif isinstance(item, WireguardDevice):
            yield f"UDP {item.listen_port}"
        elif isinstance(item, Link) and isinstance(item.detail, Vxlan):
            yield f"UDP {item.detail.port}"
        elif isinstance(item, Link) and isinstance(item.detail, Ipip):
            yield "IP protocol 4"
