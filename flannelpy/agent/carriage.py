"""How does this host carry the overlay? Config, backend, engine, uplink, MTU and MACs, as one value that can be swapped."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from netaddr import IPAddress

from flannelpy import plugins
from flannelpy.agent.beside import Preference
from flannelpy.agent.context import Context
from flannelpy.agent.identity import stable_macs
from flannelpy.agent.keys import HostKeys
from flannelpy.core.backend import Backend, Chosen, Datapath, Engines, Keyed, Local, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import KernelError, LackingError
from flannelpy.core.json_members import Members
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.core.objects import Fou, HostState, Key, Scope
from flannelpy.core.offer import Offer
from flannelpy.core.plan import Step, plan
from flannelpy.core.wireguard import KeyPair
from flannelpy.kernel import Kernel
from flannelpy.settings import Settings

log = logging.getLogger("flannelpy")


@dataclass(frozen=True, slots=True)
class Carriage:
    """``text`` is the config as stored; ``mtu`` the overlay's, in bytes; ``macs`` by device; ``engine``: how the backend works
    here, where it has several ways; ``prepared``: what it found out before there was a lease; ``keys``: by what the peers know us,
    where it has such.
    """

    text: str
    config: NetworkConfig
    backend: Backend
    uplink: Uplink
    mtu: int
    macs: Mapping[str, str]
    uplink_reasons: tuple[str, ...] = ()
    engine: Chosen | None = None
    prepared: str | None = None
    keys: KeyPair | None = None
    preference: Preference = Preference()  # noqa: RUF009 - never changed in place
    run_dir: str = ""

    def local(self, lease: Lease | None = None) -> Local:
        """What the backend may ask of its host."""
        return Local(self.config, self.uplink, lease, self.macs, prepared=self.prepared, keys=self.keys, run_dir=self.run_dir)

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The Type's, and those of the Types before it that are still in use."""
        return (self.backend, *(each.backend for each in self.preference.outgoing))

    def moved_by(self, local: Local) -> tuple[Backend, Datapath | None]:
        """The backend whose running code moves packets here, and that; where none has any, the Type's."""
        found = ((backend, backend.datapath(local)) for backend in self.backends)
        return next((each for each in found if each[1] is not None), (self.backend, None))

    @property
    def attrs(self) -> LeaseAttrs:
        """What our lease publishes. Raises ConfigError where the host cannot do it (host-gw behind NAT)."""
        return self.preference.published(self.backend).attrs(self.local())

    @property
    def devices(self) -> frozenset[str]:
        """The devices that are ours."""
        beside = (name for each in self.preference.standing.values() for name in each.devices(self.config))
        return frozenset({*self.backend.devices(self.config), *beside})

    @property
    def offer(self) -> Offer | None:
        """What is to stand beside our lease, but for our name."""
        return self.preference.offer(self.attrs, self.local(), self.backend)

    @property
    def host(self) -> IPAddress | None:
        """By which address the network knows this host: of IPv4, in a network without that of IPv6."""
        return self.uplink.public_ipv6 if self.config.v4 is None else self.uplink.public_ip

    def fits(self, lease: Lease) -> bool:
        """True where a lease is one of this network's."""
        halves = ((self.config.v4, lease.subnet if lease.subnet.prefixlen else None), (self.config.v6, lease.subnet6))
        return all((pool is None) == (net is None) and (pool is None or net is None or pool.fits(net)) for pool, net in halves)

    def same(self, other: Carriage | None) -> bool:
        """True where nothing differs that anything depends on."""
        return other is not None and self._essence == other._essence

    @property
    def _essence(self) -> tuple[object, ...]:
        engine = None if self.engine is None else self.engine.engine
        return self.config, engine, self.uplink, self.mtu, dict(self.macs), self.prepared, self.keys, self._beside

    @property
    def _beside(self) -> tuple[object, ...]:
        preference = self.preference
        moving = preference.leaving, preference.up, preference.needed
        return preference.order, tuple(preference.carriers), dict(preference.withheld), tuple(preference.retiring), moving


def parsed(settings: Settings, text: str | None) -> tuple[NetworkConfig, Backend]:
    """What a stored config asks for: in Kubernetes any subnet within the network, for others cut it up. Raises ConfigError."""
    config, backend = plugins.parse(text, settings.host_options)
    return (config if settings.kube is None else config.assigned()), backend


async def resolve(
    context: Context,
    text: str,
    asked: tuple[NetworkConfig, Backend],
    uplink: tuple[Uplink, tuple[str, ...]],
    kept_macs: Mapping[str, str],
    host_keys: HostKeys,
    before: Carriage | None,
) -> Carriage:
    """What this host makes of a config, its backend as ``asked`` for, and an uplink; ``before``: what it carries by now.

    Raises ConfigError where it cannot run it, of these LackingError where it may be able to yet; and KernelError.
    """
    config, backend = asked
    if isinstance(backend, Engines):
        kept = (
            before is not None
            and before.engine is not None
            and (config.backend_type, config.backend_options)
            == (
                before.config.backend_type,
                before.config.backend_options,
            )
        )
        engine = (
            before.engine
            if kept and before is not None
            else await choose_engine(context, backend, before is not None and before.config.backend_type == config.backend_type)
        )
    else:
        engine = None
        context.reporter.set("engine-refused", {})
    backend = backend if engine is None else engine.backend
    macs = await _macs(context.kernel, backend, config, {**kept_macs, **(before.macs if before else {})})
    keys = await _pair(host_keys) if isinstance(backend, Keyed) else None
    carriage = Carriage(
        text, config, backend, uplink[0], 0, macs, uplink[1], engine, keys=keys, run_dir=str(context.settings.run_dir)
    )
    carriage = replace(carriage, mtu=backend.mtu(carriage.local()))
    _ = carriage.attrs  # refuses what the host cannot do
    return carriage


async def _pair(host_keys: HostKeys) -> KeyPair:
    try:
        return await host_keys.pair()
    except KernelError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        raise LackingError(str(error)) from None  # a module may be loaded at any time


def introduce(carriage: Carriage, where: str) -> None:
    """Log how the uplink was chosen, and what the config at ``where`` leaves open."""
    for reason in carriage.uplink_reasons:
        log.info("uplink: %s", reason)
    if not carriage.config.backend_given:
        log.warning("the network config at %s names no Backend: udp, as flannel does; vxlan would be faster", where)


def clamped(carriage: Carriage) -> str:
    """In words, that the config asks for a larger MTU than the uplink has; empty where it does not."""
    asked = Members(carriage.config.backend_options, "Backend.").unsigned("MTU", 0, 0, 65_535)
    uplink = carriage.uplink
    if asked <= uplink.mtu:
        return ""
    return f"Backend.MTU {asked}, but {uplink.name} carries {uplink.mtu}; the overlay has {carriage.mtu} here"


async def choose_engine(context: Context, backend: Engines, ours: bool) -> Chosen:
    """The backend as it can work here, with a word about how; ``ours``: its port is in use by ourselves. Raises KernelError."""
    kernel, reporter = context.kernel, context.reporter
    tried = await kernel.rehearse(plan(backend.rehearsal, HostState())) if len(backend.rehearsal) else ()
    refusal = "; ".join(str(result.error) for result in tried if result.error is not None)
    if tried and not refusal and not ours:
        await context.fd_store.drop(*context.fd_store.names)  # a userspace datapath's port, which the kernel is about to ask for
    chosen = backend.choose(refusal or ("" if ours else await _port_refusal(kernel, backend.rehearsal)))
    log.info("%s", chosen.reason)
    reporter.set("engine-refused", {"": chosen.refused} if chosen.refused else {})
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


async def _macs(kernel: Kernel, backend: Backend, config: NetworkConfig, kept: Mapping[str, str]) -> dict[str, str]:
    """A MAC for each device that publishes one."""
    wanted = [device for device, has_mac in backend.devices(config).items() if has_mac]
    unknown = [device for device in wanted if device not in kept]
    existing = HostState()
    if unknown:
        scope = Scope(links=frozenset(unknown))
        existing = await kernel.observe(scope, [Key("link", device) for device in unknown])
    return stable_macs(wanted, kept, existing)
