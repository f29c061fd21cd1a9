"""How does a host of the lab get a real systemd? systemd-nspawn boots one as PID 1 in its namespace, on a copy of this machine.

The copy is an overlay of ``/``, or of another root, in memory: what it writes is gone with it. Its ``/etc/systemd/system`` begins
empty, so that it runs what Debian starts by itself and the units that it is given. It has a cgroup of its own, pure version 2 as on
Debian, with the device rules of units in force. systemd-nspawn(1), Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from netns_lab.agent import NotifySocket
from netns_lab.docker import hierarchies
from netns_lab.errors import LabError, TimedOutError
from netns_lab.ledger import Ledger
from netns_lab.namespaces import PLAIN, Namespace, Outcome, Process, run

BOOT_WITHIN_S = 20.0
TREE = Path(__file__).resolve().parents[2]
"""The project that this lab belongs to."""
INSTALLED = Path("/opt/flannelpy")
"""Where a booted host sees it: below /tmp or /home a unit might not."""

_ENVIRONMENT = {
    "SYSTEMD_NSPAWN_LOCK": "0",  # this machine's root is not locked for us
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",  # /proc/sys/net is the namespace's own
    "UNIFIED_CGROUP_HIERARCHY": "1",
}
CONFINED = ("--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf")
"""What a host may whose units make no containers. Device rules of units are programs (Documentation/admin-guide/cgroup-v2.rst)."""
CONTAINERS = ("--capability=all", "--system-call-filter=@keyring bpf")
"""And one that runs Docker."""
HOMES = (Path("/root"), Path("/home"))
"""What ProtectHome= hides."""

_PROPAGATE = Path("/run/systemd/nspawn/propagate")
"""Where systemd-nspawn leaves a folder when it is killed."""


def missing() -> str:
    """Why no host can be booted here; empty where one can."""
    if shutil.which("systemd-nspawn") is None:
        return "no systemd-nspawn: make setup installs systemd-container where there is apt-get"
    return "" if _cgroup2() else "no cgroup2 file system that can be written to"


def _cgroup2() -> Path | None:
    """Where version 2 is mounted, among the hierarchies of version 1 or in place of them."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(where) for _, where, kind, options, *_ in mounts if kind == "cgroup2" and options.startswith("rw")), None)


class Booted:
    """A systemd that runs on a host. ``pid`` is its PID 1 as this machine counts; below ``root`` are its files."""

    def __init__(self, name: str, process: Process, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self._process = process

    async def exec(self, *words: str, timeout_s: float = 30.0) -> str:
        """Run a command inside; its standard output. Raises LabError with what it said where it fails."""
        outcome = await self.attempt(*words, timeout_s=timeout_s)
        if outcome.code:
            raise LabError(f"{self.name}: {' '.join(words)}: exit {outcome.code}: {(outcome.stderr or outcome.stdout).strip()}")
        return outcome.stdout

    async def attempt(self, *words: str, timeout_s: float = 30.0) -> Outcome:
        """Run a command inside, whatever comes of it. Raises TimedOutError where it hangs; it is killed then."""
        # nsenter waits for a child of its own, which would outlive it: the clock is inside.
        inside = ["timeout", "--signal=KILL", f"{timeout_s:g}", *words]
        outcome = await run(["nsenter", "-t", str(self.pid), "--all", "--", *inside], timeout_s=timeout_s + 5, who=self.name)
        if outcome.code in (128 + signal.SIGKILL, -signal.SIGKILL):
            raise TimedOutError(f"{self.name}: {' '.join(words)} did not end in {timeout_s:g} s and was killed")
        return outcome

    async def power_off(self, within_s: float = 60.0) -> None:
        """As its power button does it; what it has written stays. Raises TimedOutError."""
        os.kill(self.pid, signal.SIGRTMIN + 4)  # systemd(1)
        await self._process.wait(within_s)

    async def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit as ``systemctl show`` prints them."""
        text = await self.exec("systemctl", "show", unit, *(f"--property={name}" for name in properties))
        return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}

    async def journal(self, unit: str) -> list[dict[str, Any]]:
        """What the unit's processes have logged, oldest first, with the journal's fields (systemd.journal-fields(7))."""
        await self.exec("journalctl", "--sync")
        text = await self.exec("journalctl", "--no-pager", "--output=json", "-u", unit)
        return [json.loads(line) for line in text.splitlines()]


async def boot(
    namespace: Namespace,
    ledger: Ledger,
    directory: Path,
    files: Mapping[str, str],
    base: Path = Path("/"),
    powers: Sequence[str] = CONFINED,
) -> Booted:
    """Boot a systemd in ``namespace``; it takes half a second. Raises LabError, TimedOutError with the end of its console.

    ``files``: text by path, there before it boots; what begins with ``#!`` may be executed. All else goes into ``directory``.
    ``base``: the root that it has a copy of. One that has been powered off boots with what it has written, and without ``files``.
    """
    version2 = _cgroup2()
    if version2 is None or missing():
        raise LabError(f"{namespace.name} cannot be booted: {missing()}")
    root = directory / "booted/root"
    if not root.is_mount():
        _lay_root(ledger, directory / "booted", files, base)
    cgroup = version2 / f"netns-lab-{namespace.name}"
    for hierarchy in hierarchies():  # systemd-nspawn makes it in more than the one it is told
        ledger.note_folder(hierarchy / cgroup.name)
    ledger.note_folder(_PROPAGATE / namespace.name)
    cgroup.mkdir(exist_ok=True)
    console = directory / "console"
    notify = NotifySocket(directory / "notify-boot")
    try:
        words = [
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe", "--notify-ready=yes"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
            f"--machine={namespace.name}",
            f"--directory={root}",
            f"--network-namespace-path={namespace.path}",
            *([f"--bind-ro={TREE}:{INSTALLED}"] if base == Path("/") else []),
            *powers,
        ]
        process = _launch(f"systemd-nspawn {namespace.name}", words, cgroup, ledger, console, os.fspath(notify.path))
        pid = await _first_process(process, notify)
        await _booted(process, notify)
        ledger.note_process(f"systemd {namespace.name}", pid)  # only now has it the arguments by which it is known
    finally:
        notify.close()
    return Booted(namespace.name, process, pid)


def _lay_root(ledger: Ledger, place: Path, files: Mapping[str, str], base: Path) -> None:
    """The overlay: nothing of this machine's own units and journals shows in it."""
    place.mkdir()
    ledger.note_mount(place)
    _mount("tmpfs", place, "tmpfs", "mode=755")
    for part in ("upper/etc/systemd/system", "upper/var/log/journal", "work", "root"):
        (place / part).mkdir(parents=True)
    os.setxattr(place / "upper/etc/systemd/system", "trusted.overlay.opaque", b"y")
    (place / "upper/var/log/journal").rmdir()
    os.mknod(place / "upper/var/log/journal", 0o020000)  # character device 0,0: a whiteout
    root = place / "root"
    ledger.note_mount(root)
    _mount("overlay", root, "overlay", f"lowerdir={base},upperdir={place}/upper,workdir={place}/work")
    for home in HOMES[:1]:
        (root / home.relative_to("/")).chmod(0o755)  # a Python in it is for everybody
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)


def _mount(what: str, where: Path, kind: str, options: str) -> None:
    words = ["mount", "-t", kind, "-o", options, what, os.fspath(where)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise LabError(f"{where}: {kind} cannot be mounted: {mounted.stderr.strip()}")


def _launch(role: str, words: list[str], cgroup: Path, ledger: Ledger, console: Path, notify: str) -> Process:
    """Start it in its cgroup. It dies with this process, and its PID 1 with it."""
    join = 'echo $$ >"$0" && exec "$@"'
    with console.open("ab") as output:
        child = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", join, os.fspath(cgroup / "cgroup.procs"), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **PLAIN, **_ENVIRONMENT, "NOTIFY_SOCKET": notify},
            cwd="/",
            start_new_session=True,
        )
    ledger.note_child(role, child, words)
    return Process(child, role, console)


async def _first_process(process: Process, notify: NotifySocket) -> int:
    """systemd-nspawn tells the pid of the PID 1 it has made."""
    deadline = asyncio.get_running_loop().time() + BOOT_WITHIN_S
    while "X_NSPAWN_LEADER_PID" not in notify.said:
        if process.exit_code is not None:
            raise LabError(f"{process.role} ended with {process.exit_code}: {process.tail()}")
        if asyncio.get_running_loop().time() > deadline:
            raise TimedOutError(f"{process.role} made no PID 1 within {BOOT_WITHIN_S:g} s: {process.tail()}")
        await asyncio.sleep(0.01)
    return int(notify.said["X_NSPAWN_LEADER_PID"])


async def _booted(process: Process, notify: NotifySocket) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(BOOT_WITHIN_S):
            return await notify.ready()
    raise TimedOutError(f"{process.role} did not boot within {BOOT_WITHIN_S:g} s: {process.tail()}")


def _python_at_home() -> dict[str, str]:
    """Where this machine's Python is installed in somebody's home, what lets a service see that much of it."""
    base = Path(sys.base_prefix)
    if not any(base.is_relative_to(home) for home in HOMES):
        return {}
    return {"/etc/systemd/system/flannelpy.service.d/python.conf": f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={base}\n"}


def flannelpy_files(options: Sequence[str]) -> dict[str, str]:
    """What an administrator would install: unit, program, options."""
    python = Path(sys.executable)
    if python.is_relative_to(TREE):
        python = INSTALLED / python.relative_to(TREE)
    packaging = TREE / "packaging/systemd"
    return {
        "/etc/systemd/system/flannelpy.service": (packaging / "flannelpy.service").read_text(),
        "/usr/lib/sysusers.d/flannelpy.conf": (packaging / "flannelpy.sysusers").read_text(),
        **_python_at_home(),
        "/etc/default/flannelpy": f'FLANNELPY_OPTIONS="{" ".join(options)}"\n',
        "/usr/bin/flannelpy": f'#!/bin/sh\nPYTHONPATH={INSTALLED} exec {python} -P -m flannelpy "$@"\n',
    }
