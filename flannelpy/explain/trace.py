"""What happens to a packet, hop by hop? The document behind ``flannelpy trace``, and the sentence that sums it up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from flannelpy.core.trace import Hop, Journey

SCHEMA = 1
"""Grows when a name in the document goes, or means something else."""

WELL, UNKNOWN, FAULT = 0, 1, 3
"""Exit codes: it gets through; that could not be found out; something stops it, or all large packets."""

_CODES = {"passes": WELL, "unknown": UNKNOWN, "large": FAULT, "stopped": FAULT}


def exit_code(journey: Journey, live: bool | None = None) -> int:
    """By what becomes of the packet. ``live``: whether real ones were answered; None where none were sent."""
    code = _CODES[journey.outcome]
    return code if live is None or code == FAULT else WELL if live else max(code, UNKNOWN)


def verdict(journey: Journey) -> str:
    """In a sentence."""
    stop = journey.stop
    if journey.outcome == "passes":
        return f"gets through: {journey.source} to {journey.destination} and back"
    if journey.outcome == "unknown":
        unknown = next(hop for hop in journey.hops if hop.state == "unknown")
        return f"cannot be told: {unknown.name}: {unknown.said}"
    assert stop is not None
    return f"{'stopped' if journey.outcome == 'stopped' else 'large packets are stopped'} at {stop.name}: {stop.said}"


def to_json(journey: Journey, version: str, live: Mapping[str, object] | None = None) -> str:
    """Indented; ``exitCode`` is what the command ends with. ``live``: what real packets met, where such were sent."""
    stop = journey.stop
    answered = None if live is None else live.get("answered") is True
    document = {
        "schema": SCHEMA,
        "version": version,
        "exitCode": exit_code(journey, answered),
        "source": str(journey.source),
        "destination": str(journey.destination),
        "peer": journey.peer or None,
        "outcome": journey.outcome,
        "verdict": verdict(journey),
        "stoppedBy": None if stop is None else stop.name,
        "remedy": None if stop is None else stop.remedy,
        "hops": [_hop(hop) for hop in journey.hops],
        **({} if live is None else {"live": live}),
    }
    return json.dumps(document, indent=2)


def _hop(hop: Hop) -> dict[str, object]:
    return {name: held for name, held in asdict(hop).items() if name != "shared"}
