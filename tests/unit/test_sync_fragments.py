"""Who is made first where more peers change than one round takes? Whoever changes least, and nobody is left out."""

from __future__ import annotations

import asyncio
import random

import pytest

from flannelpy.agent.report import Reporter
from flannelpy.agent.sync import fragments as module
from flannelpy.agent.sync.fragments import Fragments
from flannelpy.kernel.fake import FakeKernel
from tests.unit.syncing import AskedGateways, FailingKernel, PeersBook, mac_of, peer, target
from tests.unit.virtual_time import run

AT_ONCE = 10


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", AT_ONCE)


def made(book: PeersBook) -> Fragments:
    return Fragments(
        Reporter(asyncio.get_running_loop().time), book, AskedGateways(FailingKernel(FakeKernel([]))), FakeKernel([]).nexthops
    )


def holds(fragments: Fragments, number: int, mac: str) -> bool:
    """True where this peer is desired with this MAC."""
    return any(mac in str(item) for item in fragments.desired.fragment(peer(number).key))


def test_whoever_changes_all_the_time_keeps_nobody_else_away() -> None:
    async def play() -> None:
        book = PeersBook()
        fragments = made(book)
        fragments.set_target(target())
        await fragments.refresh()
        for turn in range(30):
            for number in range(10, 110):
                book.put(peer(number, mac=mac_of(turn % 200)))
            if turn == 20:
                book.put(peer(5, mac="02:00:00:00:55:55"))
            await fragments.refresh()
            assert fragments.waiting
            assert fragments.knows(peer(5).key) == (turn >= 20)

    run(play())


@pytest.mark.parametrize("seed", range(10))
def test_in_the_end_all_are_as_they_were_last(seed: int) -> None:
    async def play() -> None:
        dice, book, last = random.Random(seed), PeersBook(), dict[int, str | None]()
        fragments = made(book)
        fragments.set_target(target())
        for turn in range(60):
            for _ in range(dice.choice([0, 3, 40])):
                number, mac = dice.randint(1, 60), mac_of(dice.randint(0, 250))
                last[number] = mac if dice.random() < 0.7 else None
                if last[number] is None:
                    book.drop(peer(number).key)
                else:
                    book.put(peer(number, mac=mac))
            if turn == 30:
                fragments.set_target(target())  # all at once
            await fragments.refresh()
        while fragments.waiting:
            await fragments.refresh()
        macs = list(last.values())
        for number, mac in last.items():
            assert fragments.knows(peer(number).key) == (mac is not None)
            if mac is not None and macs.count(mac) == 1:  # of two with one MAC the older has it
                assert holds(fragments, number, mac)

    run(play())


@pytest.mark.parametrize("direct", [True, False])
def test_who_leaves_while_all_are_made_anew_is_gone(direct: bool) -> None:
    async def play() -> None:
        book = PeersBook()
        fragments = made(book)
        fragments.set_target(target())
        book.put(peer(2))
        book.put(peer(3))
        await fragments.refresh()
        book.drop(peer(2).key)
        fragments.set_target(target({"Type": "vxlan", "DirectRouting": direct}))
        await fragments.refresh()
        assert [fragments.knows(peer(number).key) for number in (2, 3)] == [False, True]
        assert not fragments.desired.fragment(peer(2).key).objects

    run(play())


def test_who_departs_and_returns_costs_nothing_and_is_younger_meanwhile() -> None:
    async def play() -> None:
        book, same = PeersBook(), mac_of(2)
        fragments = made(book)
        fragments.set_target(target())
        book.put(peer(2))
        await fragments.refresh()
        book.put(peer(2).depart())
        assert await fragments.refresh() == set()
        book.put(peer(3, mac=same))
        await fragments.refresh()
        assert holds(fragments, 3, same)
        assert list(fragments.desired.conflicts) == [peer(2).key]
        book.put(peer(2))
        await fragments.refresh()
        assert list(fragments.desired.conflicts) == [peer(3).key]

    run(play())
