"""A lab for a fault: ``lab`` has hosts, containers and etcd, ``overlay`` also agents that are ready and containers with addresses.

What the faults have cost is told in one table at the end of the run.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from netns_lab.etcd import make_certificates
from netns_lab.lab import Lab
from netns_lab.topology import Topology
from tests.chaos.chaos_support import APART, COSTS
from tests.lab.agent_support import Log

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "topology(**fields): what the fixtures lab and overlay build; three hosts without it")
    config.addinivalue_line("markers", "etcd(tls='', options=()): how etcd serves; tls is server (a CA, no client's) or mutual")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [tool for tool in ("ip", "nft", "nsenter", "openssl", "setpriv", "ping") if shutil.which(tool) is None]
    if missing:
        reason = f"the lab needs {', '.join(missing)}"
        for item in items:
            if "chaos" in item.path.parts and "lab_name" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COSTS:
        terminalreporter.section("what the faults have cost")
        for cost in COSTS:
            terminalreporter.write_line(str(cost))


@pytest.fixture
def lab_name() -> str:
    """A lab's name that no other test run on this machine uses."""
    return f"cha{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def lab(request: pytest.FixtureRequest, lab_name: str) -> AsyncIterator[Lab]:
    marker, how = request.node.get_closest_marker("topology"), request.node.get_closest_marker("etcd")
    wanted = dict(how.kwargs) if how else {}
    tls = None
    if kind := wanted.get("tls"):
        folder = request.getfixturevalue("tmp_path") / "tls"
        tls = make_certificates(folder, mutual=kind == "mutual", names=("192.168.50.5",))
    topology = Topology(**{"hosts": 2, "config": APART, **(marker.kwargs if marker else {})})
    async with Lab.up(topology, name=lab_name, tls=tls, etcd_options=wanted.get("options", ())) as made:
        yield made


@pytest.fixture
async def overlay(lab: Lab) -> Lab:
    await lab.start_agents()
    await lab.connect_containers()
    return lab


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happens to an agent: no log of it may hold a traceback."""
    lab: Lab | None = request.getfixturevalue("lab") if "lab" in request.fixturenames else None
    yield
    for host in lab.hosts if lab else ():
        log = Log.of(host)
        text = log.text if log.path.exists() else ""
        assert "Traceback" not in text, f"{host.name}: {text[text.index('Traceback') - 500 :][:3000]}"
