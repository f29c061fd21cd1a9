"""What does ``flannelpy lease`` do? It shows the leases, reserves a subnet, gives a lease back."""

from __future__ import annotations

import os

import click

from flannelpy.commands import leases, leases_text, reservations, terminal
from flannelpy.commands.conversation import config_key, demand_etcd, with_registry
from flannelpy.commands.located import located
from flannelpy.commands.terminal import say, warn
from flannelpy.core.errors import FlannelpyError
from flannelpy.host import state as state_file
from flannelpy.host.files import read_file
from flannelpy.options import Given
from flannelpy.settings import load_cleanup, load_public, load_subnet_file

WIDE = 200


def show(given: Given, whom: str | None, *, as_json: bool) -> int:
    """Print all leases, or those of ``whom`` (an address, a subnet, a name): 1 where there is none. Raises FlannelpyError."""
    about = None if whom is None else leases.About.parse(whom)
    given = located(given, os.environ)
    own = reservations.ours(load_subnet_file(given, os.environ))
    nets = [net for net in (own.v4, own.v6) if net is not None] if own else []
    listing = with_registry(given, lambda registry: leases.ask(registry, config_key(given), nets))
    if listing.unjudged and not listing.rows and not as_json:
        raise FlannelpyError(f"no leases, and no network: {listing.unjudged}")
    if listing.unjudged:
        warn([f"{listing.unjudged}; the leases are shown as they are"])
    if about is not None:
        listing = about.only(listing)
    if as_json:
        click.echo(leases.to_json(listing))
        return 1 if about and not listing.rows else 0
    if about is not None and not listing.rows:
        what = "has it" if about.net is not None else "calls himself so"
        raise FlannelpyError(f"{about}: nobody {what}; flannelpy lease list shows all")
    if listing.rows:
        click.echo(leases_text.text(listing, terminal.width(WIDE), colours=terminal.has_colours()))
    if about is None:
        for line in [*map(str, listing.rooms)] if listing.rows else [f"no leases; {room}" for room in listing.rooms]:
            say(line)
    return 0


def reserve(given: Given, subnet: str) -> None:
    """Keep the subnet for a host. Raises FlannelpyError, UsageError."""
    wanted, host = reservations.Subnets.parse(subnet), reservations.host_named(*load_public(given))
    given = located(given, os.environ)
    demand_etcd(
        given,
        "in Kubernetes a node's subnet is its podCIDR",
        "kubectl get nodes -o yaml shows them, the node has it as spec.podCIDR",
    )
    for line in with_registry(given, lambda registry: reservations.reserve(registry, wanted, host, config_key(given))):
        say(line)


def release(given: Given, subnet: str | None) -> None:
    """Delete the lease or reservation of the subnet, or of this host, where it is still its. Raises FlannelpyError, UsageError."""
    given = located(given, os.environ)
    demand_etcd(given, "in Kubernetes a node gives its podCIDR back when it is deleted", "kubectl delete node NAME does that")
    path = load_subnet_file(given, os.environ)
    if subnet is not None:
        named, told = reservations.Subnets.parse(subnet), None
    elif (own := reservations.ours(path)) is not None:
        named, told = own, reservations.Told(path, _kept_address(given))
    else:
        raise FlannelpyError(f"{path} names no subnet of this host; name the one to release: flannelpy lease release SUBNET")
    for line in with_registry(given, lambda registry: reservations.release(registry, named, told, config_key(given))):
        say(line)


def _kept_address(given: Given) -> str:
    """What this host's agent last published; empty where it has kept nothing, or nothing that may be read. Raises UsageError."""
    directory, _run_dir, _subnet_file, prefix = load_cleanup(given, os.environ)
    try:
        state = state_file.parse(read_file(directory / state_file.FILE, state_file.LARGEST))
    except (OSError, ValueError, FlannelpyError):
        return ""
    return state.address if prefix in (None, state.prefix) else ""
