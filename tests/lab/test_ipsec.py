"""Do policies of IPsec and an IKE daemon follow the cluster, whatever happens to agent, policy or daemon?

h1 ====+==== h2          ipsec; the kernel's XFRM, and a charon that negotiates nothing; tests/kernels has packets
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from flannelpy.host import ike
from flannelpy.kernel.xfrm import NETLINK_XFRM
from netns_lab.host import Host
from netns_lab.lab import Lab
from tests.lab.agent_support import Log, lab_name, no_probes, no_traceback, shell, until  # noqa: F401
from tests.lab.host_support import conditions, until_nothing_is_wrong
from tests.lab.host_support import told as status
from tests.unit import fake_charon

PSK = "0123456789abcdef" * 6
CONFIG = {"Network": "10.1.0.0/16", "Backend": {"Type": "ipsec", "PSK": PSK}}
FOREIGN = "src 10.1.0.0/16 dst 10.99.0.0/16 dir out tmpl src 192.168.50.11 dst 192.168.50.99 proto esp reqid 11 mode tunnel"

pytestmark = [pytest.mark.topology(hosts=2), pytest.mark.usefixtures("no_probes")]


@pytest.fixture
def charon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one on PATH."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM).close()
    except OSError as error:
        pytest.skip(f"this machine's kernel has no XFRM: {error.strerror}")
    program = tmp_path / "charon"
    program.write_text(f"#!{sys.executable}\n{Path(fake_charon.__file__).read_text()}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


async def begin(lab: Lab) -> tuple[Host, Host]:
    await lab.put_config(CONFIG)
    for host in lab.hosts:
        (host.run_dir / "ipsec").mkdir(parents=True, exist_ok=True)
        (host.run_dir / "ipsec" / "up").write_text("*")
    await lab.start_agents()
    one, two = lab.host(1), lab.host(2)
    await until_policies(one, 3)
    await until_policies(two, 3)
    return one, two


async def policies(host: Host) -> list[str]:
    said = [" ".join(line.replace("\\", " ").split()) for line in await shell(host, "ip -o xfrm policy list")]
    return sorted(line.replace(" ptype main ", " ") for line in said if " dir " in line)


async def until_policies(host: Host, count: int) -> None:
    async def there() -> bool:
        return len(await policies(host)) == count

    await until(there, 30, f"{count} policies on {host.name}", lambda: Log.of(host).text[-2000:])


def notes(host: Host, command: str) -> list[dict[str, object]]:
    """What its charon was told."""
    path = host.run_dir / "ipsec" / "notes"
    told = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [message for said, message in told if said == command]


async def test_policies_follow_the_leases_and_the_key_is_nowhere(lab: Lab, charon: Path) -> None:
    one, two = await begin(lab)
    ours, theirs = str(one.subnet.cidr), str(two.subnet.cidr)
    out, back = "src 192.168.50.11 dst 192.168.50.12", "src 192.168.50.12 dst 192.168.50.11"
    assert await policies(one) == sorted(
        [
            f"src {ours} dst {theirs} dir out priority 0 tmpl {out} proto esp reqid 11 mode tunnel",
            f"src {theirs} dst {ours} dir in priority 0 tmpl {back} proto esp reqid 11 mode tunnel",
            f"src {theirs} dst {ours} dir fwd priority 0 tmpl {back} proto esp reqid 11 mode tunnel",
        ]
    )
    assert one.subnet_env()["FLANNEL_MTU"] == "1423"
    assert any(line.startswith(f"{theirs} dev eth1 proto 102 scope link") for line in await shell(one, "ip route"))
    await until(lambda: notes(one, "load-conn"), 10, "charon knows the peer")
    await until_nothing_is_wrong(one, two)
    said = json.dumps([await status(host) for host in (one, two)])
    program = one.settings.program if one.settings else ()
    for words in (("status",), ("events",), ("plan",), ("doctor",)):
        outcome = await one.attempt(*program, *words, *one.agent_words()[len(program) :], timeout_s=60)
        said += outcome.stdout + outcome.stderr
    for path in one.directory.rglob("*"):
        if path.is_file() and path.name != "notes":
            assert PSK not in path.read_text(errors="replace") or path.stat().st_mode & 0o077 == 0, path
    assert PSK not in said
    key = two.lease_key
    await two.agent.stop()
    lab.etcd.ctl("del", key)
    await until_policies(one, 0)
    await until(lambda: notes(one, "unload-conn"), 10, "its connection goes with it")


async def test_what_others_do_to_policies_daemon_and_agent(lab: Lab, charon: Path) -> None:
    one, two = await begin(lab)
    wanted = await policies(one)
    await one.exec("ip", "xfrm", "policy", "add", *FOREIGN.split())
    everything = sorted([*wanted, *(set(await policies(one)) - set(wanted))])
    assert len(everything) == 4
    selector = next(line for line in wanted if " dir out " in line).partition(" priority ")[0]
    moved = "tmpl src 192.168.50.11 dst 192.168.50.77 proto esp reqid 11 mode tunnel"
    for harm in (f"delete {selector}", f"update {selector} {moved}"):
        await one.exec("ip", "xfrm", "policy", *harm.split())

        async def repaired() -> bool:
            return await policies(one) == everything

        await until(repaired, 30, f"as it was after {harm}", lambda: Log.of(one).text[-2000:])
    carrying = ike.left(one.run_dir)
    assert carrying is not None
    await one.agent.kill()
    await one.start_agent()
    await until(lambda: f"charon goes on as process {carrying}" in Log.of(one).text, 30, "it is found again")
    os.kill(carrying, signal.SIGKILL)
    await until(lambda: ike.left(one.run_dir) not in (None, carrying), 30, "another", lambda: Log.of(one).text[-2000:])
    await until_nothing_is_wrong(one, two)
    await shell(one, f"rm {charon}")
    last = ike.left(one.run_dir)
    assert last is not None
    os.kill(last, signal.SIGKILL)

    async def told() -> bool:
        return "apt-get install strongswan-charon" in (await conditions(one)).get("datapath-failed", "")

    await until(told, 30, "what is missing is named", lambda: Log.of(one).text[-2000:])
    assert await policies(one) == everything


async def test_another_type_and_cleanup_leave_nothing(lab: Lab, charon: Path) -> None:
    one, two = await begin(lab)
    await one.exec("ip", "xfrm", "policy", "add", *FOREIGN.split())
    await lab.put_config({"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}})
    await until_policies(one, 1)
    await until_policies(two, 0)
    await until(lambda: ike.left(one.run_dir) is None, 30, "charon is gone")
    assert (one.run_dir / "ipsec" / "ended").read_text() == "gently"
    await lab.put_config(CONFIG)
    await until_policies(one, 4)
    await until(lambda: ike.left(one.run_dir) is not None, 30, "charon is back")
    await one.agent.kill()
    program = one.settings.program if one.settings else ()
    said = await one.exec(*program, "cleanup", "--yes", *one.agent_words()[len(program) :][:3], timeout_s=60)
    assert said.count("ip xfrm policy delete src 10.1.") == 3
    assert len(await policies(one)) == 1
    assert ike.left(one.run_dir) is None
