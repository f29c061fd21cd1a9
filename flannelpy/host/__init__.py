"""What do others on this host read from us, and what of theirs do we look at? Files, Docker, machine-id; see ``files``."""

from __future__ import annotations

from flannelpy.host.files import write_file as write_whole

__all__ = ["write_whole"]
