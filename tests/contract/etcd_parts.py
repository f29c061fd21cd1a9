"""Which etcds are spoken to? The one of the tests, an old one, newer ones, learners, and gRPC proxies of each.

The old one is Debian's, unpacked below .venv/cache on first use; 3.6 and 3.7 are used where ``make etcds`` has built them, in
.venv/cache/etcd-3.6 and etcd-3.7, or where ``$FLANNELPY_ETCD_3_6`` and ``_3_7`` say where they are. A part that is not to be had
says why.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from netns_lab.etcd import EtcdFailedError, binary

CACHE = Path(sys.prefix) / "cache"
START_S = 20.0
DOWNLOAD_S = 60


class MissingError(Exception):
    """A part that is not to be had here, and why."""


def program(version: str) -> str:
    """The path of an etcd: ``3.5`` (the tests' own), ``3.4`` (Debian's), ``3.6``, ``3.7``. Raises MissingError."""
    if version == "3.5":
        return binary()
    if version == "3.4":
        return _debians()
    name = f"FLANNELPY_ETCD_{version.replace('.', '_')}"
    path = Path(os.environ.get(name, CACHE / f"etcd-{version}" / "etcd"))
    if not path.exists():
        raise MissingError(f"no etcd {version} at {path}: make etcds builds it (with Go), or ${name} names one")
    return str(path)


def _debians() -> str:
    folder = CACHE / "etcd-3.4"
    unpacked = folder / "usr" / "bin" / "etcd"
    if unpacked.exists():
        return str(unpacked)
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise MissingError("no etcd 3.4: there is no apt-get to fetch Debian's")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as fetched:
        try:
            subprocess.run(
                ["apt-get", "download", "etcd-server=3.4*"], cwd=fetched, check=True, capture_output=True, timeout=DOWNLOAD_S
            )
            (package,) = Path(fetched).glob("etcd-server_*.deb")
            subprocess.run(["dpkg", "-x", package, folder], check=True, capture_output=True, timeout=DOWNLOAD_S)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise MissingError(f"no etcd 3.4: Debian's could not be fetched ({error})") from None
    return str(unpacked)


@contextlib.contextmanager
def member(version: str, *options: str) -> Iterator[str]:
    """A member by itself; its client URL."""
    client, peer = _free_ports(2)
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    with tempfile.TemporaryDirectory(prefix="flannelpy-etcd-") as folder:
        command = [program(version), "--name=m0", f"--data-dir={folder}/data", "--logger=zap"]
        command += [f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--listen-peer-urls={peer_url}"]
        command += [f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=m0={peer_url}"]
        with _running([*command, "--heartbeat-interval=10", "--election-timeout=50", *options], url, Path(folder) / "log"):
            yield url


@contextlib.contextmanager
def proxy(version: str, url: str) -> Iterator[str]:
    """A gRPC proxy in front of a member; its URL."""
    (port,) = _free_ports(1)
    here = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="flannelpy-etcd-") as folder:
        command = [program(version), "grpc-proxy", "start", f"--endpoints={url.removeprefix('http://')}"]
        command += [f"--listen-addr=127.0.0.1:{port}", f"--data-dir={folder}/data"]
        with _running(command, here, Path(folder) / "log"):
            yield here


@contextlib.contextmanager
def learner(version: str, url: str) -> Iterator[str]:
    """A learner that joins a member; its client URL."""
    client, peer = _free_ports(2)
    here, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    added = _ctl(url, "member", "add", "m1", "--learner", f"--peer-urls={peer_url}")
    members = next(line.partition("=")[2].strip('"') for line in added.splitlines() if line.startswith("ETCD_INITIAL_CLUSTER="))
    with tempfile.TemporaryDirectory(prefix="flannelpy-etcd-") as folder:
        command = [program(version), "--name=m1", f"--data-dir={folder}/data", "--logger=zap"]
        command += [f"--listen-client-urls={here}", f"--advertise-client-urls={here}", f"--listen-peer-urls={peer_url}"]
        command += [f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster={members}", "--initial-cluster-state=existing"]
        log = Path(folder) / "log"
        with _running([*command, "--heartbeat-interval=10", "--election-timeout=50"], "", log):
            until = time.monotonic() + START_S
            while "serving client traffic insecurely" not in log.read_text() and "serving insecure client" not in log.read_text():
                _patiently(until, log)
            yield here


def _ctl(url: str, *words: str) -> str:
    done = subprocess.run(
        [binary("etcdctl"), f"--endpoints={url}", *words],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
        raise EtcdFailedError(done.stderr.strip())
    return done.stdout


@contextlib.contextmanager
def _running(command: list[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env
        )
    try:
        until = time.monotonic() + START_S
        while url and not _healthy(url):
            if process.poll() is not None:
                raise EtcdFailedError(f"{command[0]} ended with {process.returncode}: {log.read_text()[-2000:]}")
            _patiently(until, log)
        yield process
        assert process.poll() is None, f"{' '.join(command[:3])} ended under the test: {log.read_text()[-2000:]}"
    finally:
        process.kill()
        process.wait(10)


def _patiently(until: float, log: Path) -> None:
    if time.monotonic() > until:
        raise EtcdFailedError(f"it does not serve after {START_S:g} s: {log.read_text()[-2000:]}")
    time.sleep(0.02)


def _healthy(url: str) -> bool:
    """etcd serves HTTP beside gRPC on the same port."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=2) as answer:
            return b"true" in answer.read()
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
