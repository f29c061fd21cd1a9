"""Whom does this host ask for names? The nameservers of resolv.conf(5)."""

from __future__ import annotations

from pathlib import Path

from netaddr import AddrFormatError, IPAddress

from flannelpy.host.files import read_given

MOST_BYTES = 65_536


def nameservers(path: Path) -> tuple[IPAddress, ...]:
    """The addresses after ``nameserver``; none where the file cannot be read."""
    try:
        text = read_given(path, MOST_BYTES).decode(errors="replace")
    except OSError:
        return ()
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(IPAddress(words[1].partition("%")[0]))
            except (AddrFormatError, ValueError):
                continue  # the C library passes over it, too
    return tuple(found)
