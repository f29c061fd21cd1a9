"""Are the packets read that nft's counters have counted?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.kernel.counters import decode
from flannelpy.kernel.messages import attribute


def told(table: str, name: str, kind: int, packets: int) -> bytes:
    """The payload of an NFT_MSG_NEWOBJ."""
    data = attribute(1, (9999).to_bytes(8, "big")) + attribute(2, packets.to_bytes(8, "big"))
    texts = attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
    return b"\1\0\0\0" + texts + attribute(3, kind.to_bytes(4, "big")) + attribute(4 | 0x8000, data)


@given(st.integers(0, 2**64 - 1), st.from_regex(r"[a-z_]{1,40}", fullmatch=True))
def test_packets_are_read_by_name(packets: int, name: str) -> None:
    data = told("flannelpy", name, 1, packets)
    assert decode(data, 0, len(data), "flannelpy") == (name, packets)


@pytest.mark.parametrize(("table", "kind"), [("another", 1), ("flannelpy", 2)])
def test_what_is_no_counter_of_this_table_is_left_out(table: str, kind: int) -> None:
    data = told(table, "inner_source", kind, 3)
    assert decode(data, 0, len(data), "flannelpy") is None


def test_what_is_cut_short_is_left_out() -> None:
    data = told("flannelpy", "inner_source", 1, 3)
    assert decode(data, 0, 4, "flannelpy") is None
