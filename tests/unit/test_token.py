"""Does a call keep to its time while others wait for the same token?"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from flannelpy.core.errors import RegistryError
from flannelpy.core.secret import Secret
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import parse_endpoint
from flannelpy.registry.etcd.token import Token
from flannelpy.registry.etcd.wire import CallError, Code
from tests.unit.virtual_time import run


class LateError(CallError):  # type: ignore[misc, valid-type]
    def code(self) -> Any:
        return Code.DEADLINE_EXCEEDED

    def details(self) -> str:
        return "Deadline Exceeded"


class Frozen:
    """A member that takes connections and says nothing."""

    address = parse_endpoint("http://192.0.2.1:2379")

    @property
    def auth(self) -> Frozen:
        return self

    async def Authenticate(self, _request: object, timeout: float) -> None:  # noqa: N802
        await asyncio.sleep(timeout)
        raise LateError


def test_no_call_waits_for_the_tokens_of_all_others() -> None:
    async def scene() -> float:
        token = Token(Endpoint(("http://192.0.2.1:2379",), username="u", password=Secret("p")), lambda: None)
        loop = asyncio.get_running_loop()

        async def ask() -> float:
            began = loop.time()
            with suppress(RegistryError, TimeoutError):
                await token.get(Frozen(), 5.0)  # type: ignore[arg-type]
            return loop.time() - began

        return max(await asyncio.gather(*(ask() for _ in range(50))))

    assert run(scene()) <= 5.5
