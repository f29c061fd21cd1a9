"""What are flannel's annotations called? A prefix makes all of their names (flannel-compat 12)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flannelpy.core.errors import UsageError

PREFIX = "flannel.alpha.coreos.com"
"""flannel's own; nodes of one cluster have one prefix."""

_QUALIFIED = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?")


@dataclass(frozen=True, slots=True)
class Names:
    """Every annotation by what it holds; ``start`` is how all of them begin."""

    start: str = f"{PREFIX}/"

    @classmethod
    def under(cls, prefix: str) -> Names:
        """The names that a prefix makes: ``a.b`` and ``a.b/c`` begin ``a.b/`` and ``a.b/c-``. Raises UsageError."""
        start = prefix if "/" in prefix else f"{prefix}/"
        if not start.endswith(("/", "-")):
            start += "-"
        if not _QUALIFIED.fullmatch(start):
            raise UsageError(f"{prefix!r}: expected a domain in lower case with at most one / in it, like {PREFIX}")
        return cls(start)

    @property
    def managed(self) -> str:
        """``true`` on the nodes that flannel, or we, serve."""
        return f"{self.start}kube-subnet-manager"

    @property
    def backend_type(self) -> str:
        """BackendType of the lease."""
        return f"{self.start}backend-type"

    @property
    def data(self) -> tuple[str, str]:
        """BackendData and BackendV6Data, as JSON."""
        return f"{self.start}backend-data", f"{self.start}backend-v6-data"

    @property
    def public(self) -> tuple[str, str]:
        """PublicIP and PublicIPv6."""
        return f"{self.start}public-ip", f"{self.start}public-ipv6"

    @property
    def overwrite(self) -> tuple[str, str]:
        """What a person wants to stand in these instead of the host's own."""
        return f"{self.start}public-ip-overwrite", f"{self.start}public-ipv6-overwrite"

    @property
    def offer(self) -> str:
        """What the host offers beside its lease (``core.offer``): an annotation of ours, which flannel passes over."""
        return f"{self.start}flannelpy-offer"
