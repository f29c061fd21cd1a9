"""What else goes wrong? Faults that are there to be found, beside those of ``netns_lab.faults``, in the same words.

They are for labs with vxlan, where each of them is put in and looked for by ``netns_lab.causes``.
"""

from __future__ import annotations

from netns_lab.faults import DEAD, FLOWS, LARGE_DEAD, Fault, dropping

_VXLAN = ("vxlan",)


def _sysctl(name: str, says: str, key: str, off: str = "0") -> Fault:
    """A switch of the kernel that is off."""
    path = f"/proc/sys/net/ipv4/{key}"
    return Fault(name, says, DEAD, f"cat {path} > KEPT && echo {off} > {path}", f"cat KEPT > {path}", backends=_VXLAN)


def _route(name: str, says: str, route: str) -> Fault:
    """A route of somebody else."""
    return Fault(name, says, DEAD, f"ip route add {route}", f"ip route del {route}", backends=_VXLAN)


def _rule(name: str, says: str, selector: str, table: str) -> Fault:
    """A policy rule that asks another table first."""
    inject = f"ip route add {table} table 66 && ip rule add {selector} lookup 66 pref 100"
    return Fault(name, says, DEAD, inject, f"ip rule del {selector} lookup 66 pref 100; ip route flush table 66", backends=_VXLAN)


def _iptables(name: str, says: str, rule: str) -> Fault:
    """A rule that somebody typed into iptables."""
    return Fault(name, says, DEAD, f"iptables-nft -I FORWARD {rule}", f"iptables-nft -D FORWARD {rule}", backends=_VXLAN)


def _key(name: str, says: str, key: str, value: str) -> Fault:
    """A key in etcd that is wrong."""
    inject = f"ETCDCTL put -- PREFIX/subnets/{key} '{value}'"
    return Fault(name, says, FLOWS, inject, f"ETCDCTL del PREFIX/subnets/{key}", "etcd", _VXLAN)


def _lease(address: str, kind: str = "vxlan", data: str = '{"VNI":1,"VtepMAC":"02:00:00:00:fc:00"}') -> str:
    return f'{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"{kind}","BackendData":{data}}}'


MORE = (
    _sysctl("device-forwarding-off", "the kernel forwards nothing that comes by the overlay's device", "conf/DEV/forwarding"),
    _sysctl("bridge-forwarding-off", "the kernel forwards nothing that comes by the bridge", "conf/BRIDGE/forwarding"),
    Fault(
        "strict-reverse-path",
        "the reverse path filter is strict, and a part of the peer's subnet is routed elsewhere",
        DEAD,
        "cat /proc/sys/net/ipv4/conf/all/rp_filter > KEPT && sysctl -qw net.ipv4.conf.all.rp_filter=1"
        " net.ipv4.conf.DEVICE.rp_filter=1 && ip route add PEERPART dev eth1",
        "ip route del PEERPART dev eth1; sysctl -qw net.ipv4.conf.all.rp_filter=$(cat KEPT) net.ipv4.conf.DEVICE.rp_filter=2",
        backends=_VXLAN,
    ),
    Fault(
        "bridge-stale",
        "the bridge still has the subnet of an earlier lease",
        DEAD,
        "ip addr del OWNADDR dev BRIDGE && ip addr add 10.1.251.1/24 dev BRIDGE",
        "ip addr del 10.1.251.1/24 dev BRIDGE && ip addr add OWNADDR brd + dev BRIDGE",
        backends=_VXLAN,
    ),
    Fault("bridge-down", "the bridge is switched off", DEAD, "ip link set BRIDGE down", "ip link set BRIDGE up", backends=_VXLAN),
    Fault(
        "bridge-mtu",
        "the bridge has a larger MTU than the overlay",
        FLOWS,
        "ip link set BRIDGE mtu 1500",
        "ip link set BRIDGE mtu 1450",
        backends=_VXLAN,
    ),
    _route("route-blackhole", "a part of the peer's subnet is thrown away", "blackhole PEERPART"),
    _route("route-unreachable", "a part of the peer's subnet is said to be unreachable", "unreachable PEERPART"),
    _route("route-prohibit", "a part of the peer's subnet is forbidden", "prohibit PEERPART"),
    _route("peer-blackhole", "what goes to the peer's own address is thrown away", "blackhole PEERIP/32"),
    _route("peer-by-another-link", "the peer's own address is routed over another link", "PEERIP/32 via 10.0.2.2 dev eth0"),
    _rule("rule-by-source", "a rule asks another table for what this host's containers send", "from OWNNET", "unreachable default"),
    _rule("rule-by-bridge", "a rule asks another table for what comes by the bridge", "iif BRIDGE", "unreachable default"),
    Fault(
        "rule-prohibit",
        "a rule forbids what goes to the peer's subnet",
        DEAD,
        "ip rule add to PEERNET prohibit pref 100",
        "ip rule del to PEERNET prohibit pref 100",
        backends=_VXLAN,
    ),
    Fault(
        "wrong-neighbour",
        "the peer's address on the segment has a wrong MAC",
        DEAD,
        "ip neigh replace PEERIP lladdr 02:00:00:00:00:77 nud permanent dev eth1",
        "ip neigh del PEERIP dev eth1",
        backends=_VXLAN,
    ),
    _iptables("iptables-from-containers", "iptables drops what this host's containers send", "-s OWNNET -j DROP"),
    _iptables("iptables-to-containers", "iptables rejects what is for this host's containers", "-d OWNNET -j REJECT"),
    dropping(
        "nft-from-containers", "nft drops what this host's containers send", DEAD, "forward", "ip saddr OWNNET", backends=_VXLAN
    ),
    dropping(
        "nft-to-containers", "nft drops what is for this host's containers", DEAD, "forward", "ip daddr OWNNET", backends=_VXLAN
    ),
    dropping("nft-by-device", "nft drops what comes by the overlay's device", DEAD, "forward", 'iifname "DEV"', backends=_VXLAN),
    dropping(
        "large-dropped", "a firewall on the host drops large packets", LARGE_DEAD, "output", "meta length > 1400", backends=_VXLAN
    ),
    Fault(
        "address-gone",
        "the uplink loses its address",
        DEAD,
        "ip addr show dev eth1 | sed -n 's/.*inet \\([0-9./]*\\) .*/\\1/p' > KEPT && ip addr flush dev eth1 scope global",
        "ip addr add $(cat KEPT) brd + dev eth1",
        backends=_VXLAN,
    ),
    _key(
        "other-vni",
        "a lease names another VNI",
        "10.1.252.0-24",
        _lease("192.168.50.252", data='{"VNI":7,"VtepMAC":"02:00:00:00:fc:00"}'),
    ),
    _key("other-backend", "a lease is of another backend", "10.1.252.0-24", _lease("192.168.50.252", "host-gw", "null")),
    _key("no-mac", "a lease does not say how to reach its host", "10.1.252.0-24", _lease("192.168.50.252", data="null")),
    _key("outside-network", "a lease lies outside of Network", "10.9.7.0-24", _lease("192.168.50.252")),
    _key("no-lease", "a key is no lease", "hello", "world"),
    _key("no-json", "a lease is no JSON", "10.1.252.0-24", "{"),
    Fault(
        "config-broken",
        "the network config is no JSON",
        FLOWS,
        "ETCDCTL get --print-value-only PREFIX/config > KEPT && ETCDCTL put -- PREFIX/config '{'",
        'ETCDCTL put -- PREFIX/config "$(cat KEPT)"',
        "etcd",
        _VXLAN,
    ),
    Fault(
        "config-missing",
        "the network config is deleted",
        FLOWS,
        "ETCDCTL get --print-value-only PREFIX/config > KEPT && ETCDCTL del PREFIX/config",
        'ETCDCTL put -- PREFIX/config "$(cat KEPT)"',
        "etcd",
        _VXLAN,
    ),
)
"""Worst first, as in ``netns_lab.faults``."""
