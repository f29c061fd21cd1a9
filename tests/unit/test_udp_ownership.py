"""Who owns a block that several leases claim? Any sequence of changes gives what a fresh start on the result gives."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from backends.udp.ownership import Claim, Ownership
from backends.udp.protocol import DELETE, SET, Block, Order


def claim(subnet: str, host: str, revision: int, key: str | None = None) -> Claim:
    net = IPNetwork(subnet)
    return Claim(revision, key or subnet.replace("/", "-"), (net.first, net.prefixlen), int(IPAddress(host)))


def shown(orders: list[Order]) -> list[str]:
    """What a peer table has to do, as text."""
    words = []
    for order in orders:
        net = f"{IPAddress(order.network, 4)}/{order.length}"
        words.append(f"set {net} at {IPAddress(order.host, 4)}" if order.what == SET else f"delete {net}")
    return words


HONEST = claim("10.5.9.0/24", "192.0.2.2", 10)
ROGUES = (
    claim("10.5.9.5/24", "192.0.2.66", 20),  # host bits
    claim("10.5.9.0/24", "192.0.2.66", 20, "10.5.9.0-24&fd00:1::-64"),  # an IPv6 half more
    claim("10.5.9.0/25", "192.0.2.66", 20),
    claim("10.5.9.128/25", "192.0.2.66", 20),
    claim("10.5.9.200/31", "192.0.2.66", 20),
    claim("10.5.8.0/22", "192.0.2.66", 20),
)


def test_a_younger_lease_takes_nothing_and_leaves_nothing_behind() -> None:
    for rogue in ROGUES:
        peers = Ownership()
        assert shown(peers.change({HONEST.key: HONEST})) == ["set 10.5.9.0/24 at 192.0.2.2"]
        assert peers.change({rogue.key: rogue}) == []
        assert peers.change({rogue.key: None}) == []
        assert shown(peers.orders()) == ["set 10.5.9.0/24 at 192.0.2.2"]


def test_when_the_oldest_goes_the_next_one_is_back() -> None:
    for rogue in ROGUES[:2]:
        peers = Ownership()
        peers.change({rogue.key: rogue})
        assert shown(peers.change({HONEST.key: HONEST})) == ["set 10.5.9.0/24 at 192.0.2.2"]
        assert shown(peers.change({HONEST.key: None})) == ["set 10.5.9.0/24 at 192.0.2.66"]
    wide = ROGUES[-1]
    peers = Ownership()
    peers.change({wide.key: wide})
    assert shown(peers.change({HONEST.key: HONEST})) == ["delete 10.5.8.0/22", "set 10.5.9.0/24 at 192.0.2.2"]
    assert shown(peers.change({HONEST.key: None})) == ["delete 10.5.9.0/24", "set 10.5.8.0/22 at 192.0.2.66"]


def test_of_one_revision_the_smaller_key_counts() -> None:
    one, other = claim("10.5.9.1/24", "192.0.2.2", 10), claim("10.5.9.0/24", "192.0.2.3", 10)
    for order in ((one, other), (other, one)):
        peers = Ownership()
        for each in order:
            peers.change({each.key: each})
        assert shown(peers.orders()) == ["set 10.5.9.0/24 at 192.0.2.3"]


def test_what_is_shut_out_shuts_out_nobody() -> None:
    """The /22 overlaps the older /24 and does not count: it cannot shut out the younger /24."""
    oldest, middle = claim("10.5.9.0/24", "192.0.2.2", 1), claim("10.5.8.0/22", "192.0.2.3", 2)
    youngest = claim("10.5.10.0/24", "192.0.2.4", 3)
    peers = Ownership()
    peers.change({each.key: each for each in (youngest, middle, oldest)})
    assert sorted(shown(peers.orders())) == ["set 10.5.10.0/24 at 192.0.2.4", "set 10.5.9.0/24 at 192.0.2.2"]


def naive(claims: dict[str, Claim]) -> dict[Block, int]:
    """By rank, whoever overlaps nobody that counts."""
    kept: list[tuple[IPNetwork, int]] = []
    for each in sorted(claims.values()):
        net = IPNetwork((each.block[0], each.block[1]), version=4)
        if all(net.last < other.first or other.last < net.first for other, _ in kept):
            kept.append((net, each.host))
    return {(net.first, net.prefixlen): host for net, host in kept}


# A small corner of the address space, so that blocks collide, nest and have several claims.
lows, lengths = st.integers(0, 2**11 - 1), st.sampled_from((21, 24, 24, 25, 31))
blocks = st.builds(lambda low, length: ((0x0A050000 + low) >> 32 - length << 32 - length, length), lows, lengths)
keys = st.sampled_from("abcdefghij")
values = st.one_of(st.none(), st.tuples(st.integers(1, 5), blocks, st.integers(1, 4)))
batches = st.lists(st.dictionaries(keys, values, max_size=4), max_size=25)


@settings(max_examples=500, deadline=None)
@given(batches)
def test_any_sequence_gives_what_a_fresh_start_gives(sequence: list[dict[str, tuple[int, Block, int] | None]]) -> None:
    peers, table = Ownership(), dict[Block, int]()
    standing: dict[str, Claim] = {}
    for batch in sequence:
        changes = {key: None if value is None else Claim(value[0], key, value[1], value[2]) for key, value in batch.items()}
        for key, each in changes.items():
            standing.pop(key, None)
            if each is not None:
                standing[key] = each
        deleted = True
        for order in peers.change(changes):
            block = (order.network, order.length)
            if order.what == DELETE:
                assert deleted  # deletions first
                del table[block]
            else:
                deleted = False
                table[block] = order.host
        assert table == naive(standing)
        assert len(peers) == len(table)
        fresh = Ownership()
        fresh.change(standing)
        assert sorted(fresh.orders()) == sorted(peers.orders()) == sorted(Order(SET, *block, host) for block, host in table.items())


def test_a_change_among_ten_thousand_touches_its_own_block_only() -> None:
    many = {str(at): Claim(at + 1, str(at), (0x0A400000 + 256 * at, 24), 0xAC100001 + at) for at in range(10_000)}
    peers = Ownership()
    assert len(peers.change(many)) == 10_000
    peers.change({"narrow": Claim(1, "narrow", (0x0B000000, 31), 1)})  # several lengths from now on
    asked: list[list[Block]] = []
    judged = peers._judged

    def watched(group: list[Block]) -> dict[Block, int]:
        asked.append(group)
        return judged(group)

    peers._judged = watched  # type: ignore[method-assign]
    rogue = Claim(20_000, "rogue", (0x0A400000 + 256 * 77, 25), 9)
    assert peers.change({"rogue": rogue}) == []
    assert asked == [[many["77"].block, rogue.block]]
