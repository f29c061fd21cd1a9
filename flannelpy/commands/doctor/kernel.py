"""Can this kernel do what the backend needs, and may we ask it to? Tried in an empty network namespace: nobody is disturbed."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from importlib.util import find_spec
from os import geteuid
from pathlib import Path

from netaddr import IPAddress, IPNetwork

from flannelpy.commands.doctor.about import About
from flannelpy.commands.doctor.files import ONLY_ROOT
from flannelpy.core.backend import Engines
from flannelpy.core.errors import KernelError
from flannelpy.core.objects import HostState, Ipip, Link, NftTable, Object, Vxlan, XfrmPolicy
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.core.xfrm import IKE_EXTRA, IKE_LIBRARY, IKE_PACKAGES, IKE_PLACES, IKE_PROGRAM
from flannelpy.explain.doctor import FAILED, OK, SKIPPED, WARNING, Finding
from flannelpy.kernel.nft import NET_ADMIN

REFUSED = {"kernel-refused", "engine-refused", "datapath-failed"}
"""Conditions of an agent that has not got all of it from the kernel."""
_CAN = "can be made"
_TUN = Path("/dev/net/tun")
_HERE = IPAddress("127.0.0.1")
_VXLAN = Link("flannelpy-try", "vxlan", 1450, "02:00:00:00:00:01", detail=Vxlan(16_000_000, "lo", _HERE, 61_472))
_IPIP = Link("flannelpy-try", "ipip", 1480, detail=Ipip(_HERE))
_POLICY = XfrmPolicy("out", IPNetwork("127.0.0.0/9"), IPNetwork("127.128.0.0/9"), _HERE, _HERE)
_NFT = NftTable("flannelpy_try", "chain c {\n}\n")


def capabilities(about: About) -> Iterator[Finding]:
    """Of the running agent, else of whoever asks."""
    pid = "self" if about.status is None else str(about.status.pid)
    who = "this command" if about.status is None else f"the agent (process {pid})"
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError):
        yield Finding("capabilities", SKIPPED, f"those of {who} cannot be read")
        return
    if held >> NET_ADMIN & 1:
        yield Finding("capabilities", OK, f"{who} has CAP_NET_ADMIN")
    elif about.status is None and geteuid():
        yield Finding("capabilities", SKIPPED, f"{who} has no CAP_NET_ADMIN; of the agent {ONLY_ROOT}")
    else:
        remedy = "run it as root, or give the service AmbientCapabilities=CAP_NET_ADMIN"
        yield Finding("capabilities", FAILED if about.status else WARNING, f"{who} has no CAP_NET_ADMIN", remedy)


async def features(about: About) -> AsyncIterator[Finding]:
    """What the configured backend needs; where none is known, what vxlan needs. What a running agent has made need not be tried."""
    status, backend = about.status, about.backend
    if status is not None and status.ready and backend is not None and not {each.code for each in status.conditions} & REFUSED:
        yield Finding("kernel", OK, f"the running agent has made what {backend.name} needs")
        return
    if geteuid():
        yield Finding("kernel", SKIPPED, ONLY_ROOT)
        return
    kind = "vxlan" if about.backend is None else about.backend.name
    needs: dict[str, Iterable[Object]] = {"vxlan": [_VXLAN], "ipip": [_IPIP]}
    if kind in needs:
        yield await _tried(about, kind, needs[kind], FAILED, f"modprobe {kind}; a kernel with CONFIG_{kind.upper()}")
    if kind == "wireguard":
        yield await _wireguard(about)
    if kind == "ipsec":
        yield await _tried(
            about, "xfrm", [_POLICY], FAILED, "modprobe xfrm_user; a kernel with CONFIG_XFRM_USER and CONFIG_INET_ESP"
        )
        yield _charon()
    if kind == "udp":
        rehearsal = about.backend.rehearsal if isinstance(about.backend, Engines) else HostState()
        if len(rehearsal):
            fou = await _tried(about, "fou", rehearsal, OK, "")
            slow = f"packets go by user space: {fou.said}"  # as udp is meant to; where the kernel was asked for, the agent says so
            yield fou if fou.said == _CAN else Finding(fou.name, OK, slow)
        yield _tun()
    yield await _tried(about, "nftables", [_NFT], FAILED, "modprobe nf_tables; a package with the program nft")


def _charon() -> Finding:
    """ipsec's daemon, and the library by which it is spoken to."""
    path = shutil.which(IKE_PROGRAM, path=os.pathsep.join((os.environ.get("PATH", ""), *IKE_PLACES)))
    if path is None:
        return Finding("charon", FAILED, "strongSwan's IKE daemon is not installed", IKE_PACKAGES)
    if find_spec(IKE_LIBRARY) is None:
        return Finding("charon", FAILED, f"{path} is there, the Python package {IKE_LIBRARY} is not", IKE_EXTRA)
    return Finding("charon", OK, f"{path} is there")


def _tun() -> Finding:
    there = _TUN.exists()
    remedy = "" if there else "modprobe tun; mkdir -p /dev/net; mknod /dev/net/tun c 10 200"
    return Finding("kernel: tun", OK if there else WARNING, f"{_TUN} is {'there' if there else 'not there'}", remedy)


async def _tried(about: About, what: str, items: Iterable[Object], state: str, remedy: str) -> Finding:
    try:
        results = await about.kernel.rehearse([Step("add", item) for item in items])
        wrong = "; ".join(str(result.error) for result in results if result.error is not None)
    except KernelError as error:
        wrong = str(error)
    return Finding(f"kernel: {what}", state if wrong else OK, wrong or _CAN, remedy if wrong else "")


async def _wireguard(about: About) -> Finding:
    try:
        await about.kernel.public_key(Secret(os.urandom(32)))
    except KernelError as error:
        return Finding("kernel: wireguard", FAILED, str(error), "modprobe wireguard; a kernel from 5.6 on, with CONFIG_WIREGUARD")
    return Finding("kernel: wireguard", OK, _CAN)
