"""What must be known of one kind of device? The contract of a driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from flannelpy.core.objects import Link

D = TypeVar("D")


class Port(NamedTuple):
    """A UDP port that a device listens at, on the addresses of one IP version; devices of its kind share it, nobody else does."""

    version: int
    number: int


class Driver(Protocol[D]):
    """One kind of device. Pure: messages in, messages out."""

    def create(self, sequence: int, link: Link, detail: D, lower: int) -> bytes:
        """RTM_NEWLINK that makes the device and brings it up; ``lower`` is the index of its lower device, 0 for none."""
        ...

    def change(self, sequence: int, detail: D, lower: int, index: int) -> bytes:
        """RTM_NEWLINK that gives the device of this index the changeable part of ``detail``."""
        ...

    def read(self, data: dict[int, bytes], name_of: Callable[[int], str]) -> D | None:
        """What IFLA_INFO_DATA says, by number; None for a device that our words cannot say: it must be remade."""
        ...

    def lower(self, detail: D) -> str | None:
        """The name of the lower device that must be there."""
        ...

    def clash(self, detail: D, other: D) -> str:
        """What both have of which the kernel allows only one device, in words; empty where it would have both."""
        ...

    def port(self, detail: D) -> Port | None:
        """The UDP port that must be free when the device comes up."""
        ...
