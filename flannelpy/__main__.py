"""``flannelpy`` and ``python -m flannelpy``: the command line, whose imports ctrl-C may interrupt without a traceback."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The console script."""
    try:
        from flannelpy.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
