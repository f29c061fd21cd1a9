"""Which etcd do ``flannelpy lease`` and ``config`` ask, and with which credentials?"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from flannelpy.agent.api import answering, setup_page
from flannelpy.commands.located import located, told_by_defaults
from flannelpy.core.errors import MalformedError, UsageError
from flannelpy.core.secret import Secret
from flannelpy.explain import setup as documents
from flannelpy.explain.setup import Setup
from flannelpy.host import defaults
from flannelpy.options import Given
from flannelpy.registry import Endpoint
from flannelpy.settings import Settings, load_endpoint

from .test_status import YOUNG

URL = "http://192.0.2.9:2379"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "default"
    monkeypatch.setattr(defaults, "DEFAULTS", path)
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def asked(run_dir: Path, endpoint: Endpoint, given: Given, environ: dict[str, str] | None = None) -> Given:
    """What a command comes to while an agent with this endpoint runs."""
    page = setup_page(Settings(endpoint, subnet_file=Path("/run/elsewhere/subnet.env")))
    async with answering(run_dir, lambda: YOUNG, others={documents.PAGE: page}):
        return await asyncio.to_thread(located, given, {"FLANNELPY_RUN_DIR": str(run_dir), **(environ or {})})


async def test_the_running_agent_is_asked_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = await asked(tmp_path, Endpoint((URL,), "/other", cafile="ca.pem"), {})
    assert found == {
        "etcd-endpoints": [URL],
        "etcd-prefix": ["/other"],
        "etcd-cafile": [str(Path.cwd() / "ca.pem")],
        "subnet-file": ["/run/elsewhere/subnet.env"],
    }
    assert capsys.readouterr() == ("", f"flannelpy: etcd {URL}: as the agent at {tmp_path}/agent.sock has it\n")


@pytest.mark.parametrize("how", ["flag", "ours", "flannel's"])
async def test_who_names_endpoints_gets_nothing_of_the_agents(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"etcd-endpoints": ["http://192.0.2.1:2379"]} if how == "flag" else {}
    environ = {} if how == "flag" else {"FLANNELPY_ETCD_ENDPOINTS" if how == "ours" else "FLANNELD_ETCD_ENDPOINTS": "http://x:1"}
    assert await asked(tmp_path, Endpoint((URL,), "/other", username="u", password_file="/p"), given, environ) == given
    assert capsys.readouterr() == ("", "")


async def test_what_is_written_wins_and_what_belongs_together_comes_from_one_place(tmp_path: Path) -> None:
    endpoint = Endpoint((URL,), "/other", "ca.pem", "/c.pem", "/k.pem", "agent", password_file="/secret")
    given = {"etcd-prefix": ["/mine"], "etcd-certfile": ["/my.pem"], "etcd-username": ["me"]}
    found = await asked(tmp_path, endpoint, given)
    assert {name: found[name] for name in given} == given
    assert found["etcd-endpoints"] == [URL]
    assert "etcd-keyfile" not in found
    assert "etcd-password-file" not in found


async def test_a_password_never_comes_over_the_socket(tmp_path: Path, file: Path) -> None:
    endpoint = Endpoint((URL,), username="agent", password=Secret("hunter2"))
    status, _kind, text = await setup_page(Settings(endpoint))({})
    assert (status, "hunter2" in text, documents.from_json(text).password_hidden) == (200, False, True)
    with pytest.raises(UsageError, match="expected --etcd-username and --etcd-password-file"):
        await asked(tmp_path, endpoint, {})
    own = {"etcd-username": ["me"], "etcd-password": ["mine"]}
    assert (await asked(tmp_path, endpoint, own))["etcd-password"] == ["mine"]
    write(file, "FLANNELPY_ETCD_USERNAME=agent\nFLANNELPY_ETCD_PASSWORD=hunter2\n")
    assert load_endpoint(await asked(tmp_path, endpoint, {}), {}).password == Secret("hunter2")


async def test_of_an_agent_of_another_user_the_password_file_is_read_with_that_users_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flannelpy.commands import located as module

    monkeypatch.setattr(module, "_agents_user", lambda path: (65534, 65534))
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        monkeypatch.setattr(module, "read_given", module.read_given)
        folder.chmod(folder.stat().st_mode | 0o011)
    endpoint = Endpoint((URL,), username="agent", password_file=str(secret))
    secret.chmod(0o600)  # root's alone: no agent that is nobody's could have read it
    with pytest.raises(UsageError, match="Permission denied; expected --etcd-password-file"):
        await asked(tmp_path, endpoint, {})
    assert os.geteuid() == 0
    os.chown(secret, 65534, 65534)
    found = await asked(tmp_path, endpoint, {})
    assert (found["etcd-password"], found["etcd-password-file"]) == (["hunter2"], [])


def test_without_an_agent_the_services_file_is_taken(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(f'# ours\nFLANNELPY_OPTIONS="--iface eth1 -etcd-prefix /blue"\nFLANNELPY_ETCD_ENDPOINTS={URL}\n')
    found = located({}, {"FLANNELPY_RUN_DIR": str(tmp_path)})
    assert (load_endpoint(found, {}).urls, load_endpoint(found, {}).prefix) == ((URL,), "/blue")
    assert "iface" not in found
    assert capsys.readouterr().err == f"flannelpy: etcd {URL}: from {file}\n"


def test_with_neither_all_is_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert located({"etcd-prefix": ["/x"]}, {"FLANNELPY_RUN_DIR": str(tmp_path)}) == {"etcd-prefix": ["/x"]}
    assert capsys.readouterr() == ("", "")


async def test_the_services_file_says_where_the_agent_can_be_asked(tmp_path: Path, file: Path) -> None:
    write(file, f"FLANNELPY_RUN_DIR={tmp_path}\nFLANNELPY_ETCD_ENDPOINTS=http://192.0.2.77:1\n")
    page = setup_page(Settings(Endpoint((URL,))))
    async with answering(tmp_path, lambda: YOUNG, others={documents.PAGE: page}):
        assert (await asyncio.to_thread(located, {}, {}))["etcd-endpoints"] == [URL]


def test_a_directory_where_others_may_write_is_not_asked(tmp_path: Path) -> None:
    (run_dir := tmp_path / "run").mkdir()
    run_dir.chmod(0o777)
    assert asyncio.run(asked(run_dir, Endpoint((URL,)), {})) == {}


@pytest.mark.parametrize(
    ("variables", "name", "value"),
    [
        ({"FLANNELD_ETCD_PREFIX": "/a"}, "etcd-prefix", ["/a"]),
        ({"FLANNELD_ETCD_PREFIX": "/a", "FLANNELPY_ETCD_PREFIX": "/b"}, "etcd-prefix", ["/b"]),
        ({"FLANNELPY_ETCD_PREFIX": "/b", "FLANNELPY_OPTIONS": "--etcd-prefix=/c"}, "etcd-prefix", ["/c"]),
        ({"FLANNELPY_OPTIONS": "-iface 'eth 1' --iface eth2 --ip-masq"}, "iface", ["eth 1", "eth2"]),
    ],
)
def test_the_services_variables_are_read_as_the_agent_reads_them(variables: dict[str, str], name: str, value: list[str]) -> None:
    assert told_by_defaults(variables)[name] == value


@pytest.mark.parametrize("options", ["--etcd-prefix", "--iface 'eth1"])
def test_wrong_options_of_the_service_are_one_line(options: str) -> None:
    with pytest.raises(UsageError, match="FLANNELPY_OPTIONS: "):
        told_by_defaults({"FLANNELPY_OPTIONS": options})


@pytest.mark.parametrize("text", ["", "[]", "7", '{"endpoints": "x"}', '{"endpoints": 1, "prefix": ""}', "[" * 100_000])
def test_an_answer_of_another_form_is_none(text: str) -> None:
    with pytest.raises(MalformedError):
        documents.from_json(text)


def test_an_answer_with_more_in_it_is_read() -> None:
    assert documents.from_json('{"endpoints": "a", "prefix": "b", "newer": 1}') == Setup("a", "b")
