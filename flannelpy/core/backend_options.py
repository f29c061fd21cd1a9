"""Which options does a backend have? A table, by which they are read and refused, and shown by ``config check``, help and docs.

A backend names its table as ``options``; keys of the ``Backend`` object that are in no table are passed over, as flannel does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flannelpy.core.json_members import Members
from flannelpy.core.secret import HIDDEN, Secret, is_secret

Given = Mapping[str, Any]
"""What each option of a table has, by its name."""


@dataclass(frozen=True, slots=True)
class Option:
    """One key of the ``Backend`` object, in any letter case.

    What it may hold follows from ``default``: true or false; a whole number from ``least`` to ``most``; one of ``words``; else a
    text, of which ``parse`` makes a value (ValueError: what was expected). ``zero``: 0, or an empty text, is the default, too.
    ``usual``: the default in words. ``flag``: the host's own option that wins over it.
    """

    name: str
    default: bool | int | str | None
    help: str
    most: int = 65_535
    least: int = 0
    words: tuple[str, ...] = ()
    zero: bool = False
    parse: Callable[[str], Any] | None = None
    secret: bool = False
    usual: str = ""
    flag: str = ""

    def read(self, members: Members) -> Any:
        """The value that counts. Raises ConfigError."""
        if isinstance(self.default, bool):
            return members.boolean(self.name, self.default)
        if isinstance(self.default, int):
            value = members.unsigned(self.name, self.default, self.least, self.most)
            return self.default if self.zero and not value else value
        if self.words:
            return self._word(members)
        text = members.text(self.name)
        if not text:
            return self.default
        try:
            return text if self.parse is None else self.parse(text)
        except ValueError as error:
            raise members.wrong(self.name, str(error).removeprefix("expected ")) from None

    def _word(self, members: Members) -> str | None:
        given = members[self.name] if self.name in members else None
        if given is None or (self.zero and given == ""):
            return self.default if isinstance(self.default, str) else None
        for word in self.words:
            if given == word:
                return word
        raise members.wrong(self.name, f"{', '.join(self.words[:-1])} or {self.words[-1]}")

    @property
    def range(self) -> str:
        """What it may hold, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, int):
            return f"{self.least} to {self.most}"
        return ", ".join(self.words) or "text"

    @property
    def default_text(self) -> str:
        """The default as it would stand in JSON, or in words; empty where there is none."""
        if self.usual or self.default is None:
            return self.usual
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        return f'"{self.default}"' if isinstance(self.default, str) else str(self.default)

    @property
    def in_words(self) -> str:
        """What it means, what it may hold, and who wins over it, without markup."""
        plain = re.sub(r",? \[see below\]\(\S+\)|[`*]", "", self.help)
        host = f"; {self.flag} on a host wins over it" if self.flag else ""
        default = f"; default: {self.default_text}" if self.default_text else ""
        return f"{plain} ({self.range}){default}{host}"


def read(table: Iterable[Option], options: Mapping[str, Any]) -> Given:
    """What counts for each row of ``table``, by its name. Raises ConfigError with what is wrong and what was expected."""
    table = tuple(table)
    members = Members(options, "Backend.", secrets(table))
    return {option.name: option.read(members) for option in table}


def secrets(table: Iterable[Option]) -> tuple[str, ...]:
    """The names whose values nobody may see."""
    return tuple(option.name for option in table if option.secret)


def in_force(table: Sequence[Option], options: Mapping[str, Any]) -> list[tuple[Option, str, bool]]:
    """Each row with what counts, as JSON or in words, and whether that is said in ``options``, which ``read`` has taken."""
    members, found = Members(options, "Backend.", secrets(table)), list[tuple[Option, str, bool]]()
    hidden = {name.lower() for name in secrets(table)}
    for option in table:
        value = members[option.name] if option.name in members else None
        said = value is not None and not (option.zero and value in (0, ""))
        shown = option.default_text
        if said:
            shown = HIDDEN if isinstance(value, Secret) or is_secret(option.name, hidden) else json.dumps(value)
        found.append((option, shown, said))
    return found
