"""How does the IKE daemon run? strongSwan's charon, by a configuration and with a socket of ours; found again where it was left.

It is started in a session of its own, and outlives an agent that is killed: rekeying goes on. One thing of it has a fixed place,
its process id (/var/run/charon.pid): there is one charon a host. strongswan.conf(5), charon(8).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from backends.ipsec.vici import Vici, library, listener
from flannelpy.core.environment import bare
from flannelpy.core.errors import BackendError
from flannelpy.core.foreign import printable
from flannelpy.core.xfrm import IKE_CONF, IKE_DIRECTORY, IKE_LOG, IKE_PACKAGES, IKE_PLACES, IKE_PROGRAM, IKE_SOCKET, IKE_TERMS

PID_FILE = Path("/var/run/charon.pid")

SOCKET_PATH_BYTES = 107
"""unix(7)."""

LOG_BYTES = 1 << 20
"""When the log is begun anew."""

TELLING = ("failed", "unable", "could not", "already running", "abort")
"""What stands in the lines of the log that matter."""

NO_VICI = "plugin 'vici': failed to load"

START_S, END_S = 60.0, 5.0
EVERY_S = 0.05

PLUGINS = (
    "random nonce aesni aes gcm ccm ctr cmac xcbc sha1 sha2 sha3 hmac kdf drbg mgf1 chapoly curve25519 gmp openssl"
    " kernel-netlink socket-default vici"
)
"""What IKEv2 by preshared keys takes, wherever a distribution has it; nothing that would touch routes, DNS or other policies."""


def configuration(directory: Path, interface: str) -> str:
    """The daemon's strongswan.conf: routes and policies are the agent's. No key stands in it.

    It looks at ``interface`` only: of containers' addresses, which come and go, it would tell all peers (MOBIKE, RFC 4555).
    """
    return f"""# Written by flannelpy at each start of charon.
charon {{
  load = {PLUGINS}
  install_routes = no
  install_virtual_ip = no
  interfaces_use = "{interface}"
  plugins {{
    vici {{
      socket = unix://{directory / IKE_SOCKET}
    }}
  }}
  filelog {{
    flannelpy {{
      path = {directory / IKE_LOG}
      append = yes
      flush_line = yes
      time_format = %FT%T
      default = 1
      enc = 0
      net = 0
    }}
  }}
}}
"""


def program() -> str:
    """charon's path. Raises BackendError: which package to install."""
    found = shutil.which(IKE_PROGRAM, path=os.pathsep.join((os.environ.get("PATH", ""), *IKE_PLACES)))
    if found is None:
        raise BackendError(f"charon, strongSwan's IKE daemon, is not installed: {IKE_PACKAGES}")
    return found


def place(run_dir: str) -> Path:
    """The daemon's directory, ours alone. Raises BackendError, OSError."""
    directory = Path(run_dir) / IKE_DIRECTORY
    if len(os.fsencode(directory / IKE_SOCKET)) > SOCKET_PATH_BYTES:
        raise BackendError(
            f"--run-dir {run_dir}: expected a shorter one, for a socket's path has at most {SOCKET_PATH_BYTES} bytes"
        )
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    there = directory.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
        raise BackendError(f"{directory}: expected a directory of our own")
    directory.chmod(0o700)
    return directory


class Charon:
    """A daemon that runs. ``adopted``: it ran already, and holds what it was told."""

    def __init__(self, directory: Path, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        """Raises OSError where there is no such process."""
        self.pid = pid
        self.vici = Vici(directory / IKE_SOCKET)
        self.adopted = child is None
        self._directory = directory
        self._child = child
        self._pidfd = os.pidfd_open(pid)

    @property
    def gone(self) -> bool:
        """It runs no more."""
        if self._child is not None:
            return self._child.poll() is not None
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return True
        return _state(self.pid) in ("Z", "")

    async def end_of_it(self) -> str:
        """Wait until it runs no more; how it ended, in words."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._pidfd, _wake, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._pidfd)
        code = None if self._child is None else self._child.poll()
        if not code:
            return "charon has ended"
        return f"charon was killed by signal {-code}" if code < 0 else f"charon has ended with code {code}{self.last_words}"

    async def end(self, *, at_once: bool) -> None:
        """``at_once``: the keys stay in the kernel, and packets flow while they last; else they go, here and at the peers."""
        self.vici.close()
        try:
            for number in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)
                if await _until(lambda: self.gone, END_S):
                    break
        finally:
            os.close(self._pidfd)
        if _noted_pid() == self.pid:
            _forget_pid()

    def keep_short(self) -> None:
        """Begin the log anew where it has grown; the daemon appends."""
        path = self._directory / IKE_LOG
        with contextlib.suppress(OSError):
            if path.stat().st_size > LOG_BYTES:
                os.truncate(path, 0)

    @property
    def last_words(self) -> str:
        """For the end of an error."""
        return last_words(self._directory / IKE_LOG)


async def take(run_dir: str, interface: str, fingerprint: Callable[[bytes], str]) -> Charon:
    """The daemon that was left running with these terms, else a fresh one. Raises BackendError, OSError."""
    library()
    path, directory = program(), place(run_dir)
    left = await asyncio.to_thread(listener, directory / IKE_SOCKET)
    if left is not None:
        with contextlib.suppress(ProcessLookupError):
            charon = Charon(directory, left, None)
            if _agreed(directory, fingerprint):
                return charon
            await charon.end(at_once=False)
    return await _start(path, directory, interface, fingerprint)


async def _start(path: str, directory: Path, interface: str, fingerprint: Callable[[bytes], str]) -> Charon:
    _make_way()
    for name in (IKE_SOCKET, IKE_LOG):
        (directory / name).unlink(missing_ok=True)
    (directory / IKE_CONF).write_text(configuration(directory, interface))
    salt = secrets.token_bytes(16)
    _write_private(directory / IKE_TERMS, f"{salt.hex()} {fingerprint(salt)}\n")
    environment = bare(os.environ, STRONGSWAN_CONF=str(directory / IKE_CONF))
    nothing = subprocess.DEVNULL
    try:
        child = await asyncio.to_thread(
            lambda: subprocess.Popen([path], stdin=nothing, stdout=nothing, stderr=nothing, env=environment, start_new_session=True)
        )
    except OSError as error:
        raise BackendError(f"{path} cannot be run: {error.strerror}") from None
    charon = Charon(directory, child.pid, child)
    try:
        log = directory / IKE_LOG
        await _until(lambda: charon.gone or _speaks(charon) or NO_VICI in log_text(log), START_S)
        if await asyncio.to_thread(_speaks, charon) and not charon.gone:
            return charon
        if charon.gone:
            raise BackendError(f"charon has ended as it began{charon.last_words}")
        raise BackendError(f"charon opens no VICI socket ({IKE_PACKAGES}){charon.last_words}")
    except BaseException:
        await asyncio.shield(charon.end(at_once=True))
        raise


def _speaks(charon: Charon) -> bool:
    return listener(charon.vici.path) == charon.pid


def _make_way() -> None:
    """A process id that nobody has any more, or somebody else has by now, keeps charon from starting. Raises BackendError."""
    pid = _noted_pid()
    if pid is None:
        return
    if _name(pid) == "charon" and _state(pid) != "Z":
        words = "it has UDP 500 and 4500, which ipsec needs: systemctl disable --now strongswan strongswan-starter, or kill"
        raise BackendError(f"another charon runs on this host, process {pid}; {words} {pid}")
    _forget_pid()


def _forget_pid() -> None:
    with contextlib.suppress(OSError):
        PID_FILE.write_text("")  # where the directory is root's, and we are not, the file was made for us
        PID_FILE.unlink()


def _noted_pid() -> int | None:
    try:
        return int(PID_FILE.read_text(errors="replace")[:20])
    except (OSError, ValueError):
        return None


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


def _state(pid: int) -> str:
    """R, S, Z and so on (proc(5)); empty where there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def _agreed(directory: Path, fingerprint: Callable[[bytes], str]) -> bool:
    with contextlib.suppress(OSError, ValueError):
        salt, told = (directory / IKE_TERMS).read_text(errors="replace").split()
        return secrets.compare_digest(fingerprint(bytes.fromhex(salt)), told)
    return False


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def last_words(log: Path) -> str:
    """What a log says of a failure, else its last line; to be put behind a sentence."""
    lines = [line.strip() for line in log_text(log).splitlines() if line.strip()]
    lines = [line for line in lines if "no plugin file" not in line or "'vici'" in line]  # no distribution has them all
    telling = [line for line in lines if any(word in line for word in TELLING)]
    found = telling[:2] or lines[-1:]
    return f": {printable('; '.join(line.partition('] ')[2] or line for line in found), 300)}" if found else ""


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def log_text(log: Path) -> str:
    """The end of a log; nothing where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        return file.read().decode(errors="replace")
    return ""


async def _until(fact: Callable[[], bool], within_s: float) -> bool:
    """Whether it came true in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not await asyncio.to_thread(fact):
        if loop.time() > deadline:
            return False
        await asyncio.sleep(EVERY_S)
    return True
