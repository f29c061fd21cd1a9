"""Does a running agent say which rule of its host drops the overlay, soon, and that it is gone? In memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from netaddr import IPNetwork

from flannelpy.agent import firewall_watch
from flannelpy.agent.firewall_watch import LONGEST_S, SPARE, UNSEEN_S, cost_s
from flannelpy.core.errors import KernelError
from flannelpy.core.packet_filter import Ruleset
from flannelpy.core.uplink import Interface, InterfaceAddress
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, vxlan_value
from tests.unit.test_packet_filter import DROP, asks, ip, net, table
from tests.unit.virtual_time import run

PORT = {"payload": {"protocol": "udp", "field": "dport"}}
PROMISED_S = 15.0


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    monkeypatch.setattr("flannelpy.agent.agent.clock", lambda: asyncio.get_running_loop().time())
    made = HostInMemory(MemoryStore(), tmp_path)
    made.put_config(VXLAN)
    for number in (9, 10, 11, 12, 13, 14):
        made.put_peer(f"10.5.{number}.0-24", vxlan_value(f"192.0.2.{number}", f"02:00:00:00:00:{number:02x}"))
    return made


def told(host: HostInMemory) -> str:
    return "; ".join(text for key, text in host.conditions().items() if key.split()[0] == firewall_watch.CODE)


async def within(host: HostInMemory, words: str) -> float:
    """How long it takes until these words are told, or nothing, where they are empty."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + PROMISED_S:
        if (words in told(host)) if words else not told(host):
            return loop.time() - began
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {PROMISED_S:g} s: {words!r}; told is {told(host)!r}")


def port(number: int) -> Ruleset:
    return table([asks(PORT, number), DROP], hook="input")


def bridge(host: HostInMemory) -> IPNetwork:
    """Docker's, in our subnet."""
    own = IPNetwork(host.lease.replace("-", "/"))
    host.kernel.set_interface(Interface("docker0", 9, 1450, True, (InterfaceAddress(own[1], 24),)))
    return own


def test_a_rule_is_told_while_it_is_there(host: HostInMemory) -> None:
    async def test() -> None:
        async with host.run():
            await asyncio.sleep(PROMISED_S)
            for number in (8472, 8473, 8472):
                host.kernel.rules = port(number)
                if number == 8472:
                    await within(host, "UDP 8472 from 192.0.2.10 on eth1")
                    assert "nft delete rule inet t c handle 0" in told(host)
                else:
                    await asyncio.sleep(PROMISED_S)
                    assert told(host) == ""
                host.kernel.rules = Ruleset()
                await within(host, "")
            assert host.ready

    run(test())


def test_what_is_forwarded_is_looked_at_where_there_is_a_bridge(host: HostInMemory) -> None:
    async def test() -> None:
        async with host.run():
            own = IPNetwork(host.lease.replace("-", "/"))
            host.kernel.rules = table([asks(ip("saddr"), net(str(own))), DROP])
            await asyncio.sleep(PROMISED_S)
            assert told(host) == ""
            assert bridge(host) == own
            await within(host, f"what containers in {own} send to 10.5.10.0/24 by flannel.1")
            host.kernel.take_interface("docker0")
            await within(host, "")

    run(test())


def test_a_peer_that_falls_silent_is_looked_at_first(host: HostInMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of peers some are judged; a rule about one of the others is found when that one does not answer."""

    async def test() -> None:
        async with host.run():
            host.kernel.rules = table([asks(ip("saddr"), "192.0.2.9"), DROP], hook="input")
            await asyncio.sleep(PROMISED_S)
            assert told(host) == ""
            monkeypatch.setattr(firewall_watch.FirewallWatch, "_silent", lambda _self: ["10.5.99.0-24", "10.5.9.0-24"])
            await within(host, "UDP 8472 from 192.0.2.9 on eth1")

    run(test())


def test_rules_are_read_when_something_has_changed_and_not_otherwise(host: HostInMemory) -> None:
    async def test() -> None:
        async with host.run():
            await asyncio.sleep(PROMISED_S)
            before = host.kernel.calls["foreign_rules"]
            asked = host.kernel.calls["firewall_state"]
            await asyncio.sleep(3600)
            assert host.kernel.calls["foreign_rules"] == before
            assert 0 < host.kernel.calls["firewall_state"] - asked <= 3600 / firewall_watch.LOOK_S + 1
            host.kernel.rules = port(8472)
            await within(host, "UDP 8472")
            assert host.kernel.calls["foreign_rules"] == before + 1

    run(test())


@pytest.mark.parametrize("count", [10, 2000, 20_000])
def test_a_long_list_that_changes_all_the_time_is_read_as_rarely_as_it_takes_long(host: HostInMemory, count: int) -> None:
    others = [[asks(ip("saddr"), f"198.51.{n // 250}.{n % 250}"), DROP] for n in range(count)]
    lists = [table(*others, hook="input"), table(*others, [asks(PORT, 53), DROP], hook="input")]

    async def test() -> None:
        async with host.run():
            await asyncio.sleep(PROMISED_S)
            before, began = host.kernel.calls["foreign_rules"], asyncio.get_running_loop().time()
            for turn in range(600):
                host.kernel.rules = lists[turn % 2]
                await asyncio.sleep(1)
            took = asyncio.get_running_loop().time() - began
            looks = host.kernel.calls["foreign_rules"] - before
            rest = min(LONGEST_S, SPARE * cost_s(lists[0]))
            assert 1 <= looks <= 1 + took / max(firewall_watch.LOOK_S, rest)
            most = max(1 / SPARE, cost_s(lists[0]) / LONGEST_S)  # of a processor: it is looked once in LONGEST_S all the same
            assert looks * cost_s(lists[0]) <= took * most + cost_s(lists[0])

    run(test())


def test_rules_that_cannot_be_read_are_said_to_be_so_once_and_read_later(
    host: HostInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with host.run():
            await asyncio.sleep(PROMISED_S)
            before = host.kernel.calls["foreign_rules"]
            host.kernel.fail_call("foreign_rules", KernelError("nft: Operation not permitted"), 2)
            host.kernel.rules = port(8472)
            await asyncio.sleep(2 * UNSEEN_S + PROMISED_S)
            assert "UDP 8472" in told(host)
            assert host.kernel.calls["foreign_rules"] - before == 3
            assert "task-failed" not in " ".join(host.conditions())

    run(test())
    lines = [record.message for record in caplog.records if "firewall drops the overlay cannot be seen" in record.message]
    assert len(lines) == 1
