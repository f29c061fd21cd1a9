"""Is it told what the kernel's guard has dropped?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from flannelpy.agent.status import with_drops
from flannelpy.core.backend import DatapathStatus
from flannelpy.core.errors import KernelError
from flannelpy.explain.status import BackendStatus, GuardStatus, SourceCheckStatus, from_json, to_json
from flannelpy.kernel.fake import FakeKernel
from tests.unit.test_status import PEER, YOUNG, read

BARE = replace(YOUNG, backend=BackendStatus("host-gw", 1500))
GUARDED = replace(BARE, guard=GuardStatus("strict"))


class Mute(FakeKernel):
    async def counted(self, table: str) -> dict[str, int]:
        raise KernelError(f"{table}: no netfilter", 0)


@pytest.mark.parametrize("count", [0, 1, 2**40])
async def test_drops_are_told_by_reason(count: int) -> None:
    kernel = FakeKernel()
    kernel.counters = {"flannelpy": {"inner_source": count, "somebody_elses": 5}, "another": {"outer_source": 7}}
    status = await with_drops(GUARDED, kernel, "flannelpy")
    assert status.guard == GuardStatus("strict", {"inner_source": count}, {})
    assert from_json(to_json(status)) == status


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        (None, "strict, drops unknown"),
        ({"inner_source": 0}, "strict, dropped nothing yet"),
        ({"outer_source": 1200, "inner_source": 3}, "strict, dropped 1,200 outer source, 3 inner source"),
    ],
)
def test_one_line_tells_them(dropped: dict[str, int] | None, words: str) -> None:
    lines = read(replace(YOUNG, guard=GuardStatus("strict", dropped)), 200)
    assert f"guard        {words}" in lines


PEERS = tuple(
    replace(PEER, key=f"10.1.{at}.0-24", subnet=f"10.1.{at}.0/24", public_ip=f"192.0.2.{at}", public_ipv6=f"2001:db8::{at}")
    for at in (1, 2, 3)
)


async def test_whose_packets_were_dropped_is_told_of_peers_and_of_strangers() -> None:
    kernel = FakeKernel()
    kernel.counters = {
        "flannelpy": {"inner_source": 1200, "outer_source": 7},
        "flannelpy strangers4": {"203.0.113.6": 4},
        "flannelpy strangers6": {"2001:db8::66": 3},
        "flannelpy refused4": {"192.0.2.2": 1000, "192.0.2.77": 5},
        "flannelpy refused6": {"2001:db8::2": 200},
    }
    status = await with_drops(replace(GUARDED, peers=PEERS), kernel, "flannelpy")
    assert status.guard is not None
    assert status.guard.strangers == {"203.0.113.6": 4, "2001:db8::66": 3}
    assert [peer.dropped for peer in status.peers] == [None, 1200, None]
    assert from_json(to_json(status)) == status
    assert "strangers    4 of 203.0.113.6, 3 of 2001:db8::66" in read(status, 200)
    assert [row for row in read(status, 200) if "1,200 of its packets dropped" in row] == [
        row for row in read(status, 200) if row.startswith("10.1.2.0/24")
    ]


async def test_of_many_strangers_the_first_are_named_and_the_others_counted() -> None:
    strangers = {f"203.0.113.{at}": at for at in range(1, 65)}
    lines = read(replace(YOUNG, guard=GuardStatus("strict", {"outer_source": 2080}, strangers)), 200)
    assert "strangers    64 of 203.0.113.64, 63 of 203.0.113.63, 62 of 203.0.113.62, 61 of 203.0.113.61, and 60 more" in lines


@pytest.mark.parametrize("refused", [{}, {"192.0.2.3": 9}, {"192.0.2.1": 1, "192.0.2.2": 2**40}])
async def test_what_udps_workers_have_dropped_is_told_by_peer_too(refused: dict[str, int]) -> None:
    pump = DatapathStatus("flannel0", (), (), (), {}, refused)
    status = await with_drops(replace(BARE, peers=PEERS, pump=pump), FakeKernel(), "flannelpy")
    assert {peer.public_ip: peer.dropped for peer in status.peers if peer.dropped} == refused


async def test_what_the_kernel_does_not_say_is_unknown() -> None:
    assert await with_drops(GUARDED, Mute(), "flannelpy") == GUARDED


@pytest.mark.parametrize(("count", "words"), [(0, "nothing yet"), (1200, "1,200")])
async def test_what_containers_were_not_let_send_is_told_for_each_backend(count: int, words: str) -> None:
    kernel = FakeKernel()
    kernel.counters = {"flannelpy": {"container_source": count, "inner_source": 1}}
    for before in (BARE, GUARDED):
        status = await with_drops(before, kernel, "flannelpy")
        assert status.container_source_check == SourceCheckStatus(count)
        assert from_json(to_json(status)) == status
        assert f"containers   source checked, dropped {words}" in read(status, 200)
    assert (await with_drops(BARE, FakeKernel(), "flannelpy")).container_source_check is None


async def test_before_there_is_a_network_nobody_is_asked() -> None:
    assert await with_drops(YOUNG, Mute(), "flannelpy") == YOUNG
