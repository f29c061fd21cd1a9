"""Do the imports go one way? Read from the source, so that a wrong arrow fails here and not in somebody's head.

    core -> backends
    core -> explain -> agent
    core -> host -> registry, kernel -> agent -> commands -> cli

Nobody in flannelpy imports ``backends``: they are found by entry point, as anybody else's would be. Between udp's two processes is
a wall: ``protocol`` and ``counters`` are all that both import.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("flannelpy/**/*.py"), *ROOT.glob("backends/**/*.py")])

ROOMS = {
    "flannelpy.core": {"flannelpy.core"},
    "flannelpy.registry": {"flannelpy.core", "flannelpy.host.files", "flannelpy.registry"},
    "flannelpy.kernel": {"flannelpy.core", "flannelpy.kernel"},
    "flannelpy.host": {"flannelpy.core", "flannelpy.host"},
    "flannelpy.plugins": {"flannelpy.core"},
    "flannelpy.options": {"flannelpy.core", "flannelpy.options"},
    "flannelpy.settings": {"flannelpy.core", "flannelpy.host.files", "flannelpy.registry", "flannelpy.options"},
    "flannelpy.logs": {"flannelpy.core"},
    "flannelpy.explain": {"flannelpy.core", "flannelpy.explain"},
    "flannelpy.commands.plan": {
        "flannelpy.agent.forecast",
        "flannelpy.agent.holders",
        "flannelpy.core",
        "flannelpy.kernel",
        "flannelpy.host",
        "flannelpy.explain",
        "flannelpy.options",
        "flannelpy.settings",
        "flannelpy.commands",
    },
    "flannelpy.commands.run": {"flannelpy.core", "flannelpy.options", "flannelpy.settings", "flannelpy.logs", "flannelpy.agent"},
    **{
        f"flannelpy.commands.{name}": {
            "flannelpy.agent.holders",
            "flannelpy.agent.lock",
            "flannelpy.core",
            "flannelpy.kernel",
            "flannelpy.host",
            "flannelpy.explain",
            "flannelpy.options",
            "flannelpy.registry",
            "flannelpy.settings",
            "flannelpy.commands",
        }
        for name in ("cleanup", "leftovers", "litter")
    },
    "flannelpy.commands": {
        "flannelpy.core",
        "flannelpy.registry",
        "flannelpy.kernel",
        "flannelpy.host",
        "flannelpy.explain",
        "flannelpy.plugins",
        "flannelpy.options",
        "flannelpy.settings",
        "flannelpy.commands",
    },
    "flannelpy.cli": {"flannelpy.core", "flannelpy.options", "flannelpy.settings", "flannelpy.commands", "flannelpy.host"},
    "flannelpy.agent": {
        "flannelpy.core",
        "flannelpy.registry",
        "flannelpy.kernel",
        "flannelpy.host",
        "flannelpy.explain",
        "flannelpy.agent",
        "flannelpy.plugins",
        "flannelpy.settings",
    },
    "backends.udp.worker": {"backends.udp.worker", "backends.udp.protocol", "backends.udp.counters"},
    "backends": {"flannelpy.core", "backends"},
}
"""Who may import what of ours; the first that fits says it. Every module of ours is in one."""
TOP = {"flannelpy", "flannelpy.__main__"}

ONLY_IN = {
    "etcd3": ["flannelpy/registry/etcd/"],
    "grpc": ["flannelpy/registry/etcd/"],
    "google": ["flannelpy/registry/etcd/"],
    "pyroute2": ["flannelpy/kernel/"],
    "lightkube": ["flannelpy/registry/kube/client"],
    "httpx2": ["flannelpy/registry/kube/client"],
    "msgspec": ["flannelpy/registry/kube/client"],
    "yaml": ["flannelpy/registry/kube/client"],
    "numpy": ["backends/udp/worker/"],
    "h11": ["flannelpy/explain/"],
    "click": ["flannelpy/cli", "flannelpy/options", "flannelpy/commands/"],
    "rich": ["flannelpy/commands/"],
    "scapy": ["flannelpy/commands/trace/"],
}
"""Where a third party's package may be imported: by the start of the path."""

NOT_IN_CORE = {
    "asyncio",
    "importlib",
    "ctypes",
    "datetime",
    "logging",
    "os",
    "pathlib",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
"""I/O and clocks: the core has neither."""

WORKER = "backends.udp.worker"
"""A process of its own: nothing of the agent is in it, and the agent has nothing of it but its exit code."""

NOT_IN_WORKER = {"etcd3", "grpc", "google", "netaddr", "pyroute2", "flannelpy"}

REFUSED = {
    "ipaddress": "addresses are netaddr's everywhere",
    "scapy.all": "1.2 s and 63 MB; import the layer",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, wherever in the file; ``from a import b`` is told as ``a.b``."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong_arrows(path: Path) -> Iterator[str]:
    where, module = path.relative_to(ROOT).as_posix(), module_of(path)
    room = next((name for name in ROOMS if inside(module, name)), None)
    for line, name in imported(path):
        ours = inside(name, "flannelpy") or inside(name, "backends")
        if ours and room and not any(inside(name, allowed) for allowed in ROOMS[room]) and name != "flannelpy.__version__":
            yield f"{where}:{line}: {room} imports {name}"
        if inside(name, "backends") and not inside(module, "backends"):
            yield f"{where}:{line}: {name}: backends are found by entry point"
        top = name.split(".", 1)[0]
        if top in ONLY_IN and not any(where.startswith(start) for start in ONLY_IN[top]):
            yield f"{where}:{line}: {name}: only in {', '.join(ONLY_IN[top])}"
        if room == "flannelpy.core" and top in NOT_IN_CORE:
            yield f"{where}:{line}: {name}: the core has no I/O and no clock"
        if room == WORKER and top in NOT_IN_WORKER:
            yield f"{where}:{line}: {name}: not in the worker's process"
        if inside(name, WORKER) and not inside(module, WORKER):
            yield f"{where}:{line}: {name}: the worker is started as a process, never imported"
        for refused, why in REFUSED.items():
            if inside(name, refused):
                yield f"{where}:{line}: {name}: {why}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert list(wrong_arrows(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_is_in_a_room(path: Path) -> None:
    module = module_of(path)
    assert module in TOP or any(inside(module, room) for room in ROOMS)


def test_there_is_something_to_read() -> None:
    assert {module_of(path) for path in SOURCES} >= {"flannelpy.core.plan", "backends.vxlan", "flannelpy.registry"}


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("flannelpy/core/x.py", "import asyncio"),
        ("flannelpy/core/x.py", "from flannelpy.registry import Registry"),
        ("flannelpy/core/x.py", "def f():\n    from time import monotonic"),
        ("flannelpy/kernel/x.py", "from flannelpy import registry"),
        ("flannelpy/kernel/x.py", "from ..registry import Registry"),
        ("flannelpy/host/x.py", "from flannelpy.settings import Settings"),
        ("flannelpy/agent/x.py", "import backends.vxlan"),
        ("flannelpy/agent/x.py", "from flannelpy.cli import main"),
        ("flannelpy/agent/x.py", "from flannelpy.commands import leases"),
        ("flannelpy/agent/x.py", "import grpc"),
        ("flannelpy/commands/x.py", "from flannelpy.agent.report import Reporter"),
        ("flannelpy/commands/x.py", "import flannelpy.cli"),
        ("flannelpy/explain/x.py", "from flannelpy.agent.events import Ring"),
        ("flannelpy/explain/x.py", "from flannelpy.registry import Registry"),
        ("flannelpy/explain/x.py", "import click"),
        ("flannelpy/logs.py", "from flannelpy.settings import Settings"),
        ("flannelpy/plugins.py", "from flannelpy.agent.report import Reporter"),
        ("flannelpy/settings.py", "from flannelpy.explain.status import Status"),
        ("flannelpy/cli.py", "from pyroute2 import IPRoute"),
        ("backends/x.py", "from flannelpy.kernel import Kernel"),
        ("backends/x.py", "from ipaddress import ip_address"),
        ("backends/x.py", "from scapy.all import IP"),
        ("backends/udp/worker/x.py", "from netaddr import IPAddress"),
        ("backends/udp/worker/x.py", "from flannelpy.core.errors import BackendError"),
        ("backends/udp/worker/x.py", "from backends.udp.queues import Queues"),
        ("backends/udp/worker/x.py", "from backends.udp import sockets"),
        ("backends/udp/x.py", "from backends.udp.worker.packet import inbound"),
        ("backends/udp/x.py", "from backends.udp import worker"),
        ("backends/udp/x.py", "import numpy"),
    ],
)
def test_a_wrong_arrow_is_seen(where: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert list(wrong_arrows(path))
