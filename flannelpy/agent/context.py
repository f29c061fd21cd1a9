"""What does every part of the agent get handed? The outside world, how to speak to people, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from flannelpy.agent.events import Ring
from flannelpy.agent.lock import Claimant, Claims
from flannelpy.agent.report import Clock, Reporter
from flannelpy.agent.systemd import Notifier
from flannelpy.core.backend import FdStore
from flannelpy.core.pace import between_listings_s, spread_s
from flannelpy.core.tally import Histogram
from flannelpy.core.uplink import Wish
from flannelpy.explain.wall_clock import wall_clock
from flannelpy.kernel import Kernel
from flannelpy.registry import Assigned, Registry
from flannelpy.settings import Settings


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long things are waited for, in seconds.

    ``departure_s``: a peer whose key is gone; ``expired_s``: one whose etcd lease has ended with it; ``reset_s``: peers that are
    missing after etcd lost data; ``relist_s``: between full listings, the safety net under the watch, among up to a thousand hosts;
    ``offline_s``: for etcd at start, before what is kept on disk is used; ``spread_s``: over how long a thousand hosts spread what
    all of them do at one event (list after a reconnect, publish after a config change); ``asked_s``: a question that all ask.
    """

    departure_s: float = 3.0
    expired_s: float = 600.0
    reset_s: float = 600.0
    relist_s: float = 300.0
    offline_s: float = 1.0
    spread_s: float = 6.0
    asked_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Context:
    """Made once a process."""

    settings: Settings
    wish: Wish
    registry: Registry
    kernel: Kernel
    reporter: Reporter
    notifier: Notifier
    fd_store: FdStore
    clock: Clock
    timeouts: Timeouts = Timeouts()
    random: Random = Random()  # noqa: RUF009 - chance is meant to be shared
    events: Ring = field(default_factory=lambda: Ring(wall_clock))
    lateness: Histogram = field(default_factory=Histogram)
    """Of a timer, once a second: how long the loop was busy with something else."""
    claims: Claims = field(default_factory=lambda: Claims(Claimant()))
    assigned: Assigned | None = None
    """What of the registry is this host's own, where subnets are assigned and not chosen."""

    def spread(self, peers: int) -> float:
        """A random wait in seconds, so that ``peers`` hosts do not all do now what one event asks of all of them."""
        return self.random.uniform(0.0, spread_s(peers, self.timeouts.spread_s))

    def ask_after(self, peers: int) -> float:
        """The same before a question whose answer takes the registry longer the more leases there are."""
        return self.random.uniform(0.0, spread_s(peers, self.timeouts.asked_s))

    def relist_after(self, peers: int) -> float:
        """Seconds until the next listing that nothing asks for."""
        return between_listings_s(peers, self.timeouts.relist_s) * self.random.uniform(0.8, 1.0)
