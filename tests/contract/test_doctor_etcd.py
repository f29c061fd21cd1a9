"""What does the doctor find of an endpoint? With a real etcd: well, gone, without trust, out of time, without permission, full."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import pytest

from flannelpy.commands.doctor import etcd as checks
from flannelpy.commands.doctor.about import About
from flannelpy.commands.doctor.run import findings_of
from flannelpy.core.secret import Secret
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.kernel.fake import FakeKernel
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd import examine
from flannelpy.settings import Settings
from netns_lab.etcd import Etcd, Tls, make_certificates

from .certificates import reissued

PAST = ("20240101000000Z", "20240201120000Z")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_certificates(tmp_path_factory.mktemp("tls"), mutual=True)


@pytest.fixture
def etcd() -> Iterator[Etcd]:
    with Etcd() as running:
        yield running


async def told(endpoint: Endpoint, by: str = "the options") -> dict[str, Finding]:
    """What is found, by what is looked at; of several of one name the worst."""
    about = About(Settings(endpoint), FakeKernel(), etcd_by=by)
    worst = {OK: 0, SKIPPED: 1, WARNING: 2, FAILED: 3}
    found: dict[str, Finding] = {}
    for finding in await findings_of(about, {"etcd": checks.etcd}, 20):
        name = finding.name.rpartition(": ")[2]
        if name not in found or worst[finding.state] > worst[found[name].state]:
            found[name] = finding
    return found


def states(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in found.items()}


WELL = dict.fromkeys(("connection", "read", "write", "version", "health", "clock"), OK)


async def test_a_member_that_is_well(etcd: Etcd) -> None:
    before = etcd.revision()
    found = await told(etcd.endpoint("/t/network"))
    assert states(found) == WELL
    assert found["version"].said.startswith("etcd 3.")
    assert "/t/network may be written" in found["write"].said
    assert (etcd.revision(), etcd.keys("/")) == (before, [])


@pytest.mark.parametrize("given", [True, False])
async def test_tls_that_is_well_and_credentials_that_are_not_given(tls: Tls, given: bool) -> None:
    with Etcd(tls=tls) as etcd:
        endpoint = etcd.endpoint("/t")
        if given:
            found = await told(endpoint)
            assert states(found) == {**WELL, "TLS": WARNING}  # the lab's certificates count for two days
            assert found["TLS"].remedy == "renew it"
            return
        found = await told(Endpoint(endpoint.urls, "/t"), by="the running agent")
        assert (found["connection"].state, found["read"].state, found["write"].state) == (OK, SKIPPED, SKIPPED)
        assert "the agent's credentials are not known here" in found["read"].said
        assert (await told(Endpoint(endpoint.urls, "/t")))["read"].state == FAILED


async def test_certificates_that_count_for_long(tls: Tls, tmp_path: Path) -> None:
    long = reissued(tls, "server", "20240101000000Z", "20690101000000Z", tmp_path)
    with Etcd(tls=replace(tls, cert=long, mutual=False)) as etcd:
        about = About(Settings(etcd.endpoint("/t")), FakeKernel())
        said = [finding for finding in await findings_of(about, {"etcd": checks.etcd}, 20) if finding.name.endswith("TLS")]
    assert said[0].said == "the server's certificate counts from 2024-01-01 to 2069-01-01"
    assert said[0].state == OK


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_certificate_that_has_ended(tls: Tls, tmp_path: Path, whose: str) -> None:
    old = reissued(tls, whose, *PAST, tmp_path)
    server = replace(tls, cert=old, mutual=False) if whose == "server" else tls
    with Etcd(tls=server) as etcd:
        endpoint = etcd.endpoint("/t") if whose == "server" else etcd.endpoint("/t", certfile=old)
        found = await told(endpoint)
    assert found["TLS"].state == FAILED
    assert "has expired (valid from 2024-01-01 00:00 UTC to 2024-02-01 12:00 UTC; this host's clock says" in found["TLS"].said
    assert ("the server's certificate" if whose == "server" else f"--etcd-certfile {old}") in found["TLS"].said
    assert found["read"].state == FAILED


async def test_one_endpoint_that_is_gone_is_bearable_and_all_are_not(etcd: Etcd) -> None:
    gone = "http://127.0.0.1:1"
    alone = await told(Endpoint((gone,), "/t"))
    assert states(alone) == {"connection": FAILED}
    assert "onnection refused" in alone["connection"].said
    assert gone in alone["connection"].remedy
    both = await told(replace(etcd.endpoint("/t"), urls=(gone, *etcd.urls)))
    assert states(both) == {**WELL, "connection": WARNING}


async def test_an_endpoint_that_takes_a_connection_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel accepts, nobody reads
        port = listening.getsockname()[1]
        found = await told(Endpoint((f"http://127.0.0.1:{port}",), "/t", timeout_s=1.0))
    assert (found["connection"].state, found["read"].state) == (OK, FAILED)


async def test_permissions(etcd: Etcd) -> None:
    etcd.enable_auth("root-password", user="flannel", prefix="/t/network")
    try:
        endpoint = replace(etcd.endpoint("/t/network"), username="flannel", password=Secret("root-password"))
        assert states(await told(endpoint)) == WELL
        wrong = await told(replace(endpoint, password=Secret("SEEDED-SECRET")))
        assert wrong["read"].state == FAILED
        assert "SEEDED-SECRET" not in str(wrong)
        assert (await told(replace(endpoint, prefix="/other")))["read"].state == FAILED
        root = ("--user", "root:root-password")
        etcd.ctl(*root, "role", "add", "reader")
        etcd.ctl(*root, "role", "grant-permission", "--prefix=true", "reader", "read", "/t/network/")
        etcd.ctl(*root, "user", "add", "looker:looks")
        etcd.ctl(*root, "user", "grant-role", "looker", "reader")
        found = await told(replace(endpoint, username="looker", password=Secret("looks")))
        assert (found["read"].state, found["write"].state) == (OK, FAILED)
        assert "grant-permission" in found["write"].remedy
    finally:
        etcd.disable_auth()


async def test_an_etcd_without_space() -> None:
    with Etcd(options=("--quota-backend-bytes=4000000",)) as etcd:
        with pytest.raises(Exception, match="database space exceeded"):
            deque(map(etcd.put, (f"/fill/{number}" for number in range(100)), repeat("x" * 100_000)), maxlen=0)
        found = await told(etcd.endpoint("/t"))
        assert found["health"].state == FAILED
        assert "NOSPACE" in found["health"].said
        assert "etcdctl alarm disarm" in found["health"].remedy
        assert found["read"].state == OK


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as a person types it, on a host that has no agent and no files of ours."""
    environ = {"PATH": os.environ["PATH"], "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "flannelpy", "doctor", *words], capture_output=True, text=True, check=False, timeout=60, env=environ
    )


def test_the_command_says_what_it_found_and_no_secret(etcd: Etcd, tmp_path: Path) -> None:
    etcd.put("/t/network/config", '{"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan"}}')
    password = tmp_path / "password"
    password.write_text("SEEDED-SECRET")
    password.chmod(0o644)
    files = [f"--{name}={tmp_path / name}" for name in ("run-dir", "state-dir", "subnet-file")]
    words = (*files, f"--etcd-endpoints={etcd.urls[0]}", "--etcd-prefix=/t/network")
    secret = ("--etcd-username=somebody", f"--etcd-password-file={password}")
    said = typed("--json", *words, *secret)
    document = json.loads(said.stdout)
    assert said.returncode == document["exitCode"] != 0
    states = {check["name"]: check["state"] for check in document["checks"]}
    assert states["file: --etcd-password-file"] == WARNING
    assert states[f"etcd {etcd.urls[0]}: connection"] == OK
    assert "SEEDED-SECRET" not in said.stdout + said.stderr
    shown = typed(*words)
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert re.fullmatch(r"(\d+ (failed|warning|skipped|ok)(, )?)+", shown.stdout.splitlines()[-1])
    assert shown.stderr == ""


@pytest.mark.parametrize("kept_as", [("ec", "-aes256"), ("pkcs8", "-topk8", "-v2", "aes256")])
def test_a_key_with_a_pass_phrase_is_told_and_nobody_is_asked_for_it(tls: Tls, tmp_path: Path, kept_as: tuple[str, ...]) -> None:
    """OpenSSL asks at the terminal, or where there is none at the standard input, and waits for as long as it takes."""
    key = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", *kept_as, "-in", tls.client_key, "-out", key, "-passout", "pass:secret"], check=True, capture_output=True
    )
    with Etcd(tls=tls) as running:
        files = [f"--{name}={tmp_path / name}" for name in ("run-dir", "state-dir", "subnet-file")]
        shown = (f"--etcd-cafile={tls.ca}", f"--etcd-certfile={tls.client_cert}", f"--etcd-keyfile={key}")
        command = [sys.executable, "-m", "flannelpy", "doctor", "--json", *files, f"--etcd-endpoints={running.urls[0]}", *shown]
        doctor = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
        )
        with doctor:
            try:
                doctor.wait(30)
            finally:
                doctor.kill()
            said = doctor.stdout.read() if doctor.stdout is not None else ""
    (found,) = [check for check in json.loads(said)["checks"] if check["name"].endswith(": read")]
    assert f"--etcd-keyfile {str(key)!r} cannot be used; expected" in str(found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--etcd-endpoints", "etcd:2379"),
            "flannelpy: --etcd-endpoints 'etcd:2379': expected http:// or https:// before the host\n",
        ),
        (("--jsn",), "flannelpy: No such option '--jsn'. Did you mean '--json'?\n"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(words: tuple[str, ...], said: str) -> None:
    outcome = typed(*words)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (2, "", said)


@pytest.mark.parametrize(("ahead_s", "state"), [(0.0, OK), (5.0, OK), (60.0, WARNING), (-400 * 86400.0, WARNING)])
async def test_a_clock_that_is_far_from_etcds(etcd: Etcd, ahead_s: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "now", lambda: time.time() - ahead_s)
    found = await told(etcd.endpoint("/t"))
    assert found["clock"].state == state
    if state == WARNING:
        assert ("ahead of" if ahead_s > 0 else "behind") in found["clock"].said
