"""What does the agent hand to every node? The outside world, how to speak to people, and how patient to be."""

from __future__ import annotations

from dataclasses import dataclass

from flannelpy.agent.cluster import Patience
from flannelpy.agent.report import Clock, Reporter
from flannelpy.agent.systemd import Notifier
from flannelpy.core.backend import FdStore
from flannelpy.core.uplink import Wish
from flannelpy.kernel import Kernel
from flannelpy.registry import Registry
from flannelpy.settings import Settings


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Made once; nodes come and go in it."""

    settings: Settings
    wish: Wish
    registry: Registry
    kernel: Kernel
    reporter: Reporter
    notifier: Notifier
    fd_store: FdStore
    clock: Clock
    patience: Patience = Patience()  # noqa: RUF009 - frozen
