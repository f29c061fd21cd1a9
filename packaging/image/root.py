"""What is in the image below flannelpy? Files of Debian's packages, of this machine's release, as apt fetches and checks them.

No package manager, no shell, no user's tools: what the agent runs or loads, and each package's copyright file and control file
(the latter in /var/lib/dpkg/status.d, where scanners look for them).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = (
    *("python3-minimal", "python3.{0}-minimal", "libpython3.{0}-minimal", "libpython3.{0}-stdlib"),
    *("libexpat1", "zlib1g", "libbz2-1.0", "liblzma5", "libffi8", "libssl3", "libuuid1", "libcrypt1"),
    "libsqlite3-0",  # import pyroute2 asks for it
)
"""Python and the libraries of the modules that ``UNUSED`` leaves; {0} is its minor version."""

PACKAGES = (
    *("base-files", "netbase", "libc6", "libgcc-s1", "libstdc++6", "ca-certificates"),
    *("libnftables1", "libgmp10", "libjansson4", "libmnl0", "libnftnl11", "libxtables12"),
    *(
        "iptables",
        "libip4tc2",
        "libip6tc2",
        "libnetfilter-conntrack3",
        "libnfnetlink0",
    ),  # the host's firewall may be iptables-legacy
    *("kmod", "libkmod2", "libzstd1"),
)

UNUSED = (
    *("usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/info", "usr/share/bash-completion"),
    *("usr/share/base-files", "usr/share/python3", "usr/share/binfmts", "usr/share/applications", "usr/share/pixmaps"),
    *("usr/share/fish", "usr/share/zsh", "usr/share/gcc", "usr/share/gdb", "usr/share/initramfs-tools", "usr/lib/mime"),
    *("usr/lib/*/gconv", "usr/lib/*/engines-3", "usr/lib/*/audit", "usr/lib/locale", "usr/lib/systemd", "usr/lib/sysusers.d"),
    *("usr/lib/python3*/ensurepip", "usr/lib/python3*/idlelib", "usr/lib/python3*/lib2to3", "usr/lib/python3*/pydoc_data"),
    *("usr/lib/python3*/tkinter", "usr/lib/python3*/turtle.py", "usr/lib/python3*/test", "usr/lib/python3*/config-3*"),
    *("usr/lib/python3*/distutils", "usr/lib/python3*/dbm", "usr/lib/python3*/curses"),
    *("usr/lib/python3*/lib-dynload/_curses*", "usr/lib/python3*/lib-dynload/_dbm*", "usr/lib/python3*/lib-dynload/_gdbm*"),
    *("usr/lib/python3*/lib-dynload/readline*", "usr/lib/python3*/lib-dynload/nis*"),
    *("etc/init.d", "etc/cron.d", "etc/update-motd.d", "etc/issue*", "etc/motd", "etc/default", "etc/ld.so.conf.d/fakeroot*"),
    *("usr/sbin/update-ca-certificates", "usr/share/ca-certificates-java", "usr/sbin/*-apply", "etc/skel"),
    *(
        "usr/bin/catchsegv",
        "usr/bin/ldd",
        "usr/bin/tzselect",
        "usr/bin/localedef",
        "usr/bin/iconv",
        "usr/bin/zdump",
        "usr/sbin/zic",
    ),
    *("usr/sbin/iconvconfig", "usr/bin/py3*", "usr/bin/pygettext3*", "usr/bin/pydoc3*", "usr/share/doc-base", "usr/share/debconf"),
    *("usr/share/python3.*", "usr/bin/pdb3*", "usr/sbin/nfnl_osf", "usr/share/xtables", "var", "home", "boot", "root"),
)
"""What is taken away again, as patterns below the root."""

MERGED = ("bin", "lib", "lib64", "sbin")
"""Directories that are links into usr/, as on each Debian since 12."""

BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def fetch(minor: int, cache: Path) -> list[Path]:
    """The packages' files, as apt finds them for this machine's release. Raises CalledProcessError; apt says why on stderr."""
    cache.mkdir(parents=True, exist_ok=True)
    wanted = sorted({*PACKAGES, *(name.format(minor) for name in PYTHON)})
    with tempfile.TemporaryDirectory() as empty:  # it does not name what is there already
        asked = ["apt-get", "download", "--print-uris", *wanted]
        listed = subprocess.run(asked, cwd=empty, check=True, stdout=subprocess.PIPE, text=True).stdout
    names = [found[1] for line in listed.splitlines() if (found := re.match(r"'[^']+' (\S+\.deb) \d+", line))]
    # It gets what is not there, and checks what is. Its notice that root does not sandbox it is about a directory of ours.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *wanted]
    subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
    return [cache / name for name in sorted(names)]


def unpack(packages: list[Path], root: Path) -> None:
    """Their files without those that nothing uses, and what a dpkg would know of them."""
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        # A tar, because dpkg-deb -x would put directories in the place of links.
        packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", os.fspath(package)], check=True, stdout=subprocess.PIPE)
        command = ["tar", "-x", "--no-same-owner", "-p", "--keep-directory-symlink", "-C", os.fspath(root)]
        subprocess.run(command, check=True, input=packed.stdout)
    prune(root)
    known = root / "var/lib/dpkg/status.d"
    known.mkdir(parents=True)
    for package in packages:
        control = subprocess.run(["dpkg-deb", "-f", os.fspath(package)], check=True, stdout=subprocess.PIPE, text=True).stdout
        (known / package.name.partition("_")[0]).write_text(control)


def merge(root: Path) -> None:
    """usr/ has all, before anything is unpacked."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def prune(root: Path) -> None:
    """Take away what nothing in the image uses; of /usr/share/doc the copyright files stay."""
    for pattern in UNUSED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in root.glob("usr/share/doc/*/*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "copyright":
            path.unlink()


def settle(root: Path) -> None:
    """What maintainer scripts would have made: certificates in one file, users, and directories to mount upon."""
    authorities = sorted(root.glob("usr/share/ca-certificates/mozilla/*.crt"))
    (root / BUNDLE).parent.mkdir(parents=True, exist_ok=True)
    (root / BUNDLE).write_text("".join(path.read_text() for path in authorities))
    shutil.rmtree(root / "usr/share/ca-certificates", ignore_errors=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n")
    for name in ("dev", "proc", "sys", "root", "run/flannel", "run/flannelpy", "run/flannelpy-claims", "var/lib/flannelpy"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "var/lib/flannelpy").chmod(0o700)


def compile_all(root: Path) -> None:
    """Bytecode, which each start would make otherwise. It goes by no time and no hash seed: the same bytes each time."""
    command = [
        sys.executable,
        "-I",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode=unchecked-hash",
        "-s",
        os.fspath(root),
        "-p",
        "/",
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    places = [os.fspath(path) for path in sorted([*root.glob("usr/lib/python3*"), *root.glob("usr/lib/flannelpy")])]
    subprocess.run([*command, *places], check=True, env=environment, stdout=subprocess.DEVNULL)
