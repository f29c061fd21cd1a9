"""What is there to read? Man pages and completions of the command line's own table, changelogs, and everybody's licence."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable
from email.utils import formatdate
from importlib.metadata import Distribution
from pathlib import Path
from time import gmtime, strftime

from click.shell_completion import get_completion_class
from click_man.core import write_man_pages
from maintainer import maintainer

from flannelpy.cli import flannelpy

COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/flannelpy",
    "zsh": "usr/share/zsh/vendor-completions/_flannelpy",
    "fish": "usr/share/fish/vendor_completions.d/flannelpy.fish",
}
COMMON = {
    "Apache-2.0": r"[ \t]*Apache License\s+Version 2\.0, January 2004.*?any\s+such\s+warranty\s+or\s+additional\s+liability\."
    r"(\s+END OF TERMS AND CONDITIONS(\s+APPENDIX.*?limitations\s+under\s+the\s+License\.)?)?",
    "GPL-2": r"[ \t]*GNU GENERAL PUBLIC LICENSE\s+Version 2, June 1991.*?instead of this\s+License\.",
    "GPL-3": r"[ \t]*GNU GENERAL PUBLIC LICENSE\s+Version 3, 29 June 2007.*?why-not-lgpl\.html>\.",
}
"""Texts that every Debian has in /usr/share/common-licenses, from their first words to their last."""


def write(root: Path, privates: Iterable[Path], tree: Path, version: str, epoch: int) -> None:
    """All of it, below ``root``; dated ``epoch``, in seconds since 1970. ``privates``: where the wheels of all packages are."""
    man_pages(root / "usr/share/man/man1", version, epoch)
    completions(root)
    doc = root / "usr/share/doc/flannelpy"
    doc.mkdir(parents=True, exist_ok=True)
    compress(doc / "changelog.gz", (tree / "CHANGELOG.md").read_text())
    entry = f"flannelpy ({version}) unstable; urgency=medium\n\n  * What is new: /usr/share/doc/flannelpy/changelog.gz.\n\n"
    compress(doc / "changelog.Debian.gz", f"{entry} -- {maintainer()}  {formatdate(epoch)}\n")
    (doc / "copyright").write_text(copyright_text(privates, tree))


def man_pages(into: Path, version: str, epoch: int) -> None:
    """One of each command: flannelpy(1), flannelpy-status(1)..."""
    into.mkdir(parents=True)
    write_man_pages("flannelpy", flannelpy, version=version, target_dir=os.fspath(into), date=strftime("%Y-%m-%d", gmtime(epoch)))
    for page in sorted(into.glob("*.1")):
        compress(page.with_suffix(".1.gz"), page.read_text())
        page.unlink()


def completions(root: Path) -> None:
    """Of each shell the few lines that ask the program itself."""
    for shell, name in COMPLETIONS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(kind(flannelpy, {}, "flannelpy", "_FLANNELPY_COMPLETE").source())


def compress(path: Path, text: str) -> None:
    """As gzip -9n: neither a name nor a time in it."""
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def copyright_text(privates: Iterable[Path], tree: Path) -> str:
    """The project's licence and those of all that is in the packages, each with its own text."""
    parts = [f"flannelpy\n\n{shortened((tree / 'LICENSE').read_text())}"]
    for info in sorted((path for private in privates for path in private.glob("*.dist-info")), key=lambda path: path.name):
        about = Distribution.at(info).metadata
        if about["Name"] == "flannelpy":
            continue
        licence = next((about[name] for name in ("License-Expression", "License") if name in about), "its licence is below")
        parts.append(f"{about['Name']} {about['Version']}: {licence.splitlines()[0]}")
        parts += [shortened(path.read_text(errors="replace")) for path in licence_files(info)]
    return f"\n\n{'-' * 78}\n\n".join(part.strip() for part in parts) + "\n"


def licence_files(info: Path) -> list[Path]:
    """Of one package, in the order of their names."""
    named = re.compile(r"licen[cs]e|copying|notice|authors", re.IGNORECASE)
    return sorted(path for path in info.rglob("*") if path.is_file() and named.search(os.fspath(path.relative_to(info))))


def shortened(text: str) -> str:
    """The text, with where every Debian has it in place of each that it has. What stands around it stays."""
    for name, whole in COMMON.items():
        text = re.sub(whole, f"The text is in /usr/share/common-licenses/{name}.", text, flags=re.DOTALL)
    return text
