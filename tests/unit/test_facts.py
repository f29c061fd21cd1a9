"""Who is reached without a gateway: is an answer forgotten when it may be another one by now?"""

from __future__ import annotations

import asyncio

import pytest
from netaddr import IPAddress

from flannelpy.agent.facts import Facts
from flannelpy.agent.report import Reporter
from flannelpy.core.uplink import RouteAnswer, Wish
from flannelpy.kernel import Notice
from flannelpy.kernel.fake import FakeKernel
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
