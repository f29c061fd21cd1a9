"""What does ctrl-C do to a command of the lab? What it does at a terminal, also in a job that a script put in the background."""

from __future__ import annotations

import signal


def heed() -> None:
    """Have SIGINT raise KeyboardInterrupt. A shell without job control lets its background jobs ignore it, and their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
