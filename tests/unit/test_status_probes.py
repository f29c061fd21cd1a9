"""How do probes read in ``flannelpy status``: worst first, the bad ones alone, with a thousand peers, and again and again?"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from flannelpy.commands.peers_text import peers_text
from flannelpy.commands.status_table import LIKE_THESE, page, table
from flannelpy.explain.status import ConditionStatus, PeerStatus, ProbeStatus, Status, from_json, to_json

from .test_status import NOW, PEER, WHOLE, WRONG

GOOD = ProbeStatus("reachable", "", None, 0.412, 0.0, 1450, True, "2026-11-21T11:59:58.000+00:00")
CLOSED = "its host answers, but not through the overlay: UDP 8472 is dropped there, here or between"
GONE = replace(GOOD, state="unreachable", why=CLOSED, since="2026-11-21T11:59:48.000+00:00", loss=0.5, size_passes=False)
SILENT = replace(GONE, state="silent", why="no answer to probes, ever: is the host down, or does it drop ICMP?")


def peer(number: int, probe: ProbeStatus | None, state: str = "in-sync") -> PeerStatus:
    return replace(
        PEER,
        key=f"10.{number // 256}.{number % 256}.0-24",
        subnet=f"10.{number // 256}.{number % 256}.0/24",
        state=state,
        probe=probe,
    )


def drawn(status: Status, width: int, *, bad: bool = False) -> list[str]:
    console = Console(width=width, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123 - closed with the console
    with console.file:
        console.print(table(status, NOW))
    lines = [*console.export_text().splitlines(), *peers_text(status, NOW, width, bad=bad).splitlines()]
    return [line.rstrip() for line in lines]


def test_each_peer_says_whether_it_is_there_and_the_worst_come_first() -> None:
    peers = (
        peer(1, GOOD),
        peer(2, None),
        peer(3, SILENT),
        peer(4, replace(GOOD, loss=0.125, rtt_ms=23.4)),
        peer(5, GONE),
        peer(6, replace(GONE, since="2026-11-21T11:00:00.000+00:00")),
        peer(7, GONE, "stale"),
        peer(8, replace(GOOD, state="unknown", rtt_ms=None)),
    )
    shown = drawn(replace(WHOLE, lease=None, peers=peers), 200)
    assert "peers         8; 2 unreachable; 1 stale; 1 silent; 2 reachable" in shown
    at = next(number for number, line in enumerate(shown) if line.startswith("subnet   "))
    assert [(line.split()[0], line.partition("none     ")[2]) for line in shown[at + 1 :]] == [
        ("10.0.6.0/24", f"unreachable for 1 h: {CLOSED}"),
        ("10.0.5.0/24", f"unreachable for 12 s: {CLOSED}"),
        ("10.0.7.0/24", "stale"),
        ("10.0.3.0/24", f"silent for 12 s: {SILENT.why}"),
        ("10.0.2.0/24", "in-sync"),
        ("10.0.8.0/24", "in-sync"),
        ("10.0.1.0/24", "reachable 0.4 ms"),
        ("10.0.4.0/24", "reachable 23 ms, 12% lost"),
    ]
    only = drawn(replace(WHOLE, lease=None, peers=peers), 200, bad=True)
    assert only == shown[:-4]


def test_why_nobody_is_asked_is_told() -> None:
    assert "probes        none: no ICMP socket" in drawn(replace(WHOLE, probes_off="no ICMP socket"), 200)
    assert not any(line.startswith("probes") for line in drawn(WHOLE, 200))


@pytest.mark.parametrize("count", [50, 1000])
def test_many_peers_fit_on_80_columns_and_the_summary_comes_first(count: int) -> None:
    peers = tuple(peer(number, GONE if number % 10 == 3 else GOOD) for number in range(count))
    bad = count // 10
    wrong = [
        ConditionStatus("peer-unreachable", "error", each.key, f"a peer is not reached: {each.subnet}", "look", WRONG.since, False)
        for each in peers
        if each.probe is GONE
    ][:100]
    shown = drawn(replace(WHOLE, lease=None, peers=peers, conditions=(WRONG, *wrong)), 80, bad=True)
    assert max(map(len, shown)) <= 80
    summary = next(number for number, line in enumerate(shown) if line.startswith("peers  "))
    listed = [number for number, line in enumerate(shown) if ".0/24 " in line and "192.168.50.12" in line]
    assert shown[summary].split() == ["peers", f"{count:,};", str(bad), "unreachable;", f"{count - bad:,}", "reachable"]
    assert len(listed) == bad
    assert summary < listed[0]
    assert sum("a peer is not reached" in line for line in shown) == min(bad, LIKE_THESE if bad <= LIKE_THESE else LIKE_THESE - 1)
    if bad > LIKE_THESE:
        assert any(f"error: {min(bad, 100) - LIKE_THESE + 1:,} more of peer-unreachable" in line for line in shown)
    assert any("etcd does not answer" in line for line in shown)


def test_where_no_peer_is_bad_that_is_told() -> None:
    assert page(replace(WHOLE, peers=(peer(1, GOOD), peer(2, None))), peers=False, bad=True).endswith("\n\nno peer is bad")
    assert "192.168.50.12" not in page(replace(WHOLE, peers=(peer(1, GOOD),)), peers=False)


def test_probes_survive_json_and_an_older_agent_has_none() -> None:
    status = replace(WHOLE, peers=(peer(1, GOOD), peer(2, GONE), peer(3, None)))
    document = json.loads(to_json(status))
    assert document["peers"][1]["probe"] == {
        "state": "unreachable",
        "why": CLOSED,
        "since": "2026-11-21T11:59:48.000+00:00",
        "rttMs": 0.412,
        "loss": 0.5,
        "size": 1450,
        "sizePasses": False,
        "lastSeen": "2026-11-21T11:59:58.000+00:00",
    }
    assert from_json(to_json(status)) == status
    for each in document["peers"]:
        del each["probe"]
    assert [each.probe for each in from_json(json.dumps(document)).peers] == [None, None, None]


def test_foreign_text_in_a_probe_is_safe_for_a_terminal() -> None:
    shown = drawn(replace(WHOLE, peers=(peer(1, replace(GONE, why="\x1b[2J[bold]x", since="\x1b[2J")),)), 200)
    assert any("\\x1b[2J[bold]x" in line for line in shown)
    assert "\x1b" not in "".join(shown)


# ------------------------------------------------------------------------------------------------------------ --watch


class Watched:
    """``flannelpy status --watch`` on a terminal of its own, beside an agent that does not exist, or in a pipe."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.seen = ""
        self._master, terminal = pty.openpty()
        words = (sys.executable, "-m", "flannelpy", "status", "--watch", f"--run-dir={folder}", *words)
        # Where the tests are a background job, SIGINT is ignored; at a terminal it is not.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(
            words, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=heed
        )
        os.close(terminal)

    def until(self, text: str, within_s: float = 60.0) -> None:
        end = time.monotonic() + within_s
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode()
                except OSError:  # the other end is gone
                    assert text in self.seen, self.seen
                    return

    def type(self, key: str) -> None:
        os.write(self._master, key.encode())

    def end(self) -> int:
        self.until("\x1b[?1049l")  # what was on the screen before is there again
        code = self.process.wait(60)
        os.close(self._master)
        return code


@contextmanager
def watched(folder: Path, *words: str) -> Iterator[Watched]:
    found = Watched(folder, *words)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


@pytest.mark.parametrize("key", ["q", "Q", "ctrl-C"])
def test_watching_ends_by_a_key_with_0_and_leaves_the_terminal_as_it_was(tmp_path: Path, key: str) -> None:
    with watched(tmp_path) as found:
        found.until("there is no such socket")
        if key == "ctrl-C":
            found.process.send_signal(signal.SIGINT)
        else:
            found.type(key)
        assert found.end() == 0
        assert "Traceback" not in found.seen


def test_watching_draws_again(tmp_path: Path) -> None:
    with watched(tmp_path) as found:
        found.until("there is no such socket")
        found.seen = ""
        found.until("there is no such socket")
        found.type("q")
        assert found.end() == 0


@pytest.mark.parametrize("words", [("--json", "--watch"), ("--json", "--bad")])
def test_what_does_not_go_together_is_wrong_usage(tmp_path: Path, words: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "flannelpy", "status", *words, f"--run-dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"flannelpy: --json has every peer, once: expected no {words[1]} with it\n"


@pytest.mark.parametrize("count", [50, 1000])
def test_on_eighty_columns_a_peer_is_a_line_and_what_is_wrong_stands_below_it(count: int) -> None:
    bad = {number for number in range(count) if number % 20 == 7}
    peers = [
        replace(peer(number, GONE if number in bad else GOOD), name=f"node-{number:04}.r7.example.com") for number in range(count)
    ]
    status = replace(WHOLE, peers=tuple(peers))
    lines = drawn(status, 80)
    rows = [line for line in lines if line.startswith("node-")]
    assert len(rows) == count
    assert max(map(len, lines)) <= 80
    assert [line.split()[4] for line in rows] == ["unreachable"] * len(bad) + ["reachable"] * (count - len(bad))
    assert lines[lines.index(rows[0]) + 1].startswith("    ")  # the reason
    assert sum(line.startswith("node-") for line in drawn(status, 80, bad=True)) == len(bad)


def test_colours_are_for_states_and_change_nothing_else() -> None:
    status = replace(WHOLE, peers=(peer(1, GOOD), peer(2, GONE)))
    plain, coloured = peers_text(status, NOW, 80), peers_text(status, NOW, 80, colours=True)
    assert "\x1b[31m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
