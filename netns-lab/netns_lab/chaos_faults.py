"""How does a fault of the plan befall a lab? Each kind as an operator, a crash or a cable would do it.

Faults of etcd follow each other, so do those of one host; the two, and what other hands do to a kernel, go on side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from netns_lab.chaos_plan import HOST, KERNEL, REGISTRY, Fault
from netns_lab.errors import LabError
from netns_lab.etcd import SIGCONT, SIGSTOP, EtcdFailedError
from netns_lab.host import Host
from netns_lab.lab import PREFIX, Lab

PEER_LEASE_S = 20
"""Longer than the peer is there: a lease that ends with its key, or before, is one whose host may still live."""
MTUS = (1500, 1400, 1300, 9000)
DEVICES = {"vxlan": "flannel.1", "udp": "flannel0"}


class Faults:
    """What befalls one lab. ``prepare`` comes first."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._device = DEVICES.get(lab.topology.backend, "")
        self._addresses = {host.name: str(host.plan.address) for host in lab.hosts}
        self._mtus = {host.name: lab.topology.mtu for host in lab.hosts}
        self._etcd = asyncio.Lock()
        self._turns = {host.name: asyncio.Lock() for host in lab.hosts}
        registry: Sequence[Callable[[Fault, Host], Awaitable[None]]] = (
            self._stand_still,
            self._kill_etcd,
            self._delete_key,
            self._revoke,
            self._put_again,
            self._junk,
            self._peer,
            self._compact,
        )
        host: Sequence[Callable[[Fault, Host], Awaitable[None]]] = (
            self._link_down,
            self._unplug,
            self._mtu,
            self._address,
            self._make_anew,
            self._churn,
            self._kill_agent,
            self._restart_agent,
            self._stop_agent,
        )
        commands = (
            "ip link del DEV",
            "ip link set DEV down",
            "ip link set DEV mtu 1280",
            "ip addr flush dev DEV",
            "ip route flush proto 102",
            "ip neigh flush dev DEV nud permanent",
            "nft flush ruleset",
        )
        self._of_etcd = dict(zip(REGISTRY, registry, strict=True))
        self._of_host = dict(zip(HOST, host, strict=True))
        self._of_kernel: Mapping[str, str] = dict(zip(KERNEL, commands, strict=True))

    async def prepare(self) -> None:
        """What the hosts need so that a second address outlives the first one of its network."""
        for host in self._lab.hosts:
            await host.exec("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries")

    def address(self, host: Host) -> str:
        """Where the host is by now."""
        return self._addresses[host.name].partition("/")[0]

    async def befall(self, faults: Sequence[Fault]) -> None:
        """All of them, each at its time; returns when the last is over. Raises LabError, EtcdFailedError."""
        try:
            async with asyncio.TaskGroup() as group:
                for fault in faults:
                    await asyncio.sleep(fault.pause_s)
                    group.create_task(self._befall(fault), name=fault.kind)
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _befall(self, fault: Fault) -> None:
        host = self._lab.host(fault.host or 1)
        if fault.kind in self._of_kernel:
            # What is not there cannot be changed, and that is well.
            await host.attempt("sh", "-c", self._of_kernel[fault.kind].replace("DEV", self._device or "eth9"))
        elif fault.kind in self._of_etcd:
            async with self._etcd:
                await self._of_etcd[fault.kind](fault, host)
        else:
            async with self._turns[host.name]:
                await self._of_host[fault.kind](fault, host)

    # ---------------------------------------------------------------------------------------------------------- etcd

    async def _ctl(self, *words: str) -> str:
        return await asyncio.to_thread(self._lab.etcd.ctl, *words)

    async def _stand_still(self, fault: Fault, _: Host) -> None:
        self._lab.etcd.signal(0, SIGSTOP)
        try:
            await asyncio.sleep(2 * fault.lasts_s)
        finally:
            self._lab.etcd.signal(0, SIGCONT)

    async def _kill_etcd(self, fault: Fault, _: Host) -> None:
        self._lab.etcd.kill()
        try:
            await asyncio.sleep(2 * fault.lasts_s)
        finally:
            self._lab.etcd.restart()  # in this thread: it dies with the one that started it

    async def _delete_key(self, _: Fault, host: Host) -> None:
        await self._ctl("del", host.lease_key)

    async def _revoke(self, _: Fault, host: Host) -> None:
        found = (await self._ctl("get", host.lease_key, "-w", "fields")).splitlines()
        lease = next((int(line.split(":")[1]) for line in found if line.startswith('"Lease"')), 0)
        if lease:
            with suppress(EtcdFailedError):  # it has ended meanwhile
                await self._ctl("lease", "revoke", f"{lease:x}")

    async def _put_again(self, _: Fault, host: Host) -> None:
        value = await asyncio.to_thread(self._lab.etcd.get, host.lease_key)
        if value is not None:
            with suppress(EtcdFailedError):  # the key has gone meanwhile
                await self._ctl("put", "--ignore-lease", "--", host.lease_key, value)

    async def _junk(self, fault: Fault, _: Host) -> None:
        names = ("junk", "10.1.300.0-24", "\x1b[31m", "10.1.98.0-33", "10.1.99.0-24")
        keys = [f"{PREFIX}/subnets/{names[(fault.draw + step) % len(names)]}" for step in range(2)]
        for key in keys:
            await self._ctl("put", "--", key, '{"PublicIP": 7')
        await asyncio.sleep(fault.lasts_s)
        for key in keys:
            await self._ctl("del", "--", key)

    async def _peer(self, fault: Fault, _: Host) -> None:
        number = 10 + fault.draw % 90
        key, kind = f"{PREFIX}/subnets/10.1.{number}.0-24", self._lab.topology.backend
        data = f',"BackendType":"{kind}"' if kind != "udp" else ""
        if kind == "vxlan":
            data += f',"BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}}'
        value = f'{{"PublicIP":"192.168.50.{240 + number % 10}","PublicIPv6":null{data}}}'
        lease = (await self._ctl("lease", "grant", str(PEER_LEASE_S))).split()[1]
        await self._ctl("put", f"--lease={lease}", "--", key, value)
        await asyncio.sleep(fault.lasts_s)
        await self._ctl("del", key)

    async def _compact(self, _: Fault, __: Host) -> None:
        with suppress(EtcdFailedError):  # nothing was written since the last time
            await asyncio.to_thread(self._lab.etcd.compact)

    # --------------------------------------------------------------------------------------------------------- hosts

    async def _link_down(self, fault: Fault, host: Host) -> None:
        await host.exec("ip", "link", "set", "eth1", "down")
        await asyncio.sleep(fault.lasts_s)
        await host.exec("ip", "link", "set", "eth1", "up")

    async def _unplug(self, fault: Fault, host: Host) -> None:
        await host.unplug()
        await asyncio.sleep(fault.lasts_s)
        await host.plug()

    async def _mtu(self, fault: Fault, host: Host) -> None:
        self._mtus[host.name] = MTUS[fault.draw % len(MTUS)]
        await host.exec("ip", "link", "set", "eth1", "mtu", str(self._mtus[host.name]))

    async def _address(self, fault: Fault, host: Host) -> None:
        before = self._addresses[host.name]
        base = 100 + 30 * host.plan.number
        wanted = [f"192.168.50.{base + (fault.draw + step) % 25}/24" for step in range(2)]
        now = next(each for each in wanted if each != before)
        lines = [f"addr add {now} dev eth1", f"addr del {before} dev eth1"]
        self._addresses[host.name] = now
        await host.exec("ip", "-batch", "-", stdin="\n".join(lines if fault.draw & 32 else lines[::-1]) + "\n")

    async def _make_anew(self, _: Fault, host: Host) -> None:
        await host.make_uplink_anew(self._addresses[host.name], mtu=self._mtus[host.name])

    async def _churn(self, fault: Fault, host: Host) -> None:
        names = [f"x{number}" for number in range(20 + fault.draw % 60)]
        for lines in ([f"link add {name} type veth peer name y{name}" for name in names], [f"link del {name}" for name in names]):
            await host.exec("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    async def _kill_agent(self, fault: Fault, host: Host) -> None:
        await host.agent.kill()
        await asyncio.sleep(fault.lasts_s)
        host.launch_agent()

    async def _restart_agent(self, _: Fault, host: Host) -> None:
        await self._lab.until(host.status, timeout_s=20, what=f"{host.name}'s agent, that heeds signals by now")
        code = await host.agent.stop()
        if code:
            raise LabError(f"{host.name}: the agent ended with {code} at SIGTERM: {host.agent.process.tail()}")
        host.launch_agent()

    async def _stop_agent(self, fault: Fault, host: Host) -> None:
        host.agent.signal(SIGSTOP)
        await asyncio.sleep(fault.lasts_s)
        host.agent.signal(SIGCONT)
