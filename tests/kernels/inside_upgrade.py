"""Does an upgrade of the package lose a packet where udp is carried by the kernel? Runs in the guest of ``guest.py``.

    a 192.168.90.1, a bare Debian that systemd has booted, with the package ---- bridge, etcd ---- 192.168.90.2 b, an agent

The hosts are those of ``inside.py``; a pings b, 100 times a second.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.kernels import inside
from tests.kernels.inside import ENDPOINT, Host, check, finish, make_hosts, meet, say, shell, start_etcd

WITHIN_S = 900.0
until = partial(inside.until, within_s=WITHIN_S)

PLACE = Path("/run/booted")
CGROUP = Path("/sys/fs/cgroup/a")
OPTIONS = f"--etcd-endpoints={ENDPOINT} --iface=eth1 --udp-engine=kernel --probe=false"
NSPAWN = (
    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe", "--machine=a"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no", f"--directory={PLACE}/root"),
    *("--network-namespace-path=/run/netns/a", "--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf"),
)
ENVIRONMENT = {
    "SYSTEMD_NSPAWN_LOCK": "0",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
    "UNIFIED_CGROUP_HIERARCHY": "1",
}


class Packaged(Host):
    """A host on which systemd runs the package's agent."""

    def __init__(self, name: str, debian: Path) -> None:
        super().__init__(name)
        PLACE.mkdir()
        shell(f"mount -t tmpfs -o mode=755 t {PLACE}; mkdir {PLACE}/u {PLACE}/w {PLACE}/root")
        shell(f"mount -t overlay -o lowerdir={debian},upperdir={PLACE}/u,workdir={PLACE}/w o {PLACE}/root")
        CGROUP.mkdir(exist_ok=True)
        words = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(CGROUP / "cgroup.procs"), *NSPAWN]
        environ = {**os.environ, **ENVIRONMENT}
        self.nspawn = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environ, start_new_session=True)
        self.leader = 0
        until(self._booted, "systemd has booted")
        self.file = Path("/proc", str(self.leader), "root", "run/flannel/subnet.env")

    def _booted(self) -> bool:
        assert self.nspawn.poll() is None, "systemd-nspawn has ended"
        children = Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
        self.leader = int(children[0]) if children else 0
        said = subprocess.run(self._entered("systemctl is-active multi-user.target"), capture_output=True, text=True, check=False)
        return bool(self.leader) and said.stdout.strip() == "active"

    def _entered(self, command: str) -> list[str]:
        # No root can be pivoted from an initramfs's (pivot_root(2)): systemd-nspawn has moved its own over it, in its namespace's.
        return ["nsenter", "-t", str(self.leader), "--all", "--root", "--wd", "--", "sh", "-c", command]

    def type(self, command: str) -> str:
        """What root types there; what was said. Raises CalledProcessError."""
        done = subprocess.run(self._entered(command), capture_output=True, text=True, timeout=WITHIN_S, check=True)
        return done.stdout.strip()

    def install(self, package: Path) -> None:
        """As an operator does, with the files there."""
        (PLACE / "root/opt" / package.name).write_bytes(package.read_bytes())
        say("dpkg", self.type(f"dpkg -i /opt/{package.name}")[-200:].replace("\n", " | "))

    @property
    def main_pid(self) -> str:
        return self.type("systemctl show -p MainPID --value flannelpy")

    @property
    def active(self) -> bool:
        return self.type("systemctl is-active flannelpy || :") == "active"


def upgraded(a: Packaged, b: Host, newer: Path) -> None:
    """Another version, another process, the same device and FOU port, and no ping lost; more than so many were sent meanwhile."""
    before = a.main_pid
    device = shell("ip -o link show flannel0; ip fou show", "a")
    words = ["ip", "netns", "exec", "a", "ping", "-n", "-i", ".01", "-W5", "-I", a.inside, b.inside]
    pings = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        a.install(newer)
        until(lambda: a.active and a.main_pid not in ("0", before), "the new version's agent is ready")
    finally:
        pings.send_signal(signal.SIGINT)
        said, _ = pings.communicate(timeout=60)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found, said[-300:]
    sent, received = int(found[1]), int(found[2])
    say("figure", f"pings during the upgrade: {sent}, lost: {sent - received}")
    assert sent > 100, said[-300:]
    assert received == sent, said[-300:]
    assert a.type("dpkg-query -W -f '${Version}' flannelpy").endswith(".1")
    assert shell("ip -o link show flannel0; ip fou show", "a") == device
    assert "udp engine: kernel" in a.type("journalctl -o cat -u flannelpy")


def main() -> None:
    debian, package, newer = map(Path, sys.argv[1:])
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy nf_tables fou ipip overlay; mount -t cgroup2 c /sys/fs/cgroup")
    make_hosts()
    etcd = start_etcd()
    b = Host("b")
    b.file.parent.mkdir()
    b.log.touch()
    b.start("kernel")
    a = Packaged("a", debian)
    a.log.touch()
    say("booted")
    try:
        with check("an upgrade loses no packet"):
            a.install(package)
            (PLACE / "root/etc/default/flannelpy").write_text(f'FLANNELPY_OPTIONS="{OPTIONS}"\n')
            a.type("systemctl start flannelpy")
            for host in (a, b):
                host.await_ready()
                inside.finish_checksums(host, before_the_wire=True)
            meet(a, b)
            say("met")
            upgraded(a, b, newer)
            meet(a, b)
    finally:
        a.log.write_text(a.type("journalctl -o cat -u flannelpy"))
        finish(etcd, a, b)
        a.nspawn.kill()
        a.nspawn.wait()
    say("end")


if __name__ == "__main__":
    main()
