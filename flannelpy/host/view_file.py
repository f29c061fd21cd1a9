"""What did the cluster look like when we last saw it? Kept on disk, for a host that boots while etcd is away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key
from flannelpy.host import write_whole

FORMAT = 1
FILE = "cluster.json"


@dataclass(frozen=True, slots=True)
class KeptView:
    """The config's text, every lease with its revisions, and which of them is ours, at one revision of one prefix."""

    prefix: str
    config: str
    own_key: str
    leases: tuple[Lease, ...]
    revision: int

    @property
    def own(self) -> Lease | None:
        """Our lease as it was."""
        return next((lease for lease in self.leases if lease.key == self.own_key), None)


def read(directory: Path, prefix: str) -> KeptView | None:
    """The view that was kept for ``prefix``; None where there is none. Raises FlannelpyError where it cannot be read."""
    path = directory / FILE
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
        if fields["prefix"] != prefix:
            return None
        return KeptView(
            prefix, str(fields["config"]), str(fields["own"]), tuple(map(_lease, fields["leases"])), int(fields["revision"])
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FlannelpyError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, MalformedError):
        raise FlannelpyError(f"{path}: expected a view of format {FORMAT}; it is passed over") from None


def render(view: KeptView) -> str:
    """The file's text: keys and values as they stand in etcd, one lease a line."""
    head = {"format": FORMAT, "prefix": view.prefix, "config": view.config, "own": view.own_key, "revision": view.revision}
    rows = (
        json.dumps([lease.key, lease.attrs.to_json(), lease.etcd_lease, lease.create_revision, lease.mod_revision])
        for lease in view.leases
    )
    return json.dumps(head)[:-1] + ', "leases": [\n' + ",\n".join(rows) + "\n]}\n"


def write(directory: Path, view: KeptView) -> None:
    """Keep ``view``. Raises FlannelpyError where that cannot be done."""
    write_whole(directory / FILE, render(view))


def _lease(row: Any) -> Lease:
    key, value, etcd_lease, create_revision, mod_revision = row
    subnet, subnet6 = parse_subnet_key(key)
    return Lease(subnet, LeaseAttrs.from_json(value), subnet6, int(etcd_lease), int(create_revision), int(mod_revision))
