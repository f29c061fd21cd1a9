"""Which machine is this, and is what lies in the state directory its own? A copied directory or a cloned image is not.

machine-id(5): set at the first boot and kept; a cloned image carries its original's. The uplink's hardware address tells these
apart, for two machines on one network cannot share it.
"""

from __future__ import annotations

from pathlib import Path

from flannelpy.host.state import State

_SOURCES = ("/etc/machine-id", "/sys/class/dmi/id/product_uuid")


def machine() -> str:
    """What tells this machine; empty where nothing does."""
    for source in _SOURCES:
        try:
            text = Path(source).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if text:
            return text[:64]
    return ""


def foreign(state: State, here: str, uplink_mac: str, address: str) -> str:
    """Why a state is another machine's, in words; empty where it is this one's (``here``), whatever its address is by now."""
    if not state.machine:
        # Written by a version that did not say: only an address that is still ours proves anything.
        return "" if state.address in ("", address) else f"it was written for {state.address}, this host has {address}"
    if state.machine != here:
        return f"it was written by the machine {state.machine}"
    if state.address == address or not (state.uplink_mac and uplink_mac) or state.uplink_mac == uplink_mac:
        return ""
    before, now = f"{state.address} behind {state.uplink_mac}", f"{address} behind {uplink_mac}"
    return f"it was written for {before}, this host has {now}: a cloned image"
