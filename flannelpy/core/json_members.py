"""What does a JSON object say? Its members by any letter case, typed, with errors that say what was expected.

encoding/json's rule, which flannel lives by: names match in any case, and of two spellings of one name the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flannelpy.core.errors import ConfigError
from flannelpy.core.secret import HIDDEN, is_secret


class Members:
    """A decoded JSON object. ``where`` leads each name in an error (``Backend.`` for the options of a backend).

    The values of ``secrets``, and of what is secret by its name, are in no error.
    """

    def __init__(self, members: Mapping[str, Any], where: str = "", secrets: Iterable[str] = ()) -> None:
        self._members = members
        self._where = where
        self._secrets = frozenset(name.lower() for name in secrets)
        self._folded = {key.lower(): key for key in members}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._folded

    def __getitem__(self, name: str) -> Any:
        return self._members[self._folded[name.lower()]]

    def boolean(self, name: str, default: bool) -> bool:
        """``default`` where it is absent or null."""
        value = self[name] if name in self else None
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def unsigned(self, name: str, default: int = 0, least: int = 0, most: int = 2**32 - 1) -> int:
        """A whole number from ``least`` to ``most``; ``default`` where it is absent or null."""
        value = self[name] if name in self else None
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(name, f"a whole number, {least} to {most}" if most < 2**32 - 1 else f"a whole number, {least} or more")
        return value

    def text(self, name: str) -> str | None:
        """None where it is absent; null is an error."""
        if name not in self:
            return None
        value = self[name]
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def wrong(self, name: str, expected: str) -> ConfigError:
        """The error to raise for a member that is there and cannot be used."""
        shown = HIDDEN if is_secret(name, self._secrets) else json.dumps(self[name], ensure_ascii=True)
        return ConfigError(f"{self._where}{name} {shown if len(shown) <= 60 else shown[:57] + '...'}: expected {expected}")
