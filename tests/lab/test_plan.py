"""Does ``flannelpy plan`` say what the agent then does, and change nothing itself?

h1 ==== vxlan, host-gw, udp ==== h2        etcd apart
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_traceback, routes, until  # noqa: F401
from tests.lab.test_cleanup import differences, look, programmed

NOTHING = ["nothing to do"]


async def plan(host: Host, *words: str, stdin: str | None = None) -> tuple[int, list[str], str]:
    """``flannelpy plan`` with the agent's own options: exit code, what it prints, what it says beside."""
    assert host.settings is not None
    program = host.settings.program
    outcome = await host.attempt(*program, "plan", *host.agent_words()[len(program) :], *words, stdin=stdin)
    return outcome.code, outcome.stdout.splitlines(), outcome.stderr


async def planned(host: Host, *words: str) -> list[str]:
    code, out, err = await plan(host, *words)
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("vxlan", marks=pytest.mark.topology(hosts=2)),
        pytest.param("host-gw", marks=pytest.mark.topology(hosts=2, backend="host-gw")),
        pytest.param("udp", marks=pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-engine=userspace",))),
    ],
)
async def test_a_running_and_a_stopped_agent_have_nothing_to_do_and_what_is_missing_is_planned(lab: Lab, backend: str) -> None:
    one, two = lab.host(1), lab.host(2)
    await lab.start_agents()
    await programmed(lab)

    async def settled() -> bool:
        return await planned(one) == NOTHING

    await until(settled, 20, "the running agent has nothing to do")
    await one.agent.stop()
    before = await look(one)
    files = {path: path.read_bytes() for path in sorted(one.state_dir.iterdir())}
    stopped = await planned(one)
    if backend == "udp":  # the device goes with the process that moves the packets
        assert stopped[0].startswith("ip link add flannel0 ")
        assert any(line.startswith("ip route add ") and "dev flannel0" in line for line in stopped)
    else:  # a process that has just begun cannot know that the table says the same in nft's words
        assert [line for line in stopped if not line.startswith("nft replace table inet flannelpy")] in ([], NOTHING)
    # Somebody takes away a route and the table: both come back in words, and nothing is done.
    await one.exec("nft", "delete", "table", "inet", "flannelpy")
    gone = [] if backend == "udp" else (await routes(one, "proto 102"))[0].split()
    if gone:
        await one.exec("ip", "route", "del", *gone)
    wanted = await planned(one)
    assert any(line.startswith("nft add table inet flannelpy") for line in wanted)
    assert any(
        line.startswith("ip route add ") and (gone or ["dev flannel0"])[0] in line and line.endswith("proto 102") for line in wanted
    )
    assert (await plan(one, "--exit-code"))[0] == 4
    assert sorted(await planned(one)) == sorted(wanted)
    assert {path: path.read_bytes() for path in sorted(one.state_dir.iterdir())} == files
    # The agent does just that.
    await one.start_agent()
    await programmed(lab)
    await until(settled, 20, "the running agent has nothing to do")
    assert (await plan(one, "--exit-code"))[0] == 0
    await one.agent.stop()
    after = await look(one)
    assert sorted(before.pop("nft").splitlines()) == sorted(after.pop("nft").splitlines())  # sets are listed in the order of making
    assert differences({"nft": "", **before}, {"nft": "", **after}) == []
    assert two.agent.running


@pytest.mark.topology(hosts=2)
async def test_what_another_config_would_change_here(lab: Lab, tmp_path: Path) -> None:
    one = lab.host(1)
    await lab.start_agents()
    await programmed(lab)
    kept, peer = one.state_dir / "cluster.json", str(lab.host(2).address)
    await until(lambda: kept.exists() and peer in kept.read_text(), 20, "the peer is kept")
    before = await look(one)
    config = json.loads(lab.etcd.get("/coreos.com/network/config") or "")
    config["Backend"] = {"Type": "host-gw"}
    (file := tmp_path / "config.json").write_text(json.dumps(config))
    code, out, err = await plan(one, "--config", str(file))
    assert code == 0, err
    assert "ip link del flannel.1 type vxlan" in out
    assert "Type vxlan -> host-gw: each host sets it up beside the old one" in err
    assert "Docker: --mtu 1450 -> 1500" in err
    assert "1 of the other hosts' leases are for another backend" in err
    config["Backend"] = {"Type": "vxlan", "VNI": 7}
    code, out, err = await plan(one, "--config", "-", stdin=json.dumps(config))
    assert code == 0, err
    assert any(line.startswith("ip link add flannel.7 ") for line in out)
    config["Network"] = "10.200.0.0/16"
    code, out, err = await plan(one, "--config", "-", stdin=json.dumps(config))
    assert (code, out) == (0, NOTHING)
    assert "the host gets another subnet" in err
    code, out, err = await plan(one, "--config", "-", stdin='{"Network": 7}')
    assert (code, out) == (1, [])
    assert "standard input: Network" in err
    assert differences(before, await look(one)) == []


@pytest.mark.topology(hosts=1)
async def test_a_host_that_was_in_no_cluster_is_told_so(lab: Lab) -> None:
    code, out, err = await plan(lab.host(1))
    assert (code, out) == (1, [])
    assert "cluster.json: there is none: no agent of this host has been in a cluster" in err
