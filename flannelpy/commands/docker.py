"""What does ``flannelpy docker-opts`` do? Docker's options, from the subnet file, if that says what the agent here has leased."""

from __future__ import annotations

import os
from pathlib import Path

from netaddr import AddrFormatError, IPNetwork

from flannelpy.commands.ask import ask
from flannelpy.core.errors import FlannelpyError
from flannelpy.explain.status import SOCKET, from_json
from flannelpy.host.docker import Surroundings, docker_opts
from flannelpy.host.files import write_file
from flannelpy.settings import load_run_dir

WITHIN_S = 2.0
"""How long an agent may take to say what it has leased; one that does not is not waited for, because Docker waits for us."""


def write_options(env_file: str, output: str, *, key: str | None, individual: bool, with_ip_masq: bool) -> None:
    """Raises FlannelpyError, before anything is written."""
    path = Path(env_file)
    text = docker_opts(
        os.environ,
        path,
        key=key,
        individual=individual,
        with_ip_masq=with_ip_masq,
        surroundings=Surroundings(leased=leased(load_run_dir({}, os.environ), path)),
    )
    write_file(Path(output), text)


def leased(run_dir: Path, env_file: Path) -> IPNetwork | None:
    """The IPv4 subnet of the agent that has written this very subnet file; None where no agent answers, or it is of another."""
    try:
        status = from_json(ask(run_dir / SOCKET, within_s=WITHIN_S))
        ours = status.subnet_file.written and os.path.abspath(status.subnet_file.path) == os.path.abspath(env_file)  # noqa: PTH100
        if not ours or status.lease is None or status.lease.subnet is None:
            return None
        return IPNetwork(status.lease.subnet).cidr
    except (FlannelpyError, AddrFormatError, ValueError):
        return None
