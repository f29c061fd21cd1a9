"""Who tells the neighbours on the underlay that this host has another hardware address there? The agent, a few times over.

An uplink that was made anew, or changed its MAC, leaves every neighbour sending to the address of before until its entry times out:
etcd's answers are lost for half a minute, and so are the peers' packets.
"""

from __future__ import annotations

import asyncio
import logging

from flannelpy.agent.facts import Facts
from flannelpy.core.errors import KernelError
from flannelpy.kernel import Kernel

log = logging.getLogger("flannelpy")

AFTER_S = (0.1, 0.4, 1.0, 3.0, 10.0)
"""The pauses before each time: a link that has just come up may lose the first, and a neighbour believes no second news within a
second (arp(7) locktime); whoever is heard of later is asked later."""


async def introduce(kernel: Kernel, facts: Facts) -> None:
    """Each time that the uplink is another card, make the neighbours learn it, for ever."""
    while True:
        await facts.another_card.wait()
        facts.another_card.clear()
        for pause_s in AFTER_S:
            await asyncio.sleep(pause_s)
            if facts.another_card.is_set():
                break
            if facts.uplink is None or facts.missing:
                continue
            try:
                await kernel.reintroduce(facts.uplink.index)
            except KernelError as error:
                log.debug("the neighbours on %s were not asked: %s", facts.uplink.name, error)
