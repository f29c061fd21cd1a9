"""What does somebody need who is to help, and was never on this host? One archive without a secret, and a list of what is in it."""

from __future__ import annotations

import asyncio
import io
import os
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import click

from flannelpy import __version__
from flannelpy.commands.ask import ask
from flannelpy.commands.doctor.run import diagnose
from flannelpy.commands.terminal import say
from flannelpy.core.errors import FlannelpyError
from flannelpy.explain import events
from flannelpy.explain.doctor import to_json
from flannelpy.explain.redact import redact
from flannelpy.explain.status import PAGE, SOCKET
from flannelpy.host.files import read_given
from flannelpy.options import Given
from flannelpy.settings import Settings, load

COMMAND_S = 10.0
MOST = 4 << 20
"""Letters of one file in it."""

COMMANDS: Mapping[str, str] = {
    "kernel/address": "ip -details address",
    "kernel/link": "ip -details -statistics link",
    "kernel/route": "ip -details route show table all",
    "kernel/route6": "ip -6 -details route show table all",
    "kernel/rule": "ip rule",
    "kernel/rule6": "ip -6 rule",
    "kernel/neighbour": "ip neighbour",
    "kernel/fdb": "bridge fdb",
    "kernel/nft": "nft list ruleset",
    "kernel/iptables": "iptables -S",
    "kernel/udp-ports": "ss -lunp",
    "kernel/sysctl": "sysctl net.ipv4.conf net.ipv6.conf net.ipv4.ip_forward",
    "log": "journalctl --unit flannelpy --lines 5000 --no-pager --output short-iso-precise",
    "unit": "systemctl cat flannelpy",
}
"""What is asked for, by its name in the archive."""


def write(given: Given, output: str | None) -> int:
    """Write the archive, readable for its owner only, and say what is in it. Raises UsageError, FlannelpyError."""
    settings = load(given, os.environ)
    known = tuple(_secrets(settings))
    contents = {name: redact(text, known)[:MOST] for name, text in _contents(given, settings)}
    when = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    stem = f"flannelpy-{platform.node() or 'host'}-{when}"
    path = Path(output or f"{stem}.tar.gz")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_archive(stem, contents))
    except OSError as error:
        raise FlannelpyError(f"{path}: cannot be written: {error.strerror}; expected a file that is not there yet") from None
    for name, text in contents.items():
        say(f"  {len(text):>9,}  {name}")
    click.echo(f"{path}: {len(contents)} files. Passwords and keys are left out; addresses, names and routes are not: look first.")
    return 0


def _archive(stem: str, contents: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in contents.items():
            data = text.encode(errors="replace")
            info = tarfile.TarInfo(f"{stem}/{name}")
            info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _contents(given: Given, settings: Settings) -> Iterator[tuple[str, str]]:
    """Name and text of each file; what cannot be had says why."""
    yield (
        "versions",
        f"flannelpy {__version__}\nPython {sys.version}\n{platform.platform()}\n{_output('ip -V')}{_output('nft --version')}",
    )
    yield "settings", "".join(f"{line}\n" for line in repr(settings).split(", "))
    for name, page in (("status.json", PAGE), ("events.json", events.PAGE)):
        try:
            yield name, ask(settings.run_dir / SOCKET, page)
        except FlannelpyError as error:
            yield name, f"{error}\n"
    yield "doctor.json", to_json(asyncio.run(diagnose(given, preflight=False)), __version__)
    for name, path in (("subnet.env", settings.subnet_file), ("default", Path("/etc/default/flannelpy"))):
        try:
            yield name, read_given(path).decode(errors="replace")
        except OSError as error:
            yield name, f"{path}: {error.strerror}\n"
    for name, command in COMMANDS.items():
        yield f"{name}.txt", f"$ {command}\n{_output(command)}"


def _output(command: str) -> str:
    """What a program says; why not, where it does not."""
    try:
        done = subprocess.run(command.split(), stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {COMMAND_S:g} s\n"
    except OSError as error:
        return f"{error.strerror}\n"
    return (done.stdout + done.stderr).decode(errors="replace")


def _secrets(settings: Settings) -> Iterator[str]:
    """The values of the secrets that this host has."""
    endpoint = settings.endpoint
    yield endpoint.password.reveal()
    state = settings.state_dir
    for file in (
        endpoint.password_file,
        endpoint.keyfile,
        settings.wireguard_key_file,
        settings.flannel_key_file,
        state / "wireguard.key",
    ):
        if file:
            with suppress(OSError, ValueError):
                text = read_given(Path(file)).decode(errors="replace")
                yield text.strip()
                yield from (line.strip() for line in text.splitlines() if not line.startswith("-----"))
