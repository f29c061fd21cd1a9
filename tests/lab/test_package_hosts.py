"""From a bare Debian to containers that meet, and back, with nothing but the package and an etcd: is it as docs/running.md says?

d1 - docker0 - h1 ==== vxlan or udp ==== h2 - docker0 - d2         etcd apart; 203.0.113.1 behind eth0 of each; no internet
Each host is a Debian 12 with docker.io, booted by systemd. What is typed there is what the README types.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from netaddr import IPAddress

from netns_lab.booted import CONTAINERS, Booted, missing
from netns_lab.docker import IMAGE, adopt, write_image
from netns_lab.docker import missing as no_docker
from netns_lab.host import Container
from netns_lab.lab import PREFIX, Lab
from tests.lab.agent_support import SUBNETS, captured, put_leased, until
from tests.lab.package_support import DEB
from tests.lab.test_package import EXPECTED, UNIT, newer  # noqa: F401
from tests.lab.test_systemd import main_pid, under_pings

ROOT = os.environ.get("FLANNELPY_HOSTS", "")
PLACE = "/opt/flannelpy.deb"
DROP_IN = "/etc/systemd/system/docker.service.d/flannelpy.conf"
DEFAULTS = "etc/default/flannelpy"
WITHIN_S = 60.0
CHURN = re.compile(r"/(var/lib|run)/(docker|containerd)(/|$)|/run/docker\.(pid|sock)$|/var/(lib|cache)/apt(/|$)")
"""What Docker and apt do in their own directories."""
VARIES = re.compile(r"^net\.netfilter\.nf_conntrack_(count|buckets|max)|^net\.ipv4\.inet_peer|^#|\bfe80:|tcp_fastopen_key|random")
NETWORK = """
ip -d -o link; ip -o addr; ip -4 route show table all; ip -6 route show table all; ip rule; ip -6 rule
ip neigh show nud permanent; bridge fdb show; nft -s list ruleset; iptables-nft-save; iptables-legacy-save
ip fou show 2>/dev/null; sysctl -a 2>/dev/null | grep '^net\\.'
"""

pytestmark = [
    pytest.mark.skipif(not (DEB and ROOT), reason="make test-package builds the package and a Debian with Docker, and runs these"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(bool(no_docker()), reason=no_docker()),
    pytest.mark.timeout(400),
]

vxlan = pytest.mark.topology(hosts=2, containers=0, bridge="unused")
both = pytest.mark.parametrize(
    ("kind", "mtu"), [pytest.param("vxlan", "1450", marks=vxlan, id="vxlan"), pytest.param("udp", "1472", marks=vxlan, id="udp")]
)


@dataclass
class Site:
    """A host of which only systemd, Docker and the package know anything."""

    lab: Lab
    number: int
    systemd: Booted
    name: str = ""
    """Of its container."""
    made: int = 0

    async def type(self, *words: str, within_s: float = WITHIN_S) -> str:
        """What root types there."""
        return await self.systemd.exec(*words, timeout_s=within_s)

    async def install(self, package: str = PLACE) -> str:
        """No network but the lab's is there."""
        return await self.type("apt-get", "install", "-qy", package, within_s=120)

    async def setup(self, kind: str) -> str:
        """One command, that asks nothing here; what it said."""
        settings = self.lab.host(self.number).settings
        assert settings is not None
        where = (f"--etcd-endpoints={settings.endpoints}", "--iface=eth1", "--ip-masq")
        what = ("--network=10.1.0.0/16", f"--backend={kind}")
        return await self.type("flannelpy", "setup", "--yes", *where, *what, within_s=150)

    async def run(self) -> Container:
        """A container that waits, in place of those before."""
        await self.remove()
        self.made += 1
        self.name = f"d{self.number}-{self.made}"
        await self.type("docker", "run", "-d", "--name", self.name, "--stop-signal=KILL", IMAGE, "sleep", "10000")
        inspected = await self.type("docker", "inspect", self.name)
        return await adopt(self.lab.host(self.number), self.lab._ledger, self.systemd.root, self.name, inspected)

    async def remove(self) -> None:
        """All containers."""
        await self.type("sh", "-c", "docker ps -aq | xargs -r docker rm -f")
        self.lab.host(self.number).containers = ()

    async def inside(self, *words: str) -> str:
        """A command in its container; what it printed, also where it fails."""
        return (await self.systemd.attempt("docker", "exec", self.name, *words, timeout_s=WITHIN_S)).stdout

    async def address(self) -> str:
        """Its container's."""
        said = await self.type("docker", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", self.name)
        return said.strip()

    async def bridge(self) -> str:
        """docker0's address."""
        text = await self.lab.host(self.number).exec("ip", "-4", "-o", "addr", "show", "docker0")
        return text.split()[3] if text else ""


@pytest.fixture
async def sites(lab: Lab) -> AsyncIterator[tuple[Site, Site]]:
    """Two that run Docker as Debian starts it, with an image, and the package lying there. The cluster has no config."""
    lab.etcd.delete(f"{PREFIX}/config")

    async def booted(number: int) -> Site:
        files = {"/etc/docker/daemon.json": '{"exec-opts": ["native.cgroupdriver=cgroupfs"]}\n'}  # there is no D-Bus
        site = Site(lab, number, await lab.boot(number, Path(ROOT), files, CONTAINERS))
        shutil.copyfile(DEB, site.systemd.root / PLACE.lstrip("/"))
        write_image(site.systemd.root / "opt/image.tar")
        await site.type("systemctl", "enable", "--now", "containerd.service", "docker.socket", "docker.service")
        await site.type("docker", "import", "/opt/image.tar", IMAGE)
        await site.type("docker", "run", "--rm", IMAGE, "sleep", "0")  # docker0 is another once it has had a port
        return site

    one, two = await asyncio.gather(booted(1), booted(2))
    yield one, two
    for site in (one, two):
        logged = await site.systemd.journal(UNIT)
        assert [line for line in logged if "Traceback" in str(line["MESSAGE"])] == []


async def meet(one: Site, two: Site) -> None:
    """Containers reach each other, both ways, as their hosts' users would see it."""
    for site, other in ((one, two), (two, one)):
        target = await other.address()

        async def answered(site: Site = site, target: str = target) -> bool:
            return " 0% packet loss" in await site.inside("ping", "-c1", "-W1", target)

        await until(answered, WITHIN_S, f"{other.name} answers {site.name}")


async def transfer(one: Site, two: Site) -> None:
    """20 MB arrive whole."""
    answering = asyncio.create_task(two.inside("nc", "-l", "-p", "7", "-e", "sha256sum"))

    async def listening() -> bool:
        return ":7" in await two.lab.container(two.name).exec("ss", "-Hltn")

    await until(listening, WITHIN_S, "d2 listens")
    send = f"head -c 20000000 /dev/urandom >/data; sha256sum </data; nc {await two.address()} 7 </data"
    sent, received = (await one.inside("sh", "-c", send)).splitlines()
    assert sent == received
    await answering


async def started(sites: tuple[Site, Site], kind: str) -> None:
    """From a bare Debian to containers that meet."""
    one, two = sites
    await asyncio.gather(*(site.install() for site in sites))
    for site in sites:
        assert "ready         yes" in await site.setup(kind)
    await asyncio.gather(*(site.type("systemctl", "restart", "docker") for site in sites))
    await asyncio.gather(*(site.run() for site in sites))
    await meet(one, two)


async def files(site: Site) -> dict[str, str]:
    """Each file of /etc, /var, /run, /usr and /opt: mode, owner, link; where it is a file of /etc a sum of what is in it."""
    listed = dict[str, str]()
    for place in ("/etc", "/var", "/usr", "/opt", "/run"):
        found = await site.type("find", place, "-xdev", "-path", "/run/systemd", "-prune", "-o", "-printf", "%p\t%M %u %g %l\n")
        listed |= dict(line.split("\t") for line in found.splitlines())
    for line in (await site.type("sh", "-c", "find /etc -type f -exec sha256sum {} +")).splitlines():
        digest, path = line.split(maxsplit=1)
        listed[path] += f" {digest}"
    return {path: about for path, about in listed.items() if not EXPECTED.match(path) and not CHURN.search(path)}


async def network(site: Site) -> set[str]:
    """What ip, nft, iptables-save and sysctl show, without counters and ages, once docker0 has nothing on it."""

    async def bare() -> bool:
        """A bridge that was made a moment ago does not say yet that it has no carrier."""
        return "NO-CARRIER" in await site.lab.host(site.number).exec("ip", "-br", "link", "show", "docker0")

    await until(bare, WITHIN_S, "docker0 has no carrier")
    told = await site.lab.host(site.number).exec("sh", "-c", NETWORK, timeout_s=WITHIN_S)
    ages = r"\[\d+:\d+\]|\bage \d+|valid_lft \w+|preferred_lft \w+|\w+_timer +[\d.]+"
    lines = (re.sub(ages, "", line).strip() for line in told.splitlines())
    return {line for line in lines if line and not VARIES.search(line)}


@both
async def test_a_bare_debian_gets_an_overlay_and_a_purge_takes_it_away(
    lab: Lab,
    sites: tuple[Site, Site],
    newer: Path,  # noqa: F811
    kind: str,
    mtu: str,
) -> None:
    one, two = sites
    before, net = await files(one), await network(one)
    bridge = await one.bridge()
    began = time.monotonic()
    await started(sites, kind)
    print(f"{kind}: from two bare hosts to a ping {time.monotonic() - began:.1f} s")
    await transfer(one, two)
    for site in sites:
        assert await site.bridge() == lab.host(site.number).subnet_env()["FLANNEL_SUBNET"]
        assert (await site.inside("cat", "/sys/class/net/eth0/mtu")).strip() == mtu

    pid = await main_pid(one.systemd)
    await one.type("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)

    async def another() -> bool:
        told = await one.systemd.show(UNIT, "MainPID", "ActiveState")
        return told["ActiveState"] == "active" and told["MainPID"] not in ("0", str(pid))

    await until(another, WITHIN_S, "another agent")
    await meet(one, two)
    await one.type("systemctl", "restart", UNIT)
    await meet(one, two)
    shutil.copyfile(newer, one.systemd.root / "opt/newer.deb")
    edited = (one.systemd.root / DEFAULTS).read_text()
    await one.install("/opt/newer.deb")
    assert (one.systemd.root / DEFAULTS).read_text() == edited
    await meet(one, two)
    (one.systemd.root / "opt/newer.deb").unlink()

    await one.remove()
    subnet = await one.bridge()
    await one.type("apt-get", "purge", "-qy", "flannelpy", within_s=120)
    assert not (one.systemd.root / DROP_IN.lstrip("/")).exists()
    # Docker has written down which address docker0 has, and gives it another one only when it is told one.
    await one.type("systemctl", "restart", "docker")
    assert await one.bridge() == subnet
    told = one.systemd.root / "etc/docker/daemon.json"
    was = told.read_text()
    told.write_text(json.dumps({**json.loads(was), "bip": bridge}))
    await one.type("systemctl", "restart", "docker")
    told.write_text(was)
    await one.type("systemctl", "restart", "docker")
    assert await one.bridge() == bridge
    after = await files(one)
    assert {path: about for path, about in after.items() if before.get(path) != about} == {}
    assert set(before) - set(after) == set()
    now = await network(one)
    assert "\n".join(sorted(now - net)) == ""
    assert "\n".join(sorted(net - now)) == ""


@vxlan
async def test_what_an_operator_changes_later_is_as_documented(lab: Lab, sites: tuple[Site, Site]) -> None:
    one, two = sites
    await started(sites, "vxlan")
    with lab.host(1).outside_view() as outside:
        ping = asyncio.create_task(one.inside("ping", "-c1", "-W2", "203.0.113.1"))
        assert await outside.source() == IPAddress("10.0.2.15")
        await ping

    # Who masquerades: the agent, and then Docker, so that hosts see each other's bridge in place of the container.
    await one.type("sed", "-i", "s/^FLANNELPY_IP_MASQ=.*/FLANNELPY_IP_MASQ=false/", f"/{DEFAULTS}")
    await one.type("systemctl", "restart", UNIT)
    await one.type("systemctl", "restart", "docker")
    assert lab.host(1).subnet_env()["FLANNEL_IPMASQ"] == "false"
    await one.run()
    await meet(one, two)
    with lab.host(1).outside_view() as outside:
        ping = asyncio.create_task(one.inside("ping", "-c1", "-W2", "203.0.113.1"))
        assert await outside.source() == IPAddress("10.0.2.15")
        await ping
    async with lab.pcap(two.name, "eth0", "icmp[icmptype]=icmp-echo") as capture:
        await one.inside("ping", "-c1", "-W2", await two.address())
        assert f"{lab.host(1).subnet.ip} > {await two.address()}" in (await captured(capture, 1))[0]

    # Another backend is followed in place.
    pids = [await main_pid(site.systemd) for site in sites]
    config = json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}})
    await one.type("sh", "-c", f"echo '{config}' | flannelpy config put --yes -")

    async def by_udp() -> bool:
        said = [json.loads(await site.type("flannelpy", "status", "--json")) for site in sites]
        return all(each["ready"] and each["backend"]["type"] == "udp" for each in said)

    await until(by_udp, WITHIN_S, "both hosts by udp")
    await meet(one, two)
    assert [await main_pid(site.systemd) for site in sites] == pids

    # Another subnet: Docker is told at its next start, and until then the agent says so.
    old = str(lab.host(1).subnet)
    value = '{"PublicIP":"192.168.50.99","PublicIPv6":null,"BackendType":"udp"}'
    put_leased(lab, f"{SUBNETS}/{old.replace('/', '-')}", value)
    await until(lambda: str(lab.host(1).subnet) != old, WITHIN_S, "another subnet in subnet.env")

    seen: list[str] = []

    async def said() -> bool:
        outcome = await one.systemd.attempt("flannelpy", "status", "--json")
        seen[:] = [each["text"] for each in json.loads(outcome.stdout)["conditions"]]
        return any(text.startswith("our subnet has changed") for text in seen)

    await until(said, WITHIN_S, "that the subnet is another", lambda: str(seen))
    await one.type("systemctl", "restart", "docker")
    assert await one.bridge() == lab.host(1).subnet_env()["FLANNEL_SUBNET"]
    await one.run()
    await meet(one, two)


@vxlan
async def test_a_host_that_boots_without_etcd_has_its_overlay(lab: Lab, sites: tuple[Site, Site]) -> None:
    one, two = sites
    await started(sites, "vxlan")
    subnet = lab.host(1).subnet
    await one.systemd.power_off()
    lab.etcd.kill()
    # What a machine forgets with its kernel.
    host = lab.host(1)
    await host.exec("sh", "-c", "ip link del flannel.1; ip link del docker0; nft flush ruleset; ip route flush proto 102; true")
    one.systemd = await lab.boot(1, Path(ROOT), None, CONTAINERS)
    for unit in (UNIT, "docker.service"):

        async def up(unit: str = unit) -> bool:
            return (await one.systemd.show(unit, "ActiveState"))["ActiveState"] == "active"

        await until(up, WITHIN_S, f"{unit} is up")
    assert lab.host(1).subnet == subnet
    assert await one.bridge() == lab.host(1).subnet_env()["FLANNEL_SUBNET"]
    await one.run()
    await meet(one, two)
    assert "etcd has not been reached since the start" in await one.type("sh", "-c", "flannelpy status; true")
    lab.etcd.restart()

    async def well() -> bool:
        return (await one.systemd.attempt("flannelpy", "status")).code == 0

    await until(well, WITHIN_S, "all is well once etcd is there")


@vxlan
async def test_an_upgrade_of_a_host_with_docker_loses_no_ping(
    lab: Lab,
    sites: tuple[Site, Site],
    newer: Path,  # noqa: F811
) -> None:
    await started(sites, "vxlan")
    shutil.copyfile(newer, sites[0].systemd.root / "opt/newer.deb")
    names = [site.name for site in sites]
    tally, _rate = await under_pings(lab, lambda: sites[0].install("/opt/newer.deb"), *names)
    assert tally.lost == 0
