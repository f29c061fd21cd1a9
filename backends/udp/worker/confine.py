"""What may a worker still do when it has what it needs? Move packets: it sheds user and capabilities, and the way to anybody else.

A worker whose agent is not root is the agent's own user. So it also gives up the system calls by which it could end or change the
agent or any other process, or reach a file or a service: seccomp(2) refuses them. Open descriptors are all that packets need.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import Collection
from pathlib import Path
from struct import Struct

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_NOBODY = 65534
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_MODE_FILTER = 2

# linux/filter.h, linux/seccomp.h, linux/audit.h
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_INSTRUCTION = Struct("=HBBI")
_KIND = 0xF
"""Of a socket's type; above are SOCK_NONBLOCK and SOCK_CLOEXEC (SOCK_TYPE_MASK in linux/net.h)."""
_X32 = 0x40000000
"""From this number on x86-64 has the same calls once more, for a 32-bit ABI."""

REFUSED = (
    # other processes
    *("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "pidfd_open", "pidfd_getfd"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "prlimit64", "setpriority", "ioprio_set"),
    *("sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"),
    # programs, namespaces, and what goes round this filter
    *("execve", "execveat", "unshare", "setns", "io_uring_setup", "io_uring_enter"),
    # files
    *("open", "creat", "openat", "openat2", "open_by_handle_at", "truncate", "unlink", "unlinkat", "rmdir"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat"),
    *("chmod", "fchmodat", "chown", "lchown", "fchownat"),
)
"""System calls that end with EPERM. ``socket`` does, too, for all but UDP over IPv4, in which own addresses are asked for."""

MACHINES = {
    "x86_64": (
        0xC000003E,
        {
            "open": 2,
            "socket": 41,
            "execve": 59,
            "kill": 62,
            "truncate": 76,
            "rename": 82,
            "mkdir": 83,
            "rmdir": 84,
            "creat": 85,
            "link": 86,
            "unlink": 87,
            "symlink": 88,
            "chmod": 90,
            "chown": 92,
            "lchown": 94,
            "ptrace": 101,
            "mknod": 133,
            "rt_sigqueueinfo": 129,
            "setpriority": 141,
            "sched_setparam": 142,
            "sched_setscheduler": 144,
            "tkill": 200,
            "sched_setaffinity": 203,
            "tgkill": 234,
            "ioprio_set": 251,
            "openat": 257,
            "mkdirat": 258,
            "mknodat": 259,
            "fchownat": 260,
            "unlinkat": 263,
            "renameat": 264,
            "linkat": 265,
            "symlinkat": 266,
            "fchmodat": 268,
            "unshare": 272,
            "rt_tgsigqueueinfo": 297,
            "prlimit64": 302,
            "open_by_handle_at": 304,
            "setns": 308,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "sched_setattr": 314,
            "renameat2": 316,
            "execveat": 322,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
            "io_uring_enter": 426,
            "pidfd_open": 434,
            "openat2": 437,
            "pidfd_getfd": 438,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "ioprio_set": 30,
            "mknodat": 33,
            "mkdirat": 34,
            "unlinkat": 35,
            "symlinkat": 36,
            "linkat": 37,
            "renameat": 38,
            "truncate": 45,
            "fchmodat": 53,
            "fchownat": 54,
            "openat": 56,
            "unshare": 97,
            "ptrace": 117,
            "sched_setparam": 118,
            "sched_setscheduler": 119,
            "sched_setaffinity": 122,
            "kill": 129,
            "tkill": 130,
            "tgkill": 131,
            "rt_sigqueueinfo": 138,
            "setpriority": 140,
            "socket": 198,
            "execve": 221,
            "rt_tgsigqueueinfo": 240,
            "prlimit64": 261,
            "open_by_handle_at": 265,
            "setns": 268,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "sched_setattr": 274,
            "renameat2": 276,
            "execveat": 281,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
            "io_uring_enter": 426,
            "pidfd_open": 434,
            "openat2": 437,
            "pidfd_getfd": 438,
        },
    ),
}
"""By uname's machine: its AUDIT_ARCH, and the numbers of its calls (asm/unistd.h). On another machine none is given up."""


def close_all_but(kept: Collection[int]) -> None:
    """Whatever else the agent had open when it forked: a library that forgets O_CLOEXEC (libmnl) would leave its socket here."""
    for number in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
        if number not in kept:
            with contextlib.suppress(OSError):
                os.close(number)


def shed_privileges() -> None:
    """Become nobody without capabilities. What is not permitted is left as it is."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel end us when ``parent`` dies, also while we are busy. A change of user clears it: call it after."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the agent is gone")


def refuse_calls() -> bool:
    """Give up the system calls of REFUSED, for good; False where the kernel cannot, or the machine is not known.

    Call it last: nothing can be imported any more.
    """
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    text = program(*machine)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    held = Program(len(text) // _INSTRUCTION.size, text)
    return bool(ctypes.CDLL(None).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(held), 0, 0) == 0)


def program(architecture: int, numbers: dict[str, int]) -> bytes:
    """The filter, as the kernel reads it (Documentation/userspace-api/seccomp_filter.rst). A jump says how many to pass over."""
    refused = [numbers[name] for name in REFUSED if name in numbers]
    rest = len(refused)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, rest + 9, architecture),  # else refuse
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, rest + 7, 0, _X32),
        *((_EQUAL, rest + 6 - place, 0, number) for place, number in enumerate(refused)),
        (_EQUAL, 0, 5, numbers["socket"]),  # else allow
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 4, socket.AF_INET),  # else refuse
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_AND, 0, 0, _KIND),
        (_EQUAL, 0, 1, socket.SOCK_DGRAM),  # else refuse
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)
