"""What do Docker and CNI read about our subnet? ``subnet.env``: written for them, kept so, read back by us at the next start.

Source: flannel-compat 7.1 to 7.3.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.model import Family
from flannelpy.host.files import RefusedError, TooLargeError, is_stream, read_file, set_aside, write_file

AT_REST_S = 1.0

LARGEST = 1 << 16
"""Bytes of a subnet file: six lines, and what a person may have written beside them."""

_LEAD: Mapping[int, str] = {4: "FLANNEL_", 6: "FLANNEL_IPV6_"}
_LINE = re.compile(
    r"""\s* (?:export\s+)? (?P<key>[A-Za-z_][A-Za-z0-9_.]*) \s*[=:]\s*
        (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>[^']*)' | (?P<bare>[^#\n]*) ) \s* (?:\#.*)?""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What to tell. At most one network and one subnet a family; ``subnets`` as leased (their base); ``mtu`` in bytes."""

    networks: tuple[IPNetwork, ...]
    subnets: tuple[IPNetwork, ...]
    mtu: int
    ipmasq: bool

    def render(self) -> str:
        """The file's text. The address told is the first of the lease: the one that Docker's bridge takes."""
        lines = []
        for version, lead in _LEAD.items():
            lines += [f"{lead}NETWORK={network}" for network in self.networks if network.version == version]
            for subnet in self.subnets:
                if subnet.version == version:
                    lines.append(f"{lead}SUBNET={IPAddress(subnet.first + 1, version)}/{subnet.prefixlen}")
        lines.append(f"FLANNEL_MTU={self.mtu}")
        lines.append(f"FLANNEL_IPMASQ={'true' if self.ipmasq else 'false'}")
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Previous:
    """What the file told; None where it told nothing usable. ``skipped`` says what was passed over, and why.

    Networks and subnets are masked; ``bridge`` and ``bridge6`` are the subnets as they stand there, with the bridge's own address.
    """

    network: IPNetwork | None = None
    subnet: IPNetwork | None = None
    network6: IPNetwork | None = None
    subnet6: IPNetwork | None = None
    skipped: tuple[str, ...] = ()
    bridge: IPNetwork | None = None
    bridge6: IPNetwork | None = None
    mtu: int | None = None
    ipmasq: bool | None = None


def parse(text: str) -> Previous:
    """Read a file that flannel, we or a person wrote. Never raises: what cannot be read is in ``skipped``."""
    values = variables(text)
    skipped: list[str] = []
    network, bridge = _only(values, "NETWORK", 4, skipped), _only(values, "SUBNET", 4, skipped)
    network6, bridge6 = _only(values, "NETWORK", 6, skipped), _only(values, "SUBNET", 6, skipped)
    return Previous(
        network=network and network.cidr,
        subnet=bridge and bridge.cidr,
        network6=network6 and network6.cidr,
        subnet6=bridge6 and bridge6.cidr,
        skipped=tuple(skipped),
        bridge=bridge,
        bridge6=bridge6,
        mtu=as_mtu(values.get("FLANNEL_MTU", "")),
        ipmasq={"true": True, "false": False}.get(values.get("FLANNEL_IPMASQ", "")),
    )


def as_mtu(text: str) -> int | None:
    """An MTU that IPv4 can live with (RFC 791: 68) and a packet can have; None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{2,5}", text) and 68 <= int(text) <= 65535 else None


def same(text: str | None, wanted: SubnetEnv) -> str | None:
    """What is wrong with a file's text (None: there is no file), as the end of a sentence; None where it says what is wanted."""
    if text == wanted.render():
        return None
    if not text:
        return "is gone" if text is None else "is empty"
    told = parse(text)
    for name, version in (("subnet", 4), ("subnet6", 6)):
        ours = next((net.cidr for net in wanted.subnets if net.version == version), None)
        if (theirs := getattr(told, name)) != ours:
            return f"says {theirs or f'no IPv{version} subnet'}" + (f", ours is {ours}" if ours is not None else "")
    return f"says MTU {told.mtu}, ours is {wanted.mtu}" if told.mtu != wanted.mtu else "was changed"


class SubnetFile:
    """The subnet file of a running agent: made so, and made so again. To look at it costs a stat(2) where nobody touches it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[SubnetEnv, os.stat_result | None] | None = None
        self._met: tuple[os.stat_result, float] | None = None

    def put(self, wanted: SubnetEnv) -> str | None:
        """Make it say ``wanted``; what was wrong with it, as the end of a sentence, None where nothing was. May wait for a disk.

        A directory in its place (Docker makes one where a container mounts a file that is not there) is set aside. Raises
        FlannelpyError with one line.
        """
        # Before it is read: whoever writes meanwhile makes it another than this.
        stream = is_stream(self._path)
        now = None if stream else _stat(self._path)
        if self._known is not None and self._known[0] == wanted and (stream or _alike(now, self._known[1])):
            return None
        self._known = None
        wrong = self._look(wanted)
        if wrong is not None:
            write(self._path, wanted)
        if stream or (wrong is None and now is not None and self._at_rest(now)):
            self._known = wanted, now
        return wrong

    def _at_rest(self, now: os.stat_result) -> bool:
        """True where whoever writes from now on leaves another stat(2).

        A file's time is the kernel's clock at its last tick, up to 10 ms old: two writes within one, of the same length into the
        same file, leave the same (as git knows of its index). So it has to be met twice, with a second between.
        """
        if self._met is None or not _alike(now, self._met[0]):
            self._met = now, time.monotonic()
        return time.monotonic() - self._met[1] > AT_REST_S

    def _look(self, wanted: SubnetEnv) -> str | None:
        if is_stream(self._path):
            return "was not written yet"
        try:
            text = read_file(self._path, LARGEST).decode(errors="replace")
        except FileNotFoundError:
            return same(None, wanted)
        except TooLargeError:
            return "was too long"
        except RefusedError:
            if not self._path.is_dir() or self._path.is_symlink():
                raise
            return f"was a directory, {set_aside(self._path)}"
        there = _stat(self._path)
        if there is None:  # gone since
            return same(None, wanted)
        mode = there.st_mode & 0o777
        return same(text, wanted) or (None if mode == 0o644 else f"had mode {mode:o}")


def variables(text: str) -> dict[str, str]:
    """The variables of a dotenv file: ``KEY=value``, with ``export``, quotes and comments where somebody wrote them."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        if match["double"] is not None:
            found[match["key"]] = re.sub(r"\\(.)", r"\1", match["double"])
        else:
            found[match["key"]] = match["single"] if match["single"] is not None else match["bare"].rstrip()
    return found


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=False)
    except OSError:
        return None


def _alike(now: os.stat_result | None, before: os.stat_result | None) -> bool:
    """True where nobody has touched it since."""
    if now is None or before is None:
        return False
    return all(
        getattr(now, name) == getattr(before, name)
        for name in ("st_dev", "st_ino", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns")
    )


def write(path: Path, env: SubnetEnv) -> bool:
    """Write it whole or not at all; false where it was so already. Raises FlannelpyError with one line."""
    return write_file(path, env.render())


def read(path: Path) -> Previous:
    """What an earlier run told; nothing where there is no file. Never raises."""
    try:
        text = read_file(path, LARGEST).decode(errors="replace")
    except FileNotFoundError:
        return Previous()
    except FlannelpyError as error:
        return Previous(skipped=(str(error),))
    previous = parse(text)
    return replace(previous, skipped=tuple(f"{path}: {reason}" for reason in previous.skipped))


def _only(values: Mapping[str, str], what: str, version: Family, skipped: list[str]) -> IPNetwork | None:
    """The one valid element of a comma list, with its host bits; none and several are both nothing to rely on."""
    key = f"{_LEAD[version]}{what}"
    valid: list[IPNetwork] = []
    for element in filter(None, (part.strip() for part in values.get(key, "").split(","))):
        address, slash, length = element.partition("/")
        try:
            if not slash or not (length.isascii() and length.isdigit()):
                raise ValueError
            valid.append(IPNetwork((int(IPAddress(address, version)), int(length)), version=version))
        except (AddrFormatError, ValueError):
            skipped.append(f"{key} {element!r}: expected an IPv{version} network; passed over")
    if len(valid) > 1:
        skipped.append(f"{key} holds {len(valid)} networks: expected one; passed over")
    return valid[0] if len(valid) == 1 else None
