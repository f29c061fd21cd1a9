"""What does a network config mean, and would it work? For ``flannelpy config``: before it is in etcd, not after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flannelpy.core.backend import Backend
from flannelpy.core.backend_options import in_force
from flannelpy.core.config import NetworkConfig, differences
from flannelpy.core.errors import ConfigError
from flannelpy.core.foreign import printable
from flannelpy.core.json_text import decode
from flannelpy.core.secret import Secret, hide, shown
from flannelpy.explain.redact import redact
from flannelpy.plugins import PREFER, parse, tables

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Examined:
    """A config that would work, and what is worth knowing about it."""

    config: NetworkConfig
    backend: Backend
    warnings: tuple[str, ...]


def examine(text: str) -> Examined:
    """Validate the config and its backend's options. Raises ConfigError: which key, what it holds, what was expected."""
    config, backend = parse(text)
    warnings = []
    if not config.backend_given:
        warnings.append(f'no Backend: {backend.name} is taken, as flannel does; "Backend": {{"Type": "vxlan"}} would be faster')
    return Examined(config, backend, (*warnings, *_unknown(config, backend)))


def _unknown(config: NetworkConfig, backend: Backend) -> Iterator[str]:
    """Of keys that nobody has an option for: a slip of the pen is passed over, as by flannel, but not without a word."""
    names = [option.name for option in tables(config, backend)]
    known = {name.lower() for name in ("Type", PREFER, *names)}
    for key in config.backend_options if backend.options else ():
        if key.lower() not in known:
            yield f"Backend.{printable(key, 40)}: passed over, {backend.name} has no such option; it has {', '.join(names)}"


def known(text: str | None) -> Examined | None:
    """The same for a text that may be none, or cannot be used: None."""
    try:
        return None if text is None else examine(text)
    except ConfigError:
        return None


def table(examined: Examined) -> Table:
    """The config as derived, for people."""
    from rich.table import Table

    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column()
    for name, value in _rows(examined):
        shown.add_row(name, value)
    return shown


def changes(before: str | None, after: str) -> list[str]:
    """What a new text changes, a line a key, as derived; where a text cannot be read, only that it is replaced."""
    if before is None:
        return ["the config is new"]
    try:
        old, new = _parsed(before), _parsed(after)
    except ConfigError:
        return [f"replaced: {printable(without_secrets(before), 200)}"]
    return differences(old, new) or ["only the text: it means the same as before"]


def _parsed(text: str) -> NetworkConfig:
    """With what its backend marks as secret hidden, where it can be asked. Raises ConfigError."""
    examined = known(text)
    return NetworkConfig.parse(text) if examined is None else examined.config


def without_secrets(text: str) -> str:
    """A config's text for somebody to read, whether it can be used or not: on one line, without its secrets."""
    try:
        value = decode(text)
    except ValueError:
        return redact(text.strip())
    examined = known(text)
    options = {} if examined is None else examined.config.backend_options
    marked = {name.lower() for name, held in options.items() if isinstance(held, Secret)}
    return json.dumps(shown(hide({"": value}, marked))[""])


def _rows(examined: Examined) -> Iterator[tuple[str, str]]:
    config, backend = examined.config, examined.backend
    for pool in (config.v4, config.v6):
        if pool is not None:
            version = pool.network.version
            yield f"IPv{version} network", str(pool.network)
            yield "  subnets", f"{pool.count:,} of /{pool.length}, {pool.first} to {pool.last}"
            yield "  addresses in each", f"{pool.size:,}"
    yield "backend", backend.name + (f" {json.dumps(shown(config.backend_options))}" if config.backend_options else "")
    for option, value, said in in_force(tables(config, backend), config.backend_options):
        yield f"  {option.name}", value if said else f"{value or 'none'} (default)"
    overhead = max(backend.overhead(version) for version in config.families)
    yield "MTU", f"{1500 - overhead} where the link has 1500 ({overhead} bytes of encapsulation)"
