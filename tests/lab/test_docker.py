"""Is it true what docs/running.md says of Docker? A real dockerd on each host, started as the drop-in in packaging/ starts it.

d1 - docker0 - h1 ==== vxlan or udp ==== h2 - docker0 - d2         etcd apart; 203.0.113.1 behind eth0 of each host
Forwarding is off at first, as on a fresh Debian. h1's Docker writes its rules by iptables-nft, h2's by iptables-legacy.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from netaddr import IPAddress, IPNetwork

from netns_lab.docker import Docker, hierarchies, missing
from netns_lab.lab import PROGRAM, Lab
from netns_lab.topology import Topology
from tests.lab.agent_support import (  # noqa: F401
    SUBNETS,
    captured,
    lab_name,
    losing_nothing,
    no_traceback,
    put_leased,
    remember_subnet,
    shell,
    until,
)

ALONE = ("--iptables-forward-rules=false",)
"""What the drop-in does for Docker is looked at by itself: the agent's own rules in FORWARD let the overlay through, too."""

DROP_IN = Path(__file__).parents[2] / "packaging" / "systemd" / "docker-flannelpy.conf"

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

# docker0 is for Docker to make.
vxlan = pytest.mark.topology(hosts=2, containers=0, bridge="unused")
udp = pytest.mark.topology(hosts=2, containers=0, bridge="unused", backend="udp")


@pytest.fixture
async def lab(request: pytest.FixtureRequest, lab_name: str) -> AsyncIterator[Lab]:  # noqa: F811
    """A lab of which nothing is left, also where the test has failed."""
    async with Lab.up(Topology(**request.node.get_closest_marker("topology").kwargs), name=lab_name) as made:
        yield made
    assert traces(lab_name) == []


def traces(name: str) -> list[str]:
    """Processes, mounts and cgroups that a lab has left."""
    found = [str(path) for hierarchy in hierarchies() for path in hierarchy.glob(f"netns-lab-{name}-*")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = process.joinpath("cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        found += [arguments] if f"/{name}" in arguments else []
    return found


@pytest.fixture
async def dockers(lab: Lab) -> tuple[Docker, ...]:
    """Agents that are ready, Dockers that were started after them, an image. Host n has subnet n."""
    for host in lab.hosts:
        await host.exec("sysctl", "-qw", "net.ipv4.ip_forward=0")
        remember_subnet(host, f"10.1.{host.plan.number}.0/24", "10.1.0.0/16")
    await lab.start_agents(*ALONE)
    made = (lab.docker(1, iptables="nft"), lab.docker(2, iptables="legacy"))
    await asyncio.gather(*(start(docker) for docker in made))
    await asyncio.gather(*(docker.load_image() for docker in made))
    return made


def drop_in(key: str) -> str:
    """The last value of a key of the drop-in, with the lines that continue it."""
    text = DROP_IN.read_text().replace("\\\n", " ")
    return re.findall(rf"^{key}=-?(.+)$", text, re.MULTILINE)[-1]


async def start(docker: Docker) -> None:
    """What ExecStartPre and ExecStart say. Where it listens is systemd's affair; the files have other places here."""
    host = docker.host
    output = host.directory / "docker_opts.env"
    *unset, program, command = shlex.split(drop_in("ExecStartPre"))
    assert program == "/usr/bin/flannelpy"
    files = ("-f", str(host.subnet_file), "-d", str(output))
    await host.exec("env", *read(output), *unset, *PROGRAM, command, *files)
    words = drop_in("ExecStart").split()
    assert words == ["dockerd", "-H", "fd://", "--containerd=/run/containerd/containerd.sock", "$DOCKER_OPTS"]
    options = next(word for word in read(output) if word.startswith("DOCKER_OPTS=")).partition("=")[2].split()
    assert [option.partition("=")[0] for option in options] == ["--bip", "--ip-masq", "--mtu"]
    await docker.start(*options)


async def admit(docker: Docker) -> None:
    """What ExecStartPost says; systemd makes one dollar of two."""
    words = [word.replace("$$", "$") for word in shlex.split(drop_in("ExecStartPost"))]
    await docker.host.exec("env", f"PATH={docker.path}", *read(docker.host.subnet_file), *words)


def read(file: Path) -> list[str]:
    """``name=value`` of each line, as systemd reads an EnvironmentFile before each command (systemd.exec(5))."""
    return shlex.split(file.read_text()) if file.exists() else []


async def iptables(docker: Docker, *words: str) -> list[str]:
    return (await docker.host.exec("env", f"PATH={docker.path}", "iptables", *words)).splitlines()


async def meet(lab: Lab, dockers: tuple[Docker, ...]) -> None:
    """Containers d1 and d2 that may reach each other."""
    await asyncio.gather(*(docker.run(f"d{number}") for number, docker in enumerate(dockers, 1)))
    for docker in dockers:
        await admit(docker)
    assert (await lab.ping("d1", "d2")).ok


@pytest.mark.parametrize("mtu", [pytest.param("1450", marks=vxlan, id="vxlan"), pytest.param("1472", marks=udp, id="udp")])
async def test_containers_of_two_hosts_meet(lab: Lab, dockers: tuple[Docker, ...], mtu: str) -> None:
    one, two = dockers
    await asyncio.gather(one.run("d1"), two.run("d2"))
    for docker in dockers:
        subnet = docker.host.subnet_env()["FLANNEL_SUBNET"]
        assert f"inet {subnet} " in await docker.host.exec("ip", "-4", "-o", "addr", "show", "docker0")
        name = f"d{docker.host.plan.number}"
        assert lab.container(name).address in IPNetwork(subnet)
        assert await docker.do("exec", name, "cat", "/sys/class/net/eth0/mtu") == mtu
        assert f"mtu {mtu} " in await docker.host.exec("ip", "link", "show", "docker0")

    # Docker has switched forwarding on and lets FORWARD drop. What the drop-in does after Docker's start is what helps.
    for docker in dockers:
        assert (await iptables(docker, "-S", "FORWARD"))[0] == "-P FORWARD DROP"
    assert not (await lab.ping("d1", "d2", wait_s=0.3)).ok
    assert not (await lab.ping("d2", "d1", wait_s=0.3)).ok
    for docker in (*dockers, *dockers):  # at each start of Docker, and the rule is there once
        await admit(docker)
    rule = "-A DOCKER-USER -s 10.1.0.0/16 -d 10.1.0.0/16 ! -i docker0 -m comment --comment flannelpy_docker -j ACCEPT"
    assert await iptables(one, "-S", "DOCKER-USER") == ["-N DOCKER-USER", rule, "-A DOCKER-USER -j RETURN"]
    assert (await iptables(two, "-S", "DOCKER-USER")).count(rule) == 1
    async with lab.pcap("d2", "eth0", "icmp[icmptype]=icmp-echo") as capture:
        assert " 0% packet loss" in await one.do("exec", "d1", "ping", "-c1", "-W2", "10.1.2.2")
        assert "10.1.1.2 > 10.1.2.2" in (await captured(capture, 1))[0]
    assert " 0% packet loss" in await two.do("exec", "d2", "ping", "-c1", "-W2", "10.1.1.2")
    assert (await lab.ping("h1", "d2")).ok
    whole = ["ping", "-n", "-c1", "-W2", "-M", "do", "-s", str(int(mtu) - 28), "10.1.2.2"]
    assert " 0% packet loss" in await lab.container("d1").exec(*whole)

    # A transfer arrives whole: d2 answers with the sum of what it got.
    answering = asyncio.create_task(two.do("exec", "d2", "nc", "-l", "-p", "7", "-e", "sha256sum"))
    await until(lambda: shell(lab.container("d2"), "ss -Hltn sport = :7"), 5, "d2 listens")
    send = "head -c 20000000 /dev/urandom >/data; sha256sum </data; nc 10.1.2.2 7 </data"
    sent, received = (await one.do("exec", "d1", "sh", "-c", send)).splitlines()
    assert sent == received
    await answering

    # To the outside the agent masquerades, not Docker.
    assert not [line for line in await iptables(one, "-t", "nat", "-S", "POSTROUTING") if "MASQUERADE" in line]
    with lab.host(1).outside_view() as outside:
        ping = asyncio.create_task(one.do("exec", "d1", "ping", "-c1", "-W2", "203.0.113.1"))
        assert await outside.source() == IPAddress("10.0.2.15")
        assert " 0% packet loss" in await ping


@vxlan
async def test_an_agent_that_restarts_costs_containers_no_packet(lab: Lab, dockers: tuple[Docker, ...]) -> None:
    await meet(lab, dockers)
    async with losing_nothing(lab, "d1", "d2"):
        await lab.host(1).agent.restart()
    async with losing_nothing(lab, "d1", "d2"):
        await lab.host(2).agent.kill()
        await lab.host(2).start_agent()


@vxlan
async def test_a_docker_that_is_restarted_has_what_is_new(lab: Lab, dockers: tuple[Docker, ...]) -> None:
    await meet(lab, dockers)
    one, docker = lab.host(1), dockers[0]
    value = (
        '{"PublicIP":"192.168.50.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}'
    )
    put_leased(lab, f"{SUBNETS}/10.1.1.0-24", value)
    await until(lambda: str(one.subnet) != "10.1.1.0/24", 5, "another subnet in subnet.env")
    await one.agent.stop()
    await one.start_agent("--ip-masq=false")
    await docker.stop()
    await start(docker)
    await admit(docker)
    bridge = await shell(one, "ip -4 -o addr show docker0")
    assert [line.split()[3] for line in bridge] == [one.subnet_env()["FLANNEL_SUBNET"]]
    # A container of before has an address of the new subnet when it is started again.
    await docker.do("start", "d1")
    address = await docker.do("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "d1")
    assert IPAddress(address) in one.subnet
    assert (await lab.ping("d2", address)).ok
    # Docker masquerades now, to the outside and to other hosts' containers, which see an address of the host.
    with one.outside_view() as outside:
        await docker.do("exec", "d1", "ping", "-c1", "-W2", "203.0.113.1")
        assert await outside.source() == IPAddress("10.0.2.15")
    async with lab.pcap("d2", "eth0", "icmp[icmptype]=icmp-echo") as capture:
        await docker.do("exec", "d1", "ping", "-c1", "-W2", "10.1.2.2")
        assert f"{one.subnet.ip} > 10.1.2.2" in (await captured(capture, 1))[0]
