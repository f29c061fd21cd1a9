"""Does a network move between Types that take modules of the kernel, with no packet lost? Runs in the guest of ``guest.py``.

    a 192.168.90.1 ----+---- bridge, etcd ----+---- 192.168.90.2 b
                                              |
                                       192.168.90.3 c

Agents are real. Each of the three pings the next one, 100 times a second, all the time.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.kernels.inside import Host, check, finish, make_hosts, say, shell, start_etcd
from tests.kernels.inside_wireguard import etcdctl

WITHIN_S = 500.0


def until(fact: Callable[[], object], what: str) -> None:
    """Once a second: what is asked here are programs, each of which takes the guest its time, and may not end in time."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        with suppress(subprocess.SubprocessError):
            if fact():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {WITHIN_S:g} s: {what}")
        time.sleep(1.0)


PREFIX = "/coreos.com/network"
TYPES: dict[str, tuple[dict[str, str], str]] = {
    "vxlan": ({"Type": "vxlan"}, "flannel.1"),
    "host-gw": ({"Type": "host-gw"}, "eth1"),
    "wireguard": ({"Type": "wireguard"}, "flannel-wg"),
    "ipip": ({"Type": "ipip"}, "flannel.ipip"),
    "udp": ({"Type": "udp", "Engine": "kernel"}, "flannel0"),
}
"""What is put into the config, and by which device packets then go."""

WALKS = {
    "wireguard": ("vxlan", "wireguard", "host-gw", "wireguard", "vxlan"),
    "ipip": ("vxlan", "ipip", "wireguard", "ipip", "host-gw", "ipip", "vxlan"),
    "udp": ("vxlan", "udp", "wireguard", "udp", "host-gw", "udp", "vxlan"),
}
"""Each way between vxlan, host-gw and these, once. Of ipip and udp by the kernel, whose devices want the same local address, one
goes after the other: that loses packets, and is not walked here.
"""


def put(name: str) -> None:
    etcdctl("put", f"{PREFIX}/config", json.dumps({"Network": "10.1.0.0/16", "Backend": TYPES[name][0]}))


def published() -> set[str]:
    """The Types that the leases name, and that of what is beside them."""
    values = [
        json.loads(line) for line in etcdctl("get", "--prefix", "--print-value-only", f"{PREFIX}/subnets/").splitlines() if line
    ]
    beside = etcdctl("get", "--prefix", "--keys-only", f"{PREFIX}/flannelpy/hosts/").split()
    return {value.get("BackendType", "udp") for value in values} | ({"beside"} if beside else set())


def moved(name: str, *hosts: Host) -> bool:
    """True where all goes by this Type, and nothing of another is left."""
    options, device = TYPES[name]
    for host in hosts:
        links = {word.partition("@")[0] for word in shell("ip -br link", host.name).split()}
        others = {other for _, other in TYPES.values() if other not in (device, "eth1")}
        routes = [line for line in shell("ip route", host.name).splitlines() if line.startswith("10.1.") and "dev" in line]
        ours = [line for line in routes if "proto 102" in line]
        if links & others or not ours or any(f"dev {device} " not in f"{line} " for line in ours):
            return False
    return published() == {options["Type"]}


@contextmanager
def losing_nothing(*hosts: Host) -> Iterator[None]:
    """Each pings the next for the time of the block: of what was sent before the last answer, all was answered."""
    streams = []
    for host, other in zip(hosts, (*hosts[1:], hosts[0]), strict=True):
        log = Path(f"/run/ping-{host.name}")
        words = ["ip", "netns", "exec", host.name, "ping", "-n", "-i", ".01", "-W2", "-I", host.inside, other.inside]
        streams.append((host, log, subprocess.Popen(words, stdout=log.open("w"), stderr=subprocess.STDOUT)))
    try:
        yield
        wanted = [len(log.read_text().splitlines()) + 20 for _, log, _ in streams]
        for (host, log, _), least in zip(streams, wanted, strict=True):
            until(lambda log=log, least=least: len(log.read_text().splitlines()) >= least, f"{host.name} pings on")  # type: ignore[misc]
    finally:
        for _, _, process in streams:
            process.send_signal(signal.SIGINT)
            process.wait(10)
    for host, log, _ in streams:
        text = log.read_text()
        answered = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", text)]
        lost = _lost(answered)
        say("pings", f"{host.name}: {len(answered)} answered, {len(lost)} lost {lost[:5]}")
        assert not lost, (
            f"{host.name} lost {len(lost)}: {lost[:20]}; {[line for line in text.splitlines() if 'ttl' not in line][:5]}"
        )


def _lost(answered: list[int]) -> list[int]:
    """Numbers that are missing below the last, where they count on from 65535 with 0."""
    found, at, whole = set[int](), 0, list[int]()
    for number in answered:
        at += (number - at + 0x8000) % 0x10000 - 0x8000
        whole.append(at)
    found.update(range(min(whole), max(whole) + 1))
    return sorted(found - {*whole})


def main() -> None:
    walk = WALKS[sys.argv[1]]
    say("kernel", os.uname().release)
    shell("modprobe -a veth bridge dummy vxlan wireguard ipip fou")
    make_hosts()
    etcd = start_etcd()
    put(walk[0])
    hosts = tuple(Host(name) for name in "abc")
    try:
        for host in hosts:
            host.file.parent.mkdir()
            host.log.touch()
            host.start("auto")
        for host in hosts:
            until(host.file.exists, f"{host.name} is ready: {host.log.read_text()[-400:]}")
            host.await_ready()
        until(lambda: moved(walk[0], *hosts), f"all is {walk[0]}")
        subnets = [str(host.subnet) for host in hosts]
        with losing_nothing(*hosts):
            for before, name in itertools.pairwise(walk):
                began = time.monotonic()
                with check(f"{before} to {name}"):
                    put(name)
                    until(lambda name=name: moved(name, *hosts), f"all is {name}")  # type: ignore[misc]
                say("took", f"{before} to {name}: {time.monotonic() - began:.1f} s")
        assert [str(host.subnet) for host in hosts] == subnets
        say("ok", "no packet was lost")
    except AssertionError as error:
        say("failed", error)
    finally:
        for host in hosts:
            print(shell("ip route; ip -br link", host.name))
        finish(etcd, *hosts)
    say("end")


if __name__ == "__main__":
    main()
