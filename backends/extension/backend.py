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
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError
from flannelpy.core.json_members import Members
from flannelpy.core.model import NO_ADDRESS, Family, Lease, LeaseAttrs
from flannelpy.core.objects import HostState

NAMES = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")

LIMIT_S = 30
LONGEST_LIMIT_S = 3600
MOST_OVERHEAD = 1000


class Extension:
    """The ``extension`` backend."""

    name = "extension"
    families: tuple[Family, ...] = (4, 6)
    accepts: frozenset[str] | None = frozenset({"extension"})
    wants_on_link = False

    def __init__(self, commands: Commands, overhead: int = 0) -> None:
        self._overhead = overhead
        self.commands = commands
        self.preparation = commands.pre.line if commands.pre else ""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Extension:
        """The four commands, CommandTimeout (30 seconds) and Overhead (0 bytes), in any letter case; others are passed over.

        Raises ConfigError.
        """
        members = Members(options, "Backend.")
        limit = members.unsigned("CommandTimeout", LIMIT_S, 1, LONGEST_LIMIT_S)
        overhead = members.unsigned("Overhead", 0, 0, MOST_OVERHEAD)
        return cls(Commands(*(_command(members, name, limit) for name in NAMES)), overhead)

    async def prepare(self) -> str | None:
        """Run PreStartupCommand; what it printed is what our lease publishes. See ``flannelpy.core.backend.Prepares``."""
        if self.commands.pre is None:
            return None
        output = await self.commands.pre.run({})
        if not output.whole:
            raise BackendError(f"{self.commands.pre.name} printed too much: expected what is to be published, 64 KiB at most")
        return output.text

    def devices(self, config: NetworkConfig) -> Mapping[str, bool]:
        return {}

    def overhead(self, underlay: Family) -> int:
        return self._overhead

    def mtu(self, local: Local) -> int:
        mtu, least = local.uplink.mtu - self._overhead, 1280 if local.config.v6 else 68
        if mtu < least:
            words = f"Overhead {self._overhead} leaves {mtu} of {local.uplink.name}'s {local.uplink.mtu} bytes"
            raise ConfigError(f"Backend.{words}: at least {least} are needed")
        return mtu

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        return {}

    def attrs(self, local: Local) -> LeaseAttrs:
        """The interface's own addresses, as in flannel, also where others are advertised with ``--public-ip``."""
        uplink, config = local.uplink, local.config
        return LeaseAttrs(
            uplink.address if config.v4 and uplink.address else NO_ADDRESS,
            uplink.address6 if config.v6 else None,
            backend_type=self.name,
            backend_data=local.prepared,
        )

    def host(self, local: Local) -> HostState:
        return HostState()

    def path(self, lease: Lease, local: Local) -> Path:
        backend_data(lease)
        return Path(mtu=self.mtu(local))

    def datapath(self, local: Local) -> CommandDatapath:
        return CommandDatapath(local, self.commands)


def _command(members: Members, name: str, limit_s: int) -> Command | None:
    line = members.text(name)
    if not line:
        return None
    if not words(line) or "\0" in line:
        raise members.wrong(name, "a program and its arguments")
    return Command(name, line, limit_s)
