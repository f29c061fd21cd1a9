"""Does a watch that lags behind a listing say nothing that the listing has overtaken?"""

from __future__ import annotations

from pathlib import Path

from flannelpy.agent.cluster import Cluster
from flannelpy.registry import Deleted, Malformed
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import PREFIX, VXLAN, HostInMemory


async def test_a_malformed_key_that_is_gone_by_the_listing_is_no_condition(tmp_path: Path) -> None:
    """A host that was cut off: it lists what there is, and only then hears of a key that came and went meanwhile."""
    store = MemoryStore()
    host = HostInMemory(store, tmp_path)
    host.put_config(VXLAN)
    context = host.context()
    cluster = Cluster(context, lambda: None)
    came = store.put(f"{PREFIX}/subnets/junk", "{").mod_revision
    store.delete(f"{PREFIX}/subnets/junk")
    await cluster.refresh()
    cluster._take(Malformed("junk", "no subnet key", came))
    cluster._take(Deleted("junk", came + 1))
    assert list(context.reporter.health) == []
    # One that comes after the listing is told, until it goes.
    cluster._take(Malformed("junk", "no subnet key", store.revision + 1))
    assert context.reporter.health.holds("lease-malformed")
    cluster._take(Deleted("junk", store.revision + 2))
    assert list(context.reporter.health) == []
