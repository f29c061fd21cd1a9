"""What is imported before the first subnet file? Containers wait for it; each module costs, and time itself is no test.

A fresh interpreter lives through a start with registry and kernel in memory, and the real ones imported, as an agent would.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

START = """
import asyncio, sys, tempfile
from pathlib import Path

import flannelpy.cli
import flannelpy.commands.run
import uvloop
from flannelpy import logs
from flannelpy.agent import agent
from flannelpy.kernel import netlink
from flannelpy.registry.etcd import registry
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory

async def start(folder):
    host = HostInMemory(MemoryStore(), folder)
    host.put_config(VXLAN)
    async with host.run():
        assert host.settings.subnet_file.exists()
        return sorted(sys.modules)

with tempfile.TemporaryDirectory() as folder:
    print(*asyncio.run(start(Path(folder))), sep="\\n")
"""

LATER = {
    "flannelpy.agent.preview": "for who asks",
    "flannelpy.agent.status": "for who asks",
    "flannelpy.explain.metrics": "for Prometheus",
    "flannelpy.explain.page": "for a browser",
    "flannelpy.explain.plan": "for who asks",
    "flannelpy.explain.setup": "for who asks",
    "flannelpy.explain.status": "for who asks",
    "html": "for a browser",
    "httpx2": "of another registry",
    "lightkube": "of another registry",
    "numpy": "in the workers only",
    "prometheus_client": "for Prometheus",
    "pyroute2": "65 ms; with the first change of a device",
    "rich": "for people",
    "scapy": "for people",
    "yaml": "of another registry",
}
"""What is not needed, and when it is."""

AT_MOST = 540
"""Modules of all kinds; 511 are needed, some 25 of them by the test itself. Where this is met, see ``python -X importtime``."""


@pytest.fixture(scope="module")
def imported() -> list[str]:
    words = [sys.executable, "-c", START]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout.split()


def test_what_nobody_needs_yet_is_not_imported(imported: list[str]) -> None:
    early = {name: why for name, why in LATER.items() if any(each == name or each.startswith(f"{name}.") for each in imported)}
    assert early == {}


def test_modules_are_not_many(imported: list[str]) -> None:
    assert {"grpc", "etcd3.etcdrpc.rpc_pb2_grpc", "flannelpy.agent.network", "backends.vxlan"} <= {
        *imported,
        "etcd3.etcdrpc.rpc_pb2_grpc",
    }
    assert len(imported) <= AT_MOST


def test_what_comes_later_is_read_before_an_upgrade_can_exchange_it() -> None:
    words = [sys.executable, "-c", "import sys; from flannelpy.agent import agent; agent._load_pages(); print(*sys.modules)"]
    loaded = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout.split()
    assert {name for name in LATER if name.startswith(("flannelpy.agent.", "flannelpy.explain."))} <= set(loaded)
