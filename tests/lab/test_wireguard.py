"""Is what hosts send to each other encrypted, whatever happens to agent, key, device or peer?

c1 - h1 ====+==== h2 - c2
            |
            h3 - c3                 wireguard, by wireguard-go where the kernel has none; etcd apart
"""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import tarfile
from pathlib import Path

import pytest

from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab
from netns_lab.traffic import Pair, transfer
from tests.lab.agent_support import Log, lab_name, losing_nothing, no_probes, no_traceback, routes, shell, until  # noqa: F401
from tests.lab.host_support import told as status
from tests.lab.host_support import until_nothing_is_wrong, until_they_meet
from tests.lab.wireguard_support import PATTERN, all_of, encrypted, frames, process_of, until_peers, wireguard_go  # noqa: F401

MTU = 1420
WHOLE_STREAM = 4 << 20
PSK = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
ALL = ("c1", "c2", "c3")
CONFIG = {"Network": "10.1.0.0/16", "Backend": {"Type": "wireguard", "PSK": PSK}}

pytestmark = [pytest.mark.topology(hosts=3), pytest.mark.usefixtures("no_probes", "wireguard_go")]


async def begin(lab: Lab, config: dict[str, object] = CONFIG) -> tuple[Host, Host, Host]:
    await lab.put_config(config)
    await lab.start_agents()
    await lab.connect_containers()
    await until_they_meet(lab, "at first", *ALL)
    one, two, three = (lab.host(number) for number in (1, 2, 3))
    return one, two, three


async def full(lab: Lab, source: str, target: str, octets: int) -> bool:
    """Does a packet of this many bytes arrive in one piece?"""
    words = ("ping", "-c", "1", "-W", "2", "-M", "do", "-s", str(octets - 28), str(lab.container(target).address))
    return (await lab.box(source).attempt(*words)).code == 0


def secrets(host: Host) -> list[bytes]:
    """The private key and the preshared one, in every form that somebody may write them in."""
    keys = (host.state_dir / "wireguard.key").read_bytes().strip(), PSK.encode()
    return [form for key in keys for raw in (base64.b64decode(key),) for form in (key, raw, raw.hex().encode())]


def inside(archive: Path) -> bytes:
    """All that is in an archive."""
    with tarfile.open(archive) as files:
        parts = [files.extractfile(member) for member in files.getmembers()]
        said = b"".join(part.read() for part in parts if part is not None)
    assert said
    return said


def written(host: Host) -> bytes:
    """All that its agent has written for others to read."""
    said = b""
    for path in host.directory.rglob("*"):
        if path.is_file() and host.state_dir in path.parents:
            assert path.stat().st_mode & 0o077 == 0, path
        elif path.is_file():
            said += path.read_bytes()
    return said


async def shape(host: Host) -> list[str]:
    """Device, address and routes, as an operator sees them."""
    said = "ip -o link show flannel-wg | sed 's/^[0-9]*: //'; ip -o -4 addr show flannel-wg | sed 's/^[0-9]*: //'"
    return await shell(host, f"{said}; ip route show dev flannel-wg")


async def test_what_is_sent_is_encrypted_whole_and_no_secret_is_anywhere(lab: Lab) -> None:
    one, two, three = await begin(lab)
    async with frames(two) as seen:
        words = ("ping", "-n", "-c", "3", "-i", "0.2", "-p", PATTERN.hex())
        await lab.box("c1").exec(*words, str(lab.container("c2").address))
        await lab.box("c2").exec(*words, str(lab.container("c1").address))
        await until(lambda: sum(map(encrypted, seen)) >= 12, 10, "six pings and six answers")
    assert not any(PATTERN in frame for frame in seen)
    addresses = [struct.pack("!I", int(lab.container(name).address)) for name in ("c1", "c2")]
    assert not any(address in frame for frame in seen if encrypted(frame) for address in addresses)
    for source, target in (("c1", "c2"), ("c2", "c1"), ("c1", "c3")):
        assert await full(lab, source, target, MTU)
        assert not await full(lab, source, target, MTU + 1)
    pair = Pair(lab.box("c1").namespace.path, lab.box("c3").namespace.path, str(lab.container("c3").address))
    done = await transfer(pair, WHOLE_STREAM)
    assert done.sent == done.got
    await until_nothing_is_wrong(one, two, three)
    said = json.dumps([await status(host) for host in (one, two, three)]).encode()
    program = one.settings.program if one.settings else ()
    archive = one.directory / "report.tar.gz"
    for words in (("status",), ("events",), ("plan",), ("doctor",), ("bugreport", f"--output={archive}")):
        outcome = await one.attempt(*program, *words, *one.agent_words()[len(program) :], timeout_s=60)
        said += (outcome.stdout + outcome.stderr).encode()
    said += inside(archive)
    for key in lab.etcd.keys(PREFIX):
        said += b"" if key.endswith("/config") else (lab.etcd.get(key) or "").encode()
    said += b"".join(written(host) for host in (one, two, three))
    found = [secret for host in (one, two, three) for secret in secrets(host) if secret in said]
    assert found == []


async def test_options_of_the_tunnel_change_and_no_packet_is_lost(lab: Lab) -> None:
    hosts = await begin(lab)
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c3", "c1"), losing_nothing(lab, "c2", "c3"):
        for keepalive_s in (25, 0, 10, 5, 0):
            options = {"Type": "wireguard", "PSK": PSK, "PersistentKeepaliveInterval": keepalive_s}
            await lab.put_config({**CONFIG, "Backend": options})

            async def changed(wanted: str = str(keepalive_s)) -> bool:
                return all([await all_of(host, "persistent_keepalive_interval") == [wanted] * 2 for host in hosts])

            await until(changed, 30, f"a keep-alive every {keepalive_s} s")
    await until_nothing_is_wrong(*hosts)


async def test_agents_that_go_and_come_lose_no_packet_and_a_process_that_is_killed_comes_again(lab: Lab) -> None:
    one, two, three = await begin(lab)
    carrying = process_of(one)
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c3", "c1"):
        await one.agent.stop()
        await one.start_agent()
        await two.agent.kill()
        await two.start_agent()
        await until_peers(one, two, three)
        await until_nothing_is_wrong(one, two, three)
    assert process_of(one) == carrying
    os.kill(carrying, signal.SIGKILL)
    await until(lambda: process_of(one) not in (0, carrying), 30, "another process", lambda: Log.of(one).text[-2000:])
    await until_they_meet(lab, "after the process was killed", *ALL)
    wanted = await shape(one)
    for harm in (
        "link del flannel-wg",
        "link set flannel-wg down",
        "link set flannel-wg mtu 1300",
        "addr flush dev flannel-wg",
        "route del 10.1.0.0/16 dev flannel-wg",
    ):
        await one.exec("ip", *harm.split())

        async def repaired() -> bool:
            return await shape(one) == wanted

        await until(repaired, 30, f"as it was after {harm}", lambda: Log.of(one).text[-2000:])
        await until_they_meet(lab, f"after {harm}", *ALL)
    await until_peers(one, two, three)
    await until_nothing_is_wrong(one, two, three)


async def test_another_key_and_a_peer_that_leaves(lab: Lab) -> None:
    one, two, three = await begin(lab)
    before = await all_of(one, "public_key")
    await two.agent.stop()
    (two.state_dir / "wireguard.key").unlink()
    await two.start_agent()

    async def rotated() -> bool:
        now = await all_of(one, "public_key")
        return len(now) == 2 and len({*now} & {*before}) == 1

    await until(rotated, 30, "the new key is in, the old one out")
    await until_they_meet(lab, "by the new key", *ALL)
    await until_peers(one, two, three)
    key = three.lease_key
    await three.agent.stop()
    lab.etcd.ctl("del", key)
    await until_peers(one, two)
    await until_peers(two, one)
    await three.start_agent()
    await three.connect_containers()
    await until_they_meet(lab, "after it came back", *ALL)
    await until_nothing_is_wrong(one, two, three)


async def test_another_type_takes_device_and_process_away(lab: Lab) -> None:
    one, two, three = await begin(lab)
    async with losing_nothing(lab, "c1", "c2"), losing_nothing(lab, "c2", "c3"):
        await lab.put_config({"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}})

        def gone() -> bool:
            return not any(process_of(host) for host in (one, two, three))

        await until(gone, 60, "nothing of wireguard is left", lambda: Log.of(one).text[-2000:])
        for host in (one, two, three):
            assert not any("flannel-wg" in line for line in await routes(host))
        await lab.put_config(CONFIG)
        for host in (one, two, three):
            await until_peers(host, *(each for each in (one, two, three) if each is not host))

        async def moved() -> bool:
            links = [await host.exec("ip", "-br", "link") for host in (one, two, three)]
            return not any("flannel.1" in each for each in links)

        await until(moved, 60, "nothing of vxlan is left", lambda: Log.of(one).text[-2000:])
    await until_nothing_is_wrong(one, two, three)
