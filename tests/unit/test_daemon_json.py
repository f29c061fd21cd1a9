"""``flannelpy docker-opts --daemon-json``: our subnet in Docker's own file, everything else in it as it was."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from flannelpy.commands.docker import merge_options
from flannelpy.core.errors import FlannelpyError
from flannelpy.host.daemon_json import flags_of, merge
from flannelpy.host.docker_unit import command_line

VALUES = {"bip": "10.1.74.1/24", "ip-masq": True, "mtu": 1450}
ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
FOREIGN = '{\n  "log-driver": "journald",\n  "hosts": ["fd://"],\n  "bip": "172.20.0.1/16",\n  "some-new-key": {"é": [1.5]}\n}\n'


@pytest.fixture(autouse=True)
def no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELPY_RUN_DIR", str(tmp_path / "run"))


def run(tmp_path: Path, text: str | None = None, *, env: str = ENV, dry_run: bool = False, with_ip_masq: bool = True) -> Path:
    (tmp_path / "subnet.env").write_text(env)
    path = tmp_path / "daemon.json"
    if text is not None:
        path.write_text(text)
    merge_options(str(tmp_path / "subnet.env"), str(path), with_ip_masq=with_ip_masq, dry_run=dry_run, root=tmp_path)
    return path


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_file_that_says_nothing_gets_ours(tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(tmp_path, text).read_text()) == VALUES
    said = capsys.readouterr().out
    assert 'bip: absent -> "10.1.74.1/24"' in said
    assert "systemctl restart docker" in said


def test_what_others_have_written_stays_where_it_stands(tmp_path: Path) -> None:
    path = run(tmp_path, FOREIGN)
    assert path.read_text() == (
        '{\n  "log-driver": "journald",\n  "hosts": [\n    "fd://"\n  ],\n  "bip": "10.1.74.1/24",\n'
        '  "some-new-key": {\n    "é": [\n      1.5\n    ]\n  },\n  "ip-masq": true,\n  "mtu": 1450\n}\n'
    )


def test_twice_is_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path, FOREIGN)
    before = path.stat()
    capsys.readouterr()
    run(tmp_path)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert capsys.readouterr().out == f"{path} is up to date\n"


def test_a_file_that_says_it_all_is_left_alone(tmp_path: Path) -> None:
    text = json.dumps(VALUES, indent=None)
    assert run(tmp_path, text).read_text() == text


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, FOREIGN, dry_run=True).read_text() == FOREIGN
    said = capsys.readouterr()
    assert 'bip: "172.20.0.1/16" -> "10.1.74.1/24"' in said.out
    assert "nothing was written" in said.err


def test_mode_stays_and_a_new_file_is_for_everybody_to_read(tmp_path: Path) -> None:
    assert stat.S_IMODE(run(tmp_path).stat().st_mode) == 0o644
    (tmp_path / "daemon.json").write_text(FOREIGN)
    (tmp_path / "daemon.json").chmod(0o600)
    assert stat.S_IMODE(run(tmp_path).stat().st_mode) == 0o600


def test_masquerading_may_be_left_out(tmp_path: Path) -> None:
    assert json.loads(run(tmp_path, '{"ip-masq": false}', with_ip_masq=False).read_text()) == {**VALUES, "ip-masq": False}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{bip", "it is no JSON (line 1, column 2: expected a name in double quotes): dockerd would not start"),
        ("[1]", "expected a JSON object"),
        ('{"BIP": "10.1.1.1/24"}', "'BIP': expected bip, in small letters"),
        ('{"mtu": 1450, "debug": "yes"}', 'debug: "yes", expected true or false'),
        ('{"hosts": "fd://"}', 'hosts: "fd://", expected a list of strings'),
        ('{"log-opts": []}', "log-opts: [], expected an object"),
        ('{"max-concurrent-downloads": true}', "max-concurrent-downloads: true, expected a whole number"),
        ('{"bridge": "br0"}', 'bridge "br0" and bip exclude each other'),
        ('{"fixed-cidr": "172.20.1.0/24"}', "fixed-cidr '172.20.1.0/24' is not in 10.1.74.0/24, which bip will be"),
        ('{"default-gateway": 7}', "default-gateway: 7, expected a string"),
        ('{"default-gateway": "10.1.75.1"}', "default-gateway '10.1.75.1' is not in 10.1.74.0/24"),
    ],
)
def test_what_dockerd_would_refuse_is_refused_and_stays(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FlannelpyError) as caught:
        run(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'daemon.json'}: {said}"), str(caught.value)
    assert str(caught.value).endswith("nothing was written")
    assert (tmp_path / "daemon.json").read_text() == text


def test_ours_in_another_type_is_what_gets_mended(tmp_path: Path) -> None:
    assert json.loads(run(tmp_path, '{"mtu": "1450", "ip-masq": 1}').read_text()) == VALUES


def test_what_is_no_file_is_no_matter_of_ours(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").symlink_to("elsewhere.json")
    with pytest.raises(FlannelpyError, match=r"daemon\.json is a symbolic link; expected a file"):
        run(tmp_path)
    (tmp_path / "daemon.json").unlink()
    (tmp_path / "daemon.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FlannelpyError, match="byte 7 is not UTF-8"):
        run(tmp_path)


def test_no_subnet_no_change(tmp_path: Path) -> None:
    with pytest.raises(FlannelpyError, match="no FLANNEL_SUBNET to be had"):
        run(tmp_path, FOREIGN, env="")
    assert (tmp_path / "daemon.json").read_text() == FOREIGN


# ------------------------------------------------------------------------------------------------------- flags of the unit


def unit(root: Path, name: str, text: str) -> None:
    path = root / "etc/systemd/system" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_key_that_a_flag_says_too_is_refused(tmp_path: Path) -> None:
    started = "ExecStart=/usr/bin/dockerd -H fd:// $DOCKER_OPTS"
    unit(tmp_path, "docker.service", f"[Service]\nEnvironmentFile=-/run/opts.env\n{started}\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/opts.env").write_text('DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1450"\n')
    with pytest.raises(FlannelpyError, match="bip is given to Docker by a flag, too"):
        run(tmp_path, "{}")
    (tmp_path / "run/opts.env").unlink()
    with pytest.raises(FlannelpyError, match="hosts is given to Docker by a flag, too"):
        run(tmp_path, FOREIGN)
    assert json.loads(run(tmp_path, '{"debug": true}').read_text()) == {"debug": True, **VALUES}


def test_the_last_drop_in_decides(tmp_path: Path) -> None:
    unit(tmp_path, "docker.service", "[Service]\nExecStart=/usr/bin/dockerd --bip 10.9.9.1/24\n")
    assert command_line(tmp_path) == ["--bip", "10.9.9.1/24"]
    more = 'Environment="A=--mtu=1 --icc" B=2\nExecStart=\nExecStart=dockerd \\\n $A ${B}\n'
    unit(tmp_path, "docker.service.d/a.conf", f"[Service]\n{more}")
    assert command_line(tmp_path) == ["--mtu=1", "--icc", "2"]
    unit(tmp_path, "docker.service.d/b.conf", "[Service]\n# ExecStart=no\nExecStart='unbalanced\n")
    assert command_line(tmp_path) is None
    assert command_line(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("lines", "mtu"),
    [
        ("Environment=MTU=1", "1"),
        ("Environment=MTU=1 MTU=2", "2"),
        ("Environment=MTU=1\nEnvironment=MTU=2", "2"),
        ("Environment=MTU=1\nEnvironment=", ""),
        ("Environment=MTU=1\nEnvironment=\nEnvironment=MTU=3", "3"),
        ("EnvironmentFile=/etc/one\nEnvironment=MTU=1", "one"),
        ("Environment=MTU=1\nEnvironmentFile=/etc/one", "one"),
        ("EnvironmentFile=/etc/two\nEnvironmentFile=-/etc/one", "one"),
        ("EnvironmentFile=/etc/one\nEnvironmentFile=-/etc/two\nEnvironment=MTU=1", "two"),
        ("EnvironmentFile=/etc/one\nEnvironmentFile=", ""),
        ("EnvironmentFile=/etc/one\nEnvironmentFile=\nEnvironment=MTU=1", "1"),
        ("Environment=MTU=1\nEnvironmentFile=-/etc/none", "1"),
        ("EnvironmentFile=/etc/?[nw]*", "two"),
        ("EnvironmentFile=-\nEnvironment=MTU=1", "1"),
        ("Environment=MTU=1\nUnsetEnvironment=MTU", ""),
        ("UnsetEnvironment=MTU=one\nEnvironmentFile=/etc/one", ""),
        ("UnsetEnvironment=MTU=two\nEnvironmentFile=/etc/one", "one"),
        ("UnsetEnvironment=MTU\nUnsetEnvironment=\nEnvironment=MTU=1", "1"),
    ],
)
@pytest.mark.parametrize("drop_in", [False, True])
def test_variables_count_as_systemd_counts_them(tmp_path: Path, lines: str, mtu: str, drop_in: bool) -> None:
    """systemd.exec(5): files win over Environment=, the later over the earlier of each, an empty one forgets those before."""
    (tmp_path / "etc").mkdir()
    for name in ("one", "two"):
        (tmp_path / "etc" / name).write_text(f"MTU={name}\n")
    first, _, rest = lines.partition("\n") if drop_in else (lines, "", "")
    unit(tmp_path, "docker.service", f"[Service]\n{first}\nExecStart=/usr/bin/dockerd --mtu=${{MTU}}\n")
    unit(tmp_path, "docker.service.d/more.conf", f"[Service]\n{rest}\n")
    assert command_line(tmp_path) == [f"--mtu={mtu}"]


def test_a_unit_without_flags_is_a_unit(tmp_path: Path) -> None:
    unit(tmp_path, "docker.service", "[Service]\nExecStart=/usr/bin/dockerd $NOBODY\n")
    assert command_line(tmp_path) == []


def test_a_variable_is_split_at_blanks_outside_of_quotes(tmp_path: Path) -> None:
    unit(tmp_path, "docker.service", "[Service]\nEnvironmentFile=/etc/one\nExecStart=/usr/bin/dockerd $OPTS\n")
    (tmp_path / "etc/one").write_text("OPTS=--label 'a=b --mtu=7' --icc\n")
    assert command_line(tmp_path) == ["--label", "a=b --mtu=7", "--icc"]


def test_flags_by_their_names_in_the_file() -> None:
    words = ["-H", "fd://", "--label=a", "--insecure-registry", "x", "-D", "--containerd=/run/c.sock", "word"]
    assert flags_of(words) == {"hosts", "labels", "insecure-registries", "debug", "containerd"}


def test_tabs_stay_tabs() -> None:
    assert merge('{\n\t"debug": true\n}\n', VALUES).text.splitlines()[1:3] == ['\t"debug": true,', '\t"bip": "10.1.74.1/24",']
