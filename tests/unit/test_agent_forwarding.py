"""What becomes of the host's own FORWARD chains while the agent lives: in memory."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flannelpy.agent import forwarding
from flannelpy.core.errors import KernelError
from flannelpy.core.forwarding import FORWARD, Hindrance
from flannelpy.registry.memory import MemoryStore

from .agents import VXLAN, HostInMemory, until

DROPS = Hindrance(4, "ip filter", FORWARD, "policy drop", "nft")
OURS = "forward iptables FORWARD -s 10.5.0.0/16 -m comment --comment flannelpy -j ACCEPT"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr(forwarding, "SILENT_S", 0.01)
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


async def test_rules_come_and_go_with_the_chain_that_drops(host: HostInMemory) -> None:
    async with host.run():
        for _ in range(3):
            host.kernel.firewall = (DROPS,)
            await until(lambda: host.holds(OURS) and host.conditions() == {})
            host.kernel.firewall = ()
            await until(lambda: not host.holds(OURS) and host.conditions() == {})


@pytest.mark.parametrize("failures", [1, 3, 40])
async def test_a_firewall_that_cannot_be_seen_is_one_line_and_changes_nothing(
    host: HostInMemory, failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    host.kernel.firewall = (DROPS,)
    async with host.run():
        await until(lambda: host.holds(OURS))
        before = host.kernel.calls["hindrances"]
        host.kernel.fail_call("hindrances", KernelError("iptables-legacy: Permission denied (you must be root)"), failures)
        await until(lambda: host.kernel.calls["hindrances"] > before + failures)
        assert host.holds(OURS)
        assert host.ready
        assert host.conditions() == {}
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [
        "whether this host forwards the overlay cannot be seen: iptables-legacy: Permission denied (you must be root); "
        "all else goes on"
    ]
