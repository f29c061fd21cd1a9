"""Can what pyproject.toml asks for be installed today, and does it meet current protobuf?"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Version by package, as pip would install it into an empty environment now."""
    report = tmp_path_factory.mktemp("pip") / "report.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        f"--report={report}",
        str(ROOT),
    ]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if asked.returncode and "Temporary failure in name resolution" in asked.stderr:
        pytest.skip("the package registry cannot be reached from here")
    assert asked.returncode == 0, asked.stderr
    found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in found}


def test_the_ranges_resolve_on_todays_registry(resolved: dict[str, str]) -> None:
    for requirement in PROJECT["dependencies"]:
        name = requirement.partition("=")[0].rstrip("<>!~").lower()
        assert name in resolved, f"{requirement}: not in {sorted(resolved)}"


def pins(name: str) -> dict[str, list[str]]:
    """Versions by package, each with its hashes, as `make pins` writes them into packaging/."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"^ *#.*\n", "", (ROOT / "packaging" / name).read_text(), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text):
        pinned, *hashes = entry.replace("\\\n", " ").split(" --hash=sha256:")
        requirement = Requirement(pinned)
        (exact,) = requirement.specifier
        assert exact.operator == "==", entry
        assert hashes, entry
        assert all(re.fullmatch(r"[0-9a-f]{64}\s*", text) for text in hashes), entry
        found.setdefault(requirement.name, []).append(exact.version)
    return found


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("requirements.txt", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["ipsec"]]),
        ("requirements-kube.txt", PROJECT["optional-dependencies"]["kube"]),
    ],
)
def test_a_release_installs_what_is_pinned_with_hashes_and_fits_the_ranges(name: str, texts: list[str]) -> None:
    asked = {Requirement(text).name: Requirement(text) for text in texts}
    pinned = pins(name)
    assert set(asked) <= set(pinned)
    for package, requirement in asked.items():
        assert all(version in requirement.specifier for version in pinned[package]), package


def test_nothing_is_pinned_in_two_files() -> None:
    """They are installed into one directory."""
    assert set(pins("requirements.txt")) & set(pins("requirements-kube.txt")) == set()


def test_they_resolve_to_a_protobuf_that_etcd3_alone_could_not_load(resolved: dict[str, str]) -> None:
    """etcd3 0.12 fails on protobuf 4 and later; our loader is what makes the two meet."""
    assert int(resolved["protobuf"].partition(".")[0]) >= 4
    assert resolved["etcd3"] == "0.12.0"


def test_etcd3_messages_work_on_the_protobuf_that_is_installed() -> None:
    from flannelpy.registry.etcd.loader import load

    rpc = load()
    put = rpc.PutRequest(key=b"k", value=b"v", lease=7)
    assert rpc.PutRequest.FromString(put.SerializeToString()) == put
    assert int(importlib.metadata.version("protobuf").partition(".")[0]) >= 4
