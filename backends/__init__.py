"""The backends that come with flannelpy, found by entry point (group ``flannelpy.backends``), never imported by name."""
