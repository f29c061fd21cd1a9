"""Is an etcd found whose name nobody knows yet, and again where its name leads elsewhere?

In a mount namespace with an /etc/hosts of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netns_lab.etcd import Etcd

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0

PROGRAM = """
import asyncio, sys, time

hosts, port, ways = sys.argv[1], sys.argv[2], sys.argv[3].split(",")

from flannelpy.core.errors import RegistryUnavailableError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.registry import EtcdRegistry

def lead(address):
    with open(hosts, "w") as file:
        file.write("127.0.0.1 localhost\\n" + (f"{address} etcd.test\\n" if address else ""))

async def main():
    registry = EtcdRegistry(Endpoint((f"http://etcd.test:{port}",), timeout_s=2.0))
    try:
        for way in ways:
            lead("" if way == "unknown" else way)
            registry.reconnect()
            async with asyncio.timeout(WITHIN_S):
                while True:
                    try:
                        await registry.config()
                    except RegistryUnavailableError as error:
                        if way != "127.0.0.1":
                            print(way, "no:", error)
                            break
                        await asyncio.sleep(0.2)
                    else:
                        if way == "127.0.0.1":
                            print(way, "yes")
                            break
                        await asyncio.sleep(0.2)
    finally:
        await registry.close()

asyncio.run(main())
""".replace("WITHIN_S", str(WITHIN_S))


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
@pytest.mark.parametrize(
    "ways",
    [
        ("unknown", "127.0.0.1"),
        ("127.0.0.9", "127.0.0.1"),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.9", "127.0.0.1"),
    ],
)
def test_a_name_that_becomes_known_or_leads_elsewhere_is_followed(shared_etcd: Etcd, tmp_path: Path, ways: tuple[str, ...]) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(hosts)]
    command += [sys.executable, "-c", PROGRAM, str(hosts), str(shared_etcd.ports[0]), ",".join(ways)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=4 * WITHIN_S)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split()[:2] for line in said] == [[way, "yes" if way == "127.0.0.1" else "no:"] for way in ways]
    for line in said:
        if line.startswith("unknown"):
            assert "its name is not known" in line
        elif " no:" in line:
            assert "connection refused" in line
