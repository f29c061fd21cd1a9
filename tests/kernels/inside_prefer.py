"""Do two hosts encrypt between them in a network of another Type, where they prefer that? Runs in the guest of ``guest.py``.

The hosts are those of ``inside_wireguard.py``. Turned on and off under pings, 100 a second, of which none may be lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import partial

from tests.kernels import inside
from tests.kernels.inside import NUMBER, Host, check, finish, make_hosts, say, shell, start_etcd
from tests.kernels.inside_wireguard import BOTH, MTU, PSK, etcdctl, inside6, on_the_wire, pinged, settle

until = partial(inside.until, within_s=100.0)


def preferred(a: Host, b: Host) -> None:
    """In a network of vxlan, two hosts that prefer wireguard encrypt between them; turned on and off under pings that lose none."""
    vxlan = {"Type": "vxlan", "PSK": PSK}
    words = ["ip", "netns", "exec", "a", "ping", "-n", "-i", ".01", "-W2", "-I", a.inside, b.inside]
    pings = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def way(host: Host, other: Host) -> str:
        return shell(f"ip route show {other.subnet}; ip -6 route show {inside6(other).rpartition('::')[0]}::/64", host.name)

    def both_by(device: str, device6: str) -> bool:
        ways = [f"{way(one, other)} " for one, other in ((a, b), (b, a))]
        return all(f"dev {device} " in each and f"dev {device6} " in each for each in ways)

    try:
        etcdctl("put", "/coreos.com/network/config", json.dumps({**BOTH, "Backend": {**vxlan, "Prefer": ["wireguard"]}}))
        until(lambda: both_by("flannel-wg", "flannel-wg-v6"), "by wireguard")
        on_the_wire(a, b)
        assert pinged("b", inside6(b), inside6(a))
        full = f"ping -n -c3 -i .3 -W2 -M do -s {1450 - 28} -I {a.inside} {b.inside} 2>&1; true"
        assert f"mtu={MTU}" in shell(full, "a")  # what containers were given and does not fit is told, not lost
        etcdctl("put", "/coreos.com/network/config", json.dumps({**BOTH, "Backend": vxlan}))
        until(lambda: both_by("flannel.1", "flannel-v6.1"), "by vxlan")
        for host in (a, b):
            until(lambda host=host: "flannel-wg" not in shell("ip -br link", host.name), "no device is left")  # type: ignore[misc]
    finally:
        pings.send_signal(signal.SIGINT)
        said, _ = pings.communicate(timeout=10)
    say("preferred", said[-200:].replace("\n", " "))
    assert " 0% packet loss" in said, said[-300:]


def main() -> None:
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy vxlan wireguard")
    make_hosts()
    for host, number in NUMBER.items():
        shell(f"ip addr add fd90::{number}/64 dev eth1 nodad", host)
    etcd = start_etcd()
    etcdctl("put", "/coreos.com/network/config", json.dumps({**BOTH, "Backend": {"Type": "vxlan", "PSK": PSK}}))
    a, b = Host("a"), Host("b")
    try:
        for host in (a, b):
            host.file.parent.mkdir()
            host.log.touch()
            host.start("auto")
        settle(a, b)
        until(lambda: pinged("a", a.inside, b.inside), "they meet by vxlan")
        with check("preferred to the Type"):
            preferred(a, b)
    finally:
        for host in (a, b):
            print(shell("ip route; ip -6 route; ip -br link", host.name))
        finish(etcd, a, b)
    say("end")


if __name__ == "__main__":
    main()
