"""Is the view of the cluster written where it has changed, or is gone, and not each time that something on the host does?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flannelpy.agent import publish
from flannelpy.host import view_file
from flannelpy.host.view_file import KeptView
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, until, vxlan_value


@pytest.mark.parametrize("peers", [0, 1, 40])
async def test_what_did_not_change_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peers: int) -> None:
    written = list[int]()
    write = view_file.write

    def counted(directory: Path, view: KeptView, file: str = view_file.FILE) -> None:
        write(directory, view, file)
        if file == view_file.FILE:
            written.append(len(view.leases))

    monkeypatch.setattr(view_file, "write", counted)
    monkeypatch.setattr(publish, "LOOK_S", 0.05)
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    for number in range(1, peers + 1):
        host.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number + 100}", f"02:00:00:00:00:{number:02x}"))
    async with host.run():
        assert host.agent is not None
        await until(lambda: written and written[-1] == peers + 1)
        await asyncio.sleep(0.3)
        before = len(written)
        for _ in range(10):
            host.agent.audit()  # all of the host is looked at anew
            await asyncio.sleep(0.06)
        assert len(written) == before
        (host.settings.state_dir / view_file.FILE).unlink()
        host.agent.audit()
        await until((host.settings.state_dir / view_file.FILE).exists)
        host.put_peer("10.5.200.0-24", vxlan_value("192.0.2.99", "02:00:00:00:00:fe"))
        await until(lambda: written[-1] == peers + 2)
