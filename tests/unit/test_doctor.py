"""What does the doctor find on a host? Each check both ways, on a kernel in memory and files of the test's own."""

from __future__ import annotations

import asyncio
import errno
import grp
import json
import os
import pwd
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.commands.doctor import agent, files, firewall, host, kernel, others, ports
from flannelpy.commands.doctor.about import About
from flannelpy.commands.doctor.page import page
from flannelpy.commands.doctor.run import CHECKS, Check, findings_of
from flannelpy.core.errors import KernelError
from flannelpy.core.forward_accept import ForwardAccept, Tool
from flannelpy.core.forwarding import FORWARD, Hindrance, forward_rules
from flannelpy.core.objects import Key, Route
from flannelpy.core.packet_filter import Base, Rule, Ruleset
from flannelpy.core.policy_rule import PolicyRule
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.explain.doctor import FAILED, OK, SCHEMA, SKIPPED, WARNING, Finding, exit_code, sorted_findings, to_json
from flannelpy.explain.status import BackendStatus, ConditionStatus, EtcdStatus, LeaseStatus, Status, SubnetFileStatus, UplinkStatus
from flannelpy.host.subnet_env import parse
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry import Endpoint
from flannelpy.settings import Settings
from tests.unit.test_xt_matches import HOST, NAMED

from .test_packet_filter import ACCEPT, DROP, asks, ip, meta, net, table

VXLAN = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
LEASE = LeaseStatus("10.5.7.0-24", "10.5.7.0/24", None, "192.0.2.1", None, "held", False)
STATUS = Status(
    version="1",
    pid=1,
    since="2026-01-01T00:00:00Z",
    ready=True,
    why_not=(),
    etcd=EtcdStatus(True, "http://etcd:2379", ("http://etcd:2379",), "/coreos.com/network"),
    backend=BackendStatus("vxlan", 1450),
    lease=LEASE,
    subnet_file=SubnetFileStatus("/run/flannel/subnet.env", True),
    conditions=(),
)
ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ=false\n"


def interface(name: str, index: int, *nets: str, mtu: int = 1450) -> Interface:
    held = tuple(InterfaceAddress(IPNetwork(net).ip, IPNetwork(net).prefixlen) for net in nets)
    return Interface(name, index, mtu, True, held)


async def none(_networks: object) -> list[Route]:
    return []


@pytest.fixture
def about(tmp_path: Path) -> About:
    """A host that is well: its agent runs, docker0 is in its subnet."""
    for name in ("state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    settings = Settings(
        Endpoint(("http://etcd:2379",)),
        subnet_file=tmp_path / "subnet.env",
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
        iface=("eth1",),
    )
    made = FakeKernel([interface("eth1", 2, "192.0.2.1/24", mtu=1500), interface("docker0", 3, "10.5.7.1/24")])
    told = parse(ENV.format("10.5.7.1/24", 1450))
    found = About(settings, made, status=STATUS, told=told, root=tmp_path, routes_inside=none, policy_rules=none)
    found.take(json.dumps(VXLAN))
    return found


def fake(about: About) -> FakeKernel:
    assert isinstance(about.kernel, FakeKernel)
    return about.kernel


async def found(about: About, check: Check) -> list[Finding]:
    return await findings_of(about, {"it": check})


async def only(about: About, check: Check) -> Finding:
    (finding,) = await found(about, check)
    return finding


LOCAL = {name: check for name, check in CHECKS.items() if name not in ("etcd", "kernel", "capabilities", "other agents")}


async def test_a_host_that_is_well_is_told_nothing_to_do(about: About) -> None:
    findings = await findings_of(about, LOCAL)
    assert {finding.state for finding in findings} <= {OK, SKIPPED}, findings
    assert not any(finding.remedy for finding in findings)
    assert exit_code(findings) == 0


# --------------------------------------------------------------------------------------------------------------- the runner


async def raising(_about: About) -> AsyncIterator[Finding]:
    yield Finding("first", OK, "seen")
    raise ZeroDivisionError("division by zero\x1b[31m")


async def never(_about: About) -> AsyncIterator[Finding]:
    yield Finding("first", OK, "seen")
    await asyncio.Event().wait()


def refusing(_about: About) -> Iterator[Finding]:
    yield Finding("first", OK, "seen")
    raise KernelError("netlink: Permission denied")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (raising, r"the check itself failed: ZeroDivisionError: division by zero\x1b[31m"),
        (never, "not done within 0.05 s"),
        (refusing, "cannot be looked at: netlink: Permission denied"),
    ],
)
async def test_a_check_that_fails_stops_no_other(about: About, check: Check, said: str) -> None:
    findings = await findings_of(about, {"odd": check, "forwarding": host.forwarding}, 0.05)
    odd = [finding for finding in findings if finding.name == "odd"]
    assert [(finding.state, finding.said) for finding in odd if finding.state == SKIPPED] == [(SKIPPED, said)]
    assert findings[-1] == Finding("forwarding", OK, "on")


async def test_a_disk_that_does_not_answer_holds_up_nobody(about: About) -> None:
    stuck = threading.Event()

    def waiting(_about: About) -> Iterator[Finding]:
        stuck.wait()
        yield Finding("disk", OK, "there")

    findings = await findings_of(about, {"disk": waiting, "forwarding": host.forwarding}, 0.05)
    stuck.set()
    assert [(finding.name, finding.state) for finding in findings] == [("disk", SKIPPED), ("forwarding", OK)]


MIXED = [Finding("a", OK, "x"), Finding("b", WARNING, "x", "do b"), Finding("c", SKIPPED, "x"), Finding("d", FAILED, "x", "do d")]


@pytest.mark.parametrize(("states", "code"), [("", 0), ("ac", 0), ("abc", 4), ("abcd", 3), ("d", 3)])
def test_the_exit_code_is_by_the_worst(states: str, code: int) -> None:
    findings = [finding for finding in MIXED if finding.name in states]
    assert exit_code(findings) == code
    document = json.loads(to_json(findings, "9.9"))
    assert (document["schema"], document["version"], document["exitCode"]) == (SCHEMA, "9.9", code)
    assert [check["name"] for check in document["checks"]] == list(states)


def test_the_worst_comes_first_and_remedies_are_below() -> None:
    assert [finding.name for finding in sorted_findings(MIXED)] == ["d", "b", "c", "a"]
    lines = page(MIXED, 80, colours=False)
    assert [line.split()[0] for line in lines[1:5]] == ["failed", "warning", "skipped", "ok"]
    assert lines.index("what to do") < next(at for at, line in enumerate(lines) if line.endswith("do d"))
    assert lines[-1] == "1 failed, 1 warning, 1 skipped, 1 ok"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [40, 80, 132])
def test_long_names_and_words_go_on_in_the_next_line(width: int) -> None:
    long = Finding("etcd http://[2001:db8::7]:2379: connection and more", FAILED, "word " * 60, "mend " * 60)
    lines = page([long, *MIXED], width, colours=False)
    assert max(map(len, lines)) <= max(width, 60)
    text = " ".join(lines)
    assert (text.count("word"), text.count("mend")) == (60, 60)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b[31mfailed" in "".join(page([long], width, colours=True))


# ------------------------------------------------------------------------------------------------------------------ the agent


async def test_each_condition_is_a_finding_with_its_remedy(about: About) -> None:
    conditions = [
        ConditionStatus(f"code-{severity}", severity, "", f"text {severity}", "do it", "now", severity == "error")
        for severity in ("error", "warning", "info")
    ]
    about.status = replace(STATUS, ready=False, why_not=("text error", "waiting for a lease"), conditions=tuple(conditions))
    assert await found(about, agent.agent) == [
        Finding("agent: code-error", FAILED, "text error", "do it"),
        Finding("agent: code-warning", WARNING, "text warning", "do it"),
        Finding("agent", WARNING, "not ready: waiting for a lease", "flannelpy status shows what it waits for"),
    ]


@pytest.mark.parametrize(("preflight", "state"), [(True, SKIPPED), (False, WARNING)])
async def test_that_no_agent_runs_is_no_fault_before_the_first_start(about: About, preflight: bool, state: str) -> None:
    about.status, about.silent, about.preflight = None, "there is no such socket", preflight
    assert (await only(about, agent.agent)).state == state


# ------------------------------------------------------------------------------------------------------------------- the host


@pytest.mark.parametrize(("preflight", "state"), [(True, WARNING), (False, FAILED)])
async def test_forwarding(about: About, preflight: bool, state: str) -> None:
    about.preflight = preflight
    fake(about).sysctls["net/ipv4/ip_forward"] = "0"
    finding = await only(about, host.forwarding)
    assert (finding.state, finding.remedy.split(";")[0]) == (state, "sysctl -w net.ipv4.ip_forward=1")


@pytest.mark.parametrize(("backend", "device"), [("host-gw", "eth1"), ("vxlan", "flannel/1")])
async def test_forwarding_of_what_peers_packets_come_by(about: About, backend: str, device: str) -> None:
    about.take(f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "{backend}"}}}}')
    for name in ("eth1", "flannel.1"):
        fake(about).sysctls[f"net/ipv4/conf/{name}/forwarding"] = "0"
    finding = await only(about, host.forwarding)
    assert (finding.state, finding.remedy.split(";")[0]) == (FAILED, f"sysctl -w net.ipv4.conf.{device}.forwarding=1")


@pytest.mark.parametrize(
    ("backend", "state"),
    [
        ({"Type": "alloc"}, OK),
        ({"Type": "extension", "SubnetAddCommand": "true"}, OK),  # by which device is the commands' matter
        ({"Type": "ipsec", "PSK": "x" * 96}, FAILED),
        ({"Type": "host-gw"}, FAILED),
    ],
)
async def test_the_uplink_forwards_where_it_is_known_that_packets_come_by_it(
    about: About, backend: dict[str, str], state: str
) -> None:
    about.take(json.dumps({"Network": "10.5.0.0/16", "Backend": backend}))
    fake(about).sysctls["net/ipv4/conf/eth1/forwarding"] = "0"
    assert (await only(about, host.forwarding)).state == state


@pytest.mark.parametrize(
    ("hindrance", "rules", "state", "word"),
    [
        (None, True, OK, "nothing drops"),
        (Hindrance(4, "ip filter", FORWARD, "policy drop", "nft"), True, OK, "2 rules of the agent"),
        (Hindrance(4, "ip filter", FORWARD, "policy drop", "nft"), False, WARNING, "--iptables-forward-rules is false"),
        (Hindrance(0, "inet hard", "forward", "policy drop"), True, FAILED, "chain forward of nft table inet hard"),
        (Hindrance(6, "ip6 filter", FORWARD, "policy drop", "nft"), False, WARNING, "ip6 filter"),
    ],
)
async def test_firewall(about: About, hindrance: Hindrance | None, rules: bool, state: str, word: str) -> None:
    fake(about).firewall = () if hindrance is None else (hindrance,)
    about.settings = replace(about.settings, forward_rules=rules)
    put_accepts(about)
    finding = (await found(about, firewall.firewall))[0]
    assert finding.state == state
    assert word in finding.said
    assert bool(finding.remedy) == (state != OK)


def put_accepts(about: About, *tools: Tool) -> None:
    """As an agent does that may; ``tools``: by whose commands, every one where none is named."""
    assert about.config is not None
    for rule in forward_rules(fake(about).firewall, about.config.networks, "flannelpy")[0]:
        if isinstance(rule, ForwardAccept) and rule.tool in (tools or ("nft", "legacy")):
            fake(about).plant(rule)


@pytest.mark.parametrize("done", [(), ("nft",), ("legacy",)])
async def test_rules_that_an_agent_could_not_put_there_are_not_said_to_be_there(about: About, done: tuple[Tool, ...]) -> None:
    """As with iptables-legacy, which asks for root's lock."""
    fake(about).firewall = tuple(Hindrance(4, f"{tool} filter", FORWARD, "policy drop", tool) for tool in ("nft", "legacy"))
    if done:
        put_accepts(about, *done)
    finding = await only(about, firewall.firewall)
    assert finding.state == FAILED
    assert finding.said.startswith(f"{2 if done else 4} of 4 rules that let the overlay through")
    assert ("iptables-legacy" in finding.remedy) == (done != ("legacy",))
    put_accepts(about)
    assert (await only(about, firewall.firewall)).state == OK
    fake(about).flush_forward()
    about.status = None  # nobody has put any there yet
    assert (await only(about, firewall.firewall)).state == OK


SOURCE = [asks(ip("saddr"), net("10.5.0.0/16")), DROP]
SOURCE6 = [asks({"payload": {"protocol": "ip6", "field": "saddr"}}, net("fd00:5::/48")), DROP]
BACK = [asks(meta("iifname"), "flannel.1"), DROP]
DUAL = {**VXLAN, "EnableIPv6": True, "IPv6Network": "fd00:5::/48"}


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    ("config", "rules", "word"),
    [
        (VXLAN, table(SOURCE, [ACCEPT]), "what containers in 10.5.7.0/24 send to 10.5.128.0/17 by flannel.1"),
        (VXLAN, table(BACK, [ACCEPT]), "what containers in 10.5.128.0/17 send to 10.5.7.0/24 by docker0"),
        (VXLAN, table(SOURCE, hook="postrouting"), "what containers in 10.5.7.0/24 send to 10.5.128.0/17 by flannel.1"),
        (VXLAN, table(SOURCE, hook="input"), ""),
        (VXLAN, table([ACCEPT], SOURCE), ""),
        (VXLAN, table(SOURCE6), ""),
        (DUAL, table(SOURCE6), "what containers in fd00:5::/49 send to fd00:5:0:8000::/49 by flannel-v6.1"),
        ({**DUAL, "Backend": {"Type": "ipip"}}, table(SOURCE6), ""),
        (VXLAN, table([asks(ip("saddr"), "10.5.7.9"), DROP]), ""),
        (VXLAN, table([asks(meta("oifname"), "eth1"), DROP]), ""),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}, table([asks(meta("oifname"), "eth1"), DROP]), "by eth1"),
    ],
)
async def test_a_rule_that_drops_what_is_forwarded(about: About, config: Any, rules: Ruleset, word: str, runs: bool) -> None:
    """Such a chain lets other things through, and is no obstacle as a whole."""
    about.status = STATUS if runs else None
    about.take(json.dumps(config))
    fake(about).rules = rules
    (finding,) = await found(about, firewall.firewall)
    assert finding.state == (FAILED if word else OK), finding
    assert word in finding.said
    assert bool(finding.remedy) == bool(word)


async def test_what_the_agent_has_told_is_not_told_twice(about: About) -> None:
    told = ConditionStatus("firewall-drops", "error", "x", "dropped", "", "now", False)
    about.status = replace(STATUS, conditions=(told,))
    fake(about).rules = table(SOURCE)
    assert (await only(about, firewall.firewall)).state == OK


@pytest.mark.parametrize(("put", "state"), [(True, OK), (False, WARNING)])
async def test_what_the_agent_will_put_there_counts_before_it_runs(about: About, put: bool, state: str) -> None:
    about.status, about.settings = None, replace(about.settings, forward_rules=put)
    place = ("ip", "filter", FORWARD)
    fake(about).rules = Ruleset((Base(place, "forward", 0, "drop"),), {place: ()})
    fake(about).firewall = (Hindrance(4, "ip filter", FORWARD, "policy drop", "nft"),)
    assert (await only(about, firewall.firewall)).state == state


@pytest.mark.parametrize(
    ("table", "why", "remedy"),
    [
        (
            "inet firewalld",
            "it ends in: reject with icmpx admin-prohibited",
            "firewall-cmd --permanent --zone=trusted --add-source=",
        ),
        ("inet filter", "it ends in: counter drop", "nft insert rule inet filter fw ip saddr "),
        ("inet filter", "policy drop", "nft insert rule inet filter fw ip saddr "),
    ],
)
async def test_what_mends_a_dropping_chain_is_the_command_alone(about: About, table: str, why: str, remedy: str) -> None:
    about.status = None
    fake(about).firewall = (Hindrance(0, table, "fw", why),)
    finding = next(each for each in await found(about, firewall.firewall) if each.state == FAILED)
    assert finding.remedy.startswith(remedy)
    assert finding.said.startswith(f"chain fw of nft table {table} ({why}) has no rule for ")


def closed(table: str, chain: str, *ufws: str) -> Ruleset:
    """A chain at the hook input that takes only TCP."""
    place = ("ip", table, chain)
    tcp = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}
    rules = Rule(place, 1, (tcp, {"accept": None})), Rule(place, 2, ({"drop": None},))
    return Ruleset((Base(place, "input", 0, "accept"),), {place: rules, **{("ip", table, name): () for name in ufws}})


@pytest.mark.parametrize(
    ("rules", "remedy"),
    [
        (closed("filter", "INPUT"), "iptables -I INPUT -i eth1 -p udp --dport 8472 -j ACCEPT"),
        (closed("filter (iptables-legacy)", "INPUT"), "iptables-legacy -I INPUT -i eth1 -p udp --dport 8472 -j ACCEPT"),
        (closed("filter", "INPUT", "ufw-before-input"), "ufw allow in on eth1 to any port 8472 proto udp"),
        (closed("firewalld", "filter_INPUT"), "firewall-cmd --permanent --add-port=8472/udp"),
        (closed("mine", "in"), "nft insert rule ip mine in iifname eth1 udp dport 8472 accept"),
    ],
    ids=["iptables", "legacy", "ufw", "firewalld", "nft"],
)
async def test_a_port_that_is_closed_is_named_with_what_opens_it(about: About, rules: Ruleset, remedy: str) -> None:
    assert (await only(about, ports.incoming)).state == OK
    fake(about).rules = rules
    finding = await only(about, ports.incoming)
    assert finding.state == FAILED
    assert finding.said.startswith("UDP 8472 from 192.0.2.0 on eth1 is dropped by ")
    assert finding.remedy.startswith(remedy)
    about.preflight = True
    assert (await only(about, ports.incoming)).state == WARNING
    about.take('{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}')
    assert (await only(about, ports.incoming)).state == SKIPPED


async def test_a_port_that_is_open_for_new_connections_is_open(about: About) -> None:
    fake(about).rules = HOST
    assert (await only(about, ports.incoming)).state == OK
    fake(about).rules = NAMED
    finding = await only(about, ports.incoming)
    assert finding.state == WARNING
    assert " may be dropped by " in finding.said


@pytest.mark.parametrize(
    ("docker0", "state"),
    [
        (interface("docker0", 3, "10.5.7.1/24"), OK),
        (interface("docker0", 3, "10.5.8.1/24"), FAILED),
        (interface("docker0", 3, "172.17.0.1/16"), WARNING),
        (interface("docker0", 3, "10.5.7.1/24", mtu=1500), WARNING),
        (interface("docker0", 3), OK),
        (interface("br-own", 3, "10.5.7.1/24"), OK),
        (interface("br-own", 3, "10.5.7.1/24", mtu=1500), WARNING),
    ],
)
async def test_bridge(about: About, docker0: Interface, state: str) -> None:
    fake(about).take_interface("docker0")
    fake(about).set_interface(docker0)
    assert (await only(about, host.bridges)).state == state


async def test_the_device_of_what_is_preferred_is_no_bridge(about: About) -> None:
    about.take(json.dumps({**VXLAN, "Backend": {"Type": "vxlan", "Prefer": ["wireguard"]}}))
    fake(about).set_interface(interface("flannel-wg", 9, "10.5.7.0/32", mtu=1420))
    assert (await only(about, host.bridges)).said == "docker0 (MTU 1450) in 10.5.7.0/24"


@pytest.mark.parametrize(
    ("route", "state"),
    [
        (Route(IPNetwork("10.5.9.0/25"), dev="eth1", proto=3), WARNING),
        (Route(IPNetwork("10.5.9.0/24"), dev="flannel.1", proto=3), OK),
        (Route(IPNetwork("10.5.9.0/24"), dev="eth1"), OK),
        (Route(IPNetwork("10.5.7.0/24"), dev="docker0", proto=2), OK),
    ],
)
async def test_routes_of_others_inside_the_overlay(about: About, route: Route, state: str) -> None:
    async def inside(_networks: object) -> list[Route]:
        return [route]

    about.routes_inside = inside
    finding = await only(about, host.routes)
    assert finding.state == state
    assert ("10.5.9.0/25 dev eth1" in finding.remedy) == (state == WARNING)


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_policy_rules_about_the_overlay(about: About, count: int) -> None:
    rules = [PolicyRule(4, 100 + number, table=66, destination=IPNetwork("10.5.9.0/24")) for number in range(count)]

    async def concerning(_networks: object) -> list[PolicyRule]:
        return rules

    about.policy_rules = concerning
    findings = await found(about, host.routes)
    assert [finding.state for finding in findings] == ([WARNING] * count or [OK])
    assert all(f"ip rule del {rule}," in finding.remedy for rule, finding in zip(rules, findings, strict=False))


@pytest.mark.parametrize(("net", "state"), [("198.51.100.1/24", OK), ("10.5.99.1/24", FAILED)])
async def test_a_network_of_the_host_inside_the_overlay(about: About, net: str, state: str) -> None:
    fake(about).set_interface(interface("eth2", 9, net))
    assert (await found(about, host.routes))[0].state == state


@pytest.mark.parametrize(("name", "state"), [("eth1", OK), ("eth7", FAILED)])
async def test_uplink_before_an_agent_runs(about: About, name: str, state: str) -> None:
    about.status, about.settings = None, replace(about.settings, iface=(name,))
    assert (await only(about, host.uplink)).state == state


@pytest.mark.parametrize(
    ("config", "number"),
    [
        (VXLAN, 8472),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}, 4789),
        ({"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}, 8285),
    ],
)
@pytest.mark.parametrize(("who", "state"), [("", OK), ("process 7 (other)", FAILED)])
async def test_port(
    about: About, config: dict[str, object], number: int, who: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(ports, "holder", lambda port: asked.append(port) or who)
    about.status = None
    about.take(json.dumps(config))
    finding = await only(about, ports.port)
    assert (finding.state, asked) == (state, [number])


async def test_a_strict_filter_is_told_and_no_fault(about: About) -> None:
    fake(about).sysctls["net/ipv4/conf/all/rp_filter"] = "1"
    finding = await only(about, host.reverse_path)
    assert (finding.state, "flannel.1 (net.ipv4.conf.all.rp_filter is 1)" in finding.said) == (OK, True)


async def test_what_needs_the_network_is_skipped_where_it_is_not_known(about: About) -> None:
    about.config, about.backend, about.unknown, about.status = None, None, "not known", None
    findings = await findings_of(about, {"f": firewall.firewall, "r": host.routes, "p": ports.port, "b": host.bridges})
    assert {finding.state for finding in findings} == {SKIPPED}


# ----------------------------------------------------------------------------------------------------------------- the kernel


@pytest.mark.parametrize(
    ("backend", "missing", "states"),
    [
        ("udp", "", {"kernel: fou": OK, "kernel: nftables": OK}),
        ("udp", "fou", {"kernel: fou": OK, "kernel: nftables": OK}),
        ("wireguard", "", {"kernel: wireguard": OK, "kernel: nftables": OK}),
        ("wireguard", "wireguard", {"kernel: wireguard": FAILED, "kernel: nftables": OK}),
        ("ipsec", "", {"kernel: xfrm": OK, "kernel: nftables": OK}),
        ("ipsec", "xfrm", {"kernel: xfrm": FAILED, "kernel: nftables": OK}),
        ("host-gw", "", {"kernel: nftables": OK}),
    ],
)
async def test_what_the_backend_needs_of_the_kernel(
    about: About, backend: str, missing: str, states: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "geteuid", lambda: 0)
    fake(about).unknown, about.status = {missing}, None
    options = {"PSK": "x" * 96} if backend == "ipsec" else {}
    about.take(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": backend, **options}}))
    findings = [finding for finding in await found(about, kernel.features) if finding.name not in ("kernel: tun", "charon")]
    assert {finding.name: finding.state for finding in findings} == states
    assert all(bool(finding.remedy) == (finding.state != OK) for finding in findings)


async def test_ipsec_takes_a_daemon_and_a_library(about: About, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "IKE_PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    about.status = None
    about.take(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec", "PSK": "x" * 96}}))

    async def finding() -> tuple[str, str]:
        (one,) = [each for each in await found(about, kernel.features) if each.name == "charon"]
        return one.state, one.remedy

    assert await finding() == (FAILED, "apt-get install strongswan-charon strongswan-swanctl libstrongswan-standard-plugins")
    await asyncio.to_thread((tmp_path / "charon").touch, 0o755)
    assert await finding() == (OK, "")
    monkeypatch.setattr(kernel, "IKE_LIBRARY", "nobody_has_it")
    assert await finding() == (FAILED, "pip install 'flannelpy[ipsec]'")


async def test_only_root_can_try_the_kernel(about: About, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "geteuid", lambda: 1000)
    about.status = None
    assert (await only(about, kernel.features)).state == SKIPPED


@pytest.mark.parametrize(
    ("status", "tried"),
    [
        (STATUS, 0),
        (replace(STATUS, ready=False), 2),
        (replace(STATUS, conditions=(ConditionStatus("kernel-refused", "error", "", "no vxlan", "", "now", False),)), 2),
        (replace(STATUS, conditions=(ConditionStatus("bridge-mtu", "warning", "", "large", "", "now", False),)), 0),
        (None, 2),
    ],
)
async def test_what_a_running_agent_has_made_is_not_tried(
    about: About, monkeypatch: pytest.MonkeyPatch, status: Status | None, tried: int
) -> None:
    monkeypatch.setattr(kernel, "geteuid", lambda: 0)
    about.status = status
    findings = await found(about, kernel.features)
    assert fake(about).calls["rehearse"] == tried
    if not tried:
        assert findings == [Finding("kernel", OK, "the running agent has made what vxlan needs")]


# ------------------------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize(("mode", "state"), [(0o700, OK), (0o755, OK), (0o775, WARNING), (0o777, WARNING)])
async def test_directories_are_ours_to_write(about: About, mode: int, state: str) -> None:
    about.settings.state_dir.chmod(mode)
    finding = (await found(about, files.directories))[0]
    assert (finding.name, finding.state) == ("file: --state-dir", state)


@pytest.mark.parametrize(("asks", "state"), [("root", FAILED), ("its owner", FAILED), ("nobody", SKIPPED)])
async def test_what_only_the_caller_cannot_write_is_not_judged(
    about: About, monkeypatch: pytest.MonkeyPatch, asks: str, state: str
) -> None:
    owner = about.settings.state_dir.stat().st_uid
    monkeypatch.setattr("os.access", lambda *_args, **_more: False)
    monkeypatch.setattr("os.geteuid", lambda: {"root": 0, "its owner": owner, "nobody": owner + 65534}[asks])
    findings = [finding for finding in await found(about, files.directories) if finding.name != "file: --subnet-file"]
    assert [finding.state for finding in findings] == [state, state]
    assert all(("only root can judge that" in finding.said) == (state == SKIPPED) for finding in findings)
    assert all(bool(finding.remedy) == (state == FAILED) for finding in findings)


@pytest.mark.parametrize(("user", "state"), [(0, FAILED), (1000, SKIPPED)])
async def test_what_is_hidden_from_the_caller_is_not_judged(
    about: About, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, state: str
) -> None:
    def hidden(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    endpoint = replace(about.settings.endpoint, username="u", password_file=str(tmp_path / "password"))
    about.settings = replace(about.settings, endpoint=endpoint)
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr(Path, "stat", hidden)
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    findings = [*files.directories(about), *files.secrets(about)]
    assert [finding.state for finding in findings] == [state] * 3


@pytest.mark.parametrize(("user", "state"), [(0, WARNING), (1000, SKIPPED)])
async def test_a_callers_own_capabilities_are_not_the_agents(
    about: About, monkeypatch: pytest.MonkeyPatch, user: int, state: str
) -> None:
    about.status = None
    monkeypatch.setattr(kernel, "geteuid", lambda: user)
    monkeypatch.setattr(Path, "read_text", lambda _path: "CapEff:\t0000000000000000\n")
    (finding,) = kernel.capabilities(about)
    assert finding.state == state


async def test_a_directory_that_is_a_file(about: About) -> None:
    about.settings.state_dir.rmdir()
    about.settings.state_dir.write_text("")
    assert (await found(about, files.directories))[0].state == FAILED


@pytest.mark.parametrize(("mode", "state"), [(0o600, OK), (0o640, OK), (0o644, WARNING), (0o660, WARNING)])
async def test_secrets_are_not_open_to_others_and_never_told(about: About, tmp_path: Path, mode: int, state: str) -> None:
    path = tmp_path / "password"
    path.write_text("SEEDED-SECRET")
    path.chmod(mode)
    about.settings = replace(about.settings, endpoint=replace(about.settings.endpoint, username="u", password_file=str(path)))
    finding = await only(about, files.secrets)
    assert finding.state == state
    assert "SEEDED-SECRET" not in f"{finding}"


@pytest.mark.skipif(os.geteuid() != 0, reason="to ask as another user needs root")
@pytest.mark.parametrize("flag", ["etcd-password-file", "wireguard-key-file"])
@pytest.mark.parametrize("first_start", [True, False])
@pytest.mark.parametrize(
    ("owner", "mode", "folder", "state", "remedy"),
    [
        pytest.param("root", 0o600, 0o755, FAILED, "chgrp {0} {1} && chmod 640 {1}", id="root's alone"),
        pytest.param("root", 0o644, 0o755, WARNING, "chgrp {0} {1} && chmod 640 {1}", id="everybody's: 600 would end the agent"),
        pytest.param("group", 0o640, 0o755, OK, "", id="as it is advised"),
        pytest.param("agent", 0o600, 0o755, OK, "", id="the agent's"),
        pytest.param("agent", 0o644, 0o755, WARNING, "chmod 600 {1}", id="the agent's, open"),
    ],
)
def test_advice_on_a_secret_does_not_shut_the_agent_out(
    about: About,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    owner: str,
    mode: int,
    folder: int,
    state: str,
    remedy: str,
    first_start: bool,
) -> None:
    agent = pwd.getpwnam("daemon")
    monkeypatch.setattr(files, "AGENT", agent.pw_name)
    if first_start:
        about.settings.state_dir.rmdir()
    else:
        os.chown(about.settings.state_dir, agent.pw_uid, agent.pw_gid)
    with TemporaryDirectory() as place:  # not below a directory of root's alone
        Path(place).chmod(folder)
        path = Path(place, "password")
        path.write_text("SEEDED-SECRET")
        os.chown(path, agent.pw_uid if owner == "agent" else 0, agent.pw_gid if owner == "group" else 0)
        path.chmod(mode)
        if flag == "etcd-password-file":
            endpoint = replace(about.settings.endpoint, username="u", password_file=str(path))
            about.settings = replace(about.settings, endpoint=endpoint)
        else:
            about.settings = replace(about.settings, wireguard_key_file=path)
            remedy = remedy.replace("chgrp", "chown").replace("640", "600")
        (finding,) = files.secrets(about)
        assert (finding.state, finding.remedy) == (state, remedy.format(agent.pw_name, path))
        if remedy:
            subprocess.run(["sh", "-c", f"chmod 755 {place}; {finding.remedy}"], check=True)
            assert [each.state for each in files.secrets(about)] == [OK]


@pytest.mark.skipif(os.geteuid() != 0, reason="to ask as another user needs root")
@pytest.mark.parametrize(("mode", "remedy"), [(0o640, "usermod -aG mail {0}"), (0o600, "chgrp {0} {1} && chmod 640 {1}")])
def test_a_group_that_reads_a_secret_goes_on_to(about: About, monkeypatch: pytest.MonkeyPatch, mode: int, remedy: str) -> None:
    agent = pwd.getpwnam("daemon")
    monkeypatch.setattr(files, "AGENT", agent.pw_name)
    about.settings.state_dir.rmdir()
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        path = Path(place, "key")
        path.write_text("SEEDED-SECRET")
        path.chmod(mode)
        os.chown(path, 0, grp.getgrnam("mail").gr_gid)
        about.settings = replace(about.settings, endpoint=replace(about.settings.endpoint, username="u", password_file=str(path)))
        (finding,) = files.secrets(about)
        assert (finding.state, finding.remedy) == (FAILED, remedy.format(agent.pw_name, path))


@pytest.mark.skipif(os.geteuid() != 0, reason="to ask as another user needs root")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
@pytest.mark.parametrize(
    ("group", "folder", "remedy"),
    [
        ("root", 0o700, "chgrp {0} {1} && chmod g+x {1}"),
        ("root", 0o750, "chgrp {0} {1} && chmod g+x {1}"),
        ("mail", 0o700, "chgrp {0} {1} && chmod g+x {1}"),
        ("mail", 0o710, "usermod -aG mail {0}"),  # as ssl-cert's
    ],
)
def test_a_folder_that_shuts_the_agent_out_is_what_is_mended(
    about: About, monkeypatch: pytest.MonkeyPatch, mode: int, group: str, folder: int, remedy: str
) -> None:
    agent = pwd.getpwnam("daemon")
    monkeypatch.setattr(files, "AGENT", agent.pw_name)
    about.settings.state_dir.rmdir()
    with TemporaryDirectory() as place:  # not below a directory of root's alone
        Path(place).chmod(0o755)
        inner = Path(place, "pki")
        (inner / "deeper").mkdir(parents=True)
        path = inner / "deeper" / "password"
        path.write_text("SEEDED-SECRET")
        path.chmod(mode)
        os.chown(inner, 0, grp.getgrnam(group).gr_gid)
        inner.chmod(folder)
        endpoint = replace(about.settings.endpoint, username="u", password_file=str(path))
        about.settings = replace(about.settings, endpoint=endpoint)
        (finding,) = files.secrets(about)
        said = f"{path}: {agent.pw_name}, the service's user, may not enter {inner}"
        assert (finding.state, finding.said, finding.remedy) == (FAILED, said, remedy.format(agent.pw_name, inner))
        if not remedy.startswith("usermod"):
            subprocess.run(["sh", "-c", finding.remedy], check=True)
            (second,) = files.secrets(about)
            if second.remedy:
                subprocess.run(["sh", "-c", second.remedy], check=True)
            assert [each.state for each in files.secrets(about)] == [OK]


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (ENV.format("10.5.7.1/24", 1450), OK),
        (ENV.format("10.5.8.1/24", 1450), FAILED),
        (ENV.format("10.5.7.1/24", 1500), WARNING),
        ("", FAILED),
    ],
)
async def test_the_subnet_file_says_what_the_agent_has(about: About, text: str, state: str) -> None:
    about.told = parse(text)
    assert (await found(about, files.subnet_file))[0].state == state


# ----------------------------------------------------------------------------------------------------------------- the others


def write(path: Path, said: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(said if isinstance(said, str) else json.dumps(said))


@pytest.mark.parametrize(
    ("said", "options", "state", "word"),
    [
        (None, "", OK, "not there"),
        ({"log-driver": "json-file"}, 'DOCKER_OPT_BIP="--bip=10.5.7.1/24"', OK, "nothing against"),
        ({"bip": "10.5.7.1/24"}, "", OK, "nothing against"),
        ({"bip": "10.5.7.1/24"}, 'DOCKER_OPT_BIP="--bip=10.5.7.1/24"', WARNING, "which Docker may be started with, both say bip"),
        ({"bip": "172.20.0.1/16"}, "", FAILED, "bip 172.20.0.1/16 is not in 10.5.7.0/24"),
        ({"mtu": 1500}, "", WARNING, "mtu 1500, the overlay carries 1450"),
        ({"mtu": 1400}, "", OK, "nothing against"),
        ({"bip": 7, "mtu": "x"}, "", OK, "nothing against"),
        ("{", "", WARNING, "no JSON object"),
        ("[1]", "", WARNING, "no JSON object"),
    ],
)
async def test_docker(about: About, said: Any, options: str, state: str, word: str) -> None:
    if said is not None:
        write(about.root / others.DAEMON_JSON, said)
    write(about.root / others.OPTIONS, options)
    finding = (await found(about, others.docker))[0]
    assert finding.state == state, finding
    assert word in finding.said


READS_THEM = "EnvironmentFile=-/run/docker_opts.env\nExecStart=dockerd -H fd:// $DOCKER_OPTS"
STALE = 'DOCKER_OPT_BIP="--bip=10.5.7.1/24"\nDOCKER_OPTS=" --bip=10.5.7.1/24"\n'


@pytest.mark.parametrize(
    ("said", "started", "twice"),
    [
        ({"bip": "10.5.7.1/24", "mtu": 1450}, "ExecStart=/usr/bin/dockerd -H fd://", ""),
        ({"bip": "10.5.7.1/24", "mtu": 1450}, "ExecStart=/usr/bin/dockerd", ""),
        ({"mtu": 1450}, READS_THEM, ""),
        ({"bip": "10.5.7.1/24", "mtu": 1450}, READS_THEM, "bip"),
        ({"bridge": "br0"}, READS_THEM, "bridge"),
        ({"mtu": 1450}, "ExecStart=/usr/bin/dockerd --mtu 1450", "mtu"),
        ({"ip-masq": False, "icc": True}, "ExecStart=/usr/bin/dockerd --ip-masq=false --icc", "ip-masq and icc"),
        ({"hosts": ["fd://"]}, "ExecStart=/usr/bin/dockerd -H fd://", "hosts"),
    ],
)
async def test_docker_is_asked_for_the_flags_that_it_gets(about: About, said: Any, started: str, twice: str) -> None:
    """The agent's unit has written a file of options; whether Docker reads it is its own unit's to say."""
    write(about.root / "usr/lib/systemd/system/docker.service", f"[Service]\n{started}\n")
    write(about.root / others.OPTIONS, STALE)
    write(about.root / others.DAEMON_JSON, said)
    (finding,) = await found(about, others.docker)
    assert finding.state == (FAILED if twice else OK), finding
    assert finding.said.endswith(f"daemon.json and the flags of docker.service both say {twice}") or not twice


SIX = LeaseStatus("k", None, "fd00:5:0:7::/64", "0.0.0.0", "2001:db8::1", "held", False)
BOTH = replace(LEASE, subnet6="fd00:5:0:7::/64")


@pytest.mark.parametrize(
    ("lease", "bip", "state"),
    [
        (SIX, "172.17.0.1/16", OK),
        (BOTH, "172.17.0.1/16", FAILED),
        (BOTH, "10.5.7.1/24", OK),
        (LEASE, "172.17.0.1/16", FAILED),
        (LEASE, "10.5.7.1/24", OK),
    ],
)
async def test_bip_is_one_family_alone(about: About, lease: LeaseStatus, bip: str, state: str) -> None:
    about.status = replace(STATUS, lease=lease)
    write(about.root / others.DAEMON_JSON, {"bip": bip})
    (finding,) = await found(about, others.docker)
    assert finding.state == state, finding


def ranges(*nets: str) -> dict[str, Any]:
    return {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": net}] for net in nets]}}


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (None, OK),
        ({"type": "flannel", "subnetFile": "HERE"}, OK),
        ({"type": "flannel"}, FAILED),
        ({"plugins": [{"type": "flannel", "subnetFile": "/elsewhere"}]}, FAILED),
        ({"type": "flannel", "subnetFile": "/run/\0flannel"}, FAILED),
        ({"plugins": [{"type": "bridge", "ipam": {"subnet": "10.5.7.0/24"}}]}, OK),
        ({"plugins": [{"type": "bridge", "ipam": {"subnet": "10.5.8.0/24"}}]}, FAILED),
        ({"plugins": [{"type": "bridge", "ipam": {"subnet": "172.20.0.0/16"}}]}, OK),
        ({"plugins": [{"type": "bridge", "mtu": 1500}]}, WARNING),
        ({"plugins": [ranges("10.5.7.0/24")]}, OK),
        ({"plugins": [ranges("10.5.8.0/24")]}, FAILED),
        ({"plugins": [ranges("10.5.7.0/25", "10.5.8.0/24")]}, FAILED),
        ({"plugins": [ranges("10.5.7.0/24", "fd00::/64")]}, OK),
        ({"type": "bridge", "ipam": {"ranges": [[{"subnet": "172.20.0.0/16"}, {"subnet": "10.5.8.0/24"}]]}}, FAILED),
        ({"type": "bridge", "ipam": {"ranges": [7, [7], [{"subnet": 7}], {}]}}, OK),
        ({"type": "bridge", "ipam": {"ranges": 7}}, OK),
        ({"type": "flannel", "subnetFile": "HERE", "delegate": {"mtu": 1500}}, WARNING),
        ({"type": "flannel", "subnetFile": "HERE", "delegate": {"mtu": 1450}}, OK),
        ({"type": "flannel", "subnetFile": "HERE", "delegate": 7}, OK),
        ({"type": "flannel", "subnetFile": "THERE"}, OK),
        ({"plugins": 7}, OK),
        ("nonsense", OK),
    ],
)
async def test_cni(about: About, said: Any, state: str) -> None:
    if said is not None:
        text = said if isinstance(said, str) else json.dumps(said)
        (about.root / "link").symlink_to(".")
        places = {"THERE": about.root / "link" / about.settings.subnet_file.name, "HERE": about.settings.subnet_file}
        for name, place in places.items():
            text = text.replace(name, str(place))
        write(about.root / others.CNI / "10-net.conflist", text)
    assert (await found(about, others.cni))[0].state == state


STARTED = ("/usr/bin/python3", "-I", "/usr/bin/flannelpy")
"""As the kernel has it, by the first line of the program."""


def process(about: About, pid: int, name: str, *words: str, namespace: str = "net:[1]") -> None:
    folder = about.root / "proc" / str(pid)
    (folder / "ns").mkdir(parents=True, exist_ok=True)
    (folder / "ns" / "net").symlink_to(namespace)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_text("".join(f"{word}\0" for word in words))


@pytest.mark.parametrize(
    ("processes", "state", "word"),
    [
        ([], OK, "none"),
        ([(7, "flanneld", ("/usr/bin/flanneld",), "net:[1]")], FAILED, "process 7"),
        ([(7, "flanneld", ("/usr/bin/flanneld",), "net:[2]")], OK, "none"),
        ([(8, "python3", ("python3", "/usr/bin/flannelpy", "--run-dir=/r"), "net:[1]")], OK, "process 8"),
        ([(8, "python3", ("python3", "/usr/bin/flannelpy", "status"), "net:[1]")], OK, "none"),
        ([(8, "flannelpy", (*STARTED, "--iface", "eth1"), "net:[1]")], OK, "process 8"),
        ([(8, "flannelpy", (*STARTED, "-iface", "eth1", "-ip-masq"), "net:[1]")], OK, "process 8"),
        ([(8, "flannelpy", (*STARTED, "--hostname", "", "--iface=eth1"), "net:[1]")], OK, "process 8"),
        ([(8, "flannelpy", ("flannelpy", "--run-dir", "/r"), "net:[1]")], OK, "process 8"),
        ([(8, "flannelpy", ("python3.11", "-m", "flannelpy", "--run-dir", "/r"), "net:[1]")], OK, "process 8"),
        ([(8, "flannelpy", (*STARTED, "status", "--run-dir", "/r"), "net:[1]")], OK, "none"),
        ([(8, "flannelpy", (*STARTED, "--run-dir", "/r", "status"), "net:[1]")], OK, "none"),
        ([(8, "flannelpy", (*STARTED, "--iface"), "net:[1]")], OK, "none"),
        ([(8, "flannelpy", (*STARTED, "--ip-masq", "false"), "net:[1]")], OK, "none"),
        ([(8, "journalctl", ("journalctl", "-u", "flannelpy", "-f"), "net:[1]")], OK, "none"),
        ([(8, "vim", ("vim", "flannelpy.md"), "net:[1]")], OK, "none"),
    ],
)
async def test_other_agents(about: About, processes: list[Any], state: str, word: str) -> None:
    (about.root / "proc" / "self" / "ns").mkdir(parents=True)
    (about.root / "proc" / "self" / "ns" / "net").symlink_to("net:[1]")
    process(about, STATUS.pid, "python3", "python3", "/usr/bin/flannelpy", "--ip-masq")
    for pid, name, words, namespace in processes:
        process(about, pid, name, *words, namespace=namespace)
    finding = await only(about, others.agents)
    assert finding.state == state, finding
    assert word in finding.said


async def test_an_agent_with_another_run_dir_is_pointed_at(about: About) -> None:
    about.status = None
    (about.root / "proc" / "self" / "ns").mkdir(parents=True)
    (about.root / "proc" / "self" / "ns" / "net").symlink_to("net:[1]")
    process(about, 9, "python3", "python3", "/usr/bin/flannelpy")
    assert (await only(about, others.agents)).state == WARNING
    assert Key("link", "flannel.1") not in fake(about).planted()


@pytest.mark.parametrize("chosen", ["192.0.2.1", "192.0.2.77", "198.51.100.1", None])
@pytest.mark.parametrize("asked", ["192.0.2.77", "203.0.113.9", None])
def test_a_host_sends_with_the_address_that_its_agent_goes_by(about: About, chosen: str | None, asked: str | None) -> None:
    """Of several on the uplink; without an agent with the one that it is to advertise, where the uplink has it; else the first."""
    eth1 = interface("eth1", 2, "192.0.2.1/24", "192.0.2.77/24", "2001:db8::1/64")
    uplink = UplinkStatus("eth1", 1500, (), chosen, None, chosen, None)
    about.status = None if chosen is None else replace(STATUS, uplink=uplink)
    about.settings = replace(about.settings, public_ip=None if asked is None else IPAddress(asked))
    best = chosen if chosen in ("192.0.2.1", "192.0.2.77") else asked if asked == "192.0.2.77" else "192.0.2.1"
    assert str(about.address_of(eth1, 4)) == best
    assert str(about.address_of(eth1, 6)) == "2001:db8::1"
    assert about.address_of(interface("eth2", 3), 4) is None
    assert str(about.address_of(interface("eth3", 4, "192.0.2.77/24", "192.0.2.1/24"), 4)) == "192.0.2.77", "of another interface"
