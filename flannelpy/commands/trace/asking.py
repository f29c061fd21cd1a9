"""Who answers? Echo requests of this host: to the destination, small and full, to its host through the overlay and beside it."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from netaddr import IPAddress

from flannelpy.core.errors import KernelError
from flannelpy.core.trace import Answers
from flannelpy.kernel import Heard, Kernel, PacketTooLargeError

TRIES, EVERY_S, PATIENCE_S = 3, 0.25, 1.0
"""Requests a question, between them, and after the last of them, in seconds."""

SMALL = 84
"""Bytes of a small request, with its IP header: as ping's."""

Question = tuple[IPAddress, int]
"""Whom, and with how many bytes."""


@dataclass(slots=True)
class Asked:
    """What became of a question: ``rtt_s`` of the first answer, None without one; ``carries``: see PacketTooLargeError."""

    rtt_s: float | None = None
    carries: int = 0
    error: str = ""
    lost: int = 0
    sent: dict[int, float] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        return self.rtt_s is not None


async def answers(kernel: Kernel, address: IPAddress, host: IPAddress | None, public: IPAddress | None, size: int) -> Answers:
    """Ask all three. Never raises: what cannot be asked is None."""
    asked = {(address, SMALL): Asked(), (address, size): Asked()}
    if host is not None and host != address:
        asked[host, SMALL] = Asked()
    if public is not None:
        asked[public, SMALL] = Asked()
    try:
        await ask(kernel, asked, enough=[(address, SMALL), (address, size)])
    except KernelError as error:
        return Answers(error=f"nobody can be asked: {error}", size=size)
    small, full = asked[address, SMALL], asked[address, size]
    beside = None if public is None else asked[public, SMALL]
    through = None if host is None or host == address else asked[host, SMALL]
    return Answers(
        small.answered,
        full.answered if not full.carries else None,
        None if through is None else through.answered,
        None if beside is None else beside.answered,
        small.rtt_s,
        full.carries,
        size,
        small.error,
    )


async def ask(kernel: Kernel, asked: Mapping[Question, Asked], *, enough: list[Question], tries: int = TRIES) -> None:
    """Ask until those of ``enough`` have answered, or time is up. Raises KernelError where there is no socket."""
    (version,) = {address.version for address, _size in asked}
    echo = kernel.echo(version)
    news = asyncio.Event()
    tokens: dict[int, Question] = {}
    try:
        echo.listen(news.set)
        for attempt in range(tries):
            for question, state in asked.items():
                if not state.answered and not state.carries:
                    token = secrets.randbits(64)
                    tokens[token] = question
                    state.sent[token] = time.monotonic()
                    try:
                        echo.send(question[0], token, question[1])
                    except PacketTooLargeError as error:
                        state.carries = error.mtu or question[1] - 1
                    except KernelError as error:
                        if error.code != errno.EPERM:  # the host's own firewall drops it: as lost as any other
                            state.error = f"this host cannot send to {question[0]}: {error}"
            until = time.monotonic() + (EVERY_S if attempt + 1 < tries else PATIENCE_S)
            while (left := until - time.monotonic()) > 0 and not _done(asked, enough):
                news.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await news.wait()
                _take(list(echo.receive()), tokens, asked)
            if _done(asked, enough):
                return
    finally:
        echo.close()


def _done(asked: Mapping[Question, Asked], enough: list[Question]) -> bool:
    return all(asked[each].answered or asked[each].carries for each in enough)


def _take(heard: list[object], tokens: Mapping[int, Question], asked: Mapping[Question, Asked]) -> None:
    for item in heard:
        question = tokens.get(getattr(item, "token", -1))
        if question is None:
            continue
        state = asked[question]
        if isinstance(item, Heard):
            if not item.request and item.address == question[0] and item.size >= question[1] and not state.answered:
                state.rtt_s = time.monotonic() - state.sent[item.token]
        else:
            state.error = f"{question[0]}: {getattr(item, 'why', '')}"
