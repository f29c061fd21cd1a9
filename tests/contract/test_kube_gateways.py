"""A gateway answers for the API server, ends what should stand, or we are let in otherwise than before: does it go on?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from flannelpy.core.errors import RegistryAuthError, RegistryError, RegistryRefusedError, RegistryUnavailableError, WatchGapError
from flannelpy.core.model import Family
from flannelpy.registry.kube import client as kube_client
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import KubeRegistry
from netns_lab.api_server import ApiServer
from tests.contract.test_registry_kube import Following, published, registry, server, until  # noqa: F401 - fixtures


@asynccontextmanager
async def answered(text: bytes) -> AsyncIterator[KubeRegistry]:
    """A registry whose server answers whatever is asked with this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = KubeRegistry(Access(api_url=f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}", node="n1"))
    try:
        yield made
    finally:
        await made.close()
        other.close()


def answer(code: int, body: str = "", kind: str = "") -> bytes:
    head = f"HTTP/1.1 {code} X\r\n" + (f"Content-Type: {kind}\r\n" if kind else "") + f"Content-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def busy(code: int, after: str) -> bytes:
    return answer(code).replace(b"Content-Length", f"Retry-After: {after}\r\nContent-Length".encode())


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("after", "least_s", "most_s"), [("0", 0.0, 0.9), ("1", 1.0, 2.5), ("86400", 0.4, 1.5), ("soon", 0.0, 0.9)]
)
async def test_a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_says(
    code: int, after: str, least_s: float, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the watch, and in all for no longer than is sensible."""
    monkeypatch.setattr(kube_client, "LONGEST_REST_S", 1.0 if after == "1" else 0.4)
    async with answered(busy(code, after)) as asked:
        loop = asyncio.get_running_loop()
        for again in (asked.own, lambda: anext(asked._api.watch(1, lambda: None))):
            with pytest.raises(RegistryUnavailableError):
                await asked.own()
            began = loop.time()
            with pytest.raises(RegistryUnavailableError):
                await again()
            assert least_s <= loop.time() - began <= most_s
            assert asked.silent_s == 0.0


async def test_watches_that_began_together_are_not_ended_together(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, asked = server._watch, list[int]()

    async def note(writer: asyncio.StreamWriter, query: dict[str, str]) -> None:
        asked.append(int(query["timeoutSeconds"]))
        await watch(writer, query)

    monkeypatch.setattr(server, "_watch", note)
    for _ in range(20):
        async with Following(registry):
            pass
    assert len(asked) >= 20
    assert len({*asked}) > 10
    assert kube_client.SERVER_ENDS_S <= min(asked) <= max(asked) <= 2 * kube_client.SERVER_ENDS_S


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (answer(503), RegistryUnavailableError, "HTTP 503"),
        (answer(429, "later", "text/plain"), RegistryUnavailableError, "HTTP 429"),
        (answer(500, "", "application/json"), RegistryUnavailableError, "HTTP 500"),
        (answer(500, "[]", "application/json"), RegistryUnavailableError, "HTTP 500"),
        (answer(302), RegistryRefusedError, "HTTP 302"),
        (answer(404, "default backend - 404", "text/plain"), RegistryRefusedError, "HTTP 404"),
        (answer(404, '{"message": "no Route matched"}', "application/json"), RegistryRefusedError, "no Route matched"),
        (answer(200, "{}", "application/json"), RegistryRefusedError, "expected Kubernetes' API"),
        (answer(200, '{"items": []}', "application/json"), RegistryRefusedError, "expected Kubernetes' API"),
    ],
)
async def test_what_a_gateway_answers_is_an_error_of_ours(text: bytes, error: type[RegistryError], said: str) -> None:
    """Above all it is no word of Kubernetes that our node is gone, or has no podCIDR."""
    async with answered(text) as asked:
        calls: list[Callable[[], Any]] = [asked.snapshot, asked.own]
        for call in calls:
            with pytest.raises(error, match=said) as told:
                await call()
            assert "\n" not in str(told.value)


async def test_a_watch_that_is_ended_at_once_is_begun_once_a_second(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = server._watch

    async def end(writer: asyncio.StreamWriter, query: dict[str, str]) -> None:
        await watch(writer, {**query, "timeoutSeconds": "0"})

    monkeypatch.setattr(server, "_watch", end)
    async with Following(registry) as following:
        before = server.requests.count("GET /api/v1/nodes watch")
        await asyncio.sleep(2.5)
        assert server.requests.count("GET /api/v1/nodes watch") - before <= 3
        assert following.connections == 1
        monkeypatch.setattr(server, "_watch", watch)
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: following.events)


@pytest.mark.parametrize("after_s", [0.2, 0.6])
async def test_new_connections_between_two_watches_end_neither(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    after_s: float,
) -> None:
    """The uplink has another address, or a kubeconfig was written anew, when a watch was ended and the next one is not sent yet."""
    watch = server._watch

    async def end(writer: asyncio.StreamWriter, query: dict[str, str]) -> None:
        await watch(writer, {**query, "timeoutSeconds": "0"})

    monkeypatch.setattr(server, "_watch", end)
    async with Following(registry) as following:
        await asyncio.sleep(after_s)
        registry.reconnect()
        await asyncio.sleep(2.0)
        monkeypatch.setattr(server, "_watch", watch)
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: following.events)
        assert registry.trouble is None


async def test_a_watch_that_is_cut_at_once_is_tried_less_and_less_often(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cut(writer: asyncio.StreamWriter, _query: dict[str, str]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await writer.drain()
        writer.close()

    monkeypatch.setattr(server, "_watch", cut)
    async with Following(registry):
        await asyncio.sleep(3.5)
        assert server.requests.count("GET /api/v1/nodes watch") <= 6


async def test_a_bookmark_is_no_node(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
) -> None:
    async with Following(registry) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        server.version += 1
        meta = f'{{"resourceVersion": "{server.version}", "creationTimestamp": null}}'
        server._history.append((server.version, f'{{"type": "BOOKMARK", "object": {{"kind": "Node", "metadata": {meta}}}}}'))
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: following.events)
        assert "" not in registry._book.nodes
        assert registry.trouble is None


@pytest.mark.parametrize("part", ["flannelpy.registry.kube.registry._families", "flannelpy.registry.kube.book.Book.put"])
async def test_whatever_ends_a_watch_is_told(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody expects this")

    revision = (await registry.snapshot()).revision
    monkeypatch.setattr(part, fail)
    server.beat("n2")

    async def follow() -> None:
        async for _ in registry.watch(revision + 1):
            pass

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(follow(), 30)


@pytest.mark.parametrize("families", [(4, 6), (6,)])
async def test_other_families_between_a_listing_and_its_watch_are_a_gap(
    registry: KubeRegistry,  # noqa: F811
    families: tuple[Family, ...],
) -> None:
    """The leases that were listed are those of other keys."""
    revision = (await registry.snapshot()).revision
    await registry.own(families)
    with pytest.raises(WatchGapError):
        await asyncio.wait_for(anext(aiter(registry.watch(revision + 1))), 10)
    revision = (await registry.snapshot()).revision
    async with aclosing(registry.watch(revision + 1)) as batches:  # type: ignore[type-var]
        assert (await asyncio.wait_for(anext(batches), 10)).connected


class Kubeconfig:
    """One with a user and a server, which can be written anew."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config"

    def write(self, url: str, user: str) -> None:
        self.path.write_text(
            f"current-context: c\nclusters: [{{name: c, cluster: {{server: '{url}'}}}}]\n"
            f"contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {user}}}]\n"
        )

    @asynccontextmanager
    async def registry(self) -> AsyncIterator[KubeRegistry]:
        made = KubeRegistry(Access(kubeconfig=str(self.path), node="n1", net_config=self.path.with_name("none")))
        try:
            yield made
        finally:
            await made.close()


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Kubeconfig:
    return Kubeconfig(tmp_path)


async def test_a_kubeconfig_that_is_written_anew_is_read_anew(
    server: ApiServer,  # noqa: F811
    kubeconfig: Kubeconfig,
) -> None:
    """kubeadm writes a new certificate, or a person a new token, into the file itself."""
    server.token = "first"
    kubeconfig.write(server.url, "{token: first}")
    async with kubeconfig.registry() as made:
        assert len((await made.snapshot()).leases) == 1
        server.token = "second"
        for text in ("", "clusters: ["):  # half written
            kubeconfig.path.write_text(text)
            for _ in range(2):
                with pytest.raises(RegistryAuthError):
                    await made.snapshot()
        kubeconfig.write(server.url, "{token: second}")
        with pytest.raises(RegistryAuthError):
            await made.snapshot()
        assert len((await made.snapshot()).leases) == 1


@pytest.mark.parametrize("refused", [None, "", "clusters: ["])
async def test_a_kubeconfig_that_is_written_while_nobody_calls_is_read_anew(
    server: ApiServer,  # noqa: F811
    kubeconfig: Kubeconfig,
    refused: str | None,
) -> None:
    """A refusal finds it half written, and it is whole before the next call. None: it is another one before the first call."""
    server.token = "first"
    kubeconfig.write(server.url, "{token: first}")
    async with kubeconfig.registry() as made:
        if refused is not None:
            await made.snapshot()
        server.token = "second"
        if refused is not None:
            kubeconfig.path.write_text(refused)
            with pytest.raises(RegistryAuthError):
                await made.snapshot()
        kubeconfig.write(server.url, "{token: second}")
        with pytest.raises(RegistryAuthError):
            await made.snapshot()
        assert len((await made.snapshot()).leases) == 1


async def test_a_server_that_moves_is_found_by_the_kubeconfig(
    server: ApiServer,  # noqa: F811
    kubeconfig: Kubeconfig,
) -> None:
    kubeconfig.write(server.url, "{token: t}")
    async with kubeconfig.registry() as made, Following(made) as following:
        await server.stop()
        server.port = 0
        await server.start()
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        kubeconfig.write(server.url, "{token: t}")
        await until(lambda: following.events)
        assert made.endpoint == server.url


async def test_a_refusal_breaks_no_watch_that_stands(
    server: ApiServer,  # noqa: F811
    kubeconfig: Kubeconfig,
) -> None:
    server.token = "first"
    kubeconfig.write(server.url, "{token: first}")
    async with kubeconfig.registry() as made, Following(made) as following:
        server.token = "second"
        for _ in range(3):
            with pytest.raises(RegistryAuthError):
                await made.own()
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: following.events)
        assert following.connections == 1


@pytest.mark.parametrize("token", ["s3cret\\n", "s3c\\nret", "s3cret\\0"])
async def test_a_token_that_cannot_be_sent_is_not_shown(
    server: ApiServer,  # noqa: F811
    kubeconfig: Kubeconfig,
    token: str,
) -> None:
    kubeconfig.write(server.url, f'{{token: "{token}"}}')
    async with kubeconfig.registry() as made:
        with pytest.raises(RegistryAuthError, match="the token cannot stand in a header") as told:
            await made.snapshot()
        assert "s3c" not in str(told.value)


@pytest.mark.parametrize("junk", ["throttled, try later", "{}", "[]", '{"status": {}}'])
async def test_a_program_of_the_kubeconfig_that_fails_once_deafens_nobody(
    server: ApiServer,  # noqa: F811
    kubeconfig: Kubeconfig,
    junk: str,
) -> None:
    out, program = kubeconfig.path.with_name("out"), kubeconfig.path.with_name("program")
    program.write_text(f"#!/bin/sh\ncat '{out}'\n")
    program.chmod(0o755)
    out.write_text('{"status": {"token": "first"}}')
    server.token = "first"
    kubeconfig.write(server.url, f"{{exec: {{apiVersion: client.authentication.k8s.io/v1beta1, command: '{program}'}}}}")
    async with kubeconfig.registry() as made, Following(made) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        out.write_text(junk)
        server.token = "second"
        server.cut()
        await until(lambda: isinstance(made.trouble, RegistryRefusedError))
        out.write_text('{"status": {"token": "second"}}')
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: following.events)


@pytest.mark.parametrize("pages", [3, 9])
async def test_a_listing_may_last_as_long_as_its_pages_come(
    registry: KubeRegistry,  # noqa: F811
    server: ApiServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    pages: int,
) -> None:
    monkeypatch.setattr(kube_client, "PAGE", 4)
    monkeypatch.setattr(kube_client, "CALL_S", 1.0)
    for number in range(4 * pages - 3):
        server.add(f"m{number}", f"10.244.{100 + number}.0/24", annotations=published(f"192.0.2.{100 + number}"))
    answers = server._answer

    async def slowly(*parts: Any) -> None:
        await asyncio.sleep(0.4)
        await answers(*parts)

    monkeypatch.setattr(server, "_answer", slowly)
    assert len((await registry.snapshot()).leases) == 4 * pages - 2
    assert registry.silent_s == 0.0
