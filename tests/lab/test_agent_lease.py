"""Does the host keep its subnet whatever happens to its key, and give it up only to somebody who has it?

c1 10.1.72.2 - h1 192.168.50.11 ==== vxlan 1 ==== h2 192.168.50.12 - c2 10.1.9.2         etcd: h1's key is deleted, revoked, taken
"""

from __future__ import annotations

import shutil

import pytest

from netns_lab.lab import Lab
from tests.lab.agent_support import (  # noqa: F401
    DAY_S,
    SUBNETS,
    Log,
    Vtep,
    grant,
    lab_name,
    lease_of,
    losing_nothing,
    no_traceback,
    put_leased,
    record,
    remember_subnet,
    routes,
    settled_overlay,
    shell,
    time_to_live,
    until,
    until_gone,
    until_programmed,
    until_said,
    vtep,
)


async def start(lab: Lab) -> tuple[Vtep, Vtep]:
    """Two hosts with subnets that a test can name."""
    remember_subnet(lab.host(1), "10.1.72.0/24", "10.1.0.0/16")
    remember_subnet(lab.host(2), "10.1.9.0/24", "10.1.0.0/16")
    await lab.start_agents()
    await lab.connect_containers()
    return await vtep(lab.host(1)), await vtep(lab.host(2))


@pytest.mark.parametrize("how", ["key deleted", "lease revoked", "all keys deleted"])
@pytest.mark.topology(hosts=2)
async def test_an_own_key_that_vanishes_comes_again_without_a_lost_ping(lab: Lab, how: str) -> None:
    own, peer = await start(lab)
    value, lease = lab.etcd.get(own.key), lease_of(lab, own.key)
    async with losing_nothing(lab, "c1", "c2"):
        if how == "key deleted":
            lab.etcd.delete(own.key)
        elif how == "lease revoked":
            lab.etcd.ctl("lease", "revoke", f"{lease:x}")
        else:
            lab.etcd.ctl("del", "--prefix", SUBNETS)
        await until(lambda: lab.etcd.get(own.key) == value, 3, "the key is there again")
        await until(lambda: lab.etcd.get(peer.key) is not None, 3, "the peer's key is there again")
        await until_programmed(lab.host(1), peer)
        await until_programmed(lab.host(2), own)
    again = lease_of(lab, own.key)
    assert again != 0
    assert time_to_live(lab, again)[0] == DAY_S
    assert await vtep(lab.host(1)) == own
    assert Log.of(lab.host(1)).lines(own.subnet)


@pytest.mark.topology(hosts=2)
async def test_a_reservation_stays_one_through_start_and_restart(lab: Lab) -> None:
    """A key without an etcd lease never expires; the shortest value that reserves is the address alone (flannel-compat 4.6)."""
    one = lab.host(1)
    key = f"{SUBNETS}/10.1.50.0-24"
    lab.etcd.put(key, '{"PublicIP":"192.168.50.11"}')
    await lab.start_agents()
    assert str(one.subnet) == "10.1.50.0/24"
    own = await vtep(one)
    assert lab.etcd.get(key) == own.value  # filled in
    assert lease_of(lab, key) == 0
    await until_programmed(lab.host(2), own)
    await one.agent.restart()
    await one.agent.kill()
    await one.start_agent()
    assert await vtep(one) == own
    assert lease_of(lab, key) == 0
    # While it runs: somebody turns the lease into a reservation, with the same value.
    await one.agent.stop()
    lab.etcd.delete(key)
    await one.start_agent()
    assert lease_of(lab, key) != 0
    log = Log.from_now(one)
    lab.etcd.put(key, own.value)
    lab.etcd.put(f"{SUBNETS}/garbage", "so that we know when it was seen")
    await until_said(log, "garbage")
    await one.agent.restart()
    assert lease_of(lab, key) == 0
    assert lab.etcd.get(key) == own.value


@pytest.mark.topology(hosts=2)
async def test_somebody_else_takes_our_key_and_we_move_on_and_say_so(lab: Lab) -> None:
    one = lab.host(1)
    own, peer = await start(lab)
    thief = Vtep(own.subnet, "192.168.50.99", "02:00:00:00:00:99")
    log = Log.from_now(one)
    put_leased(lab, thief.key, thief.value)
    await until(lambda: str(one.subnet) != own.subnet, 5, "another subnet in subnet.env", lambda: log.text)
    new = await until_moved(lab, own)
    await until_said(log, own.subnet)
    await until_said(log, new.subnet)
    assert lab.etcd.get(thief.key) == thief.value  # it is theirs
    assert lab.etcd.get(new.key) == new.value
    assert one.subnet_file.read_text() == (
        f"FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET={new.base[:-1]}1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    # The old subnet's route is docker0's until Docker has taken the new one; then we reach both.
    await until_programmed(one, peer)
    await lab.connect_containers()
    await until_programmed(one, thief)
    await until_programmed(lab.host(2), new, thief)
    assert [line for line in await shell(one, "ip -4 addr show dev flannel.1") if "inet" in line] == [
        f"inet {new.base}/32 scope global flannel.1"
    ]
    assert (await lab.ping("c1", "c2")).ok
    assert not log.lines("lease cannot be used", new.base)  # our own new key is no news to ourselves
    # It says so until Docker has taken it; a restart keeps the new one.
    await one.agent.restart()
    assert await vtep(one) == new


async def until_moved(lab: Lab, old: Vtep) -> Vtep:
    """h1 as it is once its device has another address."""
    one = lab.host(1)

    async def moved() -> bool:
        return f"{one.subnet.ip}/32" in await one.exec("ip", "-4", "addr", "show", "dev", "flannel.1")

    await until(moved, 3, "the device has the new address")
    return await vtep(one)


@pytest.mark.parametrize("state", ["state kept", "state lost"])
@pytest.mark.topology(hosts=2)
async def test_an_emptied_registry_gives_the_same_subnet_again(lab: Lab, state: str) -> None:
    """subnet.env is enough, as with flanneld."""
    one = lab.host(1)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    await one.start_agent()
    assert str(one.subnet) == "10.1.72.0/24"
    await one.agent.stop()
    lab.etcd.ctl("del", "--prefix", SUBNETS)
    if state == "state lost":
        shutil.rmtree(one.state_dir)
    await one.start_agent()
    assert str(one.subnet) == "10.1.72.0/24"
    assert lab.etcd.keys(SUBNETS) == [f"{SUBNETS}/10.1.72.0-24"]


@pytest.mark.topology(hosts=2)
async def test_a_previous_subnet_that_others_have_is_not_asked_for(lab: Lab) -> None:
    one = lab.host(1)
    other = Vtep("10.1.72.0/24", "192.168.50.99", "02:00:00:00:00:99")
    put_leased(lab, other.key, other.value)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    await one.start_agent()
    assert str(one.subnet) != "10.1.72.0/24"
    assert lab.etcd.get(other.key) == other.value
    await until_programmed(one, other)


@pytest.mark.topology(hosts=1, containers=0)
async def test_a_previous_subnet_outside_the_network_is_not_asked_for(lab: Lab) -> None:
    one = lab.host(1)
    remember_subnet(one, "10.77.72.0/24", "10.77.0.0/16")
    await one.start_agent()
    assert str(one.subnet).startswith("10.1.")


@pytest.mark.topology(hosts=1, containers=0)
async def test_a_lease_with_our_address_is_ours_at_start_whatever_the_file_says(lab: Lab) -> None:
    """The key's PublicIP decides, then subnet.env (flannel-compat 5.2)."""
    one = lab.host(1)
    before = Vtep("10.1.33.0/24", str(one.address), "02:00:00:00:00:33")
    put_leased(lab, before.key, before.value)
    remember_subnet(one, "10.1.72.0/24", "10.1.0.0/16")
    await one.start_agent()
    assert str(one.subnet) == "10.1.33.0/24"
    assert lab.etcd.keys(SUBNETS) == [before.key]


@pytest.mark.topology(hosts=2)
async def test_a_peer_whose_lease_expires_is_kept_and_is_in_nobodys_way(overlay: Lab) -> None:
    """An ended lease says that a host has not reached etcd, not that it does not answer; a deleted key says that it is gone."""
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    peer = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    deleted = Vtep("10.1.78.0/24", "192.168.50.78", "02:00:00:00:00:78")
    put_leased(overlay, peer.key, peer.value, seconds=1)
    put_leased(overlay, deleted.key, deleted.value)
    await until_programmed(one, peer, deleted)
    async with losing_nothing(overlay, "c1", "c2"):
        await until(lambda: overlay.etcd.get(peer.key) is None, 5, "the key is gone from etcd")
        overlay.etcd.delete(deleted.key)
        await until_gone(one, deleted)
        await until_said(log, peer.subnet, "lease has ended")
    assert await peer.missing(one) == []
    # Somebody else gets the subnet: at once.
    heir = Vtep(peer.subnet, "192.168.50.99", "02:00:00:00:00:99")
    put_leased(overlay, heir.key, heir.value)
    await until_programmed(one, heir)
    assert peer.mac not in " ".join(await shell(one, "bridge fdb show dev flannel.1; ip neigh show dev flannel.1"))
    assert len(log.lines("lease has ended")) == 1


@pytest.mark.topology(hosts=2)
async def test_a_peer_that_moves_to_another_address_is_followed(overlay: Lab) -> None:
    one = overlay.host(1)
    peer = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    put_leased(overlay, peer.key, peer.value)
    await until_programmed(one, peer)
    moved = Vtep(peer.subnet, "192.168.50.78", peer.mac)
    put_leased(overlay, moved.key, moved.value)
    await until_programmed(one, moved)
    assert peer.fdb not in await shell(one, "bridge fdb show dev flannel.1")


@pytest.mark.topology(hosts=1, containers=0)
async def test_our_key_is_never_written_under_somebody_elses_hands(overlay: Lab) -> None:
    """A put of the same value by hand (new revision) does not make us fight: one answer at most, and the value is ours."""
    one = overlay.host(1)
    own = await vtep(one)
    lease = grant(overlay, DAY_S)
    overlay.etcd.ctl("put", f"--lease={lease}", "--", own.key, own.value)
    before = record(overlay, own.key)["version"]
    late = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
    overlay.etcd.put(late.key, late.value)
    await until_programmed(one, late)
    overlay.etcd.delete(late.key)
    await until_gone(one, late)
    assert record(overlay, own.key)["version"] - before <= 1
    assert overlay.etcd.get(own.key) == own.value
    assert await routes(one, late.subnet) == []
