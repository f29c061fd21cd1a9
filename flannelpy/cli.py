"""What does a person type? ``flannelpy [options]`` runs the agent; subcommands do the rest. They are only declared here.

Only click is imported here; everything else comes with the command that needs it, so that ``--version`` and ``--help`` are quick
and the agent carries nothing it does not use. Exit codes: 0 done, 1 failed, 2 wrong usage; 3 from ``status`` and
``doctor`` while an error holds, from ``trace`` and ``ping`` where packets are lost; 4 from ``doctor`` where only a warning holds.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import click

from flannelpy import __version__
from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.foreign import LINE, printable
from flannelpy.options import ACCEPTED, AGENT, BY_NAME, ETCD, KUBE, WHOSE, Given, Option, spell_out

Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])


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
    click.echo(f"flannelpy: {printable(text, LINE)}", err=True)
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


def _asks(command: Wrapped) -> Wrapped:
    """The agent's options for a command that asks it: those that say whom stand in --help, the others are taken without a word."""
    whom = [BY_NAME[name] for name in ("run-dir", "subnet-file", "etcd-endpoints", "etcd-prefix")]
    return _takes(*whom)(_takes(*(option for option in (*ETCD, *KUBE, *AGENT) if option not in whom), hidden=True)(command))


_MORE = "The agent's other options are taken, too: flannelpy --help lists them."


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
@_takes(*ETCD, *KUBE, *AGENT)
@_takes(*ACCEPTED, hidden=True)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="say the version")
@click.pass_context
def flannelpy(context: click.Context, /, **values: Any) -> int:
    """Run the agent: lease a subnet in etcd, or have our Kubernetes node's, and route it between the hosts."""
    context.obj = _given(values)
    if context.invoked_subcommand:
        return 0
    from flannelpy.commands.run import run_agent

    return run_agent(context.obj)


@flannelpy.command()
def version() -> None:
    """Say the version."""
    click.echo(f"flannelpy {__version__}")


@flannelpy.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def help_(context: click.Context, /, command: tuple[str, ...]) -> None:
    """Show what a COMMAND takes, or what there is."""
    shown: click.Context = context.find_root()
    for word in command:
        group = shown.command
        found = group.get_command(shown, word) if isinstance(group, click.Group) else None
        if found is None:
            raise click.UsageError(f"No such command {word!r}")
        shown = click.Context(found, parent=shown, info_name=word)
    click.echo(shown.get_help())


@flannelpy.command()
@click.option("--peers", is_flag=True, help="each peer, too, the worst first")
@click.option("--bad", is_flag=True, help="each peer that something is the matter with, and no other")
@click.option("--watch", is_flag=True, help="again each 2 seconds; q or ctrl-C ends it")
@click.option("--json", "as_json", is_flag=True, help="for programs: everything, with each peer")
@click.option("--graph", metavar="FILE.svg|-", help="draw whom this host reaches, by what and how fast")
@_takes(BY_NAME["run-dir"])
@click.pass_context
def status(context: click.Context, /, peers: bool, bad: bool, watch: bool, as_json: bool, graph: str | None, **values: Any) -> int:
    """What this host's agent is doing. Exit code 0: ready; 1: not ready, or no agent can be asked; 3: an error holds."""
    from flannelpy.commands.ask import follow, picture, report
    from flannelpy.settings import load_run_dir

    run_dir = load_run_dir(_own(context, values), os.environ)
    if as_json and (bad or watch):
        raise UsageError(f"--json has every peer, once: expected no {'--watch' if watch else '--bad'} with it")
    if graph is not None and (as_json or watch or peers or bad):
        raise UsageError("--graph draws every peer: expected no --json, --watch, --peers or --bad with it")
    if graph is not None:
        return picture(run_dir, graph)
    if watch:
        return follow(run_dir, peers=peers, bad=bad)
    return report(run_dir, peers=peers, bad=bad, as_json=as_json)


@flannelpy.command()
@click.option("--preflight", is_flag=True, help="before the first start: that no agent runs is no fault")
@click.option("--json", "as_json", is_flag=True, help="for programs: each check with its state")
@_takes(*ETCD, *KUBE, *AGENT)
@click.pass_context
def doctor(context: click.Context, /, preflight: bool, as_json: bool, **values: Any) -> int:
    """Look for what is wrong with this host. Exit code 0: nothing; 3: a check has failed; 4: something wants a look."""
    from flannelpy.commands.doctor.run import examine

    return examine(_own(context, values), preflight=preflight, as_json=as_json)


@flannelpy.command(epilog=_MORE)
@click.argument("dst", metavar="DST")
@click.option("--from", "source", metavar="SRC", help="a container's address on this host  [one that nobody has]")
@click.option("--live", is_flag=True, help="send real packets, as a container's, and watch where they pass; needs root, and scapy")
@click.option("--json", "as_json", is_flag=True, help="for programs: each hop with what becomes of the packet")
@_asks
@click.pass_context
def trace(context: click.Context, /, dst: str, source: str | None, live: bool, as_json: bool, **values: Any) -> int:
    """What becomes of a container's packet to DST (address, peer's name, PublicIP or subnet). Exit code 0: gets through; 3: not."""
    from flannelpy.commands.trace.run import trace as follow

    return follow(_own(context, values), dst, source, live=live, as_json=as_json)


@flannelpy.command(epilog=_MORE)
@click.argument("dst", metavar="DST")
@click.option("--count", metavar="N", default=4, show_default=True, type=click.IntRange(1, 1_000_000), help="so many, one a second")
@_asks
@click.pass_context
def ping(context: click.Context, /, dst: str, count: int, **values: Any) -> int:
    """Ask DST (as for trace) from this host, with small and with full packets. Exit code 0: all came back; 3: some did not."""
    from flannelpy.commands.trace.ping import ping as ask

    return ask(_own(context, values), dst, count)


@flannelpy.command(epilog=_MORE)
@click.option("--output", metavar="FILE", help="where to; it must not be there yet  [flannelpy-HOST-TIME.tar.gz]")
@_asks
@click.pass_context
def bugreport(context: click.Context, /, output: str | None, **values: Any) -> int:
    """Write one archive for whoever is to help: status, events, doctor, kernel, log; without passwords and keys."""
    from flannelpy.commands.bugreport import write

    return write(_own(context, values), output)


@flannelpy.command()
@click.option("--since", metavar="SPAN", help="only what happened within the last 30s, 10m, 1h or 2d")
@click.option("--follow", is_flag=True, help="go on with what happens from now on; ctrl-C ends it")
@click.option("--json", "as_json", is_flag=True, help="for programs: an object a line")
@_takes(BY_NAME["run-dir"])
@click.pass_context
def events(context: click.Context, /, since: str | None, follow: bool, as_json: bool, **values: Any) -> int:
    """What has happened: peers that came and went, repairs, conditions, changes of config, lease and uplink."""
    from flannelpy.commands.events import show
    from flannelpy.settings import load_run_dir

    return show(load_run_dir(_own(context, values), os.environ), since=since, follow=follow, as_json=as_json)


@flannelpy.command()
@click.option("--config", metavar="FILE|-", help="what this network config would change, instead of the one that is in use")
@click.option("--json", "as_json", is_flag=True, help="for programs")
@click.option("--exit-code", is_flag=True, help="exit with 4 where something would change")
@_takes(*ETCD, *KUBE, *AGENT)
@click.pass_context
def plan(context: click.Context, /, config: str | None, as_json: bool, exit_code: bool, **values: Any) -> int:
    """What the agent would change on this host now, as one would type it. Nothing is changed; works without an agent, too."""
    from flannelpy.commands.plan import plan as show

    return show(_own(context, values), config, as_json=as_json, exit_code=exit_code)


@flannelpy.command()
@click.option("--dry-run", is_flag=True, help="say what would be done, and change nothing")
@click.option("--yes", is_flag=True, help="do not ask; scripts need it")
@click.option("--network", metavar="CIDR", help="the overlay's network, where the cluster has no config yet")
@click.option("--backend", metavar="TYPE", help="with --network: the backend  [vxlan]")
@click.option("--config", metavar="FILE|-", help="the whole network config instead, where the cluster has none yet")
@click.option("--wait", metavar="SECONDS", type=click.FloatRange(min=0), default=120, help="for the agent to be ready  [120]")
@_takes(*ETCD, *KUBE, *AGENT)
@click.pass_context
def setup(
    context: click.Context,
    /,
    dry_run: bool,
    yes: bool,
    network: str | None,
    backend: str | None,
    config: str | None,
    wait: float,
    **values: Any,
) -> int:
    """A first start: look at the host, write the service's options and Docker's drop-in, start, wait until it is ready."""
    from flannelpy.commands.setup import Wish
    from flannelpy.commands.setup import setup as set_up

    return set_up(_own(context, values), Wish(dry_run, yes, network, backend, config, wait))


@flannelpy.command()
@click.option("--dry-run", is_flag=True, help="say what would go, and change nothing")
@click.option("--yes", is_flag=True, help="do not ask; scripts need it")
@click.option("--all", "everything", is_flag=True, help="stop the service, take back what setup wrote, then this with --state")
@click.option("--state", is_flag=True, help="what survives a reboot, too: MACs, keys, which lease is ours")
@click.option("--release-lease", is_flag=True, help="give the subnet back to etcd, too; else the lease ends within a day")
@_takes(BY_NAME["state-dir"], BY_NAME["run-dir"], BY_NAME["subnet-file"], *ETCD, *KUBE)
@click.pass_context
def cleanup(
    context: click.Context, /, dry_run: bool, yes: bool, everything: bool, state: bool, release_lease: bool, **values: Any
) -> int:
    """Take away all that the agent has made on this host, once it is stopped. Needs neither etcd nor a config."""
    from flannelpy.commands.cleanup import Wish
    from flannelpy.commands.cleanup import cleanup as clean
    from flannelpy.commands.takeback import take_back

    if everything:
        return take_back(_own(context, values), Wish(dry_run, yes, state, release_lease))
    return clean(_own(context, values), Wish(dry_run, yes, state, release_lease))


def _own(context: click.Context, values: dict[str, Any]) -> Given:
    """What was written before the subcommand and after it."""
    return _given(values, context.find_root().obj)


# -------------------------------------------------------------------------------------------------------- network config


@flannelpy.group()
def config() -> None:
    """Check, read and write the cluster's network config."""


@config.command("check")
@click.argument("file", metavar="FILE|-")
@click.option("--json", "as_json", is_flag=True, help="print the config as derived, in flannel's key names")
def config_check(file: str, as_json: bool) -> None:
    """Say what a config means, or what is wrong with it. Touches nothing."""
    from flannelpy.commands import config

    config.check(file, as_json=as_json)


def _tell_options(_: click.Context, formatter: click.HelpFormatter) -> None:
    """What the Backend object may hold, of what is installed: looked up when it is asked for."""
    from flannelpy.commands import config

    config.tell_options(formatter)


setattr(config_check, "format_epilog", _tell_options)  # noqa: B010 - a method that click calls, of this command alone


@config.command("get")
@_takes(BY_NAME["run-dir"], *ETCD, *KUBE)
@click.pass_context
def config_get(context: click.Context, /, **values: Any) -> int:
    """Print the config that is in etcd, or in its file in Kubernetes, and what is wrong with it if something is."""
    from flannelpy.commands import config

    return config.get(_own(context, values))


@config.command("put")
@click.argument("file", metavar="FILE|-")
@click.option("--force", is_flag=True, help="write it even if it is invalid; agents then wait until it is mended")
@click.option("--yes", is_flag=True, help="do not ask, whatever the change costs; scripts need it for a change that loses packets")
@_takes(BY_NAME["run-dir"], *ETCD, *KUBE)
@click.pass_context
def config_put(context: click.Context, /, file: str, force: bool, yes: bool, **values: Any) -> int:
    """Validate a config, say what changes and what that costs, ask where it costs packets, and write it to etcd."""
    from flannelpy.commands import config

    return config.put(_own(context, values), file, force=force, yes=yes)


# ---------------------------------------------------------------------------------------------------------------- leases


@flannelpy.group()
def lease() -> None:
    """Show the leases of the cluster, reserve subnets, give leases back."""


@lease.command("list")
@click.argument("whom", metavar="[ADDRESS|SUBNET|NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="for programs")
@_takes(BY_NAME["subnet-file"], BY_NAME["run-dir"], *ETCD, *KUBE)
@click.pass_context
def lease_list(context: click.Context, /, whom: str | None, as_json: bool, **values: Any) -> int:
    """Who holds which subnet, until when, and what is wrong with it; all, or who has an ADDRESS, SUBNET or NAME."""
    from flannelpy.commands import lease

    return lease.show(_own(context, values), whom, as_json=as_json)


@lease.command("reserve")
@click.argument("subnet")
@_takes(*WHOSE, BY_NAME["run-dir"], *ETCD, *KUBE)
@click.pass_context
def lease_reserve(context: click.Context, /, subnet: str, **values: Any) -> None:
    """Keep SUBNET for a host: the one that holds it, or the one of --public-ip. It does not expire."""
    from flannelpy.commands import lease

    lease.reserve(_own(context, values), subnet)


@lease.command("release")
@click.argument("subnet", required=False)
@_takes(BY_NAME["subnet-file"], BY_NAME["state-dir"], BY_NAME["run-dir"], *ETCD, *KUBE)
@click.pass_context
def lease_release(context: click.Context, /, subnet: str | None, **values: Any) -> None:
    """Delete the lease or reservation of SUBNET; of this host's own where none is named."""
    from flannelpy.commands import lease

    lease.release(_own(context, values), subnet)


# ---------------------------------------------------------------------------------------------------------------- Docker


@flannelpy.command("docker-opts", context_settings={"help_option_names": ["-h", "-?", "--help"]})
@click.option("-f", "env_file", metavar="FILE", default="/run/flannel/subnet.env", show_default=True, help="what the agent wrote")
@click.option("-d", "output", metavar="FILE", default="/run/docker_opts.env", show_default=True, help="what Docker shall read")
@click.option("-i", "individual", is_flag=True, help="a variable for each option, like DOCKER_OPT_MTU")
@click.option("-c", "combined", is_flag=True, help="one variable with all options; without -i and -c both are written")
@click.option("-k", "key", metavar="NAME", default="DOCKER_OPTS", show_default=True, help="the combined variable's name")
@click.option("-m", "without_ip_masq", is_flag=True, help="leave --ip-masq out")
@click.option("--daemon-json", is_flag=True, help="put them into Docker's own config file instead, and keep all else in it")
@click.option("--daemon-json-file", metavar="FILE", default="/etc/docker/daemon.json", show_default=True, help="which file that is")
@click.option("--dry-run", is_flag=True, help="with --daemon-json: say what would be another value there, and write nothing")
def docker_opts(
    env_file: str,
    output: str,
    individual: bool,
    combined: bool,
    key: str,
    without_ip_masq: bool,
    daemon_json: bool,
    daemon_json_file: str,
    dry_run: bool,
) -> None:
    """Write Docker's daemon options for the subnet that the agent leased, as flannel's mk-docker-opts.sh does."""
    from flannelpy.commands import docker

    if daemon_json:
        if individual or combined:
            raise UsageError("--daemon-json writes no variables: expected neither -i nor -c with it")
        docker.merge_options(env_file, daemon_json_file, with_ip_masq=not without_ip_masq, dry_run=dry_run)
        return
    if dry_run:
        raise UsageError("--dry-run: expected --daemon-json with it")
    docker.write_options(
        env_file,
        output,
        key=key if combined or not individual else None,
        individual=individual or not combined,
        with_ip_masq=not without_ip_masq,
    )


# ------------------------------------------------------------------------------------------------------------------- CNI


@flannelpy.group()
def cni() -> None:
    """Containers by CNI: Kubernetes, containerd, podman."""


_conf_dir = click.option(
    "--conf-dir", metavar="DIR", default="/etc/cni/net.d", show_default=True, help="the runtime's configurations"
)


def _where(command: Wrapped) -> Wrapped:
    """Where a runtime looks, for the commands of CNI."""
    for option in (
        click.option("--dry-run", is_flag=True, help="say what would be done"),
        _conf_dir,
        click.option("--bin-dir", metavar="DIR", default="/opt/cni/bin", show_default=True, help="the runtime's plugins"),
    ):
        command = option(command)
    return command


@cni.command("install")
@_where
@click.option("--force", is_flag=True, help="replace files that are not flannelpy's")
@click.option("--static", is_flag=True, help="the network is there whether the agent is ready or not")
def cni_install(bin_dir: str, conf_dir: str, dry_run: bool, force: bool, static: bool) -> None:
    """Write the plugin flannel, and a network for the runtime: flannel with bridge, and portmap.

    With the package's units the network is there while the agent is ready: cni follow.
    """
    from flannelpy.commands import cni as command

    command.install(command.Wish(bin_dir, conf_dir, dry_run, force, static))


@cni.command("uninstall")
@_where
def cni_uninstall(bin_dir: str, conf_dir: str, dry_run: bool) -> None:
    """Remove what `cni install` wrote. A file that somebody has changed since stays."""
    from flannelpy.commands import cni as command

    command.uninstall(command.Wish(bin_dir, conf_dir, dry_run))


@cni.command("follow")
@_conf_dir
@click.option("--grace", metavar="SECONDS", type=click.FloatRange(0, 3600), default=10.0, show_default=True,
              help="for how long an agent that was ready may not be so: a restart is no news")  # fmt: skip
@click.option("--once", is_flag=True, help="look once, with no grace, and end")
@_takes(BY_NAME["run-dir"])
@click.pass_context
def cni_follow(context: click.Context, /, conf_dir: str, grace: float, once: bool, **values: Any) -> None:
    """Keep the network of `cni install` there while the agent is ready, and else by a name that runtimes pass over."""
    from flannelpy.commands.cni_follow import follow
    from flannelpy.settings import load_run_dir

    follow(conf_dir, load_run_dir(_own(context, values), os.environ), grace, once=once)
