"""Does the package's unit let ipsec work, with what docs/backends.md adds to it? Under a real systemd, with Debian's charon.

h1 (systemd is PID 1)          etcd apart; nobody to speak to
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from netns_lab.booted import Booted, missing
from netns_lab.lab import Lab
from tests.lab.agent_support import until
from tests.lab.test_ipsec import CONFIG

ROOT = Path(__file__).resolve().parents[2]
IPSEC = ROOT / ".venv" / "strongswan" / "usr" / "lib" / "ipsec"
"""Where ``make test`` unpacks charon and its plugins."""
UNIT = "flannelpy.service"

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not IPSEC.exists(), reason="no charon: make test unpacks it"),
    pytest.mark.topology(hosts=1),
]


def documented() -> str:
    """What docs/backends.md says that is to be added to the unit."""
    (found,) = re.findall(r"```ini\n(\[Service\]\n[^`]*)```", (ROOT / "docs/backends.md").read_text())
    return str(found)


async def said(systemd: Booted, words: str) -> bool:
    return any(words in str(line["MESSAGE"]) for line in await systemd.journal(UNIT))


async def users(systemd: Booted) -> list[str]:
    """As whom charon runs."""
    return (await systemd.attempt("ps", "-o", "user:20=", "-C", "charon")).stdout.split()


async def test_the_unit_lets_charon_work_once_it_is_told_so(lab: Lab) -> None:
    await lab.put_config(CONFIG)
    systemd = await lab.install(1)
    await asyncio.to_thread(shutil.copytree, IPSEC, systemd.root / "usr/lib/ipsec", symlinks=True)
    await systemd.exec("systemctl", "start", "--no-block", UNIT)
    await until(lambda: said(systemd, "charon has ended as it began: "), 60, "why it cannot is told")
    place = systemd.root / f"etc/systemd/system/{UNIT}.d"
    await systemd.exec("mkdir", "-p", f"/etc/systemd/system/{UNIT}.d")
    await asyncio.to_thread((place / "ipsec.conf").write_text, documented())
    await systemd.exec("systemctl", "daemon-reload")
    await systemd.exec("systemctl", "restart", UNIT, timeout_s=60)
    assert await users(systemd) == ["flannelpy"]
    assert "FLANNEL_MTU=1423" in lab.host(1).subnet_file.read_text()
    first = (await systemd.exec("pidof", "charon")).strip()
    await systemd.exec("kill", "-KILL", first)

    async def another() -> bool:
        return (await systemd.attempt("pidof", "charon")).stdout.strip() not in ("", first)

    await until(another, 30, "another charon")
    for _ in range(2):
        await systemd.exec("systemctl", "restart", UNIT, timeout_s=60)
        assert await users(systemd) == ["flannelpy"]
    await systemd.exec("systemctl", "stop", UNIT)
    assert await users(systemd) == []
