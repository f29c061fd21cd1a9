"""Do containers that a runtime connects by CNI reach each other? Debian's plugins, ours, and the network that we install.

p1 - cni0 - h1 ==== vxlan or udp ==== h2 - cni0 - p2         etcd apart; p1 and p2 are c1 and c2 with an interface from ADD
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPNetwork

from netns_lab.host import Container, Host
from netns_lab.lab import PROGRAM, Lab

DEBIANS = Path(sys.prefix) / "cni/usr/lib/cni"
"""Where ``make setup`` unpacks containernetworking-plugins."""
TODAYS = Path(sys.prefix) / "cache/cni"
"""Where ``make cnis`` builds those that know CNI 1.1.0, and cnitool, which asks as runtimes do."""
NETWORK = "10-flannel.conflist"
DEVICE = "net1"

pytestmark = pytest.mark.skipif(
    not (DEBIANS / "bridge").exists(), reason=f"no CNI: {DEBIANS}/bridge not there; make setup puts it there where there is apt-get"
)

vxlan = pytest.mark.topology(hosts=2, bridge="unused")
udp = pytest.mark.topology(hosts=2, bridge="unused", backend="udp")


class Runtime:
    """What a container runtime does on a host (CNI specification, section 3), with all files below the host's directory."""

    def __init__(self, host: Host, version: str, plugins: Path = DEBIANS) -> None:
        self.host = host
        self.plugins = plugins
        self.bin, self.conf, self.data = (host.directory / name for name in ("cni-bin", "cni-conf", "cni-data"))
        self.version = version
        self.results: dict[str, Any] = {}
        self.ports: list[dict[str, Any]] = []

    async def install(self) -> None:
        """The files of ``flannelpy cni install``; their paths are those of the lab, and the version is the test's."""
        await self.host.exec(*PROGRAM, "cni", "install", "--bin-dir", str(self.bin), "--conf-dir", str(self.conf))
        network = json.loads((self.conf / NETWORK).read_text())
        ours = {"subnetFile": str(self.host.subnet_file), "dataDir": str(self.data), "ipam": {"dataDir": str(self.data / "ipam")}}
        network["plugins"][0].update(ours)
        network["cniVersion"] = self.version
        (self.conf / NETWORK).write_text(json.dumps(network))

    async def ask(self, command: str, container: Container, **more: object) -> str:
        """Each plugin of the network in turn, at DEL the last first; what the last said. Fails with what one that failed said.

        ``more`` is in each plugin's configuration.
        """
        network = json.loads((self.conf / NETWORK).read_text())
        plugins, previous, said = network["plugins"], self.results.get(container.name), ""
        for plugin in plugins if command != "DEL" else plugins[::-1]:
            given = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"], **more}
            if given.pop("capabilities", {}).get("portMappings") and self.ports:
                given["runtimeConfig"] = {"portMappings": self.ports}
            if previous is not None:
                given["prevResult"] = previous
            answer = await self.host.attempt(
                "env",
                f"CNI_COMMAND={command}",
                f"CNI_CONTAINERID={container.name}-0123abcd",
                f"CNI_NETNS={container.namespace.path}",
                f"CNI_IFNAME={DEVICE}",
                f"CNI_PATH={self.bin}:{self.plugins}",
                str((self.bin if plugin["type"] == "flannel" else self.plugins) / plugin["type"]),
                stdin=json.dumps(given),
            )
            assert answer.code == 0, (plugin["type"], command, answer)
            said = answer.stdout
            if command == "ADD":
                previous = json.loads(said)
        if command == "ADD":
            self.results[container.name] = previous
        return said

    def address(self, container: Container) -> IPNetwork:
        """What ADD said that the container has."""
        return IPNetwork(self.results[container.name]["ips"][0]["address"])


async def connected(lab: Lab, version: str, *ports: dict[str, Any]) -> tuple[Runtime, Runtime]:
    """Agents that are ready, and on each host a container that its runtime has connected."""
    await lab.start_agents()
    one, two = Runtime(lab.host(1), version), Runtime(lab.host(2), version)
    await asyncio.gather(one.install(), two.install())
    one.ports = list(ports)
    await asyncio.gather(*(each.ask("ADD", each.host.containers[0]) for each in (one, two)))
    return one, two


async def pings(source: Container, target: IPNetwork, *options: str) -> bool:
    return (await source.attempt("ping", "-n", "-c1", "-W2", *options, str(target.ip))).code == 0


@pytest.mark.parametrize(
    ("version", "mtu"),
    [
        pytest.param("0.3.1", 1450, marks=vxlan, id="vxlan-0.3.1"),
        pytest.param("1.0.0", 1450, marks=vxlan, id="vxlan-1.0.0"),
        pytest.param("0.4.0", 1472, marks=udp, id="udp-0.4.0"),
    ],
)
async def test_containers_of_two_hosts_meet_and_leave_nothing(lab: Lab, version: str, mtu: int) -> None:
    runtimes = await connected(lab, version)
    (one, p1), (two, p2) = ((each, each.host.containers[0]) for each in runtimes)
    for runtime, container in ((one, p1), (two, p2)):
        assert runtime.address(container) in runtime.host.subnet
        assert f" mtu {mtu} " in await container.exec("ip", "link", "show", DEVICE)
        assert f"inet {runtime.host.subnet_env()['FLANNEL_SUBNET']} " in await runtime.host.exec("ip", "-4", "addr", "show", "cni0")
        if version != "0.3.1":  # which knows no CHECK
            assert await runtime.ask("CHECK", container) == ""
    whole = ("-M", "do", "-s", str(mtu - 28))
    assert await pings(p1, two.address(p2), *whole)
    assert await pings(p2, one.address(p1), *whole)

    gone = one.address(p1)
    for _ in range(2):  # the second finds nothing left, and succeeds
        for runtime, container in ((one, p1), (two, p2)):
            assert await runtime.ask("DEL", container) == ""
    assert not await pings(p2, gone)
    for runtime, container in ((one, p1), (two, p2)):
        assert (await container.attempt("ip", "link", "show", DEVICE)).code != 0
        assert await runtime.host.exec("ip", "-o", "link", "show", "master", "cni0") == ""
        left = {path.name for path in runtime.data.rglob("*") if path.is_file()}
        assert left <= {"lock", "last_reserved_ip.0"}, "host-local's own, whatever container asks next"


@vxlan
async def test_an_agent_that_starts_anew_changes_nothing_for_containers(lab: Lab) -> None:
    one, two = await connected(lab, "1.0.0")
    p1, p2 = one.host.containers[0], two.host.containers[0]
    assert await pings(p1, two.address(p2))
    await one.host.agent.restart()
    assert await pings(p1, two.address(p2))
    await one.ask("DEL", p1)
    await one.ask("ADD", p1)
    assert await pings(p2, one.address(p1))


@vxlan
async def test_a_port_of_the_host_leads_to_a_container(lab: Lab) -> None:
    one, two = await connected(lab, "1.0.0", {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"})
    p1 = one.host.containers[0]
    serve = "import socket; s = socket.create_server(('', 80)); print('ready', flush=True); c = s.accept()[0]; c.sendall(b'hello')"
    log = one.host.directory / "server.log"
    p1.namespace.spawn("server", [sys.executable, "-c", serve], log=log, lasting=False)  # it ends with the lab
    await lab.until(lambda: log.read_text() == "ready\n", what="the server listens")
    ask = f"import socket; print(socket.create_connection(('{one.host.address}', 8080), 10).recv(9).decode())"
    assert (await two.host.exec(sys.executable, "-c", ask)).strip() == "hello"
    assert "--dport 8080" in await one.host.exec("iptables", "-t", "nat", "-S")
    await one.ask("DEL", p1)
    assert "--dport 8080" not in await one.host.exec("iptables", "-t", "nat", "-S")


@pytest.mark.topology(hosts=2, bridge="unused", agent_options=())
async def test_where_the_agent_does_not_masquerade_the_bridge_does(lab: Lab) -> None:
    one, _ = await connected(lab, "1.0.0")
    p1 = one.host.containers[0]
    kept = json.loads((one.data / f"{p1.name}-0123abcd").read_text())
    assert kept["ipMasq"] is True
    assert "MASQUERADE" in await one.host.exec("iptables", "-t", "nat", "-S")
    await one.ask("DEL", p1)
    assert "MASQUERADE" not in await one.host.exec("iptables", "-t", "nat", "-S")


@vxlan
async def test_without_a_subnet_there_is_one_error(lab: Lab) -> None:
    runtime = Runtime(lab.host(1), "1.0.0")
    await runtime.install()
    with pytest.raises(AssertionError, match=r"subnet\.env: no such file or directory"):
        await runtime.ask("ADD", runtime.host.containers[0])
    assert await runtime.ask("DEL", runtime.host.containers[0]) == ""


# ------------------------------------------------------------------------------------- as a runtime of today asks: CNI 1.1.0

today = pytest.mark.skipif(not (TODAYS / "cnitool").exists(), reason=f"{TODAYS}/cnitool not there; make cnis builds it")


async def cnitool(runtime: Runtime, command: str, container: Container) -> tuple[int, str]:
    """Its exit code, and all that it has said."""
    where = (f"CNI_PATH={runtime.bin}:{runtime.plugins}", f"NETCONFPATH={runtime.conf}", f"CNI_IFNAME={DEVICE}")
    cache = f"{runtime.host.directory}/cni-cache"
    words = ("env", *where, f"CNI_CACHE_DIR={cache}", str(TODAYS / "cnitool"), command, "cbr0", str(container.namespace.path))
    outcome = await runtime.host.attempt(*words)
    return outcome.code, outcome.stdout + outcome.stderr


@today
@vxlan
async def test_the_network_is_ready_when_the_agent_is_and_containers_are_checked(lab: Lab) -> None:
    one, two = (Runtime(host, "1.1.0", TODAYS) for host in lab.hosts)
    p1, p2 = one.host.containers[0], two.host.containers[0]
    await asyncio.gather(one.install(), two.install())
    code, said = await cnitool(one, "status", p1)
    assert (code, "no such file or directory" in said) == (1, True), said
    await lab.start_agents()
    assert await cnitool(one, "status", p1) == (0, "")

    code, said = await cnitool(one, "add", p1)
    assert code == 0, said
    one.results[p1.name] = json.loads(said)
    assert (await cnitool(two, "add", p2))[0] == 0
    assert await cnitool(one, "check", p1) == (0, "")
    assert await pings(p2, one.address(p1))
    assert await cnitool(one, "del", p1) == (0, "")
    assert not await pings(p2, one.address(p1))


@today
@pytest.mark.topology(hosts=1, containers=2, bridge="unused")
async def test_what_a_runtime_has_forgotten_is_collected(lab: Lab) -> None:
    await lab.start_agents()
    one = Runtime(lab.host(1), "1.1.0", TODAYS)
    await one.install()
    kept, lost = one.host.containers
    for container in (kept, lost):
        await one.ask("ADD", container)
    files = {path.name for path in one.data.iterdir() if path.is_file()}
    assert files == {f"{kept.name}-0123abcd", f"{lost.name}-0123abcd"}
    taken = one.data / "ipam/cbr0"
    assert (taken / str(one.address(lost).ip)).exists()

    await one.ask("GC", kept, **{"cni.dev/valid-attachments": [{"containerID": f"{kept.name}-0123abcd", "ifname": DEVICE}]})
    assert {path.name for path in one.data.iterdir() if path.is_file()} == {f"{kept.name}-0123abcd"}
    assert (taken / str(one.address(kept).ip)).exists()
    assert await one.ask("DEL", kept) == ""
    assert await one.ask("DEL", lost) == "", "a runtime that comes back to it is told that all is done"
