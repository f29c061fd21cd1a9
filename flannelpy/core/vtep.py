"""What does a lease say of a VTEP, the end of a VXLAN tunnel? Its MAC and its VNI. flannel-compat 9.1."""

from __future__ import annotations

import re

from flannelpy.core.errors import MalformedError
from flannelpy.core.foreign import printable
from flannelpy.core.json_members import Members

_USUAL = re.compile(r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}")
"""One host's address, as every agent writes it."""

_NONE = "00:00:00:00:00:00"

_MAC = re.compile(r"(?:[0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}")


def told_mac(data: object) -> str:
    """The MAC in a lease's BackendData, lower-case with colons; any form that Go's reader takes. Raises MalformedError.

    The all-zero MAC is refused: in a vxlan FDB it is the default destination of everything unknown. So is a group address.
    """
    if isinstance(data, dict) and isinstance(told := data.get("VtepMAC"), str) and _USUAL.fullmatch(told) and told != _NONE:
        return told  # the lease's own text, of which there need not be two
    members = Members(data) if isinstance(data, dict) else None
    value = members["VtepMAC"] if members is not None and "VtepMAC" in members else None
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        raise MalformedError(f"BackendData.VtepMAC {value!r:.60}: expected a MAC like c6:d2:32:6f:8f:44")
    digits = value.lower().replace(":", "").replace("-", "").replace(".", "")
    if int(digits, 16) == 0 or int(digits[:2], 16) & 1:
        raise MalformedError(f"BackendData.VtepMAC {value!r}: expected the address of one device")
    return bytes.fromhex(digits).hex(":")


def demand_vni(data: object, ours: int) -> None:
    """A peer of another VNI hears nothing of ours; one of an older flannel names none. Raises MalformedError."""
    members = Members(data) if isinstance(data, dict) else Members({})
    vni = members["VNI"] if "VNI" in members else None
    if vni is not None and (type(vni) is not int or vni != ours):
        raise MalformedError(f"BackendData.VNI {printable(str(vni), 60)}: expected ours, {ours}")
