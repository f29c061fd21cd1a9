"""Does the drawing show what is there, and does no text run over another or out of its box?"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import combinations

import pytest

from netns_lab.drawing import draw
from netns_lab.topology import Topology

SVG = "{http://www.w3.org/2000/svg}"
WIDTH_OF_A_LETTER = {"mono": 0.602, "bold": 0.72, "plain": 0.63}
"""DejaVu's, in ems: exact for the monospaced one, above the mean of what is written here for the others."""

Box = tuple[float, float, float, float]


def envs(topology: Topology) -> dict[str, dict[str, str]]:
    return {host.name: {"FLANNEL_SUBNET": f"10.1.{100 + host.number}.1/24", "FLANNEL_MTU": "1450"} for host in topology.host_plans}


def texts(root: ElementTree.Element) -> list[tuple[str, Box]]:
    found = []
    for element in root.iter(f"{SVG}text"):
        text, size = element.text or "", float(element.get("font-size", "0"))
        kind = "mono" if element.get("font-family") else "bold" if element.get("font-weight") else "plain"
        width = len(text) * size * WIDTH_OF_A_LETTER[kind]
        right = float(element.get("x", "0")) + (0 if element.get("text-anchor") == "end" else width)
        bottom = float(element.get("y", "0"))
        found.append((text, (right - width, bottom - 0.75 * size, right, bottom)))
    return found


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("hosts", range(1, 11))
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"containers": 3, "etcd": 3, "backend": "udp"},
        {"containers": 12, "backend": "host-gw", "segment6": "fd00:50:1234:5678::/64", "etcd": 0},
        {"containers": 0, "bridge": "a-long-bridge-0", "segment": "172.31.200.0/24", "mtu": 9000},
    ],
    ids=["plain", "udp", "host-gw", "long"],
)
@pytest.mark.parametrize("leased", [True, False], ids=["leased", "bare"])
def test_nothing_overlaps_or_leaves_the_page(hosts: int, fields: dict[str, object], leased: bool) -> None:
    topology = Topology(hosts=hosts).changed(**fields)
    root = ElementTree.fromstring(draw(topology, "fl", envs(topology) if leased else None))
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    found = texts(root)
    for text, (left, top, right, bottom) in found:
        assert left >= 0, text
        assert top >= 0, text
        assert right <= width, text
        assert bottom <= height, text
    assert [(a, b) for (a, box), (b, other) in combinations(found, 2) if overlap(box, other)] == []


def test_it_shows_hosts_addresses_leases_and_the_backend() -> None:
    topology = Topology(hosts=3, containers=2, config={"Backend": {"VNI": 7}})
    svg = draw(topology, "mine", envs(topology))
    shown = [text for text, _ in texts(ElementTree.fromstring(svg))]
    assert shown[0] == "lab mine: 3 hosts, vxlan, overlay 10.1.0.0/16"
    for expected in (
        "h1",
        "eth1 192.168.50.13",
        "lease 10.1.102.0/24",
        "10.1.102.1/24",
        "c2-2",
        "10.1.102.3",
        "MTU 1450",
        "flannel.7",
    ):
        assert expected in shown
    assert "192.168.50.5, one member" in shown
    assert shown.count("eth0 10.0.2.15") == 3


def test_it_needs_nothing_from_elsewhere() -> None:
    svg = draw(Topology(), "fl")
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "no lease" in svg


def test_what_a_person_wrote_is_escaped() -> None:
    assert "&lt;x&gt;" in draw(Topology(hosts=1), "fl", {"h1": {"FLANNEL_SUBNET": "10.1.1.1/24", "FLANNEL_MTU": "<x>"}})
