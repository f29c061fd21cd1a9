"""What can be said to the lab on a command line? ``lab up``, ``down``, ``status``, ``exec``, ``ping``, ``fault``, ``heal``,
``pcap``, ``draw``, ``graph``, ``swarm``.

Exit 0: done. 1: it could not be done, one line says why. 2: the command line is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flannelpy.plugins import names as backends
from netns_lab.able import demand
from netns_lab.errors import LabError, TopologyError
from netns_lab.etcd import EtcdFailedError, binary
from netns_lab.interrupt import heed_interrupts
from netns_lab.ledger import Ledger, names
from netns_lab.topology import Topology, check_name, shipped

if TYPE_CHECKING:
    from netns_lab.host import Host
    from netns_lab.lab import Lab

Answer = TypeVar("Answer")

REPOSITORY = Path(__file__).resolve().parents[2]
DRAWING, GRAPH = Path("lab-out/topology.svg"), Path("lab-out/reach.svg")
LAB = "netns-lab/lab"
"""The command as it is typed in the checkout: what we propose works when it is pasted."""


def _checked(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        return check_name(name)
    except TopologyError as error:
        raise click.UsageError(str(error)) from None


name_option = click.option(
    "--name", metavar="NAME", callback=_checked, default="fl", show_default=True, help="the lab; leads all its namespaces' names"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """Hosts, etcd and containers out of network namespaces, on this machine alone."""


@lab.command()
@click.option("--topology", metavar="NAME|FILE", help=f"one of {', '.join(shipped())}, or a .toml file [default: three]")
@click.option("--hosts", type=int, help="how many hosts")
@click.option("--backend", metavar="TYPE", help="vxlan, udp, host-gw, alloc")
@click.option("--etcd", type=int, help="how many etcd members: 0, 1 or 3")
@click.option("--network", metavar="CIDR", help="the overlay's network")
@click.option("--containers", type=int, help="how many containers on each host")
@click.option("--no-agents", is_flag=True, help="do not start flannelpy; the containers stay without addresses")
@name_option
def up(topology: str | None, name: str, no_agents: bool, **changes: Any) -> None:
    """Make a lab, start the agents, connect the containers, and leave it standing."""
    try:
        wanted = Topology.load(topology or "three").changed(**changes)
    except TopologyError as error:
        raise click.UsageError(str(error)) from None
    provided = backends()
    if not no_agents and provided and wanted.backend not in provided:
        raise click.UsageError(f"backend {wanted.backend!r}: nobody provides it, expected one of {', '.join(provided)}")
    _need_root()
    _refuse_twice(name)
    if not no_agents:
        _guard(lambda: demand(wanted.backend))
    _run(_up(wanted, name, agents=not no_agents and wanted.etcd > 0))


@lab.command()
@click.option("--force", is_flag=True, help="also one that another process still holds (a running test)")
@name_option
def down(name: str, force: bool) -> None:
    """Take the lab away, also what a crash has left of one. Whatever still runs inside it is ended."""
    _need_root()
    ledger = Ledger(name)
    if not ledger.exists:
        click.echo(f"no lab named {name} is up")
        return
    owner = ledger.owner
    if owner is not None and not force:
        raise click.ClickException(f"lab {name} is held by process {owner.pid} ({_short(owner.argv)}); end that, or use --force")
    removed = _guard(ledger.remove)
    click.echo(f"lab {name} is down: {_count(removed.namespaces, 'namespace')}, {_count(removed.processes, 'process')} ended")


@lab.command()
@name_option
def status(name: str) -> None:
    """Show the hosts, their agents and leases."""
    from netns_lab.lab import Lab
    from netns_lab.listing import show as show_table
    from netns_lab.listing import status_table

    if not Ledger(name).exists:
        others = names()
        hint = f"; up are {', '.join(others)}" if others else f"; {LAB} up makes one"
        raise click.ClickException(f"no lab named {name} is up{hint}")
    _need_root()

    async def show() -> None:
        here = Lab.attach(name)
        topology = here.topology
        plan = topology.etcd_plan
        etcd = f"etcd {', '.join(here.etcd.urls)}" if plan else "no etcd"
        click.echo(f"lab {name}: {topology.backend}, overlay {topology.network}, {etcd}; files in {here.directory}")
        show_table(await status_table(here))

    _run(show())


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@click.argument("box")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, box: str, words: tuple[str, ...]) -> None:
    """Run a command inside: lab exec h1 -- ip route. BOX: h1, c1, etcd, nat1, net."""
    _replace(name, box, words[1:] if words[0] == "--" else words)


@lab.command()
@name_option
@click.argument("source", required=False)
@click.argument("target", required=False)
def ping(name: str, source: str | None, target: str | None) -> None:
    """Ping from SOURCE to TARGET (c1 c2, h1 h2, c1 203.0.113.1), or from every container to every other."""
    from netns_lab.lab import Lab

    if source and not target:
        raise click.UsageError("ping takes two names, or none for every pair")
    _need_root()
    here = _guard(lambda: Lab.attach(name))
    if source and target:
        result = _run(here.ping(source, target))
        click.echo(f"{source} to {target}: " + (f"{result.rtt_ms:.2f} ms" if result.rtt_ms is not None else "no answer"))
        sys.exit(0 if result.ok else 1)
    from netns_lab.listing import matrix_summary, matrix_table, show

    if (there := len(here.containers)) < 2:
        raise click.ClickException(f"lab {name} has {_count(there, 'container')}, of whom none has another; {LAB} ping h1 h2")
    results = _run(here.matrix())
    show(matrix_table(here, results))
    click.echo(matrix_summary(results))
    sys.exit(0 if all(result.ok for result in results.values()) else 1)


@lab.command("fault")
@click.option("--on", "host", metavar="HOST", default="h1", show_default=True, help="on or around which host")
@name_option
@click.argument("fault", required=False)
def fault_(name: str, host: str, fault: str | None) -> None:
    """Put a fault into the lab that is up, to find it and to learn from it; without a name: show which there are."""
    from netns_lab import faults
    from netns_lab.lab import Lab
    from netns_lab.listing import faults_table, show

    _need_root()
    if fault is None:
        here = _guard(lambda: Lab.attach(name)) if Ledger(name).exists else None
        show(faults_table(here))
        return
    here = _guard(lambda: Lab.attach(name))
    made = _run(faults.inject(here, _guard(lambda: faults.fault(fault)), _guard(lambda: here.host(host))))
    suffix = "" if name == "fl" else f" --name {name}"
    click.echo(f"{made.name} is in {made.box}: {faults.fault(fault).says}; {LAB} heal{suffix} takes it out")


@lab.command()
@name_option
@click.argument("fault", required=False)
def heal(name: str, fault: str | None) -> None:
    """Take a fault out of the lab, or all that are in it."""
    from netns_lab import faults
    from netns_lab.lab import Lab

    _need_root()
    here = _guard(lambda: Lab.attach(name))
    healed, waiting = _run(faults.heal(here, fault)), faults.injected(here) if fault is None else []
    if healed or not waiting:
        click.echo(f"healed: {', '.join(each.name for each in healed)}" if healed else "no fault is in this lab")
    if waiting:
        raise click.ClickException("; ".join(map(faults.missing, waiting)))


@lab.command()
@click.option("--write", metavar="FILE", help="write a pcap file instead of printing")
@name_option
@click.argument("box")
@click.argument("device", default="eth1")
@click.argument("filter_", metavar="[FILTER]...", nargs=-1)
def pcap(name: str, box: str, device: str, filter_: tuple[str, ...], write: str | None) -> None:
    """Show what passes a device (eth1 where none is named): lab pcap h1 flannel.1 icmp. Ctrl-C ends it."""
    output = ["-U", "-w", str(Path(write).absolute())] if write else ["-l"]
    _replace(name, box, ["tcpdump", "-n", "-Z", "root", "-i", device, *output, *filter_])


@lab.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help=f"the SVG file [default: {DRAWING}]")
@click.option("--topology", metavar="NAME|FILE", help="draw this one as declared, instead of the lab that is up")
@name_option
def draw(name: str, out: Path | None, topology: str | None) -> None:
    """Draw the lab that is up, with its leases."""
    from netns_lab.drawing import draw as draw_svg
    from netns_lab.lab import Lab

    envs: dict[str, dict[str, str]] = {}
    if topology is not None:
        try:
            wanted = Topology.load(topology)
        except TopologyError as error:
            raise click.UsageError(str(error)) from None
    else:
        here = _guard(lambda: Lab.attach(name))
        wanted = here.topology
        envs = {host.name: host.subnet_env() for host in here.hosts}
    path = out or REPOSITORY / DRAWING
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(draw_svg(wanted, name, envs))
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"drawn: {path}")


@lab.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help=f"the SVG file [default: {GRAPH}]")
@name_option
def graph(name: str, out: Path | None) -> None:
    """Draw who reaches whom in the lab that is up, as its agents say."""
    from netns_lab.lab import Lab
    from netns_lab.reach import draw as draw_reach

    _need_root()
    here = _guard(lambda: Lab.attach(name))

    async def ask() -> dict[str, dict[str, Any]]:
        return dict(
            zip((host.name for host in here.hosts), await asyncio.gather(*(host.status() for host in here.hosts)), strict=True)
        )

    path = out or REPOSITORY / GRAPH
    drawn = draw_reach(name, asyncio.run(ask()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawn)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"drawn: {path}")


@lab.command()
@click.option("--nodes", type=click.IntRange(1, 100_000), required=True, help="how many")
@click.option("--churn", type=click.FloatRange(0, 10_000), default=0.0, help="changes a second: renewals, joins, leaves, new MACs")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="how long; without it until ctrl-C")
@click.option("--keep", is_flag=True, help="leave the nodes in etcd")
@name_option
def swarm(name: str, nodes: int, churn: float, seconds: float | None, keep: bool) -> None:
    """Write leases of simulated nodes into the lab's etcd, and let them come and go."""
    from netns_lab.lab import Lab

    _need_root()
    here = _guard(lambda: Lab.attach(name))
    url = _guard(lambda: here.etcd.urls[0])
    words = [sys.executable, "-m", "netns_lab.swarm", url, f"--nodes={nodes}", f"--churn={churn}"]
    words += [f"--seconds={seconds}"] if seconds else []
    words += ["--keep"] if keep else []
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (REPOSITORY / "netns-lab", REPOSITORY)))
    _replace(name, "etcd", words)


# ---------------------------------------------------------------------------------------------------------- doing


async def _up(topology: Topology, name: str, *, agents: bool) -> None:
    from netns_lab.lab import Lab

    here = await Lab.build(topology, name=name, lasting=True)
    try:
        if agents:
            await here.start_agents()
            await here.connect_containers()
    except BaseException:
        here.down()
        raise
    here.leave()
    parts = (
        _count(topology.hosts, "host"),
        _count(len(here.containers), "container"),
        _count(topology.etcd, "etcd member"),
        topology.backend,
        "agents are ready" if agents else "no agents",
    )
    click.echo(f"lab {name} is up: {', '.join(parts)}")
    suffix = "" if name == "fl" else f" --name {name}"
    verbs = (f"status{suffix}", f"ping{suffix}", f"exec{suffix} h1 -- flannelpy status", f"down{suffix}")
    click.echo(f"next: {'; '.join(f'{LAB} {words}' for words in verbs)}")


def environment(lab: Lab, box: str) -> dict[str, str]:
    """With it ``flannelpy status`` and ``etcdctl get`` just work inside: where the programs are, and whom they ask. What is typed
    there judges the host as its agent does, and an agent that is started by hand is the lab's.
    """
    programs = [str(Path(sys.executable).parent)]
    told: dict[str, str] = {}
    if lab.topology.etcd:
        programs.append(str(Path(binary("etcdctl")).parent))
        urls = ",".join(lab.etcd.urls)
        told |= {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": urls, "FLANNELPY_ETCD_ENDPOINTS": urls}
    for host in lab.hosts:
        if host.name == box:
            told["FLANNELPY_RUN_DIR"] = str(host.run_dir)
            told["FLANNELPY_SUBNET_FILE"] = str(host.subnet_file)
            told["FLANNELPY_STATE_DIR"] = str(host.state_dir)
            told["FLANNELPY_HOSTNAME"] = host.name  # the machine's own name is all hosts'
            told |= {_variable(name): value or "true" for name, _, value in (word.partition("=") for word in _options(host))}
    return {**told, "PATH": os.pathsep.join([*programs, os.environ.get("PATH", os.defpath)])}


def _options(host: Host) -> Sequence[str]:
    """What the lab's agents are told on this host; where it has no etcd, by which interface."""
    return host.selector if host.settings is None else host.agent_options()


def _variable(flag: str) -> str:
    return f"FLANNELPY_{flag.lstrip('-').replace('-', '_').upper()}"


def _refuse_twice(name: str) -> None:
    ledger = Ledger(name)
    if not ledger.exists:
        return
    if ledger.released:
        raise click.ClickException(f"lab {name} is up already; {LAB} status shows it, {LAB} down ends it, --name makes another")
    owner = ledger.owner
    if owner is not None:
        raise click.ClickException(f"lab {name} is held by process {owner.pid} ({_short(owner.argv)}); --name makes another")
    suffix = "" if name == "fl" else f" --name {name}"
    raise click.ClickException(f"lab {name} was left unfinished; {LAB} down{suffix} removes what is left of it")


def _replace(name: str, box: str, words: tuple[str, ...] | list[str]) -> None:
    """Become the command, so that its terminal, its signals and its exit code are its own."""
    from netns_lab.lab import Lab

    _need_root()
    here = _guard(lambda: Lab.attach(name))
    command = _guard(lambda: here.box(box).namespace.command(*words))
    environ = {**os.environ, **_guard(lambda: environment(here, box))}
    try:
        os.execvpe(command[0], command, environ)
    except OSError as error:
        raise click.ClickException(f"{command[0]}: {error.strerror}") from None


def _run(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run to the end; ctrl-C and SIGTERM cancel, so that whatever was begun is taken away again."""

    async def whole() -> Answer:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return _guard(lambda: asyncio.run(whole()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("interrupted; what was made is removed", err=True)
        sys.exit(130)


def _guard(action: Callable[[], Answer]) -> Answer:
    """What it returns; errors of the lab as one line and exit 1."""
    try:
        return action()
    except (LabError, EtcdFailedError) as error:
        raise click.ClickException(str(error)) from None


def _need_root() -> None:
    if os.geteuid() != 0:
        raise click.ClickException("network namespaces need root: start it with sudo")


def _short(argv: tuple[str, ...]) -> str:
    return " ".join(Path(word).name for word in argv[:3])


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}{'' if number == 1 else plural}"


def main() -> None:
    """The command; a script's entry point."""
    heed_interrupts()
    lab(prog_name="lab")
