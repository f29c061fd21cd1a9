"""What of a backend is as it is for most, where it says nothing of it? The contract's own answers (``core.backend.Backend``).

What a backend says itself counts. ``plugins.load`` completes each; a class that is made by hand is decorated with ``completed``.
"""

# ruff: noqa: ARG002 - a contract has arguments that not every backend needs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from flannelpy.core.backend import Local, Path
from flannelpy.core.backend_options import Option, read
from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState

T = TypeVar("T")


class _Usual:
    """No option, no device, no encapsulation, nothing in the kernel."""

    options: tuple[Option, ...] = ()
    wants_on_link = False

    @classmethod
    def from_options(cls: type[Any], options: Mapping[str, Any]) -> Any:
        return cls(read(cls.options, options)) if cls.options else cls()

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}

    def overhead(self, underlay: Family) -> int:
        return 0

    def mtu(self, local: Local) -> int:
        return local.uplink.mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def host(self, local: Local) -> HostState:
        return HostState()

    def path(self, lease: Lease, local: Local) -> Path:
        return Path()

    def datapath(self, local: Local) -> None:
        return None


def completed(backend: type[T]) -> type[T]:
    """The class, with what it says nothing of."""
    for name, value in vars(_Usual).items():
        if not name.startswith("__") and not hasattr(backend, name):
            setattr(backend, name, value)
    if not hasattr(backend, "accepts"):
        backend.accepts = frozenset({backend.name})  # type: ignore[attr-defined]
    return backend
