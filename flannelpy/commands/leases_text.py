"""How does a person read the leases? One on a line; on a narrow terminal without what he needs least, and no address is folded."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf

from flannelpy.commands.columns import LEAST, Row, lay_out, used, widest
from flannelpy.commands.leases import Listing, subnets_text
from flannelpy.commands.leases import Row as Held
from flannelpy.core.duration import span
from flannelpy.core.foreign import printable
from flannelpy.core.model import NO_ADDRESS, Lease, compact_json

SHORT = 60
KEY = 40
"""Letters of a key that cannot be read."""
LEAST_DATA, LEAST_NAME = 16, 12
"""What is cut keeps so many columns."""
HERE = "this host"


def text(listing: Listing, width: int, *, colours: bool = False) -> str:
    """The table."""
    anything_wrong = any(row.wrong for row in listing.rows)
    names = ["node" if row.node else "host" for row in listing.rows if row.name][:1]
    heads = [*names, "subnet", "PublicIP", "backend", "data", "lease", "created", "wrong" if anything_wrong else ""]
    rows = [_row(held, named=bool(names)) for held in listing.rows]
    needed = min(LEAST, max((len(row.cells[-1]) for row in rows), default=0)) or -2  # no gap before nothing
    heads, rows = _without(heads, rows, "created") if used(widest(heads, rows)) + needed > width else (heads, rows)
    widths = widest(heads, rows)
    widths, over = _cut(widths, heads.index("data"), LEAST_DATA, used(widths) + needed - width)
    if over > 0:
        heads, rows = _without(heads, rows, "data")
        widths = widest(heads, rows)
        over = used(widths) + needed - width
    if names:
        widths, over = _cut(widths, 0, LEAST_NAME, over)
    rows = [Row(_to_the_right(row.cells, heads, widths), row.colour) for row in rows]
    return "\n".join(lay_out(heads, rows, widths, width, colours=colours))


def _without(heads: Sequence[str], rows: Sequence[Row], column: str) -> tuple[list[str], list[Row]]:
    at = list(heads).index(column)
    return [*heads[:at], *heads[at + 1 :]], [Row([*row.cells[:at], *row.cells[at + 1 :]], row.colour) for row in rows]


def _cut(widths: Sequence[int], at: int, least: int, over: int) -> tuple[list[int], int]:
    """A column that gives up what is too much, as far as it can; and what is still too much."""
    given = min(max(0, over), max(0, widths[at] - least))
    return [*widths[:at], widths[at] - given, *widths[at + 1 :]], over - given


def _to_the_right(cells: Sequence[str], heads: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Numbers stand one below the other."""
    return [cell.rjust(widths[at]) if heads[at] == "created" else cell for at, cell in enumerate(cells)]


def _row(held: Held, *, named: bool) -> Row:
    said = "; ".join(held.wrong)
    if held.ours:
        said = f"{HERE}; {said}" if said else HERE
    cells = [*([held.name] if named else []), *_cells(held), said]
    return Row([printable(cell) for cell in cells], "red" if held.wrong else "green" if held.ours else "")


def _cells(held: Held) -> tuple[str, ...]:
    if not isinstance(held.read, Lease):
        return printable(held.read.key, KEY), "", "", "", "", ""
    attrs = held.read.attrs
    addresses = [str(each) for each in (attrs.public_ip, attrs.public_ipv6) if each is not None and each != NO_ADDRESS]
    waits = held.read.reserved and not attrs.backend_type
    datas = [in_short(data) for data in (attrs.backend_data, attrs.backend_v6_data) if data is not None]
    return (
        subnets_text(held.read),
        " ".join(addresses) or "none",
        attrs.backend_type or ("waits for its host" if waits else "none"),
        " | ".join(dict.fromkeys(datas)),
        _left(held.left_s),
        str(held.read.create_revision),
    )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if isinf(seconds):
        return "reservation"
    return span(seconds) if seconds > 0 else "gone"


def in_short(data: object) -> str:
    """A backend's data on a few centimetres: ``VNI 1, aa:bb:cc:dd:ee:ff``."""
    if isinstance(data, dict):
        parts = [_flat(value) if str(name).endswith("MAC") else f"{name} {_flat(value)}" for name, value in data.items()]
        said = ", ".join(parts)
    else:
        said = _flat(data)
    return said if len(said) <= SHORT else said[: SHORT - 3] + "..."


def _flat(value: object) -> str:
    return value if isinstance(value, str) else compact_json(value)
