"""How does a person reserve a subnet for a host, or give a lease back? What ``flannelpy lease reserve`` and ``release`` do.

The rules are the agents': ``core.claims`` says whose a lease is and what shuts it out, ``core.config`` what fits. Every write is a
compare-and-swap on what was read, so that nothing is taken from anybody who moved meanwhile. Source: flannel-compat 4.6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.commands.leases import subnets_text
from flannelpy.core.claims import EVERYTHING, halves, overlapping, possible, same_host, unusable
from flannelpy.core.config import NetworkConfig, Pool
from flannelpy.core.errors import ConfigError, ConflictError, FlannelpyError, MalformedError, TakenError, UsageError
from flannelpy.core.foreign import printable
from flannelpy.core.model import NO_ADDRESS, Lease, LeaseAttrs, parse_subnet_key
from flannelpy.host import subnet_env
from flannelpy.registry import Registry, Snapshot

TRY_AGAIN = "somebody changed it meanwhile; nothing was written, try again"


@dataclass(frozen=True, slots=True)
class Told:
    """Who says what this host's subnet is: its subnet file. ``address``: PublicIP as the agent kept it, empty for none."""

    path: Path
    address: str = ""


@dataclass(frozen=True, slots=True)
class Subnets:
    """What a person named: one subnet of either family, or one of each."""

    v4: IPNetwork | None = None
    v6: IPNetwork | None = None

    @classmethod
    def parse(cls, text: str) -> Subnets:
        """``10.5.9.0/24``, ``fd00:5::/64``, both with a comma between, or the key as etcd has it. Raises UsageError."""
        try:
            subnet, subnet6 = parse_subnet_key(text)
            return cls(None if subnet == EVERYTHING else subnet, subnet6)
        except MalformedError:
            pass
        nets = [_net(part.strip(), text) for part in text.replace("&", ",").split(",")]
        if len(nets) != len({net.version for net in nets}):
            raise UsageError(f"SUBNET {text!r}: expected one subnet, or one of each family")
        return cls(next((net for net in nets if net.version == 4), None), next((net for net in nets if net.version == 6), None))

    @property
    def lease(self) -> Lease:
        """The lease that would have this key."""
        return Lease(self.v4 or EVERYTHING, LeaseAttrs(NO_ADDRESS), self.v6)

    def name(self, lease: Lease) -> bool:
        """True where this is the lease that was meant: each subnet that was named is one of its own."""
        return all(net in halves(lease) for net in (self.v4, self.v6) if net is not None)

    def __str__(self) -> str:
        return subnets_text(self.lease)


def _net(part: str, whole: str) -> IPNetwork:
    address, slash, length = part.partition("/")
    try:
        if not slash or not (length.isascii() and length.isdigit()):
            raise ValueError
        return IPNetwork((int(IPAddress(address)), int(length)), version=IPAddress(address).version)
    except (AddrFormatError, ValueError):
        raise UsageError(f"SUBNET {whole!r}: expected a form like 10.5.9.0/24 or fd00:5::/64") from None


# ---------------------------------------------------------------------------------------------------------------- reserving


async def reserve(registry: Registry, wanted: Subnets, host: LeaseAttrs | None, where: str) -> list[str]:
    """Make a lease-less key, or pin the lease that stands there; ``where`` is the config's key. Returns what to say.

    Raises FlannelpyError, UsageError.
    """
    config = await _config(registry, where)
    _check_fit(wanted, config)
    host = None if host is None else _as_published(host, config)
    snapshot = await registry.snapshot()
    for bad in snapshot.malformed:
        if bad.key == wanted.lease.key:
            raise FlannelpyError(f"{bad.why}; flannelpy lease release {wanted} deletes it")
    there = next((lease for lease in snapshot.leases if lease.key == wanted.lease.key), None)
    if there is not None:
        return await _pin(registry, there, host, snapshot, config)
    for lease in snapshot.leases:
        if possible(lease, config) and overlapping(lease, wanted.lease):
            raise FlannelpyError(f"{wanted} overlaps the lease {lease}; nothing was written")
    if host is None:
        flag = "--public-ip" if config.v4 is not None else "--public-ipv6"
        raise UsageError(f"{flag}: expected the address of the host that {wanted} is for, because nobody holds it")
    told = _refuse_second_reservation(host, snapshot, wanted)
    try:
        await registry.create(wanted.lease.subnet, host, subnet6=wanted.v6, ttl_s=0)
    except TakenError:
        raise FlannelpyError(f"{wanted}: {TRY_AGAIN}") from None
    return [f"reserved {wanted} for {_name(host)}; it does not expire", *told]


async def _config(registry: Registry, where: str) -> NetworkConfig:
    """The config as stored at ``where``. Raises FlannelpyError with one line."""
    stored = await registry.config()
    if stored.text is None:
        raise FlannelpyError(f"no config at {where}; flannelpy config put FILE writes one")
    try:
        return NetworkConfig.parse(stored.text)
    except ConfigError as error:
        raise FlannelpyError(f"config at {where}: {error}") from None


def _check_fit(wanted: Subnets, config: NetworkConfig) -> None:
    """Raises FlannelpyError where no agent of this network could take it."""
    for version, net, pool in ((4, wanted.v4, config.v4), (6, wanted.v6, config.v6)):
        if net is not None and pool is None:
            raise FlannelpyError(f"{net}: the network has no IPv{version} subnets; nothing was written")
        if net is None and pool is not None:
            raise FlannelpyError(f"{wanted}: expected an IPv{version} subnet with it, like {pool.block(0)}; nothing was written")
        if net is not None and pool is not None and (why := _misfit(net, pool)):
            raise FlannelpyError(f"{net}: {why}; nothing was written")


def _misfit(net: IPNetwork, pool: Pool) -> str:
    if net.prefixlen != pool.length:
        return f"expected a /{pool.length}, the SubnetLen of this network"
    if why := pool.misfit(net):
        return why.removeprefix(f"{net} ")
    return "" if pool.fits(net) else f"expected one from {pool.first} to {pool.last} (SubnetMin to SubnetMax)"


def _as_published(host: LeaseAttrs, config: NetworkConfig) -> LeaseAttrs:
    """The host as its agent names itself in this network, or it would not know what is kept for it. Raises UsageError."""
    if config.v4 is not None and host.public_ip == NO_ADDRESS:
        raise UsageError(
            f"--public-ip: expected the host's IPv4 address: in a network of IPv4 that of IPv6, {_name(host)}, is no name"
        )
    if config.v4 is None and host.public_ipv6 is None:
        raise UsageError("--public-ipv6: expected the host's IPv6 address, by which agents of this network know it")
    return host if config.v4 is not None else replace(host, public_ip=NO_ADDRESS)


async def _pin(registry: Registry, there: Lease, host: LeaseAttrs | None, snapshot: Snapshot, config: NetworkConfig) -> list[str]:
    """Let the present holder keep its lease without an end: the same value, without the etcd lease."""
    holder = there.attrs
    if host is not None and not same_host(host, holder):
        raise FlannelpyError(
            f"{subnets_text(there)} is held by {_name(holder)}, not {_name(host)}; nothing was written"
            f" (flannelpy lease release {subnets_text(there)} first, with its agent stopped)"
        )
    if there.reserved:
        return [f"{subnets_text(there)} is reserved for {_name(holder)} already"]
    if why := unusable(there, snapshot.leases, config):
        raise FlannelpyError(f"{there} cannot be kept: {why}; nothing was written")
    _refuse_second_reservation(holder, snapshot, Subnets(*_halves_by_family(there)))
    try:
        await registry.renew(replace(there, etcd_lease=0), holder)
    except ConflictError:
        raise FlannelpyError(f"{subnets_text(there)}: {TRY_AGAIN}") from None
    return [f"{subnets_text(there)} stays with {_name(holder)}: its lease is a reservation now and does not expire"]


def _refuse_second_reservation(host: LeaseAttrs, snapshot: Snapshot, wanted: Subnets) -> list[str]:
    """A host uses one lease. What to say of another that it has; raises FlannelpyError where that is a reservation too."""
    others = [lease for lease in snapshot.leases if same_host(lease.attrs, host) and lease.key != wanted.lease.key]
    for lease in others:
        if lease.reserved:
            what = subnets_text(lease)
            raise FlannelpyError(
                f"{_name(host)} has a reservation already, {what}; nothing was written (flannelpy lease release {what} first)"
            )
    return [
        f"{_name(host)} holds {subnets_text(lease)} now; its agent takes the reserved one when it is restarted" for lease in others
    ]


def _halves_by_family(lease: Lease) -> tuple[IPNetwork | None, IPNetwork | None]:
    return (None if lease.subnet == EVERYTHING else lease.subnet), lease.subnet6


# ---------------------------------------------------------------------------------------------------------------- releasing


async def release(registry: Registry, named: Subnets, told: Told | None, where: str) -> list[str]:
    """Delete the key; ``told``: who named it, where no person did. Returns what to say.

    Raises FlannelpyError.
    """
    if told is not None:
        _check_network(told.path, await _config(registry, where))
    snapshot = await registry.snapshot()
    lease = next((lease for lease in snapshot.leases if named.name(lease)), None)
    bad = next((bad for bad in snapshot.malformed if bad.key == named.lease.key), None)
    if lease is None and bad is None:
        raise FlannelpyError(_unknown(named, snapshot))
    if told is not None and told.address and lease is not None and not published(lease, told.address):
        raise FlannelpyError(
            f"{told.path}: {lease} is another host's by now, this one last published {told.address}; name the SUBNET to release it"
        )
    try:
        if lease is not None:
            await registry.release(lease)
        elif bad is not None:  # the key says what subnet it is, only the value is none
            await registry.release(replace(named.lease, mod_revision=bad.mod_revision))
    except ConflictError:
        raise FlannelpyError(f"{named}: {TRY_AGAIN}") from None
    if lease is None:
        return [f"deleted {named}, whose value could not be read"]
    host = _name(lease.attrs)
    was = "it was reserved for" if lease.reserved else "it was leased by"
    return [
        f"released {subnets_text(lease)}; {was} {host}",
        f"an agent that still runs at {host} takes it again at once: stop it first, or stop it with --release-on-exit",
    ]


def published(lease: Lease, address: str) -> bool:
    """True where the lease is of a host with this PublicIP, of either family."""
    return address in (str(lease.public_ip), str(lease.attrs.public_ipv6))


def _unknown(named: Subnets, snapshot: Snapshot) -> str:
    """Why nothing was released, and what may have been meant."""
    if not snapshot.leases:
        return f"{named}: no such lease, there is none at all"
    hint = next((lease for lease in snapshot.leases if overlapping(lease, named.lease)), None)
    if hint is not None:
        return f"{named}: no such lease; {hint} overlaps it"
    wanted = named.v4 or named.v6
    assert wanted is not None
    near = [
        (abs(net.first - wanted.first), lease)
        for lease in snapshot.leases
        for net in halves(lease)
        if net.version == wanted.version
    ]
    nearest = f"; the nearest is {min(near, key=lambda pair: pair[0])[1]}" if near else ""
    return f"{named}: no such lease{nearest}; flannelpy lease list shows all"


def ours(path: Path) -> Subnets | None:
    """The subnets that this host's agent has told to others; None where it has told none."""
    told = subnet_env.read(path)
    return Subnets(told.subnet, told.subnet6) if told.subnet or told.subnet6 else None


def _check_network(path: Path, config: NetworkConfig) -> None:
    """Raises FlannelpyError where the subnet file belongs to another network than the one in etcd."""
    told = subnet_env.read(path)
    for network in (told.network, told.network6):
        if network is not None and network not in config.networks:
            here = ", ".join(map(str, config.networks))
            raise FlannelpyError(f"{path}: it is of the network {network}, the one in etcd is {here}; name the SUBNET to release")


# ------------------------------------------------------------------------------------------------------------------- words


def _name(host: LeaseAttrs) -> str:
    return printable(str(host.public_ip if host.public_ip != NO_ADDRESS else host.public_ipv6))


def host_named(public_ip: IPAddress | None, public_ipv6: IPAddress | None) -> LeaseAttrs | None:
    """The least that a lease says of a host (flannel-compat 4.6); None where no address was given."""
    if public_ip is None and public_ipv6 is None:
        return None
    return LeaseAttrs(public_ip or NO_ADDRESS, public_ipv6)
