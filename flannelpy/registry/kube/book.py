"""What has happened to the leases when something happened to a node? A cluster's nodes as leases, and the changes between them.

Kubernetes reports every change of a node, of which heartbeats are nearly all: what leaves a lease as it was is no news. Where two
nodes have one podCIDR, the older is the holder and the other waits behind it, so that there is one lease a key, as in etcd.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flannelpy.core.errors import MalformedError
from flannelpy.core.model import Family, Lease
from flannelpy.registry import Deleted, Event, Malformed, Put, Snapshot
from flannelpy.registry.kube.names import Names
from flannelpy.registry.kube.nodes import Node, lease_of


@dataclass(slots=True)
class Book:
    """The nodes as they were at ``version``. ``families``: of which the network is; with others, ``replace`` everything."""

    names: Names
    families: tuple[Family, ...] = (4,)
    version: int = 0
    nodes: dict[str, Node] = field(default_factory=dict)
    _leases: dict[str, Lease] = field(default_factory=dict)
    """By the node's name; of a node that cannot be read any more, what it was before."""
    _claims: dict[str, set[str]] = field(default_factory=dict)
    """The names of the nodes that have a key."""
    _bad: dict[str, str] = field(default_factory=dict)

    def holder(self, key: str) -> str | None:
        """The name of the node whose lease this is."""
        return min(self._claims.get(key, ()), key=lambda name: (self._leases[name].create_revision, name), default=None)

    @property
    def snapshot(self) -> Snapshot:
        """Every lease, in key order; what cannot be read is under its node's name."""
        leases = tuple(self._leases[name] for key in sorted(self._claims) if (name := self.holder(key)) is not None)
        return Snapshot(leases, self.version, tuple(Malformed(name, why) for name, why in sorted(self._bad.items())))

    @property
    def offers(self) -> Mapping[str, bytes]:
        """What the holders offer beside their leases, by key."""
        found = {}
        for key in self._claims:
            name = self.holder(key)
            text = None if name is None else self.nodes[name].annotations.get(self.names.offer)
            if text is not None:
                found[key] = text.encode(errors="replace")
        return found

    def replace(self, nodes: Iterable[Node], version: int, families: tuple[Family, ...] | None = None) -> None:
        """These are all the nodes there are. Of one that cannot be read what it was before stays, as when it is put."""
        there = {node.name: node for node in nodes}
        self.version = version
        for name in self.nodes.keys() - there.keys():
            self._set(name, None)
        if families is not None and families != self.families:  # what was read for others is no lease of this network
            self._leases.clear()
            self._claims.clear()
            self.families = families
        for name, node in there.items():
            self._set(name, node)

    def put(self, node: Node) -> list[Event]:
        """A node came, or is another one now; what that means for the leases, in order. What is older than the book is no news."""
        if node.version <= self.version:
            return []
        self.version = node.version
        before = self.nodes.get(node.name)
        if before is not None and (before, before.created) == (node, node.created):
            return []  # a heartbeat
        return self._change(node.name, node)

    def remove(self, name: str, version: int) -> list[Event]:
        """A node is gone."""
        if version <= self.version:
            return []
        self.version = version
        return self._change(name, None)

    def _change(self, name: str, node: Node | None) -> list[Event]:
        was_bad, overwrites = self._bad.get(name), self._overwrites(name)
        keys = {lease.key for lease in (self._leases.get(name),) if lease is not None}
        held = {key: self._held(key) for key in keys}
        self._set(name, node)
        if (lease := self._leases.get(name)) is not None and lease.key not in keys:
            claims = self._claims[lease.key]
            claims.discard(name)
            held[lease.key] = self._held(lease.key)
            claims.add(name)
        events: list[Event] = []
        for key, before in held.items():
            if (event := self._event(key, before, meant=self._overwrites(name) != overwrites)) is not None:
                events.append(event)
        why = self._bad.get(name)
        if why is not None and why != was_bad:
            events.append(Malformed(name, why, self.version))
        elif why is None and was_bad is not None:
            events.append(Deleted(name, self.version))  # no key of a lease: it ends what was said of the node
        return events

    def _overwrites(self, name: str) -> list[str | None]:
        """The addresses that a person wants a node to publish: that they are others concerns the node's own agent."""
        node = self.nodes.get(name)
        return [] if node is None else [node.annotations.get(each) for each in self.names.overwrite]

    def _event(self, key: str, before: Lease | None, *, meant: bool) -> Event | None:
        after = self._held(key)
        if after is None:
            return None if before is None else Deleted(key, self.version)
        if before is not None and not meant and before.same_content(after) and before.create_revision == after.create_revision:
            return None
        return Put(replace(after, mod_revision=self.version))

    def _held(self, key: str) -> Lease | None:
        name = self.holder(key)
        return None if name is None else self._leases[name]

    def _set(self, name: str, node: Node | None) -> None:
        lease = None
        self._bad.pop(name, None)
        if node is None:
            self.nodes.pop(name, None)
        else:
            self.nodes[name] = node
            try:
                lease = lease_of(node, self.names, self.families)
            except MalformedError as error:
                # What it published before stays: nobody has said that the host is gone.
                lease, self._bad[name] = self._leases.get(name), f"node {name}: {error}"
        before = self._leases.pop(name, None)
        if before is not None:
            claims = self._claims[before.key]
            claims.discard(name)
            if not claims:
                del self._claims[before.key]
        if lease is not None:
            self._leases[name] = lease
            self._claims.setdefault(lease.key, set()).add(name)
