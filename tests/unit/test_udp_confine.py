"""What can a worker that somebody has taken over still reach? Not the agent, whose user it may be, and no file or program."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from backends.udp.worker.confine import MACHINES, REFUSED

pytestmark = pytest.mark.skipif(os.uname().machine not in MACHINES, reason="no table for this machine: nothing is given up")

TRIED = """
import ctypes, errno, os, resource, signal, socket, sys, threading
from backends.udp.worker import confine

victim, place = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if libc.syscall(confine.MACHINES[os.uname().machine][1][name], *arguments) < 0:
        raise OSError(ctypes.get_errno(), name)

own = socket.socketpair()
tries = {
    "end the agent": lambda: os.kill(victim, signal.SIGKILL),
    "stop the agent": lambda: signal.pidfd_send_signal(os.pidfd_open(victim), signal.SIGSTOP),
    "bound the agent": lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (0, 0)),
    "slow the agent": lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
    "pin the agent": lambda: os.sched_setaffinity(victim, {0}),
    "read the agent's memory": lambda: open(f"/proc/{victim}/mem", "rb"),
    "trace the agent": lambda: call("ptrace", 16, victim, 0, 0),
    "read a file": lambda: open(place + "/there"),
    "write a file": lambda: open(place + "/new", "w"),
    "remove a file": lambda: os.unlink(place + "/there"),
    "move a file": lambda: os.rename(place + "/there", place + "/moved"),
    "link a file": lambda: os.link(place + "/there", place + "/linked"),
    "make a directory": lambda: os.mkdir(place + "/directory"),
    "open a file to others": lambda: os.chmod(place + "/there", 0o666),
    "shorten a file": lambda: os.truncate(place + "/there", 0),
    "ask the agent": lambda: socket.socket(socket.AF_UNIX),
    "ask the kernel": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "call a service": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("127.0.0.1", int(sys.argv[3]))),
    "call without waiting": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC),
    "write headers": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255),
    "speak IPv6": lambda: socket.socket(socket.AF_INET6),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "go round the filter": lambda: call("io_uring_setup", 8, 0),
    "be root of a namespace": lambda: call("unshare", 0x10000000),
}
if not confine.refuse_calls():
    print("cannot")
for name, attempt in tries.items():
    try:
        attempt()
    except OSError as error:
        print(f"{name}: {errno.errorcode[error.errno]}")
    else:
        print(f"{name}: done")
thread = threading.Thread(target=print, args=("a thread runs",))
thread.start()
thread.join()
own[0].send(b"x")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.bind(("127.0.0.1", 0))
print(f"goes on: {own[1].recv(1)} {sum(range(10))}")
"""


def test_a_worker_can_reach_nobody_and_still_work(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    (tmp_path / "there").chmod(0o600)
    victim = subprocess.Popen(["sleep", "60"])
    try:
        with socket.create_server(("127.0.0.1", 0)) as service:
            words = [sys.executable, "-c", TRIED, str(victim.pid), str(tmp_path), str(service.getsockname()[1])]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    *tried, thread, last = done.stdout.splitlines()
    if tried[0] == "cannot":
        pytest.skip("this kernel has no seccomp filters")
    assert len(tried) == 24
    assert [line for line in tried if not line.endswith(": EPERM")] == []
    assert (thread, last) == ("a thread runs", "goes on: b'x' 45")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert ((tmp_path / "there").read_text(), (tmp_path / "there").stat().st_mode & 0o777) == ("x", 0o600)


@pytest.mark.parametrize(("machine", "header"), [("x86_64", "asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")])
def test_the_numbers_are_the_kernels(machine: str, header: str) -> None:
    found = [
        path for lead in ("", "x86_64-linux-gnu/", "aarch64-linux-gnu/") if (path := Path("/usr/include", lead + header)).exists()
    ]
    if not found:
        pytest.skip("no kernel headers are installed")
    there = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", found[0].read_text())}
    architecture, numbers = MACHINES[machine]
    assert architecture & 0xFFFF == {"x86_64": 62, "aarch64": 183}[machine]  # EM_*, elf.h
    assert numbers == {name: there[name] for name in numbers}
    # Whatever this machine has is refused, but what only older ones have.
    expected = {name for name in (*REFUSED, "socket") if name in there}
    assert expected == set(numbers)
