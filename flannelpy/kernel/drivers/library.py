"""How does pyroute2 encode a message? For what is rare and has deep attributes; imported at the first use (links.py says why)."""

from __future__ import annotations

from typing import Any

from flannelpy.kernel.messages import IFF_UP, RTM_NEWLINK

Attributes = list[tuple[str, Any]]


def new_link(sequence: int, flags: int, index: int, up: bool | None, attributes: Attributes) -> bytes:
    """RTM_NEWLINK. ``up`` None: as it is."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    fields = {"index": index, "flags": IFF_UP if up else 0, "change": 0 if up is None else IFF_UP, "attrs": attributes}
    return encode(ifinfmsg(), RTM_NEWLINK, flags, sequence, fields)


def encode(message: Any, kind: int, flags: int, sequence: int, fields: dict[str, Any]) -> bytes:
    """A message of the library's."""
    header = {"type": kind, "flags": flags, "sequence_number": sequence, "pid": 0}
    message.setvalue({**fields, "header": header})
    message.encode()
    return bytes(message.data)
