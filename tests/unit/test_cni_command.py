"""Does ``flannelpy cni`` write what a runtime needs, say so, and touch nothing that is not its own?"""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from flannelpy.cli import main
from flannelpy.host.cni import place

FOREIGN = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path]:
    """Neither is there yet."""
    return tmp_path / "opt/cni/bin", tmp_path / "etc/cni/net.d"


def cni(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path], *words: str) -> tuple[int, list[str]]:
    """Exit code, and the lines on both streams."""
    with pytest.raises(SystemExit) as ended:
        main(["cni", words[0], "--bin-dir", str(dirs[0]), "--conf-dir", str(dirs[1]), *words[1:]])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, (said.out + said.err).splitlines()


def files(dirs: tuple[Path, Path]) -> tuple[Path, Path]:
    return dirs[0] / "flannel", dirs[1] / "10-flannel.conflist"


def test_both_files_are_written_and_taken_back(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path]) -> None:
    plugin, network = files(dirs)
    code, said = cni(capsys, dirs, "install")
    assert code == 0
    assert said[:2] == [f"wrote {plugin} (mode 0755)", f"wrote {network} (mode 0644)"]
    assert said[2].startswith(f"note: {dirs[0]} has no bridge, host-local, portmap")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (plugin, network)] == [0o755, 0o644]
    told = subprocess.run([plugin], capture_output=True, check=True, env={"CNI_COMMAND": "VERSION"})
    assert json.loads(told.stdout)["cniVersion"] == "1.1.0"
    conflist = json.loads(network.read_text())
    assert [each["type"] for each in conflist["plugins"]] == ["flannel", "portmap"]
    assert conflist["plugins"][0]["delegate"] == {"hairpinMode": True, "isDefaultGateway": True}
    assert conflist["plugins"][1]["capabilities"] == {"portMappings": True}
    assert cni(capsys, dirs, "install")[1][:2] == [f"{plugin} is up to date", f"{network} is up to date"]
    assert cni(capsys, dirs, "uninstall") == (0, [f"removed {network}", f"removed {plugin}"])
    assert cni(capsys, dirs, "uninstall") == (0, [f"{network} is not there", f"{plugin} is not there"])
    assert [list(each.iterdir()) for each in dirs] == [[], []]


def test_a_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path]) -> None:
    plugin, network = files(dirs)
    code, said = cni(capsys, dirs, "install", "--dry-run")
    assert (code, said[:2]) == (0, [f"would write {plugin} (mode 0755)", f"would write {network} (mode 0644)"])
    assert not dirs[0].exists()
    cni(capsys, dirs, "install")
    assert cni(capsys, dirs, "uninstall", "--dry-run") == (0, [f"would remove {network}", f"would remove {plugin}"])
    assert plugin.exists()
    assert network.exists()


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_of_somebody_else_is_not_replaced(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path], which: int) -> None:
    theirs, other = files(dirs)[which], files(dirs)[1 - which]
    theirs.parent.mkdir(parents=True)
    theirs.write_text(FOREIGN)
    code, said = cni(capsys, dirs, "install")
    assert (code, said) == (1, [f"flannelpy: {theirs}: not flannelpy's, nothing is written; --force replaces it"])
    assert theirs.read_text() == FOREIGN
    assert not other.exists()
    assert f"{theirs} is not flannelpy's; it stays" in cni(capsys, dirs, "uninstall")[1]
    assert theirs.read_text() == FOREIGN
    assert f"would replace {theirs}" in cni(capsys, dirs, "install", "--force", "--dry-run")[1][which]
    assert theirs.read_text() == FOREIGN
    code, said = cni(capsys, dirs, "install", "--force")
    assert code == 0
    assert said[which].startswith(f"replaced {theirs} ")
    assert said[1 - which].startswith(f"wrote {other} ")
    assert theirs.read_text() != FOREIGN


@pytest.mark.parametrize("words", [("install",), ("install", "--force"), ("uninstall",)])
def test_a_link_is_left_alone(
    capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path], tmp_path: Path, words: tuple[str, ...]
) -> None:
    plugin, network = files(dirs)
    other = tmp_path / "other"
    other.write_text(FOREIGN)
    plugin.parent.mkdir(parents=True)
    plugin.symlink_to(other)
    code, said = cni(capsys, dirs, *words)
    assert code == (words[0] == "install")
    assert any(str(plugin) in line for line in said)
    assert (plugin.readlink(), other.read_text(), network.exists()) == (other, FOREIGN, False)


def test_a_plugin_of_another_version_is_ours(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path]) -> None:
    plugin, _ = files(dirs)
    cni(capsys, dirs, "install")
    now = plugin.read_text()
    plugin.write_text(now[:200])
    assert cni(capsys, dirs, "install")[1][0] == f"wrote {plugin} (mode 0755)"
    assert plugin.read_text() == now


def test_a_network_that_was_changed_stays(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path]) -> None:
    plugin, network = files(dirs)
    cni(capsys, dirs, "install")
    network.write_text(network.read_text().replace("cbr0", "mine"))
    assert cni(capsys, dirs, "uninstall") == (0, [f"{network} is not flannelpy's; it stays", f"removed {plugin}"])
    assert "mine" in network.read_text()


def test_a_network_that_comes_first_is_named(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path]) -> None:
    dirs[1].mkdir(parents=True)
    (dirs[1] / "05-other.conflist").write_text("{}")
    (dirs[1] / "00-readme.txt").write_text("")
    for name in place.NEEDS:
        dirs[0].mkdir(parents=True, exist_ok=True)
        (dirs[0] / name).write_text(FOREIGN)
    note = f"note: 05-other.conflist comes first in {dirs[1]}; a runtime that takes the first network takes that one"
    assert cni(capsys, dirs, "install")[1][2:] == [note]


def test_a_folder_that_others_may_write_is_refused(capsys: pytest.CaptureFixture[str], dirs: tuple[Path, Path]) -> None:
    dirs[0].mkdir(parents=True)
    dirs[0].chmod(0o777)
    code, said = cni(capsys, dirs, "install")
    assert (code, len(said)) == (1, 1)
    assert "may be written by others" in said[0]
    assert list(dirs[0].iterdir()) == []
