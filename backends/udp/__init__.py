"""udp: whole IPv4 packets in UDP datagrams, moved in user space; works on every kernel that has TUN. flannel-compat 9.4.

The class is looked up late, so that the worker process, which runs from this package, does not load what only the agent needs
(netaddr and the model: 35 ms of its 80 ms start).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.udp.backend import Udp as Udp

__all__ = ["Udp"]


def __getattr__(name: str) -> object:
    if name == "Udp":
        from backends.udp.backend import Udp

        return Udp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
