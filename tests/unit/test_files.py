"""Files where others may have their hands: whole or not at all, only regular ones, only in directories of our own."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flannelpy.core.errors import FlannelpyError
from flannelpy.host import files
from flannelpy.host.disk import Disk
from flannelpy.host.files import AGENT, RefusedError, directory, read_file, set_aside, write_file

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")


def read(path: Path) -> bytes:
    return read_file(path, 1000)


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        work()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_what_is_written_is_read_and_its_mode_is_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    before = os.umask(0o077)
    try:
        assert write_file(path, "one\n", 0o600) is True
        assert write_file(path, "one\n", 0o600) is False
        assert write_file(path, "one\n", 0o644) is True
    finally:
        os.umask(before)
    assert (read(path), stat.S_IMODE(path.stat().st_mode)) == (b"one\n", 0o644)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def _plant(kind: str, path: Path) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "symbolic link":
        path.symlink_to(path.parent / "victim")
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


KINDS = ["FIFO", "symbolic link", "directory", "socket", pytest.param("device", marks=as_root)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_by_name_and_nobody_waits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    (tmp_path / "victim").write_text("theirs")
    _plant(kind, path)
    expected = f"{path} is a {kind}; expected a file"
    assert refusal(lambda: read(path)) == expected
    assert refusal(lambda: write_file(path, "ours")) == expected
    assert (tmp_path / "victim").read_text() == "theirs"


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_where_we_write_beside_is_nobodys_way_in(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    (tmp_path / "victim").write_text("theirs")
    _plant(kind, tmp_path / ".f.new")
    if kind == "directory":
        with pytest.raises(FlannelpyError, match="cannot be written: Is a directory"):
            write_file(path, "ours")
    else:
        assert write_file(path, "ours")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["f", "victim"]
    assert (tmp_path / "victim").read_text() == "theirs"


@as_root
@pytest.mark.parametrize(
    ("mode", "owner", "group", "said"),
    [
        (0o777, 0, 0, "may be written by others (mode 777)"),
        (0o1777, 0, 0, "may be written by others (mode 1777)"),
        (0o775, 0, NOBODY, "may be written by others (mode 775)"),
        (0o755, NOBODY, 0, "belongs to user 65534"),
        (0o775, 0, 0, ""),
        (0o700, 0, NOBODY, ""),
    ],
)
def test_a_directory_of_others_is_refused_by_name(tmp_path: Path, mode: int, owner: int, group: int, said: str) -> None:
    here = tmp_path / "theirs"
    here.mkdir()
    (here / "f").write_text("x")
    os.chown(here, owner, group)
    here.chmod(mode)
    if said:
        expected = f"{here}/f: {here} {said}"
        assert refusal(lambda: read(here / "f")).startswith(expected)
        assert refusal(lambda: write_file(here / "f", "ours")).startswith(expected)
        assert (here / "f").read_text() == "x"
    else:
        assert write_file(here / "f", "ours")
        assert read(here / "f") == b"ours"


@as_root
def test_on_the_way_a_sticky_directory_will_do_but_no_link_of_somebody_else(tmp_path: Path) -> None:
    """As /tmp on every host: what root makes there stays root's, and what nobody makes there leads nowhere."""
    way = tmp_path / "way"
    way.mkdir()
    way.chmod(0o1777)
    assert write_file(way / "ours" / "f", "x")
    (tmp_path / "victim").mkdir()
    (way / "link").symlink_to(tmp_path / "victim")
    assert write_file(way / "link" / "f", "x"), "root's own link"
    os.chown(way / "link", NOBODY, NOBODY, follow_symlinks=False)
    said = refusal(lambda: write_file(way / "link" / "g", "x"))
    assert said == f"{way}/link/g: {way}/link is a symbolic link of user 65534; expected one of root's"
    assert [entry.name for entry in (tmp_path / "victim").iterdir()] == ["f"]


def test_links_of_our_own_are_followed_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "relative").symlink_to("real/deep")
    (tmp_path / "up").symlink_to("real/deep/../..")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    assert write_file(tmp_path / "absolute" / "f", "x")
    assert read(tmp_path / "up" / "real" / "deep" / "f") == b"x"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(FlannelpyError, match="Too many levels of symbolic links"):
        write_file(tmp_path / "round" / "f", "x")


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(1 << 40)
    assert refusal(lambda: read(tmp_path / "f")) == f"{tmp_path}/f: {1 << 40} bytes; expected at most 1000"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")

    def work() -> None:
        for path in (tmp_path / "f", tmp_path / "file" / "f", tmp_path / "fifo", tmp_path, tmp_path / "none" / "f"):
            for step in (lambda: read(path), lambda: write_file(path, "x")):  # noqa: B023
                try:
                    step()
                except (FlannelpyError, FileNotFoundError):
                    continue

    work()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    work()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_set_aside_can_be_looked_at_however_often(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for number in range(3):
        path.write_text(str(number))
        assert set_aside(path) == "set aside as state.json.corrupt"
    assert (tmp_path / "state.json.corrupt").read_text() == "2"
    path.mkdir()
    (path / "x").write_text("")
    assert set_aside(path) == "set aside as state.json.corrupt.2"
    assert set_aside(path) == "it cannot be set aside: No such file or directory"


@pytest.mark.parametrize(
    ("path", "stream"), [("/dev/stdout", True), ("/proc/self/fd/1", True), ("/dev/shm/x", False), ("/run/x", False)]
)
def test_streams_are_known_by_their_place(path: str, stream: bool) -> None:
    assert files.is_stream(Path(path)) is stream


@as_root
def test_a_full_file_system_is_told_by_name(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "flannelpy", small], check=True)
    try:
        (small / "old").write_text("old")
        filled = subprocess.run(["dd", "if=/dev/zero", f"of={small}/filler"], capture_output=True, check=False)
        assert filled.returncode, "it is full now"
        with pytest.raises(FlannelpyError) as caught:
            write_file(small / "old", "new" * 5000)
        assert str(caught.value) == f"{small}/old: cannot be written: {small} is full"
        assert (small / "old").read_text() == "old"
        assert sorted(entry.name for entry in small.iterdir()) == ["filler", "old"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_descriptor_is_of_the_directory_that_was_checked(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with directory(tmp_path / "here") as descriptor:
        (tmp_path / "here").rename(tmp_path / "there")
        (tmp_path / "here").mkdir()
        assert os.path.sameopenfile(descriptor, os.open(tmp_path / "there", os.O_RDONLY))


# ------------------------------------------------------------------------------------------------------- beside the loop


@pytest.mark.asyncio
async def test_work_is_done_beside_the_loop_and_its_errors_come_back() -> None:
    disk = Disk()
    assert await disk.do(threading.get_ident, "f") != threading.get_ident()
    with pytest.raises(FlannelpyError, match="no"):
        await disk.do(_fail, "f")


def _fail() -> None:
    raise FlannelpyError("no")


@pytest.mark.asyncio
async def test_a_disk_that_does_not_answer_is_told_and_holds_one_thread() -> None:
    disk, gate, begun = Disk(patience_s=0.01), threading.Event(), []

    def stuck() -> None:
        begun.append(True)
        gate.wait(30)

    try:
        for _ in range(5):
            with pytest.raises(FlannelpyError, match=r"f: the disk does not answer: 0.01 s, and still waiting"):
                await disk.do(stuck, "f")
        assert len(begun) == 1
    finally:
        gate.set()
    await disk.drain()
    while True:  # drain ends after a hundredth of a second, and a busy machine may take longer
        try:
            assert await disk.do(lambda: "works again", "f") == "works again"
        except FlannelpyError:
            continue
        break


@pytest.mark.asyncio
async def test_who_does_not_wait_any_more_leaves_the_work_to_end() -> None:
    disk, gate, done = Disk(), threading.Event(), []

    def work() -> None:
        gate.wait(30)
        done.append(True)

    asked = asyncio.create_task(disk.do(work, "f"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    gate.set()
    await disk.drain()
    assert done == [True]


@as_root
def test_what_the_user_of_the_unit_owns_root_reads_and_nobody_else_reads_what_others_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flannelpy docker-opts` is root's, and reads what an agent that is the user flannelpy has written."""
    place = tmp_path / "run"
    place.mkdir()
    (place / "subnet.env").write_text("x")
    os.chown(place, 4242, 4242)
    with pytest.raises(RefusedError, match="belongs to user 4242"):
        read_file(place / "subnet.env", 10)

    def look_up(name: str) -> pwd.struct_passwd:
        assert name == AGENT
        return pwd.struct_passwd((name, "x", 4242, 4242, "", "/", "/usr/sbin/nologin"))

    monkeypatch.setattr(pwd, "getpwnam", look_up)
    assert read_file(place / "subnet.env", 10) == b"x"
    place.chmod(0o777)
    with pytest.raises(RefusedError, match="may be written by others"):
        read_file(place / "subnet.env", 10)
    os.chown(place, 4243, 4243)
    with pytest.raises(RefusedError, match="belongs to user 4243"):
        read_file(place / "subnet.env", 10)


class PowerLossError(Exception):
    """Nothing is done any more, not even what cleans up after an OSError."""


@pytest.mark.parametrize("lost_at", [0, 1, 2, 3])
@pytest.mark.parametrize("old", [None, "old"])
def test_power_that_is_lost_leaves_the_old_content_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None, lost_at: int
) -> None:
    """The name leads to the new content only after that is on the disk (fsync(2)), and the directory follows."""
    path, done = tmp_path / "state", list[str]()
    if old is not None:
        path.write_text(old)

    def counted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def do(*given: Any, **named: Any) -> None:
            if len(done) == lost_at:
                raise PowerLossError
            done.append(f"{name} {'directory' if name == 'fsync' and stat.S_ISDIR(os.fstat(given[0]).st_mode) else 'file'}")
            call(*given, **named)

        return do

    monkeypatch.setattr(os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", counted("rename", os.rename))
    with suppress(PowerLossError):
        write_file(path, "new")
    assert done == ["fsync file", "rename file", "fsync directory"][:lost_at]
    found = path.read_text() if path.exists() else None
    assert found == ("new" if "rename file" in done else old)
    monkeypatch.undo()
    assert write_file(path, "new again")  # what was left beside is in nobody's way
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
