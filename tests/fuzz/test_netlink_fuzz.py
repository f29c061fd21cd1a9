"""Any datagram from the kernel: read, or one that is lost and asked for anew; never the end of the agent."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import FdbEntry, Neighbour, Route
from flannelpy.kernel import links, messages
from flannelpy.kernel.digest import Digest, Draft
from tests.fuzz.mutation import bent, kept, rounds
from tests.unit.test_digest import LINK, NAMES, OLD, OURS, SCOPE, UPLINK, VETH, WHOLE, known

WITH_NFT = [
    *WHOLE,
    *kept("netlink"),
    b"\x24\x00\x00\x00\x00\x0a\x00\x00" + bytes(8) + b"\x01\x00\x00\x00" + b"\x0e\x00\x01\x00flannelpy\x00\x00\x00",
    links.create(1, replace(LINK, name="flannel.1", mtu=1400), UPLINK),
    messages.route(messages.RTM_DELROUTE, 0, 1, Route(IPNetwork("10.5.7.0/24"), IPAddress("192.0.2.9"), "eth1"), UPLINK),
    messages.neighbour(messages.RTM_NEWNEIGH, 0, 1, Neighbour(IPAddress("10.5.8.0"), "02:00:00:00:00:08", "flannel.1"), OURS),
    messages.fdb(messages.RTM_DELNEIGH, 0, 1, FdbEntry("02:00:00:00:00:08", IPAddress("2001:db8::8"), "flannel.1"), OURS),
]
GOOD = messages.route(messages.RTM_NEWROUTE, 0, 0, Route(IPNetwork("10.5.99.0/24"), kind="unreachable"), 0)


def digest() -> Digest:
    found = Digest(SCOPE, lambda index: NAMES.get(index, f"if{index}"))
    found.survey([known(OURS), known(UPLINK), known(OLD), known(VETH)])
    return found


def datagram(random: Random) -> bytes:
    """One to three messages, each at times with a length that fits again."""
    parts = []
    for _ in range(random.choice((1, 1, 2, 3))):
        part = bytearray(bent(random, WITH_NFT))
        if len(part) >= 16 and random.random() < 0.7:
            part[0:4] = len(part).to_bytes(4, "little")
        parts.append(bytes(part) + bytes(-len(part) % 4))
    return b"".join(parts)


def check(heard: Digest, data: bytes) -> None:
    draft, before = Draft(), heard.malformed
    heard.route(data, draft)
    heard.netfilter(data, draft)
    assert draft.lost == (heard.malformed > before), data.hex()
    assert draft.notice.resync or not draft.lost, data.hex()
    for head in messages.heads(data):
        assert 16 <= head.body <= head.end <= len(data), data.hex()


def test_any_datagram_of_the_kernel() -> None:
    for data in WITH_NFT:
        check(digest(), data)
    heard = digest()
    for number, random in enumerate(rounds(100_000)):
        if number % 50 == 0:  # what a former one has done to it is forgotten now and then
            heard = digest()
        data = datagram(random)
        try:
            check(heard, data)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} on {data.hex()}") from error
        after = Draft()
        heard.route(GOOD, after)
        assert after.objects, f"the next message is not read after {data.hex()}"
