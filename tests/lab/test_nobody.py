"""What can a local user without privileges do to the agent of packaging's unit, to its packets, and what can he read?

c1 - h1 (systemd is PID 1, two udp workers; nobody is at work there) ==== h2 - c2         etcd apart
"""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from netns_lab.booted import Booted, missing
from netns_lab.lab import Lab
from tests.lab.agent_support import lab_name, until  # noqa: F401

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

UNIT = "flannelpy.service"
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
PLACES = ("/run/flannelpy", "/run/flannel", "/var/lib/flannelpy")
PUBLIC = ["/run/flannel/subnet.env"]

TRIED = r"""
import ctypes, errno, fcntl, os, re, signal, socket, struct, sys

agent, address, processes = int(sys.argv[1]), sys.argv[2], [int(text) for text in sys.argv[1:2] + sys.argv[3:]]
libc = ctypes.CDLL(None, use_errno=True)

def trace(process):
    if libc.ptrace(16, process, 0, 0) < 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")

def lock():
    for flags in (os.O_RDONLY, os.O_WRONLY):
        fcntl.flock(os.open("/run/flannelpy/lock", flags), fcntl.LOCK_EX | fcntl.LOCK_NB)

def ask():
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect("/run/flannelpy/agent.sock")

def join_port(kind, where, port):
    with socket.socket(socket.AF_INET, kind) as joining:
        joining.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        joining.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        joining.bind((where, port))
        if kind == socket.SOCK_STREAM:
            joining.listen()

def join_device(flags):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"flannel0", flags))

def forge(protocol, port):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as forging:
        forging.bind((0, 0))
        forging.sendto(struct.pack("=LHHLL", 16, 17, 0, 0, 0), (port, 0))

def shout(protocol):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as shouting:
        shouting.bind((0, 0))
        shouting.sendto(struct.pack("=LHHLL", 16, 17, 0, 0, 0), (0, 0xFFF))

def change_link():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asking:
        asking.sendto(struct.pack("=LHHLLBxHiII", 32, 17, 5, 1, 0, 0, 0, socket.if_nametoindex("flannel0"), 0, 0), (0, 0))
        code = -struct.unpack_from("=i", asking.recv(4096), 16)[0]
        if code:
            raise OSError(code, "RTM_DELLINK")

tries = {"lock": lock, "ask": ask, "change the device": change_link}
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP, signal.SIGKILL):
    for process in processes:
        tries[f"{number.name} to {process}"] = lambda number=number, process=process: os.kill(process, number)
for process in processes:
    tries[f"trace {process}"] = lambda process=process: trace(process)
    for part in ("environ", "mem", "maps", "io", "syscall", "stack"):
        tries[f"read {part} of {process}"] = lambda process=process, part=part: open(f"/proc/{process}/{part}", "rb").read(1)
    tries[f"list descriptors of {process}"] = lambda process=process: os.listdir(f"/proc/{process}/fd")
    tries[f"bound {process}"] = lambda process=process: __import__("resource").prlimit(process, 7, (0, 0))
for where in (address, "0.0.0.0"):
    tries[f"join UDP {where}"] = lambda where=where: join_port(socket.SOCK_DGRAM, where, 8285)
for where in ("127.0.0.1", "0.0.0.0"):
    tries[f"join TCP {where}"] = lambda where=where: join_port(socket.SOCK_STREAM, where, 8080)
for flags in (0x5101, 0x1101, 0x5001, 0x1001, 0x9101):
    tries[f"join the device {flags:x}"] = lambda flags=flags: join_device(flags)
ports = 0
for line in open("/proc/net/netlink").read().splitlines()[1:]:
    fields = line.split()
    if fields[1] in ("0", "12") and int(fields[2]):
        ports += 1
        tries[f"forge for {fields[1]} {fields[2]}"] = lambda fields=fields: forge(int(fields[1]), int(fields[2]))
tries["shout"] = lambda: shout(0)
for place in ("/run/flannelpy", "/run/flannel", "/var/lib/flannelpy", "/run"):
    tries[f"write into {place}"] = lambda place=place: open(f"{place}/mine", "w")
tries["replace subnet.env"] = lambda: os.rename("/run/flannel/subnet.env", "/run/flannel/other")
tries["open subnet.env"] = lambda: open("/run/flannel/subnet.env", "r+")
for name, attempt in tries.items():
    try:
        attempt()
    except OSError as error:
        print(f"{name}: {errno.errorcode[error.errno]}")
    else:
        print(f"{name}: done")
print(f"ports {ports}")
"""

FLOOD = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(2000):
    sender.sendto(bytes(number % 99), ("192.168.50.11", 8285))
"""

REFUSALS = {"EPERM", "EACCES", "EADDRINUSE", "EBUSY", "EINVAL", "ECONNREFUSED"}


@pytest.fixture
async def booted(lab: Lab) -> Booted:
    options = ("--udp-workers=2", "--healthz-port=8080", "--healthz-ip=127.0.0.1")

    async def installed_and_started() -> Booted:
        systemd = await lab.install(1, *options)
        await systemd.exec("systemctl", "start", UNIT)
        return systemd

    systemd, _ = await asyncio.gather(installed_and_started(), lab.host(2).start_agent())
    await lab.connect_containers()
    return systemd


async def processes(systemd: Booted) -> list[int]:
    """The agent, then its workers, as the host counts them."""
    main = (await systemd.show(UNIT, "MainPID"))["MainPID"]
    text = await systemd.exec("ps", "-eo", "pid,args")
    workers = [int(line.split()[0]) for line in text.splitlines() if "backends.udp.worker" in line]
    return [int(main), *workers]


@pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-engine=pump",))
async def test_nobody_can_neither_stop_nor_mislead_nor_read(lab: Lab, booted: Booted) -> None:
    one = lab.host(1)
    before = await processes(booted)
    assert len(before) >= 2
    several = len(before) == 3  # on a machine with one core there is one worker
    status = json.loads(await booted.exec("flannelpy", "status", "--json"))
    assert status["ready"]
    assert status["conditions"] == []

    readable = (await booted.attempt(*AS_NOBODY, "find", *PLACES, "-type", "f", "-readable")).stdout.split()
    assert sorted(readable) == PUBLIC
    writable = (await booted.attempt(*AS_NOBODY, "find", *PLACES, "-writable")).stdout.split()
    assert writable == []

    words = [*AS_NOBODY, "python3", "-c", TRIED, str(before[0]), "192.168.50.11", *map(str, before[1:])]
    tried = dict(line.split(": ") for line in (await booted.exec(*words)).splitlines() if ": " in line)
    assert len(tried) > 50
    assert {name: how for name, how in tried.items() if how not in REFUSALS} == {}
    if several:
        assert tried["join the device 5101"] == "EPERM"

    command = (booted.root / f"proc/{before[0]}/cmdline").read_bytes().decode().split("\0")
    assert [word for word in command if re.search("password|secret", word)] == []

    # What a local user sends to the port of this host harms nobody.
    await booted.exec(*AS_NOBODY, "python3", "-c", FLOOD)
    for source, target in (("c1", "c2"), ("c2", "c1")):
        assert (await lab.ping(source, target)).ok
    assert await processes(booted) == before
    assert "FLANNEL_SUBNET" in one.subnet_file.read_text()

    async def as_before() -> bool:
        now = json.loads(await booted.exec("flannelpy", "status", "--json"))
        return bool(now["ready"]) and now["conditions"] == []

    await until(as_before, 10, "nothing is wrong")
    assert (await booted.show(UNIT, "NRestarts"))["NRestarts"] == "0"
    # And at the next start nothing is in the way.
    await booted.exec("systemctl", "restart", UNIT)
    assert (await lab.ping("c1", "c2", wait_s=5)).ok
