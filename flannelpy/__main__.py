"""``flannelpy`` and ``python -m flannelpy``: the command line, whose imports ctrl-C may interrupt without a traceback."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """The console script."""
    try:
        open_streams()
        from flannelpy.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


def open_streams() -> None:
    """Where stdin, stdout or stderr is closed (``>&-``), what is written goes nowhere.

    Else the next file that is opened would have its number: what is printed would go into it, and libuv ends the process
    (SIGABRT) when it closes a file with a number below three.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
