"""What do Docker and CNI read about our subnet? ``subnet.env``: written for them, read back by us at the next start.

Source: flannel-compat 7.1 to 7.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.model import Family
from flannelpy.host import write_whole

_LEAD: Mapping[int, str] = {4: "FLANNEL_", 6: "FLANNEL_IPV6_"}
_LINE = re.compile(
    r"""\s* (?:export\s+)? (?P<key>[A-Za-z_][A-Za-z0-9_.]*) \s*[=:]\s*
        (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>[^']*)' | (?P<bare>[^#\n]*?) ) \s* (?:\#.*)?""",
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
    """What the file told, masked to networks; None where it told nothing usable. ``skipped`` says what was passed over, and why."""

    network: IPNetwork | None = None
    subnet: IPNetwork | None = None
    network6: IPNetwork | None = None
    subnet6: IPNetwork | None = None
    skipped: tuple[str, ...] = ()


def parse(text: str) -> Previous:
    """Read a file that flannel, we or a person wrote. Never raises: what cannot be read is in ``skipped``."""
    values = variables(text)
    skipped: list[str] = []
    return Previous(
        network=_only(values, "NETWORK", 4, skipped),
        subnet=_only(values, "SUBNET", 4, skipped),
        network6=_only(values, "NETWORK", 6, skipped),
        subnet6=_only(values, "SUBNET", 6, skipped),
        skipped=tuple(skipped),
    )


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
            found[match["key"]] = match["single"] if match["single"] is not None else match["bare"]
    return found


def write(path: Path, env: SubnetEnv) -> bool:
    """Write it whole or not at all; false where it was so already. Raises FlannelpyError with one line."""
    return write_whole(path, env.render())


def read(path: Path) -> Previous:
    """What an earlier run told; nothing where there is no file. Never raises."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return Previous()
    except OSError as error:
        return Previous(skipped=(f"{path}: cannot be read: {error.strerror}",))
    previous = parse(text)
    return Previous(
        previous.network,
        previous.subnet,
        previous.network6,
        previous.subnet6,
        tuple(f"{path}: {reason}" for reason in previous.skipped),
    )


def _only(values: Mapping[str, str], what: str, version: Family, skipped: list[str]) -> IPNetwork | None:
    """The one valid element of a comma list; none and several are both nothing to rely on."""
    key = f"{_LEAD[version]}{what}"
    valid: list[IPNetwork] = []
    for element in filter(None, (part.strip() for part in values.get(key, "").split(","))):
        address, slash, length = element.partition("/")
        try:
            if not slash or not (length.isascii() and length.isdigit()):
                raise ValueError
            valid.append(IPNetwork((int(IPAddress(address, version)), int(length)), version=version).cidr)
        except (AddrFormatError, ValueError):
            skipped.append(f"{key} {element!r}: expected an IPv{version} network; passed over")
    if len(valid) > 1:
        skipped.append(f"{key} holds {len(valid)} networks: expected one; passed over")
    return valid[0] if len(valid) == 1 else None
