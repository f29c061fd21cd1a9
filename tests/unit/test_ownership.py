"""Who owns what several leases claim? Any sequence of changes gives what a fresh start on the result gives."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.ownership import Claim, Ownership


def claim(age: int, *claimed: str, key: str | None = None) -> Claim:
    """Of these subnets, and names (whatever has no slash)."""
    nets = [IPNetwork(each) for each in claimed if "/" in each]
    blocks = tuple((net.version, int(net.first), int(net.last)) for net in nets)
    return Claim((age, key or claimed[0]), blocks, tuple(each for each in claimed if "/" not in each))


def owning(*claims: Claim) -> Ownership:
    ownership = Ownership()
    for each in claims:
        ownership.change({each.age[1]: each})
    return ownership


HONEST = claim(10, "10.5.9.0/24", "fd00:9::/64", "mac a", key="honest")
ROGUES = [
    claim(20, *claimed, key="rogue")
    for claimed in (
        ("10.5.9.0/24",),
        ("10.5.9.0/25",),
        ("10.5.9.128/25",),
        ("10.5.9.200/31",),
        ("10.5.8.0/22",),
        ("fd00:9::/64",),
        ("fd00:9::4000/114",),
        ("fd00:8::/29",),
        ("10.5.77.0/24", "fd00:9::/65"),
        ("10.5.9.0/26", "fd00:77::/64"),
        ("10.5.77.0/24", "mac a"),
    )
]


def test_a_younger_lease_takes_nothing_and_leaves_nothing_behind() -> None:
    for rogue in ROGUES:
        ownership = owning(HONEST)
        assert ownership.change({"rogue": rogue}) == {"rogue": "honest"}
        assert ownership.change({"rogue": None}) == {}
        assert ownership.change({"honest": HONEST}) == {"honest": None}


def test_when_the_oldest_goes_the_next_one_is_back() -> None:
    for rogue in ROGUES:
        ownership = owning(rogue)
        assert ownership.change({"honest": HONEST}) == {"honest": None, "rogue": "honest"}
        assert ownership.change({"honest": None}) == {"rogue": None}


def test_of_one_revision_the_smaller_key_counts() -> None:
    one, other = claim(10, "10.5.9.0/25", key="b"), claim(10, "10.5.9.0/24", key="a")
    assert owning(one).change({"a": other}) == {"a": None, "b": "a"}
    assert owning(other).change({"b": one}) == {"b": "a"}


def test_what_does_not_count_shuts_out_nobody() -> None:
    oldest, middle, youngest = claim(1, "10.5.9.0/24"), claim(2, "10.5.8.0/22"), claim(3, "10.5.10.0/24")
    ownership = owning(youngest, middle)
    assert ownership.change({"10.5.9.0/24": oldest}) == {"10.5.9.0/24": None, "10.5.8.0/22": "10.5.9.0/24", "10.5.10.0/24": None}


def test_a_claim_counts_as_a_whole() -> None:
    """Of two families one is taken: the other is not held, either."""
    half = claim(20, "10.5.77.0/24", "fd00:9::/64", key="half")
    ownership = owning(HONEST, half)
    assert ownership.change({"third": claim(30, "10.5.77.0/24", key="third")}) == {"third": None}


def naive(claims: dict[str, Claim]) -> set[str]:
    """By age, whoever shares nothing with anybody that counts."""
    kept: list[Claim] = []
    for each in sorted(claims.values()):
        if not any(shares(each, other) for other in kept):
            kept.append(each)
    return {each.age[1] for each in kept}


def shares(one: Claim, other: Claim) -> bool:
    if set(one.names) & set(other.names):
        return True
    return any(a[0] == b[0] and a[1] <= b[2] and b[1] <= a[2] for a in one.blocks for b in other.blocks)


# A small corner of the address space, so that blocks collide, nest and have several claims.
v4 = st.builds(lambda low, length: str(IPNetwork(f"10.5.{low}.0/{length}").cidr), st.integers(0, 7), st.sampled_from((21, 24, 25)))
v6 = st.builds(lambda low, length: str(IPNetwork(f"fd00:0:0:{low}::/{length}").cidr), st.integers(0, 7), st.sampled_from((62, 64)))
names = st.sampled_from(("mac a", "mac b", "mac c"))
things = st.one_of(
    st.tuples(v4), st.tuples(v6), st.tuples(v4, v6), st.tuples(v4, names), st.tuples(v4, v6, names), st.tuples(v6, names)
)
keys = st.sampled_from("abcdefghij")
batches = st.lists(st.dictionaries(keys, st.one_of(st.none(), st.tuples(st.integers(1, 5), things)), max_size=4), max_size=25)


@settings(max_examples=500, deadline=None)
@given(batches)
def test_any_sequence_gives_what_a_fresh_start_gives(sequence: list[dict[str, tuple[int, tuple[str, ...]] | None]]) -> None:
    walked, verdicts = Ownership(), dict[str, str | None]()
    standing: dict[str, Claim] = {}
    for batch in sequence:
        changes = {key: None if made is None else claim(made[0], *made[1], key=key) for key, made in batch.items()}
        for key, each in changes.items():
            standing.pop(key, None)
            verdicts.pop(key, None)
            if each is not None:
                standing[key] = each
        told = walked.change(changes)
        assert {key for key, each in changes.items() if each is not None} <= told.keys() <= standing.keys()
        verdicts |= told
        counts = naive(standing)
        assert {key for key, behind in verdicts.items() if behind is None} == counts
        for key, behind in verdicts.items():
            if behind is not None:
                assert behind in counts
                assert standing[behind] < standing[key]
                assert shares(standing[behind], standing[key])
    fresh = Ownership().change(standing)
    assert {key for key, behind in fresh.items() if behind is None} == {key for key, behind in verdicts.items() if behind is None}


def test_a_wide_claim_that_flaps_over_thousands_of_narrow_ones_looks_at_one_of_them() -> None:
    """It is younger than any, each time that it comes."""
    ownership = Ownership()
    narrow = {str(at): Claim((at + 1, str(at)), ((4, 2 * at, 2 * at + 1),)) for at in range(8192)}
    assert set(ownership.change(narrow).values()) == {None}
    looked: list[str] = []
    rivals = ownership._rivals

    def watched(each: Claim):  # type: ignore[no-untyped-def]
        for rival in rivals(each):
            looked.append(rival)
            yield rival

    ownership._rivals = watched  # type: ignore[method-assign]
    for turn in range(100):
        wide = Claim((10_000 + turn, "wide"), ((4, 0, 2**14 - 1),))
        assert list(ownership.change({"wide": wide})) == ["wide"]
        assert ownership.change({"wide": None}) == {}
    assert len(looked) == 100


def test_what_is_hidden_behind_others_costs_nothing_while_those_stay() -> None:
    """Thousands wait behind one: whoever comes and goes elsewhere, or in vain among them, has none of them looked at."""
    random = Random(5)
    ownership = Ownership()
    ownership.change({"wide": Claim((1, "wide"), ((4, 0, 2**14 - 1),))})
    ownership.change({str(at): Claim((at + 2, str(at)), ((4, 2 * at, 2 * at + 1),)) for at in range(8192)})
    judged: list[str] = []
    judge = ownership._judge

    def watched(key: str) -> None:
        judged.append(key)
        judge(key)

    ownership._judge = watched  # type: ignore[method-assign]
    for turn in range(100):
        at = random.randrange(8192)
        inside = Claim((10_000 + turn, "inside"), ((4, 2 * at, 2 * at + 1),))
        assert ownership.change({"inside": inside}) == {"inside": "wide"}
        assert ownership.change({"inside": None}) == {}
    assert judged == ["inside"] * 100
    assert set(ownership.change({"wide": None}).values()) == {None}
