"""What is kept in the state directory, where a part of it cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.agent import publish
from flannelpy.agent.publish import Publisher
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.host import state as state_file
from flannelpy.host import view_file
from flannelpy.host.state import State
from flannelpy.host.view_file import KeptView
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import HostInMemory, until

OWN = Lease(IPNetwork("10.5.7.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), mod_revision=1)


def view(revision: int) -> KeptView:
    return KeptView("/p", "{}", OWN.key, (OWN,), revision)


async def nobody(_subnet: IPNetwork) -> bool:
    return False


def keep_state(publisher: Publisher) -> Callable[[int], Awaitable[None]]:
    async def keep(number: int) -> None:
        publisher.keep(State(f"/{number}"))

    return keep


def keep_view(publisher: Publisher) -> Callable[[int], Awaitable[None]]:
    async def keep(number: int) -> None:
        publisher.keep_view(lambda: view(number))

    return keep


def promise(publisher: Publisher) -> Callable[[int], Awaitable[None]]:
    async def keep(_number: int) -> None:
        await publisher.promise(OWN)

    return keep


KEEPS = {state_file.FILE: keep_state, view_file.FILE: keep_view, view_file.PROMISED: promise}
OTHERS = {state_file.FILE: (view_file.FILE, view_file.PROMISED), view_file.FILE: (state_file.FILE,)}


@pytest.mark.parametrize("broken", [state_file.FILE, view_file.FILE])
async def test_what_cannot_be_kept_is_told_until_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The other files of the directory are written all the time: that is no end of it."""
    monkeypatch.setattr(publish, "LOOK_S", 0.001)
    host = HostInMemory(MemoryStore(), tmp_path)
    context = host.context()
    publisher = Publisher(context, nobody, None)
    stands_there = host.settings.state_dir / broken
    stands_there.mkdir(parents=True)
    health = context.reporter.health
    running = asyncio.create_task(publisher.run())
    try:
        await KEEPS[broken](publisher)(0)
        await until(lambda: health.holds("state-dir"))
        others = [KEEPS[file](publisher) for file in OTHERS[broken]]
        for number in range(1, 20):
            for keep in others:
                await keep(number)
            await asyncio.sleep(0.002)
            assert health.holds("state-dir")
        for file in OTHERS[broken]:
            assert (host.settings.state_dir / file).is_file()
        stands_there.rmdir()
        await KEEPS[broken](publisher)(20)
        await until(lambda: not health.holds("state-dir"))
        assert stands_there.is_file()
    finally:
        running.cancel()


async def test_what_was_promised_is_in_the_next_view(tmp_path: Path) -> None:
    """A disk that was full for the moment of a promise: the next comes with the next change of our lease."""
    host = HostInMemory(MemoryStore(), tmp_path)
    context = host.context()
    publisher = Publisher(context, nobody, None)
    (host.settings.state_dir / view_file.PROMISED).mkdir(parents=True)
    await publisher.promise(OWN)
    assert context.reporter.health.holds("state-dir")
    publisher.keep(State("/p"))
    await publisher.close()
    assert context.reporter.health.holds("state-dir")
    publisher.keep_view(lambda: view(1))
    await publisher.close()
    assert not context.reporter.health.holds("state-dir")
