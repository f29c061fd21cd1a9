"""What does a backend of somebody else cost that cannot make anything of one lease's value? That lease, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from backends.vxlan import VxlanBackend as Vxlan
from flannelpy.core.backend import Backend
from flannelpy.core.config import NetworkConfig
from flannelpy.core.membership import Membership
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.plugins import Published
from flannelpy.registry.memory import MemoryStore
from tests.unit.agents import VXLAN, HostInMemory, until, vxlan_value

CONFIG = NetworkConfig.parse('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
FAULTS: Mapping[str, Exception] = {
    "value": ValueError("odd"),
    "key": KeyError("id"),
    "type": TypeError("'int' object is not iterable"),
    "deep": RecursionError("maximum recursion depth exceeded"),
}


class Plugin:
    """Of somebody else."""

    def identities(self, attrs: LeaseAttrs) -> Mapping[str, str]:
        if attrs.backend_data in FAULTS:
            raise FAULTS[attrs.backend_data]
        return {"device": str(attrs.backend_data)}


identity = Published(cast(Backend, Plugin()))


def lease(number: int, data: str) -> Lease:
    attrs = LeaseAttrs(IPAddress(f"192.0.2.{number}"), backend_type="vxlan", backend_data=data)
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs, etcd_lease=1, create_revision=number, mod_revision=number)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 9), st.sampled_from([*FAULTS, "a", "b", "c", None])), max_size=30))
def test_a_value_that_a_backend_cannot_read_costs_its_own_lease(steps: list[tuple[int, str | None]]) -> None:
    membership = Membership(CONFIG)
    membership.configure(CONFIG, frozenset({"vxlan"}), None, identity=identity)
    there: dict[str, Lease] = {}
    for number, data in steps:
        key = f"10.5.{number}.0-24"
        if data is None:
            membership.remove(key)
            there.pop(key, None)
        else:
            there[key] = lease(number, data)
            membership.put(there[key])
    fresh = Membership(CONFIG)
    fresh.configure(CONFIG, frozenset({"vxlan"}), None, identity=identity)
    fresh.replace(there.values())
    assert dict(membership.peers) == dict(fresh.peers)
    assert dict(membership.refused) == dict(fresh.refused)
    odd = {key for key, each in there.items() if each.attrs.backend_data in FAULTS}
    readable = {each.attrs.backend_data for key, each in there.items() if key not in odd}
    assert len(membership.peers) == len(readable), "of those with one identity the oldest"
    for key in odd:
        error = FAULTS[str(there[key].attrs.backend_data)]
        assert membership.refused[key] == f"{there[key]}: its value cannot be read: {type(error).__name__}: {error}"


async def test_an_agent_starts_and_goes_on_beside_such_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Vxlan.identities

    def odd(self: Vxlan, attrs: LeaseAttrs) -> Mapping[str, str]:
        if str(attrs.public_ip) == "192.0.2.66":
            raise ValueError("a plugin's own fault")
        return whole(self, attrs)

    monkeypatch.setattr(Vxlan, "identities", odd)
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(VXLAN)
    host.put_peer("10.5.66.0-24", vxlan_value("192.0.2.66", "02:00:00:00:00:66"))
    host.put_peer("10.5.9.0-24", vxlan_value("192.0.2.9", "02:00:00:00:00:09"))
    async with host.run():
        await until(lambda: host.holds("route 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink"))
        assert list(host.conditions()) == ["peer-unusable 10.5.66.0-24"]
        assert "ValueError: a plugin's own fault" in host.conditions()["peer-unusable 10.5.66.0-24"]
        host.put_peer("10.5.10.0-24", vxlan_value("192.0.2.10", "02:00:00:00:00:10"))
        await until(lambda: host.holds("route 10.5.10.0/24 via 10.5.10.0 dev flannel.1 onlink"))
        host.delete("10.5.66.0-24")
        await until(lambda: host.conditions() == {})
