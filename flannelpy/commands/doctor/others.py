"""What do others on this host say about our subnet? Docker's and CNI's configuration, and another agent for the same thing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from netaddr import AddrFormatError, IPNetwork

from flannelpy.commands.doctor.about import About
from flannelpy.core.errors import UsageError
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.host.daemon_json import OURS, flags_of
from flannelpy.host.docker import clash
from flannelpy.host.docker_unit import command_line
from flannelpy.host.files import same_file
from flannelpy.host.processes import here
from flannelpy.options import spell_out

DAEMON_JSON, CNI = Path("etc/docker/daemon.json"), Path("etc/cni/net.d")
OPTIONS = Path("run/docker_opts.env")
LARGEST = 1 << 20


def docker(about: About) -> Iterator[Finding]:
    """daemon.json's bip and mtu against the subnet, and against the options that docker-opts has written."""
    path = about.root / DAEMON_JSON
    said = _read(path)
    if said is None:
        yield Finding(
            "docker", OK if not path.exists() else WARNING, f"{path} {'is not there' if not path.exists() else 'is no JSON object'}"
        )
        return
    wrong = False
    for finding in _said_twice(about.root, path, said):
        wrong = True
        yield finding
    bip = _network(said.get("bip"))
    own = [net for net in about.subnets if bip is not None and net.version == bip.version]
    if bip is not None and own and not _inside(bip, own):
        wrong = True
        remedy = f"take bip out of {path}, and have flannelpy docker-opts say it"
        yield Finding("docker", FAILED, f"{path}: bip {said['bip']} is not in {' and '.join(map(str, own))}", remedy)
    mtu = said.get("mtu")
    if isinstance(mtu, int) and about.mtu and mtu > about.mtu:
        wrong = True
        yield Finding(
            "docker", WARNING, f"{path}: mtu {mtu}, the overlay carries {about.mtu}", f"set it to {about.mtu}, or take it out"
        )
    if not wrong:
        yield Finding("docker", OK, f"{path} says nothing against the overlay")


def _said_twice(root: Path, path: Path, said: Mapping[str, Any]) -> Iterator[Finding]:
    """What daemon.json and Docker's flags both say. Without a docker.service (another way to start it) it is not known whether
    the options that docker-opts has written are flags.
    """
    words, options = command_line(root), root / OPTIONS
    if words is not None:
        flags = flags_of(words)
        clashing = [name for name in said if name in flags or (name == "bridge" and "bip" in flags)]
        state, also = FAILED, "the flags of docker.service"
    else:
        text = options.read_text(errors="replace") if options.is_file() else ""
        clashing = [*clash([name for name in OURS if name in text], json.dumps(said))]
        state, also = WARNING, f"{options}, which Docker may be started with,"
    if clashing:
        names = " and ".join(clashing)
        remedy = f"take {names} out of {path}: Docker does not start with both (systemctl cat docker)"
        yield Finding("docker", state, f"{path} and {also} both say {names}", remedy)


def cni(about: About) -> Iterator[Finding]:
    """Plugins of CNI's that hand out addresses: flannel's by the subnet file, others by what they say themselves."""
    folder = about.root / CNI
    files = sorted(each for each in folder.glob("*") if each.suffix in (".conf", ".conflist", ".json")) if folder.is_dir() else []
    if not files:
        yield Finding("cni", OK, f"{folder} holds no network")
        return
    wrong, networks = False, () if about.config is None else about.config.networks
    for path in files:
        for plugin in _plugins(_read(path)):
            if plugin.get("type") == "flannel":
                named = str(plugin.get("subnetFile") or "/run/flannel/subnet.env")
                if not same_file(named, about.settings.subnet_file):
                    wrong = True
                    remedy = f"subnetFile {about.settings.subnet_file} there, or --subnet-file={named} here"
                    yield Finding("cni", FAILED, f"{path} reads {named}, the agent writes {about.settings.subnet_file}", remedy)
            for net in _handed_out(plugin) if about.subnets else ():
                if _inside(net, networks) and not _inside(net, about.subnets):
                    wrong = True
                    said = f"{path} hands out {net}, this host has {' and '.join(map(str, about.subnets))}"
                    yield Finding("cni", FAILED, said, "hand out this host's subnet, as the subnet file says it")
            for mtu in _mtus(plugin):
                if about.mtu and mtu > about.mtu:
                    wrong = True
                    yield Finding("cni", WARNING, f"{path}: mtu {mtu}, the overlay carries {about.mtu}", f"set it to {about.mtu}")
    if not wrong:
        yield Finding("cni", OK, f"{', '.join(path.name for path in files)}: nothing against the overlay")


def agents(about: About) -> Iterator[Finding]:
    """A flanneld that runs beside us works on the same devices and the same file."""
    processes = list(here(about.root / "proc"))
    flanneld = [pid for pid, name, _words in processes if name == "flanneld"]
    known = None if about.status is None else about.status.pid
    if flanneld:
        yield Finding(
            "other agents",
            FAILED,
            f"flanneld runs here, too (process {', '.join(map(str, flanneld))})",
            "systemctl disable --now flanneld; two agents take each other's routes away",
        )
        return
    others = [pid for pid, _name, words in processes if pid != known and _is_agent(words)]
    if known is None and others:
        said = f"an agent runs (process {', '.join(map(str, others))}), not with --run-dir {about.settings.run_dir}"
        yield Finding("other agents", WARNING, said, "flannelpy doctor --run-dir DIR asks that one")
    elif others:
        said = f"another flannelpy runs here, too (process {', '.join(map(str, others))})"
        yield Finding("other agents", OK, f"{said}: each needs a VNI or port of its own")
    elif not processes:
        yield Finding("other agents", SKIPPED, "processes cannot be seen")
    else:
        yield Finding("other agents", OK, "none")


def _is_agent(words: list[str]) -> bool:
    """``python .../bin/flannelpy --flags`` or ``python -m flannelpy``, and no subcommand behind it."""
    at = next((at for at, word in enumerate(words[:4]) if Path(word).name == "flannelpy"), None)
    if at is None or not (at == 0 or Path(words[0]).name.startswith("python")):
        return False
    try:
        return all(word.startswith("-") for word in spell_out(words[at + 1 :]))
    except UsageError:
        return False


def _read(path: Path) -> Mapping[str, Any] | None:
    """A JSON object in a file; None where there is none."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _plugins(said: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if said is None:
        return []
    listed = said.get("plugins")
    return [each for each in (listed if isinstance(listed, list) else [said]) if isinstance(each, dict)]


def _handed_out(plugin: Mapping[str, Any]) -> list[IPNetwork]:
    """Of host-local's ``subnet`` and ``ranges``, lists of lists. Flannel's plugin puts the subnet file's in their place."""
    ipam = plugin.get("ipam")
    if not isinstance(ipam, dict) or plugin.get("type") == "flannel":
        return []
    listed = ipam.get("ranges")
    held = [ipam, *(each for some in (listed if isinstance(listed, list) else []) if isinstance(some, list) for each in some)]
    found = [_network(each.get("subnet")) for each in held if isinstance(each, dict)]
    return [net for net in dict.fromkeys(found) if net is not None]


def _mtus(plugin: Mapping[str, Any]) -> list[int]:
    """A plugin's own, and what flannel's tells the one that it calls."""
    delegate = plugin.get("delegate")
    found = [plugin.get("mtu"), delegate.get("mtu") if isinstance(delegate, dict) else None]
    return [mtu for mtu in dict.fromkeys(found) if isinstance(mtu, int)]


def _inside(net: IPNetwork, wholes: Iterable[IPNetwork]) -> bool:
    return any(net.version == whole.version and net in whole for whole in wholes)


def _network(text: object) -> IPNetwork | None:
    try:
        return IPNetwork(text) if isinstance(text, str) and "/" in text else None
    except (AddrFormatError, ValueError):
        return None
