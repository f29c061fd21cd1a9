"""What do the lab tests with WireGuard share? wireguard-go in place of a kernel that has none, and what it says of itself.

wireguard-go has one directory of sockets for all network namespaces of a machine: each host of a lab gets one of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.namespaces import open_socket
from tests.lab.agent_support import until

BUILT = Path(__file__).resolve().parents[2] / ".venv" / "cache"
SOCKETS = Path("/run/wireguard")
PATTERN = bytes.fromhex("c0ffee") * 5
ETH_P_ALL = 3


@pytest_asyncio.fixture
async def wireguard_go(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host has a wireguard-go of its own. Skips where there is none, or the kernel would be taken before it."""
    await have_wireguard_go(lab, monkeypatch)


async def have_wireguard_go(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of a lab that is no fixture's."""
    path = f"{BUILT}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("wireguard-go", path=path) is None:
        pytest.skip("no wireguard-go: make test builds it (with Go)")
    if (await lab.host(1).attempt("ip", "link", "add", "wgtrial", "type", "wireguard")).code == 0:
        await lab.host(1).exec("ip", "link", "del", "wgtrial")
        pytest.skip("this kernel has WireGuard itself, which is what make test-kernels looks at")
    monkeypatch.setenv("PATH", path)
    for host in lab.hosts:
        _part(host)


def _part(host: Host) -> None:
    """Give a host sockets of its own."""
    SOCKETS.mkdir(mode=0o755, exist_ok=True)
    own = host.directory / "wireguard"
    own.mkdir()
    host.bound[str(SOCKETS)] = own


async def told(host: Host, device: str = "flannel-wg") -> list[tuple[str, str]]:
    """What the device holds, as wireguard-go says it; nothing where there is none."""
    return await asyncio.to_thread(_asked, host.directory / "wireguard" / f"{device}.sock")


def _asked(path: Path) -> list[tuple[str, str]]:
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(os.fspath(path))
            channel.sendall(b"get=1\n\n")
            said = b""
            while not said.endswith(b"\n\n") and (part := channel.recv(1 << 16)):
                said += part
    except (FileNotFoundError, ConnectionRefusedError):
        return []
    return [(name, value) for name, _, value in (line.partition("=") for line in said.decode().splitlines())]


async def all_of(host: Host, name: str, device: str = "flannel-wg") -> list[str]:
    """The values that the device has under a name."""
    return sorted(value for key, value in await told(host, device) if key == name)


async def until_peers(host: Host, *peers: Host) -> None:
    """Wait until the device has exactly these peers, by their subnets."""
    wanted = sorted(str(peer.subnet) for peer in peers)

    async def there() -> bool:
        return await all_of(host, "allowed_ip") == wanted

    await until(there, 30, f"{host.name} has the peers {wanted}")


def process_of(host: Host, device: str = "flannel-wg") -> int:
    """The pid of the wireguard-go that has the device, 0 where there is none."""
    words = f"wireguard-go\0-f\0{device}\0".encode()
    home = host.namespace.path.stat().st_ino
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().endswith(words) and (path / "ns/net").stat().st_ino == home:
                return int(path.name)
        except OSError:
            continue
    return 0


@asynccontextmanager
async def frames(host: Host) -> AsyncIterator[list[bytes]]:
    """What passes the interface between the hosts in the time of the block; complete after it."""
    found: list[bytes] = []
    with open_socket(host.namespace.path, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.bind(("eth1", ETH_P_ALL))
        tap.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(tap.fileno(), lambda: found.append(tap.recv(2048)))
        try:
            yield found
        finally:
            loop.remove_reader(tap.fileno())


def encrypted(frame: bytes, port: int = 51820) -> bool:
    """True for a data message of WireGuard in UDP over IPv4 (its type is 4)."""
    return frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == port.to_bytes(2, "big") and frame[42] == 4
