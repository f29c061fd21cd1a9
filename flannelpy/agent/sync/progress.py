"""How far is the loop? What it has done for what the host is to be now, and what it may do."""

from __future__ import annotations

import asyncio


class Progress:
    """``settled``: a full round was applied; ``may_sweep``: what nobody asked for may go, and ``first_sweep``: none has yet;
    ``hastened``: when devices last were; ``unannounced``: the kernel has taken something of ours without a word.
    """

    def __init__(self) -> None:
        self.settled = False
        self.may_sweep = False
        self.first_sweep = False
        self.hastened = 0.0
        self.unannounced = False
        self.round_over = asyncio.Event()
