"""Whose MAC is it? A copied state directory, a cloned machine, a MAC that somebody older has: each host finds one of its own.

c1 - h1 ==== vxlan ==== h2 - c2         etcd apart; h2 begins with what h1 has
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, Vtep, lab_name, mac, no_traceback, put_leased, until_said  # noqa: F401
from tests.lab.host_support import change, published, until_nothing_is_wrong, until_they_meet

ONE, OTHER = "1" * 32, "2" * 32
"""machine-ids (machine-id(5))."""


def be_machine(host: Host, text: str) -> None:
    """From its next start on, the host's agent reads this machine-id."""
    host.machine_id = Path(host.directory / "machine-id")
    host.machine_id.write_text(f"{text}\n")


def copy_state(source: Host, target: Host) -> None:
    """The files of a whole image: state directory and subnet file."""
    shutil.copytree(source.state_dir, target.state_dir, dirs_exist_ok=True)
    shutil.copy(source.subnet_file, target.subnet_file)


@pytest.mark.parametrize("how", ["another machine", "a clone with its machine-id"])
@pytest.mark.topology(hosts=2)
async def test_what_was_copied_from_another_host_gives_no_mac(lab: Lab, how: str) -> None:
    one, two = lab.hosts
    be_machine(one, ONE)
    be_machine(two, OTHER if how == "another machine" else ONE)
    await one.start_agent()
    copy_state(one, two)
    log = Log.of(two)
    await two.start_agent()
    await until_said(log, "warning:", str(two.state_dir), "is not this machine's")
    await lab.connect_containers()
    await until_they_meet(lab, how)
    await until_nothing_is_wrong(one, two)
    assert await mac(one) != await mac(two)
    assert sorted(published(lab).values()) == ["192.168.50.11", "192.168.50.12"]
    # From now on it is its own: a restart changes nothing, and is not remarked on.
    own, log = await mac(two), Log.from_now(two)
    await two.agent.restart()
    assert await mac(two) == own
    assert log.lines("not this machine's") == []


@pytest.mark.topology(hosts=2)
async def test_the_same_machine_with_another_address_keeps_its_mac(lab: Lab) -> None:
    one, two = lab.hosts
    for host, text in ((one, ONE), (two, OTHER)):
        be_machine(host, text)
    await lab.start_agents()
    own, key = await mac(two), two.lease_key
    await two.agent.stop()
    await change(two, "link del flannel.1", "addr del 192.168.50.12/24 dev eth1", "addr add 192.168.50.112/24 dev eth1")
    await two.start_agent()
    await lab.connect_containers()
    await until_they_meet(lab, "another address, the same machine")
    assert (await mac(two), two.lease_key) == (own, key)
    assert sorted(published(lab).values()) == ["192.168.50.11", "192.168.50.112"]


@pytest.mark.topology(hosts=2)
async def test_a_mac_that_an_older_lease_has_is_exchanged_by_the_younger_host(lab: Lab) -> None:
    """h2's device has, from before, the MAC of a host whose lease is older and alive."""
    one, two = lab.hosts
    older = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(lab, older.key, older.value)
    kind = "type vxlan id 1 dev eth1 local 192.168.50.12 dstport 8472 nolearning"
    await change(two, f"link add flannel.1 address {older.mac} {kind}")
    log = Log.of(two)
    await lab.start_agents()
    await until_said(log, "warning:", older.mac, "older")
    await lab.connect_containers()
    await until_they_meet(lab, "a MAC of its own")
    await until_nothing_is_wrong(one, two)
    assert await mac(two) != older.mac
    assert await older.missing(one) == []
