"""Which machine is this, and is what lies in the state directory its own? A copied directory or a cloned image is not.

machine-id(5): set at the first boot and kept; a cloned image carries its original's. The uplink's hardware address tells these
apart, for two machines on one network cannot share it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from flannelpy.host.state import State

SOURCES = (Path("/etc/machine-id"), Path("/sys/class/dmi/id/product_uuid"))

_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOBODY = frozenset("0f-")
"""What firmware says that was never given a number is made of these."""
NO_HARDWARE = frozenset({"", "00:00:00:00:00:00"})
"""Addresses of interfaces that are no network cards, lo among them: they tell nothing."""


def machine(sources: tuple[Path, ...] = SOURCES) -> str:
    """What tells this machine; empty where nothing does.

    The number itself is confidential (machine-id(5)), and this is logged: what is told is made from it, and from nothing else.
    """
    for source in sources:
        try:
            with source.open("rb") as file:
                text = file.read(64).decode("ascii", "replace").strip().lower()
        except OSError:
            continue
        if _ID.fullmatch(text) and not _NOBODY.issuperset(text):  # "uninitialized" until the first boot is over
            return hashlib.sha256(b"flannelpy machine " + text.encode()).hexdigest()[:32]
    return ""


def foreign(state: State, here: str, uplink_mac: str, address: str) -> str:
    """Why a state is another machine's, in words; empty where it is this one's (``here``), whatever its address is by now."""
    if not state.machine:
        # Written by a version that did not say: only an address that is still ours proves anything.
        return "" if state.address in ("", address) else f"it was written for {state.address}, this host has {address}"
    if here and state.machine != here:
        return f"it was written by the machine {state.machine}"
    tells = {state.uplink_mac, uplink_mac}.isdisjoint(NO_HARDWARE)
    if state.address == address or not tells or state.uplink_mac == uplink_mac:
        return ""
    before, now = f"{state.address} behind {state.uplink_mac}", f"{address} behind {uplink_mac}"
    return f"it was written for {before}, this host has {now}: a cloned image"
