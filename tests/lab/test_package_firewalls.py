"""Behind the firewalls that Debian has: what passes before docs/ports.md is followed, what doctor says, and what passes after?

c1 - h1 (a Debian that systemd has booted, with that firewall and the package) ==== vxlan ==== h2 - c2         etcd apart
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from netaddr import IPAddress

from netns_lab.booted import Booted, missing
from netns_lab.lab import Lab
from tests.lab.agent_support import captured, until
from tests.lab.package_support import DEB
from tests.lab.test_package import PLACE, UNIT, configure, install
from tests.lab.test_package_hosts import ROOT
from tests.lab.test_systemd import main_pid

DOCS = Path(__file__).parents[2] / "docs/ports.md"
WITHIN_S = 60.0
LOCK = "/run/xtables.lock"
NFTABLES = """#!/usr/sbin/nft -f
flush ruleset
table inet mine {
  chain in {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept
    iifname "lo" accept
    INPUT
  }
  chain through {
    type filter hook forward priority filter; policy drop;
    FORWARD
  }
}
"""

pytestmark = [
    pytest.mark.skipif(
        not (DEB and ROOT), reason="make test-package builds the package and a Debian with firewalls, and runs these"
    ),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.topology(hosts=2),
    pytest.mark.timeout(300),
]


def typed(name: str) -> list[str]:
    """The lines that docs/ports.md has an operator type for this firewall."""
    text = DOCS.read_text().partition("### What to type")[2]
    block = re.search(rf"^{name}[^\n]*:\n\n((?: {{4}}[^\n]*\n)+)", text, re.MULTILINE)
    assert block, name
    return [line.strip() for line in block[1].splitlines()]


@dataclass
class Walled:
    """h1, whose firewall is up before the agent is."""

    lab: Lab
    systemd: Booted

    async def type(self, *lines: str) -> None:
        """What root types there."""
        for line in lines:
            await self.systemd.exec("sh", "-c", line, timeout_s=WITHIN_S)

    async def start(self) -> None:
        """Both agents; containers have their addresses."""
        await install(self.systemd)
        await configure(self.lab, self.systemd)
        await self.systemd.exec("systemctl", "start", UNIT, timeout_s=WITHIN_S)
        await self.lab.host(2).start_agent()
        await self.lab.connect_containers()

    async def passes(self, source: str, target: str) -> bool:
        return (await self.lab.ping(source, target, wait_s=1.0)).ok

    async def nothing_passes(self) -> None:
        """Neither what c1 asks, whose answer comes encapsulated, nor what c2 asks."""
        assert not await self.passes("c1", "c2")
        assert not await self.passes("c2", "c1")

    async def all_passes(self) -> None:
        """Both ways, and each container is seen as itself."""
        for source, target in (("c1", "c2"), ("c2", "c1")):
            await until(lambda source=source, target=target: self.passes(source, target), WITHIN_S, f"{source} reaches {target}")
            async with self.lab.pcap(target, "eth0", "icmp[icmptype]=icmp-echo") as capture:
                assert await self.passes(source, target)
                seen = await captured(capture, 1)
            assert f"{self.lab.container(source).address} > {self.lab.container(target).address}" in seen[0]
        with self.lab.host(1).outside_view() as outside:
            await self.lab.ping("c1", "203.0.113.1", wait_s=1.0)
            assert await outside.source() == IPAddress("10.0.2.15")

    async def doctor(self) -> tuple[int, str]:
        """Its exit code, and its lines that say what stops packets."""
        outcome = await self.systemd.attempt("flannelpy", "doctor", timeout_s=WITHIN_S)
        return outcome.code, outcome.stdout


@pytest.fixture
async def walled(lab: Lab) -> AsyncIterator[Walled]:
    systemd = await lab.boot(1, Path(ROOT))
    shutil.copyfile(DEB, systemd.root / PLACE.lstrip("/"))
    yield Walled(lab, systemd)
    logged = await systemd.journal(UNIT)
    assert [line for line in logged if "Traceback" in str(line["MESSAGE"])] == []


async def test_ufw(walled: Walled) -> None:
    await walled.type("ufw --force enable")
    await walled.start()
    await walled.nothing_passes()
    code, said = await walled.doctor()
    assert (code, "ufw allow in on eth1 to any port 8472 proto udp" in said) == (3, True), said
    await walled.type(*typed("ufw"))
    await walled.all_passes()
    code, said = await walled.doctor()
    assert "UDP 8472 from 192.168.50.12 on eth1 is let in" in said
    await walled.type("ufw reload")
    await walled.all_passes()


async def test_firewalld(walled: Walled) -> None:
    await walled.type("systemctl start dbus firewalld")
    await walled.start()
    await walled.nothing_passes()
    code, said = await walled.doctor()
    assert (code, "firewall-cmd --permanent --add-port=8472/udp" in said) == (3, True), said
    await walled.type(*typed("firewalld"))
    await walled.all_passes()
    code, said = await walled.doctor()
    assert "UDP 8472 from 192.168.50.12 on eth1 is let in" in said
    await walled.type("systemctl restart firewalld")
    await walled.all_passes()


async def test_nftables_service(walled: Walled) -> None:
    rules = walled.systemd.root / "etc/nftables.conf"
    first, *others = typed("nftables")
    rules.write_text(NFTABLES.replace("INPUT", "").replace("FORWARD", ""))
    await walled.type("systemctl start nftables")
    await walled.start()
    await walled.nothing_passes()
    code, said = await walled.doctor()
    assert (code, "chain in of nft table inet mine" in said) == (3, True), said
    assert "chain through of nft table inet mine" in said
    rules.write_text(NFTABLES.replace("INPUT", first).replace("FORWARD", "\n".join(others)))
    await walled.type("systemctl reload nftables")  # with which all other tables go, too
    await walled.all_passes()


@pytest.mark.parametrize("kind", ["nft", "legacy"])
async def test_iptables(walled: Walled, kind: str) -> None:
    """iptables-legacy, too: its tables and its lock are root's, and the package's agent is not root (docs/ports.md)."""
    command = f"iptables-{kind}"
    opens = "iptables" if kind == "nft" else command
    closing = (
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -j REJECT",
        "-P FORWARD DROP",
    )
    await walled.type(*(f"{command} {rule}" for rule in closing))
    await walled.start()
    await walled.nothing_passes()
    code, said = await walled.doctor()
    assert (code, f"{opens} -I INPUT -i eth1 -p udp --dport 8472 -j ACCEPT" in said) == (3, True), said
    await walled.type(*(line.replace("iptables ", f"{command} ", 1) for line in typed("iptables")))
    await walled.all_passes()


async def forward(walled: Walled) -> list[str]:
    """The rules of the old FORWARD that are the agent's."""
    said = await walled.systemd.exec("iptables-legacy", "-S", "FORWARD")
    return [line for line in said.splitlines() if "--comment flannelpy " in line]


async def lock(walled: Walled) -> str:
    """Mode and group of iptables-legacy's lock."""
    return (await walled.systemd.exec("stat", "-c", "%a %U %G", LOCK)).strip()


async def test_an_agent_that_is_not_root_puts_rules_of_iptables_legacy_and_takes_them_away(walled: Walled) -> None:
    """The lock comes while the agent runs; rules go when they are not needed, and with the package what was opened is closed."""
    await walled.start()
    assert (await walled.systemd.attempt("test", "-e", LOCK)).code == 1
    ours = [f"-A FORWARD -{way} 10.1.0.0/16 -m comment --comment flannelpy -j ACCEPT" for way in "sd"]

    async def there(rules: list[str]) -> bool:
        return sorted(await forward(walled)) == sorted(rules)

    await walled.type("iptables-legacy -P FORWARD DROP")
    await until(lambda: there(ours), WITHIN_S, "the agent's rules")
    assert await lock(walled) == "640 root flannelpy"
    assert (await walled.systemd.exec("stat", "-c", "%U", f"/proc/{await main_pid(walled.systemd)}")).strip() == "flannelpy"
    await walled.all_passes()
    await walled.type("iptables-legacy -F FORWARD")
    await until(lambda: there(ours), WITHIN_S, "the agent's rules, put back")
    await walled.type("iptables-legacy -A FORWARD -s 192.0.2.1 -j DROP", "iptables-legacy -P FORWARD ACCEPT")
    await until(lambda: there([]), WITHIN_S, "no rule of the agent's")
    assert "-A FORWARD -s 192.0.2.1/32 -j DROP" in await walled.systemd.exec("iptables-legacy", "-S", "FORWARD")
    await walled.all_passes()

    await walled.type("iptables-legacy -P FORWARD DROP")
    await until(lambda: there(ours), WITHIN_S, "the agent's rules")
    await walled.systemd.exec("dpkg", "-P", "flannelpy", timeout_s=WITHIN_S)
    assert (await lock(walled), await forward(walled)) == ("600 root root", [])
