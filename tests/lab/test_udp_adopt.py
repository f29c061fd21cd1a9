"""Does the datapath go on while its host changes, and does it come back when a worker stands still?

The lab and its drawing are those of udp's other tests (udp_support.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from tests.lab.test_udp_fast_path import transfer
from tests.lab.udp_support import CA, CB, HA, HB, Host, hosts, inside, ip, network, pings, runs, start_s, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and TUN devices")
__all__ = ["hosts", "network"]

MEGABYTES = 60
LOOKS_S = 8.0
"""Five looks a second apart without a heartbeat, and what a busy machine adds."""


def set_mtu(both: tuple[Host, Host], mtu: int) -> None:
    """What an operator does to the uplink, and the agent's kernel part then to the device; in no order that anybody relies on."""
    for host in both:
        ip(f"-n {host.name} link set eth1 mtu {mtu}")
        assert host.tell("adopt", mtu) is True
        ip(f"-n {host.name} link set flannel0 mtu {mtu - 28}")


def test_the_uplinks_mtu_changes_under_a_stream(hosts: tuple[Host, Host]) -> None:
    before = [(host.workers(), host.tell("queues")[0]["socket"]) for host in hosts]
    index = [inside(host.name, "cat /sys/class/net/flannel0/ifindex") for host in hosts]
    sent = [0]
    enough = threading.Event()

    def stream() -> None:
        while not enough.is_set():
            transfer(CA, MEGABYTES)  # both ends compare what was sent and what came
            sent[0] += 1

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for mtu in (1400, 9000, 1500, 1280):
            done = sent[0]
            set_mtu(hosts, mtu)
            until(lambda done=done: sent[0] > done or not thread.is_alive(), within_s=60)  # type: ignore[misc]
            assert thread.is_alive()
            assert pings(CB, "10.5.72.2")
    finally:
        enough.set()
        thread.join()
        set_mtu(hosts, 1500)
    assert [(host.workers(), host.tell("queues")[0]["socket"]) for host in hosts] == before
    assert [inside(host.name, "cat /sys/class/net/flannel0/ifindex") for host in hosts] == index
    for host in hosts:
        dropped = {name for name in host.counters if "dropped" in name} - {"outbound_dropped_not_ipv4", "outbound_dropped_too_big"}
        assert not dropped, host.counters


def large_ping() -> str:
    """What ping says, of its own kernel's errors too, to a packet of 1472 bytes that must not be cut."""
    ip(f"-n {CA} route flush cache")
    words = f"ip netns exec {CA} ping -n -c1 -W1 -Mdo -s1444 10.5.9.2"
    return subprocess.run(words.split(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20).stdout


def test_a_smaller_mtu_is_told_to_who_sends_more(hosts: tuple[Host, Host]) -> None:
    try:
        set_mtu(hosts, 1400)
        assert f"Frag needed and DF set (mtu = {1400 - 28})" in large_ping()
        set_mtu(hosts, 1500)
        assert " 0% packet loss" in large_ping()
    finally:
        set_mtu(hosts, 1500)
        ip(f"-n {CA} route flush cache")


@pytest.mark.parametrize("name", [HA, HB], ids=["a", "b"])
def test_a_worker_that_was_stopped_is_replaced(hosts: tuple[Host, Host], name: str) -> None:
    host = next(each for each in hosts if each.name == name)
    worker = host.worker()
    assert worker is not None
    os.kill(worker, signal.SIGSTOP)
    until(lambda: not runs(worker), within_s=LOOKS_S + 5 * start_s())
    until(lambda: pings(CA, "10.5.9.2") and pings(CB, "10.5.72.2"), within_s=LOOKS_S)
    assert host.worker() not in (None, worker)
