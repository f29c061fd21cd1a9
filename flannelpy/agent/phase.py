"""How sure are we of what we know, and what may be done on the strength of it?"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """How sure we are of what we know. ``may_publish``: others may hear that we are up; ``may_sweep``: what nobody wants may go."""

    WAITING = ("waiting", False, False)
    """Neither etcd nor the disk has told a network yet."""
    RESUMED = ("resumed", False, False)
    """Taken up from disk because packets wait; etcd has a moment to correct it."""
    FROM_DISK = ("from disk", True, False)
    """Taken up from disk; etcd does not answer."""
    CONFIRMED = ("confirmed", True, True)
    """etcd has answered, and the lease is held."""

    def __init__(self, words: str, may_publish: bool, may_sweep: bool) -> None:
        self.words = words
        self.may_publish = may_publish
        self.may_sweep = may_sweep
