"""How are files read and written where others may have their hands? By the descriptor of a directory that only we may write.

The way to a file is walked directory by directory (openat(2)), so that nothing on it can be exchanged below us; a directory on it
that somebody else may write is refused by name, as sshd(8) does (StrictModes). Only regular files are opened, and never waited for:
a symbolic link, a FIFO or a device in a file's place is refused. A file is written whole or not at all: beside, flushed to the
disk, renamed, and the directory flushed, too. Everything here may wait for a disk: on a loop see ``disk``.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flannelpy.core.errors import FlannelpyError

CORRUPT = ".corrupt"
"""Behind the name of what could not be understood and was set aside."""

LINKS = 40
"""Symbolic links that are followed on the way to a directory, as the kernel does (path_resolution(7))."""

AGENT = "flannelpy"
"""The user of packaging's unit."""

GIVEN = 1 << 20
"""Bytes of a file that an operator names: certificates of all the CAs there are have 220 KB."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class RefusedError(FlannelpyError):
    """What is there is nothing that we use: no regular file, too large, or in a directory of others."""


class TooLargeError(RefusedError):
    """A file of a size that nothing of ours has."""


def read_file(path: Path, limit: int) -> bytes:
    """The file's content. Raises FileNotFoundError, RefusedError (also above ``limit`` bytes), FlannelpyError; each in one line."""
    with _told(path, "read"), directory(path.parent) as parent:
        try:
            descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
                _demand_file(os.stat(path.name, dir_fd=parent, follow_symlinks=False), path)
            raise
        with _opened(descriptor):
            found = os.fstat(descriptor)
            _demand_file(found, path)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1) if found.st_size <= limit else b""
        if max(len(data), found.st_size) > limit:
            raise TooLargeError(f"{path}: {max(len(data), found.st_size)} bytes; expected at most {limit}")
        return data


def read_given(path: Path, limit: int = GIVEN) -> bytes:
    """The content of a file that an operator names: wherever it lies, by whatever links, but a file of at most ``limit`` bytes.

    Raises OSError, whose words say what is there instead; nothing is waited for (a FIFO would stop a loop).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with _opened(descriptor):
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return data


def write_file(path: Path, text: str, mode: int = 0o644) -> bool:
    """Make ``path`` hold ``text``, with ``mode`` whatever the umask; false where it did already. Directories are made, 0755.

    Raises FlannelpyError with one line. ``/dev/stdout`` and its like are written to as they are.
    """
    data = text.encode(errors="replace")
    with _told(path, "written"):
        if is_stream(path):
            path.write_bytes(data)
            return True
        with directory(path.parent, make=True) as parent:
            if _holds(parent, path, data, mode):
                return False
            _replace(parent, path.name, data, mode)
    return True


@contextmanager
def _opened(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> str:
    """Rename what is no use to us, so that it can be looked at; where it is now, in words."""
    try:
        with directory(path.parent) as parent:
            for name in (f"{path.name}{CORRUPT}", *(f"{path.name}{CORRUPT}.{number}" for number in range(2, 10))):
                try:
                    os.rename(path.name, name, src_dir_fd=parent, dst_dir_fd=parent)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                        raise
                    continue
                return f"set aside as {name}"
            raise OSError(errno.EEXIST, "nine like it are there already")
    except OSError as error:
        return f"it cannot be set aside: {error.strerror}"
    except FlannelpyError:
        return "it stays where it is"


@contextmanager
def directory(path: Path, *, make: bool = False, mode: int = 0o755) -> Iterator[int]:
    """A descriptor of the directory, for the time of the block; with ``make`` whatever is missing is made, with ``mode``.

    Raises RefusedError where others may write there or on the way, OSError.
    """
    descriptor = open_directory(path, mode if make else None)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_directory(path: Path, mode: int | None = None) -> int:
    """As ``directory``; the descriptor is the caller's to close."""
    todo = [*reversed(Path(os.path.abspath(path)).parts[1:])]  # noqa: PTH100 - resolve() would follow links unseen
    here, descriptor, links = Path("/"), os.open("/", _DIRECTORY), 0
    try:
        while todo:
            _demand_trusted(descriptor, here, last=False)
            name = todo.pop()
            if (target := _link(descriptor, name, here)) is not None:
                links += 1
                if links > LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                if target.is_absolute():
                    here, descriptor = Path("/"), _step(descriptor, "/")
                continue
            if mode is not None:
                _make(descriptor, name, mode)
            here, descriptor = here.parent if name == ".." else here / name, _step(descriptor, name)
        _demand_trusted(descriptor, here, last=True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _step(descriptor: int, name: str) -> int:
    """From one directory into another; the first is closed."""
    following = os.open(name, _DIRECTORY, dir_fd=descriptor)
    os.close(descriptor)
    return following


def _link(parent: int, name: str, here: Path) -> Path | None:
    """Where a symbolic link leads; None where it is none, or nothing. One of somebody else is refused."""
    with suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            if not _trusted(found.st_uid):
                raise RefusedError(f"{here / name} is a symbolic link of user {found.st_uid}; expected one of root's")
            return Path(os.readlink(name, dir_fd=parent))
    return None


def _make(parent: int, name: str, mode: int) -> None:
    """mkdir, whatever the umask."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return
    os.chmod(name, mode, dir_fd=parent)


def _trusted(user: int) -> bool:
    """Root, we, and whom packaging's unit runs the agent as: root's commands read what that one writes."""
    if user in (0, os.geteuid()):
        return True
    try:
        return user == pwd.getpwnam(AGENT).pw_uid
    except KeyError:
        return False


def _demand_trusted(descriptor: int, here: Path, *, last: bool) -> None:
    """Raise RefusedError where others may write. On the way a sticky one will do: there nobody renames what is not his."""
    found = os.fstat(descriptor)
    if not _trusted(found.st_uid):
        raise RefusedError(f"{here} belongs to user {found.st_uid}; expected a directory that only root may write")
    others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != 0)
    if others and (last or not found.st_mode & stat.S_ISVTX) and not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise RefusedError(
            f"{here} may be written by others (mode {stat.S_IMODE(found.st_mode):o}); expected one that they may not"
        )


def _demand_file(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise RefusedError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}; expected a file")


def _holds(parent: int, path: Path, data: bytes, mode: int) -> bool:
    """True where it is so already. Raises RefusedError where something else than a file is there."""
    try:
        found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    _demand_file(found, path)
    if found.st_size != len(data) or stat.S_IMODE(found.st_mode) != mode:
        return False
    descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(len(data) + 1) == data


def _replace(parent: int, name: str, data: bytes, mode: int) -> None:
    beside = f".{name}.new"  # one name for ever, so that a crash leaves no growing litter
    with suppress(FileNotFoundError):
        os.unlink(beside, dir_fd=parent)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(beside, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        with suppress(OSError):
            os.unlink(beside, dir_fd=parent)
        raise
    with suppress(OSError):  # a file system that cannot: the name is as safe as it gets
        os.fsync(parent)


def is_stream(path: Path) -> bool:
    """True for ``/dev/stdout`` and its like: whoever has that open waits for what we write."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the link
    return (absolute.is_relative_to("/dev") or absolute.is_relative_to("/proc")) and not absolute.is_relative_to("/dev/shm")


def same_file(one: str | Path, other: str | Path) -> bool:
    """True where both names lead to one place, there or not: ``/var/run`` is a link to ``/run``."""
    try:
        return os.path.realpath(one) == os.path.realpath(other)
    except ValueError:  # a NUL: no file has such a name
        return False


@contextmanager
def _told(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        if done == "read":
            raise
        raise FlannelpyError(f"{path}: cannot be {done}: {os.strerror(errno.ENOENT)}") from None
    except RefusedError as error:
        said = str(error) if str(error).startswith(f"{path}") else f"{path}: {error}"
        raise type(error)(said) from None
    except OSError as error:
        raise FlannelpyError(f"{path}: cannot be {done}: {why(error, path)}") from None


def why(error: OSError, path: Path) -> str:
    """What went wrong, in words; where a file system is full, which."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{mount_point(path)} is full" if error.errno == errno.ENOSPC else f"the quota on {mount_point(path)} is used up"
    return error.strerror or str(error)


def mount_point(path: Path) -> Path:
    """Where the file system begins that ``path`` is, or would be, in."""
    at = Path(os.path.abspath(path))  # noqa: PTH100 - what is meant is where it was asked for
    while not at.exists() and at != at.parent:
        at = at.parent
    while not at.is_mount() and at != at.parent:
        at = at.parent
    return at
