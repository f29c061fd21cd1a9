"""Is a process that grows told from one that only breathes?"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP

from netns_lab.footprint import Footprint, Sample, draw
from netns_lab.soak_udp import udp_packet


def course(
    descriptors: Callable[[int], float], resident_kb: Callable[[int], float] = lambda _: 40_000, count: int = 60
) -> Footprint:
    """A process looked at each second."""
    samples = [Sample(float(at), int(descriptors(at)), 2, int(resident_kb(at))) for at in range(count)]
    return Footprint("h1 worker 1", 1, samples)


@pytest.mark.parametrize(
    "descriptors",
    [
        lambda at: 21,
        lambda at: 21 + at % 3,  # something is open for a moment
        lambda at: 30 if at == 59 else 21,
        lambda at: 10 + min(at, 11),  # while it warms up
        lambda at: 30 - at // 10,
    ],
)
def test_what_breathes_does_not_grow(descriptors: Callable[[int], float]) -> None:
    assert course(descriptors).complaints == []


@pytest.mark.parametrize("every", [5, 20, 30])
def test_descriptors_that_are_never_closed_are_told(every: int) -> None:
    (line,) = course(lambda at: 21 + at // every).complaints
    assert line.startswith("h1 worker 1: descriptors grew from 2")


def test_memory_may_wave_and_settle_and_not_rise() -> None:
    assert course(lambda at: 21, lambda at: 40_000 + 1500 * (at % 4)).complaints == []
    assert course(lambda at: 21, lambda at: 40_000 - 300 * max(0, 18 - at)).complaints == []
    rising = course(lambda at: 21, lambda at: 40_000 + 100 * at)
    assert rising.growth_kb == pytest.approx(4100)
    assert rising.complaints == ["h1 worker 1: resident memory grew by 4.0 MB, at most 2 are allowed"]


def test_a_few_samples_say_nothing() -> None:
    assert course(lambda at: 21 + at, count=5).complaints == []
    assert Footprint("h1 agent", 1).complaints == []


def test_this_process_is_seen_as_it_is() -> None:
    seen = Footprint("me", os.getpid())
    assert seen.look(0.0)
    read, write = os.pipe()
    try:
        assert seen.look(1.0)
    finally:
        os.close(read)
        os.close(write)
    before, after = seen.samples
    assert after.descriptors == before.descriptors + 2
    assert before.threads >= 1
    assert before.resident_kb > 1000
    assert not Footprint("nobody", 2**22 + 1).look(0.0)


def test_the_drawing_has_a_line_for_each_process_and_panel() -> None:
    root = ElementTree.fromstring(draw([course(lambda at: 21), course(lambda at: 22), Footprint("none", 1)], "title"))
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 9
    assert len(lines[0].get("points", "").split()) == 60


def test_the_forged_packet_is_one_that_a_peer_could_send() -> None:
    packet = udp_packet("10.1.9.2", "10.1.72.2", 4000, b"forged")
    again = IP(packet)
    del again.chksum
    assert bytes(again) == packet
    assert (again.src, again.dst, again.dport, bytes(again.payload.payload)) == ("10.1.9.2", "10.1.72.2", 4000, b"forged")
