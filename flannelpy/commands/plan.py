"""What does ``flannelpy plan`` do? It says what the agent would change on this host, now or under another config, and does nothing.

Exit code 0; with ``--exit-code`` 4 where something would change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from flannelpy.agent.holders import holder
from flannelpy.commands import cost, netconfig
from flannelpy.commands.ask import ask
from flannelpy.commands.located import told_by_defaults
from flannelpy.commands.terminal import named, read, say, warn
from flannelpy.core.dialect import lines
from flannelpy.core.errors import ConfigError, FlannelpyError, MalformedError
from flannelpy.core.foreign import LINE, printable
from flannelpy.explain import plan as documents
from flannelpy.explain.plan import Planned
from flannelpy.explain.status import SOCKET
from flannelpy.host import defaults, subnet_env
from flannelpy.options import BY_NAME, Given
from flannelpy.settings import Settings, load

WOULD_CHANGE = 4
"""The exit code of ``--exit-code`` where something would change."""


def plan(given: Given, config: str | None, *, as_json: bool, exit_code: bool) -> int:
    """Print what would change. Raises FlannelpyError in one line, UsageError."""
    settings = _settings(given, os.environ)
    running = holder(settings.run_dir) is not None
    planned = _of_agent(settings.run_dir / SOCKET) if running and config is None else _forecast(settings, config)
    if as_json:
        click.echo(documents.to_json(planned))
    else:
        for note in planned.notes:
            click.echo(printable(f"flannelpy: {note}", LINE), err=True)
        for line in planned.steps or ("nothing to do",):
            say(line)
    return WOULD_CHANGE if exit_code and planned.steps else 0


def _settings(given: Given, environ: Mapping[str, str]) -> Settings:
    """As the service's agent runs; what was given wins."""
    told = told_by_defaults(defaults.read(defaults.DEFAULTS))
    ours = {
        name: values
        for name, values in told.items()
        if not given.get(name) and not any(environ.get(variable) for variable in BY_NAME[name].variables)
    }
    return load({**ours, **given}, environ)


def _of_agent(path: Path) -> Planned:
    try:
        return documents.from_json(ask(path, documents.PAGE))
    except MalformedError as error:
        raise FlannelpyError(f"{path}: {error}; is the agent of another version? Restart it after an upgrade") from None


def _forecast(settings: Settings, file: str | None) -> Planned:
    from flannelpy.agent.forecast import Remembered, of_stopped

    if os.geteuid() != 0:
        raise FlannelpyError("plan needs root where no agent answers it: start it with sudo")
    text = None if file is None else read(file)
    known = Remembered.read(settings)
    notes = [f"by what was kept of the cluster at revision {known.view.revision}"]
    if text is not None and file is not None:
        try:
            before, after = netconfig.known(known.view.config), netconfig.examine(text)
            warn(map(str, cost.of(before, after)))
            notes += cost.meanwhile(before, after)
        except ConfigError as error:
            raise FlannelpyError(f"{named(file)}: {error}") from None

    import uvloop

    from flannelpy.kernel.netlink import NetlinkKernel

    async def look() -> tuple[tuple[str, ...], int, tuple[str, ...]]:
        kernel = NetlinkKernel()
        try:
            found = await of_stopped(kernel, settings, known, known.view.config if text is None else text)
        finally:
            await kernel.close()
        return tuple(lines(found.steps)), found.mtu, found.notes

    steps, mtu, more = uvloop.run(look())
    docker = [] if text is None else _docker(settings.subnet_file, mtu)
    return Planned(steps, (*notes, *more, *docker))


def _docker(subnet_file: Path, mtu: int) -> list[str]:
    """What Docker has to be told."""
    before = subnet_env.read(subnet_file).mtu
    if before is None or before == mtu:
        return []
    return [f"Docker: --mtu {before} -> {mtu}, with flannelpy docker-opts and systemctl restart docker, which stops its containers"]
