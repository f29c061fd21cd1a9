"""What does the lab's command say where something is missing? Without a lab: tables, claims, faults, what a machine lacks."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from flannelpy.explain.places import SOCKET
from netns_lab import able, faults, ledger
from netns_lab.cli import lab
from netns_lab.errors import LabError
from netns_lab.faults import Injected, heal, injected
from netns_lab.lab import Lab
from netns_lab.ledger import Ledger
from netns_lab.listing import ListedLease, lease_table, show

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("columns", ["20", "60", "100", None])
def test_tables_are_as_wide_as_is_asked_and_fold_no_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str | None
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    data = '{"VNI": 1, "VtepMAC": "02:00:00:00:00:01", "More": "' + "word " * 30 + '"}'
    show(lease_table([ListedLease("/x/subnets/10.1.204.0-24", "192.168.50.204", "vxlan", data, 86_390)]))
    out = capsys.readouterr().out
    assert re.search(r"10\.1\.204\.0/24 +│ 192\.168\.50\.204 ", out), out
    wide = max(map(len, out.splitlines()))
    assert wide <= max(int(columns or 140), 85)
    assert columns != "100" or wide > 90


# ------------------------------------------------------------------------------------------------------------- claims


def test_claims_of_the_labs_own_namespaces_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netns, claims = tmp_path / "netns", tmp_path / "claims"
    netns.mkdir()
    claims.mkdir()
    monkeypatch.setattr(ledger, "NETNS", netns)
    monkeypatch.setattr(ledger, "_inhabitants", lambda _names: [])
    monkeypatch.setenv("PATH", str(tmp_path))  # no ip: what stands for namespaces goes by hand
    book = Ledger("x", tmp_path / "labs", claims)
    book.claim({})
    book.note_namespaces(["x-h1", "x-h2", "x-gone"])
    for name in ("x-h1", "x-h2"):
        (netns / name).touch()
    book.note_inodes(["x-h1"])
    inodes = [(netns / name).stat().st_ino for name in ("x-h1", "x-h2")]
    ours = [claims / f"{inode}-{what}" for inode in inodes for what in ("device_20flannel.1", "table_20flannelpy")]
    others = [claims / f"{inodes[0]}1-device_20flannel.1", claims / "1-table_20flannelpy", claims / "strange"]
    for path in (*ours, *others):
        path.touch()
    (tmp_path / "ip").write_text(f"#!/bin/sh\n/bin/rm -f {netns}/x-h1 {netns}/x-h2\n")
    (tmp_path / "ip").chmod(0o755)
    assert book.remove().namespaces == 2
    assert sorted(claims.iterdir()) == sorted(others)
    book.remove()


# ------------------------------------------------------------------------------------------------------------- faults


class Standing:
    """As much of a lab as the taking out of faults needs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.done: list[str] = []

    def host(self, name: str) -> Any:
        return SimpleNamespace(name=name, run_dir=self.directory / name)

    def box(self, _name: str) -> Any:
        return self

    async def exec(self, *words: str) -> None:
        self.done.append(words[-1])


@pytest.mark.parametrize("runs", [(), ("h1",), ("h1", "h2")])
def test_what_an_agent_puts_right_stays_while_it_does_not_run(tmp_path: Path, runs: tuple[str, ...]) -> None:
    standing = Standing(tmp_path)
    here = cast(Lab, standing)
    both = [Injected("device-deleted", "h1", "h1", ""), Injected("routes-flushed", "h2", "h2", "")]
    faults._keep(here, [*both, Injected("uplink-down", "h1", "h1", "ip link set eth1 up")])
    agents = []
    for name in runs:
        (tmp_path / name).mkdir()
        agents.append(socket.socket(socket.AF_UNIX))
        agents[-1].bind(str(tmp_path / name / SOCKET))
        agents[-1].listen()
    try:
        healed = asyncio.run(heal(here))
        assert {each.name for each in healed} == {"uplink-down", *(each.name for each in both if each.host in runs)}
        assert standing.done == ["ip link set eth1 up"]
        left = injected(here)
        assert left == [each for each in both if each.host not in runs]
        for each in left:
            with pytest.raises(
                LabError, match=f"{each.name} stays in {each.host} .*: the agent of {each.host} puts that right, and"
            ):
                asyncio.run(heal(here, each.name))
    finally:
        for agent in agents:
            agent.close()


# -------------------------------------------------------------------------------------------------------------- needs


@pytest.mark.parametrize(
    ("backend", "kernel", "program", "refused"),
    [
        ("wireguard", False, None, True),
        ("wireguard", True, None, False),
        ("wireguard", False, "/usr/bin/wireguard-go", False),
        ("vxlan", False, None, False),
    ],
)
def test_a_machine_without_wireguard_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, backend: str, kernel: bool, program: str | None, refused: bool
) -> None:
    monkeypatch.setattr(able, "TRIED", ("true",) if kernel else ("false",))
    monkeypatch.setattr(able, "installed", lambda: program)
    if refused:
        with pytest.raises(LabError, match=r"no wireguard devices, and no wireguard-go is in PATH; expected the module"):
            able.demand(backend)
    else:
        able.demand(backend)


@pytest.mark.parametrize(("count", "said"), [(0, "has 0 containers"), (1, "has 1 container")])
def test_where_nobody_can_be_pinged_that_is_said(monkeypatch: pytest.MonkeyPatch, count: int, said: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Lab, "attach", lambda _name: SimpleNamespace(containers=[object()] * count))
    done = CliRunner().invoke(lab, ["ping"])
    assert (done.exit_code, said in done.output, done.output.count("\n")) == (1, True, 1)


ALONE = """
import importlib.util, os, runpy, sys
importlib.util.find_spec = lambda name: None
def failing(*_args):
    raise {failure}
{place} = failing
sys.argv = ["lab", "status"]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("place", ["os.execve", "__import__('pathlib').Path.exists"])
@pytest.mark.parametrize("failure", ["PermissionError(13, 'Permission denied')", "OSError(8, 'Exec format error')"])
def test_an_environment_that_cannot_be_used_is_one_line(tmp_path: Path, place: str, failure: str) -> None:
    script = tmp_path / "netns-lab" / "lab"
    script.parent.mkdir()
    script.write_text((ROOT / "netns-lab/lab").read_text())
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    text = ALONE.format(failure=failure, place=place, script=str(script))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=60)
    reason = "Permission denied" if "Permission" in failure else "Exec format error"
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith(f"lab: {python}: {reason}; ")
