"""The peer table against a naive longest prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from socket import inet_ntoa
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from backends.udp.worker.peers import PeerTable

OWN = IPNetwork("10.5.72.0/24")
PORT = 8285


def table(*peers: str) -> PeerTable:
    """A table from lines like ``10.5.9.0/24 at 192.0.2.2``."""
    made = PeerTable(OWN.first, OWN.prefixlen, PORT)
    for line in peers:
        subnet, _, host = line.partition(" at ")
        made.set(IPNetwork(subnet).first, IPNetwork(subnet).prefixlen, int(IPAddress(host)))
    return made


def found(made: PeerTable, address: str) -> tuple[str, int] | None:
    return made.find(int(IPAddress(address)))


def test_a_peer_is_found_by_any_address_of_its_subnet_and_by_no_other() -> None:
    made = table("10.5.9.0/24 at 192.0.2.2")
    assert found(made, "10.5.9.0") == found(made, "10.5.9.255") == ("192.0.2.2", PORT)
    assert found(made, "10.5.8.255") is None
    assert found(made, "10.5.10.0") is None


def test_the_most_specific_subnet_wins_whatever_came_first() -> None:
    for order in (1, -1):
        made = table(*["10.5.8.0/22 at 192.0.2.2", "10.5.9.0/24 at 192.0.2.3", "10.5.9.128/26 at 192.0.2.4"][::order])
        assert found(made, "10.5.10.1") == ("192.0.2.2", PORT)
        assert found(made, "10.5.9.1") == ("192.0.2.3", PORT)
        assert found(made, "10.5.9.129") == ("192.0.2.4", PORT)


def test_what_overlaps_our_own_subnet_is_ignored() -> None:
    made = table("10.5.72.0/24 at 192.0.2.2", "10.5.72.128/25 at 192.0.2.2", "10.5.64.0/20 at 192.0.2.2", "0.0.0.0/0 at 192.0.2.2")
    assert len(made) == 0
    assert not made.knows("192.0.2.2")
    assert table("10.5.73.0/24 at 192.0.2.2").knows("192.0.2.2")


def test_a_host_is_known_as_long_as_one_of_its_subnets_is() -> None:
    made = table("10.5.9.0/24 at 192.0.2.2", "10.5.10.0/24 at 192.0.2.2")
    made.delete(IPNetwork("10.5.9.0/24").first, 24)
    assert made.knows("192.0.2.2")
    made.set(IPNetwork("10.5.10.0/24").first, 24, int(IPAddress("192.0.2.3")))
    assert not made.knows("192.0.2.2")
    assert made.knows("192.0.2.3")
    made.delete(IPNetwork("10.5.10.0/24").first, 24)
    made.delete(IPNetwork("10.5.10.0/24").first, 24)
    assert not made.knows("192.0.2.3")
    assert found(made, "10.5.10.1") is None


# A small corner of the address space, so that subnets collide, nest and touch our own.
corner = st.integers(0, 2**12 - 1).map(lambda low: int(IPAddress("10.5.64.0")) + low)
length = st.integers(20, 32)
host = st.integers(1, 4).map(lambda last: int(IPAddress("192.0.2.0")) + last)
change = st.tuples(st.sampled_from(["set", "set", "delete"]), corner, length, host)


@given(st.lists(change, max_size=40), st.lists(corner, min_size=1, max_size=20))
def test_as_a_naive_longest_prefix(changes: list[tuple[str, int, int, int]], asked: list[int]) -> None:
    made = table()
    naive: dict[IPNetwork, int] = {}
    for what, address, prefix, at in changes:
        net = IPNetwork((address, prefix), version=4).cidr
        if what == "delete":
            made.delete(net.first, prefix)
            naive.pop(net, None)
        else:
            made.set(net.first, prefix, at)
            if net.last < OWN.first or net.first > OWN.last:
                naive[net] = at
    assert len(made) == len(naive)
    for address in asked:
        holding = [net for net in naive if net.first <= address <= net.last]
        best = max(holding, key=lambda net: int(net.prefixlen), default=None)
        assert made.find(address) == (None if best is None else (inet_ntoa(naive[best].to_bytes(4, "big")), PORT))
    for at in range(1, 5):
        name = f"192.0.2.{at}"
        assert made.knows(name) == (int(IPAddress(name)) in naive.values())


asked: Counter[str] = Counter()


def watched(name: str) -> Callable[..., Any]:
    """An operation of int that is counted; so is what is then done with its result."""

    def operation(self: int, *others: Any) -> Any:
        asked[name] += 1
        answer = getattr(int, name)(self, *others)
        return answer if name == "__hash__" or type(answer) is not int else Watched(answer)

    return operation


OPERATIONS = "rshift lshift and or xor sub floordiv mod hash eq ne lt le gt ge index"
Watched: Any = type("Watched", (int,), {f"__{each}__": watched(f"__{each}__") for each in OPERATIONS.split()})
"""An address of which is counted what a look-up does with it."""


def looked_up(made: PeerTable, address: int) -> Counter[str]:
    asked.clear()
    made.find(Watched(address))
    return asked.copy()


def test_a_look_up_asks_the_same_of_ten_and_of_ten_thousand_peers() -> None:
    first = int(IPAddress("10.64.0.0"))
    made = {}
    for count in (10, 10_000):
        made[count] = table()
        for number in range(count):
            made[count].set(first + 256 * number, 24, int(IPAddress("172.16.0.1")) + number)
        assert len(made[count]) == count
    for address in (first + 5, first + 256 * 9 + 255, first - 1, OWN.first):
        few, many = (looked_up(each, address) for each in made.values())
        assert few == many
        assert few.total() <= 3  # one dict: which network, its hash, is it this one
    assert looked_up(made[10_000], first + 256 * 9_999).total() <= 3
