"""How many ICMP errors are too many? So many in a second, and no more than a share of them to one address.

The clock is the caller's: ``now`` in seconds, never running backwards.
"""

from __future__ import annotations

PER_S, BURST = 1000.0, 50.0
"""Of one worker. Linux's own: icmp_msgs_per_sec, icmp_msgs_burst (ip-sysctl.rst)."""

SHARE_PER_S, SHARE_BURST = 100.0, 20.0
"""To one address, so that a container which floods does not silence what others need to hear. A traceroute asks three at once."""

MOST_SHARES = 1024
"""Addresses that are remembered; then all are forgotten. The whole is limited all the same."""


class Bucket:
    """Tokens that come back at a steady rate."""

    __slots__ = ("_burst", "_per_s", "_since", "_tokens")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens, self._since = burst, now

    def take(self, now: float) -> bool:
        """Take one; False where there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._per_s)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimit:
    """Who may be sent another one now."""

    __slots__ = ("_all", "_shares")

    def __init__(self, now: float) -> None:
        self._all = Bucket(PER_S, BURST, now)
        self._shares: dict[int, Bucket] = {}

    def allows(self, address: int, now: float) -> bool:
        """One to ``address``; it is counted where it is allowed."""
        share = self._shares.get(address)
        if share is None:
            if len(self._shares) >= MOST_SHARES:
                self._shares.clear()
            share = self._shares[address] = Bucket(SHARE_PER_S, SHARE_BURST, now)
        return share.take(now) and self._all.take(now)
