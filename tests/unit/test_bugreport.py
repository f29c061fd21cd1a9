"""Does an archive for others hold what helps, and no secret? Secrets are seeded everywhere and looked for."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannelpy.commands import bugreport
from flannelpy.core.errors import FlannelpyError
from flannelpy.core.secret import HIDDEN
from flannelpy.explain.doctor import OK, Finding
from flannelpy.explain.redact import redact

PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIBSEEDED\nSEEDEDxyz\n-----END EC PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password=SEEDED", f"password={HIDDEN}"),
        ("FLANNELPY_ETCD_PASSWORD='SEEDED with blanks'", f"FLANNELPY_ETCD_PASSWORD='{HIDDEN}'"),
        ('{"PSK": "SEEDED\\"more", "VNI": 1}', f'{{"PSK": "{HIDDEN}", "VNI": 1}}'),
        ("--etcd-password SEEDED --ip-masq", f"--etcd-password {HIDDEN} --ip-masq"),
        ("--etcd-password=SEEDED --ip-masq", f"--etcd-password={HIDDEN} --ip-masq"),
        ("-etcd-username u -etcd-password SEEDED -ip-masq", f"-etcd-username u -etcd-password {HIDDEN} -ip-masq"),
        ("http://user:SEEDED@etcd:2379/", f"http://{HIDDEN}@etcd:2379/"),
        (f"before\n{PEM}after", f"before\n{HIDDEN}\nafter"),
        ("-----BEGIN PRIVATE KEY-----\nSEEDED, cut off", HIDDEN),
        ("private_key: SEEDED", f"private_key: {HIDDEN}"),
        ("token = SEEDED; next", f"token = {HIDDEN}; next"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(
    st.sampled_from(("-", "--")),
    st.sampled_from(("etcd-password", "kube-api-token", "ETCD-PASSWORD")),
    st.sampled_from(("=", " ", "  ", '="', " '")),
    st.text("abc-=.%!0", min_size=1, max_size=12),
    st.sampled_from(("{}", 'FLANNELPY_OPTIONS="{}"', "ExecStart=/usr/bin/flannelpy -iface=eth1 {}", "{}\nKillMode=process")),
)
def test_however_a_password_is_written_it_is_not_shown(dash: str, name: str, sign: str, value: str, line: str) -> None:
    quote = sign[-1] if sign[-1] in "\"'" else ""
    text = line.format(f"{dash}{name}{sign}SEEDED{value}{quote}")
    assert "SEEDED" not in redact(text)
    assert "SEEDED" not in redact(text.replace("SEEDED", "-SEEDED"))


@pytest.mark.parametrize(
    "text",
    [
        "--etcd-password-file /etc/flannelpy/password -v 2",
        "a well-known token --x",
        "--etcd-password-file=/etc/flannelpy/password",
        "FLANNELPY_ETCD_PASSWORD_FILE=/etc/p",
        "password_file='/etc/p'",
        '{"secretName": null}',
        "10.5.7.0/24 via 10.5.7.0 dev flannel.1 proto 102 onlink",
        "the password is wrong",
        "https://etcd:2379/coreos.com/network",
        f"password={HIDDEN}",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_secret_is_known_by_its_value_wherever_it_stands() -> None:
    assert redact("user x said hunter2hunter2 twice: hunter2hunter2", ["hunter2hunter2", "hunter2", "x"]) == (
        f"user x said {HIDDEN} twice: {HIDDEN}"
    )


def contents(path: Path) -> Mapping[str, str]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        found = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file is not None}


@pytest.fixture
def seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """A host whose every source says a secret; programs and the agent are stood in for."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "wireguard.key").write_text("WGKEYSEEDED0000000000000000000000000000000000=\n")
    (tmp_path / "password").write_text("PASSWORDSEEDED\n")
    (tmp_path / "subnet.env").write_text("FLANNEL_SUBNET=10.5.7.1/24\nSECRET=SEEDED-env\n")
    said = "route 10.5.9.0/24, PASSWORDSEEDED, WGKEYSEEDED0000000000000000000000000000000000=, --etcd-password SEEDED-unit\n" + PEM
    monkeypatch.setattr(bugreport, "_output", lambda command: f"{command}: {said}")
    monkeypatch.setattr(bugreport, "ask", lambda _path, page: json.dumps({"page": page, "token": "SEEDED-status", "said": said}))

    async def diagnose(_given: object, *, preflight: bool) -> list[Finding]:
        assert not preflight
        return [Finding("forwarding", OK, said)]

    monkeypatch.setattr(bugreport, "diagnose", diagnose)
    return {
        "state-dir": (str(tmp_path / "state"),),
        "run-dir": (str(tmp_path / "run"),),
        "subnet-file": (str(tmp_path / "subnet.env"),),
        "etcd-username": ("somebody",),
        "etcd-password-file": (str(tmp_path / "password"),),
    }


def test_the_archive_holds_what_helps_and_no_secret(
    seeded: dict[str, tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.tar.gz"
    assert bugreport.write(seeded, str(path)) == 0
    found = contents(path)
    assert {
        "versions",
        "settings",
        "status.json",
        "events.json",
        "doctor.json",
        "subnet.env",
        "log.txt",
        "kernel/route.txt",
    } <= set(found)
    for name, text in found.items():
        assert "SEEDED" not in text, f"{name}: {text}"
    assert "route 10.5.9.0/24" in found["kernel/route.txt"]
    assert "FLANNEL_SUBNET=10.5.7.1/24" in found["subnet.env"]
    assert json.loads(found["doctor.json"])["checks"][0]["name"] == "forwarding"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in listed[:-1]] == list(found)
    assert listed[-1].startswith(f"{path}: {len(found)} files.")


def test_what_is_there_is_not_written_over(seeded: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    path.write_text("mine")
    with pytest.raises(FlannelpyError, match="expected a file that is not there yet"):
        bugreport.write(seeded, str(path))
    assert path.read_text() == "mine"


def test_an_agent_that_does_not_answer_and_a_program_that_is_not_there_are_said(
    seeded: dict[str, tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()

    async def none(_given: object, *, preflight: bool) -> list[Finding]:
        return []

    monkeypatch.setattr(bugreport, "diagnose", none)
    monkeypatch.setattr(bugreport, "COMMANDS", {"kernel/gone": "no-such-program-of-ours --now", "kernel/here": "uname -s"})
    path = tmp_path / "report.tar.gz"
    bugreport.write(seeded, str(path))
    found = contents(path)
    assert "there is no such socket" in found["status.json"]
    assert "No such file or directory" in found["kernel/gone.txt"]
    assert found["kernel/here.txt"] == "$ uname -s\nLinux\n"
