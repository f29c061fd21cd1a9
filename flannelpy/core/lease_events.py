"""What can happen to our lease, and what can be asked for it? The words between the rules (``leasing``) and the shell that acts.

The shell performs one registry action at a time and hands back one outcome for each:

    List       Listed | ListFailed
    Create     Created | CreateTaken | CreateFailed
    Renew      Renewed | RenewConflict | RenewFailed
    KeepAlive  KeptAlive | KeepAliveLost | KeepAliveFailed
    Release    Released | ReleaseConflict | ReleaseFailed

"Failed" is "not known whether it was done" (no answer, refused); "Conflict", "Taken" and "Lost" are answers: nothing was written.
Every other event may come at any time, in any order, twice or late.
"""

from __future__ import annotations

from dataclasses import dataclass

from netaddr import IPNetwork

from flannelpy.core.config import NetworkConfig
from flannelpy.core.model import Lease, LeaseAttrs

# -------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Started:
    """Begin."""


@dataclass(frozen=True, slots=True)
class Woke:
    """The time of the last WakeAt has come."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Every lease at ``revision``, in key order."""

    leases: tuple[Lease, ...]
    revision: int
    defaced: tuple[Lease, ...] = ()
    """Keys whose value cannot be read: their subnets and revisions, no owner."""


@dataclass(frozen=True, slots=True)
class Overheard:
    """The same for somebody else who asked (the agent, after a gap in the watch); it answers no List of ours."""

    leases: tuple[Lease, ...]
    revision: int
    defaced: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class ListFailed:
    why: str


@dataclass(frozen=True, slots=True)
class Created:
    lease: Lease


@dataclass(frozen=True, slots=True)
class CreateTaken:
    """Somebody holds that key already."""


@dataclass(frozen=True, slots=True)
class CreateFailed:
    why: str


@dataclass(frozen=True, slots=True)
class Renewed:
    lease: Lease


@dataclass(frozen=True, slots=True)
class RenewConflict:
    """The key is not as we left it."""


@dataclass(frozen=True, slots=True)
class RenewFailed:
    why: str


@dataclass(frozen=True, slots=True)
class KeptAlive:
    """The etcd lease now has ``remaining_s`` seconds."""

    remaining_s: float


@dataclass(frozen=True, slots=True)
class KeepAliveLost:
    """The registry no longer knows the etcd lease."""


@dataclass(frozen=True, slots=True)
class KeepAliveFailed:
    why: str


@dataclass(frozen=True, slots=True)
class Released:
    pass


@dataclass(frozen=True, slots=True)
class ReleaseConflict:
    """The key is not as we saw it."""


@dataclass(frozen=True, slots=True)
class ReleaseFailed:
    why: str


@dataclass(frozen=True, slots=True)
class OwnPut:
    """The watch: a lease was written. Those that are not our concern are passed over, so the shell may hand on every put."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class OwnDeleted:
    """The watch: our key is gone. ``revision`` is that of the batch that said so, 0 where unknown."""

    revision: int = 0


@dataclass(frozen=True, slots=True)
class OwnDefaced:
    """The watch: a value that cannot be read was written. Keys other than ours are passed over."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The watch stands again: what it stands on may have lost our lease, and no event would ever tell. What is there is Overheard a
    little later: all hosts hear of this at one moment, and may not all list.
    """


@dataclass(frozen=True, slots=True)
class SubnetFreed:
    """The watch: a key is gone; of our own it means what OwnDeleted means. ``revision`` as there."""

    subnet: IPNetwork
    subnet6: IPNetwork | None = None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class AttrsChanged:
    """We publish something else from now on (a new MAC, another address)."""

    attrs: LeaseAttrs


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """The network is another one from now on."""

    config: NetworkConfig


Event = (
    Started
    | Woke
    | Listed
    | Overheard
    | ListFailed
    | Created
    | CreateTaken
    | CreateFailed
    | Renewed
    | RenewConflict
    | RenewFailed
    | KeptAlive
    | KeepAliveLost
    | KeepAliveFailed
    | Released
    | ReleaseConflict
    | ReleaseFailed
    | OwnPut
    | OwnDeleted
    | OwnDefaced
    | Reconnected
    | SubnetFreed
    | AttrsChanged
    | ConfigChanged
)

# ------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class List:
    """Read every lease."""


@dataclass(frozen=True, slots=True)
class Create:
    """Take a subnet that nobody holds."""

    subnet: IPNetwork
    subnet6: IPNetwork | None
    attrs: LeaseAttrs
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Write ``attrs`` under ``lease.key`` if it is still at ``lease.mod_revision``. ``ttl_s`` 0: a reservation, no etcd lease."""

    lease: Lease
    attrs: LeaseAttrs
    ttl_s: int


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Extend the etcd lease to its full time."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Release:
    """Delete ``lease.key`` if it is still at ``lease.mod_revision``."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send Woke at ``when``, in the seconds of ``now``. The latest WakeAt replaces those before."""

    when: float


@dataclass(frozen=True, slots=True)
class Hold:
    """We hold this now: a new lease, or the same one as it is now. Peers and subnet file follow from it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Lost:
    """We hold this no longer. The kernel stays as it is until the next Hold."""

    lease: Lease
    why: str


@dataclass(frozen=True, slots=True)
class Tell:
    """The condition ``code`` (core/conditions) holds, with this detail."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Clear:
    """The condition ``code`` holds no longer."""

    code: str


Ask = List | Create | Renew | KeepAlive | Release
"""What goes to the registry; at most one of them is under way."""

Action = Ask | WakeAt | Hold | Lost | Tell | Clear
