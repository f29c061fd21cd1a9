"""What can be done with a host and its containers? The handles that tests and the command line hold."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netaddr import IPAddress, IPNetwork

from netns_lab.agent import READY_WITHIN_S, Agent
from netns_lab.errors import LabError
from netns_lab.namespaces import Namespace, Outcome, batch, open_socket
from netns_lab.topology import ContainerPlan, HostPlan, Topology
from netns_lab.wires import attach_container


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How every agent of a lab is started: the program, where etcd is, and whether it outlives the lab's process."""

    program: tuple[str, ...]
    endpoints: str
    prefix: str
    options: tuple[str, ...]
    lasting: bool


_BOUND = (
    *("unshare", "--mount", "--propagation", "slave"),
    *("sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"'),
)
"""What leads a command that is to find another file or directory at a path: that, the path, and the command, follow."""

_STATUS = b"GET /status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"


class Box:
    """A namespace with a short name; what hosts, containers and etcd's machines have in common."""

    def __init__(self, name: str, namespace: Namespace) -> None:
        self.name = name
        self.namespace = namespace

    async def exec(self, *words: str, timeout_s: float = 30.0, stdin: str | None = None) -> str:
        """Run a command inside; its standard output. Raises LabError with what it said where it fails."""
        return await self.namespace.exec(*words, timeout_s=timeout_s, stdin=stdin)

    async def attempt(self, *words: str, timeout_s: float = 30.0, stdin: str | None = None) -> Outcome:
        """Run a command inside, whatever comes of it."""
        return await self.namespace.attempt(*words, timeout_s=timeout_s, stdin=stdin)


class Container(Box):
    """A container: a namespace on its host's bridge. Its addresses follow from the host's subnet.env."""

    def __init__(self, plan: ContainerPlan, namespace: Namespace, host: Host) -> None:
        super().__init__(plan.name, namespace)
        self.plan = plan
        self.host = host

    @property
    def address(self) -> IPAddress:
        """Its IPv4 address. Raises LabError while the host has no subnet."""
        return self._address("FLANNEL_SUBNET")

    @property
    def address6(self) -> IPAddress:
        """Its IPv6 address. Raises LabError while the host has no IPv6 subnet."""
        return self._address("FLANNEL_IPV6_SUBNET")

    def _address(self, key: str) -> IPAddress:
        env = self.host.subnet_env()
        if key not in env:
            raise LabError(f"{self.name} has no address: {self.host.subnet_file} has no {key}")
        return IPNetwork(env[key]).ip + self.plan.number


class Host(Box):
    """A host: its namespace, its agent, the files the agent writes, its containers."""

    def __init__(
        self, plan: HostPlan, namespace: Namespace, nat: Namespace, switch: Namespace, directory: Path, topology: Topology
    ) -> None:
        super().__init__(plan.name, namespace)
        self.plan = plan
        self.directory = directory
        self.containers: tuple[Container, ...] = ()
        self.settings: AgentSettings | None = None
        self.selector: tuple[str, ...] = ("--iface=eth1",)
        """How its agent is told which interface to use."""
        self.machine_id: Path | None = None
        """What its agent reads in place of this machine's /etc/machine-id, from its next start on."""
        self.bound: dict[str, Path] = {}
        """What its agent finds at other paths in place of this machine's, from its next start on."""
        self._nat = nat
        self._switch = switch
        self._topology = topology
        self._agent: Agent | None = None
        directory.mkdir(exist_ok=True)

    # ---------------------------------------------------------------------------------------------------- the agent

    @property
    def address(self) -> IPAddress:
        """Its address on the private segment."""
        return self.plan.address.ip

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def agent(self) -> Agent:
        """The agent that was started last. Raises LabError where none was."""
        if self._agent is None:
            raise LabError(f"{self.name}: no agent was started")
        return self._agent

    def agent_words(self, *options: str) -> list[str]:
        """The agent's command line; a later option wins over an earlier one."""
        files = (f"--subnet-file={self.subnet_file}", f"--state-dir={self.state_dir}", f"--run-dir={self.run_dir}")
        return [*self._known_settings.program, *files, *self.agent_options(*options)]

    def agent_options(self, *options: str) -> list[str]:
        """What an agent on this host has to be told in any case, and these; its files are where they are by default."""
        settings = self._known_settings
        where = (f"--etcd-endpoints={settings.endpoints}", f"--etcd-prefix={settings.prefix}")
        return [*self.selector, *where, *settings.options, *options]

    @property
    def _known_settings(self) -> AgentSettings:
        if self.settings is None:
            raise LabError(f"{self.name}: the lab has no etcd, start agents with a topology that has one")
        return self.settings

    def launch_agent(self, *options: str, program: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> Agent:
        """Start the agent (or another program in its place, as it is) and do not wait for it."""
        words = [*program, *options] if program is not None else self.agent_words(*options)
        if self._agent is not None and self._agent.running:
            raise LabError(f"{self.name}: the agent runs already (pid {self._agent.pid})")
        if self._agent is not None:
            self._agent.close()
        for directory in (self.state_dir, self.run_dir):
            directory.mkdir(exist_ok=True)
        own = {**self.bound, **({} if self.machine_id is None else {"/etc/machine-id": self.machine_id})}
        for path, source in own.items():
            words = [*_BOUND, str(source), path, *words]
        lasting = self.settings.lasting if self.settings else False
        named = {"FLANNELPY_HOSTNAME": self.name, **(env or {})}  # the machine's own name is all hosts'
        self._agent = Agent(self.namespace, self.directory, words, env=named, lasting=lasting)
        self._agent.launch()
        return self._agent

    async def start_agent(
        self,
        *options: str,
        program: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        within_s: float = READY_WITHIN_S,
    ) -> Agent:
        """Start the agent and wait for READY=1. Raises LabError with the end of its log where that does not come."""
        agent = self.launch_agent(*options, program=program, env=env)
        await agent.ready(within_s)
        return agent

    def close(self) -> None:
        """Stop listening to the agent."""
        if self._agent is not None:
            self._agent.close()

    # --------------------------------------------------------------------------------------------- what it has written

    def subnet_env(self) -> dict[str, str]:
        """subnet.env as it is now; empty where there is none."""
        try:
            lines = self.subnet_file.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}

    @property
    def subnet(self) -> IPNetwork:
        """The host's subnet, like 10.1.5.0/24. Raises LabError while there is none."""
        env = self.subnet_env()
        if "FLANNEL_SUBNET" not in env:
            raise LabError(f"{self.name} has no subnet yet: no FLANNEL_SUBNET in {self.subnet_file}")
        return IPNetwork(env["FLANNEL_SUBNET"]).cidr

    @property
    def lease_key(self) -> str:
        """The whole etcd key of the host's lease. Raises LabError while there is none."""
        if self.settings is None:
            raise LabError(f"{self.name}: the lab has no etcd")
        env = self.subnet_env()
        name = f"{self.subnet.ip}-{self.subnet.prefixlen}"
        if "FLANNEL_IPV6_SUBNET" in env:
            subnet6 = IPNetwork(env["FLANNEL_IPV6_SUBNET"]).cidr
            name += f"&{subnet6.ip}-{subnet6.prefixlen}"
        return f"{self.settings.prefix}/subnets/{name}"

    async def status(self, within_s: float = 5.0) -> dict[str, Any]:
        """What its agent says of itself, as ``flannelpy status --json`` prints it; empty where nobody answers."""
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await asyncio.open_unix_connection(str(self.run_dir / "agent.sock"))
                try:
                    writer.write(_STATUS)
                    answer = await reader.read()
                finally:
                    writer.close()
            found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        except (OSError, ValueError):
            return {}
        return found

    # --------------------------------------------------------------------------------------------- containers and cables

    async def connect_containers(self) -> None:
        """Do what Docker or CNI does with subnet.env: addresses and MTU for the bridge and every container. Safe to repeat."""
        env = self.subnet_env()
        if "FLANNEL_MTU" not in env:
            raise LabError(f"{self.name} has no subnet yet: {self.subnet_file} is not there")
        subnet, subnet6, mtu = env.get("FLANNEL_SUBNET", ""), env.get("FLANNEL_IPV6_SUBNET", ""), int(env["FLANNEL_MTU"])
        bridge = self._topology.bridge
        lines = [
            f"address flush dev {bridge} scope global",
            *(f"link set v{container.name} mtu {mtu}" for container in self.containers),
            f"link set {bridge} mtu {mtu}",
            *([f"address add {subnet} brd + dev {bridge}"] if subnet else []),
            *([f"address add {subnet6} dev {bridge} nodad"] if subnet6 else []),
        ]
        await batch(lines, self.namespace.path)
        inside = [(item.namespace.path, attach_container(item.plan.number, mtu, subnet, subnet6)) for item in self.containers]
        await asyncio.gather(*(batch(its_lines, path) for path, its_lines in inside))

    async def unplug(self) -> None:
        """Pull the cable of eth1: no carrier on this end, nothing passes."""
        await batch([f"link set {self.name} down"], self._switch.path)

    async def plug(self) -> None:
        """Put the cable of eth1 back."""
        await batch([f"link set {self.name} up"], self._switch.path)

    async def make_uplink_anew(self, *addresses: str, mtu: int | None = None) -> None:
        """Take eth1 away, as a driver that is reloaded does, and make one of its name, with these addresses or its own."""
        wanted = mtu or self._topology.mtu
        await batch(["link del eth1"], self.namespace.path)
        await batch(
            [
                f"link add eth1 mtu {wanted} netns {self.namespace.name} type veth"
                f" peer name {self.name} mtu {wanted} netns {self._switch.name}"
            ]
        )
        await batch([f"link set {self.name} master br0 up"], self._switch.path)
        given = addresses or (str(self.plan.address),)
        await batch([*(f"address add {each} brd + dev eth1" for each in given), "link set eth1 up"], self.namespace.path)

    def outside_view(self) -> OutsideView:
        """See echo requests as the outside address behind this host's gateway sees them."""
        return OutsideView(self._nat)


class OutsideView:
    """Echo requests that reach the outside, with the source they carry there: masqueraded or not."""

    def __init__(self, nat: Namespace) -> None:
        self._socket = open_socket(nat.path, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setblocking(False)

    async def source(self, within_s: float = 5.0) -> IPAddress:
        """The source address of the next echo request. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while True:
                packet = await asyncio.get_running_loop().sock_recv(self._socket, 2048)
                header = 4 * (packet[0] & 0xF)
                if packet[header] == 8:  # echo request (RFC 792)
                    return IPAddress(socket.inet_ntoa(packet[12:16]))

    def __enter__(self) -> OutsideView:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
