"""Which blocks are free, and which one is taken? Compared with the plain answer: look at every block and every lease."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.config import NetworkConfig, Pool
from flannelpy.core.pool import Memory, choose_block, free_runs, overlap


def pool_of(text: str) -> Pool:
    config = NetworkConfig.parse(text)
    pool = config.v4 or config.v6
    assert pool is not None
    return pool


SIXTEEN = pool_of('{"Network": "10.5.0.0/20", "SubnetLen": 24}')  # 15 blocks, 10.5.1.0 to 10.5.15.0
EVERY_V4 = st.builds(lambda value, length: IPNetwork((value, length), version=4), st.integers(0, 2**32 - 1), st.integers(1, 31))
NEAR = st.builds(
    lambda value, length: IPNetwork((0x0A050000 + value, length), version=4), st.integers(-4096, 8192), st.integers(16, 31)
)


def free_blocks(pool: Pool, taken: list[IPNetwork]) -> set[IPNetwork]:
    return {block for block in map(pool.block, range(pool.count)) if not any(overlap(block, net) for net in taken)}


@given(st.lists(NEAR | EVERY_V4, max_size=12))
def test_free_is_what_nothing_overlaps(taken: list[IPNetwork]) -> None:
    runs = free_runs(SIXTEEN, taken)
    assert {SIXTEEN.block(number) for start, end in runs for number in range(start, end)} == free_blocks(SIXTEEN, taken)
    assert all(before[1] < after[0] for before, after in pairwise(runs))


@given(st.lists(NEAR, max_size=12), st.lists(NEAR, max_size=8, unique=True), st.integers())
@settings(max_examples=200)
def test_what_was_freed_last_is_taken_last(taken: list[IPNetwork], freed: list[IPNetwork], seed: int) -> None:
    chosen = choose_block(SIXTEEN, taken, {net: when for when, net in enumerate(freed)}, Random(seed))
    free = free_blocks(SIXTEEN, taken)
    if not free:
        assert chosen is None
        return
    last_use = {block: max((when for when, net in enumerate(freed) if overlap(block, net)), default=-1) for block in free}
    assert chosen in free
    assert last_use[chosen] == min(last_use.values())


def test_every_free_block_has_its_chance() -> None:
    taken = [IPNetwork("10.5.4.0/24"), IPNetwork("10.5.8.0/21")]
    random = Random(3)
    seen = Counter(str(choose_block(SIXTEEN, taken, {}, random)) for _ in range(6000))
    assert set(seen) == {f"10.5.{third}.0/24" for third in (1, 2, 3, 5, 6, 7)}
    assert min(seen.values()) > 850


def test_no_block_is_none() -> None:
    assert choose_block(SIXTEEN, [IPNetwork("10.0.0.0/8")], {}, Random(1)) is None


def test_a_pool_too_large_to_count_out_is_no_trouble() -> None:
    pool = pool_of('{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/8", "IPv6SubnetLen": 64}')
    block = choose_block(pool, [IPNetwork("fd00::/9"), IPNetwork("10.0.0.0/8")], {}, Random(1))
    assert block is not None
    assert block in IPNetwork("fd80::/9")
    assert block.prefixlen == 64


def test_what_was_ours_comes_first_the_last_lost_before_the_older() -> None:
    memory = Memory([IPNetwork("10.5.3.0/24")])
    memory.lost([IPNetwork("10.5.9.0/24")])
    assert str(memory.choose(SIXTEEN, [], Random(1))) == "10.5.9.0/24"
    assert str(memory.choose(SIXTEEN, [IPNetwork("10.5.9.0/24")], Random(1))) == "10.5.3.0/24"


def test_what_we_gave_back_is_not_ours_until_we_are_settled() -> None:
    memory = Memory([IPNetwork("10.5.3.0/24")])
    memory.released(1.0, [IPNetwork("10.5.3.0/24")])
    assert all(str(memory.choose(SIXTEEN, [], Random(seed))) != "10.5.3.0/24" for seed in range(50))
    memory.settled()
    assert str(memory.choose(SIXTEEN, [], Random(1))) == "10.5.3.0/24"


def test_a_freed_subnet_is_forgotten_after_a_day_and_the_memory_is_bounded() -> None:
    memory = Memory()
    memory.freed(0.0, [IPNetwork("10.5.1.0/24")])
    memory.freed(90_000.0, [IPNetwork("10.5.2.0/24")])
    taken = [IPNetwork(f"10.5.{third}.0/24") for third in range(3, 16)]
    assert {str(memory.choose(SIXTEEN, taken, Random(seed))) for seed in range(20)} == {"10.5.1.0/24"}
    for number in range(10_000):
        memory.freed(90_000.0, [IPNetwork((0x0B000000 + 256 * number, 24), version=4)])
    assert len(memory._freed) <= 4096
