"""How does a command ask etcd? It connects, asks one thing, and closes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from flannelpy.options import Given
from flannelpy.settings import load_endpoint

if TYPE_CHECKING:
    from flannelpy.registry import Registry

Answer = TypeVar("Answer")


def with_registry(given: Given, ask: Callable[[Registry], Awaitable[Answer]]) -> Answer:
    """What ``ask`` returns. Raises UsageError for wrong options, RegistryError."""
    endpoint = load_endpoint(given, os.environ)

    import uvloop

    from flannelpy.registry.etcd.registry import EtcdRegistry

    async def conversation() -> Answer:
        registry = EtcdRegistry(endpoint)
        try:
            return await ask(registry)
        finally:
            await registry.close()

    return uvloop.run(conversation())


def config_key(given: Given) -> str:
    """Where the network config is in etcd."""
    return f"{load_endpoint(given, os.environ).prefix}/config"
