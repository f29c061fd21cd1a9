"""Who is reached without a gateway: is an answer forgotten when it may be another one by now?"""

from __future__ import annotations

import asyncio

import pytest
from netaddr import IPAddress

from flannelpy.agent.facts import Facts
from flannelpy.agent.report import Reporter
from flannelpy.core.config import NetworkConfig
from flannelpy.core.uplink import Interface, InterfaceAddress, RouteAnswer, Wish
from flannelpy.kernel import Notice
from flannelpy.kernel.fake import FakeKernel
from flannelpy.plugins import parse
from tests.unit.syncing import eth1

PEER = IPAddress("192.0.2.9")


@pytest.mark.parametrize("notice", [Notice(routed=frozenset({4})), Notice(lost=True)])
async def test_an_answer_from_before_routes_have_changed_is_not_remembered(notice: Notice) -> None:
    """The kernel has answered, and before that was read it has told of another route."""
    kernel = FakeKernel([eth1()])
    facts = Facts(kernel, Wish(iface=("eth1",)), Reporter(lambda: 0.0))
    answers = [RouteAnswer("eth1", 2, None, None), RouteAnswer("eth1", 2, None, IPAddress("192.0.2.254"))]
    asked = asyncio.Event()
    go = asyncio.Event()

    async def route_to(address: IPAddress) -> RouteAnswer | None:
        answer = answers.pop(0)
        asked.set()
        await go.wait()
        return answer

    kernel.route_to = route_to  # type: ignore[method-assign]
    looking = asyncio.create_task(facts.on_link([PEER]))
    await asked.wait()
    facts.hear(notice)
    assert 4 in facts.take_moved()
    go.set()
    await looking
    assert await facts.on_link([PEER]) == {}


DUAL = '{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd05::/48", "Backend": {"Type": "vxlan"}}'


@pytest.mark.parametrize(("kept", "renewed"), [("2001:db8::1", "192.0.2.77"), ("192.0.2.1", "2001:db8::77")])
async def test_a_family_that_is_lost_is_said_and_the_other_is_followed(kept: str, renewed: str) -> None:
    kernel, reporter = FakeKernel(), Reporter(lambda: 0.0)
    config: NetworkConfig = parse(DUAL)[0]

    def has(*addresses: str) -> None:
        held = tuple(InterfaceAddress(IPAddress(address), 24 if "." in address else 64) for address in addresses)
        kernel.set_interface(Interface("eth1", 2, 1500, True, held))

    has("192.0.2.1", "2001:db8::1")
    facts = Facts(kernel, Wish(iface=("eth1",)), reporter)
    await facts.look(config, frozenset())
    assert [active.condition.code for active in reporter.health] == []
    has(renewed)
    assert await facts.look(config, frozenset())
    assert facts.uplink is not None
    assert {str(facts.uplink.address), str(facts.uplink.address6)} == {kept, renewed}
    assert [active.condition.code for active in reporter.health] == ["uplink-missing"]
    has(renewed, kept)
    assert not await facts.look(config, frozenset())
    assert [active.condition.code for active in reporter.health] == []
