"""``python -m flannelpy`` is ``flannelpy``."""

from flannelpy.cli import main

if __name__ == "__main__":
    main()
