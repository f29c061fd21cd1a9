"""Does the CNI plugin follow its rules for any configuration and any subnet file? The rules once more, as tables."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from netaddr import IPNetwork

from flannelpy.host.cni import plugin
from tests.unit.cni_plugin import ask

KEYS = ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ")
ALTERNATIVES = (("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"), ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"), KEYS[4:5], KEYS[5:])
"""Of each of these a file has at least one."""
DEFAULTS = {
    "type": lambda subnet: "bridge",
    "ipMasq": lambda subnet: subnet["FLANNEL_IPMASQ"] != "true",
    "mtu": lambda subnet: int(subnet["FLANNEL_MTU"]),
}
"""What a delegate has that does not say otherwise."""
WHY = "failed to load flannel 'subnet.env' file: {}. Check the flannel pod log for this node."
NOT_THEIRS = "'delegate' dictionary must not have '{}' field, it'll be set by flannel"
BAD_TYPE = "'delegate' dictionary, if present, must have (string) 'type' field"

prefixes = st.builds(
    lambda address, length: f"{IPNetwork((address, 4)).ip}/{length}", st.integers(0, 2**32 - 1), st.integers(0, 32)
) | st.builds(
    lambda address, length: f"{IPNetwork((address, 6)).ip}/{length}", st.integers(2**125, 2**126 - 1), st.integers(4, 128)
)
bad_prefixes = st.sampled_from(
    ["", "-1", "10.1.0.0", "10.1.0.0/", "10.1.0.0/33", "10.1.0/16", "fd00::/129", "a/b", "10.1.0.0/+8", "1/1/1"]
)
numbers = st.integers(0, 2**32 - 1).map(str)
bad_numbers = st.sampled_from(["", "-1", "+1", "1.0", "1_0", " 1", "0x10", "٣"])


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of thirty is bad."""
    return st.integers(0, 29).flatmap(lambda roll: bad if roll == 17 else good)


VALUES = {
    "FLANNEL_NETWORK": mostly(st.lists(prefixes, min_size=1, max_size=3).map(",".join), bad_prefixes),
    "FLANNEL_IPV6_NETWORK": mostly(st.lists(prefixes, min_size=1, max_size=2).map(",".join), bad_prefixes),
    "FLANNEL_SUBNET": mostly(prefixes, bad_prefixes),
    "FLANNEL_IPV6_SUBNET": mostly(prefixes, bad_prefixes),
    "FLANNEL_MTU": mostly(numbers, bad_numbers),
    "FLANNEL_IPMASQ": st.sampled_from(["true", "false", "", "maybe", "True"]),
}
lines = st.permutations(KEYS).flatmap(
    lambda keys: st.tuples(*(mostly(VALUES[key].map(lambda value, key=key: (key, value)), st.none()) for key in keys))
)
"""Key and value of each line, in any order; some are not there."""
values = st.recursive(st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(max_size=5), st.lists, max_leaves=4)
delegates = st.dictionaries(
    st.sampled_from(["bridge", "vlan", "hairpinMode", "isDefaultGateway", "isGateway", "ipMasq", "mtu", "promiscMode", "ä<&>"]),
    values,
    max_size=4,
).flatmap(
    lambda told: mostly(
        st.sampled_from([{}, {"type": "bridge"}, {"type": "ptp"}, {"type": "macvlan"}]),
        st.sampled_from([{"type": None}, {"type": 5}, {"name": "x"}, {"ipam": {}}, {"name": "x", "ipam": None}]),
    ).map(lambda more: {**told, **more})
)
routes = st.lists(
    st.builds(lambda dst, more: {"dst": dst, **more}, prefixes, st.sampled_from([{}, {"gw": "10.1.7.1"}, {"mtu": 1400}]))
)
ipams = st.fixed_dictionaries(
    {}, optional={"type": st.just("static"), "dataDir": st.just("/x"), "routes": routes, "ranges": values}
)
confs = st.fixed_dictionaries(
    {"name": st.sampled_from(["cbr0", "a.b-c_d", "9"])},
    optional={
        "cniVersion": st.sampled_from(["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
        "delegate": delegates | st.none(),
        "ipam": ipams | st.none(),
        "runtimeConfig": st.dictionaries(st.text(max_size=3), values, max_size=2) | st.none(),
        "capabilities": st.just({"portMappings": True}),
        "prevResult": st.just({"ips": []}),
    },
)


def fault(key: str, value: str) -> str | None:
    """What is wrong with a line of the subnet file."""
    if key == "FLANNEL_IPMASQ":
        return None
    if key == "FLANNEL_MTU":
        fine = value.isascii() and value.isdigit()
        return None if fine else f'strconv.ParseUint: parsing "{value}": invalid syntax'
    for part in value.split(",") if key.endswith("NETWORK") else [value]:
        address, slash, length = part.partition("/")
        if not slash or not length.isdigit() or address.count(".") not in (0, 3) or not any(mark in address for mark in ".:"):
            return f"invalid CIDR address: {part}"
        if int(length) > (128 if ":" in address else 32):
            return f"invalid CIDR address: {part}"
    return None


def refusal(path: Path, written: list[tuple[str, str]], conf: dict[str, Any]) -> str | None:
    """Why a container cannot be connected; the first of the reasons, in the order in which flannel's plugin finds them."""
    for key, value in written:
        if said := fault(key, value):
            return WHY.format(said)
    there = dict(written)
    missing = [key for group in ALTERNATIVES if not any(key in there for key in group) for key in group]
    if missing:
        return WHY.format(f"{path} is missing {', '.join(missing)}")
    told = conf.get("delegate") or {}
    if "type" in told and not isinstance(told["type"], str):
        return BAD_TYPE
    return next((NOT_THEIRS.format(key) for key in ("name", "ipam") if key in told), None)


def handed(written: list[tuple[str, str]], conf: dict[str, Any]) -> dict[str, Any]:
    """What the delegate is given."""
    subnet = dict(written)
    told = dict(conf.get("delegate") or {})
    told |= {key: value(subnet) for key, value in DEFAULTS.items() if key not in told}
    if told["type"] == "bridge" and "isGateway" not in told:
        told["isGateway"] = True
    told |= {key: conf[key] for key in ("cniVersion", "runtimeConfig", "name") if conf.get(key) not in (None, "")}
    ipam = conf.get("ipam") or {}
    networks = [part for key in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK") if key in subnet for part in subnet[key].split(",")]
    subnets = [subnet[key] for key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET") if key in subnet]
    told["ipam"] = {
        "type": "host-local",
        **ipam,
        "ranges": [[{"subnet": str(IPNetwork(each).cidr)}] for each in subnets],
        "routes": [*ipam.get("routes", ()), *({"dst": str(IPNetwork(each).cidr)} for each in networks)],
    }
    return told


@settings(max_examples=1000, deadline=None)
@given(lines, confs)
def test_what_is_handed_on_follows_the_rules(drawn: tuple[tuple[str, str] | None, ...], conf: dict[str, Any]) -> None:
    written = [line for line in drawn if line]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "subnet.env")
        path.write_text("".join(f"{key}={value}\n" for key, value in written))
        asked = ask("ADD", json.dumps({**conf, "subnetFile": str(path), "dataDir": f"{place}/data"}).encode())
        kept = Path(place, "data/c1")
        said = refusal(path, written, conf)
        event("refused" if said else "handed on")
        if said:
            assert asked.error == {"code": 999, "msg": said}
            assert asked.delegates == []
            assert not kept.exists()
        else:
            told = handed(written, conf)
            assert asked.error is None
            assert asked.delegates == [("ADD", told["type"], told)]
            assert json.loads(kept.read_bytes()) == told
            again = ask("DEL", json.dumps({**conf, "subnetFile": "/nowhere", "dataDir": f"{place}/data"}).encode())
            assert (again.error, again.delegates) == (None, [("DEL", told["type"], told)])
            assert not kept.exists()


def test_no_depth_is_too_deep_for_a_refusal() -> None:
    """Around the depth where the scanner still ends and what would say what is wrong does not."""
    for depth in range(600, 1200):
        for inside, end in ((b"?", b""), (b"1", b"}" * (depth - 1) + b"?")):
            with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
                plugin.parse(b'{"a":' * depth + inside + end)
