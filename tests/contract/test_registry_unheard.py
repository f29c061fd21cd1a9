"""What becomes of a write whose answer nobody heard, in a real etcd? It was carried out, or not, and no lease is left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from flannelpy.core.errors import (
    ConflictError,
    RegistryUnavailableError,
    TakenError,
)
from flannelpy.core.model import Lease
from flannelpy.registry.etcd.registry import EtcdRegistry

from .proxies import Proxy
from .registry_place import EtcdPlace, attrs, net, opened

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")


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
