"""What would an operator type to do a step? Lines of ``ip``, ``bridge``, ``nft``, ``iptables``, ``sysctl`` and ``wg``."""

from __future__ import annotations

from collections.abc import Iterable

from flannelpy.core.forward_accept import ForwardAccept, command
from flannelpy.core.objects import (
    Address,
    FdbEntry,
    Fou,
    Link,
    Neighbour,
    Nexthop,
    NftElement,
    NftSet,
    NftTable,
    Route,
    Sysctl,
    XfrmPolicy,
)
from flannelpy.core.plan import Step


def typed(step: Step) -> str:
    """One line. A device that must be made anew is deleted and added; of an nft table only how long it is."""
    item, removed = step.item, step.op == "remove"
    verb = "del" if removed else "add" if step.op == "add" else "replace"
    match item:
        case Link():
            return _link(step, item)
        case Route():
            return f"ip{_six(item.dst.version)} route {verb} {item}{'' if item.proto != 102 else ' proto 102'}"
        case Address():
            return f"ip{_six(item.net.version)} addr {verb} {item}"
        case Neighbour():
            short = f"{item.dst} dev {item.dev}" if removed else str(item)
            return f"ip{_six(item.dst.version)} neigh {verb} {short}"
        case Nexthop():
            return f"ip nexthop {verb} {f'id {item.id}' if removed else f'{item} proto {item.proto}'}"
        case FdbEntry():
            return f"bridge fdb {verb} {item}"
        case Fou():
            return f"ip fou del port {item.port}" if removed else f"ip fou add {item}"
        case Sysctl():
            return f"sysctl -w {item}"
        case ForwardAccept():
            return f"{command(item.tool, item.version)} {'-D' if removed else '-I'} {item.chain} {item.match}"
        case NftTable():
            return f"nft delete table inet {item.name}" if removed else f"nft {verb} {item}"
        case NftSet():
            return f"nft delete set inet {item.table} {item.name}" if removed else f"nft {verb} set {item}"
        case NftElement():
            return f"nft {'delete' if removed else 'add'} element {item}"
        case XfrmPolicy():
            return f"ip xfrm policy delete {item.selector}" if removed else f"ip xfrm policy {_made(step)} {item}"
    return f"wg set {item}{' remove' if removed else ''}"


def _made(step: Step) -> str:
    """ip-xfrm(8) has no ``replace``."""
    return "add" if step.op == "add" else "update"


def _six(version: int) -> str:
    return " -6" if version == 6 else ""


def _link(step: Step, item: Link) -> str:
    words = [f"address {item.mac}"] if item.mac else []
    words.append(f"mtu {item.mtu}")
    if step.op == "remove":
        return f"ip link del {item.name} type {item.kind}"
    detail = "" if item.detail is None else f" {item.detail}"
    if step.op == "change":
        return f"ip link set {item.name} {' '.join(words)} {'up' if item.up else 'down'} type {item.kind}{detail}"
    up = f"ip link set {item.name} {'up' if item.up else 'down'}"
    made = f"ip link add {item.name} {' '.join(words)} type {item.kind}{detail}; {up}"
    return f"ip link del {item.name}; {made}" if step.op == "remake" else made


def lines(steps: Iterable[Step]) -> list[str]:
    """The steps as lines; sets and elements of a table that goes, go with it, and have none of their own."""
    found = list(steps)
    gone = {step.item.name for step in found if isinstance(step.item, NftTable) and step.op == "remove"}
    return [typed(step) for step in found if not (isinstance(step.item, NftSet | NftElement) and step.item.table in gone)]
