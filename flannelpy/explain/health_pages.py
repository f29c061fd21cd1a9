"""Does the agent live, and is it ready? The pages that load balancers and orchestrators ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flannelpy.core.foreign import LINE, printable
from flannelpy.explain.http import TEXT, Page

REASONS = 50
"""Lines of reasons on a page."""
STANDS_STILL_S = 30.0
"""An agent whose reconciler has not turned for so long does not live."""


def _nothing() -> Sequence[str]:
    return ()


def _just_now() -> float:
    return 0.0


def health_pages(
    ready: Callable[[], bool],
    why_not: Callable[[], Sequence[str]] = _nothing,
    wrong: Callable[[], Sequence[str]] = _nothing,
    silent_s: Callable[[], float] = _just_now,
) -> dict[str, Callable[[], Page]]:
    """``/healthz`` is 200 while we run; ``/readyz`` is 200 while ``ready()``, else 503 (flannel-compat 11.1).

    The body gives the reasons, one a line: ``why_not`` where it is not ready, ``wrong`` where it is all the same. ``silent_s``: how
    long the reconciler has not turned; beyond STANDS_STILL_S ``/healthz`` is 503, too.
    """

    def healthz() -> Page:
        silent = silent_s()
        if silent > STANDS_STILL_S:
            return 503, TEXT, f"the reconciler has not turned for {silent:.0f} s\n"
        return 200, TEXT, "flannelpy is running\n"

    def readyz() -> Page:
        if ready():
            return 200, TEXT, _lines("flannelpy is ready", wrong())
        return 503, TEXT, _lines("flannelpy is not ready yet", why_not())

    return {"/healthz": healthz, "/readyz": readyz}


def _lines(first: str, more: Sequence[str]) -> str:
    return "".join(f"{printable(line, LINE)}\n" for line in (first, *more[:REASONS]))
