"""packaging/image: is what it writes an image by the specification's letter and by Docker's, and the same each time?"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from flannelpy.cli import flannelpy
from flannelpy.kernel.forward import XTABLES_LOCK
from flannelpy.options import ALL, spell_out

FOLDER = Path(__file__).parents[2] / "packaging/image"
EPOCH = 1_700_000_000


def loaded(name: str) -> ModuleType:
    """A program's module, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"image_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


oci, root = loaded("oci"), loaded("root")


def tree(into: Path, names: tuple[str, ...] = ("b", "a")) -> Path:
    """A small root, made in this order."""
    for name in names:
        (into / "usr" / name).mkdir(parents=True)
        (into / "usr" / name / "file").write_text(name)
    (into / "usr/a/file").chmod(0o755)
    (into / "bin").symlink_to("usr/a")
    return into


def made(into: Path, source: Path) -> Path:
    layers = (oci.layer(source, "one", EPOCH), oci.layer(source / "usr", "two", EPOCH))
    config = {"Entrypoint": ["/bin/file"], "Labels": {"org.opencontainers.image.title": "small"}}
    oci.write(oci.Image(("small:latest", "small:1"), "amd64", EPOCH, config, layers), into / "small.oci.tar")
    return into / "small.oci.tar"


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return {each.name: content.read() for each in opened if (content := opened.extractfile(each)) is not None}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return members(made(tmp_path, tree(tmp_path / "tree")))


def blob(files: dict[str, bytes], described: dict[str, Any]) -> bytes:
    """What a descriptor names, which is as long as it says."""
    content = files["blobs/sha256/" + described["digest"].removeprefix("sha256:")]
    assert described["size"] == len(content)
    return content


def test_each_blob_is_what_its_name_says(files: dict[str, bytes]) -> None:
    blobs = {name: content for name, content in files.items() if name.startswith("blobs/")}
    assert len(blobs) == 4  # two layers, config, manifest
    assert {name: f"blobs/sha256/{hashlib.sha256(content).hexdigest()}" for name, content in blobs.items()} == {
        name: name for name in blobs
    }


def test_from_the_index_everything_is_found(files: dict[str, bytes]) -> None:
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    assert [each["annotations"]["io.containerd.image.name"] for each in index["manifests"]] == [
        "docker.io/library/small:latest",
        "docker.io/library/small:1",
    ]
    for described in index["manifests"]:
        manifest = json.loads(blob(files, described))
        config = json.loads(blob(files, manifest["config"]))
        plain = [gzip.decompress(blob(files, each)) for each in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in plain]
        assert [each["created_by"] for each in config["history"]] == ["one", "two"]
        assert (config["architecture"], config["os"], config["created"]) == ("amd64", "linux", "2023-11-14T22:13:20Z")
        assert manifest["annotations"] == config["config"]["Labels"] == {"org.opencontainers.image.title": "small"}


def test_docker_finds_the_same(files: dict[str, bytes]) -> None:
    (docker,) = json.loads(files["manifest.json"])
    manifest = json.loads(blob(files, json.loads(files["index.json"])["manifests"][0]))
    assert docker["RepoTags"] == ["small:latest", "small:1"]
    assert docker["Config"].endswith(manifest["config"]["digest"].removeprefix("sha256:"))
    assert [name in files for name in docker["Layers"]] == [True, True]


def test_a_layer_is_the_directory_and_roots(files: dict[str, bytes]) -> None:
    manifest = json.loads(blob(files, json.loads(files["index.json"])["manifests"][0]))
    with tarfile.open(fileobj=io.BytesIO(blob(files, manifest["layers"][0]))) as archive:
        entries = archive.getmembers()
    assert [each.name for each in entries] == ["bin", "usr", "usr/a", "usr/a/file", "usr/b", "usr/b/file"]
    assert {(each.uid, each.gid, each.uname, each.mtime) for each in entries} == {(0, 0, "", EPOCH)}
    assert (entries[0].issym(), entries[0].linkname) == (True, "usr/a")
    assert (entries[3].mode, entries[5].mode & 0o111) == (0o755, 0)


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = made(tmp_path / "one", tree(tmp_path / "one/tree"))
    two = made(tmp_path / "two", tree(tmp_path / "two/tree", ("a", "b")))
    assert one.read_bytes() == two.read_bytes()
    (tmp_path / "two/tree/usr/a/file").write_text("other")
    assert one.read_bytes() != made(tmp_path / "two", tmp_path / "two/tree").read_bytes()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe: neither file"):
        oci.layer(tmp_path, "one", EPOCH)


def test_where_writing_fails_nothing_is_left(tmp_path: Path) -> None:
    source = tree(tmp_path / "tree")
    (tmp_path / "small.oci.tar").mkdir()
    with pytest.raises(IsADirectoryError):
        made(tmp_path, source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.oci.tar", "tree"]


def test_bytecode_is_the_same_each_time_and_names_no_directory_of_the_build(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        source = tmp_path / name / "usr/lib/flannelpy/module.py"
        source.parent.mkdir(parents=True)
        source.write_text('FOUR = frozenset({"a", "b", "c", "d"})\ndef same(one):\n    return one in {"x", "y", "z"}\n')
        root.compile_all(tmp_path / name)
        (compiled,) = source.parent.glob("__pycache__/*.pyc")
        found.append(compiled.read_bytes())
    assert found[0] == found[1]
    assert (b"/usr/lib/flannelpy/module.py" in found[0], os.fsencode(tmp_path) in found[0]) == (True, False)


def test_what_nobody_uses_goes_and_licences_stay(tmp_path: Path) -> None:
    for name in ("usr/share/man/man1/a.1", "usr/share/doc/a/copyright", "usr/share/doc/a/changelog.gz", "usr/lib/python3.11/os.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root.prune(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "usr/lib/python3.11/os.py",
        "usr/share/doc/a/copyright",
    ]


# ------------------------------------------------------------------------------------------------------ who runs it

SERVICE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["flannelpy"]
UNIT = (FOLDER / "flannelpy-podman.service").read_text()
WORDS = shlex.split(re.findall(r"^ExecStart=(.+)$", UNIT.replace("\\\n", " "), re.MULTILINE)[0])


def test_everyone_starts_the_image_that_is_made() -> None:
    manifests = (FOLDER.parent / "kubernetes/flannelpy.yaml").read_text()
    kustomized = yaml.safe_load((FOLDER.parent / "kubernetes/kustomization.yaml").read_text())["images"]
    names = {f"{name}:latest" for name in re.findall(r"^ +image: (.+)$", manifests, re.MULTILINE)}
    names |= {f"{each['name']}:{each['newTag']}" for each in kustomized}
    assert names == {SERVICE["image"]} == {WORDS[-2]} == {"flannelpy:latest"}
    assert re.search(r'^NAME = "flannelpy"$', (FOLDER / "build.py").read_text(), re.MULTILINE)


def test_podman_and_docker_let_it_do_the_same() -> None:
    def given(option: str) -> list[str]:
        return [word.partition("=")[2] for word in WORDS if word.startswith(f"--{option}=")]

    assert (given("cap-drop"), given("cap-add")) == (SERVICE["cap_drop"], SERVICE["cap_add"]) == (["ALL"], ["NET_ADMIN", "NET_RAW"])
    # Podman gives it a /run of its own to write, where it would take a lock that nobody else sees. Docker gives it none, and would
    # make a directory of a lock that is not there.
    lock = f"{XTABLES_LOCK}:{XTABLES_LOCK}"
    assert lock in given("volume")
    assert f": >>{XTABLES_LOCK}" in re.findall(r"^ExecStartPre=(.+)$", UNIT, re.MULTILINE)[0]
    volumes = [volume for volume in given("volume") if volume != lock]
    assert (volumes, given("device"), given("tmpfs")) == (SERVICE["volumes"], SERVICE["devices"], SERVICE["tmpfs"])
    assert given("network") == [SERVICE["network_mode"]] == ["host"]
    assert "--read-only" in WORDS
    assert SERVICE["read_only"] is True


def test_podman_hands_on_every_variable_that_is_an_option() -> None:
    """They are read from the file that the package's service reads; those of flanneld count there, too."""
    handed = [word.removeprefix("--env=") for word in WORDS if word.startswith("--env=")]
    for option in ALL:
        assert all(any(fnmatch(variable, pattern) for pattern in handed) for variable in option.variables), option.name


def test_what_compose_tells_it_are_options() -> None:
    given = flannelpy.make_context("flannelpy", spell_out(SERVICE["command"])).params
    assert (given["iface"], given["etcd_endpoints"]) == (("eth1",), ("http://192.168.50.5:2379",))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_every_line_of_podmans_unit(tmp_path: Path) -> None:
    copy = tmp_path / "flannelpy-podman.service"
    copy.write_text(UNIT.replace("/usr/bin/podman", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", copy]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")


PODMAN = Path(sys.prefix) / "cni/usr/bin/podman"


@pytest.mark.skipif(not PODMAN.exists(), reason="no podman: make setup unpacks it where there is apt-get")
def test_podman_knows_every_option() -> None:
    libraries = ":".join(map(str, (PODMAN.parents[1] / "lib").glob("*-linux-gnu")))
    command = [PODMAN, "run", "--help"]
    environment = {"LD_LIBRARY_PATH": libraries, "HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert told.returncode == 0, told.stderr
    options = {word.partition("=")[0] for word in WORDS if word.startswith("--")}
    assert "--sdnotify" in options
    assert options <= set(re.findall(r"--[a-z-]+", told.stdout))
