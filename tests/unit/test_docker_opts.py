"""Docker's options from subnet.env: flannel's mk-docker-opts.sh to the byte, and what it gets wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from netaddr import IPNetwork

from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.host.docker import Surroundings, conflict, docker_opts

ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
BIP, MASQ, MTU = 'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\n', 'DOCKER_OPT_IPMASQ="--ip-masq=true"\n', 'DOCKER_OPT_MTU="--mtu=1472"\n'
COMBINED = 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
DEFAULT = "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
OURS = "docker0\t004A010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
ELSEWHERE = "flannel.1\t004A010A\t004A010A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
WIDER = "eth1\t0000010A\t0302000A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n"


def made(
    tmp_path: Path,
    env: str = ENV,
    *,
    key: str | None = "DOCKER_OPTS",
    individual: bool = True,
    with_ip_masq: bool = True,
    routes: str = HEAD + DEFAULT,
    daemon_json: str | None = None,
    leased: str | None = None,
    **environ: str,
) -> str:
    (tmp_path / "subnet.env").write_text(env)
    (tmp_path / "routes").write_text(routes)
    if daemon_json is not None:
        (tmp_path / "daemon.json").write_text(daemon_json)
    around = Surroundings(tmp_path / "routes", tmp_path / "daemon.json", None if leased is None else IPNetwork(leased))
    return docker_opts(
        environ, tmp_path / "subnet.env", key=key, individual=individual, with_ip_masq=with_ip_masq, surroundings=around
    )


def test_conformance_default(tmp_path: Path) -> None:
    assert made(tmp_path) == BIP + MASQ + MTU + COMBINED


def test_conformance_individual(tmp_path: Path) -> None:
    assert made(tmp_path, key=None) == BIP + MASQ + MTU


def test_conformance_combined(tmp_path: Path) -> None:
    assert made(tmp_path, individual=False) == COMBINED


def test_conformance_custom_key(tmp_path: Path) -> None:
    assert made(tmp_path, individual=False, key="CUSTOM_KEY") == COMBINED.replace("DOCKER_OPTS", "CUSTOM_KEY")


def test_conformance_without_ip_masq(tmp_path: Path) -> None:
    assert made(tmp_path, with_ip_masq=False) == BIP + MTU + 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'


def test_conformance_masquerading_is_left_to_one_of_us(tmp_path: Path) -> None:
    assert 'DOCKER_OPT_IPMASQ="--ip-masq=false"' in made(tmp_path, ENV.replace("IPMASQ=false", "IPMASQ=true"))


def test_conformance_an_earlier_value_of_the_key_stays_in_front(tmp_path: Path) -> None:
    assert made(tmp_path, individual=False, DOCKER_OPTS="--debug") == COMBINED.replace('" --bip', '"--debug  --bip')


def test_options_of_the_hosts_own_are_kept_in_name_order(tmp_path: Path) -> None:
    text = made(tmp_path, DOCKER_OPT_DNS="--dns=1.1.1.1")
    assert text.splitlines()[:2] == [BIP.strip(), 'DOCKER_OPT_DNS="--dns=1.1.1.1"']
    assert text.splitlines()[-1] == 'DOCKER_OPTS=" --bip=10.1.74.1/24 --dns=1.1.1.1 --ip-masq=true --mtu=1472"'


def test_an_earlier_output_does_not_leak_into_the_next(tmp_path: Path) -> None:
    text = made(tmp_path, key=None, with_ip_masq=False, DOCKER_OPT_IPMASQ="--ip-masq=true", DOCKER_OPT_BIP="--bip=10.9.9.1/24")
    assert text == BIP + MTU


@pytest.mark.parametrize("value", ["--label=a b", 'say "hi"', "a\\b", "$HOME `id`"])
def test_a_shell_reads_back_what_was_meant(tmp_path: Path, value: str) -> None:
    (tmp_path / "out").write_text(made(tmp_path, DOCKER_OPT_X=value))
    told = subprocess.run(
        ["sh", "-c", '. "$1"; printf %s "$DOCKER_OPT_X"', "sh", tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert told.stdout == value


def test_a_route_of_somebody_elses_to_our_subnet_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FlannelpyError) as caught:
        made(tmp_path, routes=HEAD + DEFAULT + ELSEWHERE)
    assert str(caught.value) == (
        "FLANNEL_SUBNET is routed elsewhere: 10.1.74.0/24 via 10.1.74.0 dev flannel.1; expected no such route; nothing was written"
    )


@pytest.mark.parametrize("subnet", ["10.1.74.1/24", "10.1.74.65/26"])
def test_other_routes_are_no_conflict(subnet: str) -> None:
    assert conflict(subnet, HEAD + DEFAULT + OURS + WIDER) is None


def test_only_the_very_prefix_is_a_conflict() -> None:
    assert conflict("10.1.74.1/25", HEAD + ELSEWHERE) is None
    assert conflict("110.1.74.1/24", HEAD + ELSEWHERE) is None
    assert conflict("10.1.74.1/24", HEAD + ELSEWHERE) == "10.1.74.0/24 via 10.1.74.0 dev flannel.1"


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("", "no FLANNEL_SUBNET to be had: is the agent running?"),
        ("FLANNEL_MTU=1400\n", "no FLANNEL_SUBNET to be had: is the agent running?"),
        ("FLANNEL_IPV6_SUBNET=fd00:7::1/64\nFLANNEL_MTU=1400\n", "only an IPv6 subnet, and Docker's bip is an IPv4 one"),
        ("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_IPMASQ=yes\n", "FLANNEL_IPMASQ 'yes': expected true or false"),
        ("FLANNEL_SUBNET=ours\nFLANNEL_IPMASQ=true\n", "FLANNEL_SUBNET 'ours': expected a form like 10.5.72.1/24"),
        ("FLANNEL_SUBNET=10.1.74.1/33\n", "FLANNEL_SUBNET '10.1.74.1/33': expected a form like"),
        ("FLANNEL_SUBNET=10.1.74.1/24 -H tcp://0.0.0.0:2375\n", "expected a form like"),
        ("FLANNEL_SUBNET=10\n", "FLANNEL_SUBNET '10': expected a form like"),
        (
            "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450 -H tcp://0.0.0.0:2375\n",
            "FLANNEL_MTU '1450 -H tcp://0.0.0.0:2375': expected",
        ),
        ("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=67\n", "FLANNEL_MTU '67': expected a number from 68 to 65535"),
        ("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=65536\n", "FLANNEL_MTU '65536'"),
        ("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=\u0661\u0665\u0660\u0660\n", "expected a number from 68"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, env: str, said: str) -> None:
    with pytest.raises(FlannelpyError) as caught:
        made(tmp_path, env)
    assert said in str(caught.value)


def test_a_key_must_be_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="-k 'a b': expected the name of a variable"):
        made(tmp_path, key="a b")


@pytest.mark.parametrize("line", ["", "FLANNEL_IPMASQ=\n"])
def test_conformance_no_word_of_masquerading_is_no_option(tmp_path: Path, line: str) -> None:
    assert made(tmp_path, f"FLANNEL_SUBNET=10.1.74.1/24\n{line}", key=None) == BIP


def test_nothing_else_gets_from_the_subnet_file_to_dockers_command_line(tmp_path: Path) -> None:
    text = made(tmp_path, ENV + "DOCKER_OPT_HOST='-H tcp://0.0.0.0:2375'\nDOCKER_OPTS=--insecure-registry=x\n")
    assert text == BIP + MASQ + MTU + COMBINED


CONNECTED = "eth1\t004A010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
HALF = "eth1\t804A010A\t00000000\t0001\t0\t0\t0\t80FFFFFF\t0\t0\t0\n"
LAN = "eth1\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
BLACKHOLE = "*\t004A010A\t00000000\t0200\t0\t0\t4294967295\t00FFFFFF\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        (CONNECTED, "10.1.74.0/24 dev eth1"),
        (HALF, "10.1.74.128/25 dev eth1"),
        (LAN, None),
        (BLACKHOLE, None),
        (CONNECTED.replace("eth1", "cni0"), None),
        (OURS + CONNECTED, "10.1.74.0/24 dev eth1"),
    ],
)
def test_a_network_of_the_hosts_own_is_a_conflict_too(routes: str, said: str | None) -> None:
    assert conflict("10.1.74.1/24", HEAD + DEFAULT + routes) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"bip": "10.9.9.1/24"}', "daemon.json says bip, too, and Docker would not start: take it out there; nothing was written"),
        ('{"mtu": 1450, "bip": "10.1.74.1/24"}', "says bip and mtu, too, and Docker would not start: take them out there"),
        ('{"bridge": "br0"}', "says bridge, too"),
        ('{"ip-masq": false}', "says ip-masq, too"),
    ],
)
def test_what_docker_was_told_already_is_found_before_it_refuses(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FlannelpyError) as caught:
        made(tmp_path, daemon_json=text)
    assert said in str(caught.value)
    assert made(tmp_path, key=None, daemon_json=text) == BIP + MASQ + MTU, "of single variables the unit takes which it wants"


@pytest.mark.parametrize("text", ["", "{}", '{"log-driver": "journald"}', "[1]", "{bip", '{"MTU": 1}', "[" * 9999])
def test_other_texts_of_dockers_are_no_matter_of_ours(tmp_path: Path, text: str) -> None:
    assert made(tmp_path, daemon_json=text) == BIP + MASQ + MTU + COMBINED


def test_masquerading_left_out_may_be_dockers_own(tmp_path: Path) -> None:
    assert BIP in made(tmp_path, with_ip_masq=False, daemon_json='{"ip-masq": false}')


def test_a_subnet_that_the_agent_here_has_not_leased_is_refused(tmp_path: Path) -> None:
    assert made(tmp_path, leased="10.1.74.0/24") == BIP + MASQ + MTU + COMBINED
    with pytest.raises(FlannelpyError) as caught:
        made(tmp_path, leased="10.1.80.0/24")
    assert "subnet.env says 10.1.74.0/24, the agent on this host has leased 10.1.80.0/24: somebody else wrote the file" in str(
        caught.value
    )


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FlannelpyError, match="fifo is a FIFO; expected a file; nothing was written"):
        docker_opts({}, tmp_path / "fifo", key=None, individual=True, with_ip_masq=True)
