"""What did gRPC mean? Its text on a failure without its layers, in an operator's words: ``connection refused``."""

from __future__ import annotations

import re

_LAYER = re.compile(r"^(?:[A-Z_]{2,}: |ipv[46]:\S+: |ipv6:\S+: |dns:\S+: |\w+ \w+ failed: )")
"""A status in capitals, or the address that we name better ourselves."""

_MEANT = (
    ("connection refused", "connection refused"),
    ("network is unreachable", "network is unreachable"),
    ("no route to host", "no route to host"),
    ("host is down", "no route to host"),
    ("operation not permitted", "this host's firewall forbids it"),
    ("name or service not known", "its name is not known"),
    ("no address associated", "its name has no address"),
    ("temporary failure in name resolution", "its name cannot be looked up now"),
    ("lookup error", "its name cannot be looked up"),
    ("dns resolution failed", "its name cannot be looked up"),
    ("socket closed", "the connection was closed"),
    ("reset by peer", "the connection was closed"),
    ("broken pipe", "the connection was closed"),
    ("stream removed", "the connection was closed"),
    ("unwrap failed", "the connection was closed"),
    ("rst_stream", "the connection was closed"),
    ("goaway", "the connection was closed"),
    ("received http2 header with status", "it answers in HTTP, not as etcd"),
    ("trying to connect an http1.x server", "it answers in HTTP, not as etcd"),
    ("timed out", "no answer"),
    ("timeout", "no answer"),
    ("deadline", "no answer"),
)
"""What stands in gRPC's text, in small letters, and what it means; the first that fits."""


def plain(details: str) -> str:
    """One line. What etcd itself says stays as it is, without the name in front."""
    if "etcdserver:" in details:
        return _one_line(details.rpartition("etcdserver:")[2])
    text = details.rpartition("last error: ")[2]
    small = text.lower()
    for found, meant in _MEANT:
        if found in small:
            return meant
    while (layer := _LAYER.match(text)) is not None:
        text = text[layer.end() :]
    return _one_line(text.removesuffix(": OK"))


def _one_line(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(shown.split())[:200]
