"""What do a cluster's keys and values look like as bytes? Shared by every registry, so that a fake cannot read them differently.

Source: flannel-compat 4.1 (keys), 4.4 (values). The texts themselves are ``core.model``'s.
"""

from __future__ import annotations

import posixpath
import zlib
from dataclasses import dataclass

from flannelpy.core.errors import MalformedError
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key, subnet_key
from flannelpy.registry import Deleted, Malformed, Put

WHY_MAX = 300
"""Characters of what is said about a key."""

NAME_MAX, NAME_SHOWN = 300, 100
"""Bytes of a key's last part that are kept whole, more than any lease's; and of one that is longer."""

VALUE_MAX = 64 << 10
"""Bytes of a lease's value that is read: flannel's are some 200. What each host keeps of each other has an end."""


@dataclass(frozen=True, slots=True)
class Keys:
    """One cluster's keys: the config's, and the range ``subnets`` <= key < ``end`` that holds every lease.

    ``hosts`` <= key < ``hosts_end``: what hosts offer, outside of what flannel watches.

    The range starts after the slash. flannel's starts before it, at the string prefix ``<prefix>/subnets``, and so trips over
    ``<prefix>/subnets-oops`` (flannel-compat 6.4); we never see such a key.
    """

    config: bytes
    subnets: bytes
    end: bytes
    hosts: bytes
    hosts_end: bytes

    @classmethod
    def under(cls, prefix: str) -> Keys:
        """The keys below ``prefix``, joined and cleaned as Go's path.Join does: no ``//``, no ``/`` at the end."""
        config, subnets, hosts = (_join(prefix, name).encode() for name in ("config", "subnets", "flannelpy/hosts"))
        return cls(config, subnets + b"/", subnets + b"0", hosts + b"/", hosts + b"0")  # "0" is the byte after "/"

    def lease(self, name: str) -> bytes:
        """The etcd key of the lease that is called ``name``."""
        return self.subnets + name.encode()

    def host(self, name: str) -> bytes:
        """The etcd key beside the lease that is called ``name``: what its host offers (core.offer)."""
        return self.hosts + name.encode()

    def host_name(self, key: bytes) -> str:
        """The last part of such a key."""
        return self._last(key, self.hosts)

    def name(self, key: bytes) -> str:
        """The last part of a lease's etcd key, readable whatever somebody wrote there; of one without end the beginning."""
        return self._last(key, self.subnets)

    def _last(self, key: bytes, lead: bytes) -> str:
        name = key[len(lead) :]
        if len(name) <= NAME_MAX:
            return name.decode(errors="backslashreplace")
        return f"{name[:NAME_SHOWN].decode(errors='backslashreplace')}... ({len(name):,} bytes, {zlib.crc32(name):08x})"


def _join(prefix: str, name: str) -> str:
    parts = [part for part in prefix.split("/") if part]
    root = "/" if prefix.startswith("/") else ""
    return posixpath.normpath(root + "/".join([*parts, name]))


def decode_put(name: str, value: bytes, *, etcd_lease: int, create_revision: int, mod_revision: int) -> Put | Malformed:
    """A key as it stands in etcd: a lease, or why it is none."""
    try:
        subnet, subnet6 = parse_subnet_key(name)
    except MalformedError as error:
        return malformed(name, str(error), mod_revision)
    if len(value) > VALUE_MAX:
        return malformed(name, f"value of {name!r}: {len(value):,} bytes; expected at most {VALUE_MAX:,}", mod_revision)
    try:
        attrs = LeaseAttrs.from_json(value)
    except MalformedError as error:
        return malformed(name, f"value of {name!r}: {error}", mod_revision)
    return Put(Lease(subnet, attrs, subnet6, etcd_lease, create_revision, mod_revision))


def malformed(name: str, why: str, mod_revision: int) -> Malformed:
    """A key that is no lease. Its name may be a megabyte long; what is said about it is not."""
    return Malformed(name, why if len(why) <= WHY_MAX else f"{why[:WHY_MAX]}...", mod_revision)


def decode_delete(name: str, mod_revision: int) -> Deleted:
    """A key that is gone, at the revision that took it away.

    One that was malformed is reported just the same: what was said about it can be taken back.
    """
    try:
        return Deleted(subnet_key(*parse_subnet_key(name)), mod_revision)
    except MalformedError:
        return Deleted(name, mod_revision)
