"""What can somebody write into etcd who means harm? Keys that are no leases, values that are no peer's, and both that are nearly
right; by backend.

The network is 192.168.0.0/16, inside of which everything lies: hosts and etcd on 192.168.50.0/24, etcd at .5, the gateway at .254,
h1 at .11 with 192.168.101.0/24 and another address, 192.168.9.9/24; h2, the good peer, at .12 with 192.168.102.0/24.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.lab.agent_support import SUBNETS

NETWORK = "192.168.0.0/16"
GATEWAY, ANOTHER, RESOLVER = "192.168.50.254", "192.168.9.9", "192.168.60.53"
KEYS = f"{SUBNETS}/192.168."
OURS = ("192.168.101.", "192.168.110.0-24")
"""How the names of those keys begin that claim the subnet or the address of h1."""


def value(backend: str, number: int, **other: Any) -> str:
    """What a peer of this backend publishes, the ``number``-th of them; ``other`` members replace its."""
    peer: dict[str, Any] = {"PublicIP": f"192.168.50.{100 + number % 100}", "PublicIPv6": None}
    if backend != "udp":  # which names none, as flannel has it
        peer["BackendType"] = backend
    if backend == "vxlan":
        peer["BackendData"] = {"VNI": 1, "VtepMAC": f"02:00:00:00:{number >> 8:02x}:{number & 0xFF:02x}"}
    if backend == "wireguard":
        peer["BackendData"] = {"PublicKey": public_key(number), "Port": 51820}
    return json.dumps(peer | other)


def public_key(number: int) -> str:
    """Of the ``number``-th peer by wireguard."""
    return base64.b64encode(number.to_bytes(32, "little")).decode()


def covering() -> dict[str, str]:
    """Names of keys that would take away what the hosts live by, or each other's."""
    return {
        "everything": "0.0.0.0-0",
        "half of everything": "128.0.0.0-1",
        "more than Network": "192.0.0.0-8",
        "Network": "192.168.0.0-16",
        "half of Network": "192.168.0.0-17",
        "the segment": "192.168.50.0-24",
        "around the segment": "192.168.48.0-20",
        "half of the segment": "192.168.50.0-25",
        "etcd and its neighbour": "192.168.50.4-31",
        "etcd": "192.168.50.5-32",
        "the gateway": f"{GATEWAY}-31",
        "the resolver": "192.168.60.52-30",
        "h1's own address": "192.168.50.10-31",
        "h2's own address": "192.168.50.12-32",
        "h1's other address": "192.168.9.8-30",
        "the network of h1's other address": "192.168.9.0-24",
        "a half of the good peer's": "192.168.102.0-25",
        "the other half": "192.168.102.128-25",
        "around the good peer's": "192.168.102.0-23",
        "the good peer's with host bits": "192.168.102.5-24",
        "the good peer's, and an IPv6 half": "192.168.102.0-24&fd00:1::-64",
        "the good peer's container": "192.168.102.2-32",
        "a half of our own": "192.168.101.128-25",
        "our own with host bits": "192.168.101.9-24",
        "our container": "192.168.101.2-31",
        "loopback": "127.0.0.0-24",
        "multicast": "224.0.0.0-24",
        "link-local": "169.254.169.0-24",
        "the last address": "255.255.255.255-32",
        "no length": "192.168.103.0",
        "too long": "192.168.103.0-33",
        "a length of many digits": f"192.168.103.0-{'2' * 400}",
        "a negative length": "192.168.103.0--1",
        "digits of another script": "192.168.1\u0660\u0663.0-24",
        "IPv6 alone": "fd00:1::-64",
        "IPv6 of all": "0.0.0.0-0&::-0",
        "IPv6 of everything link-local": "192.168.103.0-24&fe80::-10",
        "IPv6 that is IPv4": "192.168.104.0-24&::ffff:192.168.50.5-128",
        "IPv6 broken": "192.168.103.0-24&:12:::13-64",
        "what a terminal obeys": "192.168.103.0-24\x1b]0;pwn\x07\x9b31m",
        "a line of its own": "192.168.103.0-24\n2026-01-01 00:00:00.000 error: FORGED",
        "right to left": "192.168.103.0-24\u202e",
        "deeper": "192.168.103.0-24/192.168.105.0-24",
        "a long name": "192.168.103.0-24" + "A" * 100_000,
    }


def addresses() -> dict[str, Any]:
    """Members of a value that name no peer's address."""
    named: dict[str, object] = {
        "our own": "192.168.50.11",
        "our other": ANOTHER,
        "our bridge": "192.168.101.1",
        "our container": "192.168.101.2",
        "the good peer's container": "192.168.102.2",
        "inside Network": "192.168.200.1",
        "the link's broadcast": "192.168.50.255",
        "the link's network": "192.168.50.0",
        "all hosts": "255.255.255.255",
        "multicast": "224.0.0.5",
        "loopback": "127.0.0.1",
        "none": "0.0.0.0",
        "this network": "0.1.2.3",
        "reserved": "240.0.0.1",
        "link-local": "169.254.169.254",
        "the NAT's": "10.0.2.15",
        "IPv6": "2001:db8::1",
        "mapped": "::ffff:192.168.50.12",
        "a name": "localhost",
        "octal": "0300.0250.062.014",
        "a number": 3232248332,
        "huge": "1" * 50_000,
        "a list": ["192.168.50.12"],
        "true": True,
        "null": None,
        "empty": "",
        "what a terminal obeys": "\x1b[31m192.168.50.12\x07",
    }
    return {f"PublicIP: {name}": {"PublicIP": at} for name, at in named.items()}


def types() -> dict[str, Any]:
    """Backends that nobody has here."""
    return {
        "another backend": {"BackendType": "alloc"},
        "no backend's name": {"BackendType": "\x1b]0;pwn\x07\u202e\nFORGED"},
        "a long name of a backend": {"BackendType": "B" * 1_000_000},
        "a number for a backend": {"BackendType": 7},
        "a list for a backend": {"BackendType": ["vxlan"]},
    }


def vxlan_data(good: str, own: str) -> dict[str, Any]:
    """What says nothing, or ill, of a vxlan peer. ``good`` and ``own``: the MACs of the good peer and of h1."""
    macs: dict[str, object] = {
        "the good peer's": good,
        "the good peer's in capitals": good.upper(),
        "our own": own,
        "broadcast": "ff:ff:ff:ff:ff:ff",
        "multicast": "01:00:5e:00:00:01",
        "zero": "00:00:00:00:00:00",
        "short": "02:00",
        "long": "02:" * 10_000,
        "a number": 5,
        "what a terminal obeys": "02:00:00:00:00:\x1b[",
    }
    vnis: dict[str, object] = {"another": 7, "text": "1", "huge": 10**300, "negative": -1, "a fraction": 1.5, "true": True}
    found: dict[str, Any] = {f"MAC {name}": {"VNI": 1, "VtepMAC": mac} for name, mac in macs.items()}
    found |= {f"VNI {name}": {"VNI": vni, "VtepMAC": f"02:00:00:00:77:{n:02x}"} for n, (name, vni) in enumerate(vnis.items())}
    return found | no_data()


def wireguard_data(good: str, own: str) -> dict[str, Any]:
    """What says nothing, or ill, of a wireguard peer. ``good`` and ``own``: the public keys of the good peer and of h1."""
    raw = bytes(range(0xE0, 0x100))
    some = base64.b64encode(raw).decode()
    keys: dict[str, object] = {
        "the good peer's": good,
        "our own": own,
        "zero": base64.b64encode(bytes(32)).decode(),
        "of 31 bytes": base64.b64encode(raw[:31]).decode(),
        "of 33 bytes": base64.b64encode(raw[:33] + b"x").decode(),
        "long": some * 10_000,
        "without its end": some[:-1],
        "of another alphabet": base64.urlsafe_b64encode(raw).decode(),
        "with bits too many": some[:-2] + chr(ord(some[-2]) + 1) + "=",
        "with a blank": f" {some}",
        "with a line of its own": f"{some}\nendpoint=192.168.50.12:1",
        "hexadecimal": raw.hex(),
        "empty": "",
        "null": None,
        "a number": 5,
        "a list": [some],
        "what a terminal obeys": f"\x1b]0;pwn\x07{some}",
    }
    ports: dict[str, object] = {
        "negative": -1,
        "of 17 bits": 65536,
        "text": "51820",
        "huge": 10**300,
        "a fraction": 51820.5,
        "true": True,
    }
    found: dict[str, Any] = {f"key {name}": {"PublicKey": key, "Port": 51820} for name, key in keys.items()}
    found |= {f"port {name}": {"PublicKey": public_key(1000 + n), "Port": port} for n, (name, port) in enumerate(ports.items())}
    return found | no_data()


def no_data() -> dict[str, Any]:
    return {"no data": None, "text": "text", "a list": [1], "empty": {}, "deep": json.loads("[" * 500 + "]" * 500)}


def texts() -> dict[str, str]:
    """Values that are no object."""
    return {
        "nothing": "",
        "no JSON": "oops",
        "half of it": '{"PublicIP":',
        "null": "null",
        "an array": "[]",
        "a number": "17",
        "NaN": '{"PublicIP":NaN}',
        "deep": "[" * 100_000,
        "deep and closed": "[" * 50_000 + "]" * 50_000,
        "large": '{"PublicIP":"192.168.50.99","x":"' + "x" * 1_200_000 + '"}',
        "many digits": '{"PublicIP":' + "9" * 5000 + "}",
        "control characters": "\x01\x1b[31mred\x9b",
        "surrogates": '{"PublicIP":"\\ud800"}',
    }


DATA: Mapping[str, Callable[[str, str], dict[str, Any]]] = {"vxlan": vxlan_data, "wireguard": wireguard_data}


def leases(backend: str, good: str = "", own: str = "") -> Mapping[str, str]:
    """Keys with values, none of which is a peer of this backend; each but the covering ones in a subnet of its own. ``good`` and
    ``own``: who the good peer and h1 are, where the backend has it in its data."""
    number = 0
    found = {}
    for name in covering().values():
        number += 1
        found[f"{SUBNETS}/{name}"] = value(backend, number)
    members = addresses() | (types() if backend != "udp" else {})
    for name, each in (DATA[backend](good, own) if backend in DATA else {}).items():
        members[f"BackendData: {name}"] = {"BackendData": each}
    for third, other in enumerate(members.values(), 110):
        number += 1
        found[f"{KEYS}{third}.0-24"] = value(backend, number, **other)
    for third, text in enumerate(texts().values(), 220):
        found[f"{KEYS}{third}.0-24"] = text
    return found


def configs(backend: str) -> dict[str, tuple[str | None, str]]:
    """Network configs of no use, each with a word of what is said of it, another one than of the one before; where that is
    empty, the config is the former one with something beside it that says nothing.
    """

    def top(**other: Any) -> str:
        return json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": backend}} | other)

    def inner(**other: Any) -> str:
        return top(Backend={"Type": "vxlan"} | other)

    return {
        "none": (None, "missing"),
        "nothing": ("", "it is empty"),
        "no JSON": ("oops", "line 1, column 1"),
        "a comma too many": ('{"Network": "10.1.0.0/16",}', "comma"),
        "an array": ("[]", "got []"),
        "null": ("null", "got null"),
        "a number": ("17", "got 17"),
        "no Network": ("{}", "Network is missing"),
        "unknown members": (top(x={"y": [1]}, Network2="10.9.0.0/16"), ""),
        "Network a number": (top(Network=7), "Network 7"),
        "Network null": (top(Network=None), "Network null"),
        "Network a list": (top(Network=["10.1.0.0/16"]), "Network ["),
        "no CIDR": (top(Network="10.1.0.0/40"), "10.1.0.0/40"),
        "an address": (top(Network="10.1.0.0"), "'10.1.0.0'"),
        "IPv6 in Network": (top(Network="fd00::/48"), "'fd00::/48'"),
        "everything": (top(Network="0.0.0.0/0"), "everything"),
        "half of everything": (top(Network="0.0.0.0/1"), "0.0.0.0/1"),
        "loopback": (top(Network="127.0.0.0/8"), "loopback"),
        "link-local": (top(Network="169.254.0.0/16"), "link-local"),
        "multicast": (top(Network="224.0.0.0/4"), "224.0.0.0/4"),
        "reserved": (top(Network="240.0.0.0/8"), "240.0.0.0/8"),
        "too small": (top(Network="10.1.0.0/29"), "too small"),
        "what a terminal obeys": (top(Network="10.1.0.0/16\x1b]0;pwn\x07\n\x9b"), "pwn"),
        "a long Network": (top(Network="1" * 60_000), "'1111111111"),
        "SubnetLen too short": (top(SubnetLen=17), "SubnetLen 17"),
        "SubnetLen too long": (top(SubnetLen=31), "SubnetLen 31"),
        "SubnetLen negative": (top(SubnetLen=-1), "SubnetLen -1"),
        "SubnetLen a text": (top(SubnetLen="24"), 'SubnetLen "24"'),
        "SubnetLen huge": (top(SubnetLen=2**64), "SubnetLen 184467"),
        "SubnetLen a fraction": (top(SubnetLen=24.5), "SubnetLen 24.5"),
        "SubnetMin outside": (top(SubnetMin="10.2.0.0"), "10.2.0.0"),
        "SubnetMax unaligned": (top(SubnetMax="10.1.9.7"), "10.1.9.7"),
        "Min above Max": (top(SubnetMin="10.1.9.0", SubnetMax="10.1.8.0"), "above"),
        "unknown backend": (inner(Type="warp"), "'warp'"),
        "no Type": (top(Backend={}), "Type is missing"),
        "Backend a text": (top(Backend="vxlan"), 'Backend "vxlan"'),
        "Backend a list": (top(Backend=["vxlan"]), "Backend ["),
        "Type a number": (inner(Type=7), "Type 7"),
        "Type that a terminal obeys": (inner(Type="vxlan\x1b[31m\n\u202e"), "[31m"),
        "a long Type": (inner(Type="v" * 60_000), "'vvvvvvvvvv"),
        "VNI a text": (inner(VNI="one"), 'VNI "one"'),
        "VNI negative": (inner(VNI=-1), "VNI -1"),
        "VNI of 25 bits": (inner(VNI=2**24), "VNI 16777216"),
        "no such port": (inner(Port=70000), "Port 70000"),
        "MTU negative": (inner(MTU=-1), "MTU -1"),
        "MTU huge": (inner(MTU=10**9), "MTU 1000000000"),
        "GBP perhaps": (inner(GBP="perhaps"), "GBP"),
        "DirectRouting perhaps": (inner(DirectRouting="perhaps"), "DirectRouting"),
        "Guard sometimes": (inner(Guard="sometimes"), 'Guard "sometimes"'),
        "Prefer a number": (inner(Prefer=7), "Prefer 7"),
        "no family": (top(EnableIPv4=False), "both false"),
        "no IPv6Network": (top(EnableIPv6=True), "IPv6Network is missing"),
        "IPv4 in IPv6Network": (top(EnableIPv6=True, IPv6Network="10.1.0.0/16"), "IPv6Network '10.1.0.0/16'"),
        "IPv6 multicast": (top(EnableIPv6=True, IPv6Network="ff05::/48"), "ff05::/48"),
        "IPv6 link-local": (top(EnableIPv6=True, IPv6Network="fe80::/48"), "fe80::/48"),
        "all of IPv6": (top(EnableIPv6=True, IPv6Network="::/0"), "'::/0'"),
        "deep": ("[" * 50_000, "nested"),
        "large": (top(x="x" * 90_000), ""),
        "NaN": ('{"Network":NaN}', "NaN"),
        "many digits": ('{"Network":' + "9" * 5000 + "}", "digits"),
        "more than a number": ('{"Network":1e999}', "1e999"),
        "a byte order mark": ("\ufeff" + top(), "byte order mark"),
        "a raw control character": ('{"Network":"10.1.0.0/16\x01"}', "control character"),
    }
