"""What where the kernel has no WireGuard? wireguard-go, where it is installed: a TUN device and a process that encrypts.

It is told, and asked, what a kernel would be, in lines of text over a socket that all programs know by the device's name
(wireguard.com/xplatform, "Configuration Protocol"). The device is taken for one of kind wireguard, here and nowhere else: all above
is as ever. Process and device live as long as each other, and on when the agent ends; who removes the device ends both.

The socket is made here and handed over, so that it is there before the device is: whoever hears of the device knows what it is. All
network namespaces share one directory of sockets.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from netaddr import IPAddress, IPNetwork

from flannelpy.core.environment import bare
from flannelpy.core.errors import KernelError
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import KEY_BYTES, WireguardDevice, WireguardPeer, endpoint_text, key_bytes, key_text

log = logging.getLogger("flannelpy")

PROGRAM = "wireguard-go"

SOCKETS = Path("/var/run/wireguard")
"""Where wireguard-go looks for it, too."""

START_S = 10.0
"""How long it may take until the device is there, in seconds; 20 ms do."""

ANSWER_S = 5.0
"""How long an answer may take, in seconds; a millisecond does."""

_started = set[int]()
"""The processes that this one has started, by pid: who ends is collected at the next start."""


def installed() -> str | None:
    """Where the program is, by PATH; None where it is not."""
    return shutil.which(PROGRAM)


def serves(name: str) -> bool:
    """True where a wireguard-go answers for a device of this name."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as trial:
        trial.settimeout(ANSWER_S)
        trial.connect(os.fspath(_path(name)))
        return True
    return False


async def start(name: str, there: Callable[[], bool]) -> None:
    """Have a device made, down and without a key; ``there`` says that it is. Raises KernelError."""
    pid, ended = _spawned(name), None
    with suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while not there() and (ended := _ended(pid)) is None:  # noqa: ASYNC110 - of neither there is an event
                await asyncio.sleep(0.002)
    if there() and ended is None:
        return
    if ended is None:
        os.kill(pid, signal.SIGKILL)
    _path(name).unlink(missing_ok=True)
    what = "makes no device" if ended is None else f"has ended with {ended}"
    raise KernelError(f"{PROGRAM} {what}: is there /dev/net/tun?", errno.ENODEV)


def _spawned(name: str) -> int:
    """The pid of the process that is to make the device; it goes on when we end. Raises KernelError."""
    program = installed()
    if program is None:
        raise KernelError(f"{PROGRAM} is not installed", errno.ENOENT)
    for pid in list(_started):
        _ended(pid)
    words, env = [program, "-f", name], bare(os.environ, WG_UAPI_FD="3", WG_PROCESS_FOREGROUND="1", LOG_LEVEL="silent")
    with _listening(name) as listener:
        given = [(os.POSIX_SPAWN_DUP2, listener.fileno(), 3)]
        silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
        closed = [(os.POSIX_SPAWN_CLOSE, number) for number in _inherited() if number > 3]
        try:
            pid = os.posix_spawn(program, words, env, file_actions=[*given, *silent, *closed], setsid=True)
        except OSError as reason:
            _path(name).unlink(missing_ok=True)
            raise KernelError(f"{program}: {reason.strerror}", reason.errno or 0) from None
    _started.add(pid)
    log.info("this kernel has no wireguard: %s (pid %d) carries %s", program, pid, name)
    return pid


def _inherited() -> Iterator[int]:
    """Descriptors that whoever started us left open for its children: a pipe that somebody reads to its end, systemd's store."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.get_inheritable(int(path.name)):
                yield int(path.name)


def _ended(pid: int) -> int | None:
    """The exit code of a process of ours that has ended (negative: the signal that did it); None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return None
    _started.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _listening(name: str) -> socket.socket:
    """The socket of a device that is to come. Raises KernelError."""
    path = _path(name)
    if serves(name):
        raise KernelError(f"{path} is in use by a {PROGRAM} of another network namespace", errno.EADDRINUSE)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of one that was killed
        mask = os.umask(0o177)  # who can open it can read the private key
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        listener.listen()
    except OSError as reason:
        listener.close()
        raise KernelError(f"{path}: {reason.strerror}", reason.errno or 0) from None
    return listener


def _path(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


# ----------------------------------------------------------------------------------------------------------- telling


async def set_device(item: WireguardDevice) -> None:
    """Give a device its key and port. Raises KernelError."""
    try:
        await _asked(item.dev, f"set=1\nprivate_key={item.private_key.reveal().hex()}\nlisten_port={item.listen_port}\n\n")
    except KernelError as reason:
        if reason.code == errno.EADDRINUSE:
            words = f"UDP port {item.listen_port}, which {item.dev} needs, is taken by another program"
            raise KernelError(words, reason.code) from None
        raise


async def apply_peers(name: str, steps: Sequence[Step]) -> list[KernelError | None]:
    """Carry out steps that are all about peers of one device; what became of each.

    It stops at the first that it refuses, as the kernel does: then each is told alone. Of a new one that is refused it keeps what
    came before the fault, unlike the kernel: that is taken away.
    """
    told = [_peer(step) for step in steps]
    try:
        await _asked(name, "set=1\n" + "".join(told) + "\n")
    except KernelError as reason:
        if len(steps) == 1:
            if steps[0].op == "add":
                with suppress(KernelError):
                    await _asked(name, f"set=1\n{_peer(Step('remove', steps[0].item, steps[0].item))}\n")
            return [reason]
        return [(await apply_peers(name, [step]))[0] for step in steps]
    return [None] * len(steps)


def _peer(step: Step) -> str:
    item = step.item
    assert isinstance(item, WireguardPeer)
    lines = [f"public_key={key_bytes(item.public_key).hex()}"]
    if step.op == "remove":
        lines.append("remove=true")
    else:
        lines.append(f"preshared_key={(item.preshared_key.reveal() or bytes(KEY_BYTES)).hex()}")
        lines += [] if item.endpoint is None else [f"endpoint={endpoint_text(item.endpoint)}"]
        lines += ["replace_allowed_ips=true"] if item.narrows(step.before) else []
        lines += [f"allowed_ip={net}" for net in item.allowed_ips]
        lines.append(f"persistent_keepalive_interval={item.keepalive_s}")  # the last: it sends the first one at once
    return "".join(f"{line}\n" for line in lines)


# ------------------------------------------------------------------------------------------------------------ asking


async def observe(name: str) -> list[WireguardDevice | WireguardPeer]:
    """Key, port and peers of a device; nothing where no wireguard-go has one of this name. Raises KernelError."""
    try:
        lines = await _asked(name, "get=1\n\n")
    except KernelError as reason:
        if reason.code in (errno.ENOENT, errno.ECONNREFUSED):
            return []
        raise
    about = list(_sections(lines))
    device = about[0]
    private = bytes.fromhex(device.get("private_key", [""])[0])
    found: list[WireguardDevice | WireguardPeer] = [
        WireguardDevice(name, int(device.get("listen_port", ["0"])[0]), Secret(private if any(private) else b""))
    ]
    return [*found, *(_read_peer(name, each) for each in about[1:])]


def _sections(lines: Sequence[tuple[str, str]]) -> Iterator[dict[str, list[str]]]:
    """What is said of the device, then of each peer: values by name."""
    section: dict[str, list[str]] = {}
    for key, value in lines:
        if key == "public_key":
            yield section
            section = {}
        section.setdefault(key, []).append(value)
    yield section


def _read_peer(name: str, said: dict[str, list[str]]) -> WireguardPeer:
    def last(key: str, default: str = "0") -> str:
        return said.get(key, [default])[-1]

    host, _, port = last("endpoint", "").rpartition(":")
    psk = bytes.fromhex(last("preshared_key", ""))
    return WireguardPeer(
        name,
        key_text(bytes.fromhex(last("public_key"))),
        (IPAddress(host.strip("[]").partition("%")[0]), int(port)) if host else None,
        tuple(IPNetwork(net) for net in said.get("allowed_ip", ())),
        int(last("persistent_keepalive_interval")),
        Secret(psk if any(psk) else b""),
        answered=any(int(last(f"last_handshake_time_{unit}")) for unit in ("sec", "nsec")),
    )


async def _asked(name: str, request: str) -> list[tuple[str, str]]:
    """What it answers, beside the loop: another process may be slow. Raises KernelError, without the request: it holds keys."""
    try:
        answer = await asyncio.to_thread(_exchanged, _path(name), request.encode())
        lines = [(key, value) for key, _, value in (line.partition("=") for line in answer.decode("ascii").splitlines() if line)]
        code = int(dict(lines)["errno"])
    except OSError as reason:
        raise KernelError(f"{PROGRAM} of {name}: {reason.strerror or reason}", reason.errno or errno.ETIMEDOUT) from None
    except (KeyError, ValueError):
        raise KernelError(f"{PROGRAM} of {name}: expected an errno in its answer", errno.EPROTO) from None
    if code:
        raise KernelError(f"{PROGRAM} of {name}: {os.strerror(abs(code))}", abs(code))
    return [each for each in lines if each[0] != "errno"]


def _exchanged(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(ANSWER_S)
        channel.connect(os.fspath(path))
        channel.sendall(request)
        answer = bytearray()
        while not answer.endswith(b"\n\n"):
            if not (part := channel.recv(1 << 16)):
                break
            answer += part
        return bytes(answer)
