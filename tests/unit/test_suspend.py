"""A machine that was asleep: does what has not turned meanwhile count as dead?"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flannelpy.agent import agent
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, until


async def test_a_machine_that_has_slept_has_a_loop_that_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_BOOTTIME goes on through a suspend; of it the loop cannot have turned, and no watchdog counts it (CLOCK_MONOTONIC)."""
    slept_s = 0.0
    monkeypatch.setattr(agent, "clock", lambda: time.monotonic() + slept_s)
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    async with host.run():
        await until(lambda: host.settled)
        slept_s = 3600.0
        assert host.agent is not None
        assert host.agent._silent_s() < 30.0
        assert host.agent._health_pages()["/healthz"]()[0] == 200
