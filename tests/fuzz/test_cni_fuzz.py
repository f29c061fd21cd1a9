"""Any bytes to the CNI plugin, from a runtime, a file or its delegate: one error of the specification, or what the rules allow."""

from __future__ import annotations

import json
import os
import re
import string
from pathlib import Path
from typing import Any

import pytest

from flannelpy.host.cni import plugin
from tests.fuzz.mutation import bent, inputs, kept, rounds

CONF = (
    b'{"cniVersion":"1.1.0","name":"cbr0","type":"flannel","delegate":{"type":"bridge","hairpinMode":true,"mtu":1400},'
    b'"ipam":{"routes":[{"dst":"0.0.0.0/0","gw":"10.1.7.1","mtu":1400},{"dst":"fd00::/8"}],"dataDir":"/x"},'
    b'"runtimeConfig":{"portMappings":[{"hostPort":80}]},"capabilities":{"portMappings":true},"dns":{},'
    b'"cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}],"prevResult":{"ips":[]}}'
)
SUBNET_ENV = (
    b"FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/48\n"
    b"FLANNEL_IPV6_SUBNET=fd00:1:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)
ANSWERS = [
    b'{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.1.7.2/24"}],"dns":{}}',
    b'{"code":11,"msg":"no room","details":"full"}',
]
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")
ENV = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/none", "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is kept, whatever the configuration says: a bent one names any folder of this machine."""
    monkeypatch.setattr(plugin, "data_dir", lambda _conf: str(tmp_path / "data"))
    (tmp_path / "subnet.env").write_bytes(SUBNET_ENV)
    monkeypatch.setattr(plugin, "SUBNET_FILE", str(tmp_path / "subnet.env"))
    return tmp_path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What delegates were given; none runs."""
    given: list[dict[str, Any]] = []

    def delegate(_command: str, name: str, conf: bytes, _env: dict[str, str]) -> bytes:
        assert isinstance(name, str)
        given.append(json.loads(conf))
        return ANSWERS[0]

    monkeypatch.setattr(plugin, "delegate", delegate)
    return given


def run(command: str, conf: bytes, **env: str) -> str | None:
    """What it says; None where it refuses, in the form of the specification and in letters that a terminal may see."""
    stdin = os.memfd_create("stdin")
    try:
        os.write(stdin, conf)
        os.lseek(stdin, 0, os.SEEK_SET)
        return plugin.run({"CNI_COMMAND": command, **ENV, **env}, stdin)
    except plugin.CniError as error:
        refused = error
    finally:
        os.close(stdin)
    said = json.loads(
        plugin.render({"code": refused.code, **{key: plugin.shown(getattr(refused, key)) for key in ("msg", "details")}})
    )
    assert isinstance(said["code"], int)
    assert all(said[key].isprintable() for key in ("msg", "details"))
    return None


def demand_order(conf: dict[str, Any]) -> None:
    """What every delegate may count on."""
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", conf["name"])
    assert isinstance(conf["type"], str)
    assert {"ipMasq", "mtu"} <= conf.keys()
    for each in conf["ipam"]["ranges"]:
        assert re.fullmatch(r"[0-9a-f:.]+/[0-9]+", each[0]["subnet"])
    assert all(re.fullmatch(r"[0-9a-f:.]+/[0-9]+", each["dst"]) for each in conf["ipam"]["routes"])


def names(place: Path) -> set[str]:
    return {each.name for each in place.rglob("*")}


def test_any_configuration(place: Path, told: list[dict[str, Any]]) -> None:
    for data in inputs([CONF, *kept("cni-conf")], 3_000):
        for command in COMMANDS:
            told.clear()
            run(command, data)
            if command != "DEL":
                for each in told:
                    demand_order(each)
            assert names(place) <= {"subnet.env", "data", "c1"}, data


def test_any_subnet_file(place: Path, told: list[dict[str, Any]]) -> None:
    for data in inputs([SUBNET_ENV, *kept("cni-env")], 5_000):
        (place / "subnet.env").write_bytes(data)
        told.clear()
        run("ADD", CONF)
        for each in told:
            demand_order(each)
            assert each["ipam"]["ranges"], data


def test_any_environment_answer_and_kept_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Container ids, interfaces and paths as anybody writes them; what a delegate says; what stands in the folder."""
    letters = string.printable + "äß\u202e\udcff"
    data = place / "data"
    data.mkdir()
    answer, fails = b"", False

    def delegate(*_: object) -> bytes:
        if fails:
            raise plugin.refusal(answer, answer[::-1], "exit status 1")
        return answer

    monkeypatch.setattr(plugin, "delegate", delegate)
    for random in rounds(5_000):
        answer = bent(random, [*ANSWERS, *kept("cni-answer")])
        fails = random.random() < 0.5
        name = random.choice(("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_COMMAND"))
        value = "".join(random.choices(letters, k=random.choice((0, 1, 3, 20)))).replace("\0", "")
        if random.random() < 0.5:
            (data / "c1").write_bytes(bent(random, [CONF, answer]))
        run(**{"command": random.choice(COMMANDS), "conf": CONF, **({} if name == "CNI_COMMAND" else {name: value})})
        if name == "CNI_COMMAND" and value not in COMMANDS:
            run(value, CONF)
        assert {each.name for each in place.iterdir()} == {"subnet.env", "data"}, (name, value)
        for each in data.iterdir():
            assert plugin.is_name(each.name), value
            each.unlink()


@pytest.mark.parametrize("name", ["cni-conf", "cni-env", "cni-answer"])
def test_seeds_are_read(name: str) -> None:
    assert kept(name), f"tests/fuzz/seeds/{name} is empty"
