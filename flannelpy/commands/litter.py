"""Which files of this host did the agents of one network make, and how do they go?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flannelpy.agent.lock import LOCK
from flannelpy.commands.leftovers import Known, Places, is_ours
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.xfrm import IKE_CONF, IKE_DIRECTORY, IKE_LOG, IKE_SOCKET, IKE_TERMS
from flannelpy.explain.places import READY, SOCKET
from flannelpy.host import ike, view_file, wireguard_key
from flannelpy.host import state as state_file
from flannelpy.host.docker import docker_opts
from flannelpy.host.files import directory, read_file

DOCKER_OPTS = Path("/run/docker_opts.env")
"""Where the service has Docker's options written."""

_LARGEST = 1 << 16
_KEPT = (state_file.FILE, view_file.FILE, view_file.PROMISED, wireguard_key.FILE)
_STATE = re.compile("|".join(rf"{re.escape(name)}(\.corrupt(\.[2-9])?)?|\.{re.escape(name)}\.new" for name in _KEPT))
"""What the agent puts into its state directory: files, those it set aside, and those it was about to rename."""


_NEVER = tuple(map(Path, ("/", "/run", "/var/run", "/var/lib", "/tmp")))


@dataclass(frozen=True, slots=True)
class Piece:
    """One file, or directory, that goes; ``do`` raises OSError, FlannelpyError."""

    text: str
    do: Callable[[], None]


def litter(places: Places, known: Known, *, with_state: bool, released: bool = False) -> tuple[Piece, ...]:
    """What goes, in order. ``with_state``: the identity of this host, too; ``released``: our lease is given back before."""
    return tuple(_pieces(places, known, with_state, released))


def _pieces(places: Places, known: Known, with_state: bool, released: bool) -> Iterator[Piece]:
    if is_ours(places, known) and not known.flanneld:  # a flanneld writes it once, when it starts
        if _made_from(places.subnet_file):
            yield _file(DOCKER_OPTS)
        yield _file(places.subnet_file)
        if places.subnet_file.parent.name == "flannel":  # another one may have been there before us
            yield from _empty(places.subnet_file.parent, {places.subnet_file.name})
    for _name, path in known.left:
        yield _file(path)
    yield from _empty(places.claims, {path.name for _name, path in known.left})
    run = {SOCKET, LOCK, READY} & _names(places.run_dir)
    yield from (_file(places.run_dir / name) for name in sorted(run))
    daemon = tuple(_daemon(places.run_dir))
    yield from daemon
    yield from _empty(places.run_dir, run | ({IKE_DIRECTORY} if daemon else set()))
    if with_state:
        kept = {name for name in _names(places.state_dir) if _STATE.fullmatch(name)}
        yield from (_file(places.state_dir / name) for name in sorted(kept))
        yield from _empty(places.state_dir, kept)
    elif not known.flanneld:  # beside one what it may use stays, and goes by another cleanup once it has ended
        # Whoever makes a device of that name from now on is somebody else.
        forgotten = replace(known.state, devices=(), fou_ports=(), networks=(), policies=False)
        forgotten = replace(forgotten, lease_key="") if released else forgotten
        if forgotten != known.state:
            path, what = places.state_dir / state_file.FILE, "devices, FOU ports and networks"
            text = f"{path}: forget {what}{' and the lease' if released else ''}"
            yield Piece(text, lambda: state_file.write(places.state_dir, forgotten))


def _daemon(run_dir: Path) -> Iterator[Piece]:
    """ipsec's: one that an agent which was killed has left running, and its files."""
    pid, place = ike.left(run_dir), run_dir / IKE_DIRECTORY
    if pid is not None:
        yield Piece(f"kill {pid} (charon, which serves {place / IKE_SOCKET})", partial(ike.end, pid))
    made = {IKE_SOCKET, IKE_CONF, IKE_LOG, IKE_TERMS} & _names(place)
    yield from (_file(place / name) for name in sorted(made))
    if place.is_dir():
        yield from _empty(place, made)


def _file(path: Path) -> Piece:
    def remove() -> None:
        with suppress(FileNotFoundError), directory(path.parent) as parent:
            os.unlink(path.name, dir_fd=parent)

    return Piece(f"rm {path}", remove)


def _empty(path: Path, going: set[str]) -> Iterator[Piece]:
    """The directory, where nothing is left in it; not one that is a mount, or that is there for others."""
    there = _names(path)
    if not path.is_dir() or path.is_symlink() or path.is_mount() or path in _NEVER:
        return
    if there <= going:

        def remove() -> None:
            with suppress(OSError):  # something is there by now, or it is a mount
                path.rmdir()

        yield Piece(f"rmdir {path}", remove)


def _names(path: Path) -> set[str]:
    with suppress(OSError):
        return {each.name for each in path.iterdir()}
    return set()


def _made_from(subnet_file: Path) -> bool:
    """True where Docker's options are those that the service made of this very subnet file."""
    with suppress(FlannelpyError, OSError):
        there = read_file(DOCKER_OPTS, _LARGEST).decode(errors="replace")
        return there == docker_opts({}, subnet_file, key="DOCKER_OPTS", individual=True, with_ip_masq=True)
    return False
