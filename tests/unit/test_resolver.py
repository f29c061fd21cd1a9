"""Who is asked for names, and where is a host that has one?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from netaddr import IPAddress

from flannelpy.host.resolver import nameservers
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd import names
from flannelpy.registry.etcd.registry import EtcdRegistry


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", []),
        (b"nameserver 192.0.2.53\n", ["192.0.2.53"]),
        (b"# a comment\nsearch example\n nameserver\t192.0.2.53 \nnameserver 2001:db8::53\n", ["192.0.2.53", "2001:db8::53"]),
        (b"nameserver fe80::1%eth0\nnameserver oops\nnameserver\nnameservers 192.0.2.1\n\xff\xfe\n", ["fe80::1"]),
    ],
)
def test_the_nameservers_of_resolv_conf(text: bytes, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(text)
    assert [str(each) for each in nameservers(path)] == found


def test_where_there_is_no_file_there_is_no_resolver(tmp_path: Path) -> None:
    assert nameservers(tmp_path / "nothing") == ()
    assert nameservers(tmp_path) == ()
    os.mkfifo(tmp_path / "fifo")
    assert nameservers(tmp_path / "fifo") == ()  # nobody writes into it: it is not waited for


async def test_an_address_is_one_and_a_name_is_what_it_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"192.0.2.5": {"192.0.2.5"}, "etcd.example": {"192.0.2.7", "2001:db8::7"}}

    async def resolve(host: str) -> frozenset[IPAddress]:
        return frozenset(map(IPAddress, answers[host]))

    monkeypatch.setattr("flannelpy.registry.etcd.registry.resolve", resolve)
    registry = EtcdRegistry(Endpoint(("http://192.0.2.5:2379", "http://etcd.example:2379")))
    assert {str(each) for each in await registry.addresses()} == {"192.0.2.5", "192.0.2.7", "2001:db8::7"}
    answers["etcd.example"] = set()  # nobody answers: it is where it was
    assert {str(each) for each in await registry.addresses()} == {"192.0.2.5", "192.0.2.7", "2001:db8::7"}
    answers["etcd.example"] = {"192.0.2.8"}
    assert {str(each) for each in await registry.addresses()} == {"192.0.2.5", "192.0.2.8"}
    await registry.close()


async def test_a_literal_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await names.resolve("192.0.2.5") == {IPAddress("192.0.2.5")}
    assert await names.resolve("2001:db8::5") == {IPAddress("2001:db8::5")}
    assert await names.resolve("localhost") >= {IPAddress("127.0.0.1")}
    assert await names.resolve("a" * 300) == frozenset()
