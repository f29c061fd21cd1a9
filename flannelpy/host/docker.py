"""How does Docker learn our subnet and MTU? Daemon options made from subnet.env, as flannel's ``mk-docker-opts.sh`` makes them.

Source: flannel-compat 7.4. The output is the script's to the byte, the combined string's leading blank included. Mended: the
check for a conflicting route comes before anything is written and compares networks, not pieces of text; values may hold blanks
and quotes; a missing subnet.env is an error also with ``-m``.

``DOCKER_OPT_*`` variables from the environment still become options, because hosts add options of their own that way. Only BIP,
MTU and IPMASQ are not inherited: they come from subnet.env alone, so that an earlier output cannot leak into the next.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.host.subnet_env import variables

PREFIX = "DOCKER_OPT_"
_OURS = ("BIP", "IPMASQ", "MTU")
_ROUTES = Path("/proc/net/route")
_GATEWAY = 0x2
"""RTF_GATEWAY, linux/route.h."""


def daemon_options(known: Mapping[str, str], *, with_ip_masq: bool) -> dict[str, str]:
    """Docker's options by variable name, in name order. ``known`` is the environment with subnet.env on top."""
    made = {
        name: value
        for name, value in known.items()
        if name.startswith(PREFIX) and name not in {PREFIX + ours for ours in _OURS} and value
    }
    if subnet := known.get("FLANNEL_SUBNET"):
        made[f"{PREFIX}BIP"] = f"--bip={subnet}"
    if mtu := known.get("FLANNEL_MTU"):
        made[f"{PREFIX}MTU"] = f"--mtu={mtu}"
    if with_ip_masq:
        masq = known.get("FLANNEL_IPMASQ", "")
        if masq not in ("true", "false"):
            raise FlannelpyError(f"FLANNEL_IPMASQ {masq!r}: expected true or false; nothing was written")
        # Inverted: where the agent masquerades, Docker must not.
        made[f"{PREFIX}IPMASQ"] = f"--ip-masq={'false' if masq == 'true' else 'true'}"
    return dict(sorted(made.items()))


def render(made: Mapping[str, str], *, key: str | None, before: str = "", individual: bool = True) -> str:
    """The text of the output: a line an option, and the combined one where ``key`` names it; ``before`` is the key's old value."""
    lines = [f'{name}="{_quote(value)}"' for name, value in made.items()] if individual else []
    if key is not None:
        lead = f"{before} " if before else ""
        lines.append(f'{key}="{_quote(lead + "".join(f" {value}" for value in made.values()))}"')
    return "".join(f"{line}\n" for line in lines)


def conflict(subnet: str, table: str) -> str | None:
    """Why ``subnet`` cannot be Docker's: the line of the main routing table (as in /proc/net/route) that sends it elsewhere."""
    try:
        wanted = IPNetwork(subnet, version=4).cidr
    except (AddrFormatError, ValueError):
        raise FlannelpyError(f"FLANNEL_SUBNET {subnet!r}: expected a form like 10.5.72.1/24; nothing was written") from None
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or not int(fields[3], 16) & _GATEWAY:
            continue
        target, gateway, mask = (_address(fields[column]) for column in (1, 2, 7))
        if target == wanted.network and mask == wanted.netmask:
            return f"{wanted} via {gateway} dev {fields[0]}"
    return None


def docker_opts(
    environ: Mapping[str, str], env_file: Path, *, key: str | None, individual: bool, with_ip_masq: bool, routes: Path = _ROUTES
) -> str:
    """The whole text for Docker. Raises FlannelpyError with one line, before anything is written."""
    if key is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise UsageError(f"-k {key!r}: expected the name of a variable")
    known = {**environ, **_told(env_file)}
    if not known.get("FLANNEL_SUBNET"):
        raise FlannelpyError(f"{env_file}: no FLANNEL_SUBNET to be had: is the agent running? Nothing was written")
    made = daemon_options(known, with_ip_masq=with_ip_masq)
    elsewhere = conflict(known["FLANNEL_SUBNET"], routes.read_text() if routes.exists() else "")
    if elsewhere is not None:
        raise FlannelpyError(f"FLANNEL_SUBNET is routed elsewhere: {elsewhere}; expected no such route; nothing was written")
    return render(made, key=key, before=known.get(key, "") if key else "", individual=individual)


def _told(env_file: Path) -> dict[str, str]:
    try:
        return variables(env_file.read_bytes().decode(errors="replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FlannelpyError(f"{env_file}: cannot be read: {error.strerror}; nothing was written") from None


def _address(text: str) -> IPAddress:
    """From the kernel's hexadecimal of a network-order word, as seen by this machine's byte order."""
    return IPAddress(int.from_bytes(int(text, 16).to_bytes(4, sys.byteorder), "big"), 4)


def _quote(value: str) -> str:
    """Inside double quotes, for a shell and for systemd's EnvironmentFile."""
    return re.sub(r'([\\"$`])', r"\\\1", value)
