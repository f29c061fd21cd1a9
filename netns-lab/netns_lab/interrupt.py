"""Does ctrl-C end us? Also where whoever started us ignores it, as a shell does for what it runs in the background."""

from __future__ import annotations

import signal
import threading


def heed_interrupts() -> None:
    """Take SIGINT as a terminal's; call it first. A shell without job control starts ``command &`` with it ignored (sh(1))."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
