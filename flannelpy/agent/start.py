"""What must be known before anything is done? A network config that can be used, a backend for it, and an uplink."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from netaddr import IPAddress

from flannelpy.agent.cluster import report_error, report_success
from flannelpy.agent.report import Reporter
from flannelpy.agent.surroundings import Surroundings
from flannelpy.core.backend import Backend, Chosen, Engines, Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError, FlannelpyError, RegistryError, WatchGapError
from flannelpy.core.model import Lease
from flannelpy.core.objects import Fou, HostState, Key, Scope
from flannelpy.core.plan import Step, plan
from flannelpy.core.uplink import Choice, RouteAnswer, Wish, choose
from flannelpy.host.view_file import KeptView
from flannelpy.kernel import Kernel
from flannelpy.plugins import parse
from flannelpy.registry import ConfigChanged, Registry, StoredConfig

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Situation:
    """What the start found out, and everything after it is built on."""

    config: NetworkConfig
    backend: Backend
    uplink: Uplink
    mtu: int
    text: str
    """The config as stored."""
    kept: KeptView | None = None
    """The cluster as it was kept on disk, where etcd does not answer or was not asked; None where it does."""
    resumed: bool = False
    """True where etcd was not asked, because packets wait."""
    uplink_reasons: tuple[str, ...] = ()
    engine: Chosen | None = None
    """How the backend works here, where it has several ways."""


class SituationChangedError(FlannelpyError):
    """The config asks for another situation; the kernel stays as it is, and a new node takes over from it."""


async def find_situation(around: Surroundings, kept: KeptView | None) -> Situation:
    """Wait for a config that this host can run, for ever. Raises NoUplinkError.

    With a view that was ``kept``, a registry that does not answer is waited for ``offline_s`` seconds, and then done without. Where
    packets wait in descriptors in the fd store, that view is taken up at once, and the registry is for the caller to ask.
    """
    registry, reporter, where = around.registry, around.reporter, f"{around.settings.endpoint.prefix}/config"
    if kept is not None and around.fd_store.names:
        situation = await _offline(around, kept)
        if situation is not None:
            return replace(situation, resumed=True)
        kept = None
    while True:
        try:
            async with asyncio.timeout(around.patience.offline_s if kept is not None else None):
                stored = await read_config(registry, reporter)
        except TimeoutError:
            situation = await _offline(around, kept)
            if situation is not None:
                return situation
            kept = None
            continue
        try:
            situation = await _examine(around, stored.text)
        except ConfigError as error:
            reporter.begin("config-unusable", f"at {where}: {error}" if stored.text is not None else f"at {where} {error}")
            await _next_config(registry, reporter, stored)
            continue
        reporter.end("config-unusable")
        if not situation.config.backend_given:
            log.warning("the network config at %s names no Backend: udp, as flannel does; vxlan would be faster", where)
        return situation


async def _examine(around: Surroundings, text: str | None) -> Situation:
    """What this host makes of a config. Raises ConfigError where it cannot run it, NoUplinkError."""
    config, backend = parse(text, around.settings.host_options)
    choice = await choose_uplink(around.kernel, around.wish, config)
    local = Local(config, choice.uplink, macs=dict.fromkeys(backend.devices(config), "02:00:00:00:00:00"))
    mtu = backend.mtu(local)
    backend.attrs(local)  # refuses what the host cannot do (host-gw behind NAT)
    for reason in choice.reasons:
        log.info("uplink: %s", reason)
    engine = await _choose_engine(around, backend) if isinstance(backend, Engines) else None
    backend = backend if engine is None else engine.backend
    return Situation(config, backend, choice.uplink, mtu, text or "", uplink_reasons=choice.reasons, engine=engine)


async def _choose_engine(around: Surroundings, backend: Engines) -> Chosen:
    """The backend as it can work here, with a word about how."""
    kernel, reporter, fd_store = around.kernel, around.reporter, around.fd_store
    tried = await kernel.rehearse(plan(backend.rehearsal, HostState())) if len(backend.rehearsal) else ()
    refusal = "; ".join(str(result.error) for result in tried if result.error is not None)
    if tried and not refusal:
        await fd_store.drop(*fd_store.names)  # a pump's port, which the kernel is about to ask for
    chosen = backend.choose(refusal or await _port_refusal(kernel, backend.rehearsal))
    log.info("%s", chosen.reason)
    if chosen.refused:
        reporter.begin("engine-refused", chosen.refused)
    else:
        reporter.end("engine-refused")
    return chosen


async def _port_refusal(kernel: Kernel, rehearsal: HostState) -> str:
    """Why the kernel cannot decapsulate at a port on this host, where a rehearsal elsewhere went well; empty where it can."""
    ports = [item for item in rehearsal if isinstance(item, Fou)]
    there = await kernel.observe(Scope(fou_ports=frozenset(item.port for item in ports)), [Key("fou", "")])
    for item in ports:
        if item.key in there:
            continue
        (tried,) = await kernel.apply([Step("add", item)])
        if tried.error is None:
            await kernel.apply([Step("remove", item, item)])
        elif tried.error.code == errno.EADDRINUSE:
            return f"UDP port {item.port} is taken (ss -lunp 'sport = :{item.port}' names who has it)"
        else:
            return str(tried.error)
    return ""


async def _offline(around: Surroundings, kept: KeptView | None) -> Situation | None:
    """The situation as it was kept; None where it is no longer ours to take up (another address, another config)."""
    if kept is None or kept.own is None:
        return None
    try:
        situation = await _examine(around, kept.config)
    except ConfigError as error:
        log.warning("what was kept on disk cannot be used: %s", error)
        return None
    uplink, published = situation.uplink, kept.own.attrs
    if (published.public_ip, published.public_ipv6) not in ((uplink.public_ip, uplink.public_ipv6), (uplink.public_ip, None)):
        log.warning("what was kept on disk is for %s, this host has %s now", published.public_ip, uplink.public_ip)
        return None
    return replace(situation, kept=kept)


async def choose_uplink(kernel: Kernel, wish: Wish, config: NetworkConfig) -> Choice:
    """The uplink as things are now. Raises NoUplinkError."""
    facts = await kernel.facts()
    answers: Mapping[IPAddress, RouteAnswer] = {}
    if wish.can_reach is not None:
        answer = await kernel.route_to(wish.can_reach)
        answers = {} if answer is None else {wish.can_reach: answer}
    return choose(facts, wish, config.families, answers)


def can_become(now: Situation, lease: Lease, config: NetworkConfig, backend: Backend) -> bool:
    """True where this host keeps its lease and loses no packet under the new config."""
    for old, new, subnet in ((now.config.v4, config.v4, lease.subnet), (now.config.v6, config.v6, lease.subnet6)):
        if (old is None) != (new is None):
            return False
        if old is not None and new is not None and (subnet is None or old.network != new.network or not new.fits(subnet)):
            return False
    return backend.name == now.backend.name and now.backend.can_become(backend)


async def read_config(registry: Registry, reporter: Reporter) -> StoredConfig:
    """The config as stored, whenever the registry answers."""
    delay = FIRST_RETRY_S
    while True:
        try:
            stored = await registry.config()
        except RegistryError as error:
            report_error(reporter, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LAST_RETRY_S)
        else:
            report_success(reporter)
            return stored


async def _next_config(registry: Registry, reporter: Reporter, stored: StoredConfig) -> None:
    """Return when the config is written again (or may have been)."""
    try:
        async for batch in registry.watch(stored.revision + 1):
            if any(isinstance(event, ConfigChanged) for event in batch.events):
                return
    except WatchGapError:
        return
    except RegistryError as error:
        report_error(reporter, error)
        await asyncio.sleep(FIRST_RETRY_S)
