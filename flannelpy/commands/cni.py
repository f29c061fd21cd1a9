"""What do ``flannelpy cni install`` and ``uninstall`` do? They look at all files first, then write or remove, a line each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from flannelpy.commands.setup import Host, demand
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import printable
from flannelpy.host.cni.place import Whose, before, missing, network, plugin, waiting
from flannelpy.host.docker_unit import FOLDERS
from flannelpy.host.files import same_file

UNIT = "flannelpy-cni.service"
CONF_DIR = "/etc/cni/net.d"
"""The folder that the unit's network is in."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. ``static``: the network is there whether the agent is ready or not."""

    bin_dir: str
    conf_dir: str
    dry_run: bool
    force: bool = False
    static: bool = False


def install(wish: Wish, host: Host | None = None) -> None:
    """Raises FlannelpyError; where a file is somebody else's, before anything is written."""
    host = host or Host()
    bin_dir, conf_dir = Path(wish.bin_dir), Path(wish.conf_dir)
    there, away = network(conf_dir), waiting(conf_dir)
    known = same_file(wish.conf_dir, CONF_DIR) and _unit_there(host)
    follows = known and not wish.static
    # With the unit it begins as one that waits: a runtime would use it at once.
    files = plugin(bin_dir), away if follows and there.whose() is Whose.NOBODY else there
    others = [each.path for each in (files[0], there, away) if each.whose() is Whose.ANOTHERS]
    if others and not wish.force:
        raise FlannelpyError(f"{_listed(others)}: not flannelpy's, nothing is written; --force replaces it")
    if known and not follows:  # before: what is written would be renamed, and then go as one that waits
        _switch(host, "disable", wish)
    for each in files:
        if wish.dry_run:
            _say(f"would {'replace' if each.path in others else 'write'} {each.path} (mode {each.mode:04o})")
        elif each.write():
            _say(f"{'replaced' if each.path in others else 'wrote'} {each.path} (mode {each.mode:04o})")
        else:
            _say(f"{each.path} is up to date")
    if away not in files and away.path in others:
        _say(f"{'would remove' if wish.dry_run else 'removed'} {away.path}")
        if not wish.dry_run:
            away.remove()
    if follows:
        _switch(host, "enable", wish)
    if follows and not wish.dry_run:
        _say(f"{there.path} is {'' if os.path.lexists(there.path) else 'not '}there: it is while the agent is ready")
    elif not wish.dry_run and away.whose() is Whose.OURS:
        away.remove()
    if lacking := missing(bin_dir):
        _say(f"note: {bin_dir} has no {', '.join(lacking)}, which the network needs (Debian has them in /usr/lib/cni)")
    if first := before(conf_dir):
        _say(f"note: {first} comes first in {conf_dir}; a runtime that takes the first network takes that one")


def uninstall(wish: Wish, host: Host | None = None) -> None:
    """Remove what is ours; the network first, so that no runtime asks for a plugin that is gone. Raises FlannelpyError."""
    host = host or Host()
    conf_dir = Path(wish.conf_dir)
    if same_file(wish.conf_dir, CONF_DIR) and _unit_there(host):
        _switch(host, "disable", wish)
    away = waiting(conf_dir)
    files = (*([away] if away.whose() is not Whose.NOBODY else []), network(conf_dir), plugin(Path(wish.bin_dir)))
    for each in files:
        whose = each.whose()
        if whose is not Whose.OURS:
            _say(f"{each.path} is {whose.value}" + ("; it stays" if whose is Whose.ANOTHERS else ""))
        elif wish.dry_run:
            _say(f"would remove {each.path}")
        else:
            each.remove()
            _say(f"removed {each.path}")


def _unit_there(host: Host) -> bool:
    """Has a systemd that runs here the unit that keeps the network as the agent is?"""
    known = any((host.root / folder / UNIT).is_file() for folder in FOLDERS)
    return known and (host.root / "run/systemd/system").is_dir()


def _switch(host: Host, verb: str, wish: Wish) -> None:
    _say(f"{'would ' if wish.dry_run else ''}systemctl {verb} --now {UNIT}")
    if not wish.dry_run:
        demand(host, verb, "--now", UNIT)


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _say(line: str) -> None:
    click.echo(printable(line, 2000))
