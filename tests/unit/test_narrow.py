"""Can tables be read on a narrow terminal, and is a wide one used? Leases, peers and the doctor's checks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from netaddr import IPAddress, IPNetwork

from flannelpy.commands import leases, leases_text
from flannelpy.commands.doctor.page import page
from flannelpy.commands.peers_text import peers_text
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.explain.doctor import OK, Finding
from flannelpy.explain.status import PeerStatus, ProbeStatus
from flannelpy.registry import Malformed

from .test_doctor import STATUS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRONG = "overlaps the older lease 10.1.8.0/23 at 192.168.50.108"


def row(number: int, *, name: str = "h2", wrong: tuple[str, ...] = (), ours: bool = False, v6: bool = False) -> leases.Row:
    address6, subnet6 = (IPAddress(f"fd00:50::{number}"), IPNetwork(f"fd00:1:0:{number}::/64")) if v6 else (None, None)
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number % 100:02}"}
    attrs = LeaseAttrs(IPAddress(f"192.168.50.{number}"), address6, "vxlan", data)
    lease = Lease(IPNetwork(f"10.1.{number}.0/24"), attrs, subnet6, 1, 1234567)
    return leases.Row(lease, 86_390.0, wrong, ours, name)


def shown(width: int, *rows: leases.Row) -> list[str]:
    lines = leases_text.text(leases.Listing(rows, (), 1), width).splitlines()
    assert all(line == line.rstrip() for line in lines)
    return lines


def test_leases_on_80_columns_lose_when_they_were_made_and_a_part_of_their_data() -> None:
    assert shown(80, row(204, ours=True), row(144, name="a-host-with-a-long-name.example.org")) == [
        "host              subnet         PublicIP        backend  lease",
        "h2                10.1.204.0/24  192.168.50.204  vxlan    23 h 59 min  this host",
        "a-host-with-a...  10.1.144.0/24  192.168.50.144  vxlan    23 h 59 min",
    ]
    assert shown(83, row(204), row(144)) == [
        "host  subnet         PublicIP        backend  data                      lease",
        "h2    10.1.204.0/24  192.168.50.204  vxlan    VNI 1, 02:00:00:00:00:04  23 h 59 min",
        "h2    10.1.144.0/24  192.168.50.144  vxlan    VNI 1, 02:00:00:00:00:44  23 h 59 min",
    ]
    assert shown(80, row(204)) == [
        "host  subnet         PublicIP        backend  data                   lease",
        "h2    10.1.204.0/24  192.168.50.204  vxlan    VNI 1, 02:00:00:00...  23 h 59 min",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 132, 200])
@pytest.mark.parametrize("v6", [False, True])
def test_no_width_folds_an_address_or_hides_what_is_wrong(width: int, v6: bool) -> None:
    rows = (row(9, wrong=(WRONG,), v6=v6), row(144, name="", v6=v6), row(204, wrong=(WRONG, WRONG), ours=True, v6=v6))
    text = shown(width, *rows)
    for each in rows:
        assert isinstance(each.read, Lease)
        line = next(line for line in text if leases.subnets_text(each.read) in line)
        assert str(each.read.attrs.public_ip) in line
        assert not v6 or str(each.read.attrs.public_ipv6) in line
    assert " ".join(" ".join(text).split()).count(WRONG) == 3
    if width >= 132 and not v6:
        assert all("02:00:00:00:00:" in line and "1234567" in line for line in text if "192.168.50.144" in line)


@pytest.mark.parametrize("key", ["oops", "k" * 300])
def test_a_key_of_any_length_widens_nothing_for_ever(key: str) -> None:
    bad = leases.Row(Malformed(key, "is not a subnet key"), wrong=("is not a subnet key",))
    text = shown(80, row(9), bad)
    assert any(line.startswith("h2    10.1.9.0/24") for line in text)
    assert max(map(len, text)) <= 100


# --------------------------------------------------------------------------------------------------------------- peers

GOOD = ProbeStatus("reachable", "", None, 0.4, 0.0, 1450, True, None)
GONE = replace(GOOD, state="unreachable", why="no answer through the overlay, and one beside it")


def peer(number: int, name: str, carrier: str | None, probe: ProbeStatus = GOOD) -> PeerStatus:
    subnet, address = f"10.1.{number}.0/24", f"192.168.50.{number}"
    reason = "host-gw: not on one link" if carrier else None
    return PeerStatus(subnet, subnet, None, address, None, "vxlan", "in-sync", None, None, 0, probe, carrier, reason, name)


def test_peers_with_a_choice_fit_into_80_columns() -> None:
    status = replace(STATUS, peers=(peer(204, "h2", "wireguard"), peer(144, "h3", None, GONE)))
    assert peers_text(status, NOW, 80).splitlines() == [
        "host  subnet         PublicIP        by         state",
        "h3    10.1.144.0/24  192.168.50.144  vxlan      unreachable:",
        "    no answer through the overlay, and one beside it",
        "h2    10.1.204.0/24  192.168.50.204  wireguard  reachable 0.4 ms;",
        "    host-gw: not on one link",
    ]
    assert peers_text(status, NOW, 132).splitlines()[0] == "host  subnet         PublicIP        backend  by         state"


@pytest.mark.parametrize("width", [40, 60, 80, 132])
@pytest.mark.parametrize("carrier", [None, "vxlan", "wireguard"])
@pytest.mark.parametrize("name", ["", "h2", "a-host-with-a-long-name.example.org"])
def test_a_peers_addresses_stand_whole_in_its_line(width: int, carrier: str | None, name: str) -> None:
    lines = peers_text(replace(STATUS, peers=(peer(204, name, carrier, GONE),)), NOW, width).splitlines()
    assert "10.1.204.0/24  192.168.50.204  " in lines[1]
    assert GONE.why in " ".join(" ".join(lines).split())
    assert all(len(line) <= width for line in lines[2:])


# -------------------------------------------------------------------------------------------------------------- doctor


@pytest.mark.parametrize(
    ("width", "name", "folded"),
    [
        (80, "etcd http://192.168.50.5:2379: connection", True),
        (132, "etcd http://192.168.50.5:2379: connection", False),
        (200, "etcd http://[2001:db8:1234::5]:2379: connection", False),
        (80, "file: --subnet-file", False),
    ],
)
def test_a_checks_name_stands_in_one_line_where_there_is_room(width: int, name: str, folded: bool) -> None:
    lines = page([Finding(name, OK, "word " * 60), Finding("forwarding", OK, "on")], width, colours=False)
    assert any(f"  {name}  word" in line for line in lines) is not folded
    assert max(map(len, lines)) <= width
