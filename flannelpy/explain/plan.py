"""What would the agent change now? The document on its socket, for ``flannelpy plan``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flannelpy.core.errors import MalformedError
from flannelpy.explain import places

PAGE = places.PLAN
SCHEMA = 1
"""Grows when a name in the document goes, or means something else."""


@dataclass(frozen=True, slots=True)
class Planned:
    """``steps`` as an operator would type them, in order; ``notes``: what a person should know of them."""

    steps: tuple[str, ...]
    notes: tuple[str, ...] = ()


def to_json(planned: Planned) -> str:
    """The document."""
    return json.dumps({"schema": SCHEMA, "steps": planned.steps, "notes": planned.notes})


def from_json(text: str) -> Planned:
    """Raises MalformedError."""
    try:
        fields: Any = json.loads(text)
        return Planned(_texts(fields["steps"]), _texts(fields["notes"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MalformedError("expected the agent's plan as JSON") from None


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ValueError
    return tuple(str(each) for each in values)
