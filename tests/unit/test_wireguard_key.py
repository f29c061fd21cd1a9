"""The file of the host's key: whatever is there, a key comes of it, nothing is lost, and only its owner reads it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flannelpy.core.wireguard import clamped, key_text
from flannelpy.host.wireguard_key import FILE, read_or_make

NOWHERE = Path("/nowhere/wgkey")
keys = st.binary(min_size=32, max_size=32)
spellings = st.sampled_from(["{}", "{}\n", " {}\r\n"])


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys, spellings)
def test_a_key_is_kept_as_it_is(tmp_path: Path, key: bytes, spelling: str) -> None:
    path, said = tmp_path / FILE, list[str]()
    path.write_text(spelling.format(key_text(key)))
    path.chmod(0o644)
    assert read_or_make(path, NOWHERE, said.append).reveal() == clamped(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said == []
    assert read_or_make(path, NOWHERE, said.append).reveal() == clamped(key)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300).filter(lambda data: len(data.strip()) != 44))
def test_what_is_no_key_is_set_aside_whole_and_said_in_a_line(tmp_path: Path, data: bytes) -> None:
    path, said = tmp_path / FILE, list[str]()
    for left in tmp_path.iterdir():
        left.unlink()
    path.write_bytes(data)
    made = read_or_make(path, NOWHERE, said.append).reveal()
    assert clamped(made) == made
    assert content(path) == f"{key_text(made)}\n".encode()
    assert content(tmp_path / f"{FILE}.corrupt") == data
    assert len(said) == 1
    assert said[0].isprintable()
    assert said[0].startswith(str(path))
    assert said[0].endswith(f"set aside as {FILE}.corrupt, and a new key is made")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(keys)
def test_a_key_that_cannot_be_read_is_not_lost(tmp_path: Path, code: int, key: bytes) -> None:
    path, said, opened = tmp_path / FILE, list[str](), os.open
    for left in tmp_path.iterdir():
        left.unlink()
    path.write_text(key_text(key))

    def refusing(name: str, flags: int, *rest: int, **where: int) -> int:
        if name == FILE and not flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return opened(name, flags, *rest, **where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refusing)
        made = read_or_make(path, NOWHERE, said.append).reveal()
    assert content(path) == f"{key_text(made)}\n".encode()
    assert content(tmp_path / f"{FILE}.corrupt") == key_text(key).encode()
    assert said == [f"{path}: cannot be read: {os.strerror(code)}; set aside as {FILE}.corrupt, and a new key is made"]


@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_what_is_no_file_is_set_aside(tmp_path: Path, kind: str) -> None:
    path, said = tmp_path / FILE, list[str]()
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    else:
        os.mkfifo(path)
    made = read_or_make(path, NOWHERE, said.append).reveal()
    assert content(path) == f"{key_text(made)}\n".encode()
    assert not path.is_symlink()
    assert len(said) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_a_flannels_file_is_read_and_never_touched(tmp_path: Path, data: bytes) -> None:
    path, flannels, said = tmp_path / FILE, tmp_path / "wgkey", list[str]()
    path.unlink(missing_ok=True)
    flannels.write_bytes(data)
    flannels.chmod(0o400)
    made = read_or_make(path, flannels, said.append).reveal()
    assert content(flannels) == data
    assert stat.S_IMODE(flannels.stat().st_mode) == 0o400
    flannels.chmod(0o600)
    assert content(path) == f"{key_text(made)}\n".encode()
    assert len(said) == 1
    assert said[0].isprintable()
