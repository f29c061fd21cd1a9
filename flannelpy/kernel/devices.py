"""How does a device of ours come, change and go? It is made anew only where it must be, and not deleted before that can be done.

A vxlan device takes another source address, lower device or learning in place (vxlan_changelink in drivers/net/vxlan), and keeps
its FDB; for another VNI, port or family it must be made anew. One kernel after another has taken more in place: it is tried, and
what is refused is made anew. Before a device is deleted, everything that its successor needs is looked for: its lower device, its
VNI, its UDP port.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import Link, Vxlan
from flannelpy.core.plan import Step
from flannelpy.kernel import links, messages
from flannelpy.kernel.channel import Channel, error

FIXED = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
"""How the kernel says that something cannot be changed in place."""


class Devices:
    """Devices of one namespace. ``ask`` carries out one request, made for a sequence number, and raises KernelError."""

    def __init__(self, ask: Callable[[Callable[[int], bytes]], None]) -> None:
        self._ask = ask
        self._names: dict[int, str] = {}

    def apply(self, step: Step, link: Link) -> None:
        """Carry out a step. Raises KernelError."""
        index = index_of(link.name)
        before = step.before if isinstance(step.before, Link) else None
        match step.op:
            case "add":
                self._demand_port(link)
                self._create(link)
            case "change":
                self._change(link, before, index)
            case "remake":
                self._remake(link, index)
            case "remove" if index:
                self._delete(index)

    def name_of(self, index: int) -> str:
        """A device's name; of one that was renamed, the name by which it was asked for, for as long as nobody else has that."""
        asked = self._names.get(index)
        return asked if asked is not None and not index_of(asked) else name_of(index)

    def remember(self, name: str) -> int:
        """The index of a device that is asked for by this name, 0 where there is none."""
        index = index_of(name)
        if index:
            self._names = {**{number: other for number, other in self._names.items() if other != name}, index: name}
        return index

    def _change(self, link: Link, before: Link | None, index: int) -> None:
        if not index:
            raise error((errno.ENODEV, ""))
        vxlan = link.vxlan
        if vxlan is not None and (before is None or before.vxlan != vxlan):
            parent = self._parent(vxlan)
            try:
                self._ask(lambda sequence: links.change_vxlan(sequence, vxlan, parent, index))
            except KernelError as reason:
                if reason.code not in FIXED:
                    raise
                self._remake(link, index)
                return
        self._ask(lambda sequence: links.change(sequence, link, before, index))

    def _remake(self, link: Link, index: int) -> None:
        if index:
            self._demand_room(link, index)
            self._delete(index)
        self._create(link)

    def _delete(self, index: int) -> None:
        self._ask(lambda sequence: messages.delete_link(sequence, index))

    def _create(self, link: Link) -> None:
        parent = self._parent(link.vxlan) if link.vxlan is not None else 0
        try:
            self._ask(lambda sequence: links.create(sequence, link, parent))
        except KernelError as reason:
            if reason.code == errno.EOPNOTSUPP and (link.vxlan or link.ipip) is not None:
                raise KernelError(f"this kernel has no {link.kind} devices: load the module {link.kind}", reason.code) from None
            raise

    def _parent(self, vxlan: Vxlan) -> int:
        parent = self.remember(vxlan.dev)
        if not parent:
            raise KernelError(f"the underlay device {vxlan.dev} is not there", errno.ENODEV)
        return parent

    def _demand_room(self, link: Link, index: int) -> None:
        """Raise KernelError where the successor of a device could not be made, as far as that can be known beforehand."""
        if link.vxlan is None and link.ipip is None:
            links.create(0, link, 0)  # says why such a device is not made here
        if link.vxlan is not None:
            self._parent(link.vxlan)
        for other in _tunnels():
            if other.device != index and _clashes(link, other):
                raise KernelError(f"{other.name} is a device of the same kind with the same {_what(link)}", errno.EEXIST)
        self._demand_port(link)

    def _demand_port(self, link: Link) -> None:
        """Raise KernelError where somebody's socket has the port of a vxlan device; other such devices share it.

        The kernel finds that out when the device is brought up, and takes it away again, with a word to everybody for each.
        """
        vxlan = link.vxlan
        if vxlan is None or not link.up or not _is_taken(vxlan):
            return
        family = vxlan.local.version
        shared = (found for other in _tunnels() if other.up and (found := _vxlan(other)) and found.local.version == family)
        if not any(found.port == vxlan.port for found in shared):
            raise KernelError(f"UDP port {vxlan.port}, which {link.name} needs, is taken by another program", errno.EADDRINUSE)


def _tunnels() -> list[messages.LinkInfo]:
    found = []
    with Channel() as channel, suppress(InterruptedError):  # a dump that the table moved below will do
        for data, heads in channel.dump(messages.dump_links(channel.reserve(1))):
            infos = (messages.read_link(data, head.body, head.end) for head in heads)
            found += [info for info in infos if info.vxlan is not None or info.ipip is not None]
    return found


def _clashes(link: Link, other: messages.LinkInfo) -> bool:
    """True where the kernel would not have both."""
    if link.vxlan is not None:
        found = _vxlan(other)
        return found is not None and found.fixed == link.vxlan.fixed
    ipip = None if other.ipip is None else messages.ipip_of(other.ipip)
    return link.ipip is not None and ipip is not None and ipip.local == link.ipip.local


def _vxlan(info: messages.LinkInfo) -> Vxlan | None:
    return None if info.vxlan is None else messages.vxlan_of(info.vxlan, "")


def _what(link: Link) -> str:
    return f"VNI {link.vxlan.vni} and port {link.vxlan.port}" if link.vxlan is not None else "local address"


def _is_taken(vxlan: Vxlan) -> bool:
    """True where a socket is bound to the port, in the kernel or in a program."""
    version6 = vxlan.local.version == 6
    try:
        with socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as trial:
            if version6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(("::" if version6 else "0.0.0.0", vxlan.port))
    except OSError as reason:
        return reason.errno == errno.EADDRINUSE
    return False


def index_of(name: str) -> int:
    """The index of a device, 0 where there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def name_of(index: int) -> str:
    """The name of a device, or ``if7`` where it went meanwhile."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
