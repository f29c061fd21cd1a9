"""What can somebody write into etcd who means harm, or whose script runs away? Keys and values without end, below flannel's prefix.

    python -m netns_lab.flood URL flap --keys 10000 --seconds 20
    python -m netns_lab.flood URL strays --keys 100000
    python -m netns_lab.flood URL backlog --megabytes 100
    python -m netns_lab.flood URL junk --megabytes 100
    python -m netns_lab.flood URL names --megabytes 100
    python -m netns_lab.flood URL config --keys 1000

``flap``: leases that come and go; ``strays``: keys that are no leases; ``backlog``: one key, written again and again; ``junk``:
keys with large values; ``names``: keys with large names; ``config``: the network config, broken and mended again and again, for
as many times. What it wrote stays, but for ``flap``'s.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from netaddr import IPAddress

from flannelpy.registry.etcd.loader import load
from flannelpy.registry.etcd.records import Keys

AT_ONCE = 100
"""Operations in one transaction; etcd takes up to 128."""
VALUE_BYTES = 1_400_000
"""Just below what etcd takes in one request (1.5 MiB)."""
DEADLINE_S = 120.0
TRIES = 20
MB = 1_000_000

rpc: Any = load()


def _put(key: bytes, value: bytes) -> Any:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value))


def _delete(first: bytes, end: bytes = b"") -> Any:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=first, range_end=end))


Turns = Iterator[Sequence[Any]]
"""Operations, those of one transaction at a time."""


def _together(operations: Iterator[Any]) -> Turns:
    turn: list[Any] = []
    for each in operations:
        turn.append(each)
        if len(turn) == AT_ONCE:
            yield turn
            turn = []
    if turn:
        yield turn


def flap(keys: Keys, given: argparse.Namespace) -> Turns:
    """Leases of /28 from ``--first`` on, all written, all deleted, until the time is over."""
    first = int(IPAddress(given.first))
    value = '{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:%s"}}'
    until, life = time.monotonic() + given.seconds, 0
    while time.monotonic() < until:
        for number in range(given.keys):
            life += 1
            mac = (life & 0xFFFFFFFFFF).to_bytes(5, "big").hex(":")
            text = value % (IPAddress(int(IPAddress("172.24.0.1")) + number), mac)
            yield [_put(keys.lease(f"{IPAddress(first + 16 * number)}-28"), text.encode())]
            if number % AT_ONCE == AT_ONCE - 1 and time.monotonic() > until:
                break
        yield from _together(_delete(keys.lease(f"{IPAddress(first + 16 * number)}-28")) for number in range(given.keys))


def strays(keys: Keys, given: argparse.Namespace) -> Turns:
    return _together(_put(keys.lease(f"stray{number:07}"), b"x") for number in range(given.keys))


def backlog(keys: Keys, given: argparse.Namespace) -> Turns:
    return ([_put(keys.lease("junk"), b"x" * VALUE_BYTES)] for _ in range(given.megabytes * MB // VALUE_BYTES))


def junk(keys: Keys, given: argparse.Namespace) -> Turns:
    return ([_put(keys.lease(f"junk{number}"), b"x" * VALUE_BYTES)] for number in range(given.megabytes * MB // VALUE_BYTES))


def names(keys: Keys, given: argparse.Namespace) -> Turns:
    """The names hold what a terminal obeys, which is four letters each where it is escaped."""
    return ([_put(keys.lease(f"{number}") + b"\x1b" * VALUE_BYTES, b"x")] for number in range(given.megabytes * MB // VALUE_BYTES))


def config(keys: Keys, given: argparse.Namespace) -> Turns:
    for number in range(given.keys):
        yield [_put(keys.config, b'{"Network":"%d' % number)]
        yield [_put(keys.config, given.config.encode())]


KINDS: dict[str, Callable[[Keys, argparse.Namespace], Turns]] = {
    each.__name__: each for each in (flap, strays, backlog, junk, names, config)
}


async def _write(store: Any, turn: Sequence[Any]) -> None:
    """One transaction, again where etcd itself has not done it in its 7 s ("request timed out"). Raises grpc.aio.AioRpcError."""
    import grpc

    for left in reversed(range(TRIES)):
        try:
            await store.Txn(rpc.TxnRequest(success=turn), timeout=DEADLINE_S)
            return
        except grpc.aio.AioRpcError as error:
            if not left or error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(1.0)


async def flood(given: argparse.Namespace) -> int:
    """Write it all; how many transactions it took."""
    import grpc.aio

    async with grpc.aio.insecure_channel(given.url.removeprefix("http://")) as channel:
        store, count, under_way, began = rpc.KVStub(channel), 0, set[Any](), time.monotonic()
        for turn in KINDS[given.kind](Keys.under(given.prefix), given):
            count += 1
            if given.rate:
                await asyncio.sleep(began + count / given.rate - time.monotonic())
            under_way.add(asyncio.ensure_future(_write(store, turn)))
            if len(under_way) >= given.at_once:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()
        await asyncio.gather(*under_way)
        return count


def main(words: Sequence[str] | None = None) -> int:
    """0: all of it is written."""
    parser = argparse.ArgumentParser(prog="flood", description="Writes what should do no harm.")
    parser.add_argument("url", help="etcd's client URL")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--prefix", default="/coreos.com/network")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--first", default="10.80.0.0", help="the address of the first lease that flaps")
    parser.add_argument("--config", default="{}", help="the network config that is right")
    parser.add_argument("--at-once", type=int, default=8, help="transactions that etcd has not answered yet")
    parser.add_argument("--rate", type=float, default=0.0, help="transactions a second; 0: as many as etcd takes")
    given = parser.parse_args(words)
    began = time.monotonic()
    count = asyncio.run(flood(given))
    print(f"{given.kind}: {count:,} transactions in {time.monotonic() - began:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
