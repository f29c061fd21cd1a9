"""What does a host call itself? A name for people, beside its addresses and never in place of them: anybody may call himself so.

A host says it in the key beside its lease (``core.offer``), in Kubernetes it is the node's. Nothing is decided by it.
"""

from __future__ import annotations

import re
from typing import TypeGuard

MOST = 63
"""Letters of a name."""

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def is_name(text: object) -> TypeGuard[str]:
    """True for what RFC 1123 2.1 takes for a host's name, as long as one label of it may be."""
    return isinstance(text, str) and len(text) <= MOST and _NAME.fullmatch(text) is not None


def spoken(machine: str) -> str:
    """What a machine of this name calls itself: whole, else its first label; empty where that is no name, or everybody's."""
    for text in (machine, machine.partition(".")[0]):
        if is_name(text):
            return "" if text.partition(".")[0] == "localhost" else text
    return ""
