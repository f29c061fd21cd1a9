"""Does a topology say what is wrong with it in one line, and derive what the lab is built from?"""

from __future__ import annotations

from pathlib import Path

import pytest

from netns_lab.errors import TopologyError
from netns_lab.topology import SHIPPED, Topology, check_name, shipped
from netns_lab.wires import attach_container, wire


def test_addresses_and_names_follow_from_the_numbers() -> None:
    topology = Topology(hosts=2, containers=2, segment6="fd00:50::/64")
    first, second = topology.host_plans
    assert (first.name, str(first.address), str(first.address6)) == ("h1", "192.168.50.11/24", "fd00:50::b/64")
    assert str(second.address) == "192.168.50.12/24"
    assert [container.name for container in topology.container_plans] == ["c1", "c1-2", "c2", "c2-2"]
    assert topology.etcd_plan is not None
    assert str(topology.etcd_plan.address) == "192.168.50.5/24"


def test_the_network_config_takes_what_config_adds() -> None:
    topology = Topology.parse('backend = "vxlan"\n[config]\nSubnetLen = 26\nBackend = { VNI = 7 }\n')
    assert topology.network_config == {"Network": "10.1.0.0/16", "SubnetLen": 26, "Backend": {"Type": "vxlan", "VNI": 7}}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_topology_is_sound_and_says_what_it_is(name: str) -> None:
    text = (SHIPPED / f"{name}.toml").read_text()
    assert text.startswith("# ")
    assert wire(Topology.load(name), "x").links


def test_the_example_names_every_field_with_its_default() -> None:
    assert Topology.load("three") == Topology()
    said = {line.partition("=")[0].strip() for line in (SHIPPED / "three.toml").read_text().splitlines() if " = " in line}
    assert set(Topology().to_dict()) - {"config"} <= said


def test_json_and_back() -> None:
    topology = Topology(hosts=4, agent_options=("--ip-masq", "--log-level=debug"), config={"SubnetLen": 25})
    assert Topology.from_dict(topology.to_dict()) == topology


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts = 0", "x.toml: hosts 0: expected a whole number, 1 to 200"),
        ('hosts = "3"', "x.toml: hosts '3': expected a whole number, 1 to 200"),
        ("hosts = true", "x.toml: hosts True: expected a whole number, 1 to 200"),
        ("containers = -1", "x.toml: containers -1: expected a whole number, 0 to 50"),
        ("etcd = 2", "x.toml: etcd 2: expected 0, 1 or 3 members"),
        ("mtu = 100", "x.toml: mtu 100: expected a whole number, 576 to 65535"),
        ('backend = "VX LAN"', "x.toml: backend 'VX LAN': expected a name like vxlan, udp or host-gw"),
        ("backend = 1", "x.toml: backend 1: expected a string"),
        ('bridge = "a/b"', "x.toml: bridge 'a/b': expected a device name of at most 15 characters"),
        ('network = "10.1.0.0"', "x.toml: network '10.1.0.0': expected an IPv4 network like 10.1.0.0/16"),
        ('network = "10.1.2.3/16"', "x.toml: network '10.1.2.3/16': expected an IPv4 network like 10.1.0.0/16"),
        ('network = "fd00::/16"', "x.toml: network 'fd00::/16': expected an IPv4 network like 10.1.0.0/16"),
        ('segment6 = "10.0.0.0/8"', "x.toml: segment6 '10.0.0.0/8': expected an IPv6 network like fd00:50::/64"),
        ('network = "10.0.0.0/8"', "x.toml: network 10.0.0.0/8 overlaps 10.0.2.0/24, which the lab uses: expected one of its own"),
        (
            'network = "192.168.0.0/16"',
            "x.toml: network 192.168.0.0/16 overlaps 192.168.50.0/24, which the lab uses: expected one of its own",
        ),
        ('segment = "192.168.50.0/29"', "x.toml: segment 192.168.50.0/29: too small for 3 hosts, expected /24 or wider"),
        ('agent_options = "--x"', "x.toml: agent_options '--x': expected a list of strings"),
        ("config = 1", "x.toml: config: expected a table of network config keys, and Backend in it a table too"),
        ("[config]\nBackend = 1", "x.toml: config: expected a table of network config keys, and Backend in it a table too"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str) -> None:
    with pytest.raises(TopologyError) as caught:
        Topology.parse(text, where="x.toml")
    assert str(caught.value) == said


def test_an_unknown_key_and_broken_toml_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"^topology: unknown key 'host': expected some of agent_options, backend,"):
        Topology.parse("host = 3")
    with pytest.raises(TopologyError, match=r"^topology: not TOML: "):
        Topology.parse("hosts 3")
    with pytest.raises(
        TopologyError, match=r"is not there: expected a \.toml file or one of dual-stack, ten, three, three-etcd, two$"
    ):
        Topology.load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", ["", "Lab", "1lab", "a/b", "x" * 21, "..", "a_b"])
def test_a_name_that_could_not_lead_a_namespaces_name(name: str) -> None:
    with pytest.raises(TopologyError, match="expected a small letter"):
        check_name(name)


def test_the_wires_of_one_host_read_like_a_shell_session() -> None:
    wiring = wire(Topology(hosts=1, etcd=0), "fl")
    assert wiring.namespaces == ("h1", "nat1", "c1", "net")
    assert wiring.inside["h1"] == (
        "link set lo up",
        "address add 10.0.2.15/24 brd + dev eth0",
        "address add 192.168.50.11/24 brd + dev eth1",
        "link set eth0 up",
        "link set eth1 up",
        "link set docker0 up",
        "route add default via 10.0.2.2 dev eth0",
        "link set vc1 master docker0 up",
    )
    assert wiring.sysctls["h1"]["ipv4/ip_forward"] == "1"


def test_a_container_gets_the_address_after_the_bridges() -> None:
    assert attach_container(2, 1400, "10.1.5.1/24", "fd00:1::1/64") == [
        "link set eth0 mtu 1400",
        "address flush dev eth0 scope global",
        "address add 10.1.5.3/24 dev eth0",
        "route replace default via 10.1.5.1 dev eth0",
        "address add fd00:1::3/64 dev eth0 nodad",
        "route replace default via fd00:1::1 dev eth0",
    ]
