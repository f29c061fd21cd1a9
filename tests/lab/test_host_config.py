"""What does a config change cost a cluster that runs? No process, no lease, no readiness; the gap in the packets is measured.

c1 - h1 ==== vxlan, udp, host-gw in turn ==== h2 - c2, and h3 - c3         etcd apart
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import Log, lab_name, no_traceback, record, settled_overlay, until  # noqa: F401
from tests.lab.host_support import WITHIN_S, lives, published, told, until_nothing_is_wrong, until_they_meet

TYPES = ("udp", "host-gw", "vxlan", "host-gw", "udp", "vxlan")
"""Each to each of the others, beginning with vxlan."""


@asynccontextmanager
async def staying_ready(lab: Lab) -> AsyncIterator[None]:
    """Every host answers that it is ready, whenever it is asked in this block."""
    seen: list[str] = []
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            for host in lab.hosts:
                document = await told(host)
                if document and not document["ready"]:
                    seen.append(f"{host.name}: {document['whyNot']}")
            await asyncio.sleep(0.02)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        over.set()
        await asking
    assert seen == []


async def put(lab: Lab, **backend: object) -> None:
    await asyncio.to_thread(lab.etcd.put, f"{PREFIX}/config", json.dumps({"Network": "10.1.0.0/16", "Backend": backend}))


@pytest.mark.topology(hosts=3)
def written(lab: Lab, versions: dict[str, dict[str, int]]) -> bool:
    """Does each of these keys hold another value than then? A host is moved first, where the new way has to begin."""
    return all(record(lab, key)["version"] != old["version"] for key, old in versions.items())


async def test_each_change_of_type_is_one_write_a_host_and_a_gap_that_is_measured(overlay: Lab) -> None:
    before, keys = lives(overlay.hosts), published(overlay)
    kind = "vxlan"
    for wanted in TYPES:
        versions = {key: record(overlay, key) for key in keys}
        async with staying_ready(overlay), overlay.pinging("c1", "c2", per_second=100) as pings:
            await put(overlay, Type=wanted)

            async def everywhere(wanted: str = wanted) -> bool:
                documents = [await told(host) for host in overlay.hosts]
                return all(
                    document.get("backend", {}).get("type") == wanted
                    and [peer["state"] for peer in document["peers"]] == ["in-sync"] * 2
                    for document in documents
                )

            await until(everywhere, WITHIN_S, f"{wanted} on all hosts", lambda: Log.of(overlay.host(1)).text[-1500:])
            await until_they_meet(overlay, f"{kind} -> {wanted}")
        print(f"{kind} -> {wanted}: {pings.lost} of {pings.sent} pings lost, longest gap {pings.longest_ms:.0f} ms")
        await until(partial(written, overlay, versions), WITHIN_S, "every host has written its lease anew")
        for key, old in versions.items():
            new = record(overlay, key)
            assert (new["version"] - old["version"], new["create_revision"]) == (1, old["create_revision"])
        kind = wanted
    await until_nothing_is_wrong(*overlay.hosts)
    assert lives(overlay.hosts) == before
    assert published(overlay) == keys


@pytest.mark.topology(hosts=2)
async def test_an_option_that_others_need_not_know_is_no_write(overlay: Lab) -> None:
    """The MTU is each host's own affair: the lease is not written for it."""
    before = lives(overlay.hosts)
    revisions = {key: record(overlay, key)["mod_revision"] for key in published(overlay)}
    async with staying_ready(overlay):
        await put(overlay, Type="vxlan", MTU=1400)
        for host in overlay.hosts:
            await until(lambda host=host: host.subnet_env()["FLANNEL_MTU"] == "1350", WITHIN_S, "FLANNEL_MTU")
    assert {key: record(overlay, key)["mod_revision"] for key in published(overlay)} == revisions
    assert lives(overlay.hosts) == before


@pytest.mark.topology(hosts=1, containers=0)
async def test_of_two_spellings_of_one_key_the_last_one_counts(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.put(
        f"{PREFIX}/config", '{"Network":"10.1.0.0/16","network":"10.3.0.0/16","Backend":{"Type":"vxlan","type":"host-gw"}}'
    )
    await one.start_agent()
    assert (await told(one))["backend"]["type"] == "host-gw"
    assert str(one.subnet).startswith("10.3.")


@pytest.mark.topology(hosts=2)
async def test_a_network_over_the_hosts_own_is_a_condition_and_not_leased_to_itself(lab: Lab) -> None:
    """Four subnets, of which one is the segment that the hosts and etcd are on."""
    config = {
        "Network": "192.168.48.0/21",
        "SubnetLen": 24,
        "SubnetMin": "192.168.50.0",
        "SubnetMax": "192.168.53.0",
        "Backend": {"Type": "vxlan"},
    }
    await lab.put_config(config)
    await lab.start_agents()
    await lab.connect_containers()
    await until_they_meet(lab, "beside the segment")
    for host in lab.hosts:
        assert str(host.subnet) in ("192.168.51.0/24", "192.168.52.0/24", "192.168.53.0/24")
        found = {each["code"]: each["text"] for each in (await told(host))["conditions"]}
        assert list(found) == ["network-overlap"]
        assert "192.168.50.0/24 on eth1" in found["network-overlap"]
