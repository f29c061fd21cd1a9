"""Is Kubernetes a registry? Against a small API server over HTTP; what was written is read there, not by the code under test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

from flannelpy import __version__
from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryRefusedError,
    RegistryUnavailableError,
    UsageError,
    WatchGapError,
)
from flannelpy.core.model import LeaseAttrs
from flannelpy.registry import Batch, Deleted, Put
from flannelpy.registry.kube import client as kube_client
from flannelpy.registry.kube.access import Access
from flannelpy.registry.kube.registry import KubeRegistry
from netns_lab.api_server import ApiServer

P = "flannel.alpha.coreos.com/"
CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
ATTRS = LeaseAttrs(IPAddress("192.0.2.1"), None, "vxlan", {"VNI": 1, "VtepMAC": "aa:bb:cc:dd:ee:01"})


def published(address: str) -> dict[str, str]:
    return {
        f"{P}kube-subnet-manager": "true",
        f"{P}backend-type": "host-gw",
        f"{P}backend-data": "null",
        f"{P}public-ip": address,
    }


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    made = ApiServer()
    await made.start()
    made.add("n1", "10.244.1.0/24", annotations={"node.alpha.kubernetes.io/ttl": "0"})
    made.add("n2", "10.244.2.0/24", annotations=published("192.0.2.2"))
    made.add("other", "10.244.9.0/24", annotations={"projectcalico.org/IPv4Address": "192.0.2.9"})
    yield made
    await made.stop()


@pytest.fixture
async def registry(server: ApiServer, tmp_path: Path) -> AsyncIterator[KubeRegistry]:
    file = tmp_path / "net-conf.json"
    file.write_text(CONFIG)
    made = KubeRegistry(Access(api_url=server.url, net_config=file, node="n1"))
    yield made
    await made.close()


class Following:
    """A watch in the background, and what has come of it."""

    def __init__(self, registry: KubeRegistry) -> None:
        self.batches: list[Batch] = []
        self.error: Exception | None = None
        self._registry = registry
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Following:
        revision = (await self._registry.snapshot()).revision
        self._task = asyncio.create_task(self._run(revision + 1))
        await until(lambda: self.batches or self.error)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, revision: int) -> None:
        try:
            async with aclosing(self._registry.watch(revision)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    self.batches.append(batch)
        except WatchGapError as gap:
            self.error = gap

    @property
    def events(self) -> list[Any]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def connections(self) -> int:
        return sum(batch.connected for batch in self.batches)


async def until(fact: Callable[[], object], bound_s: float = 30.0) -> None:
    deadline = time.monotonic() + bound_s
    while not fact():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_listing_has_the_nodes_that_flannel_serves(registry: KubeRegistry, server: ApiServer) -> None:
    snapshot = await registry.snapshot()
    assert [str(lease) for lease in snapshot.leases] == ["10.244.2.0/24 at 192.0.2.2"]
    assert snapshot.revision == server.version
    assert snapshot.malformed == ()


async def test_a_listing_of_several_pages_is_whole(
    registry: KubeRegistry, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_client, "PAGE", 7)
    for number in range(20):
        server.add(f"m{number}", f"10.244.{100 + number}.0/24", annotations=published(f"192.0.2.{100 + number}"))
    assert len((await registry.snapshot()).leases) == 21
    assert sum(request == "GET /api/v1/nodes" for request in server.requests) == 4


async def test_our_own_node_is_a_lease_before_anything_is_published(registry: KubeRegistry) -> None:
    own = await registry.own()
    assert own is not None
    assert own.key == "10.244.1.0-24"


async def test_publishing_writes_flannels_annotations_and_nothing_else(registry: KubeRegistry, server: ApiServer) -> None:
    own = await registry.own()
    assert own is not None
    lease = await registry.renew(own, ATTRS)
    assert (lease.key, lease.attrs, lease.mod_revision) == ("10.244.1.0-24", ATTRS, server.version)
    assert server.annotations("n1") == {
        "node.alpha.kubernetes.io/ttl": "0",
        f"{P}kube-subnet-manager": "true",
        f"{P}backend-type": "vxlan",
        f"{P}backend-data": '{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:01"}',
        f"{P}public-ip": "192.0.2.1",
    }
    assert {request for request in server.requests if not request.startswith("GET")} == {"PATCH /api/v1/nodes/n1/status"}
    assert [each.key for each in (await registry.snapshot()).leases] == ["10.244.1.0-24", "10.244.2.0-24"]


async def test_an_overwrite_is_what_is_advertised(registry: KubeRegistry, server: ApiServer) -> None:
    server.change("n1", metadata={"annotations": {f"{P}public-ip-overwrite": "198.51.100.7"}})
    assert str((await registry.advertise(ATTRS)).public_ip) == "198.51.100.7"


async def test_a_node_without_a_pod_cidr_and_no_node_are_told_apart(registry: KubeRegistry, server: ApiServer) -> None:
    server.remove("n1")
    with pytest.raises(ConflictError, match="there is no node n1"):
        await registry.own()
    server.add("n1")
    assert await registry.own() is None


async def test_a_lease_that_our_node_no_longer_is_cannot_be_written(registry: KubeRegistry, server: ApiServer) -> None:
    own = await registry.own()
    assert own is not None
    server.remove("n1")
    server.add("n1", "10.244.7.0/24")
    with pytest.raises(ConflictError, match=r"10\.244\.7\.0-24; nothing was written"):
        await registry.renew(own, ATTRS)
    assert server.annotations("n1") == {}


async def test_the_network_is_said_to_be_there_once(registry: KubeRegistry, server: ApiServer) -> None:
    own = await registry.own()
    assert own is not None
    server.change("n1", status={"conditions": [{"type": "NetworkUnavailable", "status": "True"}]})
    await registry.announce(own)
    assert server.conditions("n1") == {"NetworkUnavailable": "False"}
    version = server.version
    await registry.announce(own)
    assert server.version == version


@pytest.mark.parametrize("cidrs", [(), ("10.244.7.0/24",)])
async def test_nothing_is_said_of_a_node_that_was_made_anew_with_another_subnet(
    registry: KubeRegistry, server: ApiServer, cidrs: tuple[str, ...]
) -> None:
    own = await registry.own()
    assert own is not None
    server.remove("n1")
    server.add("n1", *cidrs)
    with pytest.raises(ConflictError, match="nothing was written"):
        await registry.announce(own)
    assert server.conditions("n1") == {}


async def test_a_watch_tells_what_concerns_leases_alone(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry) as following:
        server.beat("n2")
        server.beat("other")
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        server.change("n2", metadata={"annotations": {f"{P}public-ip": "192.0.2.22"}})
        server.remove("n3")
        await until(lambda: len(following.events) == 3)
        come, changed, gone = following.events
        assert [str(event.lease) for event in (come, changed)] == ["10.244.3.0/24 at 192.0.2.3", "10.244.2.0/24 at 192.0.2.22"]
        assert isinstance(come, Put)
        assert gone == Deleted("10.244.3.0-24", server.version)
        assert following.batches[-1].revision == server.version


async def test_a_watch_that_was_cut_goes_on_and_says_so(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        server.cut()
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: following.events)
        assert following.connections == 2
        assert following.error is None


async def test_a_server_that_is_away_is_told_and_nothing_is_gone(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        await server.stop()
        await until(lambda: registry.trouble is not None)
        assert isinstance(registry.trouble, RegistryUnavailableError)
        assert not registry.alive
        with pytest.raises(RegistryUnavailableError):
            await registry.snapshot()
        assert following.events == []
        await server.start()
        await until(lambda: registry.alive and following.connections > 1)
        assert following.connections == 2


async def test_what_the_server_has_forgotten_is_a_gap(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        await server.stop()
        server.remove("n2")
        server.compact()
        await server.start()
        await until(lambda: following.error)
    assert (await registry.snapshot()).leases == ()


async def test_a_server_that_was_restored_is_a_gap_and_then_what_it_says(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        await server.stop()
        server.version = 1
        server.compact()
        await server.start()
        await until(lambda: following.error)
    snapshot = await registry.snapshot()
    assert snapshot.revision == 1
    assert len(snapshot.leases) == 1


async def test_a_quiet_watch_is_begun_anew_without_a_word(
    registry: KubeRegistry, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_client, "QUIET_S", 0.2)
    async with Following(registry) as following:
        await until(lambda: server.requests.count("GET /api/v1/nodes watch") >= 3)
        assert following.connections == 1


async def test_a_config_that_is_written_anew_is_told(registry: KubeRegistry, tmp_path: Path) -> None:
    assert (await registry.config()).text == CONFIG
    async with Following(registry) as following:
        (tmp_path / "net-conf.json").write_text(CONFIG.replace("vxlan", "host-gw"))
        await until(lambda: following.events)
        assert "host-gw" in following.events[0].text
    (tmp_path / "net-conf.json").unlink()
    assert (await registry.config()).text is None


@pytest.mark.parametrize("text", [CONFIG.replace("vxlan", "host-gw"), CONFIG.replace("10.244.0.0", "10.0.0.0")])
async def test_a_config_that_changed_before_anybody_watched_is_told(registry: KubeRegistry, tmp_path: Path, text: str) -> None:
    assert (await registry.config()).text == CONFIG
    (tmp_path / "net-conf.json").write_text(text)
    async with Following(registry) as following:
        await until(lambda: following.events)
        assert [event.text for event in following.events] == [text]


async def test_another_family_is_a_gap(registry: KubeRegistry, tmp_path: Path) -> None:
    async with Following(registry) as following:
        (tmp_path / "net-conf.json").write_text(
            '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}'
        )
        await until(lambda: following.error)
    assert [lease.key for lease in (await registry.snapshot()).leases] == ["10.244.2.0-24"], "it has that family, and goes on"


DUAL = '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}'


@pytest.mark.parametrize("overtaken", [True, False])
async def test_another_family_is_read_also_where_the_watch_overtakes_the_listing(
    registry: KubeRegistry, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    """In a cluster of thousands each listing is overtaken by some heartbeat."""
    server.add("n3", "10.244.3.0/24", "fd00:244:0:3::/64", annotations={**published("192.0.2.3"), f"{P}public-ipv6": "fd00::3"})
    async with Following(registry):
        listing = server._list

        def slow(limit: int, after: str) -> str:
            text = listing(limit, after)
            if overtaken:
                server.beat("n2")
            return text

        nodes = registry._api.nodes

        async def late() -> Any:
            answer = await nodes()
            await until(lambda: registry._book.version == server.version)
            return answer

        monkeypatch.setattr(server, "_list", slow)
        monkeypatch.setattr(registry._api, "nodes", late)
        (tmp_path / "net-conf.json").write_text(DUAL)
        keys = [lease.key for lease in (await registry.snapshot()).leases]
        assert keys == ["10.244.2.0-24", "10.244.3.0-24&fd00:244:0:3::-64"]


async def test_leases_are_of_the_families_that_are_followed(registry: KubeRegistry, server: ApiServer, tmp_path: Path) -> None:
    """The file may ask for a family that this host cannot have: it goes on with the config before, and so do its peers."""
    both = {**published("192.0.2.3"), f"{P}public-ipv6": "fd00::3"}
    server.add("n3", "10.244.3.0/24", "fd00:244:0:3::/64", annotations=both)
    server.change("n1", spec={"podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]})
    own = await registry.own((4,))
    assert own is not None
    (tmp_path / "net-conf.json").write_text(DUAL)
    assert [lease.key for lease in (await registry.snapshot()).leases] == ["10.244.2.0-24", "10.244.3.0-24"]
    assert (await registry.renew(own, ATTRS)).key == "10.244.1.0-24"
    async with Following(registry) as following:
        own = await registry.own((4, 6))
        assert own is not None
        assert own.key == "10.244.1.0-24&fd00:244:0:1::-64"
        await until(lambda: following.error)
    keys = [lease.key for lease in (await registry.snapshot()).leases]
    assert keys == ["10.244.1.0-24", "10.244.2.0-24", "10.244.3.0-24&fd00:244:0:3::-64"]


async def test_a_token_that_changes_is_read_anew(server: ApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    (tmp_path / "config").write_text(
        f"current-context: c\nclusters: [{{name: c, cluster: {{server: '{server.url}'}}}}]\n"
        f"contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{tokenFile: '{token}'}}}}]\n"
    )
    server.token = "first"
    registry = KubeRegistry(Access(kubeconfig=str(tmp_path / "config"), node="n1"))
    try:
        assert len((await registry.snapshot()).leases) == 1
        server.token = "second"
        with pytest.raises(RegistryAuthError):
            await registry.snapshot()
        token.write_text("second")
        assert len((await registry.snapshot()).leases) == 1
    finally:
        await registry.close()


async def test_what_rbac_refuses_is_for_a_person(registry: KubeRegistry, server: ApiServer) -> None:
    server.forbidden.add("patch")
    own = await registry.own()
    assert own is not None
    with pytest.raises(RegistryAuthError, match="forbidden"):
        await registry.renew(own, ATTRS)


async def test_a_watch_that_is_refused_is_told_once_and_let_in_again(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry) as following:
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        server.forbidden.add("watch")
        server.cut()
        await until(lambda: isinstance(registry.trouble, RegistryAuthError))
        assert "cannot watch" in str(registry.trouble)
        asked = len(server.requests)
        server.add("n3", "10.244.3.0/24", annotations=published("192.0.2.3"))
        await until(lambda: len(server.requests) > asked + 3)
        assert isinstance(registry.trouble, RegistryAuthError), "the trouble lasts as long as the refusal"
        assert set(server.requests[asked:]) == {"GET /api/v1/nodes watch"}, "a reader has nothing to list anew for"
        assert (following.connections, following.events) == (1, [])
        server.forbidden.clear()
        await until(lambda: following.events)
        assert (following.connections, registry.trouble, following.error) == (2, None, None)


async def test_a_server_that_starts_may_refuse_everybody_for_a_while(
    registry: KubeRegistry, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.snapshot()
    await server.stop()
    with pytest.raises(RegistryUnavailableError):
        await registry.snapshot()
    server.forbidden |= {"list", "get", "watch", "patch"}
    await server.start()
    for _ in range(3):
        with pytest.raises(RegistryUnavailableError, match="cannot list; it may be starting"):
            await registry.snapshot()
    monkeypatch.setattr(kube_client, "STARTING_S", 0.0)
    with pytest.raises(RegistryAuthError, match="cannot list"):
        await registry.snapshot()


async def test_a_server_that_was_there_refuses_at_once(registry: KubeRegistry, server: ApiServer) -> None:
    await server.stop()
    with pytest.raises(RegistryUnavailableError):
        await registry.snapshot()
    await server.start()
    await registry.snapshot()
    server.forbidden.add("list")
    with pytest.raises(RegistryAuthError, match="cannot list"):
        await registry.snapshot()


async def test_a_server_that_takes_a_watch_and_says_nothing_is_no_answer(
    registry: KubeRegistry, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(kube_client, "CALL_S", 0.3)
    monkeypatch.setattr(server, "_watch", wait)
    revision = (await registry.snapshot()).revision
    batches: list[Batch] = []

    async def follow() -> None:
        async with aclosing(registry.watch(revision + 1)) as found:  # type: ignore[type-var]
            batches.extend([batch async for batch in found])

    task = asyncio.create_task(follow())
    try:
        await until(lambda: registry.trouble)
        assert "no answer" in str(registry.trouble)
        assert batches == []
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_whatever_is_asked_says_by_whom(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry):
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        own = await registry.own()
        assert own is not None
        await registry.renew(own, ATTRS)
        await registry.offer(own, '{"a":1}')
        await registry.announce(own)
    assert server.agents == {f"flannelpy/{__version__}"}
    assert server.managers == ["flannelpy"] * 3


async def test_our_node_is_news_where_others_change_it_and_not_where_we_do(registry: KubeRegistry, server: ApiServer) -> None:
    async with Following(registry):
        await until(lambda: "GET /api/v1/nodes watch" in server.requests)
        own = await registry.own()
        assert own is not None
        before = registry.changes
        await registry.renew(own, ATTRS)
        await registry.announce(own)
        server.beat("n1")
        server.beat("n2")
        server.change("n2", metadata={"annotations": {f"{P}public-ip": "192.0.2.22"}})
        await until(lambda: registry._book.version == server.version)
        assert registry.changes == before
        for number, change in enumerate(OTHERS, before + 1):
            server.change("n1", **change)
            await asyncio.wait_for(registry.changed(number - 1), 30)
            assert registry.changes == number, change
        server.remove("n1")
        await asyncio.wait_for(registry.changed(before + len(OTHERS)), 30)
        server.add("n1")
        await asyncio.wait_for(registry.changed(before + len(OTHERS) + 1), 30)


OTHERS: list[dict[str, Any]] = [
    {"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True"}]}},
    {"metadata": {"annotations": {f"{P}public-ip": "198.51.100.1"}}},
    {"metadata": {"annotations": {f"{P}public-ip-overwrite": "198.51.100.1"}}},
    {"spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}},
]


async def test_our_node_is_the_one_that_our_pod_is_on(server: ApiServer) -> None:
    server.pods["kube-flannel", "ds-1"] = "n2"
    registry = KubeRegistry(Access(api_url=server.url, pod=("kube-flannel", "ds-1")))
    try:
        own = await registry.own()
        assert own is not None
        assert (registry.node, own.key) == ("n2", "10.244.2.0-24")
    finally:
        await registry.close()


async def test_what_is_offered_stands_beside_the_lease(registry: KubeRegistry, server: ApiServer) -> None:
    own = await registry.own()
    assert own is not None
    lease = await registry.renew(own, ATTRS)
    async with Following(registry):
        heard: dict[str, bytes | None] = {}

        async def hear() -> None:
            async for offered in registry.offers():
                heard.update(offered.values)

        task = asyncio.create_task(hear())
        try:
            await registry.offer(lease, '{"a":1}')
            await until(lambda: heard == {"10.244.1.0-24": b'{"a":1}'})
            await registry.offer(lease, None)
            await until(lambda: heard == {"10.244.1.0-24": None})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert f"{P}flannelpy-offer" not in server.annotations("n1")


@pytest.mark.parametrize("text", [None, '{"a":1}'])
async def test_what_is_offered_already_is_not_written(registry: KubeRegistry, server: ApiServer, text: str | None) -> None:
    own = await registry.own()
    assert own is not None
    await registry.offer(own, text)
    version, server.forbidden = server.version, {"patch"}
    await registry.offer(own, text)
    assert server.version == version


async def test_what_kubernetes_does_itself_is_refused(registry: KubeRegistry) -> None:
    own = await registry.own()
    assert own is not None
    with pytest.raises(RegistryRefusedError):
        await registry.create(own.subnet, ATTRS)
    with pytest.raises(RegistryRefusedError):
        await registry.put_config(CONFIG)
    with pytest.raises(RegistryRefusedError):
        await registry.release(own)


async def test_a_server_that_is_no_kubernetes_is_told_in_a_line(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    registry = KubeRegistry(Access(api_url=f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}", node="n1"))
    try:
        with pytest.raises(RegistryRefusedError, match="expected Kubernetes' API") as told:
            await registry.snapshot()
        assert "\n" not in str(told.value)
    finally:
        await registry.close()
        other.close()


@pytest.mark.parametrize("text", ["", "junk", "{}", "clusters: 5", "current-context: x\nclusters: []\ncontexts: []\n", "a: ["])
def test_a_kubeconfig_that_cannot_be_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(UsageError, match="--kubeconfig-file") as told:
        KubeRegistry(Access(kubeconfig=str(tmp_path / "config"), node="n1"))
    assert "\n" not in str(told.value)


def test_outside_of_a_cluster_something_has_to_be_said() -> None:
    with pytest.raises(UsageError, match="without --kubeconfig-file"):
        KubeRegistry(Access(node="n1"))


async def test_heartbeats_of_a_thousand_nodes_are_no_news(server: ApiServer, registry: KubeRegistry) -> None:
    for number in range(1000):
        server.add(f"h{number}", f"10.244.{10 + number // 16}.{number % 16 * 16}/28", annotations=published("192.0.2.3"))
    await registry.config()
    listed = await registry.snapshot()
    assert len(listed.leases) == 1001
    async with aclosing(registry.watch(listed.revision + 1)) as batches:  # type: ignore[type-var]
        assert (await anext(batches)).events == ()
        for number in range(1000):
            server.beat(f"h{number}")
        server.add("late", "10.244.3.0/24", annotations=published("192.0.2.4"))
        async with asyncio.timeout(120):
            while not (news := await anext(batches)).events:
                pass  # a connection anew
    assert [type(event) for event in news.events] == [Put]
    assert news.revision == server.version
