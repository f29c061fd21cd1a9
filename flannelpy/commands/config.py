"""What does ``flannelpy config`` do? It checks, reads and writes the network config, and says before what a change costs."""

from __future__ import annotations

import json
import os
import sys

import click

from flannelpy import plugins
from flannelpy.commands import cost, netconfig
from flannelpy.commands.conversation import config_key, demand_etcd, with_registry
from flannelpy.commands.located import located
from flannelpy.commands.terminal import agree, named, read, say, say_raw, show, warn
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError, ConflictError, FlannelpyError
from flannelpy.host import subnet_env
from flannelpy.options import Given
from flannelpy.registry import Registry, StoredConfig
from flannelpy.settings import load_kube, load_subnet_file

Situation = tuple[StoredConfig, int]
"""What is stored, and how many hosts hold a lease."""

_IN_KUBERNETES = "kubectl edit the ConfigMap that it comes from (net-conf.json), and the agents follow"


def check(file: str, *, as_json: bool) -> None:
    """Say what a config means, or raise FlannelpyError with what is wrong with it."""
    text = read(file)
    try:
        examined = netconfig.examine(text)
    except ConfigError as error:
        raise FlannelpyError(f"{named(file)}: {error}") from None
    warn([*examined.warnings, *_overlaps(examined.config)])
    if as_json:
        click.echo(json.dumps(examined.config.to_dict(), indent=2))
    else:
        show(netconfig.table(examined), wide=132)


def tell_options(formatter: click.HelpFormatter) -> None:
    """What the ``Backend`` object may hold, by Type, for a help text."""
    for name in plugins.names():
        rows = [(option.name, option.in_words) for option in plugins.of_type(name)]
        if rows:
            with formatter.section(f"Backend options of {name}"):
                formatter.write_dl(rows)


def get(given: Given) -> int:
    """Print what is stored, and what is wrong with it."""
    given = located(given, os.environ)
    stored = with_registry(given, lambda registry: registry.config())
    where = config_key(given)
    if stored.text is None:
        raise FlannelpyError(f"no config at {where}; {_writer(given)}")
    say_raw(stored.text)
    try:
        warn(netconfig.examine(stored.text).warnings)
    except ConfigError as error:
        raise FlannelpyError(f"config at {where}: {error}") from None
    return 0


def _writer(given: Given) -> str:
    return "flannelpy config put FILE writes one" if load_kube(given, os.environ) is None else _IN_KUBERNETES


def put(given: Given, file: str, *, force: bool, yes: bool) -> int:
    """Validate, say what changes and what that costs, ask, and write. Raises FlannelpyError, UsageError."""
    text = read(file)
    try:
        examined = netconfig.examine(text)
        warn([*examined.warnings, *_overlaps(examined.config)])
    except ConfigError as error:
        if not force:
            raise FlannelpyError(f"{named(file)}: {error}; nothing was written (--force writes it)") from None
        examined = None
        warn([f"{error}; --force writes it all the same"])
    given = located(given, os.environ)
    where = config_key(given)
    demand_etcd(given, f"in Kubernetes the network config is the file {where}", _IN_KUBERNETES)
    stored, hosts = with_registry(given, _look)
    if stored.text == text:
        say("unchanged")
        return 0
    for line in netconfig.changes(stored.text, text):
        say(line)
    costs = cost.of(netconfig.known(stored.text), examined) if hosts else []
    warn(map(str, costs))
    if not all(each.harmless for each in costs) and not yes and not _agreed(file, hosts):
        return 1
    try:
        with_registry(given, lambda registry: registry.put_config(text, expected=stored))
    except ConflictError:
        raise FlannelpyError(f"config at {where}: somebody changed it meanwhile; nothing was written") from None
    return 0


def _overlaps(config: NetworkConfig) -> list[str]:
    """Whatever host this is: where it has a subnet of the overlay, the bridge that has it does not count."""
    own = subnet_env.read(load_subnet_file({}, os.environ)).subnet
    return cost.overlaps(config, cost.own_networks(own))


def _agreed(file: str, hosts: int) -> bool:
    """Raises FlannelpyError where nobody is there to be asked."""
    who = "1 host holds a lease" if hosts == 1 else f"{hosts:,} hosts hold leases"
    if file == "-" or sys.stdin is None or not sys.stdin.isatty():
        raise FlannelpyError(f"{who}, and this change costs them what is said above; nothing was written (--yes writes it)")
    if agree(f"{who}. Write it?"):
        return True
    click.echo("nothing was written", err=True)
    return False


async def _look(registry: Registry) -> Situation:
    stored = await registry.config()
    if stored.text is None:
        return stored, 0
    return stored, sum(bool(lease.attrs.backend_type) for lease in (await registry.snapshot()).leases)
