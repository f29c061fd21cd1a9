"""What must survive a reboot? MACs that peers hold, our subnet, the devices we made. One small JSON file in the state directory."""

from __future__ import annotations

import json
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
    ``devices`` and ``fou_ports`` were in use with it.
    """

    prefix: str = ""
    macs: Mapping[str, str] = field(default_factory=dict)
    lease_key: str = ""
    networks: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    fou_ports: tuple[int, ...] = ()


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
            macs={str(device): str(mac) for device, mac in fields["macs"].items()},
            lease_key=str(fields["lease_key"]),
            networks=tuple(map(str, fields["networks"])),
            devices=tuple(map(str, fields["devices"])),
            fou_ports=tuple(map(int, fields.get("fou_ports", ()))),
        )
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise FlannelpyError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FlannelpyError(f"{path}: expected a state file of format {FORMAT}") from None


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
    }
    write_whole(directory / FILE, json.dumps(fields, indent=1) + "\n")
