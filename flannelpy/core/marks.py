"""By which names is something of this host ours? docs/ownership.md."""

from __future__ import annotations

import re

OURS = re.compile(r"flannel[a-z0-9.-]*")
"""Names of devices that a backend may have made: no other is removed, whatever a state file says."""

DEFAULT_PREFIX = "/coreos.com/network"


def table_name(prefix: str) -> str:
    """Our nft table; agents of several networks on one host have a table each."""
    if prefix.rstrip("/") == DEFAULT_PREFIX:
        return "flannelpy"
    return "flannelpy-" + re.sub(r"[^a-zA-Z0-9]+", "-", prefix).strip("-")
