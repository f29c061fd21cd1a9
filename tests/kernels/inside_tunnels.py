"""Is a tunnel that the agent has made as fast as the same one made by hand? Runs in the guest of ``guest.py``.

    a ---- bridge, etcd ---- b        with agents
    d ----               --- e        the same devices by ip and by WireGuard's own attributes, without a guard

Streams of TCP take turns: each of the agents' is compared with those by hand right before and right after it. Each Type says one
line (``@@ figure TYPE MEDIAN (LOW to HIGH)``), the bounds between which the median lies with a probability of 95 %.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
from base64 import b64encode

from flannelpy.core.curve25519 import public_of
from netns_lab.bench_guard import Median, stream_s
from tests.kernels.inside import NUMBER, Host, check, finish, make_hosts, say, shell, start_etcd
from tests.kernels.inside_migration import until
from tests.kernels.inside_wireguard import etcdctl, pinged

BYTES = 8_000_000
BY_HAND = {"d": 4, "e": 5}
CONFIGS = {
    "wireguard": {"Type": "wireguard"},
    "ipip": {"Type": "ipip"},
    "ipip, Guard off": {"Type": "ipip", "Guard": "off"},
}
MTU = {"wireguard": 1420, "ipip": 1480}
PORT = 51820


def make_by_hand(kind: str) -> None:
    """Devices, addresses and routes of d and e."""
    for host in BY_HAND:
        shell("ip link del hand 2>/dev/null; true", host)
    if kind == "wireguard":
        keys = {host: secrets.token_bytes(32) for host in BY_HAND}
        for host, other in (("d", "e"), ("e", "d")):
            shell(f"ip link add hand mtu {MTU[kind]} type wireguard", host)
            pid = os.fork()
            if not pid:
                os._exit(_set_wireguard(host, other, keys))
            assert os.waitpid(pid, 0)[1] == 0, f"{host}'s WireGuard"
    for host, other in (("d", "e"), ("e", "d")):
        mine, theirs = BY_HAND[host], BY_HAND[other]
        if kind == "ipip":
            shell(f"ip link add hand mtu {MTU[kind]} type ipip local 192.168.90.{mine} nopmtudisc", host)
        shell(f"ip addr add 10.2.{mine}.0/32 dev hand; ip link set hand up", host)
        gateway = f"via 192.168.90.{theirs} dev hand onlink" if kind == "ipip" else "dev hand"
        shell(f"ip route replace 10.2.{theirs}.0/24 {gateway}", host)
    until(lambda: pinged("d", "10.2.4.1", "10.2.5.1"), "those made by hand meet")


def _set_wireguard(host: str, other: str, keys: dict[str, bytes]) -> int:
    """As ``wg set hand ...`` does, by another encoder than ours."""
    from pyroute2 import WireGuard

    from tests.kernels.inside import enter

    enter(host)
    theirs = BY_HAND[other]
    peer = {
        "public_key": b64encode(public_of(keys[other])).decode(),
        "endpoint_addr": f"192.168.90.{theirs}",
        "endpoint_port": PORT,
        "allowed_ips": [f"10.2.{theirs}.0/24"],
    }
    WireGuard().set("hand", private_key=b64encode(keys[host]).decode(), listen_port=PORT, peer=peer)
    return 0


def compared(a: Host, b: Host, rounds: int) -> Median:
    """The throughput from a to b, to that from d to e around it."""

    def by_hand() -> float:
        return BYTES / stream_s("d", "e", "10.2.5.1", BYTES)[0]

    def by_agents() -> float:
        return BYTES / stream_s("a", "b", b.inside, BYTES)[0]

    by_hand(), by_agents()  # the first one warms caches
    ratios, before = [], by_hand()
    for _ in range(rounds):
        rate, after = by_agents(), by_hand()
        ratios.append(rate / statistics.mean((before, after)))
        before = after
    return Median.of(ratios)


def main() -> None:
    rounds = int(sys.argv[1])
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy wireguard ipip nf_tables")
    make_hosts()
    for host, number in BY_HAND.items():
        shell(f"ip netns add {host}; ip link add p{host} type veth peer name eth1 netns {host}; ip link set p{host} master br0 up")
        shell(f"ip addr add 192.168.90.{number}/24 dev eth1; ip link set eth1 up; ip link set lo up", host)
        shell(f"ip link add br1 type dummy; ip link set br1 up; ip addr add 10.2.{number}.1/24 dev br1", host)
    assert set(NUMBER.values()).isdisjoint(BY_HAND.values())
    etcd = start_etcd()
    a, b = Host("a"), Host("b")
    try:
        for name, backend in CONFIGS.items():
            with check(name):
                etcdctl("put", "/coreos.com/network/config", json.dumps({"Network": "10.1.0.0/16", "Backend": backend}))
                for host in (a, b):
                    host.file.parent.mkdir(exist_ok=True)
                    host.log.touch()
                    host.start("auto")
                for host in (a, b):
                    until(host.file.exists, f"{host.name} is ready")
                    host.await_ready()
                device = {"wireguard": "flannel-wg", "ipip": "flannel.ipip"}[backend["Type"]]
                until(lambda device=device: f"dev {device}" in shell(f"ip route get {b.inside}", "a"), f"a's way is {device}")  # type: ignore[misc]
                until(lambda: pinged("a", a.inside, b.inside), "a reaches b")
                assert f"mtu {MTU[backend['Type']]} " in shell(f"ip link show {device}", "a")
                make_by_hand(backend["Type"])
                say("figure", name, compared(a, b, rounds))
    finally:
        finish(etcd, a, b)
    say("end")


if __name__ == "__main__":
    main()
