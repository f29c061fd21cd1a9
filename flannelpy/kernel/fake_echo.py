"""Who answers an echo request in memory? Everybody at once, unless a test's ``silent`` says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.kernel import Heard, Refused

Silent = Callable[[IPAddress, int], bool]
"""Whether nothing comes back from this address to a packet of so many bytes."""


class Air:
    """What is around a host: who answers, and every socket that was opened."""

    def __init__(self) -> None:
        self.silent: Silent = lambda _address, _size: False
        self.echoes: list[FakeEcho] = []
        self.refusal: KernelError | None = None
        """What the kernel says to whoever wants to send."""

    def open(self, version: int) -> FakeEcho:
        self.echoes.append(FakeEcho(version, self))
        return self.echoes[-1]


class FakeEcho:
    """An ICMP socket of a host in memory."""

    def __init__(self, version: int, air: Air) -> None:
        self.version = version
        self.sent: list[tuple[IPAddress, int]] = []
        self.requests = False
        self.closed = False
        self._air = air
        self._heard: list[Heard | Refused] = []
        self._tell: Callable[[], None] = lambda: None

    def listen(self, heard: Callable[[], None]) -> None:
        self._tell = heard

    def hear_requests(self, wanted: bool) -> None:
        self.requests = wanted

    def send(self, address: IPAddress, token: int, size: int) -> None:
        if self._air.refusal is not None:
            raise self._air.refusal
        self.sent.append((address, size))
        if not self._air.silent(address, size):
            self.come(Heard(address, token, size))

    def come(self, item: Heard | Refused) -> None:
        """Another hand: this comes in."""
        self._heard.append(item)
        asyncio.get_running_loop().call_soon(self._tell)

    def receive(self) -> Iterable[Heard | Refused]:
        heard, self._heard = self._heard, []
        return heard

    def close(self) -> None:
        self.closed = True
