"""What are hosts called, where a person looks? Each says it beside its lease; the address stands beside it everywhere.

h1 ==== vxlan ==== h2         somebody else's key says that he is h2, too
"""

from __future__ import annotations

import json

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import lab_name, no_traceback, settled_overlay, until  # noqa: F401

WITHIN_S = 30.0


async def said(host: Host, *words: str) -> str:
    """What a command prints on a host; where nobody resolves names here, that is said beside it."""
    program = host.agent_words()[: -len(host.agent_options())][:-3]
    outcome = await host.attempt(*program, *words, f"--run-dir={host.run_dir}")
    beside = ("flannelpy: etcd", "the resolver has not said within")
    assert outcome.stderr == "" or any(text in outcome.stderr for text in beside), outcome
    return outcome.stdout


async def named(lab: Lab) -> dict[str, str | None]:
    """What h1 calls its peers, by PublicIP."""
    return {peer["PublicIP"]: peer["name"] for peer in (await lab.host(1).status())["peers"]}


@pytest.mark.topology(hosts=2)
async def test_a_host_is_called_what_it_says_wherever_it_is_shown(overlay: Lab) -> None:
    lab, one, two = overlay, overlay.host(1), overlay.host(2)
    address = str(two.address)

    async def known() -> bool:
        return (await named(lab)).get(address) == "h2"

    await until(known, WITHIN_S, "h2's name is known")
    assert f"{two.subnet}  {address}" in await said(one, "status", "--peers")
    assert any(line.startswith("h2 ") for line in (await said(one, "status", "--peers")).splitlines())
    assert f"{address} [h2], " in await said(one, "trace", "h2", f"--subnet-file={one.subnet_file}")
    rows = json.loads(await said(one, "lease", "list", "--json"))["leases"]
    assert {row["PublicIP"]: row.get("hostname") for row in rows} == {str(host.address): host.name for host in lab.hosts}

    # Somebody else calls himself so: both are shown, each with its address, and a name alone is asked for no more.
    rogue = "192.168.50.66"
    lab.etcd.put(f"{PREFIX}/subnets/10.1.250.0-24", json.dumps({"PublicIP": rogue, "BackendType": "vxlan"}))
    lab.etcd.put(f"{PREFIX}/flannelpy/hosts/10.1.250.0-24", json.dumps({"PublicIP": rogue, "Hostname": "h2", "Carriers": {}}))

    async def twice() -> bool:
        found = await named(lab)
        return (found.get(address), found.get(rogue)) == ("h2", "h2")

    await until(twice, WITHIN_S, "both are called so")
    program = one.agent_words()[: -len(one.agent_options())][:-3]
    outcome = await one.attempt(*program, "trace", "h2", f"--run-dir={one.run_dir}", f"--subnet-file={one.subnet_file}")
    assert (outcome.code, "2 hosts call themselves so" in outcome.stderr) == (2, True), outcome

    await two.agent.stop()
    await two.start_agent("--hostname=")

    async def unnamed() -> bool:
        return (await named(lab)).get(address, "") is None

    await until(unnamed, WITHIN_S, "h2 is called nothing")
    lab.etcd.ctl("del", f"{PREFIX}/subnets/10.1.250.0-24")
    lab.etcd.ctl("del", f"{PREFIX}/flannelpy/hosts/10.1.250.0-24")
