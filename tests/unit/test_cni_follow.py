"""Is CNI's network there while the agent is ready and only then, and is no file of somebody else's ever renamed?"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flannelpy.agent.flag import show
from flannelpy.agent.lock import WHOLE, hold_lock
from flannelpy.commands import cni, cni_follow
from flannelpy.commands.setup import Host
from flannelpy.core.errors import FlannelpyError
from flannelpy.host.cni.follow import Follower, is_locked
from flannelpy.host.cni.place import CONFLIST, WAITING, network, waiting

FOREIGN = '{"name": "mine"}\n'


@contextmanager
def ready(flag: Path) -> Iterator[None]:
    """As an agent that is ready holds it."""
    descriptor = os.open(flag, os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WHOLE)
    yield
    os.close(descriptor)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    """With the network that ``cni install`` writes."""
    network(tmp_path / "net.d").write()
    return tmp_path / "net.d"


def test_at_boot_it_waits_at_once_and_comes_with_the_agent(conf_dir: Path, tmp_path: Path) -> None:
    """A machine that lost its power left it where runtimes look; no agent has been ready since."""
    text, flag = (conf_dir / CONFLIST).read_text(), tmp_path / "ready"
    follower = Follower(conf_dir, flag, now=1000.0, grace_s=10)
    said = follower.look(1000.0)
    assert said is not None
    assert said.startswith(f"the agent is not ready: {conf_dir / CONFLIST} is {WAITING} now")
    assert (names(conf_dir), follower.look(1001.0)) == ({WAITING}, None)
    with ready(flag):
        assert follower.look(1002.0) == f"the agent is ready: {conf_dir / CONFLIST} is there"
        assert follower.look(1003.0) is None
    assert (conf_dir / CONFLIST).read_text() == text


@pytest.mark.parametrize("grace_s", [2.0, 10.0])
def test_an_agent_that_was_ready_may_be_away_for_a_while(conf_dir: Path, tmp_path: Path, grace_s: float) -> None:
    flag = tmp_path / "ready"
    follower = Follower(conf_dir, flag, now=0.0, grace_s=grace_s)
    with ready(flag):
        follower.look(5.0)
    for now in (5.5, 5.0 + grace_s - 0.1):
        follower.look(now)
        assert names(conf_dir) == {CONFLIST}
    with ready(flag):
        follower.look(5.0 + grace_s)
    follower.look(5.0 + 2 * grace_s - 0.1)  # counted anew
    assert names(conf_dir) == {CONFLIST}
    follower.look(5.0 + 2 * grace_s)
    assert names(conf_dir) == {WAITING}


def test_a_follower_that_comes_anew_gives_a_restarted_agent_the_same_time(conf_dir: Path, tmp_path: Path) -> None:
    """The file outlives the agent, not the machine's run: with it a former life was ready."""
    flag = tmp_path / "ready"
    flag.touch()
    follower = Follower(conf_dir, flag, now=100.0, grace_s=10)
    follower.look(100.0)
    assert names(conf_dir) == {CONFLIST}
    follower.look(110.0)
    assert names(conf_dir) == {WAITING}


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_network_of_somebody_else_stays(conf_dir: Path, tmp_path: Path, is_ready: bool) -> None:
    flag = tmp_path / "ready"
    theirs = conf_dir / (WAITING if is_ready else CONFLIST)
    (conf_dir / CONFLIST).unlink()
    theirs.write_text(FOREIGN)
    follower = Follower(conf_dir, flag, now=0.0)
    with ready(flag) if is_ready else ready(tmp_path / "another"):
        said = follower.look(1.0)
        assert said == f"{theirs} is not as flannelpy cni install wrote it: it stays, whether the agent is ready or not"
        assert follower.look(2.0) is None  # it is said once
    assert (names(conf_dir), theirs.read_text()) == ({theirs.name}, FOREIGN)


@pytest.mark.parametrize("is_ready", [True, False])
def test_no_file_of_somebody_else_is_replaced(conf_dir: Path, tmp_path: Path, is_ready: bool) -> None:
    flag = tmp_path / "ready"
    ours, theirs = (conf_dir / WAITING, conf_dir / CONFLIST) if is_ready else (conf_dir / CONFLIST, conf_dir / WAITING)
    waiting(conf_dir).write()
    theirs.write_text(FOREIGN)
    text = ours.read_text()
    follower = Follower(conf_dir, flag, now=0.0)
    with ready(flag) if is_ready else ready(tmp_path / "another"):
        assert follower.look(1.0) == f"{theirs} is not flannelpy's: {ours.name} stays what it is"
    assert (theirs.read_text(), ours.read_text()) == (FOREIGN, text)


def test_in_a_folder_that_others_may_write_nothing_is_renamed(conf_dir: Path, tmp_path: Path) -> None:
    conf_dir.chmod(0o777)
    follower = Follower(conf_dir, tmp_path / "ready", now=0.0)
    said = follower.look(1.0)
    assert said is not None
    assert said.endswith(f"{CONFLIST} is not as flannelpy cni install wrote it: it stays, whether the agent is ready or not")
    assert follower.look(2.0) is None
    assert names(conf_dir) == {CONFLIST}
    conf_dir.chmod(0o755)
    follower.look(3.0)
    assert names(conf_dir) == {WAITING}


def test_where_nothing_was_installed_nothing_is_said(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "net.d", tmp_path / "ready", now=0.0)
    with ready(tmp_path / "ready"):
        assert follower.look(1.0) is None
    assert follower.look(100.0) is None


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_flag_that_is_no_file_is_no_agent(tmp_path: Path, kind: str) -> None:
    flag = tmp_path / "ready"
    if kind == "link":
        flag.symlink_to(tmp_path / "other")
        with ready(tmp_path / "other"), pytest.raises(Exception, match="cannot be looked at"):
            is_locked(flag)
        return
    os.mkfifo(flag) if kind == "fifo" else flag.mkdir()
    assert not is_locked(flag)


async def test_the_agent_holds_its_flag_while_it_is_ready(tmp_path: Path) -> None:
    flag, now = tmp_path / "ready", [False]
    with hold_lock(tmp_path):
        task = asyncio.create_task(show(tmp_path, lambda: now[0]))

        async def becomes(locked: bool) -> None:
            async with asyncio.timeout(10):
                while is_locked(flag) is not locked:  # noqa: ASYNC110 - another task decides
                    await asyncio.sleep(0.01)

        await asyncio.sleep(0)
        assert not flag.exists()
        for value in (True, False, True):
            now[0] = value
            await becomes(value)
        assert flag.stat().st_mode & 0o777 == 0o600
        flag.unlink()  # as somebody does who tidies up
        await becomes(True)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert (flag.exists(), is_locked(flag)) == (True, False)
    with hold_lock(tmp_path):  # it is no file of somebody else's
        assert tmp_path.stat().st_mode & 0o777 == 0o700  # noqa: ASYNC240 - nobody waits here


def test_the_command_tells_systemd_follows_and_ends(conf_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    words = ["cni", "follow", "--conf-dir", str(conf_dir), "--run-dir", str(run_dir), "--grace", "0"]
    command = [sys.executable, "-m", "flannelpy", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "not ready" in process.stdout.readline()
        assert names(conf_dir) == {WAITING}
        with ready(run_dir / "ready"):
            assert process.stdout.readline() == f"the agent is ready: {conf_dir / CONFLIST} is there\n"
            assert names(conf_dir) == {CONFLIST}
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - began < 5
    assert names(conf_dir) == {CONFLIST}  # ended, it leaves it as it is
    subprocess.run([*command, "--once"], check=True, capture_output=True)
    assert names(conf_dir) == {WAITING}


@pytest.mark.parametrize("address", ["/nowhere/notify", "@flannelpy-nobody", "relative", "/" + "x" * 200])
def test_a_systemd_that_does_not_listen_is_said(conf_dir: Path, tmp_path: Path, address: str) -> None:
    words = ["cni", "follow", "--once", "--conf-dir", str(conf_dir), "--run-dir", str(tmp_path)]
    environ = {**os.environ, "NOTIFY_SOCKET": address}
    done = subprocess.run([sys.executable, "-m", "flannelpy", *words], capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, names(conf_dir)) == (0, {WAITING})
    assert done.stderr.startswith(f"flannelpy: systemd does not take READY=1 at {address}: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def no_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize(("number", "under_systemd"), [(errno.EROFS, True), (errno.EROFS, False), (errno.EACCES, True)])
def test_a_unit_whose_folder_was_made_anew_is_started_anew(
    conf_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_signals_blocked: None,
    number: int,
    under_systemd: bool,
) -> None:
    """rm -rf /etc/cni/net.d, as kubeadm reset advises: the unit's view of it is of what was there (mount_namespaces(7))."""

    def refused(*_given: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    looks: list[float] = []

    def look_again(_signals: object, within_s: float) -> object:
        looks.append(within_s)
        return None if len(looks) < 30 else "an end"

    monkeypatch.setattr(os, "rename", refused)
    monkeypatch.setattr(signal, "sigtimedwait", look_again)
    monkeypatch.setattr(cni_follow, "_tell_systemd", lambda: None)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify" if under_systemd else "")
    if number == errno.EROFS and under_systemd:
        with pytest.raises(FlannelpyError, match="is read-only: ending, so that systemd shows the one that is there now"):
            cni_follow.follow(str(conf_dir), tmp_path, 0.0, once=False)
        assert len(looks) == cni_follow.SHUT_OUT_LOOKS - 1
    else:
        cni_follow.follow(str(conf_dir), tmp_path, 0.0, once=False)
        assert len(looks) == 30
    assert capsys.readouterr().out.count("cannot be renamed") == 1


class Systemd:
    """systemctl, and a host whose systemd has the unit; what it was told is in ``said``."""

    def __init__(self, root: Path) -> None:
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "usr/lib/systemd/system").mkdir(parents=True)
        (root / "usr/lib/systemd/system" / cni.UNIT).touch()
        self.said: list[str] = []
        self.host = Host(root, self)

    def __call__(self, *words: str) -> tuple[int, str]:
        self.said.append(" ".join(words))
        return 0, ""


def test_with_the_unit_it_is_installed_as_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf_dir, bin_dir = tmp_path / "net.d", tmp_path / "bin"
    monkeypatch.setattr(cni, "CONF_DIR", str(conf_dir))
    systemd = Systemd(tmp_path)
    cni.install(cni.Wish(str(bin_dir), str(conf_dir), dry_run=True), systemd.host)
    assert (conf_dir.exists(), systemd.said) == (False, [])
    assert f"would systemctl enable --now {cni.UNIT}" in capsys.readouterr().out
    cni.install(cni.Wish(str(bin_dir), str(conf_dir), dry_run=False), systemd.host)
    assert (names(conf_dir), systemd.said) == ({WAITING}, [f"enable --now {cni.UNIT}"])
    assert f"{conf_dir / CONFLIST} is not there: it is while the agent is ready" in capsys.readouterr().out

    # It says so itself: whoever wants it for good gets it, and one that waits is none beside it.
    cni.install(cni.Wish(str(bin_dir), str(conf_dir), dry_run=False, static=True), systemd.host)
    assert (names(conf_dir), systemd.said[1:]) == ({CONFLIST}, [f"disable --now {cni.UNIT}"])
    cni.install(cni.Wish(str(bin_dir), str(conf_dir), dry_run=False), systemd.host)
    assert names(conf_dir) == {CONFLIST}  # an agent that is ready is not made to look as if it were not
    waiting(conf_dir).write()
    cni.uninstall(cni.Wish(str(bin_dir), str(conf_dir), dry_run=False), systemd.host)
    assert (names(conf_dir), names(bin_dir), systemd.said[-1]) == (set(), set(), f"disable --now {cni.UNIT}")


@pytest.mark.parametrize("way", ["/", "/.", "/../net.d"])
def test_the_units_folder_is_known_by_any_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    conf_dir = tmp_path / "net.d"
    conf_dir.mkdir()
    monkeypatch.setattr(cni, "CONF_DIR", str(conf_dir))
    systemd, wish = Systemd(tmp_path), cni.Wish(str(tmp_path / "bin"), f"{conf_dir}{way}", dry_run=False)
    cni.install(wish, systemd.host)
    assert (names(conf_dir), systemd.said) == ({WAITING}, [f"enable --now {cni.UNIT}"])
    cni.uninstall(wish, systemd.host)
    assert (names(conf_dir), systemd.said[1:]) == (set(), [f"disable --now {cni.UNIT}"])


@pytest.mark.parametrize("is_there", [True, False])
def test_a_follower_that_still_runs_takes_no_static_network_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """No agent is ready: until its unit is switched off, the follower has the network wait."""
    conf_dir = tmp_path / "net.d"
    monkeypatch.setattr(cni, "CONF_DIR", str(conf_dir))
    (network if is_there else waiting)(conf_dir).write()
    systemd = Systemd(tmp_path)
    follower = Follower(conf_dir, tmp_path / "ready", 0.0, 0.0)

    def systemctl(*words: str) -> tuple[int, str]:
        follower.look(1.0)
        return systemd(*words)

    cni.install(cni.Wish(str(tmp_path / "bin"), str(conf_dir), dry_run=False, static=True), Host(tmp_path, systemctl))
    assert (names(conf_dir), systemd.said) == ({CONFLIST}, [f"disable --now {cni.UNIT}"])


@pytest.mark.parametrize("static", [True, False])
def test_what_is_forced_is_done_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], static: bool
) -> None:
    conf_dir = tmp_path / "net.d"
    monkeypatch.setattr(cni, "CONF_DIR", str(conf_dir))
    network(conf_dir).write()
    (conf_dir / WAITING).write_text(FOREIGN)
    systemd = Systemd(tmp_path)
    wish = cni.Wish(str(tmp_path / "bin"), str(conf_dir), dry_run=False, force=True, static=static)
    cni.install(replace(wish, dry_run=True), systemd.host)
    assert f"would remove {conf_dir / WAITING}\n" in capsys.readouterr().out
    assert (conf_dir / WAITING).read_text() == FOREIGN
    cni.install(wish, systemd.host)
    assert f"removed {conf_dir / WAITING}\n" in capsys.readouterr().out
    cni.install(replace(wish, force=False), systemd.host)
    assert names(conf_dir) == {CONFLIST}


@pytest.mark.parametrize("which", [CONFLIST, WAITING])
def test_with_the_unit_nothing_is_written_over_somebody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    conf_dir = tmp_path / "net.d"
    monkeypatch.setattr(cni, "CONF_DIR", str(conf_dir))
    conf_dir.mkdir()
    (conf_dir / which).write_text(FOREIGN)
    systemd = Systemd(tmp_path)
    with pytest.raises(Exception, match="not flannelpy's, nothing is written"):
        cni.install(cni.Wish(str(tmp_path / "bin"), str(conf_dir), dry_run=False), systemd.host)
    assert (names(conf_dir), systemd.said, (tmp_path / "bin").exists()) == ({which}, [], False)


def test_a_folder_that_the_unit_does_not_know_has_its_network_for_good(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path)
    cni.install(cni.Wish(str(tmp_path / "bin"), str(tmp_path / "other"), dry_run=False), systemd.host)
    assert (names(tmp_path / "other"), systemd.said) == ({CONFLIST}, [])


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error")])
def test_a_run_directory_that_cannot_be_looked_into_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """As for somebody who is not root: no agent is known to have been ready."""

    def refused(*_given: object, **_named: object) -> object:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refused)
        patched.setattr(os, "lstat", refused)
        follower = Follower(tmp_path, tmp_path / "ready", 100.0)
    assert follower.look(100.0) is None
