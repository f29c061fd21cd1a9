"""What is said, and what is kept, where etcd answers and refuses?

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd is full, asks for a user that nobody gave, is reached by a proxy or a learner
"""

from __future__ import annotations

import asyncio
import json

import pytest

from netns_lab.etcd import EtcdFailedError
from netns_lab.lab import PREFIX, Lab
from tests.chaos.chaos_support import LATE, put_peer, unharmed
from tests.lab.agent_support import Log, until, until_programmed, until_said, vtep

SHORT = ("--subnet-lease-ttl=6",)
"""Extended every 2 s, and rewritten every 3."""


def fill_up(lab: Lab) -> None:
    """Until etcd raises its alarm."""
    while True:
        try:
            lab.etcd.ctl("put", "/elsewhere", stdin="x" * 1_000_000)
        except EtcdFailedError as error:
            if "database space exceeded" in str(error):
                return
            raise


def make_room(lab: Lab) -> None:
    """As the remedy says."""
    lab.etcd.compact()
    lab.etcd.ctl("defrag")
    lab.etcd.ctl("alarm", "disarm")


@pytest.mark.topology(hosts=2)
@pytest.mark.etcd(options=("--quota-backend-bytes=16000000",))
async def test_an_etcd_without_space_loses_no_lease_and_is_told_as_that(lab: Lab) -> None:
    """For four times as long as a lease lives. Writes are refused, extensions are not."""
    await lab.start_agents(*SHORT)
    await lab.connect_containers()
    one = lab.host(1)
    own, log = await vtep(one), Log.from_now(one)
    async with unharmed(lab, "etcd without space for four leases' time"):
        fill_up(lab)
        said = await until_said(log, "etcd takes no more writes: database space exceeded", timeout_s=15)
        assert "does not answer" not in said
        grants = len(lab.etcd.ctl("lease", "list").splitlines())
        await asyncio.sleep(24)
        assert lab.etcd.get(own.key) == own.value
        assert len(lab.etcd.ctl("lease", "list").splitlines()) <= grants
        assert len(log.lines("database space")) == 1
        make_room(lab)
        await until_said(log, "resolved: ", "database space", timeout_s=15)
        put_peer(lab, LATE)
        await until_programmed(one, LATE, timeout_s=5)
    assert log.lines("does not answer") == []
    assert log.lines("lost our lease") == []


@pytest.mark.topology(hosts=2)
async def test_auth_that_is_switched_on_under_way_is_told_once(lab: Lab) -> None:
    await lab.start_agents(*SHORT)
    await lab.connect_containers()
    one = lab.host(1)
    own, log = await vtep(one), Log.from_now(one)
    async with unharmed(lab, "auth switched on under agents that have no name"):
        lab.etcd.enable_auth("sesame")
        said = await until_said(log, "etcd refuses us", timeout_s=15)
        assert "expected --etcd-username" in said
        await asyncio.sleep(20)
        assert len(log.begun("etcd refuses us")) <= 2  # writes, and reads where any were tried
        assert log.lines("does not answer") == []
        lab.etcd.disable_auth()
        await until_said(log, "resolved: ", "etcd refuses us", timeout_s=15)
        await until(lambda: lab.etcd.get(own.key) == own.value, 5, "the lease is there")
    assert json.loads(own.value)["PublicIP"] in lab.etcd.ctl("get", "--prefix", PREFIX)
