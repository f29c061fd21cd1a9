"""What do others on this host say about our subnet? Docker's and CNI's configuration, and another agent for the same thing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from netaddr import AddrFormatError, IPNetwork

from flannelpy.commands.doctor.about import About
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.host.docker import clash

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
    options = about.root / OPTIONS
    text = options.read_text(errors="replace") if options.is_file() else ""
    ours = [name for name in ("DOCKER_OPT_BIP", "DOCKER_OPT_MTU", "DOCKER_OPT_IPMASQ") if name in text]
    clashing = clash(ours, json.dumps(said))
    wrong = False
    if clashing:
        wrong = True
        remedy = f"take {' and '.join(clashing)} out of {path}: Docker does not start with both"
        yield Finding("docker", FAILED, f"{path} and {options} both say {' and '.join(clashing)}", remedy)
    bip = _network(said.get("bip"))
    if bip is not None and about.subnets and not any(bip.version == net.version and bip in net for net in about.subnets):
        wrong = True
        remedy = f"take bip out of {path}, and have flannelpy docker-opts say it"
        yield Finding("docker", FAILED, f"{path}: bip {said['bip']} is not in {' and '.join(map(str, about.subnets))}", remedy)
    mtu = said.get("mtu")
    if isinstance(mtu, int) and about.mtu and mtu > about.mtu:
        wrong = True
        yield Finding(
            "docker", WARNING, f"{path}: mtu {mtu}, the overlay carries {about.mtu}", f"set it to {about.mtu}, or take it out"
        )
    if not wrong:
        yield Finding("docker", OK, f"{path} says nothing against the overlay")


def cni(about: About) -> Iterator[Finding]:
    """Plugins of CNI's that hand out addresses: flannel's by the subnet file, others by what they say themselves."""
    folder = about.root / CNI
    files = sorted(each for each in folder.glob("*") if each.suffix in (".conf", ".conflist", ".json")) if folder.is_dir() else []
    if not files:
        yield Finding("cni", OK, f"{folder} holds no network")
        return
    wrong = False
    for path in files:
        for plugin in _plugins(_read(path)):
            if plugin.get("type") == "flannel":
                named = str(plugin.get("subnetFile") or "/run/flannel/subnet.env")
                if named != str(about.settings.subnet_file):
                    wrong = True
                    remedy = f"subnetFile {about.settings.subnet_file} there, or --subnet-file={named} here"
                    yield Finding("cni", FAILED, f"{path} reads {named}, the agent writes {about.settings.subnet_file}", remedy)
            elif (net := _ipam(plugin)) is not None and about.config is not None:
                inside = any(net.version == whole.version and net in whole for whole in about.config.networks)
                if inside and about.subnets and not any(net.version == own.version and net in own for own in about.subnets):
                    wrong = True
                    said = f"{path} hands out {net}, this host has {' and '.join(map(str, about.subnets))}"
                    yield Finding("cni", FAILED, said, "hand out this host's subnet, as the subnet file says it")
            mtu = plugin.get("mtu")
            if isinstance(mtu, int) and about.mtu and mtu > about.mtu:
                wrong = True
                yield Finding("cni", WARNING, f"{path}: mtu {mtu}, the overlay carries {about.mtu}", f"set it to {about.mtu}")
    if not wrong:
        yield Finding("cni", OK, f"{', '.join(path.name for path in files)}: nothing against the overlay")


def agents(about: About) -> Iterator[Finding]:
    """A flanneld that runs beside us works on the same devices and the same file."""
    processes = list(_processes(about.root / "proc"))
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
    return at is not None and all(word.startswith("-") for word in words[at + 1 :])


def _processes(proc: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Those in our network namespace: an agent elsewhere (a container, a lab) has devices of its own."""
    ours = _namespace(proc / "self")
    for each in proc.glob("[0-9]*"):
        with suppress(OSError):
            if _namespace(each) != ours:
                continue
            words = (each / "cmdline").read_bytes().decode(errors="replace").split("\0")
            yield int(each.name), (each / "comm").read_text(errors="replace").strip(), [word for word in words if word]


def _namespace(process: Path) -> str:
    return str((process / "ns/net").readlink())


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


def _ipam(plugin: Mapping[str, Any]) -> IPNetwork | None:
    ipam = plugin.get("ipam")
    return _network(ipam.get("subnet")) if isinstance(ipam, dict) else None


def _network(text: object) -> IPNetwork | None:
    try:
        return IPNetwork(text) if isinstance(text, str) and "/" in text else None
    except (AddrFormatError, ValueError):
        return None
