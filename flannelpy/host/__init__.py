"""What do others on this host read from us? subnet.env, Docker's options; files only, each written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from flannelpy.core.errors import FlannelpyError


def write_whole(path: Path, text: str, mode: int = 0o644) -> bool:
    """Make ``path`` hold ``text``, with ``mode`` whatever the umask; false where it did already. Directories are made, 0755.

    A reader sees the old text or the new one, never half: written beside, flushed to disk, renamed. Something that is not a
    file (``/dev/stdout``) is written to directly. Raises FlannelpyError with one line.
    """
    try:
        path = path.resolve() if path.is_symlink() and not _is_stream(path) else path
        if _is_stream(path) or (path.exists() and not path.is_file()):
            path.write_text(text)
            return True
        if _holds(path, text, mode):
            return False
        _make_directory(path.parent)
        _replace(path, text, mode)
    except OSError as error:
        raise FlannelpyError(f"{path}: cannot be written: {error.strerror}") from None
    return True


def _is_stream(path: Path) -> bool:
    """True for ``/dev/stdout`` and its like, also where it leads to a file: whoever has that file open waits for what we write."""
    seen: set[Path] = set()
    while path not in seen:
        seen.add(path)
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link
        if absolute.is_relative_to("/dev") or absolute.is_relative_to("/proc"):
            return not absolute.is_relative_to("/dev/shm")
        if not absolute.is_symlink():
            return False
        path = absolute.parent / absolute.readlink()
    return False


def _holds(path: Path, text: str, mode: int) -> bool:
    try:
        with path.open("rb") as file:
            return file.read() == text.encode() and os.fstat(file.fileno()).st_mode & 0o777 == mode
    except FileNotFoundError:
        return False


def _make_directory(path: Path) -> None:
    """mkdir -p; what we make is for everybody to read, also under a tight umask."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def _replace(path: Path, text: str, mode: int) -> None:
    beside = path.with_name(f".{path.name}.new")  # one name for ever, so that a crash leaves no growing litter
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
