"""How is a lab brought up, used and taken away? The library's front door.

    async with Lab.up(Topology(hosts=3)) as lab:
        await lab.start_agents()
        await lab.connect_containers()
        async with lab.pinging("c1", "c2", per_second=100) as pings:
            await lab.host(1).agent.restart()
        assert pings.lost == 0

Whatever way the block ends, everything goes with it; after a kill -9 the processes die with ours and ``lab down`` removes the rest.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from netns_lab import capture as captures
from netns_lab import pinging as pings
from netns_lab import rough as roughs
from netns_lab.agent import READY_WITHIN_S
from netns_lab.booted import CONFINED, Booted, boot, flannelpy_files
from netns_lab.docker import Docker
from netns_lab.errors import LabError, TimedOutError
from netns_lab.etcd import Etcd, EtcdFailedError, Tls
from netns_lab.host import AgentSettings, Box, Container, Host
from netns_lab.ledger import ROOT, Ledger, Removed
from netns_lab.namespaces import Namespace, batch, write_sysctls
from netns_lab.topology import Topology, check_name
from netns_lab.wires import SWITCH, Wiring, nat_name, wire

PREFIX = "/coreos.com/network"
PROGRAM = (sys.executable, "-m", "flannelpy")
PINGS_AT_ONCE = 24
LAUNCHES_AT_ONCE = 8


class Lab:
    """A lab that stands. Made by ``up``, or by ``attach`` to one that another process has left standing."""

    def __init__(
        self,
        topology: Topology,
        ledger: Ledger,
        *,
        program: Sequence[str] = PROGRAM,
        lasting: bool = False,
        tls: Tls | None = None,
        etcd_options: Sequence[str] = (),
    ) -> None:
        self.topology = topology
        self.name = ledger.name
        self.directory = ledger.directory
        self._ledger = ledger
        self._wiring = wire(topology, ledger.name)
        self._etcd: Etcd | None = None
        self._captures = 0
        etcd = topology.etcd_plan
        if etcd is not None:
            inside, address = f"{self.name}-{etcd.name}", str(etcd.address.ip)
            self._etcd = Etcd(
                etcd.members,
                netns=inside,
                address=address,
                tls=tls,
                below=self.directory,
                lasting=lasting,
                options=etcd_options,
            )
        self.program = tuple(program)
        self._lasting = lasting
        self.hosts = self._make_hosts()

    # ------------------------------------------------------------------------------------------------ life

    @classmethod
    @asynccontextmanager
    async def up(
        cls,
        topology: Topology | None = None,
        *,
        name: str = "fl",
        program: Sequence[str] = PROGRAM,
        root: Path = ROOT,
        tls: Tls | None = None,
        etcd_options: Sequence[str] = (),
    ) -> AsyncIterator[Lab]:
        """A lab for the time of the block: namespaces, wires, etcd with the network config. Agents are started by the block.

        ``tls``: etcd serves https with these certificates (made for its address), and agents are told. ``etcd_options`` join the
        command line of every member.
        """
        wanted = topology or Topology()
        lab = await cls.build(wanted, name=name, program=program, root=root, tls=tls, etcd_options=etcd_options)
        try:
            yield lab
        finally:
            lab.down()

    @classmethod
    async def build(
        cls,
        topology: Topology,
        *,
        name: str,
        program: Sequence[str] = PROGRAM,
        root: Path = ROOT,
        lasting: bool = False,
        tls: Tls | None = None,
        etcd_options: Sequence[str] = (),
    ) -> Lab:
        """Make a lab; ``down`` is the caller's. ``lasting``: its processes outlive this one once ``leave`` is called.

        Raises LabError, after taking away what was made so far.
        """
        ledger = Ledger(check_name(name), root)
        ledger.claim({"topology": topology.to_dict(), "program": list(program)})
        lab = cls(topology, ledger, program=program, lasting=lasting, tls=tls, etcd_options=etcd_options)
        try:
            await lab._lay_wires(lab._wiring)
            await lab._start_etcd()
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def attach(cls, name: str, root: Path = ROOT) -> Lab:
        """The lab of this name that stands. Raises LabError where there is none."""
        ledger = Ledger(check_name(name), root)
        if not ledger.exists:
            raise LabError(f"no lab named {name} is up; netns-lab/lab up makes one")
        about = ledger.about
        lab = cls(Topology.from_dict(about["topology"]), ledger, program=about["program"], lasting=True)
        if lab._etcd is not None:
            lab._etcd.attach()
        lab._settle()
        return lab

    def leave(self) -> None:
        """Leave it standing; ``lab down`` ends it."""
        for host in self.hosts:
            host.close()
        self._ledger.release()

    def down(self) -> Removed:
        """Take everything away. May be called twice."""
        for host in self.hosts:
            host.close()
        try:
            return self._ledger.remove()
        finally:
            if self._etcd is not None and self._etcd.pids:
                self._etcd.stop()

    # ------------------------------------------------------------------------------------------------ its parts

    def host(self, which: int | str) -> Host:
        """A host by number (from 1) or name. Raises LabError."""
        name = which if isinstance(which, str) else f"h{which}"
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"no host {name}: expected one of {_list([host.name for host in self.hosts])}")

    @property
    def containers(self) -> tuple[Container, ...]:
        """Every container of every host."""
        return tuple(container for host in self.hosts for container in host.containers)

    def container(self, name: str) -> Container:
        """A container by name. Raises LabError."""
        for container in self.containers:
            if container.name == name:
                return container
        raise LabError(f"no container {name}: expected one of {_list([container.name for container in self.containers])}")

    def box(self, name: str) -> Box:
        """A host, a container, a host's NAT (``nat1``), the switch (``net``) or etcd's machine, by name. Raises LabError."""
        for box in (*self.hosts, *self.containers):
            if box.name == name:
                return box
        if name in self._wiring.namespaces:
            return Box(name, self._namespace(name))
        raise LabError(f"no {name} in lab {self.name}: expected one of {_list(list(self._wiring.namespaces))}")

    @property
    def etcd(self) -> Etcd:
        """The cluster. Raises LabError where the topology has none."""
        if self._etcd is None:
            raise LabError("this topology has no etcd")
        return self._etcd

    def docker(self, which: int | str, *, iptables: str = "nft") -> Docker:
        """A Docker on a host, not started. ``iptables``: the variant that it finds there, nft or legacy."""
        return Docker(self.host(which), self._ledger, iptables)

    def running_agents(self) -> dict[str, int]:
        """The pid of each host's agent, where it runs; also of agents that another process has started."""
        agents = [record for record in self._ledger.processes if record.role.startswith("agent ") and record.alive]
        return {record.role.removeprefix("agent "): record.pid for record in agents}

    # ------------------------------------------------------------------------------------------------ doing things

    async def put_config(self, config: Mapping[str, Any]) -> None:
        """Write the network config."""
        await asyncio.to_thread(self.etcd.put, f"{PREFIX}/config", json.dumps(config))

    async def start_agents(self, *options: str, within_s: float = READY_WITHIN_S) -> None:
        """Start an agent on every host and wait until all are ready. Raises the first LabError."""
        for host in self.hosts:
            host.launch_agent(*options)
        outcomes = await asyncio.gather(*(host.agent.ready(within_s) for host in self.hosts), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def install(self, which: int | str, *options: str) -> Booted:
        """Boot a systemd on a host where flannelpy is installed as an administrator would do it; nothing of it is started.

        Then ``systemctl`` has the agent, not ``host.agent``. Raises LabError where this machine cannot do it.
        """
        host = self.host(which)
        booted = await boot(host.namespace, self._ledger, host.directory, flannelpy_files(host.agent_options(*options)))
        await booted.exec("systemd-sysusers")
        await booted.exec("chmod", "666", "/dev/net/tun")  # as udev's 50-udev-default.rules does where there is an udev
        host.subnet_file.symlink_to(booted.root / "run/flannel/subnet.env")
        return booted

    async def boot(
        self, which: int | str, root: Path, files: Mapping[str, str] | None = None, powers: Sequence[str] = CONFINED
    ) -> Booted:
        """Boot a systemd on a host from a copy of ``root``, another Debian, with these files in it, or boot it again.

        Raises LabError.
        """
        host = self.host(which)
        booted = await boot(host.namespace, self._ledger, host.directory, files or {}, root, powers)
        await booted.exec("chmod", "666", "/dev/net/tun")
        host.subnet_file.unlink(missing_ok=True)
        host.subnet_file.symlink_to(booted.root / "run/flannel/subnet.env")
        return booted

    async def connect_containers(self) -> None:
        """Give every host's bridge and containers their addresses from its subnet.env."""
        await asyncio.gather(*(host.connect_containers() for host in self.hosts))

    async def ping(self, source: str, target: str, *, count: int = 1, wait_s: float = 2.0) -> pings.Ping:
        """From a container or host to a container (its overlay address), a host (its eth1) or an address."""
        return await pings.ping(self.box(source).namespace, self._address(target), count=count, wait_s=wait_s)

    async def matrix(self, *, wait_s: float = 2.0) -> dict[tuple[str, str], pings.Ping]:
        """One ping from every container to every other, all at once, within bounds."""
        slots = asyncio.Semaphore(PINGS_AT_ONCE)

        async def one(source: str, target: str) -> pings.Ping:
            async with slots:
                return await self.ping(source, target, wait_s=wait_s)

        names = [container.name for container in self.containers]
        pairs = [(source, target) for source in names for target in names if source != target]
        return dict(zip(pairs, await asyncio.gather(*(one(*pair) for pair in pairs)), strict=True))

    def pinging(
        self, source: str, target: str, *, per_second: float = 100.0, first_answer_within_s: float | None = 5.0
    ) -> AbstractAsyncContextManager[pings.Pinging]:
        """A stream of pings for the time of a block, which starts after the first answer; the value is complete after the block.

        ``per_second``: ping's timer is coarse, some 60 of 100 are sent; above 100 it is exact, but ping then keeps a core busy.
        """
        log = self._next_file(f"ping-{source}-{target}.log")
        return pings.pinging(
            self.box(source).namespace,
            self._address(target),
            per_second=per_second,
            log=log,
            first_answer_within_s=first_answer_within_s,
        )

    def pinging_steadily(self, source: str, target: str, *, per_second: float) -> AbstractAsyncContextManager[pings.Steady]:
        """A stream of pings at a rate that holds, whatever comes back; counted by the kernel, to be asked by its ``tally``."""
        log = self._next_file(f"ping-{source}-{target}.log")
        return pings.pinging_steadily(self.box(source).namespace, self._address(target), per_second=per_second, log=log)

    def pcap(self, box: str, device: str, filter_: str = "") -> AbstractAsyncContextManager[captures.Capture]:
        """What passes a device, for the time of a block; ``filter_`` is tcpdump's."""
        return captures.capture(self.box(box).namespace, device, self._next_file(f"{box}-{device}.pcap"), filter_)

    def rough(self, which: int | str, rates: roughs.Rates) -> AbstractAsyncContextManager[roughs.Rough]:
        """Make a host's cable rough for the time of a block; the value tells what it has done so far."""
        host = self.host(which)
        ends = {each.name: each.namespace for each in self.hosts}
        return roughs.cable(self._namespace(SWITCH), host.name, ends, rates, self.directory)

    async def until(self, predicate: Callable[[], Any], *, timeout_s: float = 10.0, every_s: float = 0.01, what: str = "") -> Any:
        """Wait until the predicate (plain or async) is true, and return what it gave; an AssertionError in it means "not yet".

        Raises TimedOutError that tells what was seen last.
        """
        return await until(predicate, timeout_s=timeout_s, every_s=every_s, what=what)

    # ------------------------------------------------------------------------------------------------ building

    def _namespace(self, short: str) -> Namespace:
        return Namespace(f"{self.name}-{short}", self._ledger)

    def _make_hosts(self) -> tuple[Host, ...]:
        hosts = []
        switch = self._namespace(SWITCH)
        for plan in self.topology.host_plans:
            directory = self.directory / plan.name
            host = Host(plan, self._namespace(plan.name), self._namespace(nat_name(plan.number)), switch, directory, self.topology)
            host.containers = tuple(Container(each, self._namespace(each.name), host) for each in plan.containers)
            hosts.append(host)
        return tuple(hosts)

    async def _lay_wires(self, wiring: Wiring) -> None:
        full = [f"{self.name}-{short}" for short in wiring.namespaces]
        self._ledger.note_namespaces(full)
        await batch([*(f"netns add {name}" for name in full), *wiring.links])
        self._ledger.note_inodes(full)
        for short, values in wiring.sysctls.items():
            write_sysctls(self._namespace(short).path, values)
        slots = asyncio.Semaphore(LAUNCHES_AT_ONCE)

        async def inside(short: str, lines: Sequence[str]) -> None:
            async with slots:
                await batch(lines, self._namespace(short).path)

        await asyncio.gather(*(inside(short, lines) for short, lines in wiring.inside.items()))

    async def _start_etcd(self) -> None:
        if self._etcd is None:
            return
        try:
            # In this thread: a child that is to die with its parent dies with the thread that started it (prctl(2)).
            self._etcd.start()
            for member, pid in self._etcd.pids.items():
                self._ledger.note_process(f"etcd {member + 1}", pid)
            await self.put_config(self.topology.network_config)
        except EtcdFailedError as error:
            raise LabError(str(error)) from None
        self._settle()

    def _settle(self) -> None:
        """Agents can be started now: it is known where etcd is."""
        if self._etcd is None:
            return
        options = self.topology.agent_options
        if tls := self._etcd.tls:
            options += (f"--etcd-cafile={tls.ca}",)
            if tls.mutual:
                options += (f"--etcd-certfile={tls.client_cert}", f"--etcd-keyfile={tls.client_key}")
        settings = AgentSettings(self.program, ",".join(self._etcd.urls), PREFIX, options, self._lasting)
        for host in self.hosts:
            host.settings = settings

    def _address(self, target: str) -> str:
        if target in self._wiring.namespaces or target in (container.name for container in self.containers):
            box = self.box(target)
            if isinstance(box, Container | Host):
                return str(box.address)
            if (etcd := self.topology.etcd_plan) and target == etcd.name:
                return str(etcd.address.ip)
            raise LabError(f"{target} has no address that others could ping")
        if not target[:1].isdigit() and ":" not in target:
            raise LabError(f"no {target} in lab {self.name}: expected an address or one of {_list(list(self._wiring.namespaces))}")
        return target

    def _next_file(self, name: str) -> Path:
        self._captures += 1
        return self.directory / f"{self._captures:03}-{name}"


async def until(predicate: Callable[[], Any], *, timeout_s: float = 10.0, every_s: float = 0.01, what: str = "") -> Any:
    """Wait until the predicate is true, and return what it gave. Raises TimedOutError that tells what was seen last."""
    deadline = time.monotonic() + timeout_s
    seen: object = "nothing"
    while True:
        try:
            answer = predicate()
            fact = await answer if inspect.isawaitable(answer) else answer
            if fact:
                return fact
            seen = fact
        except AssertionError as error:
            seen = error
        if time.monotonic() > deadline:
            raise TimedOutError(f"waited {timeout_s:g} s{f' for {what}' if what else ''}; seen last: {seen!s:.500}")
        await asyncio.sleep(every_s)


def _list(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... {names[-1]}"
