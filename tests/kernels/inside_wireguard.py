"""Does wireguard do its work on a kernel that has it? Runs in the guest of ``guest.py``, on the hosts of ``inside.py``.

    a 192.168.90.1 fd90::1, overlay 10.1.x.1 fd01:x::1 ---- bridge, etcd ---- 192.168.90.2 fd90::2, overlay 10.1.y.1 fd01:y::1 b

Agents are real. First of all the contract of the kernel's objects (tests/contract) is held against this kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from functools import partial

import uvloop
from netaddr import IPAddress, IPNetwork

from flannelpy.core.objects import HostState, Key, Scope, WireguardDevice, WireguardPeer
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.kernel.netlink import NetlinkKernel
from netns_lab.etcd import binary
from tests.kernels import inside
from tests.kernels.inside import (
    ENDPOINT,
    NUMBER,
    Host,
    check,
    check_flanneld,
    enter,
    finish,
    flanneld,
    make_hosts,
    say,
    shell,
    start_etcd,
)

until = partial(inside.until, within_s=200.0)

DEVICES = frozenset({"flannel-wg", "flannel-wg-v6"})
SCOPE = Scope(DEVICES, (IPNetwork("10.1.0.0/16"), IPNetwork("fd01::/32")), "eth1")
PSK = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
BOTH = {"EnableIPv6": True, "Network": "10.1.0.0/16", "IPv6Network": "fd01::/32"}
CONTRACT = "tests/contract/test_kernel_wireguard.py"
PATTERN = bytes.fromhex("c0ffee") * 5
MTU = 1420


def etcdctl(*words: str) -> str:
    done = subprocess.run([binary("etcdctl"), f"--endpoints={ENDPOINT}", *words], capture_output=True, text=True, check=True)
    return done.stdout


def configure(config: dict[str, object], **options: object) -> None:
    etcdctl("put", "/coreos.com/network/config", json.dumps({**config, "Backend": {"Type": "wireguard", "PSK": PSK, **options}}))


def in_namespace(host: str, steps: Sequence[Step] = ()) -> HostState:
    """Carry out steps by another hand than the agent's, and say what is there then."""
    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            enter(host)
            os.write(there, uvloop.run(_work(steps)).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the edge of a process
            traceback.print_exc()
            os._exit(1)
    os.close(there)
    with os.fdopen(here, "rb") as file:
        said = json.loads(file.read() or b"null")
    assert os.waitpid(pid, 0)[1] == 0
    return HostState.of(*(_peer(words) if "endpoint" in words else _device(words) for words in said))


async def _work(steps: Sequence[Step]) -> str:
    kernel = NetlinkKernel()
    try:
        assert [str(result.error) for result in await kernel.apply(steps) if result.error] == []
        told: list[dict[str, object]] = []
        for item in await kernel.observe(SCOPE, [Key("wg", ""), Key("wgpeer", "")]):
            if isinstance(item, WireguardPeer):
                endpoint = None if item.endpoint is None else [str(item.endpoint[0]), item.endpoint[1]]
                told.append(
                    {
                        "dev": item.dev,
                        "key": item.public_key,
                        "endpoint": endpoint,
                        "allowed": [str(net) for net in item.allowed_ips],
                        "psk": item.preshared_key.reveal().hex(),
                    }
                )
            elif isinstance(item, WireguardDevice):
                told.append({"dev": item.dev, "port": item.listen_port, "private": item.private_key.reveal().hex()})
        return json.dumps(told)
    finally:
        await kernel.close()


def _peer(words: dict[str, object]) -> WireguardPeer:
    endpoint, allowed = words["endpoint"], words["allowed"]
    assert isinstance(allowed, list)
    at = (IPAddress(endpoint[0]), endpoint[1]) if isinstance(endpoint, list) else None
    nets = tuple(IPNetwork(net) for net in allowed)
    return WireguardPeer(str(words["dev"]), str(words["key"]), at, nets, 0, Secret(bytes.fromhex(str(words["psk"]))))


def _device(words: dict[str, object]) -> WireguardDevice:
    return WireguardDevice(str(words["dev"]), int(str(words["port"])), Secret(bytes.fromhex(str(words["private"]))))


def peers(host: Host) -> list[WireguardPeer]:
    return [item for item in in_namespace(host.name) if isinstance(item, WireguardPeer)]


# ---------------------------------------------------------------------------------------------------------------- hosts


def inside6(host: Host) -> str:
    found = re.search(r"FLANNEL_IPV6_SUBNET=(\S+)/", host.file.read_text())
    assert found
    return found[1]


def settle(*hosts: Host) -> None:
    """Wait for the agents, and give each host addresses inside its subnets."""
    for host in hosts:
        until(host.file.exists, f"{host.name} is ready: {host.log.read_text()[-400:]}")
        shell("ip link add br1 type dummy 2>/dev/null; ip link set br1 up; ip addr flush dev br1 scope global", host.name)
        text = host.file.read_text()
        for found in re.findall(r"^FLANNEL_(?:IPV6_)?SUBNET=(\S+)$", text, re.MULTILINE):
            shell(f"ip addr add {found} dev br1 {'nodad' if ':' in found else ''}", host.name)


def pinged(here: str, source: str, target: str, *options: str) -> bool:
    six = "-6" if ":" in target else ""
    words = f"ping {six} -n -c2 -i .3 -W2 {' '.join(options)} -I {source} {target}; true"
    return " 0% packet loss" in shell(words, here)


def meet(one: Host, other: Host, families: str = "46") -> None:
    """Ping, and full MTU with DF, and one byte more, both ways."""
    for here, there in ((one, other), (other, one)):
        ends = [(here.inside, there.inside, 28)] if "4" in families else []
        ends += [(inside6(here), inside6(there), 48)] if "6" in families else []
        for source, target, head in ends:
            until(lambda s=source, t=target, h=here: pinged(h.name, s, t), f"{here.name} reaches {target}")  # type: ignore[misc]
            assert pinged(here.name, source, target, "-M", "do", "-s", str(MTU - head)), f"{target}: {MTU} bytes"
            assert not pinged(here.name, source, target, "-M", "do", "-s", str(MTU - head + 1)), f"{target}: {MTU + 1} bytes"


def on_the_wire(a: Host, b: Host) -> None:
    """What is sent is at the port, and nobody reads it."""
    frames = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind(("pa", 0))
        tap.settimeout(0.5)
        assert pinged("a", a.inside, b.inside, "-p", PATTERN.hex())
        with contextlib.suppress(TimeoutError):
            while True:
                frames.append(tap.recv(2048))
    port = (51820).to_bytes(2, "big")
    sent = [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == port]
    assert len(sent) >= 4, f"{len(sent)} of {len(frames)}"
    assert not any(PATTERN in frame for frame in frames)


def drift(a: Host, b: Host) -> None:
    """Whatever another hand changes is as it was within seconds."""
    wanted = in_namespace("a").objects
    (peer,) = [item for item in peers(a) if item.dev == "flannel-wg"]
    thief = WireguardPeer("flannel-wg", PSK, None, peer.allowed_ips)  # any 32 bytes are a key
    for harm in (
        [Step("remove", peer, peer)],
        [Step("add", thief)],
        [Step("change", WireguardDevice("flannel-wg", 4444, Secret(bytes(31) + b"\x40")))],
    ):
        assert in_namespace("a", harm).objects != wanted
        until(lambda: {key: in_namespace("a").get(key) for key in wanted} == wanted, f"repaired: {harm[0]}")
        until(lambda: pinged("a", a.inside, b.inside), "they meet again")
    for command in ("ip link set flannel-wg down", "ip link del flannel-wg"):
        shell(command, "a")
        until(lambda: pinged("a", a.inside, b.inside), f"they meet again after {command}")
    until(lambda: in_namespace("a").objects == wanted, f"all is as it was, and the thief gone: {list(map(str, peers(a)))}")


def roaming(a: Host, b: Host) -> None:
    """A peer behind NAT is where its packets come from, and that is no drift; what is drift beside it is repaired."""
    own = [item.public_key for item in peers(b) if item.dev == "flannel-wg"]
    shell("ip addr add 192.168.90.99/32 dev eth1", "a")
    shell("nft add table ip nat; nft 'add chain ip nat out { type nat hook postrouting priority 100; }'", "a")
    shell(
        "nft add rule ip nat out udp sport 51820 ip saddr 192.168.90.1 snat to 192.168.90.99:40000",
        "a",
    )

    def place() -> str:
        (peer,) = [item for item in peers(b) if item.public_key in own and item.dev == "flannel-wg"]
        return str(peer)

    shell("ip link set flannel-wg down; ip link set flannel-wg up", "a")  # its socket's flows are new ones
    until(lambda: pinged("a", a.inside, b.inside) and "endpoint 192.168.90.99:40000 " in place(), f"b follows: {place()}")
    (other,) = [item for item in peers(b) if item.dev == "flannel-wg-v6"]
    for _ in range(2):
        in_namespace("b", [Step("remove", other, other)])
        until(lambda: other.key in in_namespace("b"), "the other peer is back")
    assert "endpoint 192.168.90.99:40000 " in place(), place()
    assert pinged("b", b.inside, a.inside)
    shell("nft delete table ip nat; ip addr del 192.168.90.99/32 dev eth1", "a")


def restart_under_pings(a: Host, b: Host) -> None:
    """With nothing of ours in the path, the agent may go and come, and finds all as it should be."""
    index = shell("cat /sys/class/net/flannel-wg/ifindex", "b")
    words = ["ip", "netns", "exec", "a", "ping", "-n", "-i", ".1", "-W2", "-I", a.inside, b.inside]
    pings = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        b.start("auto")
        until(b.file.exists, "b is ready")
        until(lambda: pinged("b", b.inside, a.inside), "b reaches a")
    finally:
        pings.send_signal(signal.SIGINT)
        said, _ = pings.communicate(timeout=10)
    assert " 0% packet loss" in said, said[-200:]
    assert shell("cat /sys/class/net/flannel-wg/ifindex", "b") == index


def another_key(a: Host, b: Host) -> None:
    """A host that comes with another key is known by that one, and no longer by the old one."""
    before = {item.public_key for item in peers(b)}
    a.stop()
    shell("rm /run/a/state/wireguard.key")
    a.start("auto")
    settle(a)
    until(lambda: before.isdisjoint(item.public_key for item in peers(b)) and len(peers(b)) == 2, "the old key is gone")
    meet(a, b)


def beside_flanneld(*hosts: Host) -> None:
    """A tunnel for each family, and one for both."""
    for mode in ("separate", "auto"):
        configure(BOTH, Mode=mode)
        c = Host("c")
        c.file.unlink(missing_ok=True)
        with flanneld(c):
            settle(c, *hosts)
            for host in hosts:
                meet(host, c)
        shell("ip link del flannel-wg; ip link del flannel-wg-v6; true", "c")


def contract() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "real", CONTRACT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]


def main() -> None:
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy wireguard")
    with check("contract"):
        contract()
    make_hosts()
    for host, number in NUMBER.items():
        shell(f"ip addr add fd90::{number}/64 dev eth1 nodad", host)
    etcd = start_etcd()
    configure(BOTH)
    a, b = Host("a"), Host("b")
    try:
        for host in (a, b):
            host.file.parent.mkdir()
            host.log.touch()
            host.start("auto")
        settle(a, b)
        with check("both families"):
            meet(a, b)
            assert {item.dev for item in peers(a)} == DEVICES
            shown = shell("ip -d link show flannel-wg; ip route; ip -6 route; ip addr show flannel-wg", "a")
            routes = ("10.1.0.0/16 dev flannel-wg proto 102 scope link", "fd01::/32 dev flannel-wg-v6")
            for part in (f"mtu {MTU}", "wireguard", *routes):
                assert part in shown, f"{part} in {shown}"
        with check("encrypted"):
            on_the_wire(a, b)
        with check("key"):
            mode, kept = shell("stat -c %a /run/a/state/wireguard.key; cat /run/a/state/wireguard.key").split()
            assert mode == "600"
            for secret in (kept, PSK):
                assert secret not in a.log.read_text() + b.log.read_text()
        with check("drift"):
            drift(a, b)
        with check("roaming"):
            roaming(a, b)
        with check("a restart loses no packet"):
            restart_under_pings(a, b)
        with check("another key"):
            another_key(a, b)
        with check("one tunnel for both"):
            configure(BOTH, Mode="auto")
            for host in (a, b):
                until(lambda host=host: "flannel-wg-v6" not in shell("ip -br link", host.name), "one device")  # type: ignore[misc]
            until(lambda: [len(item.allowed_ips) for item in peers(a)] == [2], "one peer with both subnets")
            meet(a, b)
        with check("a peer that goes"):
            b.stop()
            keys = etcdctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/").split()
            key = next(key for key in keys if f"/{b.subnet.ip}-24" in key)
            etcdctl("del", key)
            until(lambda: peers(a) == [], "nobody is left")
            b.start("auto")
            settle(b)
            meet(a, b)
        with check("another backend"):
            etcdctl("put", "/coreos.com/network/config", json.dumps({**BOTH, "Backend": {"Type": "vxlan"}}))
            for host in (a, b):
                until(lambda host=host: "flannel-wg" not in shell("ip -br link", host.name), "no device is left")  # type: ignore[misc]
            until(lambda: pinged("a", a.inside, b.inside), "they meet by vxlan")
        check_flanneld(lambda: beside_flanneld(a, b))
        with check("IPv6 only"):
            for host in (a, b):
                host.stop()
            etcdctl("del", "--prefix", "/coreos.com/network/subnets/")
            configure({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd01::/32"})
            for host in (a, b):
                host.start("auto")
            settle(a, b)
            meet(a, b, "6")
            assert {item.dev for item in peers(a)} == {"flannel-wg-v6"}
    finally:
        finish(etcd, a, b)
    say("end")


if __name__ == "__main__":
    main()
