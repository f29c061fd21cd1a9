"""What does ``flannelpy docker-opts`` do? Docker's options, from the subnet file, if that says what the agent here has leased."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click
from netaddr import AddrFormatError, IPNetwork

from flannelpy.commands.ask import ask
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.foreign import printable
from flannelpy.explain.status import SOCKET, from_json
from flannelpy.host.daemon_json import LARGEST, flags_of, merge, wanted
from flannelpy.host.docker import Surroundings, checked, docker_opts
from flannelpy.host.docker_unit import command_line
from flannelpy.host.files import read_file, same_file, write_file
from flannelpy.settings import load_run_dir

ROOT = Path("/")
DOCKERS = Path("/etc/docker")
"""The folder of Docker's own config file, which is made where Docker has not made it yet."""
WITHIN_S = 2.0
"""How long an agent may take to say what it has leased; one that does not is not waited for, because Docker waits for us."""


def write_options(env_file: str, output: str, *, key: str | None, individual: bool, with_ip_masq: bool) -> None:
    """Raises FlannelpyError, before anything is written."""
    path = Path(env_file)
    _demand_folder(Path(output))
    text = docker_opts(
        os.environ,
        path,
        key=key,
        individual=individual,
        with_ip_masq=with_ip_masq,
        surroundings=Surroundings(leased=leased(load_run_dir({}, os.environ), path)),
    )
    write_file(Path(output), text)


def merge_options(env_file: str, daemon_json: str, *, with_ip_masq: bool, dry_run: bool, root: Path = ROOT) -> None:
    """Put bip, mtu and ip-masq into daemon.json, and say each that was another. Raises FlannelpyError before it is written."""
    source, path = Path(env_file), Path(daemon_json)
    if path.parent != DOCKERS:
        _demand_folder(path)
    around = Surroundings(leased=leased(load_run_dir({}, os.environ), source))
    values = wanted(checked({}, source, around, with_ip_masq=with_ip_masq))
    try:
        text: str | None = read_file(path, LARGEST).decode()
    except FileNotFoundError:
        text = None
    except UnicodeDecodeError as error:
        raise FlannelpyError(f"{path}: byte {error.start} is not UTF-8: dockerd would not start; nothing was written") from None
    try:
        merged = merge(text, values, flags_of(command_line(root) or ()))
    except FlannelpyError as error:
        raise FlannelpyError(f"{path}: {error}") from None
    for change in merged.changes:
        _say(f"{path}: {change}")
    if not merged.changes:
        _say(f"{path} is up to date")
    elif dry_run:
        click.echo("flannelpy: dry run: nothing was written", err=True)
    else:
        write_file(path, merged.text, 0o644 if text is None else stat.S_IMODE(path.stat().st_mode))
        _say("Docker takes it up at its next start: systemctl restart docker (it stops its containers)")


def _demand_folder(path: Path) -> None:
    """A folder that is not there is most probably misspelt, and nobody would look into the one that is made."""
    if not path.parent.is_dir():
        raise FlannelpyError(f"{path}: there is no folder {path.parent}; expected one that is there; nothing was written")


def _say(line: str) -> None:
    click.echo(printable(line, 2000))


def leased(run_dir: Path, env_file: Path) -> IPNetwork | None:
    """The IPv4 subnet of the agent that has written this very subnet file; None where no agent answers, or it is of another."""
    try:
        status = from_json(ask(run_dir / SOCKET, within_s=WITHIN_S))
        ours = status.subnet_file.written and same_file(status.subnet_file.path, env_file)
        if not ours or status.lease is None or status.lease.subnet is None:
            return None
        return IPNetwork(status.lease.subnet).cidr
    except (FlannelpyError, AddrFormatError, ValueError):
        return None
