"""What does a big cluster look like to one agent? Simulated nodes: leases in a lab's etcd that come, go, are renewed and change.

    lab swarm --nodes 1000 --churn 100 --seconds 30

The process runs beside etcd, inside its namespace, and writes what nodes write: a join and a renewal are a new etcd lease and a
put, a changed MAC is a put, a leave is a delete. Nodes that write within one turn share an etcd lease: at a thousand changes a
second the generator would otherwise need the core that is to be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from netaddr import IPAddress, IPNetwork

from flannelpy.core.claims import halves, possible
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError
from flannelpy.core.model import LEASE_TTL_S, Lease, LeaseAttrs, subnet_key
from flannelpy.core.pool import free_runs
from flannelpy.registry import Put
from flannelpy.registry.etcd.loader import load
from flannelpy.registry.etcd.records import Keys, decode_put
from netns_lab.interrupt import heed_interrupts

Kind = Literal["renewal", "join", "leave", "mac"]
SHARES: dict[Kind, float] = {"renewal": 0.7, "join": 0.1, "leave": 0.1, "mac": 0.1}
"""How often each kind of change happens. Joins fill the places of those that left, so that the number of nodes stays."""

TURN_S = 0.02
PUTS_AT_ONCE = 100
"""Operations in one transaction while the swarm is written; etcd takes up to 128."""
MOST_UNDER_WAY = 400
"""Changes that etcd has not answered yet; with more, the swarm waits, and its rate falls."""
DEADLINE_S = 10.0
FIRST_ADDRESS = int(IPAddress("172.24.0.1"))
"""The nodes' PublicIPs count up from here (RFC 1918); nobody is there."""
MOST_NODES = 1 << 19
SPARE = 16
"""Free subnets that are left to the lab's own hosts."""


class SwarmError(Exception):
    """The swarm cannot be: one line that a person can be shown."""


@dataclass(slots=True)
class Node:
    """A simulated node. ``life`` counts its MACs: each life of it, and each change, has another."""

    number: int
    subnet: IPNetwork
    life: int = 0

    def attrs(self, config: NetworkConfig) -> LeaseAttrs:
        """What a node of this network publishes."""
        address, backend, data = IPAddress(FIRST_ADDRESS + self.number), config.backend_type, None
        if backend == "vxlan":
            mac = (0x06_00_00_00_00_00 | (self.life & 0xFFFF) << 24 | self.number).to_bytes(6, "big").hex(":")
            data = {"VNI": config.backend_options.get("VNI", 1), "VtepMAC": mac}
        return LeaseAttrs(address, backend_type=backend, backend_data=data)


@dataclass(slots=True)
class Herd:
    """Which nodes are there, and what happens next. No I/O: chance is handed in; whoever performs a change says when it is done."""

    present: list[Node]
    random: Random
    absent: list[Node] = field(default_factory=list)

    def next(self) -> tuple[Kind, Node]:
        """The next change; until ``done`` nothing else happens to its node."""
        kind = self.random.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "join" and not self.absent:
            kind = "leave"
        if kind != "join" and not self.present:
            kind = "join"
        pool = self.absent if kind == "join" else self.present
        place = self.random.randrange(len(pool))
        pool[place], pool[-1] = pool[-1], pool[place]
        node = pool.pop()
        if kind in ("join", "mac"):
            node.life += 1
        return kind, node

    def done(self, kind: Kind, node: Node) -> None:
        """The change was carried out."""
        (self.absent if kind == "leave" else self.present).append(node)

    @property
    def idle(self) -> int:
        """Nodes to which nothing happens at the moment."""
        return len(self.present) + len(self.absent)


def settle(count: int, config: NetworkConfig, leases: Iterable[Lease]) -> list[Node]:
    """Places for ``count`` nodes: the last free subnets of the pool, so that the first stay free; hosts that no other swarm has.
    Raises SwarmError.
    """
    if config.v4 is None:
        raise SwarmError("the network has no IPv4 subnets: expected some for the swarm")
    if config.v6 is not None:
        raise SwarmError("the network is dual-stack: expected IPv4 alone")
    leases = list(leases)
    taken = [net for lease in leases if possible(lease, config) for net in halves(lease)]
    known = [int(lease.public_ip) - FIRST_ADDRESS for lease in leases]
    first = max((number for number in known if 0 <= number < MOST_NODES), default=-1) + 1
    runs = free_runs(config.v4, taken)
    free = sum(end - start for start, end in runs) - SPARE
    if count > free:
        raise SwarmError(
            f"{count} nodes: {config.v4.network} has room for {max(free, 0)} (/{config.v4.length} each); "
            "lab up --network 10.0.0.0/8 makes a lab with more"
        )
    blocks = (number for start, end in reversed(runs) for number in range(end - 1, start - 1, -1))
    return [Node(number, config.v4.block(next(blocks))) for number in range(first, first + count)]


@dataclass(slots=True)
class Tally:
    """What was done, for the summary. Times in seconds."""

    nodes: int = 0
    filled_s: float = 0.0
    churned_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    answers_s: list[float] = field(default_factory=list)

    @property
    def changes(self) -> int:
        return self.kinds.total()

    @property
    def rate(self) -> float:
        """Changes a second."""
        return self.changes / self.churned_s if self.churned_s else 0.0

    def answer_ms(self, share: float) -> float:
        """The time until etcd had answered, of this share of the changes."""
        ordered = sorted(self.answers_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "nodes": self.nodes,
            "filledS": self.filled_s,
            "churnedS": self.churned_s,
            "changes": self.changes,
            "rate": self.rate,
            "kinds": dict(self.kinds),
            "answerP50Ms": self.answer_ms(0.5),
        }

    def __str__(self) -> str:
        text = f"{self.nodes:,} nodes written in {self.filled_s:.2f} s"
        if not self.changes:
            return text
        kinds = self.kinds
        return (
            f"{text}; {self.changes:,} changes in {self.churned_s:.1f} s, {self.rate:,.0f} a second: "
            f"{kinds['renewal']:,} renewals, {kinds['join']:,} joins, {kinds['leave']:,} leaves, {kinds['mac']:,} new MACs; "
            f"etcd answered in {self.answer_ms(0.5):.1f} ms (p50), {self.answer_ms(0.95):.1f} ms (p95)"
        )


class Swarm:
    """The swarm in etcd: it writes, changes and removes the nodes' keys. Every call has a deadline and raises SwarmError."""

    def __init__(self, url: str, prefix: str, tally: Tally) -> None:
        self._rpc = load()
        import grpc.aio  # after load, which sets gRPC's environment

        self._failed = grpc.aio.AioRpcError
        self._url = url
        self._channel = grpc.aio.insecure_channel(url.removeprefix("http://"))
        self._kv, self._leases = self._rpc.KVStub(self._channel), self._rpc.LeaseStub(self._channel)
        self._keys = Keys.under(prefix)
        self._nodes: list[Node] = []
        self.config: NetworkConfig | None = None
        self.tally = tally

    async def read(self) -> tuple[NetworkConfig, list[Lease]]:
        """The network config and the leases that are there. Raises SwarmError."""
        answer = await self._ask(self._kv.Range, self._rpc.RangeRequest(key=self._keys.config))
        where = self._keys.config.decode()
        if not answer.kvs:
            raise SwarmError(f"no network config at {where}")
        try:
            self.config = NetworkConfig.parse(answer.kvs[0].value)
        except ConfigError as error:
            raise SwarmError(f"network config at {where}: {error}") from None
        request = self._rpc.RangeRequest(key=self._keys.subnets, range_end=self._keys.end)
        answer = await self._ask(self._kv.Range, request)
        read = [decode_put(self._keys.name(kv.key), kv.value, etcd_lease=0, create_revision=0, mod_revision=0) for kv in answer.kvs]
        return self.config, [each.lease for each in read if isinstance(each, Put)]

    async def fill(self, nodes: Sequence[Node]) -> None:
        """Write all nodes, many in a transaction."""
        began = time.perf_counter()
        self._nodes = list(nodes)
        for first in range(0, len(nodes), PUTS_AT_ONCE):
            grant = await self._grant()
            puts = [self._rpc.RequestOp(request_put=self._put(node, grant)) for node in nodes[first : first + PUTS_AT_ONCE]]
            await self._ask(self._kv.Txn, self._rpc.TxnRequest(success=puts))
            self.tally.nodes += len(puts)
        self.tally.filled_s = time.perf_counter() - began

    async def churn(self, herd: Herd, rate: float, seconds: float | None, tell: Callable[[], None]) -> None:
        """Change ``rate`` nodes a second, each on its own, for ``seconds`` or for ever; ``tell`` is called every turn."""
        loop = asyncio.get_running_loop()
        began, started = loop.time(), 0
        under_way: set[asyncio.Task[None]] = set()
        failed: list[BaseException] = []

        def finished(task: asyncio.Task[None]) -> None:
            under_way.discard(task)
            if error := task.exception():
                failed.append(error)

        try:
            while not failed and (seconds is None or loop.time() - began < seconds):
                await asyncio.sleep(TURN_S)
                self.tally.churned_s = loop.time() - began
                due = min(int(rate * self.tally.churned_s) - started, MOST_UNDER_WAY - len(under_way), herd.idle)
                turn = [herd.next() for _ in range(due)]
                started += len(turn)
                grant = await self._grant() if any(kind in ("renewal", "join") for kind, _ in turn) else 0
                for kind, node in turn:
                    task = asyncio.create_task(self._change(herd, kind, node, grant))
                    under_way.add(task)
                    task.add_done_callback(finished)
                tell()
        finally:
            if under_way:
                await asyncio.wait(under_way)  # what is on its way arrives: only then can it be removed
        if failed:
            raise failed[0]

    async def _change(self, herd: Herd, kind: Kind, node: Node, grant: int) -> None:
        began = time.perf_counter()
        if kind == "leave":
            await self._ask(self._kv.DeleteRange, self._rpc.DeleteRangeRequest(key=self._key(node)))
        elif kind == "mac":
            await self._ask(self._kv.Put, self._put(node, 0, ignore_lease=True))
        else:
            await self._ask(self._kv.Put, self._put(node, grant))
        self.tally.answers_s.append(time.perf_counter() - began)
        self.tally.kinds[kind] += 1
        herd.done(kind, node)

    async def remove(self) -> None:
        """Delete the keys. The etcd leases end by themselves: a lease that outlives its key tells agents that its host has left."""
        for first in range(0, len(self._nodes), PUTS_AT_ONCE):
            keys = [self._key(node) for node in self._nodes[first : first + PUTS_AT_ONCE]]
            deletes = [self._rpc.RequestOp(request_delete_range=self._rpc.DeleteRangeRequest(key=key)) for key in keys]
            await self._ask(self._kv.Txn, self._rpc.TxnRequest(success=deletes))

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=DEADLINE_S)
        except self._failed as error:
            raise SwarmError(f"etcd at {self._url}: {error.details()}") from None

    async def _grant(self) -> int:
        answer = await self._ask(self._leases.LeaseGrant, self._rpc.LeaseGrantRequest(TTL=LEASE_TTL_S))
        return int(answer.ID)

    def _key(self, node: Node) -> bytes:
        return self._keys.lease(subnet_key(node.subnet))

    def _put(self, node: Node, grant: int, *, ignore_lease: bool = False) -> Any:
        assert self.config is not None, "read comes first"
        value = node.attrs(self.config).to_json().encode()
        return self._rpc.PutRequest(key=self._key(node), value=value, lease=grant, ignore_lease=ignore_lease)


async def run(given: argparse.Namespace, tally: Tally, say: Callable[[str], None], tell: Callable[[], None]) -> None:
    """Write the swarm, let it live, remove it, whatever way its life ends. Raises SwarmError."""
    swarm = Swarm(given.url, given.prefix, tally)
    try:
        config, leases = await swarm.read()
        nodes = settle(given.nodes, config, leases)
        await swarm.fill(nodes)
        say(f"{given.nodes:,} nodes are there")
        if given.churn:
            await swarm.churn(Herd(nodes, Random(given.seed)), given.churn, given.seconds, tell)
        elif given.seconds or not given.keep:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(given.seconds):
                    await asyncio.Event().wait()
    finally:
        if not given.keep:
            await swarm.remove()
        await swarm.close()


def main(words: Sequence[str] | None = None) -> int:
    """The process beside etcd: 0 done, 1 one line says why not, 130 ended by ctrl-C or SIGTERM."""
    heed_interrupts()
    parser = argparse.ArgumentParser(prog="swarm", description="Simulated nodes; lab swarm starts this beside etcd.")
    parser.add_argument("url", help="etcd's client URL")
    parser.add_argument("--prefix", default="/coreos.com/network")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--churn", type=float, default=0.0, help="changes a second")
    parser.add_argument("--seconds", type=float, help="how long; without it until ctrl-C")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same changes")
    parser.add_argument("--keep", action="store_true", help="leave the keys in etcd")
    parser.add_argument("--json", action="store_true", help="the summary for programs")
    given = parser.parse_args(words)
    try:
        return asyncio.run(_shown(given))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    except SwarmError as error:
        print(f"swarm: {error}", file=sys.stderr)
        return 1


async def _shown(given: argparse.Namespace) -> int:
    """The run with its progress on stderr, what matters on stdout."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    tally = Tally()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        shown = progress.add_task(f"writing {given.nodes:,} nodes", total=None)

        def say(text: str) -> None:
            print(text, flush=True)
            progress.update(shown, description=text)

        def tell() -> None:
            progress.update(shown, description=f"{tally.nodes:,} nodes, {tally.changes:,} changes, {tally.rate:,.0f} a second")

        try:
            await run(given, tally, say, tell)
        finally:
            print(json.dumps(tally.to_dict()) if given.json else str(tally), flush=True)
            if tally.nodes and not given.json:
                print("the keys stay" if given.keep else "the keys are removed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
