"""Is wireguard, and ipip, as fast as what a person makes with wg and ip? Runs in the guest of ``guest.py``, on two of its hosts.

    a 192.168.90.1, overlay 10.1.x.1, by hand 10.99.1.1 ---- bridge, etcd ---- 192.168.90.2, overlay 10.1.y.1, 10.99.2.1 b

Both ways stand beside each other and take turns, round by round: in a guest without KVM no figure says anything by itself.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from functools import partial

from tests.kernels import inside
from tests.kernels.inside import NUMBER, Host, check, finish, goodput, make_hosts, say, shell, start_etcd
from tests.kernels.inside_wireguard import etcdctl, pinged

until = partial(inside.until, within_s=300.0)

ROUNDS = 7
PORT = 51999
DEVICES = {"wireguard": "flannel-wg", "ipip": "flannel.ipip"}
MTUS = {"wireguard": 1420, "ipip": 1480}


def by_hand(kind: str) -> None:
    """The same between the same hosts, as wg(8) and ip-link(8) have it."""
    keys = {}
    for host in "ab":
        keys[host] = shell(f"umask 077; wg genkey >/run/{host}.key; wg pubkey </run/{host}.key").strip()
    for host, other in (("a", "b"), ("b", "a")):
        outer, remote = NUMBER[host], NUMBER[other]
        if kind == "wireguard":
            peer = f"peer {keys[other]} endpoint 192.168.90.{remote}:{PORT} allowed-ips 10.99.{remote}.0/24"
            shell(f"ip link add hand type wireguard; wg set hand listen-port {PORT} private-key /run/{host}.key {peer}", host)
        else:  # of two devices with one local address the kernel takes the one that names the other end, too
            shell(f"ip link add hand type ipip local 192.168.90.{outer} remote 192.168.90.{remote} ttl inherit nopmtudisc", host)
        shell(f"ip link set hand mtu {MTUS[kind]} up; ip addr add 10.99.{outer}.1/24 dev hand", host)
        shell(f"ip route add 10.99.{remote}.0/24 dev hand", host)


def main() -> None:
    kind = sys.argv[1]
    say("kernel", os.uname().release)
    shell(f"modprobe -a veth bridge dummy {kind}")
    make_hosts()
    etcd = start_etcd()
    backend = {"Type": kind, "Guard": "off"}  # what a person makes has none
    etcdctl("put", "/coreos.com/network/config", json.dumps({"Network": "10.1.0.0/16", "Backend": backend}))
    a, b = Host("a"), Host("b")
    try:
        for host in (a, b):
            host.file.parent.mkdir()
            host.log.touch()
            host.start("auto")
        for host in (a, b):
            until(host.file.exists, f"{host.name} is ready: {host.log.read_text()[-400:]}")
            host.await_ready()
        until(lambda: pinged("a", a.inside, b.inside), "they meet")
        by_hand(kind)
        until(lambda: pinged("a", "10.99.1.1", "10.99.2.1"), "they meet by hand")
        with check(f"{kind} is as fast as by hand"):
            ways = {
                "ours": partial(goodput, "a", "b", b.inside, a.inside),
                "by hand": partial(goodput, "a", "b", "10.99.2.1", "10.99.1.1"),
            }
            found: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name in sorted(ways, reverse=bool(number % 2)):
                    found[name].append(ways[name]())
            ratios = [ours / hand for ours, hand in zip(found["ours"], found["by hand"], strict=True) if hand]
            say("rounds", {name: [round(value) for value in values] for name, values in found.items()})
            ratio = statistics.median(found["ours"]) / statistics.median(found["by hand"])
            say(
                "figure", f"{kind}: {ratio:.3f} of the same by hand (medians of {ROUNDS}; of pairs {statistics.median(ratios):.3f})"
            )
            assert ratio > 0.8, ratio
    finally:
        print(shell(f"ip -d link show {DEVICES[kind]}; ip -d link show hand; true", "a"))
        finish(etcd, a, b)
    say("end")


if __name__ == "__main__":
    main()
