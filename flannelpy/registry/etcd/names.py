"""Where is the host of an endpoint? Its address, where it is one; else what the resolver says of the name."""

from __future__ import annotations

import asyncio
import socket

from netaddr import AddrFormatError, IPAddress

RESOLVE_S = 0.5
"""How long a name is waited for."""


async def resolve(host: str) -> frozenset[IPAddress]:
    """The addresses of a host; empty where it is a name that nobody resolves in time."""
    try:
        return frozenset({IPAddress(host)})
    except (AddrFormatError, ValueError):
        pass
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return frozenset()
    return frozenset(IPAddress(str(address[0]).partition("%")[0]) for _family, _kind, _proto, _name, address in found)
