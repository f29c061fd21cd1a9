"""Simulated nodes: what they publish, what happens to them, and that nothing of them stays in etcd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from netaddr import IPAddress, IPNetwork

from backends.vxlan import VxlanBackend
from flannelpy.core.config import NetworkConfig
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease, LeaseAttrs
from netns_lab import swarm
from netns_lab.etcd import Etcd
from netns_lab.swarm import Herd, Kind, Node, SwarmError, settle

PREFIX = "/coreos.com/network"
SUBNETS = f"{PREFIX}/subnets/"
TEXT = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}'
CONFIG = NetworkConfig.parse(TEXT)
LAB = Path(swarm.__file__).parents[1]
WITHIN_S = 20


# ------------------------------------------------------------------------------------------------------------ the nodes


def test_nodes_settle_at_the_end_and_beside_who_is_there() -> None:
    there = Lease(IPNetwork("10.5.254.0/24"), LeaseAttrs(IPAddress("192.0.2.1")), etcd_lease=1)
    assert [str(node.subnet) for node in settle(3, CONFIG, [there])] == ["10.5.255.0/24", "10.5.253.0/24", "10.5.252.0/24"]


@pytest.mark.parametrize("sizes", [(1, 1), (30, 5, 60), (5, 100, 1, 1)])
def test_swarms_beside_each_other_have_hosts_of_their_own(sizes: tuple[int, ...]) -> None:
    leases = [Lease(IPNetwork("10.5.1.0/24"), LeaseAttrs(IPAddress("192.168.50.11")), etcd_lease=1)]
    for size in sizes:
        leases += [Lease(node.subnet, node.attrs(CONFIG), None, 1, 1, 1) for node in settle(size, CONFIG, leases)]
    for distinct in ({lease.public_ip for lease in leases}, {lease.subnet for lease in leases}):
        assert len(distinct) == 1 + sum(sizes)


def test_room_is_left_for_the_labs_own_hosts() -> None:
    assert len(settle(255 - swarm.SPARE, CONFIG, [])) == 239
    with pytest.raises(SwarmError, match=r"240 nodes: 10\.5\.0\.0/16 has room for 239 \(/24 each\)"):
        settle(240, CONFIG, [])


@pytest.mark.parametrize("more", ['"EnableIPv4":false,"EnableIPv6":true', '"EnableIPv6":true'])
def test_networks_that_it_cannot_fill_are_refused(more: str) -> None:
    config = NetworkConfig.parse(f'{{"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48",{more}}}')
    with pytest.raises(SwarmError, match="IPv4"):
        settle(1, config, [])


def test_an_agent_takes_every_node_for_a_peer() -> None:
    nodes = settle(200, CONFIG, [])
    leases = [Lease(node.subnet, node.attrs(CONFIG), None, 1, number, number) for number, node in enumerate(nodes, 1)]
    membership = Membership(CONFIG, VxlanBackend.accepts)
    membership.replace(leases)
    assert len(membership.peers) == 200
    assert len({lease.public_ip for lease in leases}) == len({str(lease.attrs.backend_data) for lease in leases}) == 200
    assert nodes[1].attrs(CONFIG).to_json() == (
        '{"PublicIP":"172.24.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"06:00:00:00:00:01"}}'
    )
    nodes[1].life += 1
    assert nodes[1].attrs(CONFIG).backend_data["VtepMAC"] == "06:00:01:00:00:01"


def test_changes_come_in_their_shares_and_never_twice_to_a_node_at_once() -> None:
    herd = Herd([Node(number, IPNetwork(f"10.5.{number}.0/24")) for number in range(100)], Random(1))
    kinds: Counter[Kind] = Counter()
    there = set(range(100))
    under_way: list[tuple[Kind, Node]] = []
    for _ in range(10_000):
        kind, node = herd.next()
        assert node.number not in {other.number for _, other in under_way}
        assert (node.number in there) == (kind != "join"), f"{kind} of a node that is {'there' if kind == 'join' else 'not there'}"
        kinds[kind] += 1
        under_way.append((kind, node))
        if len(under_way) == 30:
            for each in under_way:
                herd.done(*each)
                (there.discard if each[0] == "leave" else there.add)(each[1].number)
            under_way.clear()
    assert herd.idle + len(under_way) == 100
    assert len(there) > 50
    for kind, share in swarm.SHARES.items():
        assert abs(kinds[kind] / 10_000 - share) < 0.03, kinds


# --------------------------------------------------------------------------------------------------------------- in etcd


@pytest.fixture(scope="module")
def started() -> Iterator[Etcd]:
    with Etcd() as running:
        yield running


@pytest.fixture
def etcd(started: Etcd) -> Iterator[Etcd]:
    started.put(f"{PREFIX}/config", TEXT)
    started.put(f"{SUBNETS}10.5.9.0-24", '{"PublicIP":"192.0.2.9"}')
    yield started
    started.ctl("del", "--prefix", PREFIX)


def start(etcd: Etcd, *words: str) -> subprocess.Popen[str]:
    """The process, as ``lab swarm`` starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "netns_lab.swarm", etcd.urls[0], *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=LAB,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=WITHIN_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert "Traceback" not in err
    return process.returncode, out, err


def nodes_in(etcd: Etcd) -> list[str]:
    return [key for key in etcd.keys(SUBNETS) if not key.endswith("/10.5.9.0-24")]


def test_a_swarm_lives_and_leaves_nothing(etcd: Etcd) -> None:
    before = etcd.revision()
    code, out, err = ended(start(etcd, "--nodes=150", "--churn=300", "--seconds=1", "--json"))
    assert (code, err) == (0, "")
    first, summary = out.splitlines()
    assert first == "150 nodes are there"
    told = json.loads(summary)
    assert told["nodes"] == 150
    assert set(told["kinds"]) == {"renewal", "join", "leave", "mac"}
    assert 0 < told["changes"] <= 300 * told["churnedS"]
    assert etcd.revision() - before >= told["changes"], "each change is a revision of its own"
    assert nodes_in(etcd) == []
    assert etcd.get(f"{SUBNETS}10.5.9.0-24") is not None, "what others wrote stays"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_swarm_leaves_nothing_either(etcd: Etcd, number: signal.Signals) -> None:
    process = start(etcd, "--nodes=50", "--churn=100")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "50 nodes are there\n"
        assert len(nodes_in(etcd)) > 20
        os.kill(process.pid, number)
    finally:
        code, out, err = ended(process)
    assert (code, err) == (130, "")
    assert out.startswith("50 nodes written in ")
    assert out.endswith("the keys are removed\n")
    assert nodes_in(etcd) == []


def test_a_swarm_that_is_kept_stays_with_leases_that_end(etcd: Etcd) -> None:
    code, out, _ = ended(start(etcd, "--nodes=130", "--keep"))
    assert code == 0
    assert out.endswith("the keys stay\n")
    assert len(nodes_in(etcd)) == 130
    found = json.loads(etcd.ctl("get", "-w", "json", nodes_in(etcd)[0]))["kvs"][0]
    assert found["lease"] != 0


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        (TEXT, ("--nodes=300",), "swarm: 300 nodes: 10.5.0.0/16 has room for 238"),
        ("{", ("--nodes=3",), f"swarm: network config at {PREFIX}/config: not JSON"),
        (TEXT, ("--nodes=3", "--prefix=/none"), "swarm: no network config at /none/config"),
    ],
)
def test_what_cannot_be_is_one_line(etcd: Etcd, config: str, words: tuple[str, ...], said: str) -> None:
    etcd.put(f"{PREFIX}/config", config)
    code, _, err = ended(start(etcd, *words))
    assert code == 1
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_an_etcd_that_is_not_there_is_one_line() -> None:
    assert swarm.main(["http://127.0.0.1:1", "--nodes=3"]) == 1
