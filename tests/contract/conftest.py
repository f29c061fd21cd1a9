"""Fixtures of the contract tests: the same tests on a fake and on the real thing."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvloop

from netns_lab.etcd import Etcd

from .kernel_support import FakeHost, Host, RealHost, fresh_namespace, may_unshare, real_only
from .registry_place import EtcdPlace, MemoryPlace, Place

_numbers = itertools.count(1)

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    """uvloop, as the agent runs; FLANNELPY_LOOPS=uvloop,asyncio runs the tests of this directory on both."""
    names = os.environ.get("FLANNELPY_LOOPS", "uvloop").split(",")
    return {name: LOOPS[name] for name in names}


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[Etcd]:
    """One real etcd for the tests that leave it as they found it; each test has a prefix of its own."""
    with Etcd() as etcd:
        yield etcd


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses."""
    return f"/test-{next(_numbers)}/network"


@pytest.fixture(params=["memory", "etcd"])
async def place(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Place]:
    """Where leases live: in memory, and in a real etcd."""
    in_memory = request.param == "memory"
    here: Place = MemoryPlace(prefix) if in_memory else EtcdPlace(request.getfixturevalue("shared_etcd"), prefix)
    yield here
    await here.close()


@pytest.fixture
async def here(shared_etcd: Etcd, prefix: str) -> AsyncIterator[EtcdPlace]:
    """A real etcd, and what is to be known and done behind the registry's back."""
    place = EtcdPlace(shared_etcd, prefix)
    yield place
    await place.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=real_only)])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """A host in memory, and one in a network namespace of its own."""
    if request.param == "fake":
        fake = FakeHost()
        yield fake
        await fake.close()
        return
    with fresh_namespace():
        real = RealHost()
        yield real
        await real.close()


@pytest.fixture
async def real() -> AsyncIterator[RealHost]:
    """The one in a network namespace."""
    if not may_unshare():
        pytest.skip("needs root for a network namespace")
    with fresh_namespace():
        found = RealHost()
        yield found
        await found.close()
