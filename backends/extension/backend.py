"""extension: what a lease publishes, and the commands of the network config. flannel-compat 9.6.

The kernel's objects are the commands' own; the agent observes and repairs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.extension.command import Command, Commands
from backends.extension.datapath import CommandDatapath, backend_data
from backends.extension.words import words
from flannelpy.core.backend import Local, Path
from flannelpy.core.backend_options import Option, read
from flannelpy.core.errors import BackendError, ConfigError
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.usual import completed

COMMANDS = {
    "PreStartupCommand": "run once, before there is a lease",
    "PostStartupCommand": "run once the lease is held",
    "SubnetAddCommand": "run for each peer that comes or changes",
    "SubnetRemoveCommand": "run for each peer that goes",
}

LIMIT_S = 30
LONGEST_LIMIT_S = 3600
MOST_OVERHEAD = 1000


def _command_line(text: str) -> str:
    if not words(text) or "\0" in text:
        raise ValueError("a program and its arguments")
    return text


@completed
class Extension:
    """The ``extension`` backend."""

    name = "extension"
    families: tuple[Family, ...] = (4, 6)
    options = (
        *(Option(name, None, f"a program and its arguments, {when}", parse=_command_line) for name, when in COMMANDS.items()),
        Option("CommandTimeout", LIMIT_S, "seconds that a command may take", least=1, most=LONGEST_LIMIT_S),
        Option(
            "Overhead", 0, "bytes that your encapsulation adds; they are taken off the MTU in the subnet file", most=MOST_OVERHEAD
        ),
    )

    def __init__(self, commands: Commands, overhead: int = 0) -> None:
        self._overhead = overhead
        self.commands = commands
        self.preparation = commands.pre.line if commands.pre else ""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Extension:
        given = read(cls.options, options)
        commands = (Command(name, given[name], given["CommandTimeout"]) if given[name] else None for name in COMMANDS)
        return cls(Commands(*commands), given["Overhead"])

    async def prepare(self) -> str | None:
        """Run PreStartupCommand; what it printed is what our lease publishes. See ``flannelpy.core.backend.Prepares``."""
        if self.commands.pre is None:
            return None
        output = await self.commands.pre.run({})
        if not output.whole:
            raise BackendError(f"{self.commands.pre.name} printed too much: expected what is to be published, 64 KiB at most")
        return output.text

    def overhead(self, underlay: Family) -> int:
        return self._overhead

    def mtu(self, local: Local) -> int:
        mtu, least = local.uplink.mtu - self._overhead, 1280 if local.config.v6 else 68
        if mtu < least:
            words = f"Overhead {self._overhead} leaves {mtu} of {local.uplink.name}'s {local.uplink.mtu} bytes"
            raise ConfigError(f"Backend.{words}: at least {least} are needed")
        return mtu

    def attrs(self, local: Local) -> LeaseAttrs:
        """The interface's own addresses, as in flannel, also where others are advertised with ``--public-ip``."""
        uplink, config = local.uplink, local.config
        return LeaseAttrs(
            uplink.address if config.v4 and uplink.address else NO_ADDRESS,
            uplink.address6 if config.v6 else None,
            backend_type=self.name,
            backend_data=local.prepared,
        )

    def path(self, lease: Lease, local: Local) -> Path:
        backend_data(lease)
        return Path(mtu=self.mtu(local))

    def datapath(self, local: Local) -> CommandDatapath:
        return CommandDatapath(local, self.commands)
