"""``flannelpy setup`` and ``cleanup --all``: what is written, what stays, and that a second one goes on where the first stopped."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from netaddr import IPAddress

from flannelpy.commands import setup, takeback
from flannelpy.commands.cleanup import Wish
from flannelpy.commands.setup import DROP_IN, UNIT, Host
from flannelpy.commands.takeback import file_steps as taken_back
from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.core.uplink import DefaultRoute, HostFacts, Interface, InterfaceAddress
from flannelpy.explain.doctor import FAILED, OK, WARNING, Finding
from flannelpy.host import defaults, service
from flannelpy.host.shipped import DOCKER_DROP_IN, shipped

SAMPLE = (Path(__file__).parents[2] / "packaging/systemd/flannelpy.default").read_text()
OFF = SAMPLE.replace("\nFLANNELPY_OPTIONS", "\n#FLANNELPY_OPTIONS")
OPTIONS = {"etcd-endpoints": ["http://192.0.2.9:2379"], "ip-masq": ["true"]}


def interface(name: str, index: int, address: str) -> Interface:
    return Interface(name, index, 1500, True, (InterfaceAddress(IPAddress(address), 24),))


FACTS = HostFacts((interface("enp1s0", 2, "192.0.2.1"), interface("docker0", 3, "172.17.0.1")), (DefaultRoute(4, 2),))
VAGRANT = HostFacts((interface("eth0", 2, "10.0.2.15"), interface("eth1", 3, "192.0.2.1")), (DefaultRoute(4, 2),))


class Systemctl:
    """What systemd would say, and what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.enabled, self.state, self.pid = "disabled", "inactive", os.getpid()

    def __call__(self, *words: str) -> tuple[int, str]:
        if words[0] == "is-enabled":
            return 0, self.enabled
        if words[0] == "is-active":
            return 0, self.state
        if words[0] == "show":
            return 0, str(self.pid) if "MainPID" in words[1] else "no"
        self.said.append(" ".join(words))
        if words[0] == "enable":
            self.enabled = "enabled"
        if words[-2:] in (("start", UNIT), ("restart", UNIT)):
            self.state = "active"
        return 0, ""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "etc/default").mkdir(parents=True)
    (tmp_path / "proc").symlink_to("/proc")
    return Host(tmp_path, Systemctl())


def with_docker(host: Host) -> Path:
    unit = host.root / "lib/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/bin/dockerd\n")
    return host.root / DROP_IN


def done(host: Host, options: dict[str, list[str]] | None = None) -> list[str]:
    """As setup does it: the steps, carried out."""
    files = list(setup.file_steps(host, OPTIONS if options is None else options))
    steps = [*files, *setup.service_steps(host, changed=any(step.options for step in files))]
    for step in steps:
        step.do()
    return [step.text.replace(f"{host.root}", "") for step in steps]


FIRST = [
    "write /etc/default/flannelpy (mode 0640)",
    "write /etc/systemd/system/docker.service.d/flannelpy.conf (mode 0644)",
    "systemctl daemon-reload",
    f"systemctl enable {UNIT}",
    f"systemctl start {UNIT}",
]


def test_what_is_written_is_listed_and_a_second_time_nothing_is(host: Host) -> None:
    drop_in = with_docker(host)
    assert done(host) == FIRST
    assert drop_in.read_text() == shipped(DOCKER_DROP_IN)
    assert host.defaults.stat().st_mode & 0o777 == 0o640
    assert host.defaults.read_text() == (
        f"{service.MARK}\nFLANNELPY_ETCD_ENDPOINTS=http://192.0.2.9:2379\nFLANNELPY_IP_MASQ=true\n"
    )
    os.utime(host.defaults, (1, 1))
    assert done(host) == []


@pytest.mark.parametrize("stopped_after", range(len(FIRST)))
def test_one_that_was_stopped_halfway_is_gone_on_with(host: Host, stopped_after: int) -> None:
    with_docker(host)
    files = list(setup.file_steps(host, OPTIONS))
    for step in [*files, *setup.service_steps(host, changed=True)][:stopped_after]:
        step.do()
    again = done(host)
    assert again == [text for text in FIRST[stopped_after:] if text != "systemctl daemon-reload" or stopped_after < 2]
    assert (host.systemctl("is-enabled")[1], host.active()) == ("enabled", "active")


def test_an_agent_that_is_older_than_its_options_is_started_anew(host: Host) -> None:
    done(host)
    future = time.time() + 60
    os.utime(host.defaults, (future, future))
    assert done(host) == [f"systemctl restart {UNIT}"]
    os.utime(host.defaults, (1, 1))
    assert done(host, {**OPTIONS, "iface": ["eth7"]}) == [FIRST[0], f"systemctl restart {UNIT}"]


@pytest.mark.parametrize("before", [SAMPLE, SAMPLE + "\n", "A=1\n", "# mine\n\nFLANNELPY_LOG_LEVEL=debug\n", OFF, OFF + OFF])
def test_what_stood_there_stands_there_again(host: Host, before: str) -> None:
    drop_in = with_docker(host)
    host.defaults.write_text(before)
    options = setup.chosen(OPTIONS, {}, before, FACTS)
    done(host, dict(options))  # type: ignore[arg-type]
    assert set(setup.chosen({}, {}, host.defaults.read_text(), FACTS)) == set(options)
    assert done(host, dict(setup.chosen({}, {}, host.defaults.read_text(), FACTS))) in ([], [f"systemctl restart {UNIT}"])  # type: ignore[arg-type]
    for step in taken_back(host):
        step.do()
    assert host.defaults.read_text() == before
    assert not drop_in.parent.exists()
    assert list(taken_back(host)) == []


def test_a_file_that_was_not_there_goes(host: Host) -> None:
    done(host)
    for step in taken_back(host):
        step.do()
    assert not host.defaults.exists()


def test_a_drop_in_that_somebody_has_changed_stays(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    drop_in = with_docker(host)
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\n# mine\n")
    assert FIRST[1] not in done(host)
    assert "is another than flannelpy's; it stays" in capsys.readouterr().out
    for step in taken_back(host):
        step.do()
    assert drop_in.read_text() == "[Service]\n# mine\n"


def test_where_daemon_json_says_it_already_there_is_no_drop_in(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    drop_in = with_docker(host)
    (host.root / "etc/docker").mkdir()
    (host.root / "etc/docker/daemon.json").write_text('{"bip": "172.20.0.1/16"}')
    assert FIRST[1] not in done(host)
    assert not drop_in.exists()
    assert "says bip, so that there is no drop-in: flannelpy docker-opts --daemon-json" in capsys.readouterr().out


def test_the_example_counts_where_there_is_such_an_interface() -> None:
    assert setup.chosen({}, {}, SAMPLE, FACTS) == {}
    assert setup.chosen({}, {}, SAMPLE, VAGRANT) == {"iface": ["eth1"]}
    assert setup.chosen({"iface": ["eth0"]}, {}, SAMPLE, VAGRANT) == {"iface": ["eth0"]}
    assert "\n#FLANNELPY_OPTIONS=" in service.with_block(SAMPLE, {}, example=False)
    assert '\nFLANNELPY_OPTIONS="--iface eth1"\n' in service.with_block(SAMPLE, {}, example=True)


def test_what_a_person_gives_now_wins_over_the_environment_and_that_over_the_file() -> None:
    text = service.with_block(
        "", {"FLANNELPY_IFACE": ["a"], "FLANNELPY_ETCD_PREFIX": ["/a"], "FLANNELPY_LOG_LEVEL": ["info"]}, example=True
    )
    environ = {"FLANNELPY_IFACE": "b", "FLANNELPY_ETCD_PREFIX": "/b", "FLANNELPY_OPTIONS": "--iface x"}
    assert setup.chosen({"iface": ["c"]}, environ, text, FACTS) == {"iface": ["c"], "etcd-prefix": ["/b"], "log-level": ["info"]}


def test_files_are_named_by_whole_paths(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is started in /; what stands in its file is from there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = {"etcd-cafile": ["ca.pem"], "state-dir": ["../state"], "etcd-prefix": ["net"], "kubeconfig-file": [""]}
    environ = {"FLANNELPY_SUBNET_FILE": "./subnet.env"}
    found = setup.chosen(given, environ, "FLANNELPY_RUN_DIR=run\n", FACTS)
    assert found == {
        "run-dir": ["run"],
        "subnet-file": [f"{tmp_path}/here/subnet.env"],
        "etcd-cafile": [f"{tmp_path}/here/ca.pem"],
        "state-dir": [f"{tmp_path}/state"],
        "etcd-prefix": ["net"],
        "kubeconfig-file": [""],
    }
    done(host, {"etcd-cafile": found["etcd-cafile"]})  # type: ignore[dict-item]
    assert f"FLANNELPY_ETCD_CAFILE={tmp_path}/here/ca.pem\n" in host.defaults.read_text()


def test_an_option_that_the_file_says_otherwise_by_hand_is_named(host: Host) -> None:
    host.defaults.write_text('FLANNELPY_OPTIONS="--iface eth2 --ip-masq"\n')
    with pytest.raises(UsageError, match=r"--iface eth2; expected the same, or no such option there; nothing was written"):
        done(host, {"iface": ["eth3"]})
    assert host.defaults.read_text() == 'FLANNELPY_OPTIONS="--iface eth2 --ip-masq"\n'


@pytest.mark.parametrize("value", ["a b", 'quo"te', "$HOME", "back\\slash", "plain", "http://[2001:db8::1]:2379"])
def test_a_value_is_read_back_as_it_was_meant(value: str) -> None:
    text = service.with_block("", {"FLANNELPY_ETCD_USERNAME": [value]}, example=True)
    assert setup.chosen({}, {}, text, FACTS) == {"etcd-username": [value]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a\nB=1"], "expected text on one line"),
        (["a", "b"], "holds one value, 2 were given"),
        ([""], "an empty variable is one that is not set"),
    ],
)
def test_what_a_variable_cannot_say_is_refused(values: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        service.with_block("", {"FLANNELPY_IFACE": values}, example=True)


def test_that_a_host_has_no_name_is_not_lost(host: Host) -> None:
    with pytest.raises(UsageError, match="FLANNELPY_HOSTNAME: an empty variable"):
        done(host, {**OPTIONS, "hostname": [""]})
    assert not host.defaults.exists()
    by_hand = 'FLANNELPY_OPTIONS="--hostname="\n'
    host.defaults.write_text(by_hand)
    done(host, dict(setup.chosen(OPTIONS, {}, by_hand, FACTS)))  # type: ignore[arg-type]
    assert setup.chosen({}, {}, host.defaults.read_text(), FACTS)["hostname"] == [""]


def test_candidates_are_cards_with_an_address() -> None:
    assert list(setup.candidates(FACTS)) == ["interface enp1s0: 192.0.2.1/24, MTU 1500, default route"]
    assert len(list(setup.candidates(VAGRANT))) == 2


def test_what_comes_after_the_agent_does_not_stop_it() -> None:
    etcd = Finding("etcd http://192.0.2.9:2379: connection", FAILED, "refused")
    assert setup.blocking([etcd, Finding("docker", FAILED, ""), Finding("uplink", OK, ""), Finding("port", WARNING, "")]) == [etcd]


def test_an_agent_that_fails_or_takes_too_long_is_said(host: Host, tmp_path: Path) -> None:
    assert isinstance(host.systemctl, Systemctl)
    host.systemctl.state = "failed"
    with pytest.raises(FlannelpyError, match=r"flannelpy\.service has failed: journalctl -u flannelpy\.service"):
        setup.wait(host, tmp_path / "run", 60)
    host.systemctl.state = "activating"
    with pytest.raises(FlannelpyError, match=r"not ready after 0 s: the agent starts; it goes on by itself"):
        setup.wait(host, tmp_path / "run", 0)


def test_a_systemctl_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(setup, "SYSTEMCTL_S", 0.1)
    with pytest.raises(FlannelpyError, match=rf"^systemctl disable --now {UNIT}: it has not ended within"):
        setup.demand(Host(), "disable", "--now", UNIT)


RULES = """-N DOCKER-USER
-A DOCKER-USER -s 10.1.0.0/16 -d 10.1.0.0/16 ! -i docker0 -m comment --comment flannelpy_docker -j ACCEPT
-A DOCKER-USER -s 198.51.100.0/24 -m comment --comment "flannelpy_docker or not" -j DROP
-A DOCKER-USER -j RETURN
"""


def test_the_drop_in_goes_with_the_rule_that_it_has_made(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_docker(host)
    done(host)
    (tmp_path / "rules").write_text(RULES)
    (tmp_path / "iptables").write_text(f'#!/bin/sh\n[ "$1" = -S ] && exec cat {tmp_path}/rules\necho "$@" >>{tmp_path}/said\n')
    (tmp_path / "iptables").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for step in taken_back(host):
        step.do()
    assert not (host.root / DROP_IN).exists()
    assert (tmp_path / "said").read_text() == f"-w -D {RULES.splitlines()[1].removeprefix('-A ')}\n"
    assert "docker0 keeps its address" in capsys.readouterr().out


def test_the_service_is_disabled_where_it_is_on(host: Host) -> None:
    assert isinstance(host.systemctl, Systemctl)
    (host.root / "etc/systemd/system").mkdir(parents=True)
    assert list(takeback.service_steps(host)) == []
    (host.root / "etc/systemd/system" / UNIT).write_text("[Service]\n")
    assert list(takeback.service_steps(host)) == []
    host.systemctl.state = "active"
    (step,) = takeback.service_steps(host)
    step.do()
    assert host.systemctl.said == [f"disable --now {UNIT}"]


@pytest.mark.parametrize("options", ['FLANNELPY_OPTIONS="--iface \'eth1"', "FLANNELPY_OPTIONS=--ip-masq false"])
def test_wrong_options_are_said_before_the_service_is_stopped(host: Host, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    assert isinstance(host.systemctl, Systemctl)
    (host.root / "etc/systemd/system").mkdir(parents=True)
    (host.root / "etc/systemd/system" / UNIT).write_text("[Service]\n")
    host.systemctl.state = "active"
    host.defaults.write_text(f"{options}\n")
    monkeypatch.setattr(takeback, "Host", lambda: host)
    monkeypatch.setattr(defaults, "DEFAULTS", host.defaults)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UsageError, match="FLANNELPY_OPTIONS"):
        takeback.take_back({}, Wish(yes=True))
    assert host.systemctl.said == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EPERM, errno.EIO])
def test_a_file_that_cannot_be_taken_away_is_one_line(host: Host, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """/etc is read-only, or the file immutable (chattr +i)."""
    done(host)

    def refused(*_given: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(takeback, "Host", lambda: host)
    monkeypatch.setattr(takeback.cleanup, "cleanup", lambda _given, _wish: 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(FlannelpyError, match=rf"^rm {host.defaults}: {os.strerror(number)}$"):
        takeback.take_back({}, Wish(yes=True))
