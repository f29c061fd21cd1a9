"""A lab for a test: ``lab`` has hosts, containers and etcd, ``overlay`` also agents that are ready and containers with addresses.

@pytest.mark.topology(hosts=2, backend="udp")
async def test_something(overlay: Lab) -> None: ...
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator

import pytest

from netns_lab.lab import Lab
from netns_lab.topology import Topology

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "topology(**fields): what the fixtures lab and overlay build; three hosts without it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [tool for tool in ("ip", "nsenter", "setpriv", "ping", "tcpdump") if shutil.which(tool) is None]
    if missing:
        reason = f"the lab needs {', '.join(missing)}"
        for item in items:
            if "lab" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))


def fresh_name() -> str:
    """A lab's name that no other test run on this machine uses."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def lab_name() -> str:
    return fresh_name()


@pytest.fixture
async def lab(request: pytest.FixtureRequest, lab_name: str) -> AsyncIterator[Lab]:
    marker = request.node.get_closest_marker("topology")
    async with Lab.up(Topology(**(marker.kwargs if marker else {})), name=lab_name) as made:
        yield made


@pytest.fixture
async def overlay(lab: Lab) -> Lab:
    await lab.start_agents()
    await lab.connect_containers()
    return lab
