"""What must survive a reboot? MACs that peers hold, our subnet, the devices we made. One small JSON file in the state directory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flannelpy.core.errors import FlannelpyError
from flannelpy.host import write_whole

FORMAT = 1
FILE = "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """``prefix`` is the network it belongs to; ``macs`` by device; ``lease_key`` is the last part of our lease's key; ``networks``,
    ``devices`` and ``fou_ports`` were in use with it. ``machine``, ``uplink_mac`` and ``address`` (PublicIP) tell whose it is.
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


def read(directory: Path, prefix: str) -> State:
    """The state that was kept for ``prefix``; an empty one where there is none, or another network's: its devices are not ours.

    Raises FlannelpyError where it is there and cannot be read.
    """
    path = directory / FILE
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
        if fields["prefix"] != prefix:
            return State()
        return State(
            prefix=prefix,
            macs={str(device): _mac(mac) for device, mac in fields["macs"].items()},
            lease_key=str(fields["lease_key"]),
            networks=tuple(map(str, fields["networks"])),
            devices=tuple(map(_device, fields["devices"])),
            fou_ports=tuple(map(int, fields.get("fou_ports", ()))),
            machine=str(fields.get("machine", "")),
            uplink_mac=str(fields.get("uplink_mac", "")),
            address=str(fields.get("address", "")),
        )
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise FlannelpyError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, ValueError) and not isinstance(error, UnicodeError) else ""
        raise FlannelpyError(f"{path}: expected a state file of format {FORMAT}{why:.200}; going on without it") from None


def _mac(value: object) -> str:
    """A MAC that one device can have: what a flipped bit makes a group's would never be taken by the kernel."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", value):
        raise ValueError(f"{value!r:.40} is no MAC")
    if int(value[:2], 16) & 1 or value == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is not the MAC of one device")
    return value


def _device(value: object) -> str:
    """The name of a device that a backend may have made: no other is ever taken for ours."""
    if not isinstance(value, str) or not re.fullmatch(r"flannel[a-z0-9.-]{0,8}", value):
        raise ValueError(f"{value!r:.40} is no device of ours")
    return value


def write(directory: Path, state: State) -> None:
    """Keep ``state``. Raises FlannelpyError where that cannot be done."""
    fields = {
        "format": FORMAT,
        "prefix": state.prefix,
        "macs": dict(state.macs),
        "lease_key": state.lease_key,
        "networks": list(state.networks),
        "devices": list(state.devices),
        "fou_ports": list(state.fou_ports),
        "machine": state.machine,
        "uplink_mac": state.uplink_mac,
        "address": state.address,
    }
    write_whole(directory / FILE, json.dumps(fields, indent=1) + "\n")
