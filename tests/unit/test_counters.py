"""Are the packets read that nft's counters have counted?"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.kernel.counters import decode, decode_elements
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


def elements(*counted: tuple[bytes, int | None]) -> bytes:
    """The payload of an NFT_MSG_NEWSETELEM; a count of None is an element without a counter."""
    listed = b""
    for address, packets in counted:
        each = attribute(1 | 0x8000, attribute(1, address))
        if packets is not None:
            data = attribute(1, (9999).to_bytes(8, "big")) + attribute(2, packets.to_bytes(8, "big"))
            each += attribute(7 | 0x8000, attribute(1, b"counter\0") + attribute(2 | 0x8000, data))
        listed += attribute(1 | 0x8000, each)
    return b"\1\0\0\0" + attribute(1, b"flannelpy\0") + attribute(2, b"refused4\0") + attribute(3 | 0x8000, listed)


@given(st.dictionaries(st.ip_addresses(), st.integers(0, 2**64 - 1), max_size=5))
def test_packets_are_read_by_source(counted: dict[IPv4Address | IPv6Address, int]) -> None:
    data = elements(*((address.packed, packets) for address, packets in counted.items()))
    assert {ip_address(text): packets for text, packets in decode_elements(data, 0, len(data))} == counted


@given(st.integers(0, 200), st.binary(max_size=30))
def test_what_is_no_count_of_an_address_is_left_out(size: int, junk: bytes) -> None:
    data = elements((bytes(4), None), (bytes(8), 3), (b"\xc0\0\2\7", 5))
    assert list(decode_elements(data, 0, len(data))) == [("192.0.2.7", 5)]
    cut = data[: min(size, len(data) - 1)]
    assert list(decode_elements(cut, 0, len(cut))) == []
    assert list(decode_elements(b"\1\0\0\0" + attribute(3, junk), 0, 8 + len(junk))) == []
