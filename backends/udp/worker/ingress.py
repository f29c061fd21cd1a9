"""Who may send us what? The ingress filter: source validation of what comes from the wire, and whose destination it may have.

flannel has none. What it carries legitimately must pass by default: where nobody masquerades, a remote host's own address, a client
that another host routes into the overlay, and what a NodePort forwards are inner sources outside the Network.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import inet_aton
from typing import Literal

from backends.udp.counters import IN_INNER_SOURCE, IN_OUTER_SOURCE
from backends.udp.protocol import Block, Guard, Setting
from backends.udp.worker.own_addresses import OwnAddresses
from backends.udp.worker.peers import PeerTable

PASSED: Literal[-1] = -1
"""The verdict on what may go on; every other one is an index of COUNTERS."""


class IngressFilter:
    """The rule of one ``guard`` (protocol.GUARDS) for the host of subnet ``own`` in the Network ``overlay``.

    ``is_ours`` says of an address outside the Network whether this host has it: the device takes such a source (accept_local), so
    it must not come from the wire.
    """

    __slots__ = ("_is_ours", "_overlay", "_overlay_shift", "_strict", "inner", "outer", "own", "own_shift", "peers")

    def __init__(self, peers: PeerTable, own: Block, overlay: Block, guard: Guard, is_ours: Callable[[int], bool]) -> None:
        self.peers = peers
        self.own_shift = 32 - own[1]
        self.own = own[0] >> self.own_shift
        self._is_ours = is_ours
        self.set_overlay(overlay)
        self.set_guard(guard)

    def set_guard(self, guard: Guard) -> None:
        """Judge by this rule from now on."""
        self.outer = guard != "off"
        self.inner = guard in ("default", "strict")
        self._strict = guard == "strict"

    def set_overlay(self, overlay: Block) -> None:
        """The whole Network is this from now on."""
        self._overlay_shift = 32 - overlay[1]
        self._overlay = overlay[0] >> self._overlay_shift

    def judge(self, source: int, sender: str) -> int:
        """May ``sender`` send what has this inner ``source``, which is in no subnet of its own?"""
        if not self.peers.knows(sender):
            return IN_OUTER_SOURCE
        if source >> self._overlay_shift == self._overlay:
            return IN_INNER_SOURCE
        if self._strict:
            return PASSED if source == int.from_bytes(inet_aton(sender), "big") else IN_INNER_SOURCE
        return IN_INNER_SOURCE if self._is_ours(source) else PASSED


def make_ingress(setting: Setting, peers: PeerTable, clock: Callable[[], float]) -> IngressFilter:
    """The filter that ``setting`` asks for, on a real host."""
    own, overlay = (setting.network, setting.length), (setting.overlay, setting.overlay_length)
    return IngressFilter(peers, own, overlay, setting.guard, OwnAddresses(clock).holds)
