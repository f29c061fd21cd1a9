"""Does ``flannelpy status`` say what a real agent is doing, in each of its states, and does no client disturb it?

c1 - h1 ==== vxlan 1, or udp ==== h2 - c2         etcd 192.168.50.5; h1 is asked over run/agent.sock
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
from typing import Any

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from netns_lab.namespaces import Outcome
from tests.lab.agent_support import (  # noqa: F401
    Log,
    Vtep,
    grant,
    lab_name,
    no_traceback,
    put_leased,
    settled_overlay,
    until,
    until_programmed,
)

CONFIG = f"{PREFIX}/config"
LATE = Vtep("10.1.77.0/24", "192.168.50.77", "02:00:00:00:00:77")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


async def status(host: Host, *words: str, before: tuple[str, ...] = (), run_dir: object = None) -> Outcome:
    """What a person on the host sees."""
    assert host.settings is not None
    outcome = await host.attempt(*before, *host.settings.program, "status", f"--run-dir={run_dir or host.run_dir}", *words)
    assert "Traceback" not in outcome.stderr
    return outcome


async def told(host: Host) -> dict[str, Any]:
    """The document."""
    outcome = await status(host, "--json")
    document: dict[str, Any] = json.loads(outcome.stdout)
    assert (outcome.code, outcome.stderr) == (0 if document["ready"] else 1, "")
    return document


async def until_told(host: Host, fact: Any, what: str, timeout_s: float = 10.0) -> dict[str, Any]:
    """Ask until somebody answers and the document is so."""
    seen: list[Outcome] = []

    async def so() -> bool:
        seen.append(await status(host, "--json"))
        return bool(seen[-1].stdout and fact(json.loads(seen[-1].stdout)))

    await until(so, timeout_s, what, lambda: seen[-1])
    document: dict[str, Any] = json.loads(seen[-1].stdout)
    return document


def codes(document: dict[str, Any]) -> list[str]:
    return [condition["code"] for condition in document["conditions"]]


@pytest.mark.topology(hosts=2)
async def test_a_ready_agent_tells_what_the_kernel_and_etcd_hold(overlay: Lab) -> None:
    one, two = overlay.host(1), overlay.host(2)
    document = await until_told(one, lambda seen: len(seen["peers"]) == 1, "the peer")
    assert document["pid"] == one.agent.pid
    assert document["whyNot"] == document["conditions"] == []
    assert document["etcd"]["endpoint"] == "http://192.168.50.5:2379"
    assert document["etcd"]["reachable"] is True
    assert document["backend"]["mtu"] == 1450
    assert document["backend"]["devices"][0].startswith("flannel.1 address ")
    assert document["uplink"]["reasons"] == ["--iface eth1: eth1, 192.168.50.11, MTU 1500"]
    assert document["lease"]["subnet"] == str(one.subnet)
    assert 86_000 < document["lease"]["secondsLeft"] <= 86_400
    assert document["subnetFile"] == {"path": str(one.subnet_file), "written": True}
    assert [(peer["subnet"], peer["PublicIP"], peer["state"]) for peer in document["peers"]] == [
        (str(two.subnet), "192.168.50.12", "in-sync")
    ]
    assert document["kernel"]["inSync"] == document["kernel"]["desired"]
    assert document["kernel"]["desired"]["route"] == 1
    shown = await status(one, "--peers")
    assert (shown.code, shown.stderr) == (0, "")
    assert f"{two.subnet}" in shown.stdout
    # What somebody takes away is told as a repair.
    await one.exec("ip", "route", "del", str(two.subnet))
    document = await until_told(one, lambda seen: seen["kernel"]["repairs"], "the repair")
    assert document["kernel"]["lastRepair"]["step"].startswith(f"route add {two.subnet} via ")
    # A peer whose lease has ended with its key is kept, and told.
    lease = put_leased(overlay, LATE.key, LATE.value)
    await until_programmed(one, LATE)
    overlay.etcd.ctl("lease", "revoke", lease)

    def late(seen: dict[str, Any]) -> list[str]:
        return [peer["state"] for peer in seen["peers"] if peer["subnet"] == LATE.subnet]

    await until_told(one, lambda seen: late(seen) == ["stale"], "the peer is kept")
    assert "1 stale" in (await status(one)).stdout


@pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-workers=2",))
async def test_the_engine_and_the_pump_are_told(overlay: Lab) -> None:
    """This kernel has no FOU; whichever engine it is, the reason is the one in the log."""
    one = overlay.host(1)
    document = await told(one)
    assert document["backend"]["engine"] == "userspace"
    assert document["backend"]["reason"] in Log.of(one).lines("udp engine: ")[0]
    assert "kernel unavailable: " in document["backend"]["reason"]
    pump = document["pump"]
    assert pump["device"] == "flannel0"
    assert {"header", "tcp"} <= set(pump["offloads"])
    assert sorted([*pump["offloads"], *pump["missing"]]) == ["checksum", "gro", "gso", "header", "tcp", "tcp ecn", "udp"]
    assert (await overlay.ping("c1", "c2")).ok
    await until_told(one, lambda seen: seen["pump"]["counters"]["inbound_packets"], "what the pump has counted")
    first, second = (await told(one))["pump"]["workers"]
    assert (first["restarts"], second["restarts"]) == (0, 0)
    os.kill(first["pid"], signal.SIGKILL)

    def replaced(seen: dict[str, Any]) -> bool:
        now, other = seen["pump"]["workers"]
        return other == second and now["restarts"] == 1 and now["pid"] not in (None, first["pid"])

    document = await until_told(one, replaced, "another worker")
    for worker in document["pump"]["workers"]:
        assert "backends.udp.worker" in await one.exec("cat", f"/proc/{worker['pid']}/cmdline")
    assert document["network"]["Backend"] == {"Type": "udp", "Workers": 2}
    shown = (await status(one)).stdout
    assert "userspace; kernel unavailable: " in shown
    assert "replaced once" in shown
    assert re.search(r"^inbound +\d+ packets, [\d,]+ bytes *$", shown, re.MULTILINE)  # what was not counted is not worth a word
    await one.exec("ip", "link", "del", "flannel0")  # the pump is opened anew
    await until_told(one, lambda seen: seen["ready"] and seen["pump"]["workers"][0]["pid"], "the pump is back")


@pytest.mark.topology(hosts=1, containers=0)
async def test_an_agent_that_waits_says_for_what(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.delete(CONFIG)
    agent = one.launch_agent()
    await until(lambda: Log.of(one).begun("missing"), 5, "it waits")
    document = await told(one)
    assert document["ready"] is False
    assert codes(document) == ["config-unusable"]
    assert document["whyNot"] == [document["conditions"][0]["text"]]
    assert (document["lease"], document["kernel"], document["subnetFile"]["written"]) == (None, None, False)
    shown = await status(one)
    assert shown.code == 1
    assert "no: config-unusable, see below" in shown.stdout
    lab.etcd.put(CONFIG, '{"Network":"10.1.0.0/28","Backend":{"Type":"vxlan"}}')  # three blocks, all taken
    for number in (4, 8, 12):
        put_leased(lab, f"{PREFIX}/subnets/10.1.0.{number}-30", LATE.value.replace(".77", f".{number}"))
    await agent.stop()
    one.launch_agent()
    document = await until_told(one, lambda seen: "no-free-subnet" in codes(seen), "it waits for a subnet")
    assert (document["ready"], document["lease"]) == (False, None)
    lab.etcd.delete(f"{PREFIX}/subnets/10.1.0.8-30")
    await until_told(one, lambda seen: seen["ready"], "it is ready", timeout_s=20)


@pytest.mark.topology(hosts=1, containers=0)
async def test_etcd_that_is_away_is_told_at_the_start_and_later(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.kill()
    agent = one.launch_agent()
    await until(lambda: Log.of(one).begun("etcd does not answer"), 10, "it says that it waits")
    document = await told(one)
    assert (document["ready"], document["whyNot"]) == (False, ["waiting for etcd"])
    assert document["etcd"]["reachable"] is False
    assert document["etcd"]["unreachableSince"] is not None
    lab.etcd.restart()
    await agent.ready(within_s=8)
    assert (await told(one))["etcd"]["reachable"] is True
    lab.etcd.signal(0, signal.SIGSTOP)
    try:
        document = await until_told(one, lambda seen: not seen["etcd"]["reachable"], "etcd is away", timeout_s=20)
        assert document["ready"] is True  # packets flow
        assert "registry-unreachable, see below, since " in (await status(one)).stdout
    finally:
        lab.etcd.signal(0, signal.SIGCONT)
    await until_told(one, lambda seen: seen["etcd"]["reachable"] and not seen["conditions"], "it is back", timeout_s=20)


@pytest.mark.topology(hosts=1, containers=0)
async def test_an_agent_that_cannot_be_asked_is_one_line(lab: Lab) -> None:
    one = lab.host(1)
    path = one.run_dir / "agent.sock"

    async def complaint(*before: str) -> str:
        outcome = await status(one, before=before)
        assert (outcome.code, outcome.stdout) == (1, "")
        (line,) = outcome.stderr.splitlines()
        assert line.startswith(f"flannelpy: {path}: ")
        return line.removeprefix(f"flannelpy: {path}: ")

    assert "systemctl status flannelpy" in await complaint()
    await one.start_agent()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o755)  # the socket alone keeps others out, too
    for directory in (path.parent, *path.parent.parents[:2]):
        assert directory.stat().st_mode & 0o5 == 0o5, f"{directory} hides the socket, so this test would not try it"
    assert await complaint(*NOBODY) == "Permission denied; expected root, or the agent's own user"
    one.agent.signal(signal.SIGSTOP)
    try:
        assert (await complaint()).startswith("no answer within 5 s; ")
    finally:
        one.agent.signal(signal.SIGCONT)
    await one.agent.kill()
    assert path.is_socket()  # nobody was there to remove it
    assert (await complaint()).startswith("the agent that made it is gone; ")
    await one.start_agent()
    assert (await told(one))["pid"] == one.agent.pid
    await one.agent.stop()
    assert not path.exists()
    assert (await complaint()).startswith("there is no such socket; ")


@pytest.mark.topology(hosts=1, containers=0)
async def test_two_agents_of_one_host_answer_for_themselves(lab: Lab) -> None:
    one = lab.host(1)
    lab.etcd.put("/second/config", '{"Network":"10.2.0.0/16","Backend":{"Type":"host-gw"}}')
    await one.start_agent()
    below = one.directory / "second"
    below.mkdir()
    own = [f"--{name}={below / name}" for name in ("subnet-file", "state-dir", "run-dir")]
    words = one.agent_words("--etcd-prefix=/second", *own)
    second = one.namespace.spawn("second agent", words, log=below / "log", lasting=False)

    async def ready() -> bool:
        return (await status(one, run_dir=below / "run-dir")).code == 0

    await until(ready, 10, "the second is ready", second.tail)
    document = json.loads((await status(one, "--json", run_dir=below / "run-dir")).stdout)
    assert (document["pid"], document["backend"]["type"]) == (second.pid, "host-gw")
    assert (await told(one))["pid"] == one.agent.pid
    assert await second.stop() == 0
    assert (await status(one, run_dir=below / "run-dir")).code == 1
    assert (await told(one))["ready"]


@pytest.mark.topology(hosts=1, containers=0)
async def test_a_run_directory_that_cannot_be_written_is_one_warning(lab: Lab) -> None:
    one = lab.host(1)
    path = one.directory / "read-only"
    path.mkdir()
    await one.exec("mount", "-t", "tmpfs", "-o", "ro", "none", str(path))
    try:
        await one.start_agent(f"--run-dir={path}")
        assert len(Log.of(one).begun("warning:")) == 1
        (line,) = Log.of(one).begun("warning:")
        assert f"--run-dir {path}: Read-only file system; expected a directory that can be written; " in line
        assert (await status(one, run_dir=path)).code == 1
        put_leased(lab, LATE.key, LATE.value)
        await until_programmed(one, LATE)
        assert await one.agent.stop() == 0
    finally:
        await one.exec("umount", str(path))


@pytest.mark.topology(hosts=1, containers=0)
async def test_rude_clients_hold_nothing_up(lab: Lab) -> None:
    """More connections than are served, half requests, noise, answers that nobody takes: then a peer, a question, a stop."""
    one = lab.host(1)
    await one.start_agent()
    path = os.fspath(one.run_dir / "agent.sock")
    noise = (b"", b"GET /status HT", b"\x16\x03\x01\n\r\n\r\n", b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n" * 50, b"x" * 20_000)
    clients = []
    try:
        for number in range(200):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            clients.append(client)
            try:
                client.connect(path)
                client.send(noise[number % len(noise)])
            except (BlockingIOError, ConnectionError):  # the agent's queue is full, or it has cut this one: so be it
                await asyncio.sleep(0)
        put_leased(lab, LATE.key, LATE.value)
        await until_programmed(one, LATE)
        for client in clients:
            client.close()
        document = await until_told(one, lambda seen: seen["ready"], "an answer after the crowd", timeout_s=15)
        assert [peer["subnet"] for peer in document["peers"]] == [LATE.subnet]
        assert await one.agent.stop(within_s=5) == 0
    finally:
        for client in clients:
            client.close()
    assert Log.of(one).begun("error:") == []
