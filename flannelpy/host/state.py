"""What must survive a reboot? MACs that peers hold, our subnet, the devices we made. One small JSON file in the state directory.

What is read is judged as if a stranger had written it: a device is removed by what stands here, a MAC is published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.json_text import decode
from flannelpy.core.model import parse_subnet_key
from flannelpy.host.files import RefusedError, read_file, set_aside, write_file

FORMAT = 2
FILE = "state.json"
LARGEST = 1 << 20
"""Bytes of a state file: some hundred devices and ports."""

MODE = 0o600
"""What a file of the state directory may be read by: its owner. It may hold secrets."""

OURS = re.compile(r"flannel[a-z0-9.-]{0,8}")
"""Names of devices that a backend may have made: no other is ever taken for ours."""

NOT_UNDERSTOOD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MalformedError)
"""What reading something odd may raise."""


@dataclass(frozen=True, slots=True)
class State:
    """``prefix`` is the network it belongs to; ``macs`` by device; ``lease_key`` is the last part of our lease's key; ``networks``,
    ``devices`` and ``fou_ports`` were in use with it, and, where so, ``policies`` of IPsec. ``machine``, ``uplink_mac`` and
    ``address`` (PublicIP) tell whose it is.
    """

    prefix: str = ""
    macs: Mapping[str, str] = field(default_factory=dict)
    lease_key: str = ""
    networks: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    fou_ports: tuple[int, ...] = ()
    machine: str = ""
    uplink_mac: str = ""
    address: str = ""
    policies: bool = False


def read(directory: Path, prefix: str) -> State:
    """The state that was kept for ``prefix``; an empty one where there is none, or another network's: its devices are not ours.

    Raises FlannelpyError where it is there and is no use; then it is set aside.
    """
    path = directory / FILE
    try:
        state = parse(read_file(path, LARGEST))
    except FileNotFoundError:
        return State()
    except RefusedError as error:
        raise FlannelpyError(f"{error}; {set_aside(path)}") from None
    except ValueError as error:
        raise FlannelpyError(f"{path}: expected a state file ({error!s:.120}); {set_aside(path)}") from None
    return state if state.prefix == prefix else State()


def parse(data: bytes) -> State:
    """The state that a file's bytes say. Raises ValueError, and nothing else: what is wrong, in one line."""
    try:
        fields: Any = decode(data)
        return State(
            prefix=text_of(fields["prefix"]),
            macs={_interface(device): mac(address) for device, address in fields["macs"].items()},
            lease_key=_lease_key(fields["lease_key"]),
            networks=tuple(map(_network, _list(fields["networks"]))),
            devices=tuple(map(_device, _list(fields["devices"]))),
            fou_ports=tuple(map(_port, _list(fields.get("fou_ports", [])))),
            machine=text_of(fields.get("machine", "")),
            uplink_mac=_hardware(fields.get("uplink_mac", "")),
            address=_address(fields.get("address", "")),
            policies=_flag(fields.get("policies", False)),
        )
    except NOT_UNDERSTOOD as error:
        raise ValueError(in_words(error)) from None


def write(directory: Path, state: State) -> None:
    """Keep ``state``. Raises FlannelpyError where that cannot be done."""
    fields = {
        "format": FORMAT,
        "prefix": state.prefix,
        "macs": dict(state.macs),
        "lease_key": state.lease_key,
        "networks": list(state.networks),
        "devices": [device for device in state.devices if OURS.fullmatch(device)],  # of others nothing is ever removed
        "fou_ports": list(state.fou_ports),
        "machine": state.machine,
        "uplink_mac": state.uplink_mac,
        "address": state.address,
        "policies": state.policies,
    }
    write_file(directory / FILE, json.dumps(fields, indent=1) + "\n", MODE)


def in_words(error: Exception) -> str:
    """Why something read is not understood."""
    if isinstance(error, KeyError):
        return f"{error.args[0]!r:.40} is missing"
    return str(error) if isinstance(error, ValueError | MalformedError) else "it is of another form"


def mac(value: object) -> str:
    """A MAC that one device can have: what a flipped bit makes a group's would never be taken by the kernel. Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", value):
        raise ValueError(f"{value!r:.40} is no MAC")
    if int(value[:2], 16) & 1 or value == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is not the MAC of one device")
    return value


def _interface(value: object) -> str:
    """The name of an interface, as the kernel allows it (dev_valid_name)."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-.0-9;-~]{1,15}", value):
        raise ValueError(f"{value!r:.40} is no interface")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is neither true nor false")
    return value


def _device(value: object) -> str:
    if not isinstance(value, str) or not OURS.fullmatch(value):
        raise ValueError(f"{value!r:.40} is no device of ours")
    return value


def _hardware(value: object) -> str:
    """The uplink's hardware address, of whatever length its kind has; empty for one without."""
    if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9a-f]{2}(?::[0-9a-f]{2}){0,31})?", value):
        raise ValueError(f"{value!r:.40} is no hardware address")
    return value


def _network(value: object) -> str:
    try:
        if isinstance(value, str) and str(IPNetwork(value)) == value:
            return value
    except (AddrFormatError, ValueError):
        pass
    raise ValueError(f"{value!r:.60} is no network")


def _address(value: object) -> str:
    try:
        if value == "" or (isinstance(value, str) and str(IPAddress(value)) == value):
            return str(value)
    except (AddrFormatError, ValueError):
        pass
    raise ValueError(f"{value!r:.60} is no address")


def _lease_key(value: object) -> str:
    if value != "":
        parse_subnet_key(text_of(value))
    return text_of(value)


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 16:
        raise ValueError(f"{value!r:.40} is no port")
    return value


def text_of(value: object) -> str:
    """Raises ValueError where it is something else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is no list")
    return value
