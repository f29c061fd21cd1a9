"""What does ``flannelpy setup`` do? A first start: it looks, says what it would write, asks once, writes, starts, and waits.

A step that is done already is none: a second ``setup`` goes on where the first was stopped, and a third finds nothing to do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from flannelpy.commands import netconfig, terminal
from flannelpy.commands.ask import ask, report
from flannelpy.commands.conversation import config_key, with_registry
from flannelpy.commands.doctor.page import show
from flannelpy.commands.doctor.run import diagnose
from flannelpy.commands.located import told_by_defaults
from flannelpy.commands.terminal import agreed, named, say
from flannelpy.core.errors import ConfigError, ConflictError, FlannelpyError, UsageError
from flannelpy.core.foreign import LINE, printable
from flannelpy.core.uplink import HostFacts
from flannelpy.explain.doctor import FAILED, Finding
from flannelpy.explain.status import SOCKET, from_json
from flannelpy.host import defaults, service
from flannelpy.host.defaults import variables
from flannelpy.host.docker import clash
from flannelpy.host.docker_unit import FOLDERS
from flannelpy.host.docker_unit import UNIT as DOCKER
from flannelpy.host.files import write_file
from flannelpy.host.service import TextFile
from flannelpy.host.shipped import DOCKER_DROP_IN, shipped
from flannelpy.options import BY_NAME, Given
from flannelpy.settings import load, load_run_dir

UNIT = "flannelpy.service"
DROP_IN = Path("etc/systemd/system/docker.service.d/flannelpy.conf")
DAEMON_JSON = Path("etc/docker/daemon.json")
OF_DOCKER = {"DOCKER_OPT_BIP": "", "DOCKER_OPT_MTU": "", "DOCKER_OPT_IPMASQ": ""}
BEARABLE = ("bridge", "docker", "cni", "file: --subnet-file")
"""Checks of ``doctor`` that do not stop a first start: they are about who comes after the agent."""
LOOK_S = 0.5
SYSTEMCTL_S = 60.0
"""The unit has 10 s to stop (TimeoutStopSec=), and no other call waits for a service."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How it was asked for. ``network`` and ``backend``, or ``config`` (a file), are for a cluster that has no config yet."""

    dry_run: bool = False
    yes: bool = False
    network: str | None = None
    backend: str | None = None
    config: str | None = None
    wait_s: float = 120.0


def systemctl(*words: str) -> tuple[int, str]:
    """Its exit code, and what it said. Raises FlannelpyError where there is none, or it has not ended in ``SYSTEMCTL_S``."""
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False, timeout=SYSTEMCTL_S)
    except FileNotFoundError:
        raise FlannelpyError("systemctl is not there: setup is for hosts with systemd; flannelpy --help has the options") from None
    except subprocess.TimeoutExpired:
        said = f"systemctl {' '.join(words)}: it has not ended within {SYSTEMCTL_S:g} s"
        raise FlannelpyError(f"{said}: systemctl list-jobs shows what systemd waits for; then once more") from None
    return done.returncode, (done.stdout + done.stderr).strip()


@dataclass(frozen=True, slots=True)
class Host:
    """Where its files are, and who starts its services; another one in tests."""

    root: Path = Path("/")
    systemctl: Callable[..., tuple[int, str]] = field(default=systemctl)

    @property
    def defaults(self) -> Path:
        """The service's options."""
        return self.root / defaults.DEFAULTS.relative_to("/")

    def active(self) -> str:
        """As ``systemctl is-active`` says it of the agent's unit."""
        return self.systemctl("is-active", UNIT)[1]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is not yet as it shall be: how it reads, and what does it (FlannelpyError, OSError)."""

    text: str
    do: Callable[[], None]
    options: bool = False
    """It changes what the agent is started with."""

    def carry_out(self) -> None:
        """Raises FlannelpyError."""
        try:
            self.do()
        except OSError as error:
            raise FlannelpyError(f"{self.text}: {error.strerror}") from None


def setup(given: Given, wish: Wish) -> int:
    """0: the agent is ready; 1: it is not, or the answer was no; 3: a check has failed and nothing was written.

    Raises UsageError, and FlannelpyError with what is missing.
    """
    host = Host()
    if os.geteuid() != 0:
        raise FlannelpyError("setup needs root: start it with sudo")
    if not unit_there(host):
        raise FlannelpyError(f"systemd knows no {UNIT} here: install the package first")
    if wish.config is not None and (wish.network or wish.backend):
        raise UsageError("--config says all of it: expected neither --network nor --backend with it")
    import uvloop

    facts = uvloop.run(_facts())
    options = chosen(given, os.environ, TextFile.read(host.defaults).text or "", facts)
    if load(options, {}).kube is not None:
        raise FlannelpyError(
            "setup is for hosts whose leases are in etcd, and these are Kubernetes' (--kube-subnet-mgr); nothing was written:"
            " kubectl apply -k packaging/kubernetes is their setup"
        )
    for line in candidates(facts):
        say(line)
    findings = uvloop.run(diagnose(options, preflight=True))
    show(findings)
    say("")
    if stopping := blocking(findings):
        names = ", ".join(dict.fromkeys(finding.name for finding in stopping))
        click.echo(printable(f"flannelpy: nothing was written: first {names}, as above; then once more", LINE), err=True)
        return 3
    files = list(file_steps(host, options))
    steps = [*config_step(options, wish), *files, *service_steps(host, changed=any(step.options for step in files))]
    for step in steps:
        say(f"{'would ' if wish.dry_run else ''}{step.text}")
    if wish.dry_run:
        click.echo(f"flannelpy: dry run: nothing was changed ({len(steps)} things to do)", err=True)
        return 0
    if steps and not wish.yes and not agreed("Do all of this?"):
        return 1
    for step in steps:
        step.carry_out()
    return wait(host, load_run_dir(options, {}), wish.wait_s)


async def _facts() -> HostFacts:
    from flannelpy.kernel.netlink import NetlinkKernel

    kernel = NetlinkKernel()
    try:
        return await kernel.facts()
    finally:
        await kernel.close()


def unit_there(host: Host) -> bool:
    """Has systemd the agent's unit?"""
    return any((host.root / folder / UNIT).is_file() for folder in FOLDERS)


# ------------------------------------------------------------------------------------------------------------ what it finds


def chosen(given: Given, environ: Mapping[str, str], text: str, facts: HostFacts) -> Given:
    """The options that the service shall have: as given now, by flag or variable, else as its file says them already.

    The package's example counts only where the host has such an interface. Raises UsageError.
    """
    names = {name for interface in facts.interfaces for name in interface.names}
    if "iface" in given or not names & {"eth1"}:
        text = text.replace(f"\n{service.EXAMPLE}\n", "\n")
    environ = {name: value for name, value in environ.items() if name != "FLANNELPY_OPTIONS"}
    return {**told_by_defaults(variables(text)), **_from_here({**told_by_defaults(environ), **given})}


def _from_here(options: Given) -> Given:
    """With whole paths: the service is started in another directory than we are."""
    return {
        name: [os.path.abspath(value) if value else value for value in values]  # noqa: PTH100 - a link stays one
        if BY_NAME[name].metavar in ("FILE", "DIR")
        else values
        for name, values in options.items()
    }


def candidates(facts: HostFacts) -> Iterator[str]:
    """Interfaces with an address that others may reach, as lines; doctor's check names the one that is taken."""
    defaults_by = {route.index for route in facts.default_routes}
    for interface in sorted(facts.interfaces, key=lambda one: one.index):
        held = [f"{one.address}/{one.prefixlen}" for one in interface.addresses if one.scope == "global"]
        if held and interface.name != "lo" and not interface.name.startswith(("flannel", "docker", "br-", "veth", "cni")):
            what = f"MTU {interface.mtu}" + (", default route" if interface.index in defaults_by else "")
            yield f"interface {interface.name}: {', '.join(held)}, {what}{'' if interface.up else ', down'}"


def blocking(findings: list[Finding]) -> list[Finding]:
    """What has to be mended before anything is written."""
    return [finding for finding in findings if finding.state == FAILED and finding.name not in BEARABLE]


# ---------------------------------------------------------------------------------------------------------------- the steps


def config_step(options: Given, wish: Wish) -> Iterator[Step]:
    """``config put`` where the cluster has none. Raises FlannelpyError where nobody has said which."""
    stored = with_registry(options, lambda registry: registry.config())
    where = config_key(options)
    if stored.text is not None:
        if wish.network or wish.config:
            say("note: the cluster has a config already, which counts: flannelpy config get; flannelpy config put FILE changes it")
        return
    if wish.config is not None:
        text, source = terminal.read(wish.config), named(wish.config)
    elif wish.network is not None:
        text = json.dumps({"Network": wish.network, "Backend": {"Type": wish.backend or "vxlan"}})
        source = "--network"
    else:
        raise FlannelpyError(
            f"the cluster has no config at {where}: expected --network 10.1.0.0/16, or --config FILE; nothing was written"
        )
    try:
        netconfig.examine(text)
    except ConfigError as error:
        raise UsageError(f"{source}: {error}; nothing was written") from None

    def put() -> None:
        try:
            with_registry(options, lambda registry: registry.put_config(text, expected=stored))
        except ConflictError:
            say(f"{where}: another host has written one meanwhile, which counts")

    yield Step(f"write {where} in etcd: {netconfig.without_secrets(text)}", put)


def file_steps(host: Host, options: Given) -> Iterator[Step]:
    """The service's options, and Docker's drop-in where Docker is there. Raises FlannelpyError, UsageError."""
    old = TextFile.read(host.defaults)
    example = told_by_defaults(variables(service.above(old.text or ""))).get("iface") == ["eth1"] == list(options.get("iface", ()))
    others = told_by_defaults(variables(service.above(old.text or "").replace("" if example else service.EXAMPLE, "")))
    for name, said in others.items():
        if list(options.get(name, said)) != list(said):
            raise UsageError(f"{old.path}: --{name} {said[-1]}; expected the same, or no such option there; nothing was written")
    ours = {BY_NAME[name].variables[0]: values for name, values in options.items() if name not in others}
    new = service.with_block(old.text or "", ours, example=example)
    if new != old.text:
        yield Step(f"write {old.path} (mode 0640)", lambda: _write(old.path, new, 0o640), options=True)
    if not docker_there(host):
        return
    drop_in, wanted = TextFile.read(host.root / DROP_IN), shipped(DOCKER_DROP_IN)
    if drop_in.text is None and (keys := clash(OF_DOCKER, TextFile.read(host.root / DAEMON_JSON).text)):
        said = f"{host.root / DAEMON_JSON} says {' and '.join(keys)}, so that there is no drop-in"
        say(f"note: {said}: flannelpy docker-opts --daemon-json, once the agent is ready")
    elif drop_in.text is None:
        yield Step(f"write {drop_in.path} (mode 0644)", lambda: _write(drop_in.path, wanted, 0o644))
        yield Step("systemctl daemon-reload", lambda: demand(host, "daemon-reload"))
        say("note: Docker takes the subnet at its next start: systemctl restart docker (it stops its containers)")
    elif drop_in.text == wanted and host.systemctl("show", "--property=NeedDaemonReload", "--value", DOCKER)[1] == "yes":
        yield Step("systemctl daemon-reload", lambda: demand(host, "daemon-reload"))
    elif drop_in.text != wanted:
        say(f"note: {drop_in.path} is another than flannelpy's; it stays")


def docker_there(host: Host) -> bool:
    """Is Docker on this host, as a service or as a program?"""
    unit = any((host.root / folder / DOCKER).exists() for folder in FOLDERS)
    return unit or (host.root == Path("/") and shutil.which("dockerd") is not None)


def _write(path: Path, text: str, mode: int) -> None:
    write_file(path, text, mode)


def service_steps(host: Host, *, changed: bool) -> Iterator[Step]:
    """Enabled, and started; one that runs is started anew where its options are ``changed``, or newer than it."""
    if host.systemctl("is-enabled", UNIT)[1] != "enabled":
        yield Step(f"systemctl enable {UNIT}", lambda: demand(host, "enable", UNIT))
    stands = host.active() in ("inactive", "failed", "unknown")
    if stands or changed or newer(host):
        verb = "start" if stands else "restart"
        # Not waited for by systemctl: ready may be a matter of minutes, and is shown as it comes.
        yield Step(f"systemctl {verb} {UNIT}", lambda: demand(host, "--no-block", verb, UNIT))


def newer(host: Host) -> bool:
    """Were the options written after the agent was started? A setup that was stopped in between leaves it so."""
    code, pid = host.systemctl("show", "--property=MainPID", "--value", UNIT)
    try:
        ticks = int((host.root / "proc" / pid / "stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return code == 0 and host.defaults.stat().st_mtime > time.time() - age_s
    except (OSError, ValueError, IndexError):
        return False


def demand(host: Host, *words: str) -> None:
    """Have systemctl do it. Raises FlannelpyError with the last line of what it said where it fails."""
    code, said = host.systemctl(*words)
    if code:
        raise FlannelpyError(f"systemctl {' '.join(words)}: {said.splitlines()[-1] if said else f'exit code {code}'}")


# ----------------------------------------------------------------------------------------------------------------- the wait


def wait(host: Host, run_dir: Path, within_s: float) -> int:
    """Until the agent is ready, with what it waits for, each once; then its status. 1 where it is not ready in time."""
    until, told = time.monotonic() + within_s, ""
    while True:
        ready, why = _progress(host, run_dir)
        if ready:
            return report(run_dir, peers=False, bad=False, as_json=False)
        if why != told:
            say(f"waiting: {why}")
            told = why
        if host.active() == "failed":
            raise FlannelpyError(f"{UNIT} has failed: journalctl -u {UNIT} says why; setup may be run once more")
        if time.monotonic() >= until:
            raise FlannelpyError(f"not ready after {within_s:g} s: {why}; it goes on by itself: systemctl status {UNIT}")
        time.sleep(LOOK_S)


def _progress(host: Host, run_dir: Path) -> tuple[bool, str]:
    """Is it ready, and else why not. A restart that systemd has not begun yet is none."""
    if host.active() not in ("active", "activating"):
        return False, "systemd starts the agent"
    try:
        status = from_json(ask(run_dir / SOCKET, within_s=2.0))
    except FlannelpyError:
        return False, "the agent starts"
    # Ready by itself, and for systemd, too: what runs while a restart is under way is the one before.
    return status.ready and host.active() == "active", "; ".join(status.why_not) or "systemd is told"
