"""Does a rough wire do what it is told, no more, and count it? And is the cable as it was afterwards?

a0 === a1 ~ rough ~ b1 === b0         in one namespace of a lab; and the cable of h1
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest

from netns_lab.errors import LabError
from netns_lab.lab import Lab
from netns_lab.namespaces import batch, open_socket
from netns_lab.rough import Counts, Rates, joined

pytestmark = pytest.mark.topology(hosts=2, etcd=0)

FRAMES = 2000
NUMBERS = 0x88B5  # an Ethernet type for experiments (IEEE 802)


async def carried(lab: Lab, rates: Rates) -> tuple[list[int], Counts]:
    """The numbers of the frames as they came, of FRAMES that were sent in order, and what the wire says of them."""
    net = lab.box("net").namespace
    pairs = [f"link add {side}0 type veth peer name {side}1" for side in "ab"]
    await batch([*pairs, *(f"link set {side}{end} up" for side in "ab" for end in "01")], net.path)
    try:
        async with joined(net, "a1", "b1", rates, lab.directory) as rough:
            with packets(lab, "a0") as source, packets(lab, "b0") as target:
                came: list[int] = []
                for start in range(0, FRAMES, 100):
                    for number in range(start, start + 100):
                        source.send(bytes(6) + b"\2\0\0\0\0\1" + NUMBERS.to_bytes(2, "big") + number.to_bytes(2, "big").ljust(50))
                    last = start + 100

                    def settled(sent: int = last) -> bool:
                        counts = rough.outbound
                        return counts.seen == sent and counts.sent == sent - counts.lost + counts.doubled

                    await lab.until(settled, timeout_s=5)
                    came += taken(target)
            return came, rough.outbound
    finally:
        await batch(["link del a0", "link del b0"], net.path)


def packets(lab: Lab, device: str) -> socket.socket:
    made = open_socket(lab.box("net").namespace.path, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(NUMBERS))
    made.bind((device, NUMBERS))
    made.setblocking(False)
    return made


def taken(target: socket.socket) -> Sequence[int]:
    numbers = []
    while True:
        try:
            numbers.append(int.from_bytes(target.recv(100)[14:16], "big"))
        except BlockingIOError:
            return numbers


async def test_without_rates_it_is_a_cable(lab: Lab) -> None:
    came, counts = await carried(lab, Rates())
    assert came == list(range(FRAMES))
    assert counts == Counts(FRAMES, 0, 0, 0, FRAMES, 0, 0)


async def test_it_loses_moves_and_doubles_its_share_and_says_so(lab: Lab) -> None:
    came, counts = await carried(lab, Rates(loss=0.1, reordering=0.2, duplication=0.3, seed=3))
    times = Counter(came)
    assert FRAMES - len(times) == counts.lost
    assert sum(count - 1 for count in times.values()) == counts.doubled
    assert 0.08 < counts.lost / FRAMES < 0.12
    assert 0.24 < counts.doubled / FRAMES < 0.30  # of those that are not lost
    assert 0.15 < counts.moved / FRAMES < 0.30
    assert sum(later < earlier for earlier, later in pairwise(came)) > FRAMES / 20


async def test_a_seed_makes_the_same_choices_and_another_makes_others(lab: Lab) -> None:
    one, again, other = [Counter((await carried(lab, Rates(0.1, 0.1, 0.1, seed)))[0]) for seed in (5, 5, 6)]
    assert one == again != other


async def test_a_hosts_cable_is_rough_for_the_block_and_as_before_after_it(lab: Lab) -> None:
    net = lab.box("net")

    async def state() -> list[str]:
        offloads = [await host.exec("ethtool", "-k", "eth1") for host in lab.hosts]
        ports = [await net.exec("ethtool", "-k", host.name) for host in lab.hosts]
        members = [line.split()[0] for line in (await net.exec("ip", "-br", "link", "show", "master", "br0")).splitlines()]
        return [*members, *offloads, *ports]

    before = await state()
    with suppress(ZeroDivisionError):
        async with lab.rough("h1", Rates(duplication=1)) as rough:
            assert "DUP!" in await lab.host(1).exec("ping", "-c2", "-i0.01", str(lab.host(2).address))
            await lab.until(lambda: rough.inbound.doubled == rough.inbound.seen > 0, what="each frame doubled")
            raise ZeroDivisionError
    assert await state() == before
    assert "rough" not in await net.exec("ip", "-br", "link")
    assert (await lab.ping("h1", "h2")).ok
    async with lab.rough(2, Rates(loss=1)) as rough:
        assert not (await lab.ping("h1", "h2", wait_s=0.2)).ok
        assert rough.outbound.seen + rough.inbound.seen == rough.outbound.lost + rough.inbound.lost > 0
    assert await state() == before


def test_a_share_is_from_0_to_1() -> None:
    with pytest.raises(LabError, match="loss 5: expected a share from 0 to 1"):
        Rates(loss=5)
