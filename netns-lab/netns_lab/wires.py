"""Which commands make a topology real? Pure: from the topology to lines for ``ip -batch`` and to sysctls.

NAME-nat1 (gateway 10.0.2.2, outside 203.0.113.1)        one for each host, so that equal addresses never meet
    |  eth0 10.0.2.15/24, default route
NAME-h1 --- docker0 --- eth0 of NAME-c1
    |  eth1 192.168.50.11/24
NAME-net: bridge br0 --- eth1 of NAME-etcd 192.168.50.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netaddr import IPAddress

from netns_lab.topology import NAT_ADDRESS, NAT_GATEWAY, OUTSIDE, Topology

SWITCH = "net"
"""The namespace that is the private segment."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """``links`` are made first, in one batch; then ``inside`` each namespace its own lines. Sysctls are below /proc/sys/net."""

    namespaces: tuple[str, ...]
    links: tuple[str, ...]
    inside: Mapping[str, tuple[str, ...]]
    sysctls: Mapping[str, Mapping[str, str]]


def wire(topology: Topology, prefix: str) -> Wiring:
    """Names of namespaces in the result are without ``prefix``-, except where a line has to name one."""
    links = [f"link add br0 netns {prefix}-{SWITCH} type bridge forward_delay 0 mcast_snooping 0 mcast_querier 0"]
    switch = ["link set br0 up"]
    inside: dict[str, tuple[str, ...]] = {}
    sysctls: dict[str, dict[str, str]] = {SWITCH: {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}}

    def plug(port: str, namespace: str) -> None:
        """An end of a cable in the namespace's eth1, the other in the switch."""
        mtu = f"mtu {topology.mtu}"
        links.append(f"link add eth1 {mtu} netns {prefix}-{namespace} type veth peer name {port} {mtu} netns {prefix}-{SWITCH}")
        switch.append(f"link set {port} master br0 up")

    if etcd := topology.etcd_plan:
        plug(etcd.name, etcd.name)
        inside[etcd.name] = ("link set lo up", f"address add {etcd.address} brd + dev eth1", "link set eth1 up")
    for host in topology.host_plans:
        nat = nat_name(host.number)
        links.append(f"link add eth0 netns {prefix}-{host.name} type veth peer name inside netns {prefix}-{nat}")
        plug(host.name, host.name)
        links.append(f"link add {topology.bridge} netns {prefix}-{host.name} type bridge forward_delay 0")
        inside[host.name] = (
            "link set lo up",
            f"address add {NAT_ADDRESS} brd + dev eth0",
            f"address add {host.address} brd + dev eth1",
            *([f"address add {host.address6} dev eth1 nodad"] if host.address6 else []),
            "link set eth0 up",
            "link set eth1 up",
            f"link set {topology.bridge} up",
            f"route add default via {NAT_GATEWAY} dev eth0",
            *(f"link set v{container.name} master {topology.bridge} up" for container in host.containers),
        )
        inside[nat] = (
            "link set lo up",
            f"address add {NAT_GATEWAY}/{NAT_ADDRESS.prefixlen} brd + dev inside",
            f"address add {OUTSIDE}/32 dev lo",
            "link set inside up",
        )
        # As on a Debian machine with Docker: forwarding on, reverse path filter loose (systemd's sysctl.d/50-default.conf).
        sysctls[host.name] = {"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "2", "ipv4/conf/default/rp_filter": "2"}
        if host.address6:
            sysctls[host.name]["ipv6/conf/all/forwarding"] = "1"
        sysctls[nat] = {"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0", "ipv6/conf/all/disable_ipv6": "1"}
        for container in host.containers:
            port = f"v{container.name} netns {prefix}-{host.name}"
            links.append(f"link add eth0 netns {prefix}-{container.name} type veth peer name {port}")
            inside[container.name] = ("link set lo up", "link set eth0 up")
    inside[SWITCH] = tuple(switch)
    return Wiring(tuple(inside), tuple(links), inside, sysctls)


def nat_name(host: int) -> str:
    """The namespace behind eth0 of host number ``host``."""
    return f"nat{host}"


def attach_container(number: int, mtu: int, subnet: str, subnet6: str) -> list[str]:
    """Lines for container ``number`` of a host: its addresses after the bridge's, as Docker would give them. Safe to repeat."""
    lines = [f"link set eth0 mtu {mtu}", "address flush dev eth0 scope global"]
    for text in (subnet, subnet6):
        if text:
            gateway, length = text.split("/")
            lines.append(f"address add {beyond(gateway, number)}/{length} dev eth0{' nodad' if ':' in text else ''}")
            lines.append(f"route replace default via {gateway} dev eth0")
    return lines


def beyond(gateway: str, number: int) -> str:
    """The address ``number`` places after the gateway's."""
    return str(IPAddress(gateway) + number)
