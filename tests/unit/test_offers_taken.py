"""Our subnet is another host's now: is what that one offers beside it heard?"""

from __future__ import annotations

import pytest

from tests.unit.agents import HostInMemory, until, vxlan_value
from tests.unit.test_prefer_agent import PREFER, host, offer, offering, way  # noqa: F401

THIEF, THIEFS_MAC = "192.0.2.50", "02:00:00:00:00:50"


@pytest.mark.parametrize("first", ["lease", "offer"])
async def test_what_whoever_has_our_subnet_now_offers_is_heard(host: HostInMemory, first: str) -> None:  # noqa: F811
    """After a partition: our key has expired, another host has it and offers something beside it, before we have another."""
    async with host.run():
        lost = host.lease
        taken = [lambda: host.put_peer(lost, vxlan_value(THIEF, THIEFS_MAC)), lambda: offering(host, offer(THIEF, "host-gw"), lost)]
        for each in taken if first == "lease" else reversed(taken):
            each()
        await until(lambda: host.lease != lost)
        number = int(lost.split(".")[2])
        await until(lambda: way(host, number).startswith("10.5."))
        await until(lambda: way(host, number) == f"10.5.{number}.0/24 via {THIEF} dev eth1")
