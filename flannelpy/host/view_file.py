"""What did the cluster look like when we last saw it? Kept on disk, for a host that boots while etcd is away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from flannelpy.core.errors import FlannelpyError
from flannelpy.core.json_text import decode
from flannelpy.core.model import Lease, LeaseAttrs, parse_subnet_key
from flannelpy.host.files import RefusedError, read_file, set_aside, write_file
from flannelpy.host.state import MODE, NOT_UNDERSTOOD, in_words, text_of

FORMAT = 1
FILE = "cluster.json"
PROMISED = "promised.json"
"""Of the same form, with our lease alone, as it was going to be written."""
LARGEST = 64 << 20
"""Bytes of a view: 10,000 leases take 3 MB."""


@dataclass(frozen=True, slots=True)
class KeptView:
    """The config's text, every lease with its revisions, and which of them is ours, at one revision of one prefix.

    ``former``: the texts of configs before, with another Type that is still in use.
    """

    prefix: str
    config: str
    own_key: str
    leases: tuple[Lease, ...]
    revision: int
    former: tuple[str, ...] = ()

    @property
    def own(self) -> Lease | None:
        """Our lease as it was."""
        return next((lease for lease in self.leases if lease.key == self.own_key), None)


def read(directory: Path, prefix: str, file: str = FILE, *, own_only: bool = False) -> KeptView | None:
    """The view that was kept for ``prefix``; None where there is none. With ``own_only`` it has no lease but ours, and the others
    are not looked at: of thousands that is most of the work.

    Raises FlannelpyError where it is there and is no use; then it is set aside.
    """
    path = directory / file
    try:
        view = parse(read_file(path, LARGEST), own_only=own_only)
    except FileNotFoundError:
        return None
    except RefusedError as error:
        raise FlannelpyError(f"{error}; {set_aside(path)}") from None
    except ValueError as error:
        raise FlannelpyError(f"{path}: expected a view of the cluster ({error!s:.120}); {set_aside(path)}") from None
    return view if view.prefix == prefix else None


def parse(data: bytes, *, own_only: bool = False) -> KeptView:
    """The view that a file's bytes say. Raises ValueError, and nothing else: what is wrong, in one line."""
    try:
        fields: Any = decode(data)
        prefix, config, own = (text_of(fields[name]) for name in ("prefix", "config", "own"))
        rows = fields["leases"]
        former, leases = fields.get("former", []), tuple(_lease(row) for row in rows if not own_only or own in row[:1])
        if not isinstance(former, list):
            raise ValueError(f"{former!r:.40} is no list")
        return KeptView(prefix, config, own, leases, _number(fields["revision"]), tuple(map(text_of, former)))
    except NOT_UNDERSTOOD as error:
        raise ValueError(in_words(error)) from None


def render(view: KeptView) -> str:
    """The file's text: keys and values as they stand in etcd, one lease a line; the first ones, where not all can be read again."""
    head = {"format": FORMAT, "prefix": view.prefix, "config": view.config, "own": view.own_key, "revision": view.revision}
    head |= {"former": list(view.former)} if view.former else {}
    begin, end = json.dumps(head)[:-1] + ', "leases": [\n', "\n]}\n"
    rows, room = list[str](), LARGEST - len(begin) - len(end)
    for lease in view.leases:
        row = json.dumps([lease.key, lease.attrs.to_json(), lease.etcd_lease, lease.create_revision, lease.mod_revision])
        room -= len(row) + len(",\n")
        if room < 0:
            break
        rows.append(row)
    return begin + ",\n".join(rows) + end


def write(directory: Path, view: KeptView, file: str = FILE) -> None:
    """Keep ``view``. Raises FlannelpyError where that cannot be done."""
    write_file(directory / file, render(view), MODE)


def is_there(directory: Path) -> bool:
    """True where a file stands in its place, and nothing else."""
    try:
        return S_ISREG((directory / FILE).lstat().st_mode)
    except OSError:
        return False


def _lease(row: Any) -> Lease:
    if not isinstance(row, list) or len(row) != 5:
        raise ValueError("a lease has five parts")
    key, value, etcd_lease, create_revision, mod_revision = row
    subnet, subnet6 = parse_subnet_key(key)
    return Lease(subnet, LeaseAttrs.from_json(value), subnet6, *map(_number, (etcd_lease, create_revision, mod_revision)))


def _number(value: object) -> int:
    """A revision or a lease id: etcd's are int64, and not negative."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is no number of etcd's")
    return value
