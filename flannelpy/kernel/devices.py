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
from flannelpy.core.objects import Detail, Link, Wireguard
from flannelpy.core.plan import Step
from flannelpy.kernel import links, messages
from flannelpy.kernel.channel import Channel, error
from flannelpy.kernel.drivers import driver_of, read_detail
from flannelpy.kernel.drivers.driver import Port
from flannelpy.kernel.wireguard_go import installed, start

FIXED = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
"""How the kernel says that something cannot be changed in place."""


class Devices:
    """Devices of one namespace. ``ask`` carries out one request, made for a sequence number, and raises KernelError.

    ``userspace``: a program may stand in for the kernel where that has no such device.
    """

    def __init__(self, ask: Callable[[Callable[[int], bytes]], None], userspace: bool = True) -> None:
        self._ask = ask
        self._userspace = userspace
        self._names: dict[int, str] = {}

    async def apply(self, step: Step, link: Link) -> None:
        """Carry out a step. Raises KernelError."""
        try:
            self._apply(step, link)
        except KernelError as reason:
            if reason.code != errno.EOPNOTSUPP or not (self._userspace and isinstance(link.detail, Wireguard) and installed()):
                raise
            await start(link.name, lambda: bool(index_of(link.name)))
            self._ask(lambda sequence: links.change(sequence, link, None, index_of(link.name)))

    def _apply(self, step: Step, link: Link) -> None:
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
        detail = link.detail
        if detail is not None and (before is None or before.detail != detail):
            driver, lower = driver_of(detail), self._lower(detail)
            try:
                self._ask(lambda sequence: driver.change(sequence, detail, lower, index))
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
        lower = 0 if link.detail is None else self._lower(link.detail)
        try:
            self._ask(lambda sequence: links.create(sequence, link, lower))
        except KernelError as reason:
            if reason.code == errno.EOPNOTSUPP and link.detail is not None:
                raise KernelError(f"this kernel has no {link.kind} devices: load the module {link.kind}", reason.code) from None
            raise

    def _lower(self, detail: Detail) -> int:
        """The index of the lower device, 0 where none is needed."""
        name = driver_of(detail).lower(detail)
        index = 0 if name is None else self.remember(name)
        if name is not None and not index:
            raise KernelError(f"the underlay device {name} is not there", errno.ENODEV)
        return index

    def _demand_room(self, link: Link, index: int) -> None:
        """Raise KernelError where the successor of a device could not be made, as far as that can be known beforehand."""
        detail = link.detail
        if detail is None:
            links.create(0, link, 0)  # says why such a device is not made here
            return
        self._lower(detail)
        for other, found in _like(detail):
            if other.device != index and (what := driver_of(detail).clash(detail, found)):
                raise KernelError(f"{other.name} is a device of the same kind with the same {what}", errno.EEXIST)
        self._demand_port(link)

    def _demand_port(self, link: Link) -> None:
        """Raise KernelError where somebody's socket has the port that a device needs; others of its kind share it.

        The kernel finds that out when the device is brought up, and takes it away again, with a word to everybody for each.
        """
        detail = link.detail
        port = driver_of(detail).port(detail) if detail is not None and link.up else None
        if detail is None or port is None or not _is_taken(port):
            return
        if not any(other.up and driver_of(found).port(found) == port for other, found in _like(detail)):
            raise KernelError(f"UDP port {port.number}, which {link.name} needs, is taken by another program", errno.EADDRINUSE)


def _like(detail: Detail) -> list[tuple[messages.LinkInfo, Detail]]:
    """The devices of the same kind, and what is their kind's own."""
    found: list[messages.LinkInfo] = []
    with Channel() as channel, suppress(InterruptedError):  # a dump that the table moved below will do
        for data, heads in channel.dump(messages.dump_links(channel.reserve(1))):
            found += [messages.read_link(data, head.body, head.end) for head in heads]
    same = [info for info in found if info.kind == detail.kind]
    return [(info, other) for info in same if (other := read_detail(info.kind, info.data, name_of)) is not None]


def _is_taken(port: Port) -> bool:
    """True where a socket is bound to the port, in the kernel or in a program."""
    version6 = port.version == 6
    try:
        with socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as trial:
            if version6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(("::" if version6 else "0.0.0.0", port.number))
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
