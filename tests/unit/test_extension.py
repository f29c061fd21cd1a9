"""extension: what is run for which command line, with what, how often, and what becomes of a command that does not do as it should.

The commands are real programs in a folder of the test's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from backends.extension import Extension, datapath
from backends.extension.command import MOST_OUTPUT, Command, Commands, Output
from backends.extension.datapath import CommandDatapath
from backends.extension.words import expand, trimmed, words
from flannelpy import plugins
from flannelpy.core.backend import Local, NoFdStore, Uplink
from flannelpy.core.config import NetworkConfig
from flannelpy.core.errors import BackendError, ConfigError, MalformedError
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.registry.memory import MemoryStore

from .agents import HostInMemory, descriptors, until

UPLINK = Uplink("eth1", 2, 1500, IPAddress("192.0.2.1"), IPAddress("2001:db8::1"), IPAddress("203.0.113.1"), None)
V4 = NetworkConfig.parse('{"Network":"10.5.0.0/16","Backend":{"Type":"extension"}}')
DUAL = NetworkConfig.parse('{"Network":"10.5.0.0/16","IPv6Network":"fd00::/48","EnableIPv6":true,"Backend":{"Type":"extension"}}')
OWN = Lease(IPNetwork("10.5.72.0/24"), LeaseAttrs(IPAddress("192.0.2.1")))


def peer(number: int, data: object = None, at: str = "") -> Lease:
    attrs = LeaseAttrs(IPAddress(at or f"192.0.2.{number}"), None, "extension", data)
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs)


# ---------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a b  c", ["a", "b", "c"]),
        ("  a\tb\nc\r", ["a", "b", "c"]),
        ("sh -c 'ip route'", ["sh", "-c", "'ip", "route'"]),  # quotes mean nothing
        ('"$SUBNET"', ['"$SUBNET"']),
        ("a;b|c > d", ["a;b|c", ">", "d"]),
        ("a\x1fb c\u2003d\xa0e", ["a\x1fb", "c", "d", "e"]),  # Unicode's white space, which a unit separator is not
        (" ", []),
    ],
)
def test_words_are_what_stands_between_white_space(line: str, expected: list[str]) -> None:
    assert words(line) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$SUBNET", "10.5.9.0/24"),
        ("${SUBNET}", "10.5.9.0/24"),
        ("x$SUBNET/y", "x10.5.9.0/24/y"),
        ('"$SUBNET"', '"10.5.9.0/24"'),
        ("$SUBNETS", ""),
        ("${SUBNET}S", "10.5.9.0/24S"),
        ("$", "$"),
        ("a$", "a$"),
        ("$$", ""),  # the variable $, which nobody has
        ("$%", "$%"),
        ("${}", ""),
        ("${SUBNET", "SUBNET"),
        ("$12", "2"),  # one digit is a whole name
        ("${12}", ""),
        ("${A B}", ""),
        ("$ü", "$ü"),
        ("$EMPTY", ""),
        ("$TRICK", "$SUBNET"),  # a value is not looked at again
        ("$(reboot)`x`", "$(reboot)`x`"),
    ],
)
def test_variables_are_put_in_place_as_flannel_does(word: str, expected: str) -> None:
    assert expand(word, {"SUBNET": "10.5.9.0/24", "EMPTY": "", "TRICK": "$SUBNET"}) == expected


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_whatever_stands_there_can_be_expanded(line: str, variables: dict[str, str]) -> None:
    for word in words(line):
        assert word in line
        if "$" not in word:
            assert expand(word, variables) == word


@given(st.text(alphabet=" \n\x1f\x85ab"))
def test_ends_are_trimmed_and_nothing_else(text: str) -> None:
    found = trimmed(text)
    assert found in text
    assert found.split() == text.split()
    assert not found or found[0] not in " \n\x85"


# --------------------------------------------------------------------------------------------------------- a command


class Programs:
    """Programs in a folder, and what they have noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = folder / "notes"

    def make(self, name: str, body: str) -> str:
        """A program; ``note WORDS`` in it writes a line."""
        path = self.folder / name
        path.write_text(f'#!/bin/sh\nnote() {{ echo "$@" >> {self.notes}; }}\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    @property
    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def gone(pid: str) -> bool:
    """No such process, or nothing but its name is left."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_a_command_gets_words_variables_and_data(programs: Programs) -> None:
    program = programs.make("say", 'echo "$#:$1:$2:$3"; cat; echo "$SUBNET" >&2')
    output = await Command("SubnetAddCommand", f"{program} $SUBNET '$NONE' ${{PUBLIC_IP}}", 60).run(
        {"SUBNET": "10.5.9.0/24", "PUBLIC_IP": "192.0.2.9"}, '$(reboot) "x"; rm'
    )
    assert output.text == "3:10.5.9.0/24:'':192.0.2.9\n$(reboot) \"x\"; rm\n10.5.9.0/24"
    assert output.whole


async def test_a_command_knows_nothing_of_our_environment(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "hunter2")
    output = await Command("x", f"{programs.make('env', 'env')} $FLANNELD_ETCD_PASSWORD", 60).run({"SUBNET": "10.5.9.0/24"})
    assert "hunter2" not in output.text
    names = {line.partition("=")[0] for line in output.text.splitlines()}
    assert (
        {"PATH", "SUBNET"} <= names <= {"PATH", "SUBNET", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PWD", "SHLVL", "_", "OLDPWD"}
    )


async def test_no_output_is_an_empty_text(programs: Programs) -> None:
    output = await Command("x", programs.make("quiet", "echo '  '; exit 0"), 60).run({})
    assert (output.text, output.whole) == ("", True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo no such device >&2; exit 3", "x failed with exit code 3: no such device"),
        ("exit 1", "x failed with exit code 1"),
        ("printf '\\033[2Jforged\\nline'; exit 1", "x failed with exit code 1: \\x1b[2Jforged\\nline"),
        ("kill -9 $$", "x was killed by signal 9"),
    ],
)
async def test_a_failure_is_one_line(programs: Programs, body: str, said: str) -> None:
    with pytest.raises(BackendError) as error:
        await Command("x", programs.make("fail", body), 60).run({})
    assert str(error.value) == said


async def test_what_is_no_program_is_said(programs: Programs) -> None:
    with pytest.raises(BackendError, match=r"^x: /nowhere/add: expected a program of that name or path on this host$"):
        await Command("x", "/nowhere/add 1", 60).run({})
    plain = programs.folder / "plain"
    plain.write_text("echo 1")
    with pytest.raises(BackendError, match=r"cannot be run: Permission denied$"):
        await Command("x", str(plain), 60).run({})
    plain.chmod(0o755)
    assert (await Command("x", str(plain), 60).run({})).text == "1"  # execvp(3) gives what has no #! to /bin/sh
    plain.write_bytes(b"\x7fELF nonsense")
    with pytest.raises(BackendError, match=r"^x failed with exit code 127: [^\n]*not found$"):
        await Command("x", str(plain), 60).run({})


async def test_a_command_that_hangs_is_killed_with_all_that_it_started(programs: Programs) -> None:
    program = programs.make("hang", "sleep 1000 & note $!; note $$; echo waiting for ever; wait")
    with pytest.raises(BackendError, match=r"^x was killed: not done after 1 s: waiting for ever$"):
        await Command("x", program, 1).run({})
    assert len(programs.noted) == 2
    await until(lambda: all(map(gone, programs.noted)))


async def test_a_command_is_killed_when_we_stop(programs: Programs) -> None:
    program = programs.make("hang", "trap '' TERM INT; sleep 1000 & note $!; note $$; wait")
    running = asyncio.create_task(Command("x", program, 1000).run({}))
    await until(lambda: len(programs.noted) == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: all(map(gone, programs.noted)))


async def test_ten_megabytes_are_read_and_forgotten(programs: Programs) -> None:
    program = programs.make("much", "head -c 10000000 /dev/zero | tr '\\0' x; note done")
    output = await Command("x", program, 60).run({})
    assert (len(output.text), output.whole) == (MOST_OUTPUT, False)
    assert programs.noted == ["done"]
    backend = Extension.from_options({"PreStartupCommand": program})
    with pytest.raises(BackendError, match=r"^PreStartupCommand printed too much: expected .*, 64 KiB at most$"):
        await backend.prepare()


async def test_data_that_nobody_reads_is_in_nobodys_way(programs: Programs) -> None:
    output = await Command("x", programs.make("deaf", "echo heard nothing"), 60).run({}, "x" * 1_000_000)
    assert output.text == "heard nothing"


async def test_what_a_command_leaves_running_is_let_alone(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.extension.command.LAST_WORDS_S", 0.05)
    before = descriptors()
    output = await Command("x", programs.make("daemon", "sleep 1000 & note $!; echo started"), 60).run({})
    assert output.text == "started"
    (pid,) = programs.noted
    assert not gone(pid)
    os.kill(int(pid), signal.SIGKILL)
    await until(lambda: descriptors() <= before)


# ------------------------------------------------------------------------------------------------------- the backend


def test_options_are_read_in_any_case_and_others_passed_over() -> None:
    backend = Extension.from_options({"presTARTUPcommand": "/bin/a b", "ShutdownCommand": "x", "SubnetAddCommand": ""})
    assert backend.commands.pre == Command("PreStartupCommand", "/bin/a b", 30)
    assert (backend.commands.post, backend.commands.add, backend.commands.remove) == (None, None, None)
    assert plugins.parse('{"Network":"10.5.0.0/16","Backend":{"Type":"Extension","CommandTimeout":5}}')[1].name == "extension"


@pytest.mark.parametrize("wrong", [5, None, ["sh"], "  ", "a\0b"])
def test_a_command_that_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^Backend\.SubnetAddCommand .*: expected a"):
        Extension.from_options({"SubnetAddCommand": wrong})


def test_what_is_published() -> None:
    backend = Extension.from_options({})
    json = Local(V4, UPLINK, prepared='a <b> & "c"').config and backend.attrs(Local(V4, UPLINK, prepared='a <b> "c"')).to_json()
    data = '"a \\u003cb\\u003e \\"c\\""'
    assert json == f'{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":{data}}}'
    assert '"BackendData":""' in backend.attrs(Local(V4, UPLINK, prepared="")).to_json()
    assert "BackendData" not in backend.attrs(Local(V4, UPLINK)).to_json()
    assert '"PublicIPv6":"2001:db8::1"' in backend.attrs(Local(DUAL, UPLINK)).to_json()
    assert backend.mtu(Local(V4, UPLINK)) == 1500


def test_what_the_commands_add_to_a_packet_is_taken_off_the_mtu() -> None:
    assert Extension.from_options({"Overhead": 50}).mtu(Local(V4, UPLINK)) == 1450
    with pytest.raises(ConfigError, match=r"^Backend\.Overhead 221 leaves 1279 of eth1's 1500 bytes: at least 1280 are needed$"):
        Extension.from_options({"Overhead": 221}).mtu(Local(DUAL, UPLINK))
    with pytest.raises(ConfigError, match=r"^Backend\.Overhead -1: expected a whole number, 0 to 1000$"):
        Extension.from_options({"Overhead": -1})


@pytest.mark.parametrize("data", [5, {"a": "b"}, ["x"], True])
def test_a_peer_whose_data_is_no_string_is_left_out(data: object) -> None:
    with pytest.raises(MalformedError, match=r"expected a string$"):
        Extension.from_options({}).path(peer(9, data), Local(V4, UPLINK, OWN))


# ------------------------------------------------------------------------------------------------------ the datapath


@asynccontextmanager
async def running(options: Mapping[str, Any], local: Local | None = None) -> AsyncIterator[tuple[CommandDatapath, dict[str, str]]]:
    """A datapath that runs, and what it says is wrong with which peer."""
    made = Extension.from_options(options).datapath(local or Local(V4, UPLINK, OWN))
    refused: dict[str, str] = {}

    def listen(said: Mapping[str, str]) -> None:
        refused.clear()
        refused.update(said)

    made.listen(listen)
    await made.open(NoFdStore())
    life = asyncio.create_task(made.run())
    try:
        yield made, refused
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await made.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for long."""
    monkeypatch.setattr(datapath, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(datapath, "LAST_RETRY_S", 0.02)


NAMES = "note $SUBNET $IPV6SUBNET $PUBLIC_IP $PUBLIC_IPV6 $NETWORK $(cat)"


async def test_each_command_is_told_what_it_needs(programs: Programs) -> None:
    own6 = Lease(OWN.subnet, OWN.attrs, IPNetwork("fd00:0:0:72::/64"))
    both = Lease(
        IPNetwork("10.5.9.0/24"),
        LeaseAttrs(IPAddress("192.0.2.9"), IPAddress("2001:db8::9"), "extension", "hello"),
        IPNetwork("fd00:0:0:9::/64"),
    )
    options = {
        f"{name}Command": programs.make(name, f"note {name}; {NAMES}") for name in ("PostStartup", "SubnetAdd", "SubnetRemove")
    }
    async with running(options, Local(DUAL, UPLINK, own6)) as (made, _refused):
        assert programs.noted == ["PostStartup", "10.5.72.0/24 fd00:0:0:72::/64 192.0.2.1 2001:db8::1 10.5.0.0/16"]
        made.update({both.key: both, "10.5.8.0-24": peer(8)})
        await until(lambda: len(programs.noted) == 6)
        made.update({both.key: None})
        await until(lambda: len(programs.noted) == 8)
    told = "10.5.9.0/24 fd00:0:0:9::/64 192.0.2.9 2001:db8::9 hello"
    assert sorted(programs.noted[2:6]) == sorted(["SubnetAdd", told, "SubnetAdd", "10.5.8.0/24 192.0.2.8"])
    assert programs.noted[6:] == ["SubnetRemove", told]


async def test_a_start_that_fails_is_told(programs: Programs) -> None:
    made = Extension.from_options({"PostStartupCommand": programs.make("post", "exit 7")}).datapath(Local(V4, UPLINK, OWN))
    with pytest.raises(BackendError, match=r"^PostStartupCommand failed with exit code 7$"):
        await made.open(NoFdStore())


async def test_one_that_fails_is_told_and_run_again_and_holds_up_nobody(programs: Programs, quick: None) -> None:
    mended = programs.folder / "mended"
    add = programs.make("add", f'case $SUBNET in 10.5.9.*) test -e {mended} || {{ echo "no way"; exit 2; }};; esac; note $SUBNET')
    async with running({"SubnetAddCommand": add}) as (made, refused):
        made.update({lease.key: lease for lease in map(peer, range(5, 15))})
        await until(lambda: len(programs.noted) == 9 and refused)
        assert refused == {
            "10.5.9.0-24": "10.5.9.0/24 at 192.0.2.9: SubnetAddCommand failed with exit code 2: no way; it is run again"
        }
        mended.touch()
        await until(lambda: len(programs.noted) == 10)
        await until(lambda: not refused)


async def test_those_that_hang_leave_room_for_others(programs: Programs, quick: None) -> None:
    """More of them than may run at one time; each is killed, and what is run again has a place of its own."""
    add = programs.make("add", "case $SUBNET in 10.5.1?.*) sleep 1000;; esac; note $SUBNET")
    async with running({"SubnetAddCommand": add, "CommandTimeout": 1}) as (made, refused):
        made.update({lease.key: lease for lease in map(peer, range(10, 20))})
        await until(lambda: len(refused) == 10)
        made.update({lease.key: lease for lease in map(peer, range(30, 50))})
        await until(lambda: len(programs.noted) == 20)
        assert all("was killed: not done after 1 s" in said for said in refused.values())


async def test_of_a_peer_that_flaps_the_last_word_counts_and_nothing_overlaps(programs: Programs) -> None:
    """While a command runs, the peer goes and comes a hundred times."""
    go = programs.folder / "go"
    os.mkfifo(go)
    add = programs.make("add", f"note add begins $PUBLIC_IP; read x < {go}; note add ends")
    options = {"SubnetAddCommand": add, "SubnetRemoveCommand": programs.make("remove", "note remove $PUBLIC_IP")}
    async with running(options) as (made, _refused):
        lease, moved = peer(9), peer(9, at="192.0.2.77")
        made.update({lease.key: lease})
        await until(lambda: len(programs.noted) == 1)
        for _ in range(100):
            made.update({lease.key: None})
            made.update({lease.key: moved})
            made.update({lease.key: lease})
        made.update({lease.key: None})
        await asyncio.to_thread(go.write_text, "x\n")
        await until(lambda: len(programs.noted) == 3)
        made.update({lease.key: moved})
        await until(lambda: len(programs.noted) == 4)
    assert programs.noted == ["add begins 192.0.2.9", "add ends", "remove 192.0.2.9", "add begins 192.0.2.77"]


async def test_a_renewal_runs_nothing_and_a_move_runs_the_command_again(programs: Programs) -> None:
    async with running({"SubnetAddCommand": programs.make("add", "note $PUBLIC_IP")}) as (made, _refused):
        for lease in (peer(9), peer(9), peer(9, at="192.0.2.10"), peer(9, "new", at="192.0.2.10")):
            made.update({lease.key: lease})
            await until(lambda: all(each.settled and not each.busy for each in made._peers.values()))
    assert programs.noted == ["192.0.2.9", "192.0.2.10", "192.0.2.10"]


@pytest.mark.parametrize("at", ["", "192.0.2.77"])
async def test_a_peer_that_is_back_after_its_removal_failed_is_added_again(programs: Programs, at: str) -> None:
    """Half of the removal may have been done: what was added before counts no more, and nothing is left to be told."""
    options = {
        "SubnetAddCommand": programs.make("add", "note add $PUBLIC_IP"),
        "SubnetRemoveCommand": programs.make("rm", "note rm; exit 1"),
    }
    async with running(options) as (made, refused):
        made.update({"10.5.9.0-24": peer(9)})
        await until(lambda: programs.noted == ["add 192.0.2.9"])
        made.update({"10.5.9.0-24": None})
        await until(lambda: refused)
        made.update({"10.5.9.0-24": peer(9, at=at)})
        await until(lambda: programs.noted[-1].startswith("add") and not refused)
    assert programs.noted[-1] == f"add {at or '192.0.2.9'}"
    assert "rm" in programs.noted


async def test_a_removal_that_always_fails_is_given_up(programs: Programs, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    options = {"SubnetAddCommand": programs.make("add", "exit 1"), "SubnetRemoveCommand": programs.make("rm", "note rm; exit 1")}
    async with running(options) as (made, refused):
        made.update({"10.5.9.0-24": peer(9)})
        await until(lambda: refused)
        made.update({"10.5.9.0-24": None})
        await until(lambda: not made._peers)
        assert not refused
    assert 1 <= len(programs.noted) <= datapath.REMOVALS
    assert "given up after" in caplog.text


def both(number: int, number6: int = 0) -> Lease:
    """The same host's lease with IPv6."""
    lease = peer(number)
    attrs = LeaseAttrs(lease.public_ip, IPAddress(f"2001:db8::{number}"), "extension")
    return Lease(lease.subnet, attrs, IPNetwork(f"fd00:0:0:{number6 or number}::/64"))


@pytest.mark.parametrize(
    ("before", "after"), [(peer(9), both(9)), (both(9), peer(9)), (both(9), both(9, 8))], ids=["with IPv6", "without", "another"]
)
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("fails", [0, 1])
async def test_a_subnet_under_another_key_is_added_after_the_old_one_is_removed(
    programs: Programs, quick: None, before: Lease, after: Lease, order: bool, fails: int
) -> None:
    """The network gets IPv6, and the host another key for the subnet that it has: what runs last is what counts."""
    slow = f"sleep 0.1; note remove $SUBNET; [ $(grep -c remove {programs.notes}) -gt {fails} ]"
    options = {"SubnetAddCommand": programs.make("add", "note add $SUBNET"), "SubnetRemoveCommand": programs.make("rm", slow)}
    async with running(options) as (made, _refused):
        made.update({before.key: before})
        await until(lambda: programs.noted == ["add 10.5.9.0/24"])
        made.update({after.key: after, before.key: None} if order else {before.key: None, after.key: after})
        await until(lambda: not made._due and all(each.settled and not each.busy for each in made._peers.values()))
        assert list(made._peers) == [after.key]
        made.update({after.key: None})
        await until(lambda: not made._peers)
        assert not made._told
    assert programs.noted[1:] == [*["remove 10.5.9.0/24"] * (fails + 1), "add 10.5.9.0/24", "remove 10.5.9.0/24"]


@pytest.mark.parametrize("before", [peer(9), both(9)], ids=["with IPv6", "without"])
@pytest.mark.parametrize("fails", [1, 2])
async def test_nobody_waits_for_a_removal_that_is_called_off(programs: Programs, quick: None, before: Lease, fails: int) -> None:
    """The old key is there again before its removal has gone well, and cannot be added."""
    after = both(9) if before == peer(9) else peer(9)
    other = f'[ "$PUBLIC_IPV6" != "{before.attrs.public_ipv6 or ""}" ]'
    add = programs.make("add", f"note add; [ -e {programs.folder}/all ] || {other}")
    options = {"SubnetAddCommand": add, "SubnetRemoveCommand": programs.make("rm", "note remove; exit 1")}
    (programs.folder / "all").touch()
    async with running(options) as (made, _refused):
        made.update({before.key: before})
        await until(lambda: len(programs.noted) == 1 and made._peers[before.key].settled)
        (programs.folder / "all").unlink()
        made.update({before.key: None, after.key: after})
        await until(lambda: programs.noted.count("remove") >= fails)
        made.update({before.key: before})
        async with asyncio.timeout(5):
            await until(lambda: made._peers[after.key].settled)


@pytest.mark.parametrize("failures", [0, 2])
async def test_who_goes_while_other_commands_take_over_is_removed_by_them(
    programs: Programs, tmp_path: Path, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    value = '{"PublicIP":"192.0.2.%d","BackendType":"extension"}'
    go = programs.folder / "go"
    fails = f"[ $(grep -c post {programs.notes} || true) -le {failures} ] && note post && exit 1"
    post = f"{fails}; while [ ! -e {go} ]; do sleep 0.01; done"

    def config(network: str, **more: object) -> dict[str, object]:
        add, remove = (programs.make(name, f"note {name} $SUBNET") for name in ("add", "rm"))
        backend = {"Type": "extension", "SubnetAddCommand": add, "SubnetRemoveCommand": remove, **more}
        return {"Network": network, "SubnetMin": network.replace("0.0/16", "200.0"), "Backend": backend}

    host.put_config(config("10.5.0.0/16"))
    for number in (8, 9):
        host.put_peer(f"10.5.{number}.0-24", value % number)
    async with host.run():
        await until(lambda: sorted(programs.noted) == ["add 10.5.8.0/24", "add 10.5.9.0/24"])
        host.put_config(config("10.5.0.0/16", PostStartupCommand=programs.make("post", post)))
        await until(lambda: "post" in programs.noted)
        host.delete("10.5.9.0-24")
        await until(lambda: host.agent is not None and "10.5.9.0-24" not in host.agent._network.cluster.view.peers)  # type: ignore[union-attr]
        go.touch()
        await until(lambda: "rm 10.5.9.0/24" in programs.noted and programs.noted.count("add 10.5.8.0/24") == 2)
        host.put_config(config("10.6.0.0/16"))  # and so it is with all of another network
        await until(lambda: "rm 10.5.8.0/24" in programs.noted)
    assert programs.noted.count("rm 10.5.9.0/24") == 1


class Recorded:
    """A command that takes some turns of the loop and may fail; ``runs``: who is at work on which subnet."""

    def __init__(self, name: str, fates: Iterator[bool], done: dict[str, str], runs: set[str]) -> None:
        self.name, self._fates, self._done, self._runs = name, fates, done, runs

    async def run(self, variables: Mapping[str, str], data: str = "") -> Output:
        subnet = variables["SUBNET"]
        assert subnet not in self._runs, "two commands for one peer at a time"
        self._runs.add(subnet)
        await asyncio.sleep(0)
        self._runs.remove(subnet)
        if not next(self._fates, True):
            raise BackendError(f"{self.name} failed")
        if self.name == "add":
            self._done[subnet] = variables["PUBLIC_IP"]
        else:
            self._done.pop(subnet, None)
        return Output("", True)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([None, "192.0.2.50", "192.0.2.51"]), st.integers(0, 4)), max_size=30),
    st.lists(st.booleans(), max_size=4),
)
def test_whatever_comes_goes_and_fails_the_end_is_what_was_said_last(
    said: list[tuple[int, str | None, int]], fates: list[bool]
) -> None:
    async def tried() -> None:
        done: dict[str, str] = {}
        left, runs = iter(fates), set[str]()
        commands = [cast(Command, Recorded(name, left, done, runs)) for name in ("add", "remove")]
        made = CommandDatapath(Local(V4, UPLINK, OWN), Commands(None, None, *commands))
        life = asyncio.create_task(made.run())
        wanted: dict[str, str] = {}
        for number, at, turns in said:
            lease = None if at is None else peer(number, at=at)
            made.update({f"10.5.{number}.0-24": lease})
            if at is None:
                wanted.pop(f"10.5.{number}.0/24", None)
            else:
                wanted[f"10.5.{number}.0/24"] = at
            for _ in range(turns):
                await asyncio.sleep(0)
        await until(lambda: not made._due and all(each.settled and not each.busy for each in made._peers.values()))
        assert done == wanted
        assert len(made._peers) == len(wanted)
        assert made._refused == {}
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)

    with patch.object(datapath, "FIRST_RETRY_S", 0.0):
        asyncio.run(tried())


async def test_the_mtu_of_the_uplink_is_followed_and_another_command_is_not() -> None:
    made = Extension.from_options({"SubnetAddCommand": "a"}).datapath(Local(V4, UPLINK, OWN))
    assert made.adopt(
        Local(V4, Uplink("eth1", 2, 1400, UPLINK.address, UPLINK.address6), OWN), Extension.from_options({"SubnetAddCommand": "a"})
    )
    assert not made.adopt(Local(V4, UPLINK, OWN), Extension.from_options({"SubnetAddCommand": "b"}))
    assert not made.adopt(Local(V4, Uplink("eth1", 2, 1500, IPAddress("192.0.2.2")), OWN), None)


# -------------------------------------------------------------------------------------------------------- the agent


def extension(**commands: str) -> dict[str, object]:
    return {"Network": "10.5.0.0/16", "SubnetMin": "10.5.200.0", "Backend": {"Type": "extension", **commands}}


VALUE = '{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"extension","BackendData":"theirs"}'


async def test_the_agent_runs_all_four(programs: Programs, tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    names = ("PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")
    commands = {name: programs.make(name, f"note {name} $SUBNET $PUBLIC_IP $(cat)") for name in names}
    host.put_config(extension(PreStartupCommand=programs.make("pre", "note pre; echo ours"), **commands))
    host.put_peer("10.5.9.0-24", VALUE)
    async with host.run():
        key = host.lease
        assert '"BackendType":"extension","BackendData":"ours"}' in host.value(key)
        await until(lambda: len(programs.noted) == 3)
        host.delete("10.5.9.0-24")
        await until(lambda: len(programs.noted) == 4)
        assert host.conditions() == {}
    assert programs.noted == [
        "pre",
        f"PostStartupCommand {key.replace('-', '/')} 192.0.2.1",
        "SubnetAddCommand 10.5.9.0/24 192.0.2.9 theirs",
        "SubnetRemoveCommand 10.5.9.0/24 192.0.2.9 theirs",
    ]


async def test_the_agent_waits_for_what_is_to_be_published(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannelpy.agent.preparation.FIRST_RETRY_S", 0.01)
    host, mended = HostInMemory(MemoryStore(), tmp_path), tmp_path / "mended"
    host.put_config(extension(PreStartupCommand=programs.make("pre", f"test -e {mended} || exit 4; echo ours")))
    async with host.run(ready=False):
        await until(lambda: "preparation-failed" in host.conditions())
        assert "PreStartupCommand failed with exit code 4; trying again" in host.conditions()["preparation-failed"]
        assert host.published() == {}
        mended.touch()
        await until(lambda: host.ready and not host.conditions())
        assert '"BackendData":"ours"}' in host.value(host.lease)
        host.put_config(extension(PreStartupCommand=programs.make("pre2", "echo others")))
        await until(lambda: '"BackendData":"others"}' in host.value(host.lease))


async def test_a_command_that_hangs_before_the_lease_holds_up_no_other_config(programs: Programs, tmp_path: Path) -> None:
    """At the start, and under a lease: what is carried by stays until the new one is prepared."""
    host, hang = HostInMemory(MemoryStore(), tmp_path), programs.make("hang", "note $$; sleep 1000")
    host.put_config(extension(PreStartupCommand=hang))
    async with host.run(ready=False):
        await until(lambda: len(programs.noted) == 1)
        host.put_config(extension(PreStartupCommand=programs.make("pre", "echo ours")))
        await until(lambda: host.ready)
        assert gone(programs.noted[0])
        lease = host.lease
        host.put_config(extension(PreStartupCommand=hang))
        await until(lambda: len(programs.noted) == 2)
        host.put_peer("10.5.9.0-24", VALUE)
        await until(lambda: host.agent is not None and [row.state for row in host.agent.status().peers] == ["in-sync"])
        assert host.ready
        assert '"BackendData":"ours"}' in host.value(lease)
    assert gone(programs.noted[1])


async def test_a_command_that_hangs_under_the_lease_holds_up_no_other_config(programs: Programs, tmp_path: Path) -> None:
    """No subnet file before PostStartupCommand has done its work; and a config that wants another backend is followed meanwhile."""
    go = tmp_path / "go"
    os.mkfifo(go)
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(extension(PostStartupCommand=programs.make("post", f"note $$; read x < {go}")))
    async with host.run(ready=False):
        await until(lambda: len(programs.noted) == 1)
        await until(lambda: host.published() and host.settled)
        host.put_peer("10.5.9.0-24", VALUE)
        await until(lambda: host.agent is not None and len(host.agent.status().peers) == 1)
        assert not host.ready
        assert not host.settings.subnet_file.exists()
        await asyncio.to_thread(go.write_text, "x\n")
        await until(lambda: host.ready)
        host.put_config(extension(PostStartupCommand=programs.make("post2", "note $$; sleep 1000")))
        await until(lambda: len(programs.noted) == 2)
        host.put_config({**extension(), "Backend": {"Type": "host-gw"}})
        await until(lambda: '"BackendType":"host-gw"' in host.value(host.lease))
        await until(lambda: gone(programs.noted[1]))


async def test_at_the_end_packets_are_said_to_flow_on(tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(extension())
    async with host.run():
        assert host.agent is not None
        assert host.agent._what_stays == "the lease and what is programmed stay, so that packets keep flowing"


async def test_a_peer_whose_command_fails_is_a_condition_of_its_own(programs: Programs, tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    add = programs.make("add", "case $SUBNET in 10.5.9.*) exit 1;; esac; note $SUBNET")
    host.put_config(extension(SubnetAddCommand=add))
    host.put_peer("10.5.9.0-24", VALUE)
    host.put_peer("10.5.8.0-24", VALUE.replace("192.0.2.9", "192.0.2.8"))
    host.put_peer("10.5.7.0-24", VALUE.replace("192.0.2.9", "192.0.2.7").replace('"theirs"', "{}"))
    async with host.run():
        await until(lambda: "peer-failed 10.5.9.0-24" in host.conditions() and "peer-unreadable 10.5.7.0-24" in host.conditions())
        await until(lambda: programs.noted == ["10.5.8.0/24"])
        assert host.agent is not None
        states = {row.key: row.state for row in host.agent.status().peers}
        assert states == {"10.5.7.0-24": "excluded", "10.5.8.0-24": "in-sync", "10.5.9.0-24": "refused"}
        host.delete("10.5.9.0-24")
        host.delete("10.5.7.0-24")
        await until(lambda: host.conditions() == {})


async def test_what_was_extension_may_become_something_else(programs: Programs, tmp_path: Path) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    host.put_config(extension(PreStartupCommand=programs.make("pre", "echo ours")))
    async with host.run():
        host.put_config({**extension(), "Backend": {"Type": "host-gw"}})
        await until(lambda: '"BackendType":"host-gw"' in host.value(host.lease))
        assert "BackendData" not in host.value(host.lease)


@pytest.mark.parametrize("rounds", [1, 2])
async def test_what_becomes_extension_again_is_prepared_again(programs: Programs, tmp_path: Path, rounds: int) -> None:
    """What it made before, a device, may have been taken away when nobody needed it."""
    host = HostInMemory(MemoryStore(), tmp_path)
    pre = programs.make("pre", f"note pre; grep -c pre {programs.notes}")
    extension = {"Network": "10.5.0.0/16", "Backend": {"Type": "extension", "PreStartupCommand": pre}}
    host.put_config(extension)
    async with host.run():
        for number in range(1, rounds + 1):
            host.put_config({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}})
            await until(lambda: json.loads(host.value(host.lease))["BackendType"] == "vxlan" and host.settled)
            host.put_config(extension)
            await until(lambda: json.loads(host.value(host.lease))["BackendType"] == "extension" and host.settled)
            assert json.loads(host.value(host.lease))["BackendData"] == str(number + 1)
        host.agent.audit()  # type: ignore[union-attr]
        await until(lambda: host.settled)
        assert programs.noted == ["pre"] * (rounds + 1)


@pytest.mark.parametrize("other", ["wireguard", "host-gw"])
@pytest.mark.parametrize("same", [False, True])
async def test_what_stays_because_another_type_cannot_be_is_not_prepared_again(
    programs: Programs, tmp_path: Path, other: str, same: bool
) -> None:
    """A PreStartupCommand may make its device anew, as flannel's example does: the routes on it would be gone, and nobody told."""
    at = None if other == "wireguard" else IPAddress("192.0.2.77")  # behind NAT there is no host-gw
    host = HostInMemory(MemoryStore(), tmp_path, public_ip=at)
    host.kernel.unknown.add("wireguard")
    pre = programs.make("pre", f"note pre; {'echo same' if same else f'grep -c pre {programs.notes}'}")
    config = extension(PreStartupCommand=pre, PostStartupCommand=programs.make("post", "note post"))
    host.put_config(config)
    async with host.run():
        await until(lambda: programs.noted == ["pre", "post"])
        for _ in range(2):
            host.put_config({**config, "Backend": {"Type": other}})
            await until(lambda: "config-changed" in host.conditions())
            host.put_config(config)
            await until(lambda: "config-changed" not in host.conditions() and host.settled)
            await asyncio.sleep(0.05)
        assert programs.noted == ["pre", "post"]


@pytest.mark.parametrize("body", ["exit 1", "sleep 60"])
@pytest.mark.parametrize("rounds", [1, 2])
async def test_a_preparation_that_nobody_wants_any_more_ends(programs: Programs, tmp_path: Path, body: str, rounds: int) -> None:
    host = HostInMemory(MemoryStore(), tmp_path)
    config = extension(PreStartupCommand=programs.make("pre", "note pre; echo here"))
    other = extension(PreStartupCommand=programs.make("bad", f"note bad; {body}"))
    host.put_config(config)
    async with host.run():
        for number in range(1, rounds + 1):
            host.put_config(other)
            await until(lambda tried=number: programs.noted.count("bad") >= tried)  # type: ignore[misc]
            await until(lambda: body != "exit 1" or "preparation-failed" in host.conditions())
            host.put_config(config)
            await until(lambda: host.conditions() == {} and "prepare" not in {task.get_name() for task in asyncio.all_tasks()})
        assert programs.noted.count("pre") == 1
