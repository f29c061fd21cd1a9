"""Is a rule that iptables takes judged as the kernel judges it? Real rules of either iptables, listed as the agent lists them.

Each kind of match has a port of its own, so that many rules stand in one chain.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product

import pytest
from netaddr import IPAddress

from flannelpy.core.filter_match import UDP, Packet
from flannelpy.core.forward_accept import Tool
from flannelpy.core.packet_filter import Ruleset, judge
from flannelpy.kernel import forward
from flannelpy.kernel.forward import Forward
from flannelpy.kernel.nft import Nft

from .kernel_support import real_only, shell
from .test_kernel_forward import RealFirewall, legacy_missing, real_firewall, run

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID")
FIRST = 5000
COMES = {
    4: Packet(IPAddress("192.0.2.9"), IPAddress("192.0.2.7"), "eth1", protocol=UDP, port=8472),
    6: Packet(IPAddress("fd00:50::9"), IPAddress("fd00:50::7"), "eth1", protocol=UDP, port=8472),
}

pytestmark = real_only


@pytest.fixture(params=["nft", "legacy"])
def firewall(request: pytest.FixtureRequest) -> Iterator[RealFirewall]:
    tool: Tool = request.param
    if tool == "legacy" and (missing := legacy_missing()):
        pytest.skip(missing)
    yield from real_firewall(tool)


def restore(firewall: RealFirewall, rules: list[str], version: int = 4) -> None:
    """Put these in place of all others, in one transaction."""
    program = f"{'iptables' if version == 4 else 'ip6tables'}-{firewall.tool}-restore"
    text = "\n".join(["*filter", *rules, "COMMIT", ""])
    subprocess.run([program], input=text, text=True, check=True)


def outcome(rules: Ruleset, packet: Packet, state: str = "new") -> str:
    ruling = judge(rules, "input", replace(packet, states=frozenset({state.lower()})))
    return "dropped" if ruling.dropped else "doubt" if ruling.doubts else "passes"


def lists(firewall: RealFirewall) -> list[Ruleset]:
    """As doctor and trace see the rules, and as the agent does."""

    found: list[Ruleset] = []

    async def test() -> None:
        found.extend((await firewall.kernel.filter_rules(), await firewall.kernel.foreign_rules()))

    run(test())
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_states_of_connections_are_those_that_were_asked_for(firewall: RealFirewall, version: int) -> None:
    """By both matches, negated or not, alone and with another one."""
    subsets = [held for size in (1, 2, 3) for held in combinations(STATES, size)]
    asked = list(product(("conntrack --ctstate", "state --state"), subsets, (False, True)))
    rules = []
    for number, (option, states, no) in enumerate(asked):
        match, word = option.split()
        rules.append(f"-A INPUT -p udp -m udp --dport {FIRST + number} -m {match} {'! ' * no}{word} {','.join(states)} -j DROP")
    rules.append(f"-A INPUT -p udp --dport {FIRST - 1} -m conntrack ! --ctstate NEW -m state ! --state RELATED -j REJECT")
    restore(firewall, rules, version)
    for listed in lists(firewall):
        for (number, (_option, states, no)), state in product(enumerate(asked), STATES):
            expected = "dropped" if (state in states) != no else "passes"
            assert outcome(listed, replace(COMES[version], port=FIRST + number), state) == expected, (rules[number], state)
        for state in STATES:
            expected = "passes" if state in ("NEW", "RELATED") else "dropped"
            assert outcome(listed, replace(COMES[version], port=FIRST - 1), state) == expected


def test_a_port_that_is_open_for_new_connections_is_open(firewall: RealFirewall) -> None:
    """As hosts of the kind of RHEL have their rules, and kube-proxy its own."""
    restore(
        firewall,
        [
            "-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT",
            '-A INPUT -p udp -m state --state NEW -m udp --dport 8472 -m comment --comment "ct state invalid" -j ACCEPT',
            "-A INPUT -j REJECT",
            ":KUBE-FORWARD -",
            "-A FORWARD -j KUBE-FORWARD",
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ],
    )
    inner = Packet(IPAddress("10.5.9.2"), IPAddress("10.5.7.2"), "flannel.1", "docker0", states=frozenset({"established"}))
    for listed in lists(firewall):
        assert outcome(listed, COMES[4]) == "passes"
        assert outcome(listed, replace(COMES[4], port=8473)) == "dropped"
        assert outcome(listed, replace(COMES[4], port=8473), "established") == "passes"
        assert not judge(listed, "forward", inner).dropped
        assert not judge(listed, "forward", inner).doubts


OTHERS = {
    "-m conntrack --ctstate NEW --ctstatus ASSURED": "doubt",
    "-m conntrack ! --ctstatus ASSURED": "doubt",
    "-m conntrack --ctstate DNAT,NEW": "may drop",
    "-m conntrack --ctstate ESTABLISHED --ctstatus ASSURED": "passes",
    "-m conntrack --ctdir ORIGINAL": "doubt",
    "-m addrtype --dst-type LOCAL": "may drop",
    "-m addrtype --src-type UNICAST --dst-type MULTICAST": "doubt",
    "-m addrtype --dst-type LOCAL --limit-iface-in": "doubt",
    "-m mark --mark 0x1/0x1 -m conntrack --ctstate NEW": "may pass",
    "-m statistic --mode random --probability 0.5": "doubt",
    "-m hashlimit --hashlimit-above 1/sec --hashlimit-burst 5 --hashlimit-mode srcip,dstip --hashlimit-name x": "doubt",
    "-m recent --set --name x --rsource": "doubt",
    "-m pkttype --pkt-type broadcast": "doubt",
    '-m string --string "-j ACCEPT" --algo bm': "doubt",
}
"""What a rule with such a match does that drops; ``may``: what is known depends on which iptables it is."""


@pytest.mark.parametrize("match", OTHERS)
def test_what_else_is_asked_is_known_or_a_doubt_and_never_the_opposite(firewall: RealFirewall, match: str) -> None:
    expected = (
        {OTHERS[match]} if not OTHERS[match].startswith("may") else {"doubt", "dropped" if "drop" in OTHERS[match] else "passes"}
    )
    tried = f"iptables-{firewall.tool} -A INPUT -p udp -m udp --dport 8472 {match}"
    done = subprocess.run(shlex.split(f"{tried} -j DROP"), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    for listed in lists(firewall):
        assert outcome(listed, COMES[4]) in expected
        assert outcome(listed, replace(COMES[4], port=8473)) == "passes"
    shell(f"{tried} -j ACCEPT; iptables-{firewall.tool} -D INPUT 1; iptables-{firewall.tool} -A INPUT -j DROP")
    opposite = {"dropped": "passes", "passes": "dropped", "doubt": "doubt"}
    for listed in lists(firewall):
        assert outcome(listed, COMES[4]) in {opposite[each] for each in expected}


def test_the_library_and_the_command_tell_of_the_same_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    for firewall in real_firewall("nft"):
        restore(firewall, ["-A INPUT -m state --state NEW -j DROP"])

        async def test(firewall: RealFirewall = firewall) -> None:
            by_library = Nft(command=None)
            found = await Forward(by_library).foreign_rules()
            by_library.close()
            assert found == await firewall.kernel.foreign_rules() == await firewall.kernel.filter_rules()
            assert (outcome(found, COMES[4]), outcome(found, COMES[4], "established")) == ("dropped", "passes")
            monkeypatch.setattr(forward, "SMALL", 1)  # as of thousands of rules
            assert await firewall.kernel.foreign_rules() == found

        run(test())
