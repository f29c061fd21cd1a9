"""Whatever happens to the registry, in whatever order: nobody's subnet is taken twice by our own doing, nothing is swept that is
still there, and after the last fault everybody reaches everybody again.

Three agents on one store in memory; faults as hypothesis draws them. The kernel of each host tells what was taken away, and when.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.core.model import parse_subnet_key
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory, vxlan_value

HOSTS = 3
CONVERGED_WITHIN_S = 90.0

host_numbers = st.integers(0, HOSTS - 1)
faults = st.one_of(
    st.tuples(st.just("cut off"), host_numbers),
    st.tuples(st.just("back"), host_numbers),
    st.tuples(st.sampled_from(["stop etcd", "start etcd", "drop watches", "compact", "lose data", "garbage", "pause"]), st.just(0)),
    st.tuples(st.sampled_from(["delete key", "expire key", "defaced key", "thief", "restart", "last breath"]), host_numbers),
)


async def turns() -> None:
    """Let the loop turn, so that what was told is heard."""
    for _ in range(20):
        await asyncio.sleep(0)


class Trial:
    """Three hosts, what befalls them, and what must hold all the time."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        self.hosts = [HostInMemory(self.store, folder, number + 1) for number in range(HOSTS)]
        self.lives: list[AsyncExitStack] = []
        self.seen = [(0, False)] * HOSTS
        self.last = "nothing was looked at"
        self.config = json.dumps(VXLAN)
        self.hosts[0].put_config(VXLAN)

    async def begin(self, number: int) -> AsyncExitStack:
        life = AsyncExitStack()
        await life.enter_async_context(self.hosts[number].run(ready=False))
        return life

    async def befall(self, what: str, number: int) -> None:
        host, store = self.hosts[number], self.store
        key = self.key_of(host)
        match what:
            case "cut off":
                host.registry.down = True
            case "back":
                host.registry.down = False
            case "stop etcd":
                store.stop()
            case "start etcd":
                store.start()
            case "drop watches":
                store.drop_watches()
            case "compact":
                store.compact()
            case "lose data":
                store.lose_data()
                store.put(f"{PREFIX}/config", self.config)
            case "garbage":
                store.put(f"{PREFIX}/subnets/garbage", "{")
            case "delete key" if key in store.records:
                store.delete(key)
            case "expire key" if key in store.records:
                store.expire(key)
            case "defaced key" if key in store.records:
                store.put(key, "not JSON")
            case "thief" if key in store.records:
                store.put(key, vxlan_value("192.0.2.200", "02:00:00:00:02:00"))
            case "last breath" if key in store.records and not store.down:
                # A host goes, its key goes, and before the others may believe it, etcd goes too.
                host.registry.down = True
                store.delete(key)
                await turns()
                store.stop()
                await asyncio.sleep(0.01)  # what was decided while etcd still answered is still done
                await turns()
                self.check()
                await asyncio.sleep(0.05)
            case "restart":
                await self.lives[number].aclose()
                self.lives[number] = await self.begin(number)
            case "pause":
                await asyncio.sleep(0.03)
        await turns()
        self.check()

    def key_of(self, host: HostInMemory) -> bytes:
        try:
            return f"{PREFIX}/subnets/{host.lease}".encode()
        except (OSError, KeyError):
            return b""

    def owners(self) -> dict[IPNetwork, str]:
        """Who holds what, by the store; what cannot be read is left out."""
        found = {}
        for key, record in self.store.records.items():
            name = key.decode().rpartition("/")[2]
            if "/subnets/" in key.decode() and name[0].isdigit():
                try:
                    found[parse_subnet_key(name)[0]] = json.loads(record.value or "")["PublicIP"]
                except ValueError:
                    continue
        return found

    def check(self) -> None:
        """Nobody's subnet lies in another's; and a host that cannot see the registry takes no route away."""
        subnets = list(self.owners())
        assert not any(a != b and a in b for a in subnets for b in subnets), subnets
        for number, host in enumerate(self.hosts):
            cut_off = host.registry.down or self.store.down
            seen, was_cut_off = self.seen[number]
            if cut_off and was_cut_off:
                removed = [str(step) for step in host.kernel.applied[seen:] if step.op == "remove" and step.item.noun == "route"]
                assert not removed, f"host {number + 1} cannot see the registry and did {removed}"
            self.seen[number] = (len(host.kernel.applied), cut_off)

    async def converge(self) -> None:
        """No more faults: every host holds one subnet of its own and has a route to that of each other."""
        self.store.start()
        for host in self.hosts:
            host.registry.down = False
        self.store.put(f"{PREFIX}/config", self.config)
        async with asyncio.timeout(CONVERGED_WITHIN_S):
            while (why := self.unsettled()) is not None:
                await asyncio.sleep(0.005)
                self.last = why

    def unsettled(self) -> str | None:
        """What is not yet as it should be; None where all is."""
        owners = self.owners()
        mine: dict[str, list[IPNetwork]] = {}
        for subnet, address in owners.items():
            mine.setdefault(address, []).append(subnet)
        for number, host in enumerate(self.hosts):
            address = f"192.0.2.{number + 1}"
            if not host.ready or [str(net) for net in mine.get(address, [])] != [host.lease.replace("-", "/")]:
                return f"{address} holds {mine.get(address)}"
            for other in range(HOSTS):
                theirs = mine.get(f"192.0.2.{other + 1}", [])
                if other != number and (not theirs or not host.holds(f"route {theirs[0]} via {theirs[0].ip} dev flannel.1 onlink")):
                    return f"{address} has no route to {theirs}"
        return None


async def run_trial(steps: list[tuple[str, int]], folder: Path) -> None:
    trial = Trial(folder)
    try:
        for number in range(HOSTS):
            trial.lives.append(await trial.begin(number))
        await trial.converge()
        for what, number in steps:
            await trial.befall(what, number)
        try:
            await trial.converge()
        except TimeoutError:
            raise AssertionError(f"not settled after {CONVERGED_WITHIN_S:g} s: {trial.last}") from None
    finally:
        for life in trial.lives:
            await life.aclose()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(faults, max_size=10))
def test_faults_in_any_order_end_in_a_whole_cluster(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run_trial(steps, Path(folder)))
