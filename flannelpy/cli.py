"""What does a person type? ``flannelpy [options]`` runs the agent; subcommands do the rest.

Only click is imported here; everything else comes with the command that needs it, so that ``--version`` and ``--help`` are quick
and the agent carries nothing it does not use. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from flannelpy import __version__
from flannelpy.core.errors import ConfigError, ConflictError, FlannelpyError, UsageError
from flannelpy.options import ACCEPTED, AGENT, BY_NAME, ETCD, REFUSED, WHOSE, Given, Option, spell_out

if TYPE_CHECKING:
    from flannelpy.registry import Registry

Answer = TypeVar("Answer")
Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])

CAP_NET_ADMIN = 12
"""Its bit in a capability set, linux/capability.h."""


def main(words: Sequence[str] | None = None) -> NoReturn:
    """The console script. Whatever is wrong ends as one line on stderr and an exit code."""
    sys.exit(_run(sys.argv[1:] if words is None else words))


def _run(words: Sequence[str]) -> int:
    try:
        outcome = flannelpy.main(spell_out(words), prog_name="flannelpy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:  # `flannelpy config`: the text is the command's help
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message().rstrip("."), error.exit_code)
    except UsageError as error:
        return _fail(str(error), 2)
    except FlannelpyError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:  # `flannelpy config get | head`: nobody reads on, and that is no failure worth a word
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        _drop_output()
        return _fail(f"the output cannot be written: {error.strerror}", 1)
    except (KeyboardInterrupt, click.Abort):
        return 130
    return outcome if isinstance(outcome, int) else 0


def _drop_output() -> None:
    """Send what is still buffered for stdout nowhere, so that the interpreter does not stumble over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str, code: int) -> int:
    click.echo(f"flannelpy: {text}", err=True)
    return code


# --------------------------------------------------------------------------------------------------------------- options


def _takes(*options: Option, hidden: bool = False) -> Callable[[Wrapped], Wrapped]:
    """Give a command options of the table. Their values stay text: ``settings`` reads them, with the environment's."""

    def add(command: Wrapped) -> Wrapped:
        for option in reversed(options):
            command = click.option(
                option.flag,
                option.name.replace("-", "_"),
                multiple=True,
                metavar="[true|false]" if option.boolean else option.metavar,
                help=f"{option.help}  [{option.default}]" if option.default else option.help,
                hidden=hidden,
            )(command)
        return command

    return add


def _given(values: dict[str, Any], before: Given | None = None) -> Given:
    """What was written, by flag name; options after a subcommand win over those before it."""
    written = {name.replace("_", "-") if name != "log_backtrace_at" else name: value for name, value in values.items() if value}
    return {**(before or {}), **written}


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"flannelpy {__version__}")
        context.exit()


# ----------------------------------------------------------------------------------------------------------------- agent


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="The environment may set every option: FLANNELPY_ETCD_ENDPOINTS is --etcd-endpoints; flanneld's FLANNELD_* work too.",
)
@_takes(*ETCD, *AGENT)
@_takes(*ACCEPTED, *REFUSED, hidden=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="say the version")
@click.pass_context
def flannelpy(context: click.Context, /, **values: Any) -> int:
    """Run the agent: lease a subnet in etcd and route it between the hosts."""
    context.obj = _given(values)
    return 0 if context.invoked_subcommand else run_agent(context.obj)


def run_agent(given: Given) -> int:
    """Run until stopped; 0 after a clean stop. Raises UsageError for wrong settings, before anything else is looked at."""
    from flannelpy.settings import load

    settings = load(given, os.environ)
    if not may_configure_networks(Path("/proc/self/status").read_text()):
        raise FlannelpyError("CAP_NET_ADMIN is missing: run it as root, or give the service AmbientCapabilities=CAP_NET_ADMIN")

    import logging

    import uvloop

    from flannelpy import logs
    from flannelpy.agent.agent import run

    logs.set_up(settings.log_level, settings.log_format)
    code = uvloop.run(run(settings))
    # What is open closes with the process. To take gRPC and some hundred modules apart first lasts 0.1 s, in which packets wait.
    logging.shutdown()
    os._exit(code)


def may_configure_networks(status: str) -> bool:
    """Whether the process of this ``/proc/PID/status`` has CAP_NET_ADMIN in effect; being root is neither needed nor enough."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    return True  # a kernel that does not tell: let it try


@flannelpy.command()
def version() -> None:
    """Say the version."""
    click.echo(f"flannelpy {__version__}")


@flannelpy.command()
@click.option("--peers", is_flag=True, help="each peer, too")
@click.option("--json", "as_json", is_flag=True, help="for programs: everything, with each peer")
@_takes(BY_NAME["run-dir"])
@click.pass_context
def status(context: click.Context, /, peers: bool, as_json: bool, **values: Any) -> int:
    """What this host's agent is doing. Exit code 0: all is well; 3: an error holds; 1: not ready, or it cannot be asked."""
    from flannelpy.commands.ask import report
    from flannelpy.settings import load_run_dir

    return report(load_run_dir(_given(values, context.find_root().obj), os.environ), peers=peers, as_json=as_json)


@flannelpy.command()
@click.option("--since", metavar="TIME", help="only what is younger: 90s, 30min, 1h, 2d")
@click.option("--follow", is_flag=True, help="go on with what comes, until ctrl-C")
@click.option("--json", "as_json", is_flag=True, help="for programs: one object a line")
@_takes(BY_NAME["run-dir"])
@click.pass_context
def events(context: click.Context, /, since: str | None, follow: bool, as_json: bool, **values: Any) -> int:
    """What has happened: peers that joined, left or moved, what went wrong and what was resolved."""
    from flannelpy.commands.events import show
    from flannelpy.settings import load_run_dir

    run_dir = load_run_dir(_given(values, context.find_root().obj), os.environ)
    return show(run_dir, since=since, follow=follow, as_json=as_json)


# -------------------------------------------------------------------------------------------------------- network config


@flannelpy.group()
def config() -> None:
    """Check, read and write the cluster's network config."""


@config.command("check")
@click.argument("file", metavar="FILE|-")
@click.option("--json", "as_json", is_flag=True, help="print the config as derived, in flannel's key names")
def config_check(file: str, as_json: bool) -> None:
    """Say what a config means, or what is wrong with it. Touches nothing."""
    from flannelpy.commands import netconfig

    text = _read(file)
    try:
        examined = netconfig.examine(text)
    except ConfigError as error:
        raise FlannelpyError(f"{_named(file)}: {error}") from None
    _warn(examined.warnings)
    if as_json:
        import json

        click.echo(json.dumps(examined.config.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 132).print(netconfig.table(examined))


@config.command("get")
@_takes(*ETCD)
@click.pass_context
def config_get(context: click.Context, /, **values: Any) -> int:
    """Print the config that is in etcd, and what is wrong with it if something is."""
    from flannelpy.commands import netconfig

    given = _given(values, context.find_root().obj)
    stored = _with_registry(given, lambda registry: registry.config())
    if stored.text is None:
        raise FlannelpyError(f"no config at {_config_key(given)}; flannelpy config put FILE writes one")
    click.echo(stored.text, nl=not stored.text.endswith("\n"))
    try:
        _warn(netconfig.examine(stored.text).warnings)
    except ConfigError as error:
        raise FlannelpyError(f"config at {_config_key(given)}: {error}") from None
    return 0


@config.command("put")
@click.argument("file", metavar="FILE|-")
@click.option("--force", is_flag=True, help="write it even if it is invalid; agents then wait until it is mended")
@_takes(*ETCD)
@click.pass_context
def config_put(context: click.Context, /, file: str, force: bool, **values: Any) -> None:
    """Validate a config, write it to etcd, and say what changed."""
    from flannelpy.commands import netconfig

    text = _read(file)
    try:
        _warn(netconfig.examine(text).warnings)
    except ConfigError as error:
        if not force:
            raise FlannelpyError(f"{_named(file)}: {error}; nothing was written (--force writes it)") from None
        _warn([f"{error}; --force writes it all the same"])

    async def put(registry: Registry) -> list[str]:
        stored = await registry.config()
        if stored.text == text:
            return ["unchanged"]
        await registry.put_config(text, expected=stored)
        return netconfig.changes(stored.text, text)

    given = _given(values, context.find_root().obj)
    try:
        told = _with_registry(given, put)
    except ConflictError:
        raise FlannelpyError(f"config at {_config_key(given)}: somebody changed it meanwhile; nothing was written") from None
    for line in told:
        click.echo(line)


# ---------------------------------------------------------------------------------------------------------------- leases


@flannelpy.group()
def lease() -> None:
    """Show the leases of the cluster, reserve subnets, give leases back."""


@lease.command("list")
@click.option("--json", "as_json", is_flag=True, help="for programs")
@_takes(BY_NAME["subnet-file"], *ETCD)
@click.pass_context
def lease_list(context: click.Context, /, as_json: bool, **values: Any) -> None:
    """Who holds which subnet, until when, and what is wrong with it."""
    from flannelpy.commands import leases, reservations
    from flannelpy.settings import load_subnet_file

    given = _given(values, context.find_root().obj)
    own = reservations.ours(load_subnet_file(given, os.environ))
    nets = [net for net in (own.v4, own.v6) if net is not None] if own else []
    listing = _with_registry(given, lambda registry: leases.ask(registry, _config_key(given), nets))
    if listing.unjudged and not listing.rows and not as_json:
        raise FlannelpyError(f"no leases, and no network: {listing.unjudged}")
    if listing.unjudged:
        _warn([f"{listing.unjudged}; the leases are shown as they are"])
    if as_json:
        click.echo(leases.to_json(listing))
        return
    if listing.rows:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(leases.table(listing))
    for line in [*map(str, listing.rooms)] if listing.rows else [f"no leases; {room}" for room in listing.rooms]:
        click.echo(line)


@lease.command("reserve")
@click.argument("subnet")
@_takes(*WHOSE, *ETCD)
@click.pass_context
def lease_reserve(context: click.Context, /, subnet: str, **values: Any) -> None:
    """Keep SUBNET for a host: the one that holds it, or the one of --public-ip. It does not expire."""
    from flannelpy.commands import reservations
    from flannelpy.settings import load_public

    given = _given(values, context.find_root().obj)
    wanted, host = reservations.Subnets.parse(subnet), reservations.host_named(*load_public(given))
    for line in _with_registry(given, lambda registry: reservations.reserve(registry, wanted, host, _config_key(given))):
        click.echo(line)


@lease.command("release")
@click.argument("subnet", required=False)
@_takes(BY_NAME["subnet-file"], *ETCD)
@click.pass_context
def lease_release(context: click.Context, /, subnet: str | None, **values: Any) -> None:
    """Delete the lease or reservation of SUBNET; of this host's own where none is named."""
    from flannelpy.commands import reservations
    from flannelpy.settings import load_subnet_file

    given = _given(values, context.find_root().obj)
    path = load_subnet_file(given, os.environ)
    if subnet is not None:
        named, told_by = reservations.Subnets.parse(subnet), None
    elif (own := reservations.ours(path)) is not None:
        named, told_by = own, path
    else:
        raise FlannelpyError(f"{path} tells of no subnet of this host; name the one to release: flannelpy lease release SUBNET")
    for line in _with_registry(given, lambda registry: reservations.release(registry, named, told_by, _config_key(given))):
        click.echo(line)


def _with_registry(given: Given, ask: Callable[[Registry], Awaitable[Answer]]) -> Answer:
    """Connect, ask one thing, and close."""
    from flannelpy.settings import load_endpoint

    endpoint = load_endpoint(given, os.environ)

    import uvloop

    from flannelpy.registry.etcd.registry import EtcdRegistry

    async def conversation() -> Answer:
        registry = EtcdRegistry(endpoint)
        try:
            return await ask(registry)
        finally:
            await registry.close()

    return uvloop.run(conversation())


def _config_key(given: Given) -> str:
    from flannelpy.settings import load_endpoint

    return f"{load_endpoint(given, os.environ).prefix}/config"


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        click.echo(f"flannelpy: warning: {warning}", err=True)


def _named(file: str) -> str:
    return "standard input" if file == "-" else file


def _read(file: str) -> str:
    """The text of a file or, for ``-``, of standard input. Raises FlannelpyError with one line."""
    if file == "-" and sys.stdin is None:
        raise FlannelpyError("standard input: it is closed; expected JSON text")
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise FlannelpyError(f"{_named(file)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FlannelpyError(f"{_named(file)}: byte {error.start} is not UTF-8; expected JSON text") from None


# ---------------------------------------------------------------------------------------------------------------- Docker


@flannelpy.command("docker-opts", context_settings={"help_option_names": ["-h", "-?", "--help"]})
@click.option("-f", "env_file", metavar="FILE", default="/run/flannel/subnet.env", show_default=True, help="what the agent wrote")
@click.option("-d", "output", metavar="FILE", default="/run/docker_opts.env", show_default=True, help="what Docker shall read")
@click.option("-i", "individual", is_flag=True, help="a variable for each option, like DOCKER_OPT_MTU")
@click.option("-c", "combined", is_flag=True, help="one variable with all options; without -i and -c both are written")
@click.option("-k", "key", metavar="NAME", default="DOCKER_OPTS", show_default=True, help="the combined variable's name")
@click.option("-m", "without_ip_masq", is_flag=True, help="leave --ip-masq out")
def docker_opts(env_file: str, output: str, individual: bool, combined: bool, key: str, without_ip_masq: bool) -> None:
    """Write Docker's daemon options for the subnet that the agent leased, as flannel's mk-docker-opts.sh does."""
    from flannelpy.host import docker, write_whole

    text = docker.docker_opts(
        os.environ,
        Path(env_file),
        key=key if combined or not individual else None,
        individual=individual or not combined,
        with_ip_masq=not without_ip_masq,
    )
    write_whole(Path(output), text)
