"""How does code of ours run on another kernel? Debian's cloud kernel under QEMU without KVM, on this machine's own root.

    console = boot([sys.executable, "-m", "tests.kernels.inside"], limit_s=170)

The guest sees this machine's files read-only (virtiofs) with a tmpfs above, so that whatever is installed here is there, too, and
nothing it does stays. It is up in 2-3 s; Python runs some 20 times slower in it: function and ratios, not times. The kernel is
unpacked from its package, not installed, and kept in a cache directory with an initramfs around busybox. Everything else lives in
a mount namespace and in processes that are gone when ``boot`` returns. Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = ("qemu-system-x86", "seabios", "ipxe-qemu", "cpio", "kmod", "busybox-static", "dpkg")
"""virtiofsd comes with qemu-system-common on Debian 12."""
METAPACKAGE = "linux-image-cloud-amd64"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
BOOT_MODULES = ("virtio_pci", "virtiofs", "overlay")

SOCKET_WITHIN_S = 5.0

MODPROBE = """#!/bin/sh
exec /bin/busybox chroot /new /sbin/modprobe "$@"
"""
"""The kernel calls for modules in its first root, which stays the initramfs."""

INIT = """#!/bin/sh
b=/bin/busybox
$b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev
for module in $($b cat /m/order); do $b insmod /m/$module; done
$b mount -t virtiofs -o ro rootfs /lower; $b mount -t tmpfs t /upper; $b mkdir /upper/u /upper/w
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w o /new
$b mount -t proc p /new/proc; $b mount -t sysfs s /new/sys; $b mount -t devtmpfs d /new/dev
$b mkdir -p /new/run; $b mount -t tmpfs t /new/run
for word in $($b cat /proc/cmdline); do case $word in dir=*) dir=${word#dir=};; start=*) start=${word#start=};; esac; done
$b mkdir -p /new/lib/modules
$b mount --bind /lower$dir/k/lib/modules /new/lib/modules
$b chroot /new /bin/sh $start; $b sync
echo o >/proc/sysrq-trigger; $b sleep 9
"""


class NoGuestError(Exception):
    """The guest cannot be had here; the text says what is missing."""


def cache() -> Path:
    """Where the kernel is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flannelpy" / "kernels"


CLOCK = "clocksource=hpet tsc=unstable no_timer_check"
"""Of a TSC that is emulated on a busy machine the kernel finds a wrong rate (402 MHz of 2,595 was seen): its clock runs
ahead, and what waits there ends too early. That the timer ticks is seen by waiting for 10 ms, too short there.
"""

LIMIT_S = 1800.0
"""Some minutes are enough where nothing else runs; a guest without KVM on a machine that is busy takes many times that."""


def boot(words: Sequence[str], limit_s: float) -> str:
    """Run a command as root in the guest, in this project's directory; everything that was said on its console.

    Raises NoGuestError, TimeoutError.
    """
    directory = _prepare()
    run = directory / f"run-{os.getpid()}"
    run.mkdir()
    try:
        return _boot(directory, run, words, limit_s)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def console_of(program: str) -> str:
    """What a guest says in which this program of ``tests.kernels`` has run; the test is skipped where there can be none."""
    try:
        return boot([sys.executable, "-m", f"tests.kernels.{program}"], LIMIT_S)
    except NoGuestError as reason:
        pytest.skip(f"no guest: {reason}")


def assert_passed(console: str, check: str) -> None:
    """One of its checks; skipped where the program itself has, and said why."""
    if why := re.search(rf"^@@ skipped {check}: (.*) \(", console, re.MULTILINE):
        pytest.skip(why[1])
    assert re.search(rf"^@@ ok {check} \(", console, re.MULTILINE), console


def _boot(directory: Path, run: Path, words: Sequence[str], limit_s: float) -> str:
    kernel = _kernel(directory)
    script = f"cd {shlex.quote(str(ROOT))} && PATH={os.environ['PATH']} PYTHONPATH=.:netns-lab exec {shlex.join(words)}\n"
    (run / "start").write_text(script)
    with _files(run) as socket:
        command = [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),  # it goes with us, whoever ends us
            *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"),
            *("-object", "memory-backend-memfd,id=m,size=1G,share=on", "-numa", "node,memdev=m"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-chardev", f"socket,id=c,path={socket}", "-device", "vhost-user-fs-pci,chardev=c,tag=rootfs"),
            *("-kernel", str(directory / f"k/boot/vmlinuz-{kernel}"), "-initrd", str(directory / "ir.gz")),
            "-append",
            f"console=ttyS0 panic=-1 quiet loglevel=5 {CLOCK} mitigations=off dir={directory} start={run / 'start'}",
        ]
        with (run / "console").open("wb") as console:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the guest ran longer than {limit_s:g} s:\n{_said(run)}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return _said(run)


def _said(run: Path) -> str:
    return (run / "console").read_text(errors="replace").replace("\r\n", "\n")


@contextlib.contextmanager
def _files(run: Path) -> Iterator[Path]:
    """virtiofsd for our root, read-only, and for what of ours lies on other file systems; in a mount namespace of its own."""
    socket, root, log = run / "fs.sock", run / "root", run / "fs.log"
    root.mkdir()
    daemon = next((path for path in VIRTIOFSD if Path(path).exists()), None)
    if daemon is None:
        raise NoGuestError("virtiofsd is not there: expected it with qemu-system-common (Debian 12)")
    binds = [f"mount --bind / {root}", f"mount -o remount,bind,ro {root}"]
    elsewhere = {path for path in (ROOT, Path(sys.prefix), run.parent) if path.stat().st_dev != Path("/").stat().st_dev}
    binds += [f"mount --rbind {path} {root}{path}" for path in elsewhere]
    serve = [daemon, f"--socket-path={socket}", "--rlimit-nofile=16384", "-o", f"source={root}", "-o", "cache=always"]
    shell = " && ".join([*binds, f"exec {shlex.join([*serve, '-o', 'sandbox=namespace'])}"])
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + SOCKET_WITHIN_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoGuestError(f"virtiofsd does not start: {log.read_text().strip()[-300:]}")
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        process.wait()


# ------------------------------------------------------------------------------------------------------- what it boots


def _prepare() -> Path:
    """The directory with kernel, modules and initramfs; made, and what it takes installed, where it is not there yet."""
    if os.geteuid():
        raise NoGuestError("needs root")
    if os.uname().machine != "x86_64":
        raise NoGuestError("needs an x86-64 machine")
    if not all(map(shutil.which, ("qemu-system-x86_64", "cpio", "depmod", "busybox", "dpkg"))):
        _apt("install", "-qy", "--no-install-recommends", *PACKAGES)
    directory = cache()
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "ir.gz").exists():
            for left in ("k", "ir"):
                shutil.rmtree(directory / left, ignore_errors=True)
            _unpack(directory)
            _pack_initramfs(directory)
    return directory


def _unpack(directory: Path) -> None:
    """Kernel and modules out of the package that the metapackage names."""
    depends = subprocess.run(["apt-cache", "depends", METAPACKAGE], capture_output=True, text=True, check=False).stdout
    names = [line.split()[1] for line in depends.splitlines() if "Depends:" in line]
    if not names:
        raise NoGuestError(f"apt knows no {METAPACKAGE}")
    _apt("download", "-q", names[0], cwd=directory)
    package = next(directory.glob("*.deb"))
    subprocess.run(["dpkg", "-x", str(package), str(directory / "k")], check=True)
    package.unlink()
    subprocess.run(["depmod", "-b", str(directory / "k"), _kernel(directory)], check=True)


def _pack_initramfs(directory: Path) -> None:
    """busybox, the modules that it takes to reach our root in the order that they want, and a script."""
    tree, modules = directory / "ir", directory / "k/lib/modules" / _kernel(directory)
    for name in ("bin", "sbin", "proc", "sys", "dev", "lower", "upper", "new", "m"):
        (tree / name).mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for name, text in (("init", INIT), ("sbin/modprobe", MODPROBE)):
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        module, _, rest = line.partition(":")
        needs[Path(module).name.partition(".")[0]] = [module, *rest.split()]
    order = list(dict.fromkeys(path for name in BOOT_MODULES for path in reversed(needs[name])))
    for path in order:
        shutil.copy(modules / path, tree / "m")
    (tree / "m/order").write_text("".join(f"{Path(path).name}\n" for path in order))
    pack = f"cd {tree} && find . | cpio -o -H newc --quiet | gzip -1 >../ir.part && mv ../ir.part ../ir.gz"
    subprocess.run(["sh", "-c", pack], check=True)
    shutil.rmtree(tree)


def _kernel(directory: Path) -> str:
    return next((directory / "k/lib/modules").iterdir()).name


def _apt(*words: str, cwd: Path | None = None) -> None:
    """apt-get, with the package lists fetched where they are what is missing. Raises NoGuestError with its first complaint."""
    if shutil.which("apt-get") is None:
        raise NoGuestError("this is no Debian: apt-get is not there")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for attempt in (("update", "-q"), words):
        done = subprocess.run(["apt-get", *attempt], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise NoGuestError(f"apt-get {' '.join(words)}: {said[0] if said else 'failed'}")
