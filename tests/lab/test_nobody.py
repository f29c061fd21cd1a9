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
PLACES = ("/run/flannelpy", "/run/flannelpy-claims", "/run/flannel", "/var/lib/flannelpy")
ELSEWHERE = ("/run", "/var", "/etc", "/tmp", "/dev", "/opt")
PUBLIC = ["/run/flannel/subnet.env"]

TRIED = r"""
import ctypes, errno, fcntl, os, resource, signal, socket, struct, sys

address, processes = sys.argv[1], [int(text) for text in sys.argv[2:]]
group = "/sys/fs/cgroup/system.slice/flannelpy.service"
libc = ctypes.CDLL(None, use_errno=True)

def trace(process):
    if libc.ptrace(16, process, 0, 0) < 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")

def refused(code):
    if code < 0:
        raise OSError(ctypes.get_errno(), "refused")

def read_memory(process):
    into = ctypes.create_string_buffer(8)
    part = (ctypes.c_size_t * 2)(ctypes.addressof(into), 8)
    refused(libc.process_vm_readv(process, part, 1, part, 1, 0))

def signal_by_descriptor(process):
    signal.pidfd_send_signal(os.pidfd_open(process), signal.SIGTERM)

def take_descriptor(process):
    refused(libc.syscall(438, os.pidfd_open(process), 3, 0))  # pidfd_getfd

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
tries["listen to the link"] = lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
tries["send as anybody"] = lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for name in ("ipv4/ip_forward", "ipv4/conf/flannel0/forwarding"):
    tries[f"set {name}"] = lambda name=name: open(f"/proc/sys/net/{name}", "w")
for name in os.listdir(group):
    tries[f"write {name} of the unit"] = lambda name=name: open(f"{group}/{name}", "w")
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP, signal.SIGKILL):
    for process in processes:
        tries[f"{number.name} to {process}"] = lambda number=number, process=process: os.kill(process, number)
for process in processes:
    tries[f"trace {process}"] = lambda process=process: trace(process)
    tries[f"read memory of {process}"] = lambda process=process: read_memory(process)
    tries[f"signal {process} by its descriptor"] = lambda process=process: signal_by_descriptor(process)
    tries[f"take a descriptor of {process}"] = lambda process=process: take_descriptor(process)
    tries[f"pin {process}"] = lambda process=process: os.sched_setaffinity(process, {0})
    tries[f"put {process} behind"] = lambda process=process: os.setpriority(os.PRIO_PROCESS, process, 19)
    tries[f"have {process} idle"] = lambda process=process: os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))
    for part in ("oom_score_adj", "clear_refs", "comm", "coredump_filter", "mem"):
        tries[f"write {part} of {process}"] = lambda process=process, part=part: open(f"/proc/{process}/{part}", "r+b").write(b"1")
    for part in ("cwd", "root", "exe", "ns/net"):
        tries[f"where is {part} of {process}"] = lambda process=process, part=part: os.readlink(f"/proc/{process}/{part}")
    for part in ("fdinfo", "map_files"):
        tries[f"list {part} of {process}"] = lambda process=process, part=part: os.listdir(f"/proc/{process}/{part}")
    for part in ("environ", "mem", "maps", "io", "syscall", "stack", "auxv", "pagemap", "smaps", "personality"):
        tries[f"read {part} of {process}"] = lambda process=process, part=part: open(f"/proc/{process}/{part}", "rb").read(1)
    tries[f"list descriptors of {process}"] = lambda process=process: os.listdir(f"/proc/{process}/fd")
    tries[f"bound {process}"] = lambda process=process: resource.prlimit(process, 7, (0, 0))
for path in {line.split()[-1] for line in open("/proc/net/unix") if "flannel" in line}:
    tries[f"speak to {path}"] = lambda path=path: socket.socket(socket.AF_UNIX).connect(path.replace("@", "\0", 1))
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
for place in ("/run/flannelpy", "/run/flannelpy-claims", "/run/flannel", "/var/lib/flannelpy", "/run"):
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

COMMANDS = (
    ("systemctl", "stop", UNIT),
    ("systemctl", "kill", UNIT),
    ("systemctl", "set-property", "--runtime", UNIT, "CPUQuota=1%"),
    ("nft", "flush", "ruleset"),
    ("ip", "link", "del", "flannel0"),
    ("ip", "route", "flush", "dev", "flannel0"),
    ("flannelpy", "status"),
    ("flannelpy", "cleanup", "--yes"),
)
"""What nobody runs in vain."""

NOTIFY = """
import os, socket, sys
telling = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for text in ("STOPPING=1", "WATCHDOG=trigger", f"MAINPID={os.getpid()}", "FDSTOREREMOVE=1\\nFDNAME=" + sys.argv[1], "RELOADING=1"):
    telling.sendto(text.encode(), "/run/systemd/notify")
"""

NAMELESS = ("healthz", "readyz", "metrics", "status", "v1/status", "..%2f..%2fetc/default/flannelpy", "healthz?peers")
"""Pages that tell of no peer; the one for a browser does (docs/SECURITY.md)."""
PAGES = f"""
import urllib.error, urllib.request
for path in {(*NAMELESS, "")!r}:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8080/" + path, timeout=20) as page:
            print(page.status, path, page.read())
    except urllib.error.HTTPError as error:
        print(error.code, path, error.read())
"""
"""What the health port tells everybody."""

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


DOORS = r"""
import os, re, socket, struct, sys
found, inodes = set(), set()
for process in sys.argv[1:]:
    for name in os.listdir(f"/proc/{process}/fd"):
        match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{process}/fd/{name}"))
        inodes |= {match[1]} if match else set()
for line in open("/proc/net/unix").read().splitlines()[1:]:
    fields = line.split()
    if fields[6] in inodes and (int(fields[3], 16) & 1 << 16 or fields[7:]):  # it listens, or has a name
        found.add(" ".join(["unix", *fields[7:]]))
for kind, listens in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07"), ("udplite", "07"), ("packet", "")):
    path = f"/proc/net/{kind}"
    for line in open(path).read().splitlines()[1:] if os.path.exists(path) else ():
        fields = line.split()
        if kind == "packet":
            found |= {"packet"} if fields[-1] in inodes else set()
        elif fields[9] in inodes and fields[3] == listens:
            address, port = fields[1].split(":")
            text = socket.inet_ntoa(struct.pack("=I", int(address, 16))) if len(address) == 8 else address
            found.add(f"{kind} {text}:{int(port, 16)}")
print("\n".join(sorted(found)))
"""
"""Where the agent and its workers hear anybody; by root, who may look."""


async def doors(systemd: Booted, those: list[int]) -> set[str]:
    return set((await systemd.exec("python3", "-c", DOORS, *map(str, those))).splitlines())


@pytest.mark.topology(hosts=2, backend="udp", agent_options=("--udp-engine=pump",))
async def test_nobody_can_neither_stop_nor_mislead_nor_read(lab: Lab, booted: Booted) -> None:
    one = lab.host(1)
    before = await processes(booted)
    assert len(before) >= 2
    several = len(before) == 3  # on a machine with one core there is one worker
    status = json.loads(await booted.exec("flannelpy", "status", "--json"))
    assert status["ready"]
    assert status["conditions"] == []

    assert await doors(booted, before) == {
        "unix /run/flannelpy/agent.sock",
        "tcp 127.0.0.1:8080",
        "udp 192.168.50.11:8285",
    }
    owned = (await booted.exec("find", *ELSEWHERE, "-xdev", "-user", "flannelpy")).split()
    assert [path for path in owned if not path.startswith(PLACES)] == []
    shared = await booted.exec("cat", "/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg")
    assert len(shared.splitlines()) == 3, "nothing but headings"

    readable = (await booted.attempt(*AS_NOBODY, "find", *PLACES, "-type", "f", "-readable")).stdout.split()
    assert sorted(readable) == PUBLIC
    writable = (await booted.attempt(*AS_NOBODY, "find", *PLACES, "-writable")).stdout.split()
    assert writable == []

    words = [*AS_NOBODY, "python3", "-c", TRIED, "192.168.50.11", *map(str, before)]
    tried = dict(line.split(": ") for line in (await booted.exec(*words)).splitlines() if ": " in line)
    assert len(tried) > 100
    assert {name: how for name, how in tried.items() if how not in REFUSALS} == {}
    if several:
        assert tried["join the device 5101"] == "EPERM"

    for command in COMMANDS:
        outcome = await booted.attempt(*AS_NOBODY, *command)
        assert outcome.code != 0, (command, outcome)
        assert "10.1." not in outcome.stdout, (command, outcome)
    pages = await booted.exec(*AS_NOBODY, "python3", "-c", PAGES)
    assert re.findall(r"^(\d+) (\S+)", pages, re.MULTILINE)[:2] == [("200", "healthz"), ("200", "readyz")]
    told = {words[1]: line for line in pages.splitlines() if (words := line.split())}  # the browser's page has no name
    assert not [path for path, line in told.items() if path in NAMELESS and re.search(r"10\.1\.|192\.168\.50\.1[12]", line)]
    assert ":2379" not in pages, pages
    await booted.exec(*AS_NOBODY, "python3", "-c", NOTIFY, "tun0")

    given = (booted.root / f"proc/{before[0]}/cmdline").read_bytes().decode().split("\0")
    assert [word for word in given if re.search("password|secret", word)] == []

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
