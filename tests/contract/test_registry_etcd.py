"""What only a real etcd can do to us: TLS, passwords, standing still, losing its leader, swallowing answers, several endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from flannelpy.core.errors import (
    ConflictError,
    RegistryTlsError,
    RegistryUnavailableError,
    UsageError,
)
from flannelpy.core.model import Lease
from flannelpy.registry import Endpoint, Put, Snapshot
from flannelpy.registry.etcd import channel as etcd_channel
from flannelpy.registry.etcd import listing
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.registry.etcd.stream import Pace
from netns_lab.etcd import SIGCONT, SIGSTOP, Etcd, Tls, make_certificates

from .proxies import Proxy
from .registry_place import QUICK, EtcdPlace, attrs, bounded, net, opened, patiently, watching

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A server of our own on the loopback, which is not etcd; its port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_etcd(tls: Tls) -> Iterator[Etcd]:
    with Etcd(tls=tls) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def mutual_etcd(tls: Tls) -> Iterator[Etcd]:
    with Etcd(tls=dataclasses.replace(tls, mutual=True)) as etcd:
        yield etcd


# --------------------------------------------------------------------------------------------------------- TLS


async def test_tls_with_a_ca_alone(tls_etcd: Etcd, prefix: str) -> None:
    async with opened(tls_etcd.endpoint(prefix)) as registry:
        lease = await registry.create(A, attrs())
        assert (await registry.snapshot()).leases == (lease,)
        await registry.release(lease)


async def test_tls_with_certificates_on_both_sides(mutual_etcd: Etcd, prefix: str) -> None:
    async with opened(mutual_etcd.endpoint(prefix)) as registry:
        async with watching(registry, 1) as seen:
            lease = await registry.create(A, attrs())
            assert await seen.count(1) == [Put(lease)]
        await registry.release(lease)


async def test_without_a_ca_the_systems_cas_are_trusted(mutual_etcd: Etcd, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = mutual_etcd.endpoint("/t", cafile="")
    async with opened(endpoint) as registry:
        with pytest.raises(RegistryTlsError, match=r"the system's CAs \(no --etcd-cafile is set\)"):
            await registry.config()
    monkeypatch.setenv("SSL_CERT_FILE", tls.ca)
    async with opened(endpoint) as registry:
        assert (await registry.config()).text is None


async def test_a_name_and_an_address_are_both_checked_against_the_certificate(tls_etcd: Etcd) -> None:
    port = tls_etcd.ports[0]
    async with opened(tls_etcd.endpoint("/t", urls=(f"https://localhost:{port}",))) as registry:
        assert (await registry.config()).text is None


TLS_FAULTS = {
    "wrong CA": ({"cafile": "{tls.other_ca}"}, "is not signed by --etcd-cafile"),
    "no client certificate": (
        {"certfile": "", "keyfile": ""},
        "asks for a client certificate; expected --etcd-certfile and",
    ),
    "key of another certificate": ({"keyfile": "{tls.key}"}, "cannot be used; expected certificates, and the key"),
    "certificate without key": ({"keyfile": ""}, "only one of --etcd-certfile and --etcd-keyfile is set"),
    "missing CA": (
        {"cafile": "/nonexistent/ca.pem"},
        "--etcd-cafile '/nonexistent/ca.pem': No such file or directory; expected",
    ),
    "not PEM": ({"cafile": "/etc/hostname"}, "no PEM block in it"),
}


@pytest.mark.parametrize("fault", TLS_FAULTS)
async def test_each_tls_fault_is_a_line_that_says_what_to_do(mutual_etcd: Etcd, tls: Tls, fault: str) -> None:
    changes, expected = TLS_FAULTS[fault]
    endpoint = mutual_etcd.endpoint("/t", **{name: value.format(tls=tls) for name, value in changes.items()})
    async with bounded(), opened(endpoint) as registry:
        with pytest.raises(RegistryTlsError) as caught:
            await registry.config()
    text = str(caught.value)
    assert expected in text
    assert text.startswith(mutual_etcd.urls[0])
    assert "\n" not in text


async def test_a_certificate_for_another_name_is_told(tls: Tls, tmp_path: Path) -> None:
    with Etcd(tls=make_certificates(tmp_path)) as etcd:
        # 127.0.0.2 reaches a listener on 0.0.0.0 only, so a proxy stands there.
        async with Proxy(etcd.ports[0], host="127.0.0.2") as proxy:
            endpoint = etcd.endpoint("/t", urls=(f"https://127.0.0.2:{proxy.port}",))
            async with opened(endpoint) as registry:
                with pytest.raises(RegistryTlsError, match="certificate is for another name"):
                    await registry.config()


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
async def test_a_client_certificate_is_asked_for_in_every_version_of_tls(tls: Tls, version: str) -> None:
    """In TLS 1.3 the client believes the handshake to be over when the server refuses it (RFC 8446, 4.4.2.4)."""
    server = await asyncio.create_subprocess_exec(
        *("openssl", "s_server", "-accept", "127.0.0.1:0", f"-{version}", "-alpn", "h2", "-Verify", "1", "-verify_return_error"),
        *("-cert", tls.cert, "-key", tls.key, "-CAfile", tls.ca),
        stdin=subprocess.PIPE,  # at its end s_server ends too
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout is not None
        async with bounded():
            while not (line := await server.stdout.readline()).startswith(b"ACCEPT"):
                assert line
        port = line.decode().strip().rpartition(":")[2]
        async with bounded(), opened(Endpoint((f"https://127.0.0.1:{port}",), cafile=tls.ca)) as registry:
            with pytest.raises(RegistryTlsError, match="asks for a client certificate"):
                await registry.config()
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


async def test_http_against_tls_and_the_reverse_are_told(tls_etcd: Etcd, shared_etcd: Etcd, tls: Tls) -> None:
    plain = tls_etcd.endpoint("/t", urls=(tls_etcd.urls[0].replace("https", "http"),))
    async with bounded(), opened(plain) as registry:
        with pytest.raises(RegistryTlsError, match="the server speaks TLS; expected https:// before the host"):
            await registry.config()
    secure = shared_etcd.endpoint("/t", urls=(shared_etcd.urls[0].replace("http", "https"),), cafile=tls.ca)
    async with bounded(), opened(secure) as registry:
        with pytest.raises(RegistryTlsError, match="expected a server that speaks TLS, or http:// before the host"):
            await registry.config()


async def test_certificates_are_read_again_when_the_channel_is_made_anew(mutual_etcd: Etcd, tls: Tls, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(tls.other_ca, ca)
    async with opened(mutual_etcd.endpoint("/t", cafile=str(ca))) as registry:
        with pytest.raises(RegistryTlsError):
            await registry.config()
        shutil.copy(tls.ca, ca)
        assert (await registry.config()).text is None


# ------------------------------------------------------------------------------------------- silence and its end


async def test_refused_and_unknown_hosts_are_named(here: EtcdPlace) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with bounded(2), opened(Endpoint((url,))) as registry:
            with pytest.raises(RegistryUnavailableError, match=rf"^{url}: connection refused; expected etcd to answer there$"):
                await registry.config()
    async with bounded(5), opened(Endpoint(("http://no-such-host.invalid:2379",))) as registry:
        with pytest.raises(RegistryUnavailableError, match=r"^http://no-such-host\.invalid:2379: its name is not known"):
            await registry.config()


async def test_an_etcd_that_stands_still_is_a_deadline_and_then_recovers(here: EtcdPlace) -> None:
    registry = EtcdRegistry(here.etcd.endpoint(here.prefix, timeout_s=0.5), QUICK)
    try:
        lease = await registry.create(A, attrs())
        async with watching(registry, lease.mod_revision) as seen:
            await seen.count(1)
            here.etcd.signal(0, SIGSTOP)
            started = time.monotonic()
            with pytest.raises(RegistryUnavailableError, match=r"no answer in time; expected etcd to answer within 0\.5 s"):
                await registry.snapshot()
            assert 0.4 < time.monotonic() - started < 2
            here.etcd.signal(0, SIGCONT)
            renewed = await registry.renew(lease, lease.attrs)
            assert await seen.count(2) == [Put(lease), Put(renewed)]
        assert registry.alive
    finally:
        here.etcd.signal(0, SIGCONT)
        await registry.close()


async def test_a_watch_on_an_etcd_that_stands_still_is_cut_and_alive_says_so(
    here: EtcdPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(etcd_channel, "LIVENESS_S", 0.5)
    caplog.set_level(logging.DEBUG, "flannelpy.registry")
    async with opened(here.etcd.endpoint(here.prefix)) as registry:
        start = (await registry.snapshot()).revision
        async with watching(registry, start + 1) as seen:
            try:
                assert registry.alive
                here.etcd.signal(0, SIGSTOP)
                await patiently(lambda: "no sign of life on the watch" in caplog.text)
                await patiently(lambda: not registry.alive)
                assert registry.silent_s > 0.5
            finally:
                here.etcd.signal(0, SIGCONT)
            stood = len(seen.batches)
            await seen.until(lambda seen: len(seen.batches) > stood)
            assert registry.alive
            lease = await registry.create(A, attrs())
            assert await seen.count(1) == [Put(lease)]
    told = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    assert len(told) == 1  # the first failure, not every attempt


async def test_a_slow_consumer_is_not_a_deaf_watch(here: EtcdPlace) -> None:
    async with opened(here.etcd.endpoint(here.prefix), Pace(silence_s=0.05, answer_s=0.05)) as registry:
        batches = registry.watch(1 + (await registry.snapshot()).revision)
        await anext(batches)
        lease = await registry.create(A, attrs())
        await asyncio.sleep(0.5)  # what is tested is this pause: ten times the patience, while nobody reads
        told = [await anext(batches)]
        while not told[-1].events:
            told.append(await anext(batches))
        assert told[-1].events == (Put(lease),)
        assert len(told) <= 2  # a cut stream would have begun anew, with an empty batch of its own
        await batches.aclose()  # type: ignore[attr-defined]


async def test_one_stopped_member_of_three_costs_a_share_of_the_deadline() -> None:
    with Etcd(3) as etcd:
        async with opened(etcd.endpoint("/t", timeout_s=3.0)) as registry:
            lease = await registry.create(A, attrs())
            async with watching(registry, lease.mod_revision) as seen:
                await seen.count(1)
                etcd.signal(0, SIGSTOP)
                async with bounded(4):
                    renewed = await retried(registry, lease)
                await seen.until(lambda seen: Put(renewed) in seen.events)
                etcd.signal(0, SIGCONT)
                # Two of three: nobody is leader. What is written must be known to be written.
                etcd.signal(1, SIGSTOP)
                etcd.signal(2, SIGSTOP)
                with pytest.raises(RegistryUnavailableError):
                    await registry.renew(renewed, renewed.attrs)
                etcd.signal(1, SIGCONT)
                etcd.signal(2, SIGCONT)
                async with bounded():
                    assert [each.key for each in (await patient_snapshot(registry)).leases] == [lease.key]


async def retried(registry: EtcdRegistry, lease: Lease) -> Lease:
    """A renewal by somebody who tries again, as the keeper does: an election may take longer than one deadline."""
    while True:
        try:
            return await registry.renew(lease, lease.attrs)
        except RegistryUnavailableError:
            await asyncio.sleep(0.05)


async def patient_snapshot(registry: EtcdRegistry) -> Snapshot:
    while True:
        try:
            return await registry.snapshot()
        except RegistryUnavailableError:
            await asyncio.sleep(0.05)


async def test_a_dead_endpoint_is_passed_over(here: EtcdPlace) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with bounded(2), opened(here.etcd.endpoint(here.prefix, urls=(dead, here.etcd.urls[0]))) as registry:
            assert registry.endpoint == dead
            lease = await registry.create(A, attrs())
            assert registry.endpoint == here.etcd.urls[0]
            async with watching(registry, lease.mod_revision) as seen:
                assert await seen.count(1) == [Put(lease)]
        async with opened(here.etcd.endpoint(here.prefix, urls=(dead, dead.replace("127.0.0.1", "localhost")))) as registry:
            with pytest.raises(RegistryUnavailableError) as caught:
                await registry.config()
        assert dead in str(caught.value)
        assert "localhost" in str(caught.value)


async def test_a_watch_passes_over_an_endpoint_that_stands_still(here: EtcdPlace) -> None:
    """The stopped one accepts the connection, in its kernel's backlog, and never says a word on it."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        urls = (f"http://127.0.0.1:{mute.getsockname()[1]}", here.etcd.urls[0])
        endpoint = here.etcd.endpoint(here.prefix, urls=urls, timeout_s=1.0)
        async with opened(here.etcd.endpoint(here.prefix)) as other:  # before which others may have compacted
            revision = (await other.snapshot()).revision
        async with opened(endpoint) as registry:
            async with bounded(), watching(registry, revision):
                pass
            async with bounded():
                assert (await registry.config()).text is None
        async with bounded(), opened(endpoint) as registry:
            lease = await registry.create(A, attrs())
            assert await registry.keep_alive(lease) > 0
        alone = here.etcd.endpoint(here.prefix, urls=urls[:1], timeout_s=0.3)
        async with bounded(), opened(alone) as registry:
            with pytest.raises(RegistryUnavailableError, match="no answer in time"):
                await registry.keep_alive(lease)


async def test_names_and_ipv6_literals_reach_etcd(here: EtcdPlace) -> None:
    if not has_ipv6_loopback():
        pytest.skip("no ::1 on this machine")
    port = here.etcd.ports[0]
    async with Proxy(port, host="::1") as proxy:
        for url in (f"http://localhost:{port}", f"http://[::1]:{proxy.port}"):
            async with opened(here.etcd.endpoint(here.prefix, urls=(url,))) as registry:
                assert (await registry.config()).text is None


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_malformed_url_is_a_usage_error_at_once() -> None:
    with pytest.raises(UsageError, match=r"^--etcd-endpoints 'etcd:2379': expected http:// or https:// before the host$"):
        EtcdRegistry(Endpoint(("etcd:2379",)))


async def test_what_is_not_etcd_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(answer) as port, bounded(5), opened(Endpoint((f"http://127.0.0.1:{port}",), timeout_s=2)) as registry:
        with pytest.raises(RegistryUnavailableError, match=rf"^http://127\.0\.0\.1:{port}: .*expected"):
            await registry.config()


# ------------------------------------------------------------------------------------------------ paging and time


async def test_a_listing_is_paged_at_one_revision(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 3)
    registry = here.registry()
    assert isinstance(registry, EtcdRegistry)
    leases = [await registry.create(net(f"10.5.{number}.0/24"), attrs()) for number in range(1, 8)]
    ask, asked = registry._link.ask, 0

    async def delete_meanwhile(call: etcd_channel.Call) -> object:
        nonlocal asked
        asked += 1
        if asked == 2:
            await here.delete(f"{here.prefix}/subnets/{leases[-1].key}")
        return await ask(call)

    monkeypatch.setattr(type(registry._link), "ask", lambda link, call: delete_meanwhile(call))
    snapshot = await registry.snapshot()
    assert asked == 3
    assert snapshot.leases == tuple(leases)
    assert snapshot.revision == leases[-1].mod_revision


async def test_a_listing_that_is_compacted_away_begins_anew(here: EtcdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE", 2)
    registry = here.registry()
    assert isinstance(registry, EtcdRegistry)
    leases = [await registry.create(net(f"10.5.{number}.0/24"), attrs()) for number in range(1, 4)]
    ask, asked = registry._link.ask, 0

    async def compact_meanwhile(call: etcd_channel.Call) -> object:
        nonlocal asked
        asked += 1
        if asked == 2:
            await here.delete(f"{here.prefix}/subnets/{leases[-1].key}")
            await here.compact()
        return await ask(call)

    monkeypatch.setattr(type(registry._link), "ask", lambda link, call: compact_meanwhile(call))
    assert (await registry.snapshot()).leases == tuple(leases[:2])


async def test_conflicts_say_what_was_found(here: EtcdPlace) -> None:
    registry = here.registry()
    lease = await registry.create(A, attrs())
    renewed = await registry.renew(lease, lease.attrs)
    with pytest.raises(ConflictError) as caught:
        await registry.release(lease)
    assert str(caught.value) == (
        f"10.5.1.0-24: changed at revision {renewed.mod_revision}, expected revision {lease.mod_revision}; nothing was written"
    )


def test_everything_works_on_plain_asyncio_too(shared_etcd: Etcd) -> None:
    async def walk() -> None:
        async with opened(shared_etcd.endpoint("/plain-asyncio")) as registry:
            start = (await registry.snapshot()).revision
            async with watching(registry, start + 1) as seen:
                lease = await registry.create(B, attrs())
                renewed = await registry.renew(lease, lease.attrs)
                await registry.keep_alive(renewed)
                assert await seen.count(2) == [Put(lease), Put(renewed)]
                await registry.release(renewed)
                await seen.count(3)

    asyncio.run(walk())
