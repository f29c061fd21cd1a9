"""How do the peers' tunnels stay up? charon is told of each peer, looked at, asked again, and started anew when it dies.

What charon is told follows from who is wanted and what it holds, by name. It keeps a connection up by itself; what falls through (a
tunnel that the other end has closed at a bad moment) is seen in a look every few seconds, and begun again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from backends.ipsec import vici
from backends.ipsec.charon import Charon, take
from backends.ipsec.terms import Own, Terms, connection, fingerprint, key_name, name, shared
from backends.ipsec.vici import RefusedError
from flannelpy.core.backend import Backend, FdStore, Local
from flannelpy.core.errors import BackendError
from flannelpy.core.model import NO_ADDRESS, Lease

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often it is seen whether each peer has a tunnel."""

PATIENCE_S = 12.0
"""A peer without a tunnel is told of after so long: charon repeats an unanswered request after 4 and 11 s."""

BEGIN_AGAIN_S = 10.0
"""Between two tries of ours for one peer."""

CALM_S = 60.0
"""Where all have a tunnel, and charon has as many IKE_SAs as before, they are listed this often: with 1,000 peers that is work."""


LAST_WORDS_S = 0.5


@runtime_checkable
class HasTerms(Protocol):
    """A backend whose tunnels this datapath may keep."""

    @property
    def terms(self) -> Terms: ...


@dataclass(slots=True)
class _Peer:
    """``without_since``: since when it has no tunnel, None while it has one; ``begun``: when one was last begun."""

    key: str
    lease: Lease
    without_since: float | None = None
    begun: float = 0.0


class CharonDatapath:
    """Tunnels to the peers, for a ``local`` that holds a lease. See ``flannelpy.core.backend.Datapath``."""

    leaves_behind = True

    def __init__(self, local: Local, terms: Terms) -> None:
        self._own, self._terms, self._run_dir = Own.of(local), terms, local.run_dir
        self._charon: Charon | None = None
        self._names: dict[str, str] = {}  # by lease key
        self._peers: dict[str, _Peer] = {}  # by name
        self._loaded: set[str] = set()
        self._keyed: set[str] = set()  # the public addresses that charon has the key for
        self._wake = asyncio.Event()
        self._refused: dict[str, str] = {}
        self._listener: Callable[[Mapping[str, str]], None] = lambda _refused: None
        self._retired = False
        self._calm: tuple[int, float] | None = None  # how many IKE_SAs there were when all had a tunnel, and when that was

    def listen(self, listener: Callable[[Mapping[str, str]], None]) -> None:
        """See ``flannelpy.core.backend.RefusesPeers``."""
        self._listener = listener

    async def open(self, fd_store: FdStore) -> None:
        """Find charon, or start it. Raises BackendError: what is missing or in the way."""
        await self.close()
        await fd_store.drop(*fd_store.names)  # another backend's
        self._charon = charon = await take(self._run_dir, self._own.interface, partial(fingerprint, self._own, self._terms))
        self._loaded = await charon.vici.ask(vici.connections, "a question for its connections") if charon.adopted else set()
        self._keyed, self._calm = set(), None
        manner = "goes on" if charon.adopted else "runs"
        log.info("charon %s as process %d, %d connections", manner, charon.pid, len(self._loaded))

    def update(self, peers: Mapping[str, Lease | None]) -> None:
        """Peers by lease key that came or changed; None for one that went."""
        wanted = {
            key: None if lease is None or lease.public_ip == NO_ADDRESS or not lease.subnet.prefixlen else lease
            for key, lease in peers.items()
        }
        for key, new in wanted.items():  # first, whatever came first: a host may have the same subnet under another key now
            known = self._names.get(key)
            if known is not None and (new is None or name(new) != known):
                del self._peers[self._names.pop(key)]
        for key, new in wanted.items():
            if new is not None and key not in self._names:
                self._names[key] = name(new)
                self._peers[name(new)] = _Peer(key, new)
        self._calm = None
        self._wake.set()

    def adopt(self, local: Local, backend: Backend | None = None) -> bool:
        """True where nothing of what charon is told is another."""
        if backend is not None and (not isinstance(backend, HasTerms) or backend.terms != self._terms):
            return False
        return Own.of(local) == self._own

    def retire(self) -> None:
        """See ``flannelpy.core.moving.Retires``."""
        self._retired = True

    async def run(self) -> None:
        """Keep the tunnels up until cancelled. Raises BackendError where charon dies or does not answer."""
        charon = self._charon
        if charon is None:
            raise BackendError("charon does not run")
        ending = asyncio.create_task(charon.end_of_it(), name="end of charon")
        working = asyncio.create_task(self._work(charon), name="tunnels")
        try:
            await asyncio.wait({ending, working}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({ending}, timeout=LAST_WORDS_S)  # one that dies answers no more, and that may be noticed first
        finally:
            for each in (ending, working):
                each.cancel()
            await asyncio.gather(ending, working, return_exceptions=True)
        if not ending.cancelled():
            raise BackendError(ending.result())
        working.result()

    async def close(self) -> None:
        """End charon. The keys stay in the kernel for a while, so that a restart loses no packet; where it is retired they go."""
        charon, self._charon = self._charon, None
        if charon is not None:
            await charon.end(at_once=not self._retired)

    # ----------------------------------------------------------------------------------------------------- at work

    async def _work(self, charon: Charon) -> None:
        while True:
            self._wake.clear()
            await self._settle(charon)
            await self._look(charon)
            charon.keep_short()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    async def _settle(self, charon: Charon) -> None:
        """Have charon hold what is wanted and nothing else of ours."""
        ask = charon.vici.ask
        for gone in self._loaded - self._peers.keys():
            await ask(partial(_unload, gone), f"unload-conn {gone}")
            with suppress(RefusedError):  # it had no tunnel
                await ask(partial(_terminate, gone), f"terminate {gone}")
            self._loaded.discard(gone)
        wanted = {self._own.public_ip, *(str(peer.lease.public_ip) for peer in self._peers.values())}
        for public_ip in self._keyed - wanted:
            await ask(partial(_forget_key, public_ip), "unload-shared")
            self._keyed.discard(public_ip)
        for public_ip in sorted(wanted - self._keyed):
            await ask(partial(self._load_key, public_ip), "load-shared")
            self._keyed.add(public_ip)
        for new in [new for new in self._peers if new not in self._loaded]:
            peer = self._peers.get(new)
            if peer is None or self._loaded - self._peers.keys():
                return  # another turn has come: first goes what is to go
            try:
                await ask(partial(_load, connection(self._own, peer.lease, self._terms)), f"load-conn {new}")
            except RefusedError as error:
                self._refuse(peer.key, f"{peer.lease}: {error}; it is tried again")
                continue
            peer.begun = asyncio.get_running_loop().time()  # start_action
            self._loaded.add(new)

    async def _look(self, charon: Charon) -> None:
        """See who has a tunnel; begin one where nobody does, and tell of who has had none for long."""
        now = asyncio.get_running_loop().time()
        count = await charon.vici.ask(vici.count, "stats")
        if self._calm is not None and self._calm[0] == count and now - self._calm[1] < CALM_S:
            return
        found = await charon.vici.ask(vici.associations, "list-sas")
        well = True
        for known in self._refused.keys() - self._names.keys():
            self._refuse(known, None)
        for each in self._loaded & self._peers.keys():
            peer, states = self._peers.get(each), found.get(each, [])
            if peer is None:
                continue  # it went while another was begun
            if any(up for _state, up in states):
                peer.without_since = None
                self._refuse(peer.key, None)
                continue
            well = False
            peer.without_since = now if peer.without_since is None else peer.without_since
            if now - peer.begun >= BEGIN_AGAIN_S and not any(state == "CONNECTING" for state, _up in states):
                peer.begun = now
                with suppress(RefusedError):
                    await charon.vici.ask(partial(_initiate, each), f"initiate {each}")
            if now - peer.without_since >= PATIENCE_S:
                self._refuse(peer.key, f"{peer.lease}: {_why(peer.lease, states)}; it is tried again")
        self._calm = (count, now) if well and self._loaded == self._peers.keys() else None

    def _load_key(self, public_ip: str, session: Any) -> None:
        session.load_shared(shared(public_ip, self._terms))

    def _refuse(self, key: str, why: str | None) -> None:
        before = self._refused.get(key)
        if why is None:
            self._refused.pop(key, None)
        else:
            self._refused[key] = why
        if before != why:
            self._listener(self._refused)


def _why(lease: Lease, states: list[tuple[str, bool]]) -> str:
    """Why there is no tunnel, as far as the states of its IKE_SAs tell."""
    if any(state == "CONNECTING" for state, _up in states):
        return f"no tunnel: {lease.public_ip} does not answer at UDP 500 and 4500"
    if any(state == "ESTABLISHED" for state, _up in states):
        return "no tunnel, though its host is known by the PSK: expected one ESPProposal on all hosts, and esp4 in the kernels"
    return f"no tunnel: {lease.public_ip} refuses it, or is refused: expected one PSK and one ESPProposal on all hosts"


def _load(message: Mapping[str, Any], session: Any) -> None:
    session.load_conn(message)


def _unload(gone: str, session: Any) -> None:
    session.unload_conn({"name": gone})


def _terminate(gone: str, session: Any) -> None:
    for _ in session.terminate({"ike": gone, "force": "yes", "timeout": "-1"}):
        pass


def _initiate(wanted: str, session: Any) -> None:
    for _ in session.initiate({"child": wanted, "ike": wanted, "timeout": "-1", "init-limits": "no"}):
        pass


def _forget_key(public_ip: str, session: Any) -> None:
    session.unload_shared({"id": key_name(public_ip)})
