"""What has happened: kept within bounds, logged within a rate, and read back by ``flannelpy events``."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from flannelpy.agent.api import answering
from flannelpy.agent.events import LOGGED, MOST, MOST_BYTES, PeerEvents, Ring
from flannelpy.commands import events as command
from flannelpy.core.errors import MalformedError, UsageError
from flannelpy.core.foreign import FIELD
from flannelpy.core.health import Health
from flannelpy.core.model import Lease, LeaseAttrs
from flannelpy.explain.events import BEGAN, CONFIG, JOINED, LEFT, MOVED, RESOLVED, STARTED, Event, Events, from_json, to_json
from flannelpy.explain.status import SOCKET

from .test_cli import Person
from .test_foreign import ANY_TEXT, obeyed
from .test_status import YOUNG


class Wall:
    """The time of day, as the test wants it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def ring(wall: Wall) -> Ring:
    return Ring(wall)


def lease(number: int, at: str = "", backend: str = "vxlan", data: object = None) -> Lease:
    attrs = LeaseAttrs(IPAddress(at or f"192.0.2.{number}"), None, backend, data)
    return Lease(IPNetwork(f"10.5.{number}.0/24"), attrs, etcd_lease=1)


def texts(ring: Ring) -> list[str]:
    return [event.text for event in ring.read().events]


# -------------------------------------------------------------------------------------------------------------- the ring


async def test_events_come_back_in_order_with_their_time(ring: Ring, wall: Wall) -> None:
    ring.note(JOINED, "10.5.1.0-24", "peer 10.5.1.0/24 joined")
    wall.now += 60
    ring.note(CONFIG, "", "the network config changed")
    first, second = ring.read().events
    assert (first.number, first.kind, first.at) == (1, JOINED, "2027-01-15T08:00:00.000+00:00")
    assert (second.number, second.subject) == (2, "")
    assert ring.read(since_s=30).events == (second,)
    assert ring.read(since_s=60).events == (first, second)
    assert ring.read(after=1).events == (second,)


@given(st.lists(st.tuples(st.booleans(), ANY_TEXT), max_size=40), st.integers(1, 100))
def test_whatever_happens_the_ring_is_bounded_and_harmless(happened: list[tuple[bool, str]], times: int) -> None:
    ring = Ring(Wall())
    for peer, text in happened * times:
        ring.keep(JOINED if peer else CONFIG, text, text)
    found = ring.read()
    assert len(found.events) <= 2 * MOST
    assert sum(len(event.text) + len(event.subject) for event in found.events) <= 2 * MOST_BYTES
    assert found.forgotten + len(found.events) == found.last == len(happened) * times
    assert all(obeyed(event.text + event.subject) == [] and len(event.text) <= FIELD for event in found.events)


def test_a_cluster_in_motion_does_not_push_out_what_happened_to_this_host(ring: Ring) -> None:
    ring.keep(CONFIG, "", "the network config changed")
    for number in range(5 * MOST):
        ring.keep(JOINED, str(number), "a peer joined")
    assert ring.read().events[0].kind == CONFIG
    assert ring.read().forgotten == 4 * MOST


def test_a_condition_that_flaps_does_not_push_out_what_happened_to_this_host(ring: Ring, wall: Wall) -> None:
    ring.keep("uplink", "eth1", "the uplink is another one")
    health = Health()
    for number in range(5_000):
        health.begin("lease-malformed", number, "word", "key")
        ring.conditions(health.news(number)[0])
        health.end("lease-malformed", number, "key")
        ring.conditions(health.news(number)[0])
        wall.now += 0.01
    kept = ring.read().events
    assert kept[0].text == "the uplink is another one"
    assert len(kept) < 100
    wall.now += 60
    ring.conditions([])
    counted = sum(int(event.text.split()[1].replace(",", "")) for event in ring.read().events if "more of the kind" in event.text)
    single = sum(event.kind in (BEGAN, RESOLVED) and "more of" not in event.text for event in ring.read().events)
    assert counted + single == 10_000


async def test_who_waits_hears_of_the_next_event_and_no_later_than_asked(ring: Ring) -> None:
    await ring.wait(0, 0.001)
    waiting = asyncio.create_task(ring.wait(0, 1000))
    await asyncio.sleep(0)
    assert not waiting.done()
    ring.note(CONFIG, "", "changed")
    await asyncio.wait_for(waiting, 5)
    await asyncio.wait_for(ring.wait(0, 1000), 5)  # there is one already
    await asyncio.wait_for(ring.wait(7, 1000), 5)  # a number of another life


# --------------------------------------------------------------------------------------------------------------- the log


async def test_peers_are_logged_and_above_a_rate_counted(
    ring: Ring, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Callable[[], None]] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda _delay, end: ended.append(end))
    caplog.set_level(logging.INFO)
    for number in range(37):
        ring.note(JOINED, str(number), f"peer {number} joined")
    ring.note(LEFT, "a", "peer a left")
    ring.note(LEFT, "b", "peer b left")
    ring.note(CONFIG, "", "the network config changed")
    (end_of_second,) = ended
    end_of_second()
    assert caplog.messages == [
        *(f"peer {number} joined" for number in range(LOGGED)),
        "the network config changed",
        "peers: 37 joined, 2 left in the last second",
    ]
    caplog.clear()
    ring.note(LEFT, "c", "peer c left")
    ended[-1]()
    assert caplog.messages == ["peer c left"]


# ------------------------------------------------------------------------------------------------------- where they come from


async def test_conditions_are_events(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    health.begin("config-unusable", 0.0, "is missing")
    ring.conditions(health.news(0.0)[0])
    health.end("config-unusable", 1.0)
    ring.conditions(health.news(1.0)[0])
    began, resolved = ring.read().events
    assert (began.kind, began.subject, resolved.kind) == (BEGAN, "config-unusable", RESOLVED)
    assert began.text == resolved.text
    assert "is missing" in began.text
    assert caplog.messages == []  # the reporter logs them


async def test_the_life_of_a_peer(ring: Ring) -> None:
    why = {"10.5.1.0-24": "its key was deleted", "10.5.2.0-24": "left out: its backend is udp, ours is vxlan"}
    peers = PeerEvents(ring, why.__getitem__, lambda _lease: "")
    one, two, three = lease(1), lease(2), lease(3)
    peers.take({one.key: one})
    peers.take({two.key: two})
    peers.take({one.key: one.depart()})  # its key is gone, and it may come back: nothing has happened yet
    peers.take({one.key: None})
    peers.take({two.key: None, "10.5.9.0-24": None})
    peers.take({three.key: three})
    peers.take({three.key: lease(3, at="192.0.2.33")})
    peers.take({three.key: lease(3, at="192.0.2.33", data={"VNI": 1})})
    moved = lease(4, at="192.0.2.33")
    peers.take({moved.key: moved})
    assert [(event.kind, event.text) for event in ring.read().events] == [
        (STARTED, "peers at the start: 1"),
        (JOINED, "peer 10.5.2.0/24 at 192.0.2.2 joined (vxlan)"),
        (LEFT, "peer 10.5.1.0/24 at 192.0.2.1 left: its key was deleted"),
        (LEFT, "peer 10.5.2.0/24 at 192.0.2.2 left: left out: its backend is udp, ours is vxlan"),
        (JOINED, "peer 10.5.3.0/24 at 192.0.2.3 joined (vxlan)"),
        (MOVED, "peer 10.5.3.0/24 moved: PublicIP 192.0.2.3 -> 192.0.2.33"),
        (MOVED, "peer 10.5.3.0/24 moved: its BackendData is another one"),
        (MOVED, "peer 10.5.4.0/24 at 192.0.2.33 moved: its host had 10.5.3.0/24 before"),
    ]


@given(st.lists(st.dictionaries(st.integers(1, 6), st.none() | st.integers(1, 3), max_size=4), max_size=30))
async def test_who_joined_and_did_not_leave_is_there(changes: list[dict[int, int | None]]) -> None:
    ring, known = Ring(Wall()), dict[str, Lease]()
    peers = PeerEvents(ring, lambda _key: "gone", lambda _lease: "")
    peers.take({})
    for change in changes:
        taken = {lease(number).key: None if at is None else lease(number, f"192.0.2.{at}") for number, at in change.items()}
        peers.take(taken)
        for key, value in taken.items():
            if value is None:
                known.pop(key, None)
            else:
                known[key] = value
    there: set[str] = set()
    for event in ring.read().events[1:]:
        assert (event.kind == LEFT) <= (event.subject in there), "only who is there leaves"
        there = there - {event.subject} if event.kind == LEFT else there | {event.subject}
    assert there == set(known)


# ------------------------------------------------------------------------------------------------------------- the document


def test_the_document_comes_back_as_it_went() -> None:
    whole = Events("life", 7, 3, (Event(7, "2027-01-15T08:00:00.000+00:00", JOINED, "k", 'a "peer" joined'),))
    assert from_json(to_json(whole)) == whole
    assert json.loads(to_json(whole))["schema"] == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"life":"a","last":1,"forgotten":0,"events":[{}]}', '{"events":7}', "\x00"])
def test_what_is_no_document_is_one_line(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        from_json(text)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- the command


class Host:
    """An agent's socket in a loop of its own thread, with a ring behind it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.ring = Ring(Wall())
        self.loop = asyncio.new_event_loop()
        self._up, self._thread = threading.Event(), threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            async with answering(self.run_dir, lambda: YOUNG, self.ring):
                self._up.set()
                await self._stop.wait()

        self.loop.run_until_complete(serve())
        self.loop.close()

    def __enter__(self) -> Host:
        self._thread.start()
        assert self._up.wait(5)
        return self

    def __exit__(self, *_error: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def keep(self, *what: str) -> None:
        self.loop.call_soon_threadsafe(self.ring.keep, *what)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as running:
        yield running


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("TERM", "dumb")
    return Person(monkeypatch, capsys)


def test_the_command_prints_a_line_an_event(person: Person, host: Host) -> None:
    host.ring.keep(JOINED, "k", "peer 10.5.2.0/24 joined\x1b[2J")
    host.ring.keep(CONFIG, "", "the network config changed")
    said = person.types("events", f"--run-dir={host.run_dir}", "--since=1h")
    assert (said.code, said.err) == (0, "")
    assert [line[21:] for line in said.out.splitlines()] == [
        "peer-joined  peer 10.5.2.0/24 joined\\x1b[2J",
        "config       the network config changed",
    ]


def test_json_is_an_object_a_line(person: Person, host: Host) -> None:
    host.ring.keep(JOINED, "k", "one")
    host.ring.keep(LEFT, "k", "two")
    said = person.types("events", f"--run-dir={host.run_dir}", "--json")
    assert [json.loads(line)["text"] for line in said.out.splitlines()] == ["one", "two"]


def test_since_leaves_out_what_is_older(person: Person, host: Host) -> None:
    host.ring.keep(JOINED, "k", "one")
    host.ring._wall_clock.now += 3601  # type: ignore[attr-defined]
    host.ring.keep(LEFT, "k", "two")
    said = person.types("events", f"--run-dir={host.run_dir}", "--since", "1h")
    assert [line[34:] for line in said.out.splitlines()] == ["two"]


@pytest.mark.parametrize("since", ["", "1", "h", "-1h", "1y", "1.5h", "9" * 30 + "s"])
def test_a_wrong_since_is_wrong_usage(person: Person, since: str) -> None:
    with pytest.raises(UsageError):
        command.seconds(since)


@pytest.mark.parametrize(("since", "seconds"), [("30s", 30), ("10m", 600), ("10min", 600), ("1h", 3600), ("2d", 172800)])
def test_lengths_of_time(since: str, seconds: int) -> None:
    assert command.seconds(since) == seconds


def test_no_agent_is_one_line_and_exit_1(person: Person, tmp_path: Path) -> None:
    said = person.types("events", f"--run-dir={tmp_path}", "--follow")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"flannelpy: {tmp_path / SOCKET}: there is no such socket; expected an agent")
    assert said.err.count("\n") == 1


def test_following_prints_what_comes_and_ends_with_ctrl_c(person: Person, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.ring.keep(JOINED, "k", "one")
    printed: list[str] = []
    show = command._print

    def follow(events: tuple[Event, ...], as_json: bool) -> None:
        show(events, as_json)
        printed.extend(event.text for event in events)
        if printed[-1] == "three":
            raise KeyboardInterrupt
        host.keep(LEFT, "k", "two" if printed[-1] == "one" else "three")

    monkeypatch.setattr(command, "_print", follow)
    said = person.types("events", f"--run-dir={host.run_dir}", "--follow")
    assert (said.code, said.err) == (0, "")
    assert printed == ["one", "two", "three"]


def test_following_an_agent_without_events_does_not_ask_again_and_again(
    person: Person, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = command.ask

    def counted(path: Path, page: str, within_s: float | None) -> str:
        asked.append(page)
        if len(asked) == 2:
            host.loop.call_soon_threadsafe(host.loop.call_later, 0.2, host.ring.keep, CONFIG, "", "one")
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(path, page, within_s)

    monkeypatch.setattr(command, "ask", counted)
    said = person.types("events", f"--run-dir={host.run_dir}", "--follow")
    assert (said.code, [line[34:] for line in said.out.splitlines()]) == (0, ["one"])


def test_following_goes_on_with_the_next_agent(person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Host(tmp_path), Host(tmp_path)
    first.ring.keep(CONFIG, "", "one")
    second.ring.keep(CONFIG, "", "of the next life")
    monkeypatch.setattr(command, "AGAIN_S", 0.01)
    printed: list[str] = []

    def follow(events: tuple[Event, ...], as_json: bool) -> None:
        printed.extend(event.text for event in events)
        if printed[-1] == "of the next life":
            raise KeyboardInterrupt
        if printed[-1] == "one":
            first.__exit__()
            second.__enter__()

    monkeypatch.setattr(command, "_print", follow)
    first.__enter__()
    try:
        said = person.types("events", f"--run-dir={tmp_path}", "--follow")
    finally:
        second.__exit__()
    assert said.code == 0
    assert printed == ["one", "of the next life"]
