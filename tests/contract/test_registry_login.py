"""As whom do we speak to a real etcd? Passwords and tokens: good and wrong, expired, and of many hosts at one moment."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannelpy.core.errors import (
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryUnavailableError,
)
from flannelpy.core.secret import Secret
from flannelpy.registry import Put
from flannelpy.registry.etcd.channel import Call, Link
from netns_lab.etcd import Etcd

from .registry_place import EtcdPlace, attrs, bounded, net, opened, watching

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")


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
