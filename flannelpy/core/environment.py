"""What may another program know of our environment? What it needs to run, and no secret: a password may stand in ours."""

from __future__ import annotations

from collections.abc import Mapping

NEEDED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""How a program is found, and its libraries; and how it writes."""

PYTHON = ("PYTHONPATH", "PYTHONHOME")
"""The same for what a Python imports."""


def bare(environment: Mapping[str, str], *more: str, **instead: str) -> dict[str, str]:
    """What is NEEDED out of ``environment``, and ``more`` of it by name, with ``instead`` over it."""
    return {name: environment[name] for name in (*NEEDED, *more) if name in environment} | instead
