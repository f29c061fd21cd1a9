"""Does an operator see gRPC's inside? What gRPC really said, and what is made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.registry.etcd.grpc_text import plain

FAILED = "failed to connect to all addresses; last error: UNKNOWN: "
REMOTE = "Failed to connect to remote host: "

SAID = {
    f"{FAILED}ipv4:127.0.0.1:4001: {REMOTE}Connection refused": "connection refused",
    f"{FAILED}ipv6:%5B::1%5D:1: {REMOTE}Connection refused": "connection refused",
    f"{FAILED}ipv4:192.0.2.1:2379: {REMOTE}No route to host": "no route to host",
    f"{FAILED}ipv4:192.0.2.1:2379: {REMOTE}Timeout occurred: FD Shutdown": "no answer",
    "errors resolving no-such.invalid:1: [field:hostname lookup error:Address lookup failed for no-such.invalid:1 "
    "os_error: Name or service not known syscall: getaddrinfo]": "its name is not known",
    "Socket closed": "the connection was closed",
    "recvmsg:Connection reset by peer": "the connection was closed",
    "ping timeout": "no answer",
    "etcdserver: mvcc: database space exceeded": "mvcc: database space exceeded",
    "rpc error: code = Unavailable desc = etcdserver: no leader": "no leader",
    "Received http2 header with status: 404": "it answers in HTTP, not as etcd",
    "UNKNOWN: ipv4:127.0.0.1:1: something that nobody has seen yet": "something that nobody has seen yet",
    "": "",
}


@pytest.mark.parametrize("details", SAID)
def test_grpcs_words_are_an_operators(details: str) -> None:
    assert plain(details) == SAID[details]


@given(st.text())
def test_anything_is_one_short_line(details: str) -> None:
    for text in (plain(details), plain(f"etcdserver: {details}"), plain(f"x; last error: UNKNOWN: ipv4:1.2.3.4:5: {details}")):
        assert len(text) <= 200
        assert text.isprintable()
