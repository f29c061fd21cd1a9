"""How does Docker learn our subnet and MTU? Daemon options made from subnet.env, as flannel's ``mk-docker-opts.sh`` makes them.

Source: flannel-compat 7.4. The output is the script's to the byte, the combined string's leading blank included. Mended: the
check for a conflicting route comes before anything is written and compares networks, not pieces of text; values may hold blanks
and quotes; a missing subnet.env is an error also with ``-m``. What comes out of subnet.env is judged: it gets onto the command line
of a program that runs as root. What daemon.json says, too, is found before Docker refuses to start over it.

``DOCKER_OPT_*`` variables from the environment still become options, because hosts add options of their own that way. Only BIP,
MTU and IPMASQ are not inherited: they come from subnet.env alone, so that an earlier output cannot leak into the next; and nothing
but these comes from there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.json_text import decode
from flannelpy.host.files import read_file
from flannelpy.host.subnet_env import LARGEST, as_mtu, variables

PREFIX = "DOCKER_OPT_"
_OURS = ("BIP", "IPMASQ", "MTU")
BRIDGES = ("docker0", "cni0")
"""Devices that have our subnet because it is ours."""
_GATEWAY, _REJECT = 0x2, 0x200
"""RTF_GATEWAY and RTF_REJECT, linux/route.h."""


def daemon_options(environ: Mapping[str, str], told: Mapping[str, str], *, with_ip_masq: bool) -> dict[str, str]:
    """Docker's options by variable name, in name order; ``told`` by subnet.env. Raises FlannelpyError."""
    made = {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and name not in {PREFIX + ours for ours in _OURS} and value
    }
    made[f"{PREFIX}BIP"] = f"--bip={_subnet(told)}"
    if mtu := told.get("FLANNEL_MTU"):
        if as_mtu(mtu) is None:
            raise FlannelpyError(f"FLANNEL_MTU {mtu!r:.60}: expected a number from 68 to 65535; nothing was written")
        made[f"{PREFIX}MTU"] = f"--mtu={mtu}"
    masq = told.get("FLANNEL_IPMASQ", "")
    if with_ip_masq and masq:
        if masq not in ("true", "false"):
            raise FlannelpyError(f"FLANNEL_IPMASQ {masq!r:.60}: expected true or false; nothing was written")
        # Inverted: where the agent masquerades, Docker must not.
        made[f"{PREFIX}IPMASQ"] = f"--ip-masq={'false' if masq == 'true' else 'true'}"
    return dict(sorted(made.items()))


def _subnet(told: Mapping[str, str]) -> str:
    text = told["FLANNEL_SUBNET"]
    try:
        if re.fullmatch(r"[0-9.]+/[0-9]+", text):
            IPNetwork(text, version=4)
            return text
    except (AddrFormatError, ValueError):
        pass
    raise FlannelpyError(f"FLANNEL_SUBNET {text!r:.60}: expected a form like 10.5.72.1/24; nothing was written")


def render(made: Mapping[str, str], *, key: str | None, before: str = "", individual: bool = True) -> str:
    """The text of the output: a line an option, and the combined one where ``key`` names it; ``before`` is the key's old value."""
    lines = [f'{name}="{_quote(value)}"' for name, value in made.items()] if individual else []
    if key is not None:
        lead = f"{before} " if before else ""
        lines.append(f'{key}="{_quote(lead + "".join(f" {value}" for value in made.values()))}"')
    return "".join(f"{line}\n" for line in lines)


def conflict(subnet: str, table: str) -> str | None:
    """Why ``subnet`` cannot be Docker's: the line of the main routing table (as in /proc/net/route) that sends it elsewhere.

    A network of a link of this host that is it, or inside it, is another one's, but on a container bridge. A wider one does no
    harm: the bridge's route is more specific.
    """
    wanted = IPNetwork(subnet, version=4).cidr
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or int(fields[3], 16) & _REJECT or fields[0] in ("*", *BRIDGES):
            continue
        target, gateway, mask = (_address(fields[column]) for column in (1, 2, 7))
        if int(fields[3], 16) & _GATEWAY:
            if target == wanted.network and mask == wanted.netmask:
                return f"{wanted} via {gateway} dev {fields[0]}"
        elif target in wanted and mask >= wanted.netmask:
            return f"{IPNetwork(f'{target}/{mask}')} dev {fields[0]}"
    return None


def clash(made: Collection[str], config: str | None) -> tuple[str, ...]:
    """Keys of Docker's daemon.json that say what options made here say, too: dockerd takes neither, and does not start."""
    try:
        fields = decode(config) if config is not None and config.strip() else {}
    except ValueError:
        return ()  # Docker says what is wrong with it
    if not isinstance(fields, dict):
        return ()
    keys = {f"{PREFIX}BIP": ("bip", "bridge"), f"{PREFIX}MTU": ("mtu",), f"{PREFIX}IPMASQ": ("ip-masq",)}
    return tuple(key for name in made for key in keys.get(name, ()) if key in fields)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else on this host has a say: its routes, Docker's own config, and the subnet of an agent that runs on this very file."""

    routes: Path = Path("/proc/net/route")
    daemon_json: Path = Path("/etc/docker/daemon.json")
    leased: IPNetwork | None = None


def docker_opts(
    environ: Mapping[str, str],
    env_file: Path,
    *,
    key: str | None,
    individual: bool,
    with_ip_masq: bool,
    surroundings: Surroundings | None = None,
) -> str:
    """The whole text for Docker. Raises FlannelpyError with one line, before anything is written."""
    around = surroundings or Surroundings()
    if key is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
        raise UsageError(f"-k {key!r}: expected the name of a variable")
    made = checked(environ, env_file, around, with_ip_masq=with_ip_masq)
    if key is not None and (keys := clash(made, _config(around.daemon_json))):
        them = "it" if len(keys) == 1 else "them"
        said = f"{around.daemon_json} says {' and '.join(keys)}, too, and Docker would not start"
        raise FlannelpyError(f"{said}: take {them} out there; nothing was written (or docker-opts --daemon-json: all of it there)")
    return render(made, key=key, before=environ.get(key, "") if key else "", individual=individual)


def checked(environ: Mapping[str, str], env_file: Path, around: Surroundings, *, with_ip_masq: bool) -> dict[str, str]:
    """As ``daemon_options``, of a subnet that may be Docker's on this host. Raises FlannelpyError."""
    told = _told(env_file)
    if not told.get("FLANNEL_SUBNET") and told.get("FLANNEL_IPV6_SUBNET"):
        raise FlannelpyError(f"{env_file}: only an IPv6 subnet, and Docker's bip is an IPv4 one; nothing was written")
    if not told.get("FLANNEL_SUBNET"):
        raise FlannelpyError(f"{env_file}: no FLANNEL_SUBNET to be had: is the agent running? Nothing was written")
    made = daemon_options(environ, told, with_ip_masq=with_ip_masq)
    subnet = IPNetwork(told["FLANNEL_SUBNET"]).cidr
    if around.leased is not None and around.leased != subnet:
        raise FlannelpyError(
            f"{env_file} says {subnet}, the agent on this host has leased {around.leased}: somebody else wrote the file; "
            "the agent puts it back within seconds; nothing was written"
        )
    elsewhere = conflict(told["FLANNEL_SUBNET"], around.routes.read_text() if around.routes.exists() else "")
    if elsewhere is not None:
        raise FlannelpyError(f"FLANNEL_SUBNET is routed elsewhere: {elsewhere}; expected no such route; nothing was written")
    return made


def _config(path: Path) -> str | None:
    """daemon.json's text; None where there is none that we can read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _told(env_file: Path) -> dict[str, str]:
    try:
        return variables(read_file(env_file, LARGEST).decode(errors="replace"))
    except FileNotFoundError:
        return {}
    except FlannelpyError as error:
        raise FlannelpyError(f"{error}; nothing was written") from None


def _address(text: str) -> IPAddress:
    """From the kernel's hexadecimal of a network-order word, as seen by this machine's byte order."""
    return IPAddress(int.from_bytes(int(text, 16).to_bytes(4, sys.byteorder), "big"), 4)


def _quote(value: str) -> str:
    """Inside double quotes, for a shell and for systemd's EnvironmentFile."""
    return re.sub(r'([\\"$`])', r"\\\1", value)
