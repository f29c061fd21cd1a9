"""Any bytes in a file of ours: understood or refused in one line, and what is used was judged as if a stranger had written it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import ConfigError
from flannelpy.core.foreign import printable
from flannelpy.core.model import parse_subnet_key
from flannelpy.host import state, subnet_env, view_file
from tests.fuzz.mutation import inputs, kept

T = TypeVar("T")

STATE = json.dumps(
    {
        "format": 2,
        "prefix": "/net",
        "macs": {"flannel.1": "02:00:00:00:00:01"},
        "lease_key": "10.5.72.0-24&fd00:5::-64",
        "networks": ["10.5.0.0/16", "fd00:5::/48"],
        "devices": ["flannel.1", "flannel-v6.1"],
        "fou_ports": [8285],
        "machine": "a1",
        "uplink_mac": "02:00:00:00:00:02",
        "address": "192.0.2.1",
    }
).encode()
VALUE = '{"PublicIP":"192.0.2.2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}'
VIEW = json.dumps(
    {
        "format": 1,
        "prefix": "/net",
        "config": '{"Network": "10.5.0.0/16"}',
        "own": "10.5.72.0-24",
        "revision": 9,
        "leases": [["10.5.72.0-24", VALUE, 7, 5, 5], ["10.5.9.0-24&fd00:5:0:9::-64", VALUE, 8, 6, 9]],
    }
).encode()
SUBNET_ENV = b"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
CONFIG = (
    b'{"Network": "10.5.0.0/16", "SubnetLen": 24, "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.9.0", "EnableIPv6": true,'
    b'"IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan", "VNI": 1, "PSK": "x"}}'
)


def understood(parse: Callable[[bytes], T], data: bytes) -> T | None:
    """None where it is refused, in one line that can be shown once it is escaped."""
    try:
        return parse(data)
    except (ValueError, ConfigError) as error:
        said = str(error)
    assert "\n" not in printable(said), data
    assert len(said) < 10_000, data
    return None


def test_any_state_file() -> None:
    for data in inputs([STATE, *kept("state")], 50_000):
        found = understood(state.parse, data)
        if found is None:
            continue
        assert all(re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac) for mac in found.macs.values()), data
        assert all(state.OURS.fullmatch(device) for device in found.devices), data
        assert all(0 < port < 65536 for port in found.fou_ports), data
        assert not found.lease_key or parse_subnet_key(found.lease_key), data


def test_any_view_of_the_cluster() -> None:
    for data in inputs([VIEW, *kept("view")], 50_000):
        found = understood(view_file.parse, data)
        if found is None:
            continue
        assert found.revision >= 0, data
        for lease in found.leases:
            assert parse_subnet_key(lease.key) == (lease.subnet, lease.subnet6), data
        again = view_file.parse(view_file.render(found).encode())  # whatever was read can be kept
        assert [lease.key for lease in again.leases] == [lease.key for lease in found.leases], data


def test_any_subnet_file() -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "subnet.env")
        for data in inputs([SUBNET_ENV, *kept("subnet-env")], 10_000):
            path.write_bytes(data)
            told = subnet_env.read(path)
            assert told.mtu is None or 68 <= told.mtu <= 65535, data


def test_any_network_config() -> None:
    for data in inputs([CONFIG, *kept("config")], 50_000):
        config = understood(NetworkConfig.parse, data)
        if config is None:
            continue
        json.dumps(config.to_dict(), allow_nan=False).encode()
        assert all(pool.count >= 1 and pool.size >= 4 for pool in (config.v4, config.v6) if pool), data


@pytest.mark.parametrize("name", ["state", "view", "subnet-env", "config", "netlink", "http"])
def test_seeds_are_read(name: str) -> None:
    assert kept(name), f"tests/fuzz/seeds/{name} is empty"
