"""Does it go on where etcd wants certificates and passwords, and when these change?

c1 - h1 ==== vxlan 1 ==== h2 - c2         etcd speaks TLS or asks for a user; pings from c1 to c2 all the while
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from netns_lab.etcd import Etcd, make_certificates
from netns_lab.lab import PREFIX, Lab
from tests.chaos.chaos_support import GONE, LATE, put_peer, unharmed, until_put
from tests.lab.agent_support import Log, until, until_programmed, until_said, vtep

USER = "flannel"


# -------------------------------------------------------------------------------------------------------------- TLS


@pytest.mark.topology(hosts=2, etcd=3)
@pytest.mark.parametrize(
    "kind",
    [pytest.param("server", marks=pytest.mark.etcd(tls="server")), pytest.param("mutual", marks=pytest.mark.etcd(tls="mutual"))],
)
async def test_three_members_with_tls_the_leader_is_killed(overlay: Lab, kind: str) -> None:
    one = overlay.host(1)
    assert "--etcd-cafile" in " ".join(one.agent.words)
    assert ("--etcd-certfile" in " ".join(one.agent.words)) is (kind == "mutual")
    async with unharmed(overlay, f"three members, TLS ({kind}), kill -9 of the leader"):
        leader = overlay.etcd.leader()
        overlay.etcd.kill(leader)
        await until_put(overlay, LATE)
        await until_programmed(one, LATE, timeout_s=10)
        overlay.etcd.restart(leader)
        await until_put(overlay, GONE)
        await until_programmed(one, GONE, timeout_s=6)


@pytest.mark.topology(hosts=2)
@pytest.mark.etcd(tls="mutual")
async def test_certificates_are_replaced_on_disk(overlay: Lab, tmp_path: Path) -> None:
    """A new CA signs new certificates. etcd has them first, the hosts a while later; nobody is restarted but etcd."""
    one, log = overlay.host(1), Log.from_now(overlay.host(1))
    fresh, used = tmp_path / "fresh", tmp_path / "tls"
    make_certificates(fresh, mutual=True, names=("192.168.50.5",))
    async with unharmed(overlay, "TLS (mutual), etcd has a certificate of a new CA, the hosts get it later"):
        for name in ("server.pem", "server.key"):
            shutil.copy(fresh / name, used / name)
        overlay.etcd.restart()
        said = await until_said(log, "not signed by", timeout_s=15)
        assert "etcd-cafile" in said
        for name in ("ca.pem", "client.pem", "client.key"):
            shutil.copy(fresh / name, used / name)
        overlay.etcd.restart()  # it reads the CA that signs clients when it starts
        put_peer(overlay, LATE)
        await until_programmed(one, LATE, timeout_s=10)
        await until_said(log, "resolved: ", "TLS", timeout_s=10)


# -------------------------------------------------------------------------------------------------------------- auth


async def start_with_password(lab: Lab, folder: Path) -> Path:
    """Authentication on, and agents that read their password from the file that is returned."""
    file = folder / "password"
    file.write_text("first\n")
    lab.etcd.enable_auth("first", user=USER, prefix=PREFIX)
    await lab.start_agents(f"--etcd-username={USER}", f"--etcd-password-file={file}")
    await lab.connect_containers()
    return file


def change_password(etcd: Etcd, password: str) -> None:
    etcd.ctl("user", "passwd", USER, "--interactive=false", stdin=f"{password}\n")


@pytest.mark.topology(hosts=2)
async def test_auth_and_etcd_is_restarted(lab: Lab, tmp_path: Path) -> None:
    """A simple token is known only to the process that gave it."""
    await start_with_password(lab, tmp_path)
    one = lab.host(1)
    own = await vtep(one)
    async with unharmed(lab, "auth, kill -9 and restart"):
        lab.etcd.kill()
        lab.etcd.restart()
        put_peer(lab, LATE)
        await until_programmed(one, LATE, timeout_s=10)
        lab.etcd.delete(own.key)
        await until(lambda: lab.etcd.get(own.key) == own.value, 5, "h1 may write again")


@pytest.mark.topology(hosts=2)
@pytest.mark.etcd(options=("--auth-token-ttl=1",))
async def test_auth_and_the_token_expires(lab: Lab, tmp_path: Path) -> None:
    await start_with_password(lab, tmp_path)
    one = lab.host(1)
    own, log = await vtep(one), Log.from_now(one)
    async with unharmed(lab, "auth, tokens of 1 s that expire, three times"):
        for _ in range(3):
            await until(lambda: expired(lab), 10, "etcd forgets a token")
            lab.etcd.delete(own.key)
            await until(lambda: lab.etcd.get(own.key) == own.value, 5, "h1 may write again")
        put_peer(lab, LATE)
        await until_programmed(one, LATE, timeout_s=5)
    assert log.lines("refused") == []


@pytest.mark.topology(hosts=2)
async def test_the_password_changes_and_its_file_too(lab: Lab, tmp_path: Path) -> None:
    file = await start_with_password(lab, tmp_path)
    one = lab.host(1)
    own, log = await vtep(one), Log.from_now(one)
    async with unharmed(lab, "auth, password changed with its file"):
        change_password(lab.etcd, "second")
        file.write_text("second\n")
        lab.etcd.delete(own.key)
        await until(lambda: lab.etcd.get(own.key) == own.value, 5, "h1 writes with the new password")
        lab.etcd.restart()
        put_peer(lab, LATE)
        await until_programmed(one, LATE, timeout_s=10)
    assert log.lines("refused") == []


@pytest.mark.topology(hosts=2)
async def test_the_password_changes_and_its_file_does_not(lab: Lab, tmp_path: Path) -> None:
    file = await start_with_password(lab, tmp_path)
    one = lab.host(1)
    log = Log.from_now(one)
    async with unharmed(lab, "auth, password changed, its file much later"):
        change_password(lab.etcd, "second")
        lab.etcd.restart()
        said = await until_said(log, "refused", timeout_s=15)
        assert USER in said
        assert "password" in said
        file.write_text("second\n")
        put_peer(lab, LATE)
        await until_programmed(one, LATE, timeout_s=10)
        await until_said(log, "resolved: ", timeout_s=10)
    assert "first" not in log.text
    assert "second" not in log.text


def expired(lab: Lab) -> bool:
    """etcd logs that it deleted a token, and that line was not there before."""
    seen = lab.etcd.log().count("deleted a simple token")
    before, _seen[lab.name] = _seen.get(lab.name, 0), seen
    return seen > before


_seen: dict[str, int] = {}
