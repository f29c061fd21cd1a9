"""Does ipsec do its work on a kernel that has ESP? Runs in the guest of ``guest.py``, on the hosts of ``inside.py``.

    a 192.168.90.1, overlay 10.1.x.1 ---- bridge, etcd ---- 192.168.90.2, overlay 10.1.y.1 b

Agents and charon are real. charon has one place for its process id, /run/charon.pid, so each host has a /run of its own, into which
the hosts' directories are bound.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flannelpy.core.xfrm import IKE_DIRECTORY, IKE_SOCKET
from netns_lab.etcd import binary
from tests.kernels import inside
from tests.kernels.inside import (
    ENDPOINT,
    Host,
    check,
    check_flanneld,
    finish,
    flanneld,
    make_hosts,
    pinged,
    say,
    settle,
    shell,
    start_etcd,
)

until = partial(inside.until, within_s=150.0)

ROOT = Path(__file__).parents[2]
STRONGSWAN = ROOT / ".venv" / "strongswan"
"""Where ``make test-kernels`` unpacks charon and its plugins."""

PSK = "0123456789abcdef" * 6
PATTERN = bytes.fromhex("c0ffee") * 5
CONTRACT = "tests/contract/test_kernel_xfrm.py"
MTU, MTU_IN_UDP = 1423, 1415
CLONE_NEWNS = 0x00020000
ESP, UDP = 50, 17
FOREIGN = "src 10.1.0.0/16 dst 10.99.0.0/16 dir out tmpl src 192.168.90.1 dst 192.168.90.99 proto esp reqid 11 mode tunnel"

RUN = """mount --make-rprivate /; mount --rbind /run /mnt; mount -t tmpfs t /run
for place in netns a b c; do [ -d /mnt/$place ] && mkdir /run/$place && mount --rbind /mnt/$place /run/$place; done
exec sleep infinity"""
"""A /run of a host's own."""


def etcdctl(*words: str) -> str:
    done = subprocess.run([binary("etcdctl"), f"--endpoints={ENDPOINT}", *words], capture_output=True, text=True, check=True)
    return done.stdout


def configure(**options: object) -> None:
    backend = {"Type": "ipsec", "PSK": PSK, **options}
    etcdctl("put", "/coreos.com/network/config", json.dumps({"Network": "10.1.0.0/16", "Backend": backend}))


# ---------------------------------------------------------------------------------------------------------------- hosts


@contextlib.contextmanager
def own_run(host: Host) -> Iterator[int]:
    """A mount namespace for a host, that outlives its agents; the process that holds it."""
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", RUN])
    until(lambda: Path(f"/proc/{holder.pid}/comm").read_text().strip() == "sleep", "its /run is there")

    def settle_in() -> None:
        root = os.open(f"/proc/{holder.pid}/root", os.O_PATH | os.O_DIRECTORY)
        with Path(f"/proc/{holder.pid}/ns/mnt").open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), "setns")
        os.fchdir(root)  # the namespace's own root is the initramfs
        os.chroot(".")
        os.close(root)
        os.chdir(ROOT)

    host.settle_in = settle_in
    try:
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def charon(host: Host) -> int | None:
    """The process that serves a host's socket."""
    from flannelpy.host import ike

    return ike.left(Path(f"/run/{host.name}/run"))


def policies(host: Host) -> list[str]:
    """One a line, sorted, those of ours and others."""
    shown = [" ".join(line.split()) for line in shell("ip -o xfrm policy list", host.name).replace("\\", " ").splitlines()]
    return sorted(line.replace(" ptype main ", " ") for line in shown if " dir " in line)


def states(host: Host) -> list[str]:
    """The keys in the kernel, by their ends."""
    return re.findall(r"^src (\S+ dst \S+)$", shell("ip xfrm state list", host.name), re.MULTILINE)


def meet(one: Host, other: Host, mtu: int = MTU) -> None:
    """Ping, and full MTU with DF, both ways."""
    for here, there in ((one, other), (other, one)):
        until(lambda here=here, there=there: pinged(here, there), f"{here.name} reaches {there.name}")  # type: ignore[misc]
        assert pinged(here, there, "-M", "do", "-s", str(mtu - 28)), f"{mtu} bytes"
        assert f"FLANNEL_MTU={mtu}\n" in here.file.read_text()


@contextlib.contextmanager
def captured() -> Iterator[list[bytes]]:
    """What a sends and gets meanwhile, frame by frame."""
    frames: list[bytes] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind(("pa", 0))
        tap.settimeout(0.5)
        yield frames
        with contextlib.suppress(TimeoutError):
            while True:
                frames.append(tap.recv(2048))


def of_protocol(frames: list[bytes], number: int) -> list[bytes]:
    return [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == number]


@contextlib.contextmanager
def pinging(here: Host, there: Host) -> Iterator[list[str]]:
    """Ten a second; what ping says in the end."""
    said: list[str] = []
    words = ["ip", "netns", "exec", here.name, "ping", "-n", "-i", ".1", "-W2", "-I", here.inside, there.inside]
    pings = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        yield said
    finally:
        pings.send_signal(signal.SIGINT)
        said.append(pings.communicate(timeout=20)[0][-300:])


# --------------------------------------------------------------------------------------------------------------- checks


def contract() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not fake", CONTRACT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    say("contract", done.stdout.strip().splitlines()[-1])


def tunnels(a: Host, b: Host) -> None:
    meet(a, b)
    ours, theirs = f"10.1.{a.subnet.ip.words[2]}.0/24", f"10.1.{b.subnet.ip.words[2]}.0/24"
    out = "tmpl src 192.168.90.1 dst 192.168.90.2 proto esp reqid 11 mode tunnel"
    back = "tmpl src 192.168.90.2 dst 192.168.90.1 proto esp reqid 11 mode tunnel"
    assert policies(a) == sorted(
        [
            f"src {ours} dst {theirs} dir out priority 0 {out}",
            f"src {theirs} dst {ours} dir fwd priority 0 {back}",
            f"src {theirs} dst {ours} dir in priority 0 {back}",
        ]
    ), policies(a)
    assert {"192.168.90.1 dst 192.168.90.2", "192.168.90.2 dst 192.168.90.1"} == set(states(a))
    assert f"{theirs} dev eth1 proto 102 scope link" in shell("ip route", "a")
    assert "aead rfc4106(gcm(aes))" in shell("ip xfrm state", "a")


def encrypted(a: Host, b: Host) -> None:
    """ESP, and nobody reads it; what comes in the open as if from a peer is not taken."""
    with captured() as frames:
        assert pinged(a, b, "-p", PATTERN.hex())
    assert len(of_protocol(frames, ESP)) >= 4, len(frames)
    assert not any(PATTERN in frame for frame in frames)
    shell(f"ip addr add {a.inside}/32 dev br0; ip route add {b.subnet} via 192.168.90.2")  # a machine on the link, without the key
    try:
        said = shell(f"ping -n -c3 -i .3 -W1 -I {a.inside} {b.inside}; true")
        assert "3 packets transmitted, 0 received" in said, said
        assert int(re.findall(r"XfrmInTmplMismatch\s+(\d+)", shell("cat /proc/net/xfrm_stat", "b"))[0]) >= 3
    finally:
        shell(f"ip addr del {a.inside}/32 dev br0; ip route del {b.subnet}")


def key(a: Host, b: Host) -> None:
    """It is in no log, no process's words, and no file that others may read."""
    for host in (a, b):
        assert PSK not in host.log.read_text()
        pid = charon(host)
        for process in (pid, host.pid):
            for part in ("cmdline", "environ"):
                assert PSK.encode() not in Path(f"/proc/{process}/{part}").read_bytes()
    having = shell(f"grep -rls {PSK} /run/a /run/b; true").split()
    assert all(Path(path).stat().st_mode & 0o077 == 0 and Path(path).parent.name == "state" for path in having), having
    place = Path("/run/a/run") / IKE_DIRECTORY
    assert place.stat().st_mode & 0o777 == 0o700


def drift(a: Host, b: Host) -> None:
    """Whatever another hand changes of ours is as it was; what is its own is its own."""
    wanted = policies(a)
    shell(f"ip xfrm policy add {FOREIGN}", "a")
    foreign = set(policies(a)) - set(wanted)
    assert len(foreign) == 1
    out = next(line for line in wanted if " dir out " in line)
    selector = out.partition(" priority ")[0]
    for harm in (
        f"ip xfrm policy delete {selector}",
        f"ip xfrm policy update {selector} tmpl src 192.168.90.1 dst 192.168.90.77 proto esp reqid 11 mode tunnel",
        f"ip xfrm policy update {selector} priority 77 {out.partition('priority 0 ')[2]}",
    ):
        shell(harm, "a")
        until(lambda: set(policies(a)) == {*wanted, *foreign}, f"repaired: {harm}: {policies(a)}")
        until(lambda: pinged(a, b), "they meet again")
    shell("ip xfrm policy flush", "a")
    until(lambda: policies(a) == wanted, "all of ours are back")
    stray = "src 10.1.250.0/24 dst 10.1.251.0/24 dir out tmpl src 192.168.90.1 dst 192.168.90.250 proto esp reqid 11 mode tunnel"
    shell(f"ip xfrm policy add {stray}", "a")  # as a flannel leaves them
    until(lambda: policies(a) == wanted, "a stale one is gone")
    until(lambda: pinged(a, b), "they meet again")


def charon_dies(a: Host, b: Host) -> None:
    """Packets flow on with the keys in the kernel; the next one makes others."""
    before = charon(a)
    assert before is not None
    with pinging(a, b) as said:
        os.kill(before, signal.SIGKILL)
        until(lambda: charon(a) not in (None, before), "another charon")
        until(lambda: len(states(a)) > 2, "other keys")
        until(lambda: pinged(a, b, "-c20", "-i.1"), "pings by those")
    say("figure", "charon killed:", re.findall(r"[\d.]+% packet loss", said[0])[0])
    assert "charon was killed by signal 9" in a.log.read_text()
    meet(a, b)


def restart(a: Host, b: Host) -> None:
    with pinging(a, b) as said:
        b.start("auto")
        settle(b)
        until(lambda: charon(b) is not None, "charon runs")
        until(lambda: pinged(b, a), "b reaches a")
        until(lambda: pinged(b, a, "-c20", "-i.1"), "and goes on")
    lost = float(re.findall(r"([\d.]+)% packet loss", said[0])[0])
    say("figure", "restart:", said[0].splitlines()[-2] if len(said[0].splitlines()) > 1 else said[0])
    assert lost < 5, said[0]


def killed(a: Host, b: Host) -> None:
    """Its charon goes on, and is the next one's."""
    before = charon(b)
    with pinging(a, b) as said:
        os.kill(b.pid, signal.SIGKILL)
        os.waitpid(b.pid, 0)
        b.pid = 0
        assert charon(b) == before
        b.start("auto")
        settle(b)
        until(lambda: f"charon goes on as process {before}" in b.log.read_text(), "it is adopted")
        until(lambda: pinged(b, a), "b reaches a")
    assert " 0% packet loss" in said[0], said[0]
    assert charon(b) == before


def peer_goes(a: Host, b: Host) -> None:
    """Its policies, its connection and its keys go with it."""
    b.stop()
    assert charon(b) is None
    keys = etcdctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/").split()
    etcdctl("del", next(found for found in keys if f"/{b.subnet.ip}-24" in found))
    until(lambda: policies(a) == [], "no policy is left")
    until(lambda: states(a) == [], f"no key is left: {states(a)}")
    b.start("auto")
    settle(b)
    meet(a, b)


def in_udp(a: Host, b: Host) -> None:
    configure(UDPEncap=True)
    for host in (a, b):
        until(lambda host=host: f"FLANNEL_MTU={MTU_IN_UDP}\n" in host.file.read_text(), "another MTU")  # type: ignore[misc]
    until(lambda: "encap type espinudp" in shell("ip xfrm state", "a"), "keys for ESP in UDP")
    until(lambda: pinged(a, b), "they meet")
    with captured() as frames:
        assert pinged(a, b, "-p", PATTERN.hex())
    port = (4500).to_bytes(2, "big")
    assert len([frame for frame in of_protocol(frames, UDP) if frame[36:38] == port]) >= 4
    assert of_protocol(frames, ESP) == []
    assert not any(PATTERN in frame for frame in frames)
    meet(a, b, MTU_IN_UDP)


def another_key(a: Host, b: Host) -> None:
    """All change over; and one that has another key is told of, and kept out."""
    configure(PSK=PSK[::-1])
    for host in (a, b):
        until(lambda host=host: f"FLANNEL_MTU={MTU}\n" in host.file.read_text(), "the MTU of before")  # type: ignore[misc]
    until(lambda: pinged(a, b), "they meet")
    meet(a, b)


def another_backend(a: Host, b: Host) -> None:
    etcdctl("put", "/coreos.com/network/config", json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}))
    for host in (a, b):
        until(lambda host=host: policies(host) == [] and charon(host) is None, "neither policy nor charon is left")  # type: ignore[misc]
        until(lambda host=host: states(host) == [], "no key is left")  # type: ignore[misc]
    until(lambda: pinged(a, b), "they meet by vxlan")
    configure()
    until(lambda: len(policies(a)) == 3, "and back")
    until(lambda: pinged(a, b), "they meet again")


def beside_flanneld(a: Host) -> None:
    """The real one, with a charon of its own, is a peer like any other; and what it makes is what we make."""
    c = Host("c")
    c.file.parent.mkdir()
    shell("ip route add default via 192.168.90.254", "c")  # flanneld makes no route, and policies are asked after one is found
    with own_run(c) as holder:
        prefix = ["nsenter", f"--mount=/proc/{holder}/ns/mnt", f"--root=/proc/{holder}/root", "--wd=/"]
        with flanneld(c, prefix):
            settle(c)
            until(lambda: pinged(a, c), f"a reaches it: {c.log.read_text()[-600:]}")
            meet(a, c)
            ours = [line for line in policies(a) if "192.168.90.3" in line]
            mirrored = {theirs for line in ours for theirs in _mirror(line)}
            assert {line for line in policies(c) if "192.168.90.1" in line} == mirrored, (policies(c), mirrored)


def _mirror(line: str) -> list[str]:
    """A policy as the host at the other end has it: what goes out here comes in there."""
    (way,) = re.findall(r" dir (\w+) ", line)
    return [line.replace(f" dir {way} ", f" dir {theirs} ") for theirs in {"out": ("in", "fwd"), "in": ("out",), "fwd": ()}[way]]


def cleaned(a: Host) -> None:
    os.kill(a.pid, signal.SIGKILL)
    os.waitpid(a.pid, 0)
    a.pid = 0
    shell(f"ip xfrm policy add {FOREIGN}", "a")
    assert charon(a) is not None
    words = "--run-dir /run/a/run --state-dir /run/a/state --subnet-file /run/a/subnet.env"
    said = shell(f"{sys.executable} -m flannelpy cleanup --yes {words}", "a", timeout_s=120)
    for line in ("ip xfrm policy delete src 10.1.", "kill ", f"/run/a/run/{IKE_DIRECTORY}/{IKE_SOCKET}"):
        assert line in said, said
    assert len(policies(a)) == 1, policies(a)
    assert "10.99.0.0/16" in policies(a)[0]
    assert charon(a) is None
    assert not (Path("/run/a/run") / IKE_DIRECTORY).exists()


def main() -> None:
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge br_netfilter dummy vxlan esp4 xfrm_user")
    with check("contract"):
        contract()
    shutil.copytree(STRONGSWAN / "usr/lib/ipsec", "/usr/lib/ipsec", symlinks=True)
    shutil.copytree(STRONGSWAN / "etc", "/etc", symlinks=True, dirs_exist_ok=True)  # flanneld's charon is told nothing else
    make_hosts()
    etcd = start_etcd()
    configure()
    a, b = Host("a"), Host("b")
    try:
        with contextlib.ExitStack() as held:
            for host in (a, b):
                host.file.parent.mkdir()
            for host in (a, b):
                held.enter_context(own_run(host))
                host.log.touch()
                host.start("auto")
            try:
                settle(a, b)
                with check("tunnels"):
                    tunnels(a, b)
                with check("encrypted"):
                    encrypted(a, b)
                with check("key"):
                    key(a, b)
                with check("drift"):
                    drift(a, b)
                with check("in UDP"):
                    in_udp(a, b)
                with check("another key"):
                    another_key(a, b)
                with check("another backend"):
                    another_backend(a, b)
                with check("the agent is killed"):
                    killed(a, b)
                with check("a peer that goes"):
                    peer_goes(a, b)
                with check("charon dies"):
                    charon_dies(a, b)
                with check("a restart"):
                    restart(a, b)
                check_flanneld(lambda: beside_flanneld(a))
                with check("cleanup"):
                    cleaned(a)
            finally:
                for host in (a, b):
                    for log in Path(f"/run/{host.name}/run").glob(f"{IKE_DIRECTORY}/charon.log"):
                        print(host.name, "charon.log:", *log.read_text().splitlines()[-60:], sep="\n")
    except Exception:  # noqa: BLE001 - the edge of the run: what the agents said is shown in any case
        traceback.print_exc()
    finally:
        finish(etcd, a, b)
    say("end")


if __name__ == "__main__":
    main()
