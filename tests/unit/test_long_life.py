"""An agent lives for months among peers that come and go: does anything in it grow?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.context import Timeouts
from flannelpy.agent.view import Cursor
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, vxlan_value
from tests.unit.virtual_time import run

STANDING = 5


def lease(number: int, at: int) -> Lease:
    return Lease(IPNetwork(f"10.5.{number}.0/24"), LeaseAttrs(IPAddress(f"192.0.2.{at}"), None, "vxlan"))


TURNS = st.lists(
    st.one_of(st.tuples(st.integers(0, 7), st.integers(0, 3)), st.sampled_from(["take", "leave", "rewind"])), max_size=60
)


@given(TURNS)
def test_who_takes_now_and_then_knows_what_there_is_and_no_more_is_kept(turns: list[tuple[int, int] | str]) -> None:
    """A peer at 0 went."""
    peers: dict[str, Lease] = {}
    known: dict[str, Lease] = {}
    cursor, left, most = Cursor(peers, lambda: None), True, 0

    def take() -> None:
        for key, now in cursor.take().items():
            if now is None:
                known.pop(key, None)
            else:
                known[key] = now

    for turn in turns:
        if isinstance(turn, tuple):
            number, at = turn
            key = str(number)
            if at:
                peers[key] = lease(number, at)
            elif peers.pop(key, None) is None:
                continue
            cursor.note({key: peers.get(key)})
        elif turn == "take":
            take()
            assert known == peers
            left = False
        elif turn == "leave":
            most, left = (most if left else len({*peers, *known, *cursor._changed})), True
            cursor.leave()
        else:
            cursor.rewind()
        if left:
            assert len(cursor._changed) <= len(peers) + most
    take()
    assert known == peers


async def lived(folder: Path, probe: bool, comers: int) -> int:
    """How much is kept of what happened to the peers, after so many have come and gone."""
    host = HostInMemory(MemoryStore(), folder, probe=probe)
    host.timeouts = Timeouts(expired_s=10.0)
    host.put_config({**VXLAN, "Network": "10.0.0.0/8", "SubnetMin": "10.200.0.0"})
    async with host.run():
        for number in range(comers):
            key = f"10.{number >> 8}.{number & 255}.0-24"
            host.put_peer(key, vxlan_value(f"192.0.2.{100 + number % 100}", f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"))
            await asyncio.sleep(2.0)
            if number >= STANDING:
                gone = number - STANDING
                host.delete(f"10.{gone >> 8}.{gone & 255}.0-24")
        await asyncio.sleep(30.0)
        assert host.agent is not None
        assert host.agent._network is not None
        cluster = host.agent._network.cluster
        assert len(cluster.view.peers) == STANDING
        return max(len(cursor._changed) for cursor in cluster._cursors)


@pytest.mark.parametrize("probe", [True, False])
def test_what_came_and_went_is_forgotten_by_whoever_does_not_follow(
    probe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend of the kernel has no datapath that takes the peers; and where peers are not probed nobody takes those either."""
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    assert run(lived(tmp_path, probe, 60)) <= STANDING
