"""Agents of one host and what each has alone: the run directory, and claims by name; whoever dies has none."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannelpy.agent.lock import Claimant, Claims, Held, hold_lock
from flannelpy.core.errors import FlannelpyError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else, or to mount")

US, OTHER = Claimant(os.getpid(), "/run/a", "/net"), Claimant(os.getpid(), "/run/b", "/blue")

IN_ANOTHER = """
import sys
from pathlib import Path
from flannelpy.agent.lock import Claimant, Claims, hold_lock
import os
us = Claimant(os.getpid(), "/run/b", "/blue")
"""


@pytest.fixture
def elsewhere() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a test: each is killed at its end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], code: str, *arguments: object) -> str:
    """Run code in a process that stays, until it has printed a line; which one."""
    words = [sys.executable, "-c", f"{IN_ANOTHER}{code}\nprint(found, flush=True)\nsys.stdin.read()", *map(str, arguments)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    return process.stdout.readline().strip()


CLAIM = "claims = Claims(us, Path(sys.argv[1])); found = claims.claim(sys.argv[2:])"
LOCK = "holding = hold_lock(Path(sys.argv[1])); found = holding.__enter__()"


# ----------------------------------------------------------------------------------------------------------------- claims


def test_what_is_claimed_is_one_agents_and_who_has_it_is_said(tmp_path: Path) -> None:
    ours, theirs = Claims(US, tmp_path / "claims"), Claims(OTHER, tmp_path / "claims")
    assert ours.claim(["device flannel.1", "table flannelpy"]) is None
    held = theirs.claim(["udp-port 8285", "device flannel.1"])
    assert held == Held("device flannel.1", US)
    assert str(held) == f"device flannel.1 belongs to another flannelpy (process {os.getpid()}, --run-dir /run/a, network /net)"
    assert theirs.names == frozenset(), "all of them or none"
    assert ours.claim(["udp-port 8285", "device flannel.1"]) is None, "a claim may grow"
    assert ours.names == {"device flannel.1", "table flannelpy", "udp-port 8285"}
    assert stat.S_IMODE((tmp_path / "claims").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "claims").iterdir()} == {0o600}


def test_what_is_released_is_anybodys_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ours, theirs = Claims(US, tmp_path), Claims(OTHER, tmp_path)
    ours.claim(["a", "b"])
    ours.release(["a", "never had"])
    assert theirs.claim(["a"]) is None
    assert theirs.claim(["b"]) == Held("b", US)
    ours.close()
    assert theirs.claim(["b"]) is None
    theirs.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_whoever_dies_has_nothing_any_more(tmp_path: Path, elsewhere: list[subprocess.Popen[str]], how: signal.Signals) -> None:
    assert start(elsewhere, CLAIM, tmp_path, "device flannel.1") == "None"
    claims = Claims(US, tmp_path)
    assert claims.claim(["device flannel.1"]) == Held("device flannel.1", Claimant(elsewhere[0].pid, "/run/b", "/blue"))
    elsewhere[0].send_signal(how)
    elsewhere[0].wait()
    assert claims.claim(["device flannel.1"]) is None


@pytest.mark.parametrize("left", [1, 50])
def test_what_the_killed_have_left_goes_with_the_next_claim_and_what_is_held_stays(tmp_path: Path, left: int) -> None:
    theirs = Claims(OTHER, tmp_path)
    assert theirs.claim(["held"]) is None
    kept = {path.name for path in tmp_path.iterdir()}
    for number in range(left):
        (tmp_path / f"4026531840-device_20flannel.{number}").write_text("{}")
    (tmp_path / "directory").mkdir()
    ours = Claims(US, tmp_path)
    assert ours.claim(["mine"]) is None
    assert ours.claim(["held"]) == Held("held", OTHER)
    ours.close()
    assert {path.name for path in tmp_path.iterdir()} == kept | {"directory"}


def test_a_child_that_lives_on_keeps_nothing(tmp_path: Path, elsewhere: list[subprocess.Popen[str]]) -> None:
    """As a packet worker whose agent was killed."""
    code = f"{CLAIM}; import subprocess; subprocess.Popen(['sleep', '20'], close_fds=False, stdin=subprocess.DEVNULL, stdout=2)"
    assert start(elsewhere, code, tmp_path, "x") == "None"
    elsewhere[0].kill()
    elsewhere[0].wait()
    assert Claims(US, tmp_path).claim(["x"]) is None


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    everybody = [Claims(Claimant(os.getpid(), str(number)), tmp_path) for number in range(8)]
    for _ in range(20):
        barrier, outcomes = threading.Barrier(len(everybody)), {}

        def go(claims: Claims) -> None:
            barrier.wait(10)  # noqa: B023
            outcomes[claims] = claims.claim(["x"])  # noqa: B023

        threads = [threading.Thread(target=go, args=(claims,)) for claims in everybody]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [claims for claims, held in outcomes.items() if held is None]
        assert len(winners) == 1
        winners[0].close()


def test_names_of_any_form_are_apart(tmp_path: Path) -> None:
    claims = Claims(US, tmp_path)
    names = ["udp-port 8285", "udp-port/8285", "udp-port_8285", "../../x", "table flannelpy", "table-flannelpy", "\x00"]
    for name in names:
        assert claims.claim([name]) is None
    assert len(list(tmp_path.iterdir())) == len(names)


@as_root
def test_in_another_network_namespace_it_is_another_thing(tmp_path: Path) -> None:
    ours, theirs = Claims(US, tmp_path), Claims(OTHER, tmp_path)
    ours.claim(["device flannel.1"])
    found: list[Held | None] = []

    def there() -> None:
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        found.append(theirs.claim(["device flannel.1"]))

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    assert found == [None]


def test_where_nothing_can_be_written_it_is_said_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    claims = Claims(US, tmp_path / "file" / "claims")
    assert claims.claim(["x"]) is None
    assert claims.without == f"{tmp_path}/file/claims: Not a directory"
    assert claims.names == frozenset()


@as_root
def test_a_directory_of_others_holds_no_claims(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    claims = Claims(US, tmp_path)
    assert claims.claim(["x"]) is None
    assert claims.without == f"{tmp_path} may be written by others (mode 1777); expected one that they may not"


def test_who_is_gone_is_not_named(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    ours = Claims(Claimant(gone.pid, "/run/a", "/net"), tmp_path)
    ours.claim(["x"])
    held = Claims(OTHER, tmp_path).claim(["x"])
    assert str(held) == "x belongs to another flannelpy"


@pytest.mark.parametrize(
    "text", ["", "123", "[]", "{}", '{"pid": 1e999}', '{"pid": -1, "run_dir": 1, "prefix": 2}', "[" * 5000, "\xff"]
)
def test_whatever_is_written_there_is_nobodys_name(tmp_path: Path, text: str) -> None:
    ours = Claims(US, tmp_path)
    ours.claim(["x"])
    next(tmp_path.iterdir()).write_text(text)
    assert Claims(OTHER, tmp_path).claim(["x"]) == Held("x", Claimant())


def test_words_of_others_move_no_cursor(tmp_path: Path) -> None:
    Claims(Claimant(os.getpid(), "/run/\x1b[31m" + "x" * 9000, "/a\nb"), tmp_path).claim(["x"])
    said = str(Claims(OTHER, tmp_path).claim(["x"]))
    assert said.isprintable()
    assert len(said) < 800


# -------------------------------------------------------------------------------------------------------- the run directory


def test_the_lock_and_its_directory_are_the_owners_alone(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "a" / "run") as held:
        assert held
        assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "a" / "run" / "lock").stat().st_mode) == 0o600


def test_what_an_older_version_left_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "lock").write_text("123\n")
    (tmp_path / "lock").chmod(0o644)
    with hold_lock(tmp_path):
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_directory_with_more_in_it_keeps_its_mode(tmp_path: Path) -> None:
    """--run-dir=/run is odd, and must not close /run to everybody."""
    (tmp_path / "somebody's").write_text("")
    tmp_path.chmod(0o755)
    with hold_lock(tmp_path):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_second_agent_is_told_who_is_there(tmp_path: Path, elsewhere: list[subprocess.Popen[str]]) -> None:
    assert start(elsewhere, LOCK, tmp_path) == "True"
    with pytest.raises(FlannelpyError) as caught, hold_lock(tmp_path):
        pass
    assert str(caught.value) == (
        f"--run-dir {tmp_path}: another flannelpy (process {elsewhere[0].pid}) uses it; "
        "several agents need directories of their own"
    )
    elsewhere[0].kill()
    elsewhere[0].wait()
    with hold_lock(tmp_path) as held:
        assert held


@as_root
def test_a_local_user_cannot_hold_it(tmp_path: Path) -> None:
    """As nobody: neither by opening it, nor by a descriptor that an older version let him have."""
    tmp_path.chmod(0o755)
    (tmp_path / "lock").touch(0o644)
    old = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(old, fcntl.LOCK_EX)
    try:
        with hold_lock(tmp_path) as held:
            assert held
            tried = subprocess.run(
                ["flock", "-n", tmp_path / "lock", "true"], user=65534, group=65534, capture_output=True, check=False
            )
            assert tried.returncode
    finally:
        os.close(old)


@pytest.mark.parametrize("kind", ["FIFO", "symbolic link", "directory"])
def test_what_is_no_file_is_refused_and_nobody_waits(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "run" / "lock"
    path.parent.mkdir()
    victim.write_text("theirs")
    {"FIFO": lambda: os.mkfifo(path), "symbolic link": lambda: path.symlink_to(victim), "directory": path.mkdir}[kind]()
    with pytest.raises(FlannelpyError) as caught, hold_lock(tmp_path / "run"):
        pass
    assert str(caught.value) == f"--run-dir {tmp_path}/run: {path} is no file; expected one, or nothing"
    assert victim.read_text() == "theirs"


@as_root
def test_a_run_directory_of_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(FlannelpyError, match="may be written by others"), hold_lock(tmp_path):
        pass


@as_root
def test_a_full_file_system_is_told_as_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=2,mode=755", "flannelpy", tmp_path], check=True)
    try:
        (tmp_path / "filler").write_text("")
        with hold_lock(tmp_path) as held:
            assert not held
        assert f"--run-dir {tmp_path}: {tmp_path} is full; expected a directory that can be written" in caplog.text
        (tmp_path / "lock").unlink(missing_ok=True)
        (tmp_path / "filler").unlink()
        (tmp_path / "lock").touch()
        subprocess.run(["mount", "-o", "remount,nr_inodes=3", tmp_path], check=True)
        subprocess.run(["dd", "if=/dev/zero", f"of={tmp_path}/filler"], capture_output=True, check=False)
        with hold_lock(tmp_path) as held:
            assert held, "the lock needs no room"
        assert f"--run-dir {tmp_path}: {tmp_path} is full; whose the lock is cannot be read there, all else goes on" in caplog.text
    finally:
        subprocess.run(["umount", tmp_path], check=True)
