"""What did the kernel mean by refusing a step, and what is to be said of it? One fault is one condition."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flannelpy.core.errors import FlannelpyError, KernelError
from flannelpy.core.objects import Fou, Key, Link, Object, Route, Sysctl, Vxlan, WireguardDevice, XfrmPolicy
from flannelpy.core.plan import Step, lives_on
from flannelpy.host.ports import holder
from flannelpy.kernel import Kernel

PROTOCOLS = {
    0: "unspec",
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    9: "ra",
    12: "bird",
    16: "dhcp",
    42: "babel",
    186: "bgp",
}
"""Names of route protocols (/etc/iproute2/rt_protos)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that the kernel refused; ``why`` in words."""

    step: Step
    error: KernelError
    why: str


def not_applicable(step: Step, error: KernelError) -> bool:
    """True where a refusal needs no word and no retry: a setting that this kernel does not have (IPv6 switched off)."""
    return isinstance(step.item, Sysctl) and error.code == errno.ENOENT


async def in_the_way(kernel: Kernel, refused: Iterable[tuple[Step, KernelError]]) -> Mapping[Key, Sequence[Route]]:
    """By key, what is where a route was refused for another: thousands of them are one look. Raises CancelledError only."""
    routes = [step.item for step, error in refused if error.code == errno.EEXIST and isinstance(step.item, Route)]
    try:
        found = await kernel.routes_at(routes) if routes else ()
    except FlannelpyError:
        return {}
    others: dict[Key, list[Route]] = {}
    for route in found:
        others.setdefault(route.key, []).append(route)
    return others


async def explain(step: Step, error: KernelError, others: Sequence[Route]) -> str:
    """The reason in words; where one of the ``others`` is in the way, which, and what would make room. Raises nothing."""
    if error.code == errno.EEXIST and others:
        other = others[0]
        words = str(other).replace(f"proto {other.proto}", f"proto {PROTOCOLS.get(other.proto, other.proto)}")
        return f"{words} is there and is not ours (to make room: ip route del {words})"
    if error.code == errno.EEXIST and isinstance(step.item, XfrmPolicy):
        return f"a policy of somebody else's is there (to make room: ip xfrm policy delete {step.item.selector})"
    if error.code == errno.EADDRINUSE and (port := _port(step.item)):
        who = await asyncio.to_thread(holder, port)
        return f"{error} ({f'{who} has it' if who else 'to see who has it'}: ss -lunp 'sport = :{port}')"
    return str(error)


def _port(item: Object) -> int:
    """The UDP port that an object of the kernel needs for itself; 0 where it needs none."""
    match item:
        case Link(detail=Vxlan(port=port)) | Fou(port=port) | WireguardDevice(listen_port=port):
            return port
    return 0


def conditions(refusals: Iterable[Refusal], failed_links: Iterable[str]) -> Mapping[str, str]:
    """``kernel-refused`` by kind of failure, the first of each in words; what fails for want of its device goes with the device."""
    missing = set(failed_links)
    found: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        item = refusal.step.item
        if item.noun == "link" or lives_on(item) not in missing:
            found.setdefault(f"{item.noun} {refusal.error.code}", []).append(refusal)
    return {kind: _words(failed) for kind, failed in found.items()}


def _words(failed: list[Refusal]) -> str:
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"{failed[0].step}: {failed[0].why}{more}; trying again"


def links(keys: Iterable[Key]) -> set[str]:
    """The names of the devices among these keys."""
    return {key.id for key in keys if key.kind == "link"}
