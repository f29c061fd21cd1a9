"""Which programs run beside us? Those of this network namespace: a container's, or a lab's, have devices of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def here(proc: Path = PROC) -> Iterator[tuple[int, str, list[str]]]:
    """Number, name and command line of each, as far as we may see it."""
    ours = _namespace(proc / "self")
    for each in proc.glob("[0-9]*"):
        with suppress(OSError):
            if _namespace(each) != ours:
                continue
            words = (each / "cmdline").read_bytes().decode(errors="replace").removesuffix("\0").split("\0")
            yield int(each.name), (each / "comm").read_text(errors="replace").strip(), words


def flanneld(proc: Path = PROC) -> tuple[int, ...]:
    """The flannelds, which work on devices and a subnet file of the same names as ours."""
    with suppress(OSError):
        return tuple(sorted(pid for pid, name, _words in here(proc) if name == "flanneld"))
    return ()


def _namespace(process: Path) -> str:
    return str((process / "ns/net").readlink())
