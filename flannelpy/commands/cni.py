"""What do ``flannelpy cni install`` and ``uninstall`` do? They look at both files first, and then write or remove, a line each."""

from __future__ import annotations

from pathlib import Path

import click

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import printable
from flannelpy.host.cni.place import Whose, before, missing, placed


def install(bin_dir: str, conf_dir: str, *, dry_run: bool, force: bool) -> None:
    """Raises FlannelpyError; where a file is somebody else's, before anything is written."""
    files = placed(Path(bin_dir), Path(conf_dir))
    others = [each.path for each in files if each.whose() is Whose.ANOTHERS]
    if others and not force:
        raise FlannelpyError(f"{_listed(others)}: not flannelpy's, nothing is written; --force replaces it")
    for each in files:
        if dry_run:
            _say(f"would {'replace' if each.path in others else 'write'} {each.path} (mode {each.mode:04o})")
        elif each.write():
            _say(f"{'replaced' if each.path in others else 'wrote'} {each.path} (mode {each.mode:04o})")
        else:
            _say(f"{each.path} is up to date")
    if lacking := missing(Path(bin_dir)):
        _say(f"note: {bin_dir} has no {', '.join(lacking)}, which the network needs (Debian has them in /usr/lib/cni)")
    if first := before(Path(conf_dir)):
        _say(f"note: {first} comes first in {conf_dir}; a runtime that takes the first network takes that one")


def uninstall(bin_dir: str, conf_dir: str, *, dry_run: bool) -> None:
    """Remove what is ours; the network first, so that no runtime asks for a plugin that is gone. Raises FlannelpyError."""
    for each in reversed(placed(Path(bin_dir), Path(conf_dir))):
        whose = each.whose()
        if whose is not Whose.OURS:
            _say(f"{each.path} is {whose.value}" + ("; it stays" if whose is Whose.ANOTHERS else ""))
        elif dry_run:
            _say(f"would remove {each.path}")
        else:
            each.remove()
            _say(f"removed {each.path}")


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _say(line: str) -> None:
    click.echo(printable(line, 2000))
