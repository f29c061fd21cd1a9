"""How far is the loop? What it has done for what the host is to be now, and what it may do."""

from __future__ import annotations

import asyncio

from flannelpy.core.objects import Key


class Progress:
    """``settled``: a full round was applied; ``may_sweep``: what nobody asked for may go, and ``first_sweep``: none has yet;
    ``hastened``: when devices last were; ``unannounced``: the kernel has taken something of ours without a word; ``changed``: what
    is desired has changed under these since a round went well.
    """

    def __init__(self) -> None:
        self.settled = False
        self.may_sweep = False
        self.first_sweep = False
        self.hastened = 0.0
        self.unannounced = False
        self.changed: set[Key] = set()
        self.round_over = asyncio.Event()
