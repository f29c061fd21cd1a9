"""Does a connection attempt that was given up stay given up? gRPC keeps a closed channel alive as long as anything names it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

from flannelpy.core.errors import RegistryError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import parse_endpoint
from flannelpy.registry.etcd.wire import Wire
from flannelpy.registry.etcd.words import explain


async def test_a_channel_that_failed_and_was_closed_never_connects() -> None:
    """Its error is kept, as a condition's may be; then something listens there."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        address, endpoint = parse_endpoint(url), Endpoint((url,))

        async def attempt() -> RegistryError:
            wire = Wire.open(address, endpoint)
            try:
                why_not = await wire.stand()
                assert why_not is not None
                return await explain(why_not, address, endpoint)
            finally:
                await wire.close()
                await wire.close()

        kept = await asyncio.gather(*(attempt() for _ in range(5)))
        listener.listen()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(3.0):  # it would be there after 0.2 s: gRPC's backoff
                connection, _ = await loop.sock_accept(listener)
        except TimeoutError:
            connection = None
        assert connection is None
        assert all("refused" in str(error) for error in kept)
