"""What are the hosts of a cluster called? By what stands beside their leases, or what the registry calls them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from netaddr import IPAddress

from flannelpy.core.model import Lease
from flannelpy.core.offer import Offer


@dataclass(frozen=True, slots=True)
class _Said:
    public_ip: IPAddress
    public_ipv6: IPAddress | None
    hostname: str
    size: int


@dataclass(slots=True)
class Names:
    """What the hosts of a cluster call themselves, by their leases' keys. Mutable, single-owner."""

    size: int = 0
    """Bytes of all values that stand beside leases."""
    _said: dict[str, _Said] = field(default_factory=dict)

    def tell(self, key: str, offer: Offer | None, size: int = 0) -> None:
        """This stands beside the lease ``key`` now, a value of ``size`` bytes; None: nothing."""
        if (before := self._said.pop(key, None)) is not None:
            self.size -= before.size
        if offer is not None:
            self._said[key] = _Said(offer.public_ip, offer.public_ipv6, offer.hostname, size)
            self.size += size

    def of(self, lease: Lease) -> str:
        """What the host of this lease is called; empty where nobody has said. One told for another address is not its."""
        said = self._said.get(lease.key)
        if lease.holder or said is None:
            return lease.holder
        own = (lease.attrs.public_ip, lease.attrs.public_ipv6)
        return said.hostname if (said.public_ip, said.public_ipv6) == own else ""

    def __contains__(self, key: str) -> bool:
        return key in self._said

    def __len__(self) -> int:
        return len(self._said)

    def __iter__(self) -> Iterator[str]:
        return iter(self._said)
