"""Does ``flannelpy cleanup`` leave a host as it was before the first agent, and everything of others to the byte?

h1 (a vxlan device, routes, tables and rules of others; FORWARD drops) ==== vxlan, host-gw, udp ==== h2        etcd apart
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
from difflib import unified_diff
from functools import partial

import pytest

from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, no_traceback, routes, until  # noqa: F401
from tests.lab.host_support import change

LOOKS = {
    "link": "ip -d link",
    "addr": "ip -br addr",
    "route": "ip route show table all; ip -6 route show table all",
    "neigh": "ip neigh show nud permanent; ip -6 neigh show nud permanent",
    "fdb": "bridge fdb show",
    "fou": "ip fou show || :",
    "nft": "nft list ruleset",
    "iptables": "iptables-save; ip6tables-save; iptables-legacy-save 2>/dev/null || :",
    "sysctl": "sysctl -a 2>/dev/null | grep -E '^net.(ipv4|ipv6).(conf|neigh|ip_|route)' | grep -v stable_secret",
}
"""How an operator looks at a host."""

NOISE = re.compile(r"^#.*|\[\d+:\d+\]|packets \d+ bytes \d+|expires \d+sec|qlen \d+|gc_\w+ = .*|\w+_timer +[\d.]+", re.MULTILINE)

THEIRS = """
ip link add flannel.77 address 02:00:00:00:00:77 type vxlan id 77 dev eth1 dstport 4789
ip link set flannel.77 up
bridge fdb append 02:00:00:00:00:78 dst 192.168.50.99 dev flannel.77 self permanent
ip neigh add 10.77.0.2 lladdr 02:00:00:00:00:78 dev flannel.77 nud permanent
ip route add 10.1.250.0/24 via 192.168.50.99 dev eth1 proto static onlink
ip route add 10.77.0.0/24 dev flannel.77
ip route add 10.78.0.0/24 via 192.168.50.99 dev eth1
nft add table inet mine
nft 'add chain inet mine forward { type filter hook forward priority 5; policy accept; }'
nft add rule inet mine forward ip saddr 10.1.0.0/16 counter accept comment '"flannelpy"'
iptables -P FORWARD DROP
iptables -N DOCKER-USER
iptables -A DOCKER-USER -j RETURN
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -s 172.30.0.0/16 -m comment --comment theirs -j ACCEPT
iptables -t nat -A POSTROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j RETURN
"""

ENGINES = {
    "vxlan": (),
    "host-gw": (),
    "ipip": (),
    "udp kernel": ("--udp-engine=kernel",),
    "udp userspace": ("--udp-engine=userspace",),
}


def setup(backend: str) -> object:
    """A case with the lab that it needs."""
    topology = pytest.mark.topology(
        hosts=2, backend=backend.split()[0], agent_options=("--ip-masq", "--ip-blackhole-route", *ENGINES[backend])
    )
    missing = backend == "ipip" and not takes("ipip")
    marks = [topology, pytest.mark.skipif(missing, reason="this kernel makes no ipip devices: load the module ipip")]
    return pytest.param(backend, marks=marks, id=backend.replace(" ", "-"))


def others_apart(lines: list[str]) -> list[str]:
    """Without the claims of an agent that was killed: the next agent of the machine, maybe another test's, takes them away."""
    return [line for line in lines if "/flannelpy-claims/" not in line]


def takes(kind: str) -> bool:
    """Whether this kernel makes such a device, tried in a namespace of its own."""
    return (
        subprocess.run(["unshare", "-n", "ip", "link", "add", "tried", "type", kind], capture_output=True, check=False).returncode
        == 0
    )


async def look(host: Host) -> dict[str, str]:
    """All of it, once IPv6 has found out that nobody else has its addresses."""

    async def settled() -> bool:
        return "tentative" not in await host.exec("ip", "-6", "addr")

    await until(settled, 10, "no address is tentative")
    found = {name: await host.exec("sh", "-c", words) for name, words in LOOKS.items()}
    return {name: NOISE.sub("", text) for name, text in found.items()}


async def without_carrier(host: Host, device: str) -> bool:
    """Is it gone, or does nothing hold its other end?"""
    outcome = await host.attempt("ip", "link", "show", device)
    return outcome.code != 0 or "NO-CARRIER" in outcome.stdout


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [
        f"{name}: {line}"
        for name in LOOKS
        for line in unified_diff(one[name].splitlines(), other[name].splitlines(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]


async def clean(host: Host, *words: str) -> tuple[int, list[str], str]:
    """``flannelpy cleanup``: exit code, what it prints, what it says beside."""
    files = (f"--subnet-file={host.subnet_file}", f"--state-dir={host.state_dir}", f"--run-dir={host.run_dir}")
    assert host.settings is not None
    outcome = await host.attempt(*host.settings.program, "cleanup", *files, *words)
    return outcome.code, outcome.stdout.splitlines(), outcome.stderr


async def programmed(lab: Lab) -> None:
    """Both hosts have each other."""
    one, two = lab.host(1), lab.host(2)
    await until(lambda: one.subnet_file.exists() and two.subnet_file.exists(), 20, "both have subnets")

    async def there() -> bool:
        found = [await routes(host, "proto 102") for host in (one, two)]
        return all(any("unreachable" not in line and "blackhole" not in line for line in lines) for lines in found)

    await until(there, 20, "both have a route to the other")


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("backend", [setup(backend) for backend in ENGINES])
async def test_what_is_left_is_what_was_there_before(lab: Lab, backend: str, how: str) -> None:
    one = lab.host(1)
    await one.exec("sh", "-ec", THEIRS)
    before = await look(one)
    await lab.start_agents()
    await programmed(lab)
    running = await look(one)
    assert {name for name in LOOKS if running[name] != before[name]} >= {"nft", "iptables", "route"}

    code, out, err = await clean(one, "--yes")
    assert (code, out) == (1, [])
    assert f"(process {one.agent.pid}" in err
    assert differences(running, await look(one)) == []

    await (one.agent.stop() if how == "stop" else one.agent.kill())
    if "type tun" in running["link"]:  # the workers of an agent that was killed end a moment after it: nobody has the device then
        await until(partial(without_carrier, one, "flannel0"), 20, "the workers have ended")
    stopped = await look(one)
    code, out, err = await clean(one, "--dry-run", "--state")
    assert code == 0, err
    assert any(line.startswith("nft delete table inet flannelpy") for line in out)
    assert any(line.startswith("iptables -D FORWARD -s 10.1.0.0/16") for line in out)
    assert any(line.startswith("iptables -D DOCKER-USER -s 10.1.0.0/16 -d 10.1.0.0/16") for line in out)
    assert f"rm {one.subnet_file}" in out
    assert differences(stopped, await look(one)) == []
    assert one.subnet_file.exists()

    code, again, err = await clean(one, "--yes", "--state")
    assert code == 0, err
    assert others_apart(again) == others_apart(out)
    assert differences(before, await look(one)) == []
    assert not one.subnet_file.exists()
    assert not one.run_dir.exists()
    assert not one.state_dir.exists()
    assert await clean(one, "--yes", "--state") == (0, ["nothing to do: no agent has left anything here"], "")


@pytest.mark.topology(hosts=2)
async def test_the_lease_stays_unless_it_is_given_back_and_the_identity_unless_asked(lab: Lab) -> None:
    one = lab.host(1)
    await lab.start_agents()
    await programmed(lab)
    key, mac = one.lease_key, (one.state_dir / "state.json").read_text()
    await one.agent.stop()
    code, _out, err = await clean(one)  # nobody is there to be asked
    assert code == 1
    assert "nothing was changed (--yes does it)" in err
    assert one.subnet_file.exists()
    code, _out, err = await clean(one, "--yes")
    assert code == 0, err
    assert lab.etcd.get(key) is not None
    assert '"flannel.1": "' in (one.state_dir / "state.json").read_text()
    assert '"devices": []' in (one.state_dir / "state.json").read_text()
    assert await clean(one, "--yes") == (0, ["nothing to do: no agent has left anything here"], "")
    # It comes back as it was, and goes for good.
    await one.start_agent()
    await programmed(lab)
    assert one.lease_key == key
    assert (one.state_dir / "state.json").read_text() == mac
    await one.agent.stop()
    code, out, err = await clean(one, "--yes", "--release-lease", f"--etcd-endpoints={one.settings.endpoints}")  # type: ignore[union-attr]
    assert code == 0, err
    assert [line for line in out if line.startswith("released ")]
    assert lab.etcd.get(key) is None


@pytest.mark.topology(hosts=2)
async def test_without_a_state_file_only_what_is_marked_goes_and_it_is_said(lab: Lab) -> None:
    one = lab.host(1)
    await lab.start_agents()
    await programmed(lab)
    await one.agent.stop()
    (one.state_dir / "state.json").write_text('{"prefix": 7')
    code, out, err = await clean(one, "--dry-run")
    assert code == 0
    assert "state.json" in err
    assert "only what carries our marks counts" in err
    assert any(line.startswith("nft delete table inet flannelpy") for line in out)
    assert "ip link del flannel.1 type vxlan" in out  # marked routes lead through it
    code, out, err = await clean(one, "--yes")
    assert code == 0, err
    left = await look(one)
    assert [name for name, text in left.items() if "flannelpy" in text or "flannel.1" in text or "proto 102" in text] == []
    assert not one.subnet_file.exists()  # what was kept of the cluster tells which subnet is ours


@pytest.mark.topology(hosts=2)
async def test_a_device_of_our_name_that_somebody_else_has_made_stays(lab: Lab) -> None:
    one = lab.host(1)
    await lab.start_agents()
    await programmed(lab)
    await one.agent.stop()
    await one.exec("ip", "link", "del", "flannel.1")
    await change(one, "link add flannel.1 address 02:00:00:00:00:99 type vxlan id 1 dev eth1 dstport 8472")
    there = await one.exec("ip", "-d", "link", "show", "flannel.1")
    code, out, err = await clean(one, "--yes")
    assert code == 0, err
    assert "somebody else made it; it stays" in err
    assert not any("ip link del" in line for line in out)
    assert await one.exec("ip", "-d", "link", "show", "flannel.1") == there


@pytest.mark.topology(hosts=2)
async def test_what_a_flanneld_that_runs_has_taken_over_stays(lab: Lab) -> None:
    """Back to flanneld: it goes on with our device, subnet file and lease. In another namespace it has none of these."""
    one, two = lab.host(1), lab.host(2)
    await lab.start_agents()
    await programmed(lab)
    for host in (one, two):
        await host.agent.stop()
    before, file, key = await look(one), one.subnet_file.read_text(), one.lease_key
    program = one.directory / "flanneld"
    shutil.copy("/bin/sleep", program)
    process = int((await one.exec("sh", "-c", f"{program} 100 >/dev/null 2>&1 & echo $!")).strip())
    try:
        assert one.settings is not None
        told: list[str] = []
        for _ in range(2):
            words = ("--yes", "--state", "--release-lease", f"--etcd-endpoints={one.settings.endpoints}")
            code, _out, err = await clean(one, *words)
            assert code == 0, err
            told.append(err)
        assert f"flanneld runs here (process {process}) and may have taken over what carries packets: flannel.1" in told[0]
        after = await look(one)
        for name in ("link", "addr", "route", "neigh", "fdb"):
            assert after[name] == before[name]
        assert "table inet flannelpy" not in after["nft"]
        assert (one.subnet_file.read_text(), lab.etcd.get(key) is None) == (file, False)
        code, out, err = await clean(two, "--yes")
        assert code == 0, err
        assert "ip link del flannel.1 type vxlan" in out
    finally:
        os.kill(process, signal.SIGKILL)


@pytest.mark.topology(hosts=2, backend="host-gw")
async def test_the_interface_between_the_hosts_may_be_gone(lab: Lab) -> None:
    one = lab.host(1)
    await lab.start_agents()
    await programmed(lab)
    await one.agent.kill()
    await one.exec("ip", "link", "del", "eth1")
    code, _out, err = await clean(one, "--yes", "--state")
    assert code == 0, err
    left = await look(one)
    assert [name for name, text in left.items() if "flannel" in text or "proto 102" in text] == []


@pytest.mark.topology(hosts=2, agent_options=("--ip-masq", "--ip-blackhole-route"))
async def test_what_was_made_half_is_taken_away_whole(lab: Lab) -> None:
    """Killed at one moment after another of its start, from before it has a lease to after it is ready."""
    one, two = lab.host(1), lab.host(2)
    await one.exec("sh", "-ec", THEIRS)
    before = await look(one)
    await two.start_agent()
    made = 0
    for tenths in (4, 6, 7, 8, 9, 10, 12, 15):
        agent = one.launch_agent()
        await asyncio.sleep(tenths / 10)
        await agent.kill()
        made += await look(one) != before
        code, _out, err = await clean(one, "--yes", "--state")
        assert code == 0, err
        assert differences(before, await look(one)) == [], f"killed after {tenths / 10:g} s"
        one.state_dir.mkdir(exist_ok=True)
    assert made
