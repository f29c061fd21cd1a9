"""What does ``flannelpy cleanup --all`` take back beside what ``cleanup`` does? All that ``flannelpy setup`` has written."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import click

from flannelpy.commands import cleanup
from flannelpy.commands.setup import DROP_IN, SYSTEMCTL_S, UNIT, Host, Step, demand, unit_there
from flannelpy.commands.terminal import agreed, say
from flannelpy.core.errors import FlannelpyError
from flannelpy.host import service
from flannelpy.host.files import directory, write_file
from flannelpy.host.service import TextFile
from flannelpy.host.shipped import DOCKER_DROP_IN, shipped
from flannelpy.options import Given

MARK = "flannelpy_docker"
"""The comment of the drop-in's rule; no agent's table has such a name."""


def take_back(given: Given, wish: cleanup.Wish) -> int:
    """Stop and disable the service, take the files back, then clean up, identity included. As ``cleanup.cleanup``.

    Raises UsageError, FlannelpyError.
    """
    if os.geteuid() != 0:
        raise FlannelpyError("cleanup needs root: start it with sudo")
    cleanup.find_places(given, os.environ)  # raises for wrong options before the service is stopped
    host = Host()
    first, last = list(service_steps(host)), list(file_steps(host))
    for step in (*first, *last):
        say(step.text)
    if wish.dry_run and first:
        click.echo("flannelpy: dry run: nothing was changed; what the agent has made is listed once it is stopped", err=True)
        return 0
    if (first or last) and not wish.dry_run and not wish.yes and not agreed("Take all of this away?"):
        return 1
    if wish.dry_run:
        return cleanup.cleanup(given, replace(wish, state=True))
    for step in first:
        step.carry_out()
    # The options say where the agent's files are: they go after it.
    code = cleanup.cleanup(given, replace(wish, state=True, yes=wish.yes or bool(first or last)))
    if code == 0:
        for step in last:
            step.carry_out()
    return code


def service_steps(host: Host) -> Iterator[Step]:
    """Nothing where it neither runs nor would at the next boot."""
    if not unit_there(host):
        return
    enabled, active = host.systemctl("is-enabled", UNIT)[1] == "enabled", host.active() not in ("inactive", "failed", "unknown")
    if enabled or active:
        yield Step(f"systemctl disable --now {UNIT}", lambda: demand(host, "disable", "--now", UNIT))


def file_steps(host: Host) -> Iterator[Step]:
    """Our block in the service's options, and the drop-in where it is as we wrote it. Raises FlannelpyError."""
    options = TextFile.read(host.defaults)
    if options.text is not None and service.MARK in options.text:
        before = service.without_block(options.text)
        if before:
            yield Step(f"take what setup wrote out of {options.path}", lambda: _write(options, before))
        else:
            yield Step(f"rm {options.path}", lambda: _remove(options))
    drop_in = TextFile.read(host.root / DROP_IN)
    if drop_in.text is not None and drop_in.text == shipped(DOCKER_DROP_IN):

        def gone() -> None:
            _remove(drop_in)
            with suppress(OSError):
                drop_in.path.parent.rmdir()
            _drop_rules()
            host.systemctl("daemon-reload")
            say("note: docker0 keeps its address until daemon.json has another as bip (172.17.0.1/16 is Docker's own)")

        yield Step(f"rm {drop_in.path}", gone)


def _drop_rules() -> None:
    """What the drop-in has put into Docker's chain, by its mark. No iptables, or no such chain, is no failure."""
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["iptables", "-S", "DOCKER-USER"], capture_output=True, text=True, check=True, timeout=SYSTEMCTL_S)
        for line in listed.stdout.splitlines():
            if f" --comment {MARK} " in line:
                words = ["iptables", "-w", *shlex.split(line.replace("-A", "-D", 1))]
                subprocess.run(words, capture_output=True, check=True, timeout=SYSTEMCTL_S)


def _write(file: TextFile, text: str) -> None:
    write_file(file.path, text, 0o640)


def _remove(file: TextFile) -> None:
    with suppress(FileNotFoundError), directory(file.path.parent) as parent:
        os.unlink(file.path.name, dir_fd=parent)
