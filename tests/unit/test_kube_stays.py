"""Kubernetes' config or the API server's name is no use for a while: does the node stay as it is?"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import KubeRegistry
from tests.unit.test_kube_agent import Scene, scene, server, until  # noqa: F401 - fixtures


async def test_of_a_name_that_nobody_resolves_now_the_addresses_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = KubeRegistry(Access(api_url="https://api.example:6443", net_config=tmp_path / "n", node="n1"))
    answers: list[Any] = [[(0, 0, 0, "", ("10.244.9.9", 0))]]

    async def getaddrinfo(host: str, port: object, **_: object) -> Any:
        if not answers:
            raise socket.gaierror("Temporary failure in name resolution")
        return answers.pop()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    first = await registry.addresses()
    assert first == {IPAddress("10.244.9.9")}
    assert await registry.addresses() == first
    await registry.close()


async def test_a_network_that_no_podcidr_is_in_cuts_nobody_off(scene: Scene) -> None:  # noqa: F811
    """An operator writes another Network into the ConfigMap: podCIDRs stay what they are."""
    scene.server.add("n1", "10.244.0.0/24")
    async with scene.running():
        await until(lambda: scene.agent.ready and "10.244.2.0/24" in str(scene.routes), 10.0)
        scene.config.write_text('{"Network": "10.24.0.0/16", "Backend": {"Type": "vxlan"}}')
        await until(lambda: scene.holds("node-unassigned"), 10.0)
        await asyncio.sleep(0.5)
        assert "10.244.2.0/24" in str(scene.routes)
