"""What may nobody see? A password or a key: a value that shows itself only to who asks for it by name.

Options of a backend are secret where their name says so, or where the backend marks them (``Backend.secrets``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from typing import Any, Generic, NoReturn, TypeVar

T = TypeVar("T")

HIDDEN = "(not shown)"
"""What stands in a secret's place wherever a person or a program reads."""

_NAMES = re.compile("psk|pass|secret|token|key", re.IGNORECASE)
"""Names of options, of a backend of ours or not, whose values are nobody's business."""


class Secret(Generic[T]):
    """A value that no log, traceback, ``repr`` or JSON shows; ``reveal`` is the one way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """The value itself."""
        return self._value

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    def __bool__(self) -> bool:
        """Whether there is something to hide."""
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and bool(self._value == other._value)

    def __hash__(self) -> int:
        return hash(type(self))  # all alike: a hash is handed on, and tells a guesser whether he was right

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written to a file")


def is_secret(name: str, marked: Container[str] = ()) -> bool:
    """Whether an option's value is to be hidden, by its name or by ``marked`` (lower-case names)."""
    return name.lower() in marked or bool(_NAMES.search(name))


def hide(options: Mapping[str, Any], marked: Container[str] = ()) -> dict[str, Any]:
    """The options with a ``Secret`` in the place of each secret one, at any depth."""
    return {
        name: value if isinstance(value, Secret) else Secret(value) if is_secret(name, marked) else _inside(value, hide, marked)
        for name, value in options.items()
    }


def reveal(options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``hide`` was given."""
    return {name: value.reveal() if isinstance(value, Secret) else _inside(value, reveal) for name, value in options.items()}


def shown(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for somebody to read: ``HIDDEN`` in the place of each secret."""
    return {name: HIDDEN if isinstance(value, Secret) else _inside(value, shown) for name, value in options.items()}


def _inside(value: Any, change: Callable[..., dict[str, Any]], *more: object) -> Any:
    """The value with each object in it changed, also those in lists."""
    if isinstance(value, Mapping):
        return change(value, *more)
    return [_inside(each, change, *more) for each in value] if isinstance(value, list) else value
