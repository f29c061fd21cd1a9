"""Does the CNI plugin hand its delegate what flannel's own plugin would, refuse what that refuses, and keep what DEL needs?

``data/cni_answers.json`` holds what flannel's plugin answered to 200 configurations; ``DIR`` stands for a folder of the test.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flannelpy.host.cni import plugin
from tests.unit.cni_plugin import ENV, NO_NETNS, PLUGIN, ask, install_delegate, start

CASES = json.loads(Path(__file__).with_name("data").joinpath("cni_answers.json").read_text())
SUBNET_ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
HANDED = {
    "cniVersion": "1.0.0",
    "name": "cbr0",
    "type": "bridge",
    "ipMasq": False,
    "isGateway": True,
    "mtu": 1450,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.7.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}]},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    return tmp_path


def conf(place: Path, **more: Any) -> bytes:
    told = {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "flannel",
        "subnetFile": f"{place}/subnet.env",
        "dataDir": f"{place}/data",
    }
    return json.dumps({key: value for key, value in {**told, **more}.items() if value is not ...}).encode()


def error_of(command: str, data: bytes, **env: str) -> tuple[int, str]:
    error = ask(command, data, **env).error
    assert error is not None
    return error["code"], error["msg"]


# ------------------------------------------------------------------------------------------------- what flannel's own answers


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_it_answers_as_flannels_own(case: dict[str, Any], tmp_path: Path) -> None:
    if case["subnet_env"] is not None:
        (tmp_path / "subnet.env").write_text(case["subnet_env"])
    given = json.dumps(case["conf"]).replace("DIR", str(tmp_path)).encode()
    for step in case["steps"]:
        asked = ask(step["command"], given)
        assert json.loads(json.dumps(asked.error).replace(str(tmp_path), "DIR")) == step["error"], step
        handed = [(step["command"], case["delegate"]["type"], case["delegate"])] if step["delegates"] else []
        assert asked.delegates == handed
        assert (tmp_path / "data/c1").exists() == step["kept"]


def test_the_cases_are_of_all_kinds() -> None:
    said = {step["error"]["msg"] for case in CASES for step in case["steps"] if step["error"]}
    assert len(said) >= 12
    assert sum(case["delegate"] is not None for case in CASES) >= 100


# -------------------------------------------------------------------------------------------------------- the life of a container


def test_a_container_is_connected_and_disconnected_by_a_process(place: Path) -> None:
    env = {"CNI_PATH": f"/nowhere:{install_delegate(place / 'bin')}", "RECORD": f"{place}/given"}
    result = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "dns": {}}
    added = start("ADD", conf(place), **env, SAYS=json.dumps(result), SAYS_ASIDE="a word")
    assert (added.returncode, json.loads(added.stdout), added.stderr) == (0, result, b"a word\n")
    assert list(json.loads(added.stdout)) == list(result)
    kept = place / "data/c1"
    assert json.loads((place / "given.ADD").read_bytes()) == HANDED
    assert kept.read_bytes() == (place / "given.ADD").read_bytes()
    assert kept.read_bytes() == json.dumps(HANDED, sort_keys=True, separators=(",", ":")).encode()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    (place / "subnet.env").unlink()  # DEL works with what was kept alone
    for _ in range(2):
        deleted = start("DEL", conf(place), **env)
        assert (deleted.returncode, deleted.stdout) == (0, b"")
        assert list(kept.parent.iterdir()) == []
    assert json.loads((place / "given.DEL").read_bytes()) == HANDED


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_delegate_ends_where_nobody_reads_on(place: Path, command: str) -> None:
    """As a process that a runtime starts: a script in it would write errors for ever otherwise."""
    path = install_delegate(place / "bin") / "bridge"
    env = {"CNI_PATH": str(path.parent), "RECORD": f"{place}/given", "PATH": "/usr/bin:/bin"}
    assert start("ADD", conf(place), **env, SAYS="{}").returncode == 0
    path.write_text('#!/bin/sh\ngrep SigIgn /proc/self/status >"$RECORD"\nyes | head -n 1 >&2\necho {}\n')
    told = start(command, conf(place), **env)
    assert (told.returncode, told.stderr) == (0, b"y\n")
    ignored = int((place / "given").read_text().split()[1], 16)
    assert not any(ignored >> number - 1 & 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))


def test_what_a_delegate_says_is_handed_on(place: Path) -> None:
    env = {"CNI_PATH": str(install_delegate(place / "bin")), "RECORD": f"{place}/given", "ENDS": "3"}
    told = {"code": 11, "msg": "no room", "details": "10.1.7.0/24 is full"}
    failed = start("ADD", conf(place), **env, SAYS=json.dumps({"cniVersion": "1.0.0", **told}))
    assert (failed.returncode, json.loads(failed.stdout)) == (1, told)
    silent = start("ADD", conf(place), **env)
    assert json.loads(silent.stdout)["msg"] == "netplugin failed with no error message: exit status 3"
    aside = start("ADD", conf(place), **env, SAYS_ASIDE="no \x1b[31mway")
    assert json.loads(aside.stdout)["msg"] == 'netplugin failed: "no \\x1b[31mway\\n": exit status 3'
    odd = json.loads(start("ADD", conf(place), **env, SAYS="what?").stdout)
    assert odd["msg"].startswith('netplugin failed but error parsing its diagnostic message "what?": ')
    kept = place / "data/c1"
    assert kept.exists()  # DEL is still owed
    assert start("DEL", conf(place), **env).returncode == 1
    assert kept.exists()  # and is tried again
    assert start("DEL", conf(place), **{**env, "ENDS": "0"}).returncode == 0
    assert not kept.exists()


@pytest.mark.parametrize(
    ("says", "ends"),
    [
        ("", "failed to unmarshal raw result: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "failed to unmarshal raw result: expected an object, got a list"),
        ('{"cniVersion":"9.0.0"}', 'unsupported CNI result version "9.0.0"'),
    ],
)
def test_a_result_that_is_none_is_refused(place: Path, says: str, ends: str) -> None:
    env = {"CNI_PATH": str(install_delegate(place / "bin")), "RECORD": f"{place}/given", "SAYS": says}
    answer = json.loads(start("ADD", conf(place), **env).stdout)
    assert answer == {"code": 999, "msg": f"failed to delegate add: {ends}"}


def test_a_result_without_a_version_has_the_configurations(place: Path) -> None:
    assert ask("ADD", conf(place, cniVersion="0.4.0")).answer["cniVersion"] == "0.4.0"
    assert ask("ADD", conf(place, cniVersion=...)).answer["cniVersion"] == "0.1.0"


@pytest.mark.parametrize(
    ("kind", "path", "ends"),
    [
        ("bridge", "/nowhere:/none", 'failed to find plugin "bridge" in path [/nowhere /none]'),
        ("../bridge", "/nowhere", "invalid plugin name: ../bridge"),
        ("", "/nowhere", "no plugin name provided"),
    ],
)
def test_a_delegate_that_is_not_there(place: Path, kind: str, path: str, ends: str) -> None:
    given = conf(place, delegate={"type": kind})
    answer = json.loads(start("ADD", given, CNI_PATH=path).stdout)
    assert answer == {"code": 999, "msg": f"failed to delegate add: {ends}"}
    assert json.loads(start("DEL", given, CNI_PATH=path).stdout) == {"code": 999, "msg": ends}


def test_a_delegate_that_is_no_program(place: Path) -> None:
    (install_delegate(place / "bin") / "bridge").chmod(0o644)
    answer = json.loads(start("ADD", conf(place), CNI_PATH=f"{place}/bin").stdout)
    assert answer["code"] == 999
    assert "ermission denied" in answer["msg"]


# ------------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["../c1", "/etc/passwd", ".", "..", ".hidden", "a/b", "a b", "a\n", "ü"])
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_a_container_id_that_is_a_path_is_refused(place: Path, name: str, command: str) -> None:
    asked = ask(command, conf(place), CNI_CONTAINERID=name)
    assert asked.error == {"code": 4, "msg": "invalid characters in containerID", "details": name}
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    ("name", "msg"),
    [
        ("a" * 16, "interface name is too long"),
        ("..", "interface name is . or .."),
        ("a/b", "interface name contains / or : or whitespace characters"),
        ("a\u00a0b", "interface name contains / or : or whitespace characters"),
    ],
)
def test_a_name_that_the_kernel_would_refuse(place: Path, name: str, msg: str) -> None:
    assert error_of("ADD", conf(place), CNI_IFNAME=name) == (4, msg)


def test_what_is_missing_is_named(place: Path) -> None:
    assert error_of("DEL", conf(place), CNI_PATH="", CNI_NETNS="") == (4, "required env variables [CNI_PATH] missing")
    both = error_of("ADD", conf(place), CNI_CONTAINERID="", CNI_NETNS="")
    assert both == (4, "required env variables [CNI_CONTAINERID,CNI_NETNS] missing")
    assert error_of("STATUS", conf(place), CNI_PATH="") == (4, "required env variables [CNI_PATH] missing")
    assert error_of("PAINT", conf(place)) == (4, "unknown CNI_COMMAND: PAINT")


@pytest.mark.parametrize(
    ("given", "code", "starts"),
    [
        (b"", 6, "error unmarshall network config: "),
        (b"[]", 6, "error unmarshall network config: expected an object, got a list"),
        (b"null", 7, "missing network name"),
        (b'{"name":5}', 6, "error unmarshall network config: name: expected a string, got a number"),
        (b'{"name":"a b"}', 7, "invalid characters found in network name"),
        (b'{"name":"a","cniVersion":5}', 6, "decoding version from network config: cniVersion: expected a string"),
        (b'{"name":"a","cniVersion":"7.0.0"}', 1, "incompatible CNI versions"),
        (
            b'{"name":"a","delegate":[]}',
            999,
            "loadFlannelNetConf failed: failed to load netconf: delegate: expected an object, got a",
        ),
        (
            b'{"name":"a","capabilities":{"x":1}}',
            999,
            "loadFlannelNetConf failed: failed to load netconf: capabilities.x: expected",
        ),
        (b'{"name":"a","x":NaN}', 6, "error unmarshall network config: NaN is no number"),
        (b'{"name":"a","x":1e999}', 6, "error unmarshall network config: 1e999 is no number"),
        (b'{"name":"a","x":' + b"9" * 5000 + b"}", 6, "error unmarshall network config: "),
        (b'{"name":"a","x":' + b"[" * 100_000, 6, "error unmarshall network config: nested too deeply"),
    ],
)
def test_a_configuration_that_is_none(given: bytes, code: int, starts: str) -> None:
    found, msg = error_of("ADD", given)
    assert (found, msg[: len(starts)]) == (code, starts)


@pytest.mark.parametrize(
    ("command", "version", "msg"),
    [
        ("CHECK", "0.3.1", "config version does not allow CHECK"),
        ("GC", "1.0.0", "config version does not allow GC"),
        ("STATUS", "1.0.0", "config version does not allow STATUS"),
        ("CHECK", "1.2", "plugin version does not allow CHECK"),
        ("CHECK", "1.0", "incompatible CNI versions"),
    ],
)
def test_a_command_that_the_version_does_not_know(place: Path, command: str, version: str, msg: str) -> None:
    assert error_of(command, conf(place, cniVersion=version)) == (1, msg)


def test_keys_are_found_whatever_their_case(place: Path) -> None:
    given = json.loads(conf(place))
    assert ask("ADD", json.dumps({key.upper(): value for key, value in given.items()}).encode()).delegates == [
        ("ADD", "bridge", HANDED)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FLANNEL_MTU=-1", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("FLANNEL_MTU=4294967296", 'strconv.ParseUint: parsing "4294967296": value out of range'),
        ("FLANNEL_MTU=" + "9" * 5000, "strconv.ParseUint: parsing"),
        ("FLANNEL_SUBNET=10.1.7.1", "invalid CIDR address: 10.1.7.1"),
        ("FLANNEL_SUBNET=10.1.7.1/33", "invalid CIDR address: 10.1.7.1/33"),
        ("FLANNEL_SUBNET=010.1.7.1/24", "invalid CIDR address: 010.1.7.1/24"),
        ("FLANNEL_NETWORK=10.1.0.0/16,", "invalid CIDR address: "),
        ("FLANNEL_IPV6_SUBNET=fd00::1%eth0/64", "invalid CIDR address: fd00::1%eth0/64"),
        ("FLANNEL_MTU", '"FLANNEL_MTU": expected KEY=value'),
    ],
)
def test_a_subnet_file_that_cannot_be_used(place: Path, text: str, said: str) -> None:
    (place / "subnet.env").write_text(f"{SUBNET_ENV}{text}\n")
    code, msg = error_of("ADD", conf(place))
    assert code == 999
    assert msg.startswith("failed to load flannel 'subnet.env' file: ")
    assert said in msg
    assert not (place / "data").exists()


def test_a_subnet_file_by_hand_is_understood(place: Path) -> None:
    text = SUBNET_ENV.replace("\n", "\r\n") + "# by hand\nFLANNEL_MTU=0001300\nFLANNEL_IPV6_SUBNET=FD00:0:0:1:0:0:0:1/064\nX=y"
    (place / "subnet.env").write_bytes(text.encode() + b"\n\xff\xfe")
    told = ask("ADD", conf(place)).delegates[0][2]
    assert told["mtu"] == 1300
    assert told["ipam"]["ranges"] == [[{"subnet": "10.1.7.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]]


def test_a_fifo_as_subnet_file_is_not_waited_for(place: Path) -> None:
    (place / "subnet.env").unlink()
    os.mkfifo(place / "subnet.env")
    assert error_of("ADD", conf(place))[1].startswith("failed to load flannel 'subnet.env' file: read ")


def test_routes_are_spelled_anew(place: Path) -> None:
    given = [
        {"dst": "10.9.1.2/16", "gw": "10.1.7.1", "mtu": 0, "priority": 5, "table": 0, "unknown": 1},
        {"dst": "FD00:0::/8", "gw": "", "advmss": None},
    ]
    told = ask("ADD", conf(place, ipam={"routes": given})).delegates[0][2]["ipam"]["routes"]
    assert told == [
        {"dst": "10.9.1.2/16", "gw": "10.1.7.1", "priority": 5, "table": 0},
        {"dst": "fd00::/8"},
        {"dst": "10.1.0.0/16"},
    ]


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ("x", "expected a list, got a string"),
        ([1], "expected objects, got a number"),
        ([{"dst": "x"}], "invalid CIDR address: x"),
        ([{}], "invalid CIDR address: null"),
        ([{"dst": "10.0.0.0/8", "gw": "x"}], "invalid IP address: x"),
        ([{"dst": "10.0.0.0/8", "gw": 1}], "gw: expected a string, got a number"),
        ([{"dst": "10.0.0.0/8", "mtu": 1.5}], "mtu: expected a whole number, got a number"),
    ],
)
def test_routes_that_are_none(place: Path, routes: Any, said: str) -> None:
    start_ = "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: "
    assert error_of("ADD", conf(place, ipam={"routes": routes})) == (999, start_ + said)


def test_numbers_reach_the_delegate_as_whole_ones(place: Path) -> None:
    told = ask("ADD", conf(place).replace(b'"name"', b'"delegate":{"vlan":5.0,"mtu":1e3,"share":0.5},"name"')).delegates[0][2]
    assert [repr(told[key]) for key in ("vlan", "mtu", "share")] == ["5", "1000", "0.5"]


def test_the_hosts_own_namespace_is_refused(place: Path) -> None:
    said = "plugin's netns and netns from CNI_NETNS should not be the same"
    assert error_of("ADD", conf(place), CNI_NETNS="/proc/self/ns/net") == (8, said)
    assert ask("ADD", conf(place), CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="true").error is None
    assert ask("ADD", conf(place), CNI_NETNS=NO_NETNS).error is None


# ------------------------------------------------------------------------------------------------------------- what is kept


def test_a_link_where_something_is_kept_is_not_followed(place: Path) -> None:
    (place / "data").mkdir()
    other = place / "other"
    other.write_text(json.dumps({"type": "bridge", "name": "another's"}))
    (place / "data/c1").symlink_to(other)
    asked = ask("DEL", conf(place))
    assert asked.error
    assert asked.error["code"] == 999
    assert asked.delegates == []
    assert ask("ADD", conf(place)).error is None  # takes the link's place, and leaves alone what it led to
    assert not (place / "data/c1").is_symlink()
    assert json.loads(other.read_text())["name"] == "another's"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"type": 5}', b"\xff\x00"])
def test_what_was_kept_and_cannot_be_read_is_removed(place: Path, text: bytes) -> None:
    (place / "data").mkdir()
    (place / "data/c1").write_bytes(text)
    asked = ask("DEL", conf(place))
    assert (asked.error, asked.delegates, list((place / "data").iterdir())) == (None, [], [])


def test_a_folder_that_cannot_be_made_is_one_error(place: Path) -> None:
    (place / "data").write_text("a file")
    code, msg = error_of("ADD", conf(place))
    assert code == 999
    assert "data" in msg
    assert ask("DEL", conf(place)).error is None  # nothing can have been kept there


def test_nothing_is_left_where_a_write_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "data").mkdir()
    (place / "data/c1").mkdir()  # rename(2) of a file onto a directory fails
    assert error_of("ADD", conf(place))[0] == 999
    assert [each.name for each in (place / "data").iterdir()] == ["c1"]


# ---------------------------------------------------------------------------------------------------- VERSION, STATUS, GC


def test_versions_need_no_configuration() -> None:
    told = start("VERSION", b"")
    assert told.returncode == 0
    assert json.loads(told.stdout) == {"cniVersion": "1.1.0", "supportedVersions": list(plugin.VERSIONS)}
    assert plugin.VERSIONS[-1] == "1.1.0"
    assert {"0.3.1", "0.4.0", "1.0.0"} < set(plugin.VERSIONS)


def test_a_person_who_calls_it_is_told_what_it_is() -> None:
    told = start("", b"")
    assert (told.returncode, told.stdout) == (0, b"")
    assert b"flannel" in told.stderr


def test_status_is_ready_when_there_is_a_subnet(place: Path) -> None:
    given = conf(place, cniVersion="1.1.0")
    asked = ask("STATUS", given)
    assert (asked.error, asked.delegates) == (None, [("STATUS", "bridge", {**HANDED, "cniVersion": "1.1.0"})])
    (place / "subnet.env").unlink()
    asked = ask("STATUS", given)
    assert asked.error
    assert asked.error["code"] == 50
    assert asked.delegates == []


def test_gc_forgets_what_is_not_valid_and_nothing_else(place: Path) -> None:
    given = conf(place, cniVersion="1.1.0")
    for name in ("stays", "goes"):
        assert ask("ADD", given, CNI_CONTAINERID=name).error is None
    assert ask("ADD", conf(place, name="another", cniVersion="1.1.0"), CNI_CONTAINERID="anothers").error is None
    (place / "data/unreadable").write_text("{")
    (place / "data/folder").mkdir()
    (place / "data/link").symlink_to("goes")
    everything = {"anothers", "folder", "goes", "link", "stays", "unreadable"}
    assert ask("GC", given).error is None  # nobody says what is valid
    assert {each.name for each in (place / "data").iterdir()} == everything
    valid = [{"containerID": "stays", "ifname": "eth0"}]
    asked = ask("GC", conf(place, cniVersion="1.1.0", **{"cni.dev/valid-attachments": valid}))
    assert asked.error is None
    assert asked.delegates == [("GC", "bridge", {**HANDED, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid})]
    assert {each.name for each in (place / "data").iterdir()} == everything - {"goes"}
    for odd in ([1], [{}], [{"containerID": 1}]):
        assert error_of("GC", conf(place, cniVersion="1.1.0", **{"cni.dev/valid-attachments": odd}))[0] == 999
    assert {each.name for each in (place / "data").iterdir()} == everything - {"goes"}


# ------------------------------------------------------------------------------------------------------------- one file, alone


def test_it_needs_the_standard_library_alone() -> None:
    modules = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(PLUGIN.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    }
    assert modules <= sys.stdlib_module_names


def test_it_imports_no_more_than_it_must() -> None:
    """A container waits for it twice: what costs milliseconds to import is not there when it has done its work."""
    told = subprocess.run(
        ["/usr/bin/python3", "-IS", "-X", "importtime", PLUGIN], capture_output=True, check=True, env={"CNI_COMMAND": "VERSION"}
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in told.stderr.decode().splitlines() if line.startswith("import time:")}
    assert {"os", "io"} <= imported
    assert imported.isdisjoint({"json", "re", "enum", "socket", "subprocess", "pathlib", "typing", "dataclasses", "ipaddress"})


def test_an_add_costs_less_than_40_ms_beyond_its_delegate(place: Path) -> None:
    """Processor time, the least of ten: what else the machine does adds to the clock, and hardly to this."""
    env = {"CNI_PATH": str(install_delegate(place / "bin")), "RECORD": f"{place}/given", "SAYS": "{}"}

    def cost(*words: Path, command: str = "ADD") -> float:
        def once() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(words, input=conf(place), capture_output=True, check=True, env={"CNI_COMMAND": command, **ENV, **env})
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000

        return min(once() for _ in range(10))

    start_ms, delegate_ms, add_ms = cost(PLUGIN, command="VERSION"), cost(place / "bin/bridge"), cost(PLUGIN)
    print(f"VERSION {start_ms:.1f} ms, delegate alone {delegate_ms:.1f}, ADD {add_ms:.1f}")
    assert add_ms - delegate_ms < 40


def test_it_starts_by_the_hosts_python_in_no_environment() -> None:
    first = PLUGIN.read_text().split("\n", 1)[0]
    assert first == "#!/usr/bin/python3 -IS"
    assert os.access(PLUGIN, os.X_OK)


@pytest.mark.skipif(not shutil.which("python3.11", path="/usr/bin"), reason="Debian 12's python is not here")
def test_debians_python_runs_it(place: Path) -> None:
    told = subprocess.run(
        ["/usr/bin/python3.11", "-IS", PLUGIN],
        input=b"{",
        capture_output=True,
        check=False,
        env={"CNI_COMMAND": "GC", "CNI_PATH": "/"},
    )
    assert (told.returncode, json.loads(told.stdout)["code"], told.stderr) == (1, 6, b"")


def test_streams_that_are_closed_end_in_no_traceback(place: Path) -> None:
    for closing in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"):
        told = subprocess.run(
            ["sh", "-c", f"exec {PLUGIN} {closing}"],
            input=conf(place),
            capture_output=True,
            check=False,
            env={"CNI_COMMAND": "STATUS", "CNI_PATH": "/nowhere"},
        )
        assert told.returncode == 1, closing
        assert b"Traceback" not in told.stdout + told.stderr
    nothing_to_say = subprocess.run(
        ["sh", "-c", f"exec {PLUGIN} >&-"],
        input=conf(place),
        check=False,
        env={"CNI_COMMAND": "DEL", "CNI_PATH": "/nowhere", **ENV},
    )
    assert nothing_to_say.returncode == 0


@pytest.mark.parametrize("more", ["array_hook", "a_hook_to_come"])
def test_a_python_whose_reader_asks_for_more_reads_too(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    """Python 3.15's asks for array_hook."""

    def demanding(context: Any) -> Any:
        getattr(context, more)
        return make_scanner(context)

    make_scanner = plugin.make_scanner
    monkeypatch.setattr(plugin, "make_scanner", demanding)
    assert plugin.parse(b'{"mtu": 1450.0, "ranges": [[1], []]}') == {"mtu": 1450, "ranges": [[1], []]}
