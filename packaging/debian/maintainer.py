"""Who answers for a package? Whoever builds it, by debchange(1)'s variables. Else nobody, and no mail arrives (RFC 2606)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

NOBODY, NOWHERE = "unofficial build", "nobody@flannelpy.invalid"


def maintainer(environ: Mapping[str, str] = os.environ) -> str:
    """``Name <address>``, as a control file has it (Debian Policy 5.6.2).

    DEBEMAIL is an address, or itself of that form; DEBFULLNAME is the name, also over one that DEBEMAIL has. What is empty is not
    set. Raises SystemExit with one line where they are nothing of the kind.
    """
    name, address = (" ".join(environ.get(key, "").split()) for key in ("DEBFULLNAME", "DEBEMAIL"))
    if both := re.fullmatch(r"([^<>]*) ?<([^<>]*)>", address):
        name, address = name or both[1].strip(), both[2].strip()
    if address and not re.fullmatch(r"[^<>@\s]+@[^<>@\s]+", address):
        raise SystemExit(f"DEBEMAIL {environ['DEBEMAIL']!r}: expected an address, or Name <address>")
    if re.search(r"[<>]", name):
        raise SystemExit(f"DEBFULLNAME {environ['DEBFULLNAME']!r}: expected a name without < and >")
    return f"{name or NOBODY} <{address or NOWHERE}>"
