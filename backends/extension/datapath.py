"""When are the commands run? PostStartupCommand once the lease is held, then one of each peer's whenever that peer has changed.

What is run follows from what a peer is and from what was run for it last, so that of a peer that comes and goes while a command
runs only the last word counts. Each peer has its commands one after the other; one that fails is run again, with growing pauses,
and is in nobody else's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from netaddr import IPAddress, IPNetwork

from backends.extension.command import Command, Commands
from flannelpy.core.backend import Backend, Datapath, FdStore, Local
from flannelpy.core.errors import BackendError, MalformedError
from flannelpy.core.foreign import printable
from flannelpy.core.model import NO_ADDRESS, Lease

log = logging.getLogger(__name__)

AT_ONCE, AGAIN_AT_ONCE = 8, 2
"""Commands that run at one time: those of peers with which all is well, and repetitions, which may hang each time."""

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
"""Before a command is run again, doubled each time."""

REMOVALS = 5
"""How often the removal of a peer that is gone is tried; what it left may be gone as well."""


@runtime_checkable
class HasCommands(Protocol):
    """A backend whose packets this datapath may move."""

    @property
    def commands(self) -> Commands: ...


@dataclass(slots=True)
class _Peer:
    """``wanted``: as it is, None when it is gone. ``told``: as the last SubnetAddCommand was told; ``done``: that went well.

    ``nets``: its subnets, once a command was told of them; ``behind``: who has one of them now, by another lease key, and waits
    until this one is removed.
    """

    wanted: Lease | None = None
    told: Lease | None = None
    done: bool = False
    failures: int = 0
    busy: bool = False
    nets: tuple[IPNetwork, ...] = ()
    behind: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def settled(self) -> bool:
        """Nothing is to be run for it."""
        if self.wanted is None or self.told is None:
            return self.wanted is self.told
        return self.done and self.told.same_content(self.wanted)


class CommandDatapath:
    """The commands of one config, for a ``local`` that holds a lease. See ``flannelpy.core.backend.Datapath``."""

    leaves_behind = True

    def __init__(self, local: Local, commands: Commands) -> None:
        self._own = _host(local)
        self._commands = commands
        self._peers: dict[str, _Peer] = {}
        self._due: dict[str, None] = {}  # in the order in which they came
        self._told: dict[IPNetwork, str] = {}  # of whom a command was told last that has this subnet
        self._wake = asyncio.Event()
        self._refused: dict[str, str] = {}
        self._listener: Callable[[Mapping[str, str]], None] = lambda _refused: None
        self._first, self._repeated = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AGAIN_AT_ONCE)

    def listen(self, listener: Callable[[Mapping[str, str]], None]) -> None:
        """See ``flannelpy.core.backend.RefusesPeers``."""
        self._listener = listener

    async def open(self, fd_store: FdStore) -> None:
        """Run PostStartupCommand. Raises BackendError where it fails."""
        await fd_store.drop(*fd_store.names)  # another backend's
        if self._commands.post is not None:
            await _run(self._commands.post, self._own, "")

    def update(self, peers: Mapping[str, Lease | None]) -> None:
        """Peers by lease key that came or changed; None for one that went."""
        for key, lease in peers.items():
            peer = self._peers.setdefault(key, _Peer())
            peer.wanted = lease
            peer.changed.set()
            self._due[key] = None
        self._wake.set()

    def adopt(self, local: Local, backend: Backend | None = None) -> bool:
        """True where nothing of what the commands are told, and no command, is another."""
        if backend is not None and (not isinstance(backend, HasCommands) or backend.commands != self._commands):
            return False
        return _host(local) == self._own

    def succeed(self, before: Datapath) -> None:
        """See ``flannelpy.core.moving.Succeeds``: of whom its commands were told is added anew, or removed where it is gone."""
        if isinstance(before, CommandDatapath):
            told = {key: peer for key, peer in before._peers.items() if peer.told is not None}
            self._peers = {key: _Peer(told=peer.told, nets=peer.nets) for key, peer in told.items()}
            self._told = {net: key for net, key in before._told.items() if key in told}

    async def run(self) -> None:
        """Run what is due until cancelled; what runs then is killed."""
        for each in self._peers.values():
            each.busy = False
        self._due |= dict.fromkeys(self._peers)
        async with asyncio.TaskGroup() as tasks:
            while True:
                due, self._due = self._due, {}
                for key in due:
                    peer = self._peers.get(key)
                    if peer is not None and not peer.busy:
                        peer.busy = True
                        tasks.create_task(self._settle(key, peer), name=f"commands for {key}")
                self._wake.clear()
                await self._wake.wait()

    async def close(self) -> None:
        """Nothing is open between two commands."""

    # ----------------------------------------------------------------------------------------------------- one peer

    async def _settle(self, key: str, peer: _Peer) -> None:
        """Run one command after the other for this peer until there is nothing left to do."""
        while not peer.settled:
            peer.changed.clear()
            wanted = peer.wanted
            if wanted is not None:
                self._let(peer)  # nothing is removed of it any more
            if wanted is not None and (leaving := self._leaving(key, wanted)) is not None:
                leaving.behind.add(key)  # or what is removed last would be what was just added
                break
            try:
                async with self._repeated if peer.failures else self._first:
                    if peer.wanted is not wanted:
                        continue  # it was another when its turn came
                    await (self._remove(peer) if wanted is None else self._add(key, peer, wanted))
                peer.failures = 0
                self._refuse(key, None)
            except MalformedError:
                break  # what its lease says is nobody's command line; fragments have reported it
            except BackendError as error:
                await self._failed(key, peer, str(error))
        peer.busy = False
        if peer.wanted is None and peer.told is None:
            del self._peers[key]
            self._refuse(key, None)
            for net in [net for net in peer.nets if self._told.get(net) == key]:
                del self._told[net]
        self._let(peer)

    def _let(self, peer: _Peer) -> None:
        """Those that wait for its removal wait no longer."""
        if peer.behind:
            self._due |= dict.fromkeys(sorted(peer.behind))
            peer.behind.clear()
            self._wake.set()

    def _leaving(self, key: str, lease: Lease) -> _Peer | None:
        """Who had a subnet of this lease by another key, and is to be removed."""
        for net in _nets(lease):
            holder = self._told.get(net, key)
            if holder != key and (other := self._peers.get(holder)) is not None and other.wanted is None:
                return other
        return None

    async def _add(self, key: str, peer: _Peer, lease: Lease) -> None:
        data = backend_data(lease)
        peer.told, peer.done, peer.nets = lease, False, _nets(lease)
        self._told.update(dict.fromkeys(peer.nets, key))
        if self._commands.add is not None:
            await _run(self._commands.add, _variables(lease), data)
        peer.done = True

    async def _remove(self, peer: _Peer) -> None:
        """With what SubnetAddCommand was told; also where that failed, for it may have done half of its work."""
        assert peer.told is not None
        peer.done = False  # should it be wanted again after this has failed, it is added again
        if self._commands.remove is not None:
            await _run(self._commands.remove, _variables(peer.told), backend_data(peer.told))
        peer.told = None

    async def _failed(self, key: str, peer: _Peer, error: str) -> None:
        """Tell it, and wait until it is worth another try."""
        peer.failures += 1
        lease = peer.told or peer.wanted
        if peer.wanted is None and peer.failures >= REMOVALS:
            log.warning("%s: %s; given up after %d times", lease, error, peer.failures)
            peer.told, peer.failures = None, 0
            return
        delay = min(FIRST_RETRY_S * 2.0 ** (peer.failures - 1), LAST_RETRY_S)
        self._refuse(key, f"{lease}: {error}; it is run again")
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await peer.changed.wait()

    def _refuse(self, key: str, why: str | None) -> None:
        before = self._refused.get(key)
        if why is None:
            self._refused.pop(key, None)
        else:
            self._refused[key] = why
        if before != why:
            self._listener(self._refused)


async def _run(command: Command, variables: Mapping[str, str], data: str) -> None:
    output = await command.run(variables, data)
    log.debug("%s %s: %s", command.name, variables.get("SUBNET", ""), printable(output.text))


def _host(local: Local) -> dict[str, str]:
    """What PostStartupCommand is told: our own interface's addresses, as in flannel."""
    own, uplink = local.own, local.uplink
    network = local.config.v4.network if local.config.v4 else None
    named = {"NETWORK": network, **_subnets(own), "PUBLIC_IP": uplink.address, "PUBLIC_IPV6": uplink.address6}
    return _there(named)


def _variables(lease: Lease) -> dict[str, str]:
    """What a peer's commands are told: its subnets, and where it is reached. Never a text that somebody wrote."""
    return _there({**_subnets(lease), "PUBLIC_IP": lease.public_ip, "PUBLIC_IPV6": lease.attrs.public_ipv6})


def _subnets(lease: Lease) -> dict[str, IPNetwork | None]:
    return {"SUBNET": lease.subnet if lease.subnet.prefixlen else None, "IPV6SUBNET": lease.subnet6}


def _nets(lease: Lease) -> tuple[IPNetwork, ...]:
    return tuple(net for net in _subnets(lease).values() if net is not None)


def _there(named: Mapping[str, IPNetwork | IPAddress | None]) -> dict[str, str]:
    return {name: str(value) for name, value in named.items() if value is not None and value != NO_ADDRESS}


def backend_data(lease: Lease) -> str:
    """What a peer's PreStartupCommand printed; empty where it published nothing. Raises MalformedError."""
    data = lease.attrs.backend_data
    if data is None:
        return ""
    if not isinstance(data, str):
        raise MalformedError(f"BackendData {printable(str(data), 60)}: expected a string")
    return data
