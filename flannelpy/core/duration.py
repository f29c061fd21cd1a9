"""How is a length of time told to a person?"""

from __future__ import annotations

from math import isinf

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def span(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h``, ``23 h 10 min``, ``for ever``: at most two units, cut off and not rounded up."""
    if isinf(seconds):
        return "for ever"
    rest = max(0, int(seconds))
    for number, (size, unit) in enumerate(_UNITS):
        if rest >= size:
            whole, rest = divmod(rest, size)
            if number + 1 < len(_UNITS) and whole and (finer := rest // _UNITS[number + 1][0]) and unit != "min":
                return f"{whole} {unit} {finer} {_UNITS[number + 1][1]}"
            return f"{whole} {unit}"
    return "0 s"
