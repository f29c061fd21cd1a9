"""Are our files where they should be, with the modes they should have, and does the subnet file say what the agent has?"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flannelpy.commands.doctor.about import About
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.host.files import AGENT

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ONLY_ROOT = "only root can judge that: sudo flannelpy doctor"
_OPEN = stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


def directories(about: About) -> Iterator[Finding]:
    """State and run directory: there, ours alone to write, and writable."""
    settings = about.settings
    for flag, path in (("--state-dir", settings.state_dir), ("--run-dir", settings.run_dir)):
        name = f"file: {flag}"
        try:
            there = path.stat()
            mode = there.st_mode
        except FileNotFoundError:
            yield Finding(name, OK if about.status is None else WARNING, f"{path} is not there yet; the agent makes it")
            continue
        except PermissionError as error:
            yield _hidden(name, path, error, f"choose another with {flag}")
            continue
        except OSError as error:
            yield Finding(name, FAILED, f"{path}: {error.strerror}", f"expected a directory; choose another with {flag}")
            continue
        if not stat.S_ISDIR(mode):
            yield Finding(name, FAILED, f"{path} is no directory", f"remove it, or choose another with {flag}")
        elif mode & _WRITABLE_BY_OTHERS:
            yield Finding(name, WARNING, f"{path} can be written by others (mode {stat.S_IMODE(mode):o})", f"chmod go-w {path}")
        elif not os.access(path, os.W_OK) and os.geteuid() not in (0, there.st_uid):
            yield Finding(name, SKIPPED, f"{path} cannot be written by whoever asks; {ONLY_ROOT}")
        elif not os.access(path, os.W_OK):
            yield Finding(name, FAILED, f"{path} cannot be written", f"mount it writable, or choose another with {flag}")
        else:
            yield Finding(name, OK, f"{path}, mode {stat.S_IMODE(mode):o}")


def secrets(about: About) -> Iterator[Finding]:
    """Files that others must not read, and the agent must."""
    service = _service(about)
    endpoint, settings = about.settings.endpoint, about.settings
    given = {"--etcd-password-file": endpoint.password_file, "--etcd-keyfile": endpoint.keyfile}
    given["--wireguard-key-file"] = str(settings.wireguard_key_file or "")
    given["the agent's own key"] = str(settings.state_dir / "wireguard.key")
    for flag, file in given.items():
        if not file or (flag == "the agent's own key" and not Path(file).exists()):
            continue
        try:
            there = Path(file).stat()
        except PermissionError as error:
            yield _hidden(f"file: {flag}", Path(file), error, f"make it readable for the agent, or change {flag}")
            continue
        except OSError as error:
            yield Finding(f"file: {flag}", FAILED, f"{file}: {error.strerror}", f"make it readable for the agent, or change {flag}")
            continue
        mode = stat.S_IMODE(there.st_mode)
        # One that is root's, closed to all but root, ends the service: wrong options, exit code 2.
        others = service is not None and there.st_uid != service.pw_uid
        shared = None if mode & _OPEN else _group(there, stat.S_IRGRP)
        remedy = shared or f"chgrp {AGENT} {file} && chmod 640 {file}" if others else f"chmod 600 {file}"
        if others and flag not in ("--etcd-password-file", "--etcd-keyfile"):  # the agent makes a new one of another mode
            remedy = f"chown {AGENT} {file} && chmod 600 {file}"
        if service is not None and (folder := _barred(service, file)) is not None:
            yield Finding(f"file: {flag}", FAILED, f"{file}: {AGENT}, the service's user, may not enter {folder}", _entry(folder))
        elif service is not None and _shut_out(service, file):
            yield Finding(f"file: {flag}", FAILED, f"{file}, mode {mode:o}: {AGENT}, the service's user, cannot read it", remedy)
        elif mode & _OPEN:
            yield Finding(f"file: {flag}", WARNING, f"{file} is open to others (mode {mode:o})", remedy)
        else:
            yield Finding(f"file: {flag}", OK, f"{file}, mode {mode:o}")


def _service(about: About) -> pwd.struct_passwd | None:
    """The user of packaging's unit, where the agent here is, or will be, his."""
    try:
        user = pwd.getpwnam(AGENT)
    except KeyError:
        return None
    try:
        return user if about.settings.state_dir.stat().st_uid == user.pw_uid else None
    except OSError:  # not there yet
        return user


def _barred(user: pwd.struct_passwd, file: str) -> Path | None:
    """The first directory on the way to a file that he may not enter; None where all let him through."""
    ways = reversed(Path(os.path.realpath(file)).parents)
    return next((each for each in ways if _shut_out(user, str(each), "-x")), None) if _shut_out(user, file) else None


def _entry(folder: Path) -> str:
    """How the service comes in, and nobody else who could not."""
    return _group(folder.stat(), stat.S_IXGRP) or f"chgrp {AGENT} {folder} && chmod g+x {folder}"


def _group(there: os.stat_result, right: int) -> str | None:
    """How the service comes into a group that somebody has given this right, and who is in it keeps it; None where none has."""
    with suppress(KeyError):
        if there.st_gid and there.st_mode & right:
            return f"usermod -aG {grp.getgrgid(there.st_gid).gr_name} {AGENT}"
    return None


def _shut_out(user: pwd.struct_passwd, file: str, how: str = "-r") -> bool:
    """Whether he may not read it, by whatever mode, list (acl(5)) or directory on the way; only root can find out."""
    if os.geteuid() != 0:
        return False
    whose = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": os.getgrouplist(user.pw_name, user.pw_gid)}
    try:
        tried = subprocess.run(["/usr/bin/test", how, file], **whose, env={}, check=False, timeout=2.0)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(tried.returncode == 1)


def _hidden(name: str, path: Path, error: OSError, remedy: str) -> Finding:
    """What is refused to a person who is not root says nothing of the agent."""
    if os.geteuid():
        return Finding(name, SKIPPED, f"{path}: {error.strerror} for whoever asks; {ONLY_ROOT}")
    return Finding(name, FAILED, f"{path}: {error.strerror}", remedy)


def subnet_file(about: About) -> Iterator[Finding]:
    """What Docker and CNI read, against what the agent has."""
    path, told, name = about.settings.subnet_file, about.told, "file: --subnet-file"
    lease = None if about.status is None else about.status.lease
    if told.subnet is None and told.subnet6 is None:
        if about.status is None or lease is None:
            yield Finding(name, SKIPPED, f"{path} tells no subnet: no agent has got ready here yet")
        else:
            yield Finding(
                name, FAILED, f"{path} tells no subnet, and the agent has one", "look at its mode; the agent writes it anew"
            )
        return
    said = " and ".join(str(net) for net in (told.subnet, told.subnet6) if net is not None)
    wanted = None if lease is None else {net for net in (lease.subnet, lease.subnet6) if net is not None}
    if wanted is not None and wanted != {str(net) for net in (told.subnet, told.subnet6) if net is not None}:
        remedy = "somebody else writes it (flanneld?); the agent puts it back within seconds"
        yield Finding(name, FAILED, f"{path} says {said}, the agent has {' and '.join(sorted(wanted))}", remedy)
    elif about.status is not None and told.mtu is not None and told.mtu != about.mtu:
        yield Finding(name, WARNING, f"{path} says MTU {told.mtu}, the agent {about.mtu}", "the agent puts it back within seconds")
    else:
        yield Finding(name, OK, f"{path} says {said}, MTU {told.mtu}")
    for skipped in told.skipped:
        yield Finding(name, WARNING, f"{path}: {skipped}", "the agent writes it anew")
