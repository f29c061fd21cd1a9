"""What did this lab make? Written down as it is made, so that whoever comes after a crash removes exactly that.

One directory a lab, ``/run/netns-lab/NAME``; making it claims the name. In it ``made.jsonl``, one record a line: a namespace
before it is made and again, with its inode, after; a process with its start time and its arguments. A pid is signalled only if both
still fit (proc(5): pid and start time never repeat in one boot). Mounts, and folders elsewhere (a cgroup), are noted before they
are made. Everything else of a lab lives inside its namespaces or below this directory and goes with them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netns_lab.errors import LabError

ROOT = Path("/run/netns-lab")
NETNS = Path("/run/netns")
CLAIMS = Path("/run/flannelpy-claims")
"""Where agents say what they have, each in a file that begins with its namespace's inode (``flannelpy.agent.lock``)."""
TERM_WITHIN_S = 3.0
KILL_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that was started: what it is for, and what tells it from another that got its pid."""

    role: str
    pid: int
    start: int
    argv: tuple[str, ...]

    @property
    def alive(self) -> bool:
        """Is this pid still this process (and no zombie)?"""
        return start_time(self.pid) == self.start and _fits(self.pid, self.argv)


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace by name; ``inode`` None where the lab died before it could note it."""

    name: str
    inode: int | None


@dataclass(frozen=True, slots=True)
class Removed:
    """What ``Ledger.remove`` took away."""

    namespaces: int
    processes: int


class Ledger:
    """The record of one lab."""

    def __init__(self, name: str, root: Path = ROOT, claims: Path = CLAIMS) -> None:
        self.name = name
        self._claims = claims
        self.directory = root / name
        self._journal = self.directory / "made.jsonl"
        self._children: list[subprocess.Popen[bytes]] = []

    # ---------------------------------------------------------------------------------------------------- writing

    def claim(self, about: dict[str, Any]) -> None:
        """Take the name; ``about`` is kept for whoever attaches. Raises LabError where a lab of this name is there."""
        try:
            self.directory.mkdir(parents=True)
        except FileExistsError:
            raise LabError(f"a lab named {self.name} is there already") from None
        except OSError as error:
            raise LabError(f"{self.directory} cannot be made: {error.strerror}") from None
        self._write(kind="owner", pid=os.getpid(), start=start_time(os.getpid()), argv=_arguments(os.getpid()))
        (self.directory / "about.json").write_text(json.dumps(about))

    def note_namespaces(self, names: Iterable[str]) -> None:
        """These are about to be made. Raises LabError where one of them exists: it is somebody else's."""
        names = list(names)
        for name in names:
            if (NETNS / name).exists():
                raise LabError(f"namespace {name} exists and is not of this lab; choose another --name")
        self._write(*({"kind": "namespace", "name": name} for name in names))

    def note_inodes(self, names: Iterable[str]) -> None:
        """These are made."""
        self._write(*({"kind": "namespace", "name": name, "inode": (NETNS / name).stat().st_ino} for name in names))

    def note_process(self, role: str, pid: int, argv: Sequence[str] = ()) -> None:
        """This process was started. ``argv``: what it will be once its launchers have done exec; not given, what it is now."""
        self._write(kind="process", role=role, pid=pid, start=start_time(pid), argv=list(argv) or _arguments(pid))

    def note_child(self, role: str, child: subprocess.Popen[bytes], argv: Sequence[str]) -> None:
        """The same for a child of ours, which is also reaped when all is removed."""
        self._children.append(child)
        self.note_process(role, child.pid, argv)

    def note_mount(self, path: Path) -> None:
        """Something is about to be mounted here, below the lab's directory."""
        self._write(kind="mount", path=os.fspath(path))

    def note_folder(self, path: Path) -> None:
        """This folder outside the lab's directory is about to be made: a cgroup, and others in it. They are removed while empty."""
        self._write(kind="folder", path=os.fspath(path))

    def release(self) -> None:
        """The lab is complete and stays when this process ends."""
        self._write(kind="released")

    # ---------------------------------------------------------------------------------------------------- reading

    @property
    def exists(self) -> bool:
        """Is there a lab of this name, whole or in parts?"""
        return self.directory.is_dir()

    @property
    def released(self) -> bool:
        """Was it left to stand?"""
        return any(record["kind"] == "released" for record in self._read())

    @property
    def owner(self) -> ProcessRecord | None:
        """The process that made it and still holds it: a test that runs, an ``up`` that is not done."""
        if self.released:
            return None
        owners = [_process(record) for record in self._read() if record["kind"] == "owner"]
        return next((owner for owner in owners if owner.alive), None)

    @property
    def about(self) -> dict[str, Any]:
        """What ``claim`` was given."""
        try:
            decoded: dict[str, Any] = json.loads((self.directory / "about.json").read_text())
        except (OSError, ValueError):
            raise LabError(f"{self.directory} holds no whole lab; lab down removes what is left of it") from None
        return decoded

    @property
    def processes(self) -> list[ProcessRecord]:
        """Every process that was noted, oldest first."""
        return [_process(record) for record in self._read() if record["kind"] == "process"]

    @property
    def namespaces(self) -> list[NamespaceRecord]:
        """Every namespace that was noted, each once."""
        inodes: dict[str, int | None] = {}
        for record in self._read():
            if record["kind"] == "namespace":
                inodes[record["name"]] = record.get("inode")
        return [NamespaceRecord(name, inode) for name, inode in inodes.items()]

    # --------------------------------------------------------------------------------------------------- removing

    def remove(self) -> Removed:
        """Take away what was made and nothing else. Safe to call twice, and on what a crash left."""
        if not self.exists:
            return Removed(0, 0)
        with _undisturbed():
            return self._remove()

    def _remove(self) -> Removed:
        noted = [record for record in reversed(self.processes) if record.alive]
        # Whatever these would put in order on SIGTERM is thrown away below; etcd alone would take its time for it.
        ended = _end([(record.pid, record.start) for record in noted], politely=False)
        namespaces = [record.name for record in self.namespaces if self._is_ours(record)]
        # What else runs inside was started by something of ours (an agent's workers, a shell in a host) and has no network left.
        inside = [(pid, start_time(pid)) for pid in _inhabitants(namespaces) if pid != os.getpid()]
        ended += _end(inside, politely=True)
        for child in self._children:
            child.poll()
        self._remove_claims(namespaces)
        if namespaces:
            lines = "".join(f"netns del {name}\n" for name in namespaces)
            subprocess.run(["ip", "-force", "-batch", "-"], input=lines, text=True, capture_output=True, check=False)
        left = [name for name in namespaces if (NETNS / name).exists()]
        if left:
            raise LabError(f"namespaces {', '.join(left)} could not be removed; lab down tries again")
        self._remove_mounts()
        self._remove_folders()
        shutil.rmtree(self.directory, ignore_errors=True)
        return Removed(len(namespaces), ended)

    def _remove_claims(self, namespaces: Sequence[str]) -> None:
        """What its agents, who were ended without a word, had claimed: by the namespaces' inodes, while no other can have them."""
        leads = tuple(f"{(NETNS / name).stat().st_ino}-" for name in namespaces if (NETNS / name).exists())
        for path in self._claims.iterdir() if self._claims.is_dir() else ():
            if path.name.startswith(leads):
                path.unlink(missing_ok=True)

    def _remove_mounts(self) -> None:
        """Take off what was mounted, the last one first. What stays mounted is never emptied: it may show somebody's root."""
        for path in reversed(self._paths("mount")):
            while os.path.ismount(path):
                words = ["umount", "--lazy", path]
                if subprocess.run(words, capture_output=True, check=False).returncode:
                    raise LabError(f"{path} cannot be unmounted; lab down tries again")

    def _remove_folders(self) -> None:
        deadline = time.monotonic() + KILL_WITHIN_S
        for path in reversed(self._paths("folder")):
            below = [Path(found) for found, _, _ in os.walk(path, topdown=False)]
            while below:
                try:
                    below[0].rmdir()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise LabError(f"{below[0]} cannot be removed: {error.strerror}; lab down tries again") from None
                    time.sleep(0.01)  # a cgroup is busy until the last process in it has been reaped
                    continue
                del below[0]

    def _paths(self, kind: str) -> list[str]:
        return [record["path"] for record in self._read() if record["kind"] == kind]

    def _is_ours(self, record: NamespaceRecord) -> bool:
        try:
            inode = (NETNS / record.name).stat().st_ino
        except OSError:
            return False
        return record.inode is None or record.inode == inode

    def _write(self, *records: dict[str, Any], **record: Any) -> None:
        lines = "".join(json.dumps(item) + "\n" for item in (*records, *([record] if record else [])))
        with self._journal.open("a") as journal:
            journal.write(lines)

    def _read(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self._journal.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            with suppress(ValueError):  # the last line may be cut where the writer was killed
                yield json.loads(line)


def names(root: Path = ROOT) -> list[str]:
    """Every lab that is there, whole or in parts."""
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 where there is none, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *rest = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second ctrl-C does not cut the removal short; it takes some milliseconds, a few seconds where something hangs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, signal.SIG_DFL if action is None else action)


def _process(record: dict[str, Any]) -> ProcessRecord:
    return ProcessRecord(record.get("role", "owner"), record["pid"], record["start"], tuple(record["argv"]))


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _fits(pid: int, argv: tuple[str, ...]) -> bool:
    """Are these its arguments? Launchers (setpriv, nsenter) stand before them until they have done exec, an interpreter may."""
    now = _arguments(pid)
    rest = list(argv[1:])
    named = os.path.basename(argv[0]) in (os.path.basename(word) for word in now)  # noqa: PTH119 (text, not a path)
    return named and (not rest or now[-len(rest) :] == rest)


def _inhabitants(namespaces: Sequence[str]) -> list[int]:
    inodes = {(NETNS / name).stat().st_ino for name in namespaces}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "ns/net").stat().st_ino in inodes:
                    found.append(int(entry.name))
    return found


def _end(targets: Sequence[tuple[int, int]], *, politely: bool) -> int:
    """End each (pid, start time) that is still there: SIGTERM first, or SIGKILL at once. Through pidfds: no reused pid is hit."""
    handles: list[int] = []
    for pid, start in targets:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            if start and start_time(pid) == start:
                handles.append(handle)
            else:
                os.close(handle)
    try:
        waiting = _signal(handles, signal.SIGTERM, TERM_WITHIN_S) if politely else handles
        waiting = _signal(waiting, signal.SIGKILL, KILL_WITHIN_S)
        return len(handles) - len(waiting)
    finally:
        for handle in handles:
            os.close(handle)


def _signal(handles: Sequence[int], number: signal.Signals, within_s: float) -> list[int]:
    """Send it to each; those that have not ended within the bound."""
    for handle in handles:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
    return _wait(handles, within_s)


def _wait(handles: Sequence[int], within_s: float) -> list[int]:
    """Those that have not ended within the bound. A pidfd is readable once its process is dead (pidfd_open(2))."""
    waiting, deadline = set(handles), time.monotonic() + within_s
    poll = select.poll()
    for handle in waiting:
        poll.register(handle, select.POLLIN)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            waiting.discard(handle)
    return sorted(waiting)
