"""What do many hosts cost etcd that do nothing but watch? Streams as an agent's, of which nothing is read but the number of events.

python -m netns_lab.watchers URL --watchers 300         says "watching" when all are there, and how many events came at SIGTERM
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from flannelpy.registry.etcd.loader import load
from flannelpy.registry.etcd.records import Keys

CHANNELS = 20
"""Connections that the streams share: etcd counts streams, and one process has few descriptors."""


async def watch(url: str, prefix: str, count: int) -> int:
    """So many streams until SIGTERM; the events that came by all of them. Raises AioRpcError."""
    rpc = load()
    import grpc.aio  # after load, which sets gRPC's environment

    keys, ended, events = Keys.under(prefix), asyncio.Event(), 0
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20))
    channels = [grpc.aio.insecure_channel(url.removeprefix("http://"), options=options) for _ in range(min(count, CHANNELS))]
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=keys.subnets, range_end=keys.end))

    async def follow(stream: grpc.aio.StreamStreamCall) -> None:
        nonlocal events
        while (answer := await stream.read()) is not grpc.aio.EOF:
            events += len(answer.events)

    streams = [rpc.WatchStub(channels[number % len(channels)]).Watch() for number in range(count)]
    for stream in streams:
        await stream.write(create)
    for stream in streams:
        await stream.read()  # "created"
    tasks = [asyncio.create_task(follow(stream)) for stream in streams]
    print("watching", flush=True)
    await ended.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for channel in channels:
        await channel.close()
    return events


def main(words: Sequence[str] | None = None) -> int:
    """0, and how many events came."""
    parser = argparse.ArgumentParser(prog="watchers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="etcd's client URL")
    parser.add_argument("--prefix", default="/coreos.com/network")
    parser.add_argument("--watchers", type=int, default=300)
    given = parser.parse_args(words)
    print(asyncio.run(watch(given.url, given.prefix, given.watchers)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
