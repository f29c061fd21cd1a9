"""The command line as a stranger uses it: what comes out where, and with which exit code."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import uvloop

from flannelpy import __version__, cli, logs, options, plugins
from flannelpy.commands import run
from flannelpy.core.errors import FlannelpyError
from netns_lab.etcd import Etcd

CONFIG = "/coreos.com/network/config"
GOOD = '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}'
WRONG = '{"Network":"10.5.0.0/16","SubnetLen":17,"Backend":{"Type":"vxlan"}}'
HOW_WRONG = "SubnetLen 17 leaves 2 subnets in 10.5.0.0/16, at least 4 are needed (18 to 30)"


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str


class Terminal(io.TextIOWrapper):
    """Somebody sits there."""

    def isatty(self) -> bool:
        return True


class Person:
    """Types a command in this process, with an environment of its own."""

    stdin: type[io.TextIOWrapper] = io.TextIOWrapper

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        for name in [name for name in os.environ if name.startswith(("FLANNEL", "DOCKER_OPT"))]:
            monkeypatch.delenv(name)

    def types(self, *words: str, stdin: bytes = b"", **environ: str) -> Outcome:
        for name, value in environ.items():
            self.monkeypatch.setenv(name, value)
        self.monkeypatch.setattr(sys, "stdin", self.stdin(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        for name in environ:
            self.monkeypatch.delenv(name)
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Outcome(int(ended.value.code or 0), out, err)


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(monkeypatch, capsys)


@pytest.fixture(scope="module")
def started() -> Iterator[Etcd]:
    with Etcd() as running:
        yield running


@pytest.fixture
def etcd(started: Etcd) -> Iterator[Etcd]:
    yield started
    started.delete(CONFIG)


# ------------------------------------------------------------------------------------------------------- version, help, usage


@pytest.mark.parametrize("word", ["--version", "-version", "version"])
def test_version_is_on_stdout(person: Person, word: str) -> None:
    assert person.types(word) == Outcome(0, f"flannelpy {__version__}\n", "")


def test_version_is_said_whatever_else_is_wrong(person: Person) -> None:
    assert person.types("--healthz-port=x", "--version").code == 0


@pytest.mark.parametrize("word", ["--help", "-help", "-h"])
def test_help_is_on_stdout_and_names_every_option_that_means_something(person: Person, word: str) -> None:
    said = person.types(word)
    assert (said.code, said.err) == (0, "")
    assert all(option.flag in said.out for option in (*options.ETCD, *options.KUBE, *options.AGENT))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--xyzzy",), "flannelpy: No such option '--xyzzy'\n"),
        (("-xyzzy",), "flannelpy: No such option '--xyzzy'\n"),
        (("nope",), "flannelpy: No such command 'nope'\n"),
        (("--ip-masq", "false"), "flannelpy: --ip-masq false: expected --ip-masq=false\n"),
        (("--iface",), "flannelpy: --iface: expected a value after it (NAME|ADDRESS)\n"),
        (
            ("-etcd-endpoints", "etcd:2379"),
            "flannelpy: --etcd-endpoints 'etcd:2379': expected http:// or https:// before the host\n",
        ),
        (("config", "get", "--etcd-prefix="), "flannelpy: --etcd-prefix '': expected a path like /coreos.com/network\n"),
        (("config", "check"), "flannelpy: Missing argument 'FILE|-'\n"),
        (("docker-opts", "-k", "a b"), "flannelpy: -k 'a b': expected the name of a variable\n"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(person: Person, words: tuple[str, ...], said: str) -> None:
    assert person.types(*words) == Outcome(2, "", said)


def test_wrong_variables_are_wrong_usage(person: Person) -> None:
    assert person.types(FLANNELD_HEALTHZ_PORT="x").err.startswith("flannelpy: FLANNELD_HEALTHZ_PORT 'x': expected a whole number")


def test_an_output_that_cannot_be_written() -> None:
    with Path("/dev/full").open("w") as stdout:
        ended = subprocess.run(
            [sys.executable, "-m", "flannelpy", "version"], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "flannelpy: the output cannot be written: No space left on device\n")


# ------------------------------------------------------------------------------------------------------------------ the agent


@pytest.mark.parametrize(
    ("status", "may"),
    [
        ("Name:\tx\nCapEff:\t000001ffffffffff\n", True),
        ("CapEff:\t0000000000001000\n", True),
        ("CapEff:\t000001ffffffefff\n", False),
    ],
)
def test_what_counts_is_the_capability_in_effect(status: str, may: bool) -> None:
    assert run.may_configure_networks(status) is may


INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "set_to"),
    [
        (1024, 4096, 4096),
        (1024, 1 << 20, run.FILES),
        (1024, INFINITY, run.FILES),
        (1 << 20, 1 << 20, None),
        (INFINITY, INFINITY, None),
        (64, 64, None),
    ],
)
def test_as_many_files_are_opened_as_may_be(soft: int, hard: int, set_to: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    run.provide_files()
    assert asked == ([] if set_to is None else [(set_to, hard)])


@pytest.mark.parametrize("most", [1, 16, 63])
def test_too_few_files_are_one_line(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    with pytest.raises(FlannelpyError, match=f"^at most {most} open files .*: expected 64 or more$"):
        run.provide_files()


@pytest.mark.parametrize("room", [1 << 20, 100 << 20, (256 << 20) - 1])
def test_too_little_address_space_is_one_line(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (room, INFINITY))
    with pytest.raises(FlannelpyError, match=f"^at most {room >> 20} MiB of address space .*: expected 256 or more$"):
        run.check_host()


@pytest.mark.parametrize("room", [256 << 20, 1 << 40, INFINITY])
def test_enough_of_it_is_no_word(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (room, INFINITY))
    run.check_host()


def test_a_dev_without_its_devices_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RANDOM", tmp_path / "urandom")
    with pytest.raises(FlannelpyError, match=r"urandom cannot be read: expected it"):
        run.check_host()


def test_without_the_capability_the_agent_says_so(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "may_configure_networks", lambda status: False)
    said = person.types("--iface=eth1")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("flannelpy: CAP_NET_ADMIN is missing: ")


def test_wrong_settings_are_told_before_missing_privileges(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "may_configure_networks", lambda status: False)
    assert person.types("--healthz-port=x").code == 2


def test_a_hang_up_does_not_end_an_agent_that_is_still_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []

    def live(agent: Coroutine[object, object, int]) -> int:
        agent.close()
        heard.append(signal.getsignal(signal.SIGHUP))
        return 0

    def end(code: int) -> NoReturn:
        raise SystemExit(code)

    before, generations = signal.getsignal(signal.SIGHUP), gc.get_threshold()
    monkeypatch.setattr(run, "may_configure_networks", lambda status: True)
    monkeypatch.setattr(uvloop, "run", live)
    monkeypatch.setattr(logs, "set_up", lambda *how: None)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(os, "_exit", end)
    try:
        with pytest.raises(SystemExit, match=r"^0$"):
            run.run_agent({})
        assert heard == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)
        gc.unfreeze()
        gc.set_threshold(*generations)


def test_version_and_help_load_nothing_but_the_command_line() -> None:
    code = "import sys, flannelpy.cli; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'click'" in loaded
    for heavy in ("asyncio", "etcd3", "google", "grpc", "h11", "netaddr", "numpy", "pyroute2", "rich", "uvloop"):
        assert f"'{heavy}'" not in loaded


# ------------------------------------------------------------------------------------------------------------- config check


def test_check_shows_what_a_config_means(person: Person) -> None:
    said = person.types("config", "check", "-", stdin=GOOD.encode())
    assert (said.code, said.err) == (0, "")
    shown = [" ".join(line.split()) for line in said.out.splitlines()]
    assert shown == [
        "IPv4 network 10.5.0.0/16",
        "subnets 255 of /24, 10.5.1.0 to 10.5.255.0",
        "addresses in each 256",
        'backend vxlan {"VNI": 7}',
        "VNI 7",
        "Port 8472 (default)",
        "MTU the interface's (default)",
        "GBP false (default)",
        "Learning false (default)",
        "DirectRouting false (default)",
        'Guard "default" (default)',
        "MTU 1450 where the link has 1500 (50 bytes of encapsulation)",
    ]


def test_check_shows_the_options_of_what_is_preferred_and_no_secret(person: Person) -> None:
    psk = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
    text = (
        f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "host-gw", "Prefer": ["wireguard"], "psk": "{psk}", "ListenPort": 0}}}}'
    )
    said = person.types("config", "check", "-", stdin=text.encode())
    assert (said.code, said.err) == (0, "")
    shown = [" ".join(line.split()) for line in said.out.splitlines()]
    assert {"PSK (not shown)", "ListenPort 51820 (default)", 'Mode "separate" (default)'} <= {*shown}
    assert psk not in said.out


def test_check_warns_of_a_key_that_nobody_has_an_option_for(person: Person) -> None:
    said = person.types("config", "check", "-", stdin=b'{"Network": "10.5.0.0/16", "Backend": {"Type": "ipip", "Gaurd": "off"}}')
    assert said.code == 0
    assert "warning: Backend.Gaurd: passed over, ipip has no such option; it has DirectRouting, Guard" in said.err


def test_the_help_of_check_has_the_options_of_every_backend(person: Person) -> None:
    said = " ".join(person.types("config", "check", "--help").out.split())
    for name in plugins.names():
        for option in plugins.of_type(name):
            assert f"Backend options of {name}:" in said
            assert f" {option.name} " in said


def test_check_json_is_the_config_as_derived(person: Person, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text('{"network": "10.5.1.3/16", "backend": {"type": "VXLAN"}}')
    said = person.types("config", "check", "--json", str(tmp_path / "net.json"))
    assert json.loads(said.out) == {
        "EnableIPv4": True,
        "EnableIPv6": False,
        "Network": "10.5.0.0/16",
        "SubnetLen": 24,
        "SubnetMin": "10.5.1.0",
        "SubnetMax": "10.5.255.0",
        "Backend": {"Type": "vxlan"},
    }


def test_check_warns_where_no_backend_is_given(person: Person) -> None:
    said = person.types("config", "check", "--json", "-", stdin=b'{"Network": "10.5.0.0/16"}')
    assert said.code == 0
    assert said.err.startswith("flannelpy: warning: no Backend: udp is taken, as flannel does")


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (WRONG.encode(), HOW_WRONG),
        (b"", "not JSON: "),
        (b"\xff\xfe", "byte 0 is not UTF-8; expected JSON text"),
        (b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"x"}}', 'Backend.VNI "x": expected a whole number'),
        (b'{"Network":"10.5.0.0/16","Backend":{"Type":"pigeon"}}', "Backend.Type 'pigeon': nobody provides it"),
        (
            b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"udp"}}',
            "Backend.Type udp: it does not carry IPv6",
        ),
    ],
)
def test_check_says_what_is_wrong_in_one_line(person: Person, stdin: bytes, said: str) -> None:
    told = person.types("config", "check", "-", stdin=stdin)
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith(f"flannelpy: standard input: {said}")
    assert told.err.count("\n") == 1


def test_check_of_a_file_that_cannot_be_read(person: Person, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.json")
    assert person.types("config", "check", missing).err == f"flannelpy: {missing}: cannot be read: No such file or directory\n"
    assert person.types("config", "check", str(tmp_path)) == Outcome(
        1, "", f"flannelpy: {tmp_path}: cannot be read: Is a directory\n"
    )


# ------------------------------------------------------------------------------------------------------- config get and put


def test_get_prints_what_is_stored(person: Person, etcd: Etcd) -> None:
    etcd.put(CONFIG, GOOD)
    assert person.types("config", "get", "--etcd-endpoints", etcd.urls[0]) == Outcome(0, f"{GOOD}\n", "")


def test_get_says_what_is_wrong_with_it(person: Person, etcd: Etcd) -> None:
    etcd.put(CONFIG, WRONG)
    said = person.types("config", "get", FLANNELD_ETCD_ENDPOINTS=etcd.urls[0])
    assert said == Outcome(1, f"{WRONG}\n", f"flannelpy: config at {CONFIG}: {HOW_WRONG}\n")


def test_get_of_nothing(person: Person, etcd: Etcd) -> None:
    said = person.types("--etcd-endpoints", etcd.urls[0], "config", "get", "--etcd-prefix=/elsewhere/")
    assert said == Outcome(1, "", "flannelpy: no config at /elsewhere/config; flannelpy config put FILE writes one\n")


def test_put_writes_and_says_what_changed(person: Person, etcd: Etcd) -> None:
    def put(text: str) -> Outcome:
        return person.types("config", "put", "-", stdin=text.encode(), FLANNELPY_ETCD_ENDPOINTS=etcd.urls[0])

    assert put(GOOD) == Outcome(0, "the config is new\n", "")
    assert etcd.get(CONFIG) == GOOD
    assert put(GOOD).out == "unchanged\n"
    assert put(GOOD.replace(",", ", ")).out == "only the text: it means the same as before\n"
    assert put(GOOD.replace("7", "8")).out == "Backend.VNI: 7 -> 8\n"


def test_put_refuses_what_is_wrong_unless_forced(person: Person, etcd: Etcd) -> None:
    at = f"--etcd-endpoints={etcd.urls[0]}"
    refused = person.types("config", "put", "-", at, stdin=WRONG.encode())
    assert refused == Outcome(1, "", f"flannelpy: standard input: {HOW_WRONG}; nothing was written (--force writes it)\n")
    assert etcd.get(CONFIG) is None
    forced = person.types("config", "put", "--force", "-", at, stdin=WRONG.encode())
    assert (forced.code, forced.err) == (0, f"flannelpy: warning: {HOW_WRONG}; --force writes it all the same\n")
    assert etcd.get(CONFIG) == WRONG


def test_an_etcd_that_is_not_there_is_one_line(person: Person) -> None:
    said = person.types("config", "get", "--etcd-endpoints=http://127.0.0.1:1")
    assert said.code == 1
    assert said.err.startswith("flannelpy: http://127.0.0.1:1: ")
    assert said.err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------------- Docker


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ((), ("BIP", "IPMASQ", "MTU", "OPTS")),
        (("-i",), ("BIP", "IPMASQ", "MTU")),
        (("-c",), ("OPTS",)),
        (("-icm",), ("BIP", "MTU", "OPTS")),
    ],
)
def test_docker_opts_writes_the_file(person: Person, tmp_path: Path, flags: tuple[str, ...], lines: tuple[str, ...]) -> None:
    (tmp_path / "subnet.env").write_text("FLANNEL_SUBNET=198.18.77.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
    output = tmp_path / "run" / "docker_opts.env"
    output.parent.mkdir()
    assert person.types("docker-opts", "-f", str(tmp_path / "subnet.env"), "-d", str(output), *flags) == Outcome(0, "", "")
    assert tuple(line.partition("=")[0].rpartition("_")[2] for line in output.read_text().splitlines()) == lines
    assert output.stat().st_mode & 0o777 == 0o644


def test_docker_opts_without_an_agent_leaves_the_old_file(person: Person, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    said = person.types("docker-opts", "-f", str(tmp_path / "none"), "-d", str(tmp_path / "out"))
    assert said.code == 1
    assert said.err.startswith(f"flannelpy: {tmp_path}/none: no FLANNEL_SUBNET to be had")
    assert (tmp_path / "out").read_text() == "old"


# ------------------------------------------------------------------------------------------- what a change costs, and terminals

LEASE = "/coreos.com/network/subnets/10.5.9.0-24"
HELD = '{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:00:09"}}'


def test_a_change_that_costs_packets_is_not_written_unasked(person: Person, etcd: Etcd) -> None:
    etcd.put(CONFIG, GOOD)
    etcd.put(LEASE, HELD)
    other = GOOD.replace("7", "8").encode()
    at = f"--etcd-endpoints={etcd.urls[0]}"
    try:
        refused = person.types("config", "put", "-", at, stdin=other)
        assert (refused.code, refused.out) == (1, "Backend.VNI: 7 -> 8\n")
        first, last = refused.err.splitlines()
        assert first.startswith("flannelpy: warning: Backend.VNI 7 -> 8: the device is made anew on each host, packets are lost")
        assert last == (
            "flannelpy: 1 host holds a lease, and this change costs them what is said above; nothing was written (--yes writes it)"
        )
        assert etcd.get(CONFIG) == GOOD
        assert person.types("config", "put", "--yes", "-", at, stdin=other).code == 0
        assert etcd.get(CONFIG) == other.decode()
        free = GOOD.replace("7", "8").replace("vxlan", "vxlan").replace('"VNI"', '"DirectRouting":true,"VNI"').encode()
        said = person.types("config", "put", "-", at, stdin=free)
        assert said == Outcome(0, "Backend.DirectRouting: absent -> true\n", "")
        gentle = json.dumps({**json.loads(free), "Backend": {"Type": "host-gw"}}).encode()
        said = person.types("config", "put", "-", at, stdin=gentle)
        assert said.code == 0, "each host sets it up beside the old one: that is said, and nobody has to agree"
        assert "loses no packet" in said.err
        assert etcd.get(CONFIG) == gentle.decode()
    finally:
        etcd.delete(LEASE)


@pytest.mark.parametrize(("answer", "code", "written"), [("y\n", 0, True), ("n\n", 1, False), ("\n", 1, False)])
def test_at_a_terminal_the_person_is_asked(
    person: Person, etcd: Etcd, tmp_path: Path, answer: str, code: int, written: bool
) -> None:
    etcd.put(CONFIG, GOOD)
    etcd.put(LEASE, HELD)
    other = GOOD.replace("7", "8")
    (tmp_path / "net.json").write_text(other)
    person.stdin = Terminal
    try:
        said = person.types("config", "put", str(tmp_path / "net.json"), f"--etcd-endpoints={etcd.urls[0]}", stdin=answer.encode())
    finally:
        etcd.delete(LEASE)
    assert said.code == code
    assert "1 host holds a lease. Write it? [y/N]: " in said.err
    assert etcd.get(CONFIG) == (other if written else GOOD)


def test_what_others_wrote_is_raw_in_a_pipe_and_harmless_on_a_terminal(
    person: Person, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = GOOD[:-1] + ', "x": "\x1b]0;pwn\x07"}'
    etcd.put(CONFIG, evil)
    at = f"--etcd-endpoints={etcd.urls[0]}"
    assert evil in person.types("config", "get", at).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = person.types("config", "get", at)
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b]0;pwn\\x07" in shown.out
    replaced = person.types("config", "put", "-", at, stdin=GOOD.encode())
    assert replaced.out.startswith("replaced: ")
    assert "\x1b" not in replaced.out


def test_an_error_that_quotes_what_was_typed_is_harmless(person: Person) -> None:
    said = person.types("config", "check", "\x1b[2Jno.json")
    assert said == Outcome(1, "", "flannelpy: \\x1b[2Jno.json: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        ((), "Usage: flannelpy [OPTIONS] [COMMAND]"),
        (("config",), "Usage: flannelpy config"),
        (("lease", "list"), "Usage: flannelpy lease list"),
    ],
)
def test_help_is_a_command_too(person: Person, words: tuple[str, ...], begin: str) -> None:
    said = person.types("help", *words)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(begin)


@pytest.mark.parametrize(
    ("command", "own"), [("ping", ["--count"]), ("bugreport", ["--output"]), ("trace", ["--from", "--live", "--json"])]
)
def test_who_asks_the_agent_is_shown_how_and_may_say_the_rest_all_the_same(person: Person, command: str, own: list[str]) -> None:
    said = person.types("help", command).out
    whom = ["--run-dir", "--subnet-file", "--etcd-endpoints", "--etcd-prefix"]
    assert re.findall(r"^  (--[a-z-]+)", said, re.MULTILINE) == [*own, *whom]
    taken = {flag for parameter in cli.flannelpy.commands[command].params for flag in parameter.opts}
    assert {option.flag for option in (*options.ETCD, *options.KUBE, *options.AGENT)} <= taken


def test_help_of_nothing(person: Person) -> None:
    assert person.types("help", "nope") == Outcome(2, "", "flannelpy: No such command 'nope'\n")
