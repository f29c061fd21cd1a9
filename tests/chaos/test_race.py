"""Two hundred hosts want a subnet at one moment: everybody gets one, nobody another's; one too many is told so, and served later.

m1 ... m200 --- one moment ---> etcd: 200 leases, all distinct
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from flannelpy.core.config import NetworkConfig
from netns_lab.etcd import Etcd
from netns_lab.race import Race

MACHINES = 200
WITHIN_S = 60.0
WIDE = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
EXACT = '{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.200.0","Backend":{"Type":"vxlan"}}'


@pytest.fixture(scope="module")
def started() -> Iterator[Etcd]:
    with Etcd() as running:
        yield running


@pytest.fixture
def etcd(started: Etcd) -> Iterator[Etcd]:
    yield started
    started.ctl("del", "--prefix", "/coreos.com/network")


async def test_all_are_served_where_there_is_room(etcd: Etcd) -> None:
    async with Race.at(etcd.endpoint(), NetworkConfig.parse(WIDE)) as race:
        race.start(MACHINES)
        await race.served(WITHIN_S)
        assert await race.faults() == []


async def test_the_last_subnet_finds_its_host_and_one_too_many_waits_for_the_next(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The freed subnet is taken where its deletion is seen, not when the next look is due: that is an hour away here."""
    monkeypatch.setattr("flannelpy.core.leasing.NO_ROOM_S", (3600.0, 3600.0))
    config = NetworkConfig.parse(EXACT)
    assert config.v4 is not None
    assert config.v4.count == MACHINES
    async with Race.at(etcd.endpoint(), config) as race:
        race.start(MACHINES)
        await race.served(WITHIN_S)
        assert await race.faults() == []

        (late,) = race.start()
        await race.until(lambda: late.no_room, WITHIN_S)
        expected = r"no free subnet: 200 of 200 in 10\.5\.0\.0/16 leased, oldest expires in (1 d|23 h 5\d min); waiting for one"
        assert re.fullmatch(expected, late.no_room), late.no_room

        leaver = race.machines.pop(17)
        freed = leaver.held
        await leaver.leave()
        await race.until(late.served.is_set, WITHIN_S)
        assert freed is not None
        assert late.held is not None
        assert late.held.subnet == freed.subnet
        assert late.no_room == ""
        assert await race.faults() == []
