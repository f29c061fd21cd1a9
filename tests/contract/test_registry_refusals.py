"""What does an etcd that answers and refuses cost? No etcd lease that is left behind, and no turn where the others refuse, too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import count

import grpc
import pytest
from grpc import aio

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryRefusedError, RegistryUnavailableError
from flannelpy.core.secret import Secret
from flannelpy.registry import Put
from flannelpy.registry.etcd.registry import EtcdRegistry
from flannelpy.registry.etcd.token import Token
from flannelpy.registry.etcd.wire import Wire
from netns_lab.etcd import Etcd

from .etcd_parts import member
from .registry_place import EtcdPlace, MemoryPlace, Place, attrs, bounded, net, watching
from .test_registry_parts import opened

A, B = net("10.5.1.0/24"), net("10.5.2.0/24")


QUOTA_BYTES = 4_000_000
PAGE_BYTES = 4096
"""What etcd's file grows by."""


@pytest.fixture
def small_etcd() -> Iterator[Etcd]:
    with Etcd(options=(f"--quota-backend-bytes={QUOTA_BYTES}",)) as etcd:
        yield etcd


@pytest.fixture(params=["memory", "etcd"])
async def small_place(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Place]:
    """Where little fits."""
    in_memory = request.param == "memory"
    here: Place = MemoryPlace(prefix) if in_memory else EtcdPlace(request.getfixturevalue("small_etcd"), prefix)
    yield here
    await here.close()


async def fill_up(place: Place) -> None:
    """Until nothing fits any more.

    etcd raises its alarm at the first value that would not fit, and from then on takes none, however small; a transaction that only
    deletes is refused where the file itself is over the quota. So the last values are smaller than what is left of its last page
    (etcd counts a value as its size and 256 bytes).
    """
    if isinstance(place, MemoryPlace):
        place.store.full = True
        return
    large, small = QUOTA_BYTES // 8, QUOTA_BYTES % PAGE_BYTES - 512
    for number in count():
        try:
            await place.fill([("/fill", "x" * (large if number < 4 else small))])
        except RegistryRefusedError:
            return


async def until_granted(place: Place, before: object) -> None:
    """Wait until etcd has no lease more than it had: giving one back is acknowledged, but not waited for longer than a moment."""
    async with asyncio.timeout(20):
        while await place.grants() != before:  # noqa: ASYNC110 - etcd announces no lease that ends
            await asyncio.sleep(0.05)


async def test_an_etcd_without_space_takes_no_writes_and_does_all_else(small_place: Place) -> None:
    registry = small_place.registry()
    lease, other = await registry.create(A, attrs()), await registry.create(B, attrs("192.0.2.2"))
    await fill_up(small_place)
    before = await small_place.grants()
    for _ in range(10):
        for write in (
            registry.renew(lease, lease.attrs),
            registry.create(net("10.5.3.0/24"), attrs("192.0.2.3")),
            registry.put_config("{}"),
            registry.release(other),  # even that: any transaction
        ):
            with pytest.raises(RegistryRefusedError, match="etcd takes no more writes: database space exceeded"):
                await write
    await until_granted(small_place, before)
    assert await registry.keep_alive(lease) > 0
    assert await registry.remaining(lease) > 0
    assert (await registry.snapshot()).leases == (lease, other)


async def test_refused_writes_leave_no_etcd_lease_behind(prefix: str) -> None:
    """A role that may only read: etcd grants a lease to anybody, and refuses the put."""
    with Etcd() as etcd:
        etcd.enable_auth("sesame", user="flannel", prefix=prefix)
        here = EtcdPlace(etcd, prefix, username="flannel", password=Secret("sesame"))
        registry = here.registry()
        lease = await registry.create(A, attrs())
        etcd.ctl("role", "revoke-permission", "flannel", "--prefix=true", prefix)
        etcd.ctl("role", "grant-permission", "flannel", "read", "--prefix=true", prefix)
        before = await here.grants()
        for _ in range(10):
            with pytest.raises(RegistryAuthError, match="lacks the role"):
                await registry.renew(lease, lease.attrs)
            with pytest.raises(RegistryAuthError, match="lacks the role"):
                await registry.create(B, attrs())
        await until_granted(here, before)
        assert (await registry.snapshot()).leases == (lease,)
        await here.close()


async def test_a_value_that_is_too_large_leaves_no_etcd_lease_behind(shared_etcd: Etcd, prefix: str) -> None:
    here = EtcdPlace(shared_etcd, prefix)
    registry = here.registry()
    lease = await registry.create(A, attrs())
    before = await here.grants()
    for size in (1_700_000, 3_000_000):  # etcd's own limit, and gRPC's above it
        with pytest.raises(RegistryRefusedError, match="request is too large"):
            await registry.renew(lease, attrs(backend_data={"x": "y" * size}))
    await until_granted(here, before)
    assert registry.alive
    await here.close()


# ------------------------------------------------------------------------------------- members that others would not be like


REFUSALS = {
    "a learner of today": (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    "a learner of 3.5": (grpc.StatusCode.UNAVAILABLE, "etcdserver: rpc not supported for learner"),
    "one that is corrupt": (grpc.StatusCode.DATA_LOSS, "etcdserver: corrupt cluster"),
    "one that is not up yet": (grpc.StatusCode.UNAVAILABLE, "etcdserver: not capable"),
    "one that is not up yet, today": (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: not capable"),
    "one without a leader": (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"),
    "one without a leader, by a proxy": (grpc.StatusCode.UNKNOWN, "etcdserver: no leader"),
    "what is not etcd": (grpc.StatusCode.UNIMPLEMENTED, "unknown service etcdserverpb.KV"),
}


@contextlib.asynccontextmanager
async def refusing(code: grpc.StatusCode, details: str) -> AsyncIterator[str]:
    """A server that answers whatever it is asked with this; its URL."""

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            async def unary(_: object, context: aio.ServicerContext) -> None:
                await context.abort(code, details)

            async def stream(_: object, context: aio.ServicerContext) -> AsyncIterator[bytes]:
                await context.abort(code, details)
                yield b""

            if call.method.endswith(("/Watch", "/LeaseKeepAlive")):
                return grpc.stream_stream_rpc_method_handler(stream)
            return grpc.unary_unary_rpc_method_handler(unary)

    server = aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize("which", REFUSALS)
async def test_a_member_that_refuses_what_another_would_not_loses_its_turn(which: str, shared_etcd: Etcd) -> None:
    (good,) = shared_etcd.urls
    async with refusing(*REFUSALS[which]) as bad, bounded(), opened(bad, good) as registry:
        start = (await registry.snapshot()).revision
        assert registry.endpoint == good
        async with watching(registry, start + 1) as seen:
            lease = await registry.create(A, attrs())
            assert await seen.count(1) == [Put(lease)]
        await registry.release(lease)
    async with refusing(*REFUSALS[which]) as bad, bounded(), opened(bad, good) as registry, watching(registry, start):
        assert registry.endpoint == good  # a watch that comes first finds its way, too


@pytest.mark.parametrize("which", REFUSALS)
@pytest.mark.parametrize("refusing_members", [1, 2])
async def test_a_member_that_lets_nobody_in_is_left_for_the_next_at_once(which: str, refusing_members: int) -> None:
    """With a password what is asked first is who we are."""
    with Etcd() as etcd:
        etcd.enable_auth("sesame", user="flannel", prefix="/t")
        async with contextlib.AsyncExitStack() as stack:
            bad = [await stack.enter_async_context(refusing(*REFUSALS[which])) for _ in range(refusing_members)]
            endpoint = etcd.endpoint("/t", username="flannel", password=Secret("sesame"))
            registry = EtcdRegistry(replace(endpoint, urls=(*bad, *endpoint.urls)))
            stack.push_async_callback(registry.close)
            async with bounded():
                assert (await registry.config()).text is None
                assert (registry.endpoint,) == etcd.urls


@pytest.mark.parametrize("question", ["ask", "settle"])
async def test_a_member_that_says_nothing_of_a_password_is_left_within_the_question(question: str) -> None:
    """It is cut off from the others: a command that asks once finds the next one, as it does without a password."""

    class Silent(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            async def never(_request: object, _context: object) -> None:
                await asyncio.sleep(60)

            return grpc.unary_unary_rpc_method_handler(never)

    server = aio.server()
    server.add_generic_rpc_handlers((Silent(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with Etcd() as etcd:
        etcd.enable_auth("sesame", user="flannel", prefix="/t")
        endpoint = etcd.endpoint("/t", username="flannel", password=Secret("sesame"))
        registry = EtcdRegistry(replace(endpoint, urls=(f"http://127.0.0.1:{port}", *endpoint.urls)))
        async with bounded():
            if question == "ask":
                assert (await registry.config()).text is None
            else:
                assert (await registry.create(A, attrs(), ttl_s=0)).reserved
        assert (registry.endpoint,) == etcd.urls
        await registry.close()
    await server.stop(None)


@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("question", ["ask", "settle"])
async def test_who_is_let_in_slowly_is_waited_for_as_long_as_the_question_has(
    question: str, names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only for the share of one try; what waits is one question to etcd all the while."""
    real, asked = Token._authenticate, list[float]()

    async def slow(self: Token, wire: Wire) -> str:
        asked.append(0.6 * self.endpoint.timeout_s)
        await asyncio.sleep(asked[-1])
        return await real(self, wire)

    monkeypatch.setattr(Token, "_authenticate", slow)
    with Etcd() as etcd:
        etcd.enable_auth("sesame", user="flannel", prefix="/t")
        (url,) = etcd.urls
        urls = (url, url.replace("127.0.0.1", "localhost"))[:names]
        endpoint = etcd.endpoint("/t", username="flannel", password=Secret("sesame"))
        registry = EtcdRegistry(replace(endpoint, urls=urls, timeout_s=5.0))
        async with bounded():
            if question == "ask":
                assert (await registry.config()).text is None
            else:
                assert (await registry.create(A, attrs(), ttl_s=0)).reserved
        assert len(asked) == 1
        await registry.close()


@pytest.mark.parametrize("which", REFUSALS)
async def test_a_refusal_by_all_is_told_in_etcds_words(which: str) -> None:
    code, details = REFUSALS[which]
    async with refusing(code, details) as bad, bounded(), opened(bad) as registry:
        with pytest.raises(RegistryError) as caught:
            await registry.snapshot()
        text = str(caught.value)
        assert text.startswith(f"{bad}: ")
        assert details.removeprefix("etcdserver: ") in text
        for inner in ("UNKNOWN", "UNAVAILABLE", "ipv4:", "etcdserver:", "StatusCode"):
            assert inner not in text
        with pytest.raises(RegistryError) as caught:
            await registry.create(A, attrs())
        assert caught.value.undecided is isinstance(caught.value, RegistryUnavailableError)


async def test_a_refusal_that_all_share_costs_no_turn(shared_etcd: Etcd) -> None:
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    (good,) = shared_etcd.urls
    async with refusing(*full) as bad, bounded(), opened(bad, good) as registry:
        for _ in range(3):
            with pytest.raises(RegistryRefusedError, match="database space exceeded"):
                await registry.put_config("{}")
            assert registry.endpoint == bad


async def test_a_learner_is_passed_over_where_its_answers_come_late() -> None:
    """The member is asked, although the learner connects first each time."""
    with member("3.5") as good:
        async with (
            refusing(*REFUSALS["a learner of today"]) as bad,
            bounded(),
            opened(bad, bad.replace("127.0.0.1", "localhost"), good) as registry,
        ):
            assert (await registry.config()).text is None
            assert registry.endpoint == good
