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
from typing import Any

import pytest

from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryTlsError,
    RegistryUnavailableError,
    TakenError,
    UsageError,
)
from flannelpy.core.model import Lease
from flannelpy.core.secret import Secret
from flannelpy.registry import Endpoint, Put, Snapshot
from flannelpy.registry.etcd import channel as etcd_channel
from flannelpy.registry.etcd import listing
from flannelpy.registry.etcd.channel import Call, Link
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.registry.etcd.stream import Pace
from netns_lab.etcd import SIGCONT, SIGSTOP, Etcd, Tls, make_certificates

from .proxies import Proxy
from .registry_place import QUICK, EtcdPlace, attrs, bounded, net, patiently, watching

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")


@contextlib.asynccontextmanager
async def opened(endpoint: Endpoint, pace: Pace = QUICK) -> AsyncIterator[EtcdRegistry]:
    registry = EtcdRegistry(endpoint, pace)
    try:
        yield registry
    finally:
        await registry.close()


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A server of our own on the loopback, which is not etcd; its port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def here(shared_etcd: Etcd, prefix: str) -> AsyncIterator[EtcdPlace]:
    place = EtcdPlace(shared_etcd, prefix)
    yield place
    await place.close()


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


# ---------------------------------------------------------------------------------------------------- passwords


@pytest.fixture
def guarded_etcd() -> Iterator[Etcd]:
    with Etcd() as etcd:
        etcd.enable_auth("sesame", user="flannel", prefix="/t/")
        yield etcd


async def test_a_good_password_opens_everything(guarded_etcd: Etcd) -> None:
    async with opened(guarded_etcd.endpoint("/t", username="flannel", password=Secret("sesame"))) as registry:
        async with watching(registry, 1) as seen:
            lease = await registry.create(A, attrs())
            renewed = await registry.renew(lease, lease.attrs)
            assert await seen.count(2) == [Put(lease), Put(renewed)]
        assert await registry.keep_alive(renewed) > 0
        assert await registry.remaining(renewed) > 0
        await registry.put_config("{}")
        await registry.release(renewed)


async def test_hosts_that_all_come_with_a_password_at_one_moment_are_all_let_in(guarded_etcd: Etcd) -> None:
    """It takes etcd 60 ms of a core for each, and more for all than any of them waits for an answer."""
    hosts = 120
    endpoint = guarded_etcd.endpoint("/t", username="flannel", password=Secret("sesame"))

    async def come() -> None:
        async with opened(endpoint) as registry:
            while True:
                with contextlib.suppress(RegistryUnavailableError):
                    assert (await registry.config()).text is None
                    return
                await asyncio.sleep(1.0)

    async with bounded(240.0):
        await asyncio.gather(*(come() for _ in range(hosts)))


@pytest.mark.parametrize(
    "refusal", [None, RegistryAuthError("permission denied"), RegistryRefusedError("unknown method")], ids=repr
)
async def test_who_may_not_list_all_etcd_leases_asks_about_each(
    guarded_etcd: Etcd, refusal: RegistryError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd 3.5 lists them for any user; another one, or what stands in front of it, may not."""
    async with opened(guarded_etcd.endpoint("/t", username="flannel", password=Secret("sesame"))) as registry:
        leases = [await registry.create(net(f"10.6.{number}.0/24"), attrs()) for number in range(5)]
        for lease in leases:
            await registry.release(lease)
        gone = dataclasses.replace(leases[0], subnet=net("10.6.9.0/24"), etcd_lease=1)
        ask, calls = Link.ask, list[Call]()

        async def refusing(link: Link, call: Call) -> Any:
            calls.append(call)
            if refusal is not None and len(calls) == 1:
                raise refusal
            return await ask(link, call)

        monkeypatch.setattr(Link, "ask", refusing)
        assert await registry.outliving([*leases, gone]) == {lease.key for lease in leases}
        assert len(calls) == (1 if refusal is None else 7)


async def test_each_auth_fault_is_a_line_that_says_what_to_do(guarded_etcd: Etcd, tmp_path: Path) -> None:
    url = guarded_etcd.urls[0]
    faults: tuple[tuple[dict[str, str], str], ...] = (
        ({"username": "flannel", "password": Secret("wrong")}, "user 'flannel' refused"),
        ({}, "etcd asks for a user; expected --etcd-username and --etcd-password"),
        ({"username": "flannel", "password": Secret("sesame"), "prefix": "/other"}, "user 'flannel' lacks the role"),
    )
    for changes, expected in faults:
        async with bounded(), opened(guarded_etcd.endpoint(**{"prefix": "/t", **changes})) as registry:
            with pytest.raises(RegistryAuthError) as caught:
                await registry.config()
        assert str(caught.value).startswith(url)
        assert expected in str(caught.value)
        assert "wrong" not in str(caught.value)
    missing = guarded_etcd.endpoint("/t", username="flannel", password_file=str(tmp_path / "none"))
    async with opened(missing) as registry:
        with pytest.raises(RegistryAuthError, match=r"--etcd-password-file .* No such file"):
            await registry.config()


async def test_the_password_file_is_read_again(guarded_etcd: Etcd, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("old\n")
    async with opened(guarded_etcd.endpoint("/t", username="flannel", password_file=str(secret))) as registry:
        with pytest.raises(RegistryAuthError):
            await registry.config()
        secret.write_text("sesame\n")
        assert (await registry.config()).text is None


async def test_a_token_that_expired_is_replaced(guarded_etcd: Etcd) -> None:
    """etcd's simple tokens live in memory: a restart forgets them all."""
    async with opened(guarded_etcd.endpoint("/t", username="flannel", password=Secret("sesame"))) as registry:
        lease = await registry.create(A, attrs())
        async with watching(registry, lease.mod_revision) as seen:
            await seen.count(1)
            stood = len(seen.batches)
            guarded_etcd.restart()
            await seen.until(lambda seen: any(not batch.events for batch in seen.batches[stood:]))
            renewed = await registry.renew(lease, lease.attrs)
            assert await seen.count(2) == [Put(lease), Put(renewed)]


async def test_a_token_that_expired_under_a_call_is_replaced(guarded_etcd: Etcd) -> None:
    async with opened(guarded_etcd.endpoint("/t", username="flannel", password=Secret("sesame"))) as registry:
        await registry.config()
        guarded_etcd.restart()
        with contextlib.suppress(RegistryUnavailableError):
            await registry.config()  # the old connection, where it was not yet seen to be gone
        assert (await registry.config()).text is None


async def test_a_user_name_where_auth_is_off_does_no_harm(here: EtcdPlace) -> None:
    endpoint = here.etcd.endpoint(here.prefix, username="flannel", password=Secret("sesame"))
    async with opened(endpoint) as registry:
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


# -------------------------------------------------------------------------------------- writes that nobody heard of


@pytest.fixture
async def proxied(here: EtcdPlace) -> AsyncIterator[tuple[Proxy, EtcdRegistry]]:
    async with Proxy(here.etcd.ports[0]) as proxy:
        endpoint = here.etcd.endpoint(here.prefix, urls=(f"http://127.0.0.1:{proxy.port}",), timeout_s=1.0)
        async with opened(endpoint) as registry:
            await registry.config()  # the connection stands
            yield proxy, registry


async def test_a_put_that_was_carried_out_unheard_is_a_success(here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry]) -> None:
    proxy, registry = proxied
    before = await registry.config()
    proxy.go_deaf()
    revision = await registry.put_config("mine", before)
    assert proxy.connections == 2
    stored = await registry.config()
    assert (stored.text, stored.mod_revision) == ("mine", revision)


async def test_a_reservation_that_was_written_unheard_is_a_success(here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry]) -> None:
    proxy, registry = proxied
    proxy.go_deaf()
    lease = await registry.create(A, attrs(), ttl_s=0)
    assert (await registry.snapshot()).leases == (lease,)


async def test_a_renewal_that_was_carried_out_unheard_is_a_success(
    here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, registry = proxied
    lease = await registry.create(A, attrs())
    deaf_after(registry, proxy, monkeypatch)
    renewed = await registry.renew(lease, attrs("192.0.2.7"))
    assert (await registry.snapshot()).leases == (renewed,)
    assert renewed.create_revision == lease.create_revision
    assert await here.grants() == 1


async def test_a_create_that_was_carried_out_unheard_is_a_success(
    here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, registry = proxied
    deaf_after(registry, proxy, monkeypatch)
    lease = await registry.create(A, attrs())
    assert (await registry.snapshot()).leases == (lease,)
    assert await registry.remaining(lease) > 0


async def test_a_release_that_was_carried_out_unheard_is_a_success(here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry]) -> None:
    proxy, registry = proxied
    lease = await registry.create(A, attrs())
    proxy.go_deaf()
    await registry.release(lease)
    assert (await registry.snapshot()).leases == ()


async def test_an_undecided_renewal_does_not_take_the_key_with_it(
    here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put carried out, every answer lost: giving the new etcd lease back would delete our own key."""
    proxy, registry = proxied
    lease = await registry.create(A, attrs())
    deaf_after(registry, proxy, monkeypatch, for_ever=True)
    with pytest.raises(RegistryUnavailableError):
        await registry.renew(lease, attrs("192.0.2.7"))
    (there,) = (await here.registry().snapshot()).leases
    assert there.attrs == attrs("192.0.2.7")
    assert there.etcd_lease != lease.etcd_lease


async def test_an_etcd_lease_that_was_granted_unheard_is_given_back(here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry]) -> None:
    """Nobody knows its number but who has chosen it."""
    proxy, registry = proxied
    proxy.deaf |= set(range(100))
    with pytest.raises(RegistryUnavailableError) as caught:
        await registry.create(A, attrs())
    assert caught.value.undecided
    assert await here.grants() == 1
    proxy.deaf.clear()
    for subnet in (A, B):  # with the first the connection may not yet be there in time
        lease = await registry.create(subnet, attrs())
        assert await registry.remaining(lease) > 0
    assert await here.grants() == 2


async def test_a_renewal_that_was_carried_out_unheard_leaves_no_etcd_lease_behind(
    here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two the key hangs on is known when it has been read; then the other one is given back."""
    proxy, registry = proxied
    lease = await registry.create(A, attrs())
    with monkeypatch.context() as deaf:
        deaf_after(registry, proxy, deaf, for_ever=True)
        with pytest.raises(RegistryUnavailableError):
            await registry.renew(lease, attrs("192.0.2.7"))
    proxy.deaf.clear()
    there = await until_listed(registry)
    assert there.etcd_lease != lease.etcd_lease
    renewed = await registry.renew(there, there.attrs)
    assert await here.grants() == 1
    assert await registry.remaining(renewed) > 0


@pytest.mark.parametrize("times", [1, 3, 20])
async def test_renewals_that_never_arrived_leave_no_etcd_lease_behind(
    times: int, here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, registry = proxied
    lease = await registry.create(A, attrs())
    with monkeypatch.context() as lost:
        lost.setattr(registry, "_put_if", never_arrives)
        for _ in range(times):
            with pytest.raises(RegistryUnavailableError):
                await registry.renew(lease, lease.attrs)
    renewed = await registry.renew(lease, lease.attrs)
    assert await here.grants() == 1
    assert await registry.remaining(renewed) > 0


async def test_what_could_not_be_given_back_is_given_back_later(
    here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a success, after a conflict, and after a subnet that was taken."""
    _, registry = proxied
    lease = await registry.create(A, attrs())
    with monkeypatch.context() as lost:
        lost.setattr(registry, "_revoke", not_given_back)
        renewed = await registry.renew(lease, lease.attrs)
        with pytest.raises(ConflictError):
            await registry.renew(lease, lease.attrs)
        with pytest.raises(TakenError):
            await registry.create(A, attrs("192.0.2.2"))
    assert await here.grants() == 4
    renewed = await registry.renew(renewed, renewed.attrs)
    assert await here.grants() == 1
    assert await registry.remaining(renewed) > 0


async def test_a_key_that_was_created_unheard_is_renewed_and_never_taken_away(
    here: EtcdPlace, proxied: tuple[Proxy, EtcdRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its etcd lease was to be given back, and could not be; the key that hangs on it has meanwhile been found, and is ours."""
    proxy, registry = proxied
    with monkeypatch.context() as lost:
        deaf_after(registry, proxy, lost, for_ever=True)
        lost.setattr(registry, "_revoke", not_given_back)
        with pytest.raises(RegistryUnavailableError):
            await registry.create(A, attrs())
    proxy.deaf.clear()
    there = await until_listed(registry)
    renewed = await registry.renew(there, there.attrs)
    assert renewed.create_revision == there.create_revision
    assert await here.grants() == 1
    assert await registry.remaining(renewed) > 0


async def never_arrives(*_: object) -> tuple[int, object]:
    error = RegistryUnavailableError("no answer in time")
    error.undecided = True
    raise error


async def not_given_back(_: int) -> bool:
    return False


async def until_listed(registry: EtcdRegistry) -> Lease:
    """The one lease there is; the connection may not be there at once."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(RegistryUnavailableError):
                (there,) = (await registry.snapshot()).leases
                return there


def deaf_after(registry: EtcdRegistry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, *, for_ever: bool = False) -> None:
    """The answers to all that follows the grant of an etcd lease are lost, on this connection or on all."""
    grant = registry._grant

    async def grant_then_deaf(*args: int, **spared: int) -> int:
        etcd_lease = await grant(*args, **spared)
        proxy.go_deaf()
        if for_ever:
            proxy.deaf |= set(range(100))
        return etcd_lease

    monkeypatch.setattr(registry, "_grant", grant_then_deaf)


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
