"""A Kubernetes for a test: ``cluster`` is a control plane beside three hosts, of which a test makes nodes; ``api_server`` less."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from netns_lab.lab import Lab
from netns_lab.topology import Topology
from tests.kube import node as nodes
from tests.kube.cluster import ROLE, Cluster
from tests.lab.agent_support import lab_name  # noqa: F401

LIMIT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kube" in item.path.parts:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="a cluster needs root"))


@pytest.fixture
async def cluster(lab_name: str) -> AsyncIterator[Cluster]:  # noqa: F811
    """Hosts without anything but an uplink, which can be made nodes with kubelets."""
    topology = Topology(hosts=3, containers=0, bridge="unused", agent_options=())
    async with Lab.up(topology, name=lab_name) as lab:
        made = Cluster(lab)
        await made.start()
        yield made
        leave_well(made)


@pytest.fixture
async def api_server(lab_name: str) -> AsyncIterator[Cluster]:  # noqa: F811
    """Hosts with containers of the lab, whose nodes a test posts; of the control plane the API server."""
    async with Lab.up(Topology(hosts=3), name=lab_name) as lab:
        made = Cluster(lab)
        await made.begin()
        yield made
        leave_well(made)


def leave_well(cluster: Cluster) -> None:
    """No agent's log may hold a traceback, and none may have asked for what the role of the manifests does not have."""
    assert cluster.asked() <= ROLE
    lab = cluster.lab
    for path in [path for host in lab.hosts for path in (*host.directory.glob("agent.log"), *nodes.logs(host))]:
        text = path.read_text(errors="replace")
        assert "Traceback" not in text, f"{path}: {text[text.index('Traceback') - 500 :][:3000]}"
