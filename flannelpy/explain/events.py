"""What has happened to this agent? The document behind ``flannelpy events``: values, and their JSON, in and out.

The agent makes it (``agent.events``), the command reads it. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from flannelpy.core.errors import MalformedError
from flannelpy.explain import places

PAGE = places.EVENTS
"""Its path on the agent's socket. Query: ``since`` (seconds back); ``life`` and ``after`` (only what is newer than that number
of that life), and with them ``wait`` (seconds, for something that is).
"""
SCHEMA = 1

JOINED, LEFT, MOVED = "peer-joined", "peer-left", "peer-moved"
BEGAN, RESOLVED, REPAIRED = "condition", "resolved", "repaired"
LEASE, UPLINK, CONFIG, STARTED = "lease", "uplink", "config", "started"
KINDS = (JOINED, LEFT, MOVED, BEGAN, RESOLVED, REPAIRED, LEASE, UPLINK, CONFIG, STARTED)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once. ``number``: from 1 on in each life; ``subject``: a lease's key, a condition's code; ``name``:
    what the peer that it is about calls itself, empty where it has not said.
    """

    number: int
    at: str
    kind: str
    subject: str
    text: str
    name: str = ""

    @property
    def told(self) -> str:
        """As a person reads it: the name behind the addresses, for anybody may call himself so."""
        return f"{self.text} [{self.name}]" if self.name else self.text


@dataclass(frozen=True, slots=True)
class Events:
    """Some of them, the oldest first. ``last``: the number of the newest there is; ``life``: another one after a restart.

    ``forgotten``: how many there have been that the agent does not hold any more.
    """

    life: str
    last: int
    forgotten: int
    events: tuple[Event, ...]


def to_json(events: Events) -> str:
    """On one line."""
    return json.dumps({"schema": SCHEMA, **asdict(events)}, separators=(",", ":"))


def from_json(text: str | bytes) -> Events:
    """The inverse; names that are not known are passed over. Raises MalformedError."""
    try:
        value = json.loads(text)
        found = tuple(_event(each) for each in _list(value["events"]))
        return Events(_as(str, value["life"]), _as(int, value["last"]), _as(int, value["forgotten"]), found)
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"not a list of events: {error}") from None


def to_lines(events: Iterable[Event]) -> str:
    """For programs: an object a line."""
    return "".join(json.dumps(asdict(event), separators=(",", ":")) + "\n" for event in events)


def _event(value: Any) -> Event:
    at, kind, subject, text = (_as(str, value[name]) for name in ("at", "kind", "subject", "text"))
    return Event(_as(int, value["number"]), at, kind, subject, text, _as(str, value.get("name", "")))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("events are no list")
    return value


def _as(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{json.dumps(value)[:40]}: expected {'text' if kind is str else 'a whole number'}")
    return value
