"""How does a command ask the registry? It connects, asks one thing, and closes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from flannelpy.core.errors import FlannelpyError, UsageError
from flannelpy.options import Given
from flannelpy.registry.kube.access import EXTRA, Access
from flannelpy.settings import load_endpoint, load_kube

if TYPE_CHECKING:
    from flannelpy.registry import Endpoint, Registry

Answer = TypeVar("Answer")


def opened(endpoint: Endpoint, kube: Access | None) -> Registry:
    """The registry behind these: Kubernetes' nodes, or etcd. Raises UsageError."""
    if kube is None:
        from flannelpy.registry.etcd.registry import EtcdRegistry  # 0.1 s, for nothing where leases are in Kubernetes

        return EtcdRegistry(endpoint)
    try:
        from flannelpy.registry.kube.registry import KubeRegistry
    except ModuleNotFoundError as error:
        raise UsageError(f"--kube-subnet-mgr needs {error.name}: {EXTRA}") from None
    return KubeRegistry(kube)


def with_registry(given: Given, ask: Callable[[Registry], Awaitable[Answer]]) -> Answer:
    """What ``ask`` returns. Raises UsageError for wrong options, RegistryError."""
    kube = load_kube(given, os.environ)
    endpoint = load_endpoint({} if kube else given, {} if kube else os.environ)

    import uvloop

    async def conversation() -> Answer:
        registry = opened(endpoint, kube)
        try:
            return await ask(registry)
        finally:
            await registry.close()

    return uvloop.run(conversation())


def config_key(given: Given) -> str:
    """Where the network config is: a key of etcd, or a file."""
    kube = load_kube(given, os.environ)
    return str(kube.net_config) if kube else f"{load_endpoint(given, os.environ).prefix}/config"


def demand_etcd(given: Given, what: str, instead: str) -> None:
    """Raises FlannelpyError where leases are Kubernetes' nodes: ``what`` is not ours to do there, ``instead`` does it."""
    if load_kube(given, os.environ) is not None:
        raise FlannelpyError(f"{what}; nothing was written: {instead}")
