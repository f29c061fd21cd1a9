"""The systemd units: understood by systemd without a murmur, and no more exposed than said."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flannelpy.host.files import AGENT
from flannelpy.options import ALL, spell_out

PACKAGING = Path(__file__).parents[2] / "packaging" / "systemd"
MOST_EXPOSURE = 20
"""Tenths, as systemd-analyze's --threshold takes them."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture(params=["flannelpy.service", "flannelpy-cni.service", "flannelpy-xtables.service"])
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy whose program exists on any machine: verify looks for it."""
    copy = tmp_path / request.param
    copy.write_text((PACKAGING / request.param).read_text().replace("/usr/bin/flannelpy", "/bin/true"))
    shutil.copyfile(PACKAGING / "flannelpy-xtables.path", tmp_path / "flannelpy-xtables.path")
    return copy


@needs_systemd
def test_systemd_understands_every_line(unit: Path) -> None:
    # It exits 0 on unknown keys: what counts is that it has nothing to say.
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@needs_systemd
def test_a_line_that_systemd_does_not_know_would_be_noticed(unit: Path) -> None:
    unit.write_text(unit.read_text() + "NoSuchKey=1\n")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert "NoSuchKey" in verified.stderr


@needs_systemd
def test_systemd_understands_the_drop_in_for_docker(tmp_path: Path) -> None:
    """What it does to a Docker: tests/lab/test_docker.py."""
    text = (PACKAGING / "docker-flannelpy.conf").read_text()
    for program in ("/usr/bin/flannelpy", "dockerd"):
        text = re.sub(rf"^(Exec\w+=.*?){program} ", r"\1/bin/true ", text, flags=re.MULTILINE)
    (tmp_path / "docker.service").write_text("[Service]\nType=notify\nExecStart=/bin/false\n")
    (tmp_path / "docker.service.d").mkdir()
    (tmp_path / "docker.service.d" / "flannelpy.conf").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", tmp_path / "docker.service"]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


@needs_systemd
def test_exposure_stays_low(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(unit)]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"Overall exposure level.*: ([\d.]+)", rated.stdout)
    assert found is not None, rated.stderr
    print(f"exposure {found[1]}, at most {MOST_EXPOSURE / 10}")
    assert rated.returncode == 0, f"exposure {found[1]}"


@pytest.mark.parametrize(
    "needed",
    [
        "Type=notify",
        "NotifyAccess=main",
        "Before=docker.service",
        "User=flannelpy",
        "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "WatchdogSec=30",
        "TimeoutStartSec=infinity",
        "RuntimeDirectoryPreserve=yes",
        "DeviceAllow=/dev/net/tun rw",
        "FileDescriptorStoreMax=256",
    ],
)
def test_what_the_agent_relies_on(needed: str) -> None:
    assert needed in (PACKAGING / "flannelpy.service").read_text().splitlines()


@pytest.mark.parametrize(
    "forbidden", ["ProtectKernelTunables=yes", "PrivateDevices=yes", "PrivateNetwork=yes", "Requires=docker.service"]
)
def test_what_would_break_it(forbidden: str) -> None:
    assert forbidden not in (PACKAGING / "flannelpy.service").read_text()


@needs_systemd
def test_the_user_of_the_unit_is_made_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", PACKAGING / "flannelpy.sysusers"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    (user,) = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    assert (user[0], user[5], user[6]) == (AGENT, "/var/lib/flannelpy", "/usr/sbin/nologin")
    assert f"User={AGENT}" in (PACKAGING / "flannelpy.service").read_text().splitlines()


def test_runtimes_come_after_it_has_been_looked_whether_the_agent_is_ready() -> None:
    lines = (PACKAGING / "flannelpy-cni.service").read_text().splitlines()
    assert "Before=flannelpy.service containerd.service crio.service" in lines
    assert {"Type=notify", "CapabilityBoundingSet=CAP_DAC_READ_SEARCH"} <= set(lines)


@pytest.fixture(scope="module")
def maintainer() -> Callable[[Mapping[str, str]], str]:
    spec = importlib.util.spec_from_file_location("maintainer", PACKAGING.parent / "debian/maintainer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Mapping[str, str]], str] = module.maintainer
    return found


@pytest.mark.parametrize(
    ("name", "address", "expected"),
    [
        (None, None, "unofficial build <nobody@flannelpy.invalid>"),
        ("", " ", "unofficial build <nobody@flannelpy.invalid>"),
        ("Ada L", None, "Ada L <nobody@flannelpy.invalid>"),
        ("Ada L", "ada@example.org", "Ada L <ada@example.org>"),
        (None, "ada@example.org", "unofficial build <ada@example.org>"),
        (None, "Ada L <ada@example.org>", "Ada L <ada@example.org>"),
        ("Grace H", "Ada L <ada@example.org>", "Grace H <ada@example.org>"),
        (None, "<ada@example.org>", "unofficial build <ada@example.org>"),
        (None, "Ada, L.<ada@example.org>", "Ada, L. <ada@example.org>"),
        ("Ada\nDepends: evil", "ada@example.org", "Ada Depends: evil <ada@example.org>"),
    ],
)
def test_whoever_builds_the_package_is_its_maintainer(
    maintainer: Callable[[Mapping[str, str]], str], name: str | None, address: str | None, expected: str
) -> None:
    given = {"DEBFULLNAME": name, "DEBEMAIL": address}
    assert maintainer({key: value for key, value in given.items() if value is not None}) == expected


@pytest.mark.parametrize("key", ["DEBEMAIL", "DEBFULLNAME"])
@pytest.mark.parametrize("value", ["Ada <ada@example.org", "ada@example.org>", "Ada <Grace <grace@example.org>>", "a@b <c@d> e"])
def test_a_maintainer_that_is_none_ends_the_build_with_a_line(
    maintainer: Callable[[Mapping[str, str]], str], key: str, value: str
) -> None:
    with pytest.raises(SystemExit, match=rf"^{key} '{re.escape(value)}': expected"):
        maintainer({key: value})


@pytest.mark.parametrize("address", ["Ada L", "Ada L <>x", "Ada <ada at example.org>"])
def test_a_name_is_no_address(maintainer: Callable[[Mapping[str, str]], str], address: str) -> None:
    with pytest.raises(SystemExit, match="expected an address, or Name <address>"):
        maintainer({"DEBEMAIL": address})


def test_docker_does_not_start_an_agent_that_was_disabled() -> None:
    assert not re.search(r"^(Wants|Requires|BindsTo|Upholds)=", (PACKAGING / "docker-flannelpy.conf").read_text(), re.MULTILINE)


def test_the_defaults_are_options_and_variables_that_exist() -> None:
    assignments = re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", (PACKAGING / "flannelpy.default").read_text(), re.MULTILINE)
    variables = {variable for option in ALL for variable in option.variables}
    assert {name for name, _ in assignments} - variables == {"FLANNELPY_OPTIONS"}
    options = dict(assignments)["FLANNELPY_OPTIONS"].strip('"')
    assert spell_out(shlex.split(options)) == ["--iface=eth1"]
