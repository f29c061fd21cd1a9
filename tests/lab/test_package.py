"""The Debian package on a bare Debian 12: what does installing, upgrading, disabling, removing and purging it do?

c1 - h1 (a bare Debian: systemd and what the package depends on) ==== h2 (an ordinary agent) - c2         etcd apart; no internet
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netns_lab.booted import Booted, missing
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import until
from tests.lab.package_support import DEB, DEBIAN, later_version
from tests.lab.test_systemd import all_well, main_pid, under_pings

UNIT = "flannelpy.service"
PLACE, UDP_PLACE = "/opt/flannelpy.deb", "/opt/flannelpy-udp.deb"
EXPECTED = re.compile(
    r"/var/(log|cache/ldconfig|lib/systemd|tmp|lib/dpkg/(lock|triggers|status))|/etc/(passwd|group|shadow|gshadow)-$"
)
"""What an installed and purged package of any name leaves: logs, locks, backups."""

pytestmark = [
    pytest.mark.skipif(not (DEB and DEBIAN), reason="make test-package builds the package and a bare Debian, and runs these"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.topology(hosts=2),
    pytest.mark.timeout(400),
]


@pytest.fixture
async def bare(lab: Lab) -> AsyncIterator[Booted]:
    """h1, booted, with the package lying there."""
    systemd = await lab.boot(1, Path(DEBIAN))
    shutil.copyfile(DEB, systemd.root / PLACE.lstrip("/"))
    shutil.copyfile(DEB.replace("flannelpy_", "flannelpy-udp_"), systemd.root / UDP_PLACE.lstrip("/"))
    yield systemd
    logged = await systemd.journal(UNIT)
    assert [line for line in logged if "Traceback" in str(line["MESSAGE"])] == []


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flannelpy as a later version."""
    return later_version(tmp_path_factory.mktemp("newer"))


async def install(systemd: Booted, package: str = PLACE) -> str:
    """What dpkg says. No network but the lab's is there."""
    return await systemd.exec("dpkg", "-i", package, timeout_s=90)


async def configure(lab: Lab, systemd: Booted, *options: str) -> None:
    """As the operator edits the file, which keeps its mode."""
    words = " ".join(lab.host(1).agent_options(*options))
    (systemd.root / "etc/default/flannelpy").write_text(f'FLANNELPY_OPTIONS="{words}"\n')


async def started(lab: Lab, systemd: Booted, *options: str) -> None:
    """Installed, configured, enabled; both hosts are ready and their containers connected."""
    await install(systemd)
    await configure(lab, systemd, *options)
    await asyncio.gather(systemd.exec("systemctl", "enable", "--now", UNIT), lab.host(2).start_agent(*options))
    await lab.connect_containers()


async def state(systemd: Booted) -> tuple[str, str]:
    """Of the service: is it enabled, is it active?"""
    told = await systemd.show(UNIT, "UnitFileState", "ActiveState")
    return told["UnitFileState"], told["ActiveState"]


async def everything(systemd: Booted) -> dict[str, str]:
    """Each file by its path: mode, owner, and where it is a file of /etc a sum of what is in it."""
    found = await systemd.exec("find", "/", "-xdev", "-printf", "%p\t%M %u %g %l\n", timeout_s=60)
    runs = await systemd.exec("find", "/run", "-xdev", "-path", "/run/systemd", "-prune", "-o", "-printf", "%p\t%M %u %g %l\n")
    sums = await systemd.exec("sh", "-c", "find /etc -type f -exec sha256sum {} + | sed 's/  /\\t/'")
    listed = dict(line.split("\t") for line in (found + runs).splitlines())
    for line in sums.splitlines():
        digest, path = line.split("\t")
        listed[path] += f" {digest}"
    return {path: about for path, about in listed.items() if not EXPECTED.match(path)}


async def test_it_is_installed_without_a_network_and_waits_to_be_configured(bare: Booted) -> None:
    said = await install(bare)
    assert "warning" not in said.lower()
    assert await state(bare) == ("disabled", "inactive")
    assert (await bare.exec("flannelpy", "--version")).startswith("flannelpy ")
    assert (await bare.exec("stat", "-c", "%a %U %G", "/etc/default/flannelpy")).split() == ["640", "root", "root"]
    assert "flannelpy" in await bare.exec("id", "flannelpy")
    assert await bare.exec("dpkg", "--verify", "flannelpy") == ""
    assert (await bare.attempt("test", "-e", "/etc/systemd/system/docker.service.d")).code != 0
    compiled = await bare.exec("find", "/usr/lib/flannelpy/flannelpy", "-name", "cli.*.pyc")
    assert compiled.strip().endswith("/usr/lib/flannelpy/flannelpy/__pycache__/cli.cpython-311.pyc")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), marks=pytest.mark.topology(hosts=2, backend="vxlan"), id="vxlan"),
        pytest.param(("--udp-engine=pump",), marks=pytest.mark.topology(hosts=2, backend="udp"), id="udp"),
    ],
)
async def test_an_upgrade_loses_no_ping(lab: Lab, bare: Booted, newer: Path, options: tuple[str, ...]) -> None:
    await started(lab, bare, *options)
    await until(lambda: all_well(bare), 10, "nothing is wrong")
    shutil.copyfile(newer, bare.root / "opt/newer.deb")
    before, edited = await main_pid(bare), (bare.root / "etc/default/flannelpy").read_text()
    tally, _rate = await under_pings(lab, lambda: install(bare, "/opt/newer.deb"))
    assert tally.lost == 0
    assert await main_pid(bare) not in (0, before)
    assert await state(bare) == ("enabled", "active")
    assert (await bare.exec("dpkg-query", "-W", "-f", "${Version} ${db:Status-Abbrev}", "flannelpy")).split()[0].endswith(".1")
    assert (bare.root / "etc/default/flannelpy").read_text() == edited
    await until(lambda: all_well(bare), 10, "nothing is wrong")


@pytest.mark.topology(hosts=2, backend="udp")
async def test_udp_in_user_space_is_slow_without_its_package_and_fast_with_it(lab: Lab, bare: Booted) -> None:
    """A worker finds its modules, and numpy, though no environment tells it where."""
    await started(lab, bare, "--udp-engine=pump")
    assert "one by one" in "".join(str(line["MESSAGE"]) for line in await bare.journal(UNIT))
    assert "offloads      none" in await bare.exec("flannelpy", "status")
    assert (await lab.ping("c1", "c2")).ok
    await install(bare, UDP_PLACE)
    await bare.exec("systemctl", "restart", UNIT)
    status = await bare.exec("flannelpy", "status")
    assert "header" in re.findall(r"^offloads +(.*)$", status, re.MULTILINE)[0]
    await until(lambda: all_well(bare), 10, "nothing is wrong")
    assert (await lab.ping("c1", "c2")).ok


async def test_an_upgrade_does_not_wait_for_an_agent_that_waits_for_etcd(lab: Lab, bare: Booted, newer: Path) -> None:
    await install(bare)
    await configure(lab, bare)
    lab.etcd.kill()
    await bare.exec("systemctl", "start", "--no-block", UNIT)

    async def waits() -> bool:
        return (await bare.show(UNIT, "StatusText"))["StatusText"] != ""

    await until(waits, 20, "the agent says what it waits for")
    before = await main_pid(bare)
    shutil.copyfile(newer, bare.root / "opt/newer.deb")
    await install(bare, "/opt/newer.deb")

    async def another() -> bool:
        return await main_pid(bare) not in (0, before)

    await until(another, 20, "the new version runs")
    lab.etcd.restart()

    async def ready() -> bool:
        return (await state(bare))[1] == "active"

    await until(ready, 30, "it is ready once etcd is there")


async def test_an_upgrade_starts_nothing_that_was_stopped(lab: Lab, bare: Booted, newer: Path) -> None:
    await started(lab, bare)
    await bare.exec("systemctl", "disable", "--now", UNIT)
    assert await state(bare) == ("disabled", "inactive")
    assert (await lab.ping("c1", "c2")).ok  # what is programmed stays
    shutil.copyfile(newer, bare.root / "opt/newer.deb")
    await install(bare, "/opt/newer.deb")
    assert await state(bare) == ("disabled", "inactive")


async def kernel(host: Host) -> set[str]:
    """What an operator sees of the kernel's network; but the bridge, which is the lab's and gets its address from subnet.env."""
    told = await host.exec(
        "sh", "-c", "ip -br link; ip -br -4 addr; ip -4 route show table all; ip neigh show nud permanent; nft -s list ruleset"
    )
    return {line.strip() for line in told.splitlines() if "docker0" not in line and not line.startswith("vc")}


async def test_remove_keeps_configuration_and_state_and_purge_leaves_nothing(lab: Lab, bare: Booted) -> None:
    before, network = await everything(bare), await kernel(lab.host(1))
    await started(lab, bare)
    await install(bare, UDP_PLACE)
    assert await kernel(lab.host(1)) - network != set()
    subnet = lab.host(1).subnet
    assert {"/var/lib/flannelpy/state.json", "/run/flannel/subnet.env"} <= set(await everything(bare))

    await bare.exec("dpkg", "-r", "flannelpy", "flannelpy-udp", timeout_s=60)
    assert await kernel(lab.host(1)) - network == set()
    removed = set(await everything(bare)) - set(before)
    assert {"/etc/default/flannelpy", "/var/lib/flannelpy/state.json"} <= removed
    assert [path for path in removed if path.startswith("/usr")] == []
    running = await bare.exec("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "systemd" in running
    assert "flannelpy" not in running

    # Installed again it is what it was, to the subnet.
    await install(bare)
    await bare.exec("systemctl", "enable", "--now", UNIT)
    assert lab.host(1).subnet == subnet

    await bare.exec("dpkg", "-P", "flannelpy", "flannelpy-udp", timeout_s=60)
    after = await everything(bare)
    assert {path: about for path, about in after.items() if before.get(path) != about} == {}
    assert set(before) - set(after) == set()
    assert (await bare.attempt("id", "flannelpy")).code != 0
    await bare.exec("systemctl", "daemon-reload")
    assert (await bare.show(UNIT, "LoadState"))["LoadState"] == "not-found"


NETS = "etc/cni/net.d"
CNI_UNIT = "flannelpy-cni.service"
THERE, WAITING = "10-flannel.conflist", "10-flannel.conflist.waiting"


async def network_is(systemd: Booted, name: str) -> os.stat_result:
    """Before long CNI's network has this name and no other."""
    folder = systemd.root / NETS
    await until(lambda: [each.name for each in folder.iterdir()] == [name], 30, f"the network is {name}")
    return (folder / name).stat()


async def another(systemd: Booted, pid: int) -> None:
    """An agent that is not ``pid`` is ready."""

    async def is_up() -> bool:
        told = await systemd.show(UNIT, "MainPID", "ActiveState")
        return told["ActiveState"] == "active" and told["MainPID"] not in ("0", str(pid))

    await until(is_up, 30, "another agent")


async def test_cni_s_network_is_there_while_the_agent_is_ready(lab: Lab, bare: Booted, newer: Path) -> None:
    await install(bare)
    await configure(lab, bare)
    said = await bare.exec("flannelpy", "cni", "install")
    assert f"/{NETS}/{THERE} is not there: it is while the agent is ready" in said
    await network_is(bare, WAITING)
    await bare.exec("systemctl", "start", UNIT)
    there = await network_is(bare, THERE)

    # What comes back at once is no news: it has not been renamed since.
    await bare.exec("systemctl", "restart", UNIT)
    before = await main_pid(bare)
    await bare.exec("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
    await another(bare, before)
    before = await main_pid(bare)
    shutil.copyfile(newer, bare.root / "opt/newer.deb")
    await install(bare, "/opt/newer.deb")
    await another(bare, before)
    assert (await network_is(bare, THERE)).st_ctime_ns == there.st_ctime_ns

    await bare.exec("systemctl", "stop", UNIT)
    await network_is(bare, WAITING)
    await bare.exec("systemctl", "start", UNIT)
    await network_is(bare, THERE)
    assert (await bare.show(CNI_UNIT, "ActiveState", "NRestarts")) == {"ActiveState": "active", "NRestarts": "0"}

    await bare.exec("dpkg", "-r", "flannelpy", timeout_s=60)
    await network_is(bare, WAITING)


async def test_cni_s_network_waits_at_boot_whatever_its_name_was(lab: Lab) -> None:
    """Whoever lost its power has not renamed it: that is done before a runtime is started."""
    systemd = await lab.boot(1, Path(DEBIAN))
    shutil.copyfile(DEB, systemd.root / PLACE.lstrip("/"))
    await started(lab, systemd)
    await systemd.exec("flannelpy", "cni", "install")
    await network_is(systemd, THERE)
    await systemd.exec("systemctl", "disable", UNIT)
    await systemd.power_off()
    folder = lab.host(1).directory / "booted/root" / NETS
    (name,) = [each.name for each in folder.iterdir()]
    (folder / name).rename(folder / THERE)
    systemd = await lab.boot(1, Path(DEBIAN))
    await network_is(systemd, WAITING)
    assert await state(systemd) == ("disabled", "inactive")
    await systemd.exec("systemctl", "start", UNIT)
    await network_is(systemd, THERE)
    await systemd.exec("flannelpy", "cni", "uninstall")
    assert list(folder.iterdir()) == []
    told = await systemd.show(CNI_UNIT, "UnitFileState", "ActiveState")
    assert told == {"UnitFileState": "disabled", "ActiveState": "inactive"}
