"""The two hosts that the kernel's contract is tested on: one in memory, one in a network namespace of its own.

    peers ... 192.0.2.0/24 ---- eth1 192.0.2.1 [ host ] flannel.1 10.5.72.0/32
                                     2001:db8::1/64

Each has the hands of an operator, to do what the agent did not ask for.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import Address, FdbEntry, HostState, Key, Link, Neighbour, NftTable, Object, Route, Scope, Sysctl, Vxlan
from flannelpy.core.uplink import DefaultRoute, Interface, InterfaceAddress
from flannelpy.kernel import Kernel, Notice, Result
from flannelpy.kernel.fake import FakeKernel
from flannelpy.kernel.netlink import NetlinkKernel

CLONE_NEWNET = 0x40000000

NETWORK = IPNetwork("10.5.0.0/16")
NETWORK6 = IPNetwork("fd05::/48")
ACCEPT_RA = "net/ipv6/conf/flannel.1/accept_ra"
SCOPE = Scope(frozenset({"flannel.1"}), (NETWORK, NETWORK6), "eth1", "flannelpy", frozenset({ACCEPT_RA}))

LINK = Link("flannel.1", "vxlan", 1450, "02:00:00:00:00:01", detail=Vxlan(1, "eth1", IPAddress("192.0.2.1")))
ADDRESS = Address(IPNetwork("10.5.72.0/32"), "flannel.1")
SYSCTL = Sysctl(ACCEPT_RA, "0")
HOST = HostState.of(LINK, ADDRESS, SYSCTL)
BODY = "\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tip saddr 10.5.0.0/16 accept\n\t}\n"
TABLE = NftTable("flannelpy", BODY)


def peer(number: int) -> HostState:
    """What reaches the peer 10.5.NUMBER.0/24 (from 256 on: beyond 10.5.0.0/16, in 10.6 and so on)."""
    gateway = IPAddress(int(NETWORK.ip) + number * 256, 4)
    mac = f"02:00:01:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    return HostState.of(
        Neighbour(gateway, mac, "flannel.1"),
        FdbEntry(mac, IPAddress(int(IPAddress("198.18.0.0")) + number, 4), "flannel.1"),
        Route(IPNetwork((int(gateway), 24), version=4), gateway, "flannel.1", onlink=True),
    )


class Host(Protocol):
    """A kernel and the hands that change it behind the agent's back."""

    kernel: Kernel

    def add_route(self, route: Route) -> None: ...
    def has_route(self, route: Route) -> bool: ...
    def flush_routes(self, dev: str) -> None: ...
    def delete_link(self, name: str) -> None: ...
    def add_link(self, link: Link) -> None: ...
    def set_down(self, name: str) -> None: ...
    def remove_address(self, address: Address) -> None: ...
    def remove(self, item: Object) -> None: ...
    def flush_ruleset(self) -> None: ...
    def overflow(self) -> None: ...
    def add_uplink_address(self, address: InterfaceAddress) -> None: ...
    def set_gateway(self, via: str) -> None: ...
    def add_interface(self, name: str) -> None: ...
    def remove_interface(self, name: str) -> None: ...
    def rename_interface(self, name: str, new: str) -> None: ...
    def take_port(self, port: int) -> None: ...
    def give_port(self, port: int) -> None: ...


class FakeHost:
    def __init__(self) -> None:
        addresses = (InterfaceAddress(IPAddress("192.0.2.1"), 24), InterfaceAddress(IPAddress("2001:db8::1"), 64))
        self.fake = FakeKernel([Interface("eth1", 2, 1500, True, addresses)], [DefaultRoute(4, 2)])
        self.kernel: Kernel = self.fake

    async def close(self) -> None:
        await self.kernel.close()

    def add_route(self, route: Route) -> None:
        self.fake.plant(route)

    def has_route(self, route: Route) -> bool:
        return self.fake.get(route.key) == route

    def flush_routes(self, dev: str) -> None:
        self.fake.flush_routes(dev)

    def delete_link(self, name: str) -> None:
        self.fake.take(Key("link", name))

    def add_link(self, link: Link) -> None:
        self.fake.plant(link)

    def set_down(self, name: str) -> None:
        self.fake.set_down(name)

    def remove_address(self, address: Address) -> None:
        self.fake.take(address.key)

    def remove(self, item: Object) -> None:
        self.fake.take(item.key)

    def flush_ruleset(self) -> None:
        self.fake.flush_ruleset()

    def overflow(self) -> None:
        self.fake.overflow()

    def add_uplink_address(self, address: InterfaceAddress) -> None:
        uplink = self.fake.interfaces["eth1"]
        self.fake.set_interface(replace(uplink, addresses=(*uplink.addresses, address)))

    def set_gateway(self, via: str) -> None:
        self.fake.default_routes = (DefaultRoute(4, 2, IPAddress(via)),)

    def add_interface(self, name: str) -> None:
        self.fake.set_interface(Interface(name, 100 + len(self.fake.interfaces), 1500, False))

    def remove_interface(self, name: str) -> None:
        self.fake.take_interface(name)

    def rename_interface(self, name: str, new: str) -> None:
        self.fake.rename_interface(name, new)

    def take_port(self, port: int) -> None:
        self.fake.taken_ports.add(port)

    def give_port(self, port: int) -> None:
        self.fake.taken_ports.remove(port)


class RealHost:
    """Made inside the namespace it stands for."""

    def __init__(self) -> None:
        ip(
            "link set lo up",
            "link add eth1 type veth peer name eth1p",
            "link set eth1 addrgenmode none",  # no address of its own, whose notice would come some time later
            "link set eth1p addrgenmode none",
            "link set eth1p up",
            "link set eth1 up",
            "addr add 192.0.2.1/24 dev eth1",
            "addr add 2001:db8::1/64 dev eth1 nodad",
            "route add default via 192.0.2.254",
        )
        self.kernel: Kernel = NetlinkKernel(notice_bytes=1 << 17)
        self._ports: dict[int, socket.socket] = {}

    def add_route(self, route: Route) -> None:
        words = str(route) if "proto" in str(route) else f"{route} proto 102"
        ip(f"route add {words}")

    def has_route(self, route: Route) -> bool:
        shown = subprocess.run(
            ["ip", "-N", "route", "show", "exact", str(route.dst)], check=True, capture_output=True, text=True
        ).stdout
        shown = shown if "proto" in shown else shown + " proto 3 "  # ip(8) leaves "proto boot" out
        return f"proto {route.proto} " in shown and (route.via is None or f"via {route.via} " in shown)

    def flush_routes(self, dev: str) -> None:
        ip(f"route flush dev {dev}")

    def delete_link(self, name: str) -> None:
        ip(f"link del {name}")

    def add_link(self, link: Link) -> None:
        assert link.kind == "tun"
        ip(f"tuntap add {link.name} mode tun", f"link set {link.name} mtu {link.mtu} {'up' if link.up else 'down'}")

    def set_down(self, name: str) -> None:
        ip(f"link set {name} down")

    def remove_address(self, address: Address) -> None:
        ip(f"addr del {address}")

    def remove(self, item: Object) -> None:
        if isinstance(item, FdbEntry):
            subprocess.run(["bridge", "fdb", "del", item.mac, "dev", item.dev, "dst", str(item.dst)], check=True)
        elif isinstance(item, Route):
            ip(f"route del {item.dst}")
        else:
            assert isinstance(item, Neighbour)
            ip(f"neigh del {item.dst} dev {item.dev}")

    def flush_ruleset(self) -> None:
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    def overflow(self) -> None:
        """More neighbours than the socket of ``kernel`` has room for."""
        lines = (
            f"neigh replace 10.5.{i >> 8}.{i & 255} lladdr 02:aa:00:00:{i >> 8:02x}:{i & 255:02x} dev flannel.1"
            for i in range(4000)
        )
        ip(*lines)

    def add_uplink_address(self, address: InterfaceAddress) -> None:
        ip(f"addr add {address.address}/{address.prefixlen} dev eth1")

    def set_gateway(self, via: str) -> None:
        ip(f"route replace default via {via} dev eth1")

    def add_interface(self, name: str) -> None:
        ip(f"link add {name} type bridge", f"link set {name} addrgenmode none")

    def remove_interface(self, name: str) -> None:
        ip(f"link del {name}")

    def rename_interface(self, name: str, new: str) -> None:
        ip(f"link set {name} name {new}")

    def take_port(self, port: int) -> None:
        self._ports[port] = taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind(("0.0.0.0", port))

    def give_port(self, port: int) -> None:
        self._ports.pop(port).close()

    async def close(self) -> None:
        for taken in self._ports.values():
            taken.close()
        await self.kernel.close()


def ip(*lines: str) -> None:
    """Run lines of ip(8) in the namespace of this thread. Raises where one fails."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True)


def shell(command: str, given: str = "") -> str:
    """What a shell command prints in the namespace of this thread. Raises where it fails."""
    return subprocess.run(command, shell=True, input=given, text=True, check=True, stdout=subprocess.PIPE).stdout


def may_unshare() -> bool:
    return os.geteuid() == 0


real_only = pytest.mark.skipif(not may_unshare(), reason="needs root for a network namespace")

PATIENCE_S = 10.0


async def hear(notices: AsyncIterator[Notice], fact: Callable[[Notice], bool]) -> Notice:
    """What is said until ``fact`` holds, as one notice."""
    heard = Notice()
    async with asyncio.timeout(PATIENCE_S):
        while not fact(heard):
            more = await anext(notices)
            heard = Notice(
                {**heard.objects, **more.objects},
                heard.resync or more.resync,
                heard.lost or more.lost,
                {**heard.links, **more.links},
                heard.default_route or more.default_route,
                heard.routed | more.routed,
                heard.addressed or more.addressed,
            )
    return heard


def code(results: list[Result] | tuple[Result, ...], at: int = 0) -> int | None:
    error = results[at].error
    return None if error is None else error.code


@contextmanager
def fresh_namespace() -> Iterator[None]:
    """This thread (and what it starts) in a network namespace without a name: it is gone with its last user, whatever happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        try:
            yield
        finally:
            if libc.setns(home, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)
