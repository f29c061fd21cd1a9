"""Do the commands ask Kubernetes where leases are its nodes? Against a small API server over HTTP, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannelpy.agent.api import answering, setup_page
from flannelpy.commands.doctor.about import About
from flannelpy.commands.doctor.kube import kube
from flannelpy.commands.doctor.run import CHECKS, checks_for
from flannelpy.commands.located import located, with_nodes
from flannelpy.explain import setup as documents
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.host import defaults
from flannelpy.kernel.fake import FakeKernel
from flannelpy.options import Given
from flannelpy.registry import Endpoint
from flannelpy.registry.kube.access import Access
from flannelpy.settings import Settings, load
from netns_lab.api_server import ApiServer

from .test_cli import Outcome, Person
from .test_status import YOUNG

P = "flannel.alpha.coreos.com/"
CONFIG = '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}'


def published(address: str) -> dict[str, str]:
    said = {"kube-subnet-manager": "true", "backend-type": "host-gw", "backend-data": "null", "public-ip": address}
    return {P + name: value for name, value in said.items()}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "default"
    monkeypatch.setattr(defaults, "DEFAULTS", path)
    return path


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """Commands bring a loop of their own: the server runs beside them."""
    made, loop = ApiServer(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(made.start(), loop).result(30)
        made.add("n1", "10.244.1.0/24", annotations=published("192.0.2.1"))
        made.add("n2", "10.244.2.0/24", annotations=published("192.0.2.2"))
        yield made
        asyncio.run_coroutine_threadsafe(made.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


class Operator(Person):
    """Types on a host whose service's file says that leases are nodes."""

    def asks(self, *words: str) -> Outcome:
        return self.types(*words, FLANNELPY_RUN_DIR="/nonexistent", NODE_NAME="n1")


@pytest.fixture
def operator(
    server: ApiServer, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Operator:
    config = tmp_path / "net-conf.json"
    config.write_text(CONFIG)
    file.write_text(f'FLANNELPY_OPTIONS="--kube-subnet-mgr --kube-api-url={server.url} --net-config-path={config}"\n')
    return Operator(monkeypatch, capsys)


def test_the_leases_of_the_nodes_are_listed(operator: Operator, server: ApiServer, file: Path) -> None:
    said = operator.asks("lease", "list", "--json")
    assert said.code == 0, said.err
    assert [each["subnet"] for each in json.loads(said.out)["leases"]] == ["10.244.1.0/24", "10.244.2.0/24"]
    assert [each["node"] for each in json.loads(said.out)["leases"]] == ["n1", "n2"]
    assert said.err == f"flannelpy: Kubernetes {server.url}: from {file}\n"
    assert [line.split()[:3] for line in operator.asks("lease", "list").out.splitlines()[:3]] == [
        ["node", "subnet", "PublicIP"],
        ["n1", "10.244.1.0/24", "192.0.2.1"],
        ["n2", "10.244.2.0/24", "192.0.2.2"],
    ]


def test_the_config_in_use_is_shown(operator: Operator, tmp_path: Path) -> None:
    assert operator.asks("config", "get").out == f"{CONFIG}\n"
    (tmp_path / "net-conf.json").unlink()
    said = operator.asks("config", "get")
    assert (said.code, "kubectl edit the ConfigMap" in said.err, "config put" in said.err) == (1, True, False)


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("lease", "reserve", "10.244.9.0/24", "--public-ip=192.0.2.9"), "kubectl get nodes"),
        (("lease", "release", "10.244.2.0/24"), "kubectl delete node"),
        (("config", "put", "--yes", "FILE"), "kubectl edit the ConfigMap"),
    ],
)
def test_what_is_kubernetes_to_change_is_refused_in_one_line(
    words: tuple[str, ...], instead: str, operator: Operator, server: ApiServer, tmp_path: Path
) -> None:
    said = operator.asks(*(str(tmp_path / "net-conf.json") if word == "FILE" else word for word in words))
    *_, line = said.err.splitlines()
    assert said.code == 1
    for text in ("in Kubernetes", "nothing was written", instead):
        assert text in line
    assert not [each for each in server.requests if "GET" not in each]


async def test_the_running_agent_says_where_its_nodes_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    access = Access("http://192.0.2.7:6443", "", "example.org", tmp_path / "net-conf.json")
    page = setup_page(Settings(Endpoint((access.api_url,), access.prefix), kube=access))

    async def asked(given: Given) -> Given:
        async with answering(tmp_path, lambda: YOUNG, others={documents.PAGE: page}):
            return await asyncio.to_thread(located, given, {"FLANNELPY_RUN_DIR": str(tmp_path)})

    found = await asked({})
    settings = load(found, {})
    assert settings.kube is not None
    assert (settings.kube.api_url, settings.kube.prefix) == (access.api_url, "example.org")
    assert settings.kube.net_config == access.net_config
    assert capsys.readouterr().err == f"flannelpy: Kubernetes {access.api_url}: as the agent at {tmp_path}/agent.sock has it\n"
    other = {"etcd-endpoints": ["http://192.0.2.1:2379"]}
    assert await asked(other) == other


def test_wrong_options_of_the_service_are_no_nodes(file: Path) -> None:
    file.write_text('FLANNELPY_OPTIONS="--kube-subnet-mgr \'open"\n')
    assert with_nodes({}, {"FLANNELPY_RUN_DIR": "/nonexistent"}) == {}


# ------------------------------------------------------------------------------------------------------------------ doctor


def about(server: ApiServer, node: str = "n1") -> About:
    access = Access(server.url, node=node)
    return About(Settings(Endpoint((server.url,), access.prefix), kube=access), FakeKernel())


async def examined(of: About) -> list[Finding]:
    return [finding async for finding in kube(of)]


async def states(of: About) -> list[str]:
    return [finding.state for finding in await examined(of)]


async def test_doctor_looks_at_the_api_server(server: ApiServer) -> None:
    of = about(server)
    checks = checks_for(of)
    assert checks["Kubernetes"] is kube
    assert "etcd" not in checks
    assert len(checks) == len(CHECKS)
    found = await examined(of)
    assert [finding.state for finding in found] == [OK] * 5, found
    assert found[0].said.startswith("2 nodes in ")
    assert found[-1] == Finding("node n1", OK, "10.244.1.0/24")


@pytest.mark.parametrize(
    ("verb", "said"), [("list", "list nodes"), ("get", "get nodes"), ("watch", "watch nodes"), ("patch", "patch nodes/status")]
)
async def test_doctor_names_the_right_that_is_missing(server: ApiServer, verb: str, said: str) -> None:
    server.forbidden = {verb}
    found = await examined(about(server))
    assert [finding.name.rpartition(": ")[2] for finding in found if finding.state == FAILED] == [said]


async def test_doctor_tells_a_token_that_is_refused(server: ApiServer) -> None:
    server.token = "secret"
    assert (await states(about(server)))[0] == FAILED


async def test_doctor_tells_a_node_that_is_not_there(server: ApiServer) -> None:
    assert (await states(about(server, "nobody")))[-1] == WARNING


async def test_doctor_tells_a_server_that_is_away(server: ApiServer) -> None:
    of = about(server)
    asyncio.run_coroutine_threadsafe(server.stop(), server._server.get_loop()).result(30)  # type: ignore[union-attr]
    assert await states(of) == [FAILED]


async def test_doctor_outside_of_a_pod_skips_what_it_cannot_ask() -> None:
    of = About(Settings(Endpoint(("in-cluster",)), kube=Access()), FakeKernel())
    (found,) = await examined(of)
    assert found.state == SKIPPED
    assert "--kubeconfig-file" in found.remedy
