"""How do the neighbours on a link learn that we have another hardware address there? By being asked for theirs.

An interface that was made anew says nothing by itself (arp_notify is off, ip-sysctl), and what it hears from a neighbour it need
not ask for: then the other side goes on sending to the address of before, for up to a minute. A neighbour entry in the state PROBE
makes the kernel send a request to that neighbour alone, and who answers one takes over the sender's address (RFC 826; arp_process,
neigh_event_ns). An announcement to everybody would need CAP_NET_RAW. Only IPv4: a request of IPv6's comes from the link-local
address, and tells nothing of the others; there the other side finds out by itself in eight seconds (RFC 4861 section 7.3).
"""

from __future__ import annotations

from flannelpy.kernel import messages
from flannelpy.kernel.channel import Channel
from flannelpy.kernel.dump import dump_of_device
from flannelpy.kernel.messages import AF_INET, NeighbourInfo

ANSWERING = 0x02 | 0x04 | 0x08 | 0x10
"""The states of an entry whose address is known and was learned (REACHABLE, STALE, DELAY, PROBE; linux/neighbour.h)."""

MOST = 250
"""Neighbours that are asked at a time: what one batch of requests carries."""


async def reintroduce(index: int) -> None:
    """Have the kernel ask each neighbour that it knows on this link. Raises KernelError where it cannot be asked at all."""

    def read(data: bytes, body: int, end: int) -> NeighbourInfo | None:
        found = messages.read_neighbour(data, body, end)
        learned = found.device == index and found.state & ANSWERING and not found.flags and found.dst and found.mac
        return found if learned else None

    known = await dump_of_device(lambda sequence: messages.dump_neighbours(sequence, AF_INET, index), read)
    with Channel() as channel:
        first = channel.reserve(len(known[:MOST]))
        requests = [messages.probe_neighbour(first + at, each) for at, each in enumerate(known[:MOST])]
        if requests:
            channel.transact(requests, first)  # one that went meanwhile is refused, and that is all
