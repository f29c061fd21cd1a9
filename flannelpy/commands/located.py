"""Which registry does a command ask on a host that has an agent? The agent's own: what was written on the command line or in the
environment wins, then what the running agent says over its socket, then ``/etc/default/flannelpy``.

Options that belong together come from one place: a certificate with its key, a user with his password. Who names endpoints speaks
of another etcd; nothing of this host's credentials goes there. Leases that are Kubernetes' nodes are found in the same way.
"""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from flannelpy.commands.ask import ask
from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.foreign import LINE, printable
from flannelpy.explain import setup as documents
from flannelpy.explain.setup import Setup
from flannelpy.explain.status import SOCKET
from flannelpy.host import defaults
from flannelpy.host.files import directory, read_given
from flannelpy.options import BY_NAME, KUBE, Given, Option, spell_out
from flannelpy.settings import load_kube, load_run_dir

NODES = tuple(option.name for option in KUBE)
USER = ("etcd-username", "etcd-password", "etcd-password-file")
TOGETHER = (
    ("etcd-endpoints",),
    ("etcd-prefix",),
    ("etcd-cafile",),
    ("etcd-certfile", "etcd-keyfile"),
    USER,
    ("subnet-file",),
    NODES,
)
"""Names of flags that come from one place."""

_CREDENTIALS = struct.Struct("3i")


def located(given: Given, environ: Mapping[str, str]) -> Given:
    """What was given, and beside it how this host's agent reaches its registry; on stderr, where that comes from.

    Raises UsageError where ``/etc/default/flannelpy`` holds wrong options, FlannelpyError where it is no use.
    """
    added, place = _found(given, environ)
    if not place:
        return given
    if load_kube({**added, **given}, environ) is not None:
        click.echo(printable(f"flannelpy: Kubernetes {_server(added)}: {place}", LINE), err=True)
        return {**added, **given}
    urls = added.get("etcd-endpoints", [BY_NAME["etcd-endpoints"].default])[-1]
    click.echo(printable(f"flannelpy: etcd {_without_user(urls)}: {place}", LINE), err=True)
    return {**added, **given}


def with_nodes(given: Given, environ: Mapping[str, str]) -> Given:
    """What was given, and how this host's agent reaches Kubernetes, where its leases are there; else no more. Never raises."""
    with suppress(UsageError):
        added, _place = _found(given, environ)
        return {**{name: added[name] for name in NODES if name in added}, **given}
    return given


def _found(given: Given, environ: Mapping[str, str]) -> tuple[Given, str]:
    """What to add, and where it is from; empty where a person has said it, or nobody. Raises as ``located``."""
    if _written("etcd-endpoints", given, environ):
        return {}, ""
    told = told_by_defaults(defaults.read(defaults.DEFAULTS))
    path = load_run_dir({**_first(told, "run-dir", given, environ), **given}, environ) / SOCKET
    setup = _ask(path)
    if setup is not None:
        own_user = any(_written(name, given, environ) for name in USER)
        place, found = f"as the agent at {path} has it", _of_agent(setup, path, told, own_user=own_user)
    elif told:
        place, found = f"from {defaults.DEFAULTS}", told
    else:
        return {}, ""
    added = {
        name: found[name]
        for group in TOGETHER
        if not any(_written(name, given, environ) for name in group)
        for name in group
        if name in found
    }
    return added, place


def told_by_defaults(environ: Mapping[str, str]) -> Given:
    """The options in the service's variables: its line of flags wins, then FLANNELPY_*, then FLANNELD_*. Raises UsageError."""
    found: dict[str, list[str]] = {}
    for option in BY_NAME.values():
        if text := next((environ[variable] for variable in option.variables if environ.get(variable)), ""):
            found[option.name] = [text]
    try:
        words = spell_out(shlex.split(environ.get("FLANNELPY_OPTIONS", "")))
    except (ValueError, UsageError) as error:
        raise UsageError(f"{defaults.DEFAULTS}: FLANNELPY_OPTIONS: {error}") from None
    written: dict[str, list[str]] = {}
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if equals and name in BY_NAME:
            written.setdefault(name, []).append(value)
    return {**found, **written}


def _written(name: str, given: Given, environ: Mapping[str, str]) -> bool:
    """True where a person gave it: a flag, or a variable."""
    option: Option = BY_NAME[name]
    return bool(given.get(name)) or any(environ.get(variable) for variable in option.variables)


def _first(told: Given, name: str, given: Given, environ: Mapping[str, str]) -> Given:
    return {name: told[name]} if name in told and not _written(name, given, environ) else {}


def _ask(path: Path) -> Setup | None:
    """What the agent says; None where none can be asked, or one of another version."""
    # Whoever may put a socket there may tell us which file to hand to whom: not where others may write.
    with suppress(FlannelpyError, OSError), directory(path.parent):
        return documents.from_json(ask(path, documents.PAGE))
    return None


def _of_agent(setup: Setup, path: Path, told: Given, *, own_user: bool) -> Given:
    """As options. A password that the agent does not hand on stands in the service's file, or has to be given (``own_user``)."""
    found: dict[str, Sequence[str]] = {name: [value] for name, value in setup.options().items()}
    if setup.kube:
        # A kubeconfig may name programs to start: root starts none that an agent with fewer rights names.
        if setup.kubeconfig and os.geteuid() == 0 != _agents_user(path)[0]:
            del found["kubeconfig-file"]
        return found
    if own_user:
        return found
    if setup.password_file:
        found |= _readable(setup.password_file, path)
    elif setup.password_hidden:
        if told.get("etcd-password") and told.get("etcd-username") == [setup.username]:
            found["etcd-password"] = [*told["etcd-password"]]
        else:
            raise UsageError(
                f"the agent at {path} has etcd's password as text, which it hands to nobody: "
                "expected --etcd-username and --etcd-password-file"
            )
    return found


def _readable(file: str, path: Path) -> Given:
    """The password file that the agent names, read with no more rights than the agent's: its content goes to where it says."""
    user, group = _agents_user(path)
    if os.geteuid() != 0 or user == 0:
        return {}
    try:
        with _as_user(user, group):
            content = read_given(Path(file)).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"{file}, which the agent at {path} names: {why}; expected --etcd-password-file") from None
    return {"etcd-password": [content.rstrip("\r\n")], "etcd-password-file": []}


def _agents_user(path: Path) -> tuple[int, int]:
    """Who listens there (SO_PEERCRED, unix(7))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to_agent:
        to_agent.settimeout(1.0)
        to_agent.connect(os.fspath(path))
        _pid, user, group = _CREDENTIALS.unpack(to_agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user, group


@contextmanager
def _as_user(user: int, group: int) -> Iterator[None]:
    groups, own = os.getgroups(), os.getegid()
    with suppress(KeyError):
        os.setgroups(os.getgrouplist(pwd.getpwuid(user).pw_name, group))
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(groups)


def _server(added: Given) -> str:
    return next(
        (added[name][-1] for name in ("kube-api-url", "kubeconfig-file") if added.get(name)), "of this pod's service account"
    )


def _without_user(urls: str) -> str:
    """A password may stand before an @."""
    return ",".join(url if "@" not in url else f"...@{url.rpartition('@')[2]}" for url in urls.split(","))
