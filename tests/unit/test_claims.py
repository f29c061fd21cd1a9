"""Two agents of one machine: who has a device, a port or a network has it alone, and what is not ours is let alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest

from flannelpy.agent import ownership
from flannelpy.agent.lock import Claimant, Claims, Held
from flannelpy.core.objects import Key
from flannelpy.registry.memory import MemoryStore

from .agents import VXLAN, HostInMemory, until

OTHER = Claimant(1, "/run/blue", "/blue")


@pytest.fixture
def host(tmp_path: Path) -> HostInMemory:
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    return made


@pytest.fixture
def other(host: HostInMemory) -> Claims:
    """Another agent of the same machine."""
    return Claims(OTHER, host.claims.directory)


async def test_what_another_agent_has_is_not_touched_and_its_owner_is_named(host: HostInMemory, other: Claims) -> None:
    assert other.claim(["device flannel.1"]) is None
    async with host.run(ready=False):
        await until(lambda: "claimed" in host.conditions())
        told = "another agent of this host has what this network needs: device flannel.1 belongs to another flannelpy"
        assert host.conditions()["claimed"].startswith(f"{told} (process 1, --run-dir /run/blue, network /blue)")
        assert not host.ready
        assert host.kernel.get(Key("link", "flannel.1")) is None
        assert host.published() == {}  # not even a lease
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "VNI": 2}})
        await until(lambda: host.ready and host.conditions() == {})
        assert host.kernel.get(Key("link", "flannel.2")) is not None
    assert other.names == {"device flannel.1"}


async def test_a_config_that_another_agent_stands_against_leaves_all_as_it_was(host: HostInMemory, other: Claims) -> None:
    assert other.claim(["device flannel.2"]) is None
    async with host.run():
        await until(lambda: host.settled)
        before = host.state()
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "VNI": 2}})
        await until(lambda: "claimed" in host.conditions())
        assert host.state() == before
        host.put_config(VXLAN)
        await until(lambda: host.ready and host.conditions() == {})
        assert host.state() == before


async def test_what_an_earlier_life_left_is_not_swept_where_it_is_anothers_now(host: HostInMemory, other: Claims) -> None:
    async with host.run():
        await until(lambda: host.settled)
    assert other.claim(["device flannel.1"]) is None
    host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "VNI": 2}})
    async with host.run():
        await until(lambda: host.settled)
        assert host.kernel.get(Key("link", "flannel.1")) is not None
        assert host.kernel.get(Key("link", "flannel.2")) is not None


async def test_what_was_given_up_may_be_had_by_another(host: HostInMemory, other: Claims) -> None:
    async with host.run():
        await until(lambda: host.settled)
        assert other.claim(["device flannel.1"]) is not None
        host.put_config({**VXLAN, "Backend": {"Type": "vxlan", "VNI": 2}})
        await until(lambda: host.kernel.get(Key("link", "flannel.1")) is None)
        await until(lambda: other.claim(["device flannel.1"]) is None)
        assert other.claim(["device flannel.2"]) is not None
    assert other.claim(["device flannel.2"]) is None


@pytest.mark.parametrize("seed", range(2))
async def test_an_agent_that_is_restarted_finds_what_it_left(
    host: HostInMemory, other: Claims, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it leaves it alone for a while, however often it looks."""
    random, away = Random(seed), False
    monkeypatch.setattr(ownership, "LEFT_ALONE_S", 3600.0)
    assert other.claim(["device flannel.1"]) is None
    async with host.run(ready=False):
        await until(lambda: "claimed" in host.conditions())
        for _ in range(10):
            (other.release if not away else other.claim)(["device flannel.1"])
            away = not away
            for _ in range(random.randrange(4)):
                assert host.agent is not None
                host.agent.audit()
                await asyncio.sleep(0.001)
            assert host.kernel.get(Key("link", "flannel.1")) is None
        assert other.claim(["device flannel.1"]) is None
        monkeypatch.setattr(ownership, "LEFT_ALONE_S", 0.0)
        other.close()
        await until(lambda: host.ready and host.conditions() == {})


async def test_however_often_it_is_asked_one_timer_tries_again(
    host: HostInMemory, other: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' news have it look meanwhile; that makes no more looks of its own."""
    monkeypatch.setattr(ownership, "CLAIM_AGAIN_S", 0.1)
    assert other.claim(["device flannel.1"]) is None
    claim, asked = host.claims.claim, [0]

    def counted(names: Iterable[str]) -> Held | None:
        asked[0] += 1
        return claim(names)

    monkeypatch.setattr(host.claims, "claim", counted)
    async with host.run(ready=False):
        for turn in range(30):
            assert host.agent is not None
            host.agent.audit()
            await until(lambda turn=turn: asked[0] > turn)
        before, began = asked[0], asyncio.get_running_loop().time()
        await until(lambda: asked[0] >= before + 10)
        assert asyncio.get_running_loop().time() - began >= 5 * 0.1  # some of the ten may be answers to the last news
