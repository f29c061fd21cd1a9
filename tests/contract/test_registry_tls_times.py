"""What is said of certificates of another time, or of another CA? Whose, from when to when, and what this host's clock says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from flannelpy.core.errors import RegistryTlsError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.registry import EtcdRegistry
from netns_lab.etcd import Etcd, Tls, make_certificates

from .certificates import ca_of_the_same_name, reissued
from .registry_place import QUICK, bounded

PAST = ("20240101000000Z", "20240201120000Z")
FUTURE = ("20600101000000Z", "20610201120000Z")
CLOCK = r"this host's clock says \d{4}-\d\d-\d\d \d\d:\d\d UTC"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_certificates(tmp_path_factory.mktemp("tls"), mutual=True)


async def complaint(endpoint: Endpoint) -> str:
    registry = EtcdRegistry(endpoint, QUICK)
    try:
        async with bounded():
            with pytest.raises(RegistryTlsError) as caught:
                await registry.config()
    finally:
        await registry.close()
    text = str(caught.value)
    for inner in ("UNKNOWN", "SSL", "ipv4", "OPENSSL", "\n"):
        assert inner not in text
    assert text.startswith(endpoint.urls[0])
    return text


@pytest.mark.parametrize("when", [PAST, FUTURE], ids=["past", "future"])
async def test_a_servers_certificate_of_another_time(tls: Tls, tmp_path: Path, when: tuple[str, str]) -> None:
    wrong = "has expired" if when == PAST else "is not valid yet"
    times = "from 2024-01-01 00:00 UTC to 2024-02-01 12:00" if when == PAST else "from 2060-01-01 00:00 UTC to 2061-02-01 12:00"
    with Etcd(tls=dataclasses.replace(tls, cert=reissued(tls, "server", *when, tmp_path), mutual=False)) as etcd:
        text = await complaint(etcd.endpoint("/t"))
    assert f"the server's certificate {wrong}" in text
    assert times in text
    assert re.search(CLOCK, text)


@pytest.mark.parametrize("when", [PAST, FUTURE], ids=["past", "future"])
async def test_our_certificate_of_another_time(tls: Tls, tmp_path: Path, when: tuple[str, str]) -> None:
    certificate = reissued(tls, "client", *when, tmp_path)
    with Etcd(tls=tls) as etcd:
        text = await complaint(etcd.endpoint("/t", certfile=certificate))
    assert f"--etcd-certfile {certificate!r} {'has expired' if when == PAST else 'is not valid yet'}" in text
    assert re.search(CLOCK, text)


async def test_our_certificate_of_another_ca(tls: Tls, tmp_path: Path) -> None:
    foreign = make_certificates(tmp_path, mutual=True)
    with Etcd(tls=tls) as etcd:
        text = await complaint(etcd.endpoint("/t", certfile=foreign.client_cert, keyfile=foreign.client_key))
    assert f"the server refused --etcd-certfile {foreign.client_cert!r}; expected one signed by the CA it trusts" in text


async def test_a_new_ca_of_the_same_name(tls: Tls, tmp_path: Path) -> None:
    """Without key identifiers only the signature tells the two apart."""
    other = ca_of_the_same_name(tls, tmp_path)
    with Etcd(tls=tls) as etcd:
        for cafile in (other, tls.other_ca):
            assert f"not signed by --etcd-cafile {cafile!r}" in await complaint(etcd.endpoint("/t", cafile=cafile))
