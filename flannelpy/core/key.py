"""What is an object of the kernel known by?"""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """Identity of an object in the kernel: its kind (the noun of its command) and the rest as text."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"
