"""How is the CNI plugin asked in a test? In this process, with its delegate recorded, or as the process that a runtime starts."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flannelpy.host.cni import plugin

PLUGIN = Path(plugin.__file__)
NO_NETNS = "/run/netns/nobody-has-this"
ENV = {"CNI_CONTAINERID": "c1", "CNI_NETNS": NO_NETNS, "CNI_IFNAME": "eth0"}
DELEGATE = """#!/bin/sh
# Writes what it was given beside itself, and says what it is told to.
cat > "$RECORD.$CNI_COMMAND"
[ -z "$SAYS_ASIDE" ] || echo "$SAYS_ASIDE" >&2
printf '%s' "$SAYS"
exit "${ENDS:-0}"
"""


@dataclass
class Asked:
    """What one call came to: its error, or None; what it said; and what it handed to whom."""

    error: dict[str, Any] | None = None
    answer: Any = None
    delegates: list[tuple[str, str, Any]] = field(default_factory=list)


def ask(command: str, conf: bytes, **env: str) -> Asked:
    """The plugin's answer, worked out here; its delegate is none that runs, and answers as ``bridge`` would."""
    asked = Asked()

    def delegate(command: str, plugin_name: str, told: bytes, _env: dict[str, str]) -> bytes:
        asked.delegates.append((command, plugin_name, json.loads(told)))
        return b'{"ips":[{"address":"10.1.7.2/24"}]}'

    stdin = os.memfd_create("stdin")
    real, plugin.delegate = plugin.delegate, delegate
    try:
        os.write(stdin, conf)
        os.lseek(stdin, 0, os.SEEK_SET)
        said = plugin.run({"CNI_COMMAND": command, "CNI_PATH": "/nowhere", **ENV, **env}, stdin)
        asked.answer = json.loads(said) if said else None
    except plugin.CniError as error:
        asked.error = {"code": error.code, "msg": error.msg, **({"details": error.details} if error.details else {})}
    finally:
        plugin.delegate = real
        os.close(stdin)
    return asked


def start(command: str, conf: bytes, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The plugin as a process, with nothing in its environment but what is given."""
    return subprocess.run(
        [PLUGIN], input=conf, capture_output=True, timeout=60, check=False, env={"CNI_COMMAND": command, **ENV, **env}
    )


def install_delegate(folder: Path, name: str = "bridge") -> Path:
    """A delegate that records; where RECORD is, ``RECORD.ADD`` is what it was given at ADD."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(DELEGATE)
    (folder / name).chmod(0o755)
    return folder
