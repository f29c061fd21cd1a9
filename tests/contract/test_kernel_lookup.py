"""Where does a packet go, and what do settings hold: the kernel in memory and the real one answer alike."""

from __future__ import annotations

import asyncio
import errno

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.lookup import FILTERED, NO_WAY, Found, Lookup, goes
from flannelpy.core.objects import Route
from flannelpy.core.uplink import FactsQuery

from .kernel_support import PATIENCE_S, SCOPE, Host, RealHost, hear, ip, shell


async def asked(host: Host, address: str) -> Found:
    (found,) = await host.kernel.look_up([Lookup(IPAddress(address))])
    return found


async def test_a_look_up_tells_the_route_that_decides(host: Host) -> None:
    via = IPAddress("192.0.2.9")
    host.add_route(Route(IPNetwork("10.5.9.0/24"), via=via, dev="eth1"))
    assert await asked(host, "10.5.9.7") == Found("eth1", via, IPNetwork("10.5.9.0/24"))
    assert await asked(host, "192.0.2.77") == Found("eth1", None, IPNetwork("192.0.2.0/24"))
    host.add_route(Route(IPNetwork("10.5.9.0/25"), via=IPAddress("192.0.2.8"), dev="eth1"))
    assert await asked(host, "10.5.9.7") == Found("eth1", IPAddress("192.0.2.8"), IPNetwork("10.5.9.0/25"))
    assert await asked(host, "10.5.9.200") == Found("eth1", via, IPNetwork("10.5.9.0/24"))


RULES = (
    ("rule add to 10.5.9.0/24 lookup 66 pref 100", "rule add to 10.5.8.0/24 lookup 67 pref 101"),
    ("rule add from 10.5.7.0/24 lookup 66 pref 100",),
    ("rule add iif br7 lookup 66 pref 100",),
    ("rule add iif lo lookup 66 pref 100",),
    ("rule add to 10.5.9.0/24 prohibit pref 100",),
    ("rule add not from all fwmark 0x7 lookup 66 pref 100", "rule add lookup main suppress_prefixlength 0 pref 90"),
    ("rule add fwmark 0x7/0xff lookup 66 pref 100",),
    ("rule add to 10.5.9.0/24 ipproto tcp lookup 66 pref 100",),
    ("rule add to 10.5.9.0/24 lookup 68 pref 100",),
    ("rule add pref 90 goto 200", "rule add to 10.5.9.0/24 lookup 66 pref 100", "rule add pref 200 from all lookup 67"),
)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules[0])
async def test_the_policy_rule_that_decides_is_named_where_a_look_up_says_that_one_does(
    real: RealHost, rules: tuple[str, ...]
) -> None:
    """Table 66 leads elsewhere, 67 has a part of it, 68 is empty."""
    real.add_interface("br7")
    ip("link add here7 type veth peer name there7", "link set here7 up", "addr add 198.51.100.1/24 dev here7")
    ip("route add 10.5.9.0/24 dev eth1", "route add 10.5.8.0/24 dev eth1", "route replace default dev eth1")
    ip("route add default dev here7 table 66", "route add 10.5.8.0/25 dev here7 table 67", "addr add 10.5.7.1/24 dev br7")
    ip("link set br7 up", *rules)
    shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.br7.rp_filter=0")
    (arrives,) = (one.index for one in (await real.kernel.facts(FactsQuery(frozenset({"br7"}), False))).interfaces)
    for address in ("10.5.9.2", "10.5.8.2", "10.5.8.200", "203.0.113.1"):
        for lookup in (Lookup(IPAddress(address)), Lookup(IPAddress(address), IPAddress("10.5.7.2"), arrives)):
            (found,) = await real.kernel.look_up([lookup])
            rule = await real.kernel.policy_rule(lookup)
            assert (rule is not None) is (bool(found.code) or found.table not in (254, 255)), (lookup, found, rule)
            if rule is not None:
                assert rule.action == "prohibit" or rule.table == found.table


async def test_a_policy_rule_is_deleted_by_what_it_is_called(real: RealHost) -> None:
    ip(
        "rule add not from 10.5.7.0/24 to 10.5.9.0/24 iif lo fwmark 0x0/0xff lookup 66 pref 100",
        "route add default dev eth1 table 66",
    )
    lookup = Lookup(IPAddress("10.5.9.2"), IPAddress("192.0.2.1"))
    rule = await real.kernel.policy_rule(Lookup(IPAddress("10.5.8.2")))
    assert rule is not None, await real.kernel.policy_rule(lookup)
    ip(f"rule del {rule}")
    assert await real.kernel.policy_rule(Lookup(IPAddress("10.5.8.2"))) is None


async def test_many_are_answered_in_their_order(host: Host) -> None:
    for number in range(150):
        host.add_route(Route(IPNetwork(f"10.5.{number}.0/24"), via=IPAddress(f"192.0.2.{number + 2}"), dev="eth1"))
    lookups = [Lookup(IPAddress(f"10.5.{number}.1")) for number in reversed(range(150))]
    found = await host.kernel.look_up(lookups)
    assert [str(each.via) for each in found] == [f"192.0.2.{number + 2}" for number in reversed(range(150))]
    assert await host.kernel.look_up([]) == []


async def test_what_is_sent_nowhere_has_a_code(host: Host) -> None:
    found = await host.kernel.look_up([Lookup(IPAddress("2001:db9::1")), Lookup(IPAddress("2001:db8::9"))])
    assert found[0].code in NO_WAY[4]
    assert found[1] == Found("eth1", None, IPNetwork("2001:db8::/64"))


async def test_settings_are_read_and_those_that_are_not_there_left_out(host: Host) -> None:
    names = ["net/ipv4/ip_forward", "net/ipv4/conf/gone0/rp_filter", "net/ipv4/no_such_setting"]
    held = await host.kernel.settings(names)
    assert list(held) == ["net/ipv4/ip_forward"]
    assert held["net/ipv4/ip_forward"] in ("0", "1")


async def test_a_kernel_that_cannot_be_asked_says_so(real: RealHost, monkeypatch: pytest.MonkeyPatch) -> None:
    from flannelpy.kernel.channel import Channel

    def fail(_self: Channel, _data: bytes) -> None:
        raise KernelError("netlink: No buffer space available", errno.ENOBUFS)

    monkeypatch.setattr(Channel, "_send", fail)
    with pytest.raises(KernelError, match="No buffer space"):
        await real.kernel.look_up([Lookup(IPAddress("192.0.2.9"))])


# ------------------------------------------------------------------------------------------------ what only the real one has


@pytest.mark.parametrize(
    ("kind", "code"), [("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES), ("blackhole", errno.EINVAL)]
)
@pytest.mark.parametrize("net", ["198.51.100.0/24", "2001:db8:7::/64"])
async def test_routes_that_lead_nowhere(real: RealHost, kind: str, code: int, net: str) -> None:
    ip(f"route add {kind} {net}")
    assert (await asked(real, str(IPNetwork(net)[1]))).code == code


async def test_the_table_of_a_policy_rule_is_told(real: RealHost) -> None:
    ip("route add 10.5.0.0/16 via 192.0.2.9", "route add 10.5.0.0/16 via 192.0.2.8 table 100", "rule add to 10.5.7.0/24 lookup 100")
    assert await asked(real, "10.5.7.1") == Found("eth1", IPAddress("192.0.2.8"), IPNetwork("10.5.0.0/16"), 100)
    assert await asked(real, "10.5.8.1") == Found("eth1", IPAddress("192.0.2.9"), IPNetwork("10.5.0.0/16"))


async def test_a_rule_about_where_packets_come_from_is_asked_too(real: RealHost) -> None:
    ip("link add br0 type bridge", "addr add 10.5.1.1/24 dev br0", "link set br0 up")
    shell("sysctl -qw net.ipv4.ip_forward=1")
    ip(
        "route add 10.5.7.0/24 via 192.0.2.9",
        "route add 10.5.7.0/24 via 192.0.2.8 table 100",
        "rule add from 10.5.1.0/24 lookup 100",
    )
    (bridge,) = (await real.kernel.facts(FactsQuery(frozenset({"br0"}), False))).interfaces
    forwarded = Lookup(IPAddress("10.5.7.1"), IPAddress("10.5.1.9"), bridge.index)
    plain, passing = await real.kernel.look_up([Lookup(IPAddress("10.5.7.1")), forwarded])
    assert (str(plain.via), plain.table) == ("192.0.2.9", 254)
    assert (str(passing.via), passing.table) == ("192.0.2.8", 100)
    shell("sysctl -qw net.ipv4.ip_forward=0")
    assert (await real.kernel.look_up([forwarded]))[0].code == errno.EHOSTUNREACH


@pytest.mark.parametrize(("mode", "codes"), [("0", {0}), ("2", {0}), ("1", FILTERED)])
async def test_what_a_strict_reverse_path_filter_drops(real: RealHost, mode: str, codes: frozenset[int]) -> None:
    ip("link add br0 type bridge", "addr add 10.5.1.1/24 dev br0", "link set br0 up")
    ip("route add 10.5.7.0/24 via 192.0.2.9")
    shell(f"sysctl -qw net.ipv4.conf.all.rp_filter={mode} net.ipv4.conf.br0.rp_filter={mode}")
    (bridge,) = (await real.kernel.facts(FactsQuery(frozenset({"br0"}), False))).interfaces
    back = Lookup(IPAddress("192.0.2.1"), IPAddress("10.5.7.1"), bridge.index)  # it would be answered by eth1
    assert (await real.kernel.look_up([back]))[0].code in codes


async def test_of_several_next_hops_one_has_to_be_ours(real: RealHost) -> None:
    ip("route add 10.5.7.0/24 nexthop via 192.0.2.8 nexthop via 192.0.2.9")
    found = await asked(real, "10.5.7.1")
    hops = (("eth1", IPAddress("192.0.2.8")), ("eth1", IPAddress("192.0.2.9")))
    assert (found.dev, found.code, found.route, found.hops) == ("", 0, IPNetwork("10.5.7.0/24"), hops)
    assert goes(Route(IPNetwork("10.5.7.0/24"), via=IPAddress("192.0.2.9"), dev="eth1"), found)
    assert not goes(Route(IPNetwork("10.5.7.0/24"), dev="flannel.1"), found)
    ip(f"route del {found}")
    assert (await asked(real, "10.5.7.1")).route != found.route


async def test_next_hops_of_ipv6(real: RealHost) -> None:
    ip("route add 2001:db8:7::/64 nexthop via 2001:db8::8 dev eth1 nexthop via 2001:db8::9 dev eth1")
    found = await asked(real, "2001:db8:7::1")
    assert set(found.hops) == {("eth1", IPAddress("2001:db8::8")), ("eth1", IPAddress("2001:db8::9"))}
    ip(f"route del {found}")
    assert (await asked(real, "2001:db8:7::1")).route != found.route


@pytest.mark.parametrize(("family", "version", "what"), [("-4", 4, "to 10.5.7.0/24"), ("-6", 6, "to 2001:db8:7::/64")])
async def test_a_policy_rule_that_comes_or_goes_is_heard(real: RealHost, family: str, version: int, what: str) -> None:
    notices = real.kernel.notices(SCOPE)
    for act in ("add", "del"):
        shell(f"ip {family} rule {act} {what} lookup 100")
        await hear(notices, lambda notice: version in notice.routed)
    notices.close()


async def test_a_bridge_runs_while_it_has_a_port(real: RealHost) -> None:
    ip("link add br0 type bridge", "link set br0 up", "link add v0 type veth peer name v1", "link set v1 up")

    async def running() -> bool:
        (bridge,) = (await real.kernel.facts(FactsQuery(frozenset({"br0"}), False))).interfaces
        assert bridge.up
        return bridge.running

    async def until(fact: bool) -> None:  # the kernel takes a moment for it (linkwatch)
        async with asyncio.timeout(PATIENCE_S):
            while await running() != fact:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    await until(False)
    ip("link set v0 master br0 up")
    await until(True)
    ip("link del v0")
    await until(False)
