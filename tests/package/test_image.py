"""The image that ``make test-image`` has built: is all in it that it loads, and is an agent in Docker one like any other?

c1 - pods - h1 ==== vxlan ==== h2 - pods - c2, and on each host a dockerd that runs the agent as compose.yaml says. Its docker0
would be a subnet of its own; it has none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from netns_lab.docker import Docker, missing
from netns_lab.lab import Lab
from netns_lab.topology import Topology
from tests.lab.agent_support import lab_name  # noqa: F401

WHERE = "FLANNELPY_IMAGE"
MOST_MB = 60
PATIENCE_S = 60.0
SERVICE: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "packaging/image/compose.yaml").read_text())["services"][
    "flannelpy"
]


@pytest.fixture(scope="module")
def image() -> Path:
    if WHERE not in os.environ:
        pytest.skip("make test-image builds the image and runs these")
    return Path(os.environ[WHERE])


@pytest.fixture(scope="module")
def root(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers, one over the other."""
    into = tmp_path_factory.mktemp("image")
    with tarfile.open(image) as archive:
        archive.extractall(into / "layout", filter="data")
    (docker,) = json.loads((into / "layout/manifest.json").read_text())
    (into / "root").mkdir()
    for name in docker["Layers"]:
        subprocess.run(["tar", "-xzf", into / "layout" / name, "-C", into / "root"], check=True)
    return into / "root"


def test_it_is_small(image: Path) -> None:
    size_mb = image.stat().st_size / 1e6
    print(f"{size_mb:.1f} MB, at most {MOST_MB}")
    assert size_mb < MOST_MB


def test_the_program_runs_in_it(root: Path) -> None:
    said = subprocess.run(
        ["chroot", root, "/usr/bin/flannelpy", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert re.fullmatch(r"flannelpy \d+\.\d+\.\d+\n", said.stdout)


def test_what_is_imported_late_can_be(root: Path) -> None:
    """pyroute2 at the first change of a device; it asks for sqlite3, which nothing of ours uses."""
    program = "import sys; sys.path.insert(0, '/usr/lib/flannelpy'); import pyroute2, pyroute2.netlink.rtnl.ifinfmsg"
    said = subprocess.run(
        ["chroot", root, "/usr/bin/python3", "-Ic", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf here")
def test_every_library_that_something_asks_for_is_there(root: Path) -> None:
    there = {path.name for path in root.rglob("*.so*")}
    absent = set()
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.read_bytes()[:4] != b"\x7fELF":
            continue
        told = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        absent |= {
            (path.relative_to(root).as_posix(), name) for name in re.findall(r"\(NEEDED\).*\[(.+)\]", told) if name not in there
        }
    assert "libc.so.6" in there
    assert absent == set()


def test_there_is_no_shell_and_no_package_manager(root: Path) -> None:
    names = {path.name for folder in ("usr/bin", "usr/sbin") for path in (root / folder).iterdir()}
    assert "flannelpy" in names
    assert names & {"sh", "bash", "dash", "busybox", "apt-get", "dpkg", "perl"} == set()


# ------------------------------------------------------------------------------------------------- the agent, in Docker


@pytest.fixture
async def lab(lab_name: str, image: Path) -> AsyncIterator[Lab]:  # noqa: F811
    if missing():
        pytest.skip(missing())
    async with Lab.up(Topology(hosts=2, bridge="pods"), name=lab_name) as made:
        yield made


def words(docker: Docker) -> list[str]:
    """What ``docker compose`` makes of compose.yaml, as words for ``docker run``; files are the lab's, options the host's."""
    known = {"image", "container_name", "command", "restart", "network_mode", "cap_drop", "cap_add", "security_opt", "read_only"}
    assert set(SERVICE) == known | {"tmpfs", "devices", "volumes"}
    found = ["--name=agent", f"--network={SERVICE['network_mode']}", "--read-only"]
    for option, key in (("cap-drop", "cap_drop"), ("cap-add", "cap_add"), ("security-opt", "security_opt"), ("tmpfs", "tmpfs")):
        found += [f"--{option}={each}" for each in SERVICE[key]]
    found += [f"--device={each}" for each in SERVICE["devices"]]
    for volume in SERVICE["volumes"]:
        source, rest = volume.split(":", 1)
        if not rest.endswith(":ro"):
            source = (
                str(docker.directory / "volumes" / Path(source).name)
                if source.startswith("/run")
                else str(docker.directory / "state")
            )
            Path(source).mkdir(parents=True, exist_ok=True)
        found.append(f"--volume={source}:{rest}")
    return [*found, SERVICE["image"], *docker.host.agent_options()]


async def start(docker: Docker, image: Path) -> None:
    """A Docker that touches no network of its host, and the agent in it."""
    await docker.start("--bridge=none", "--iptables=false")
    assert "flannelpy:latest" in await docker.host.exec(*docker.client("load", "-i", str(image)), timeout_s=120)
    await docker.do("run", "-d", *words(docker))


async def leased(lab: Lab, docker: Docker) -> None:
    """Wait for the subnet file, and give the host's containers their addresses."""
    file = docker.directory / "volumes/flannel/subnet.env"
    await lab.until(file.exists, timeout_s=PATIENCE_S, what=f"{file} is there")
    shutil.copy(file, docker.host.subnet_file)


async def ready(docker: Docker) -> bool:
    outcome = await docker.host.attempt(*docker.client("exec", "agent", "flannelpy", "status"))
    return outcome.code == 0


async def test_containers_meet_by_agents_that_docker_runs(lab: Lab, image: Path) -> None:
    dockers = [lab.docker(1), lab.docker(2)]
    for docker in dockers:
        await start(docker, image)
    for docker in dockers:
        await leased(lab, docker)
        await lab.until(lambda docker=docker: ready(docker), timeout_s=PATIENCE_S, every_s=0.5, what="status says that all is well")
    await lab.connect_containers()
    await lab.until(lambda: pinged(lab), timeout_s=PATIENCE_S, every_s=0.2, what="a ping comes through")

    one = dockers[0]
    before = one.host.subnet_env()["FLANNEL_SUBNET"]
    await one.do("stop", "agent")
    assert await one.do("inspect", "--format={{.State.ExitCode}}", "agent") == "0"
    assert await pinged(lab), "packets flow on while the agent is away"
    await one.do("start", "agent")
    await lab.until(lambda: ready(one), timeout_s=PATIENCE_S, every_s=0.5, what="status says that all is well again")
    await leased(lab, one)
    assert one.host.subnet_env()["FLANNEL_SUBNET"] == before
    for docker in dockers:
        outcome = await docker.host.attempt(*docker.client("logs", "agent"))
        log = outcome.stdout + outcome.stderr
        assert "Traceback" not in log, log
        assert "Read-only file system" not in log, log


async def pinged(lab: Lab) -> bool:
    source, target = (container.name for container in lab.containers)
    return (await lab.ping(source, target)).ok
