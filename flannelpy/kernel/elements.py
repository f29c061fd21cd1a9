"""How do elements of nft sets get into the kernel, and out again? nf_tables' own messages, hundreds a transaction.

A peer is two elements or three. nft(8) and its library read and compare whole sets for one of them; the message itself takes the
kernel 10 us. A transaction is carried out whole or not at all: what is refused in it is left out, and the rest tried again.
Sources: linux/netfilter/{nfnetlink,nf_tables}.h; verdicts of a batch: net/netfilter/nfnetlink.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from struct import Struct

from flannelpy.core.errors import KernelError
from flannelpy.core.objects import NftElement
from flannelpy.core.plan import Step
from flannelpy.kernel.channel import GONE, Channel, error
from flannelpy.kernel.dump import Dumped, dump
from flannelpy.kernel.messages import ACK, CREATE, DUMP, REQUEST, attribute, attributes, each_attribute, message

NETLINK_NETFILTER = 12
NFPROTO_INET = 1
SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 16, 17
GET_GENERATION = SUBSYSTEM << 8 | 16  # NFT_MSG_GETGEN
NEW, GET, DELETE = (SUBSYSTEM << 8 | number for number in (12, 13, 14))  # NFT_MSG_*SETELEM
NESTED = 0x8000

AT_ONCE = 500
"""Elements of one transaction: some 45 KB, a quarter of what a netlink socket takes, and 5 ms of the kernel's time."""

_HEAD = Struct(">BBH")  # family, version 0, resource


class Elements:
    """Of the tables of family inet in the namespace where it was first used."""

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def apply(self, steps: Sequence[Step]) -> list[KernelError | None]:
        """Carry out up to ``AT_ONCE`` steps in one transaction; what became of each; what is so already is no error."""
        outcome: list[KernelError | None] = [None] * len(steps)
        left = list(range(len(steps)))
        while left:
            try:
                failed = self._transact([steps[place] for place in left])
            except KernelError as reason:
                self.close()
                for place in left:
                    outcome[place] = reason
                break
            if not failed:
                break
            for at, refused in failed.items():
                gone = steps[left[at]].op == "remove" and refused.code in GONE
                outcome[left[at]] = None if gone else refused
            left = [place for at, place in enumerate(left) if at not in failed]
        return outcome

    def _transact(self, steps: Sequence[Step]) -> dict[int, KernelError]:
        """Those that the kernel refused, by place; then none was carried out. Raises KernelError where all were."""
        if self._channel is None:
            self._channel = Channel(NETLINK_NETFILTER)
        first = self._channel.reserve(len(steps) + 2)
        requests = [message(BATCH_BEGIN, REQUEST, first, _HEAD.pack(0, 0, SUBSYSTEM))]
        for step in steps:
            assert isinstance(step.item, NftElement)
            kind, flags = (DELETE, REQUEST) if step.op == "remove" else (NEW, REQUEST | CREATE)
            requests.append(encode(kind, flags | (ACK if len(requests) == len(steps) else 0), first + len(requests), step.item))
        requests[-1] += message(BATCH_END, REQUEST, first + len(requests), _HEAD.pack(0, 0, SUBSYSTEM))  # is never answered
        failed = self._channel.transact(requests, first, batch=True)
        if 0 in failed:
            raise error(failed[0])
        return {at - 1: error(failure) for at, failure in failed.items()}

    async def list(self, table: str, name: str) -> Dumped[NftElement]:
        """The elements of a set; none where it is not there."""

        def request(sequence: int) -> bytes:
            return message(GET, REQUEST | DUMP, sequence, _HEAD.pack(NFPROTO_INET, 0, 0) + _where(table, name))

        try:
            lists = await dump(request, lambda data, body, end: list(decode(data, body, end)), protocol=NETLINK_NETFILTER)
        except KernelError as reason:
            if reason.code == errno.ENOENT:
                return Dumped()
            raise
        found: Dumped[NftElement] = Dumped(item for items in lists for item in items)
        found.complete = lists.complete
        return found

    def generation(self) -> int:
        """The number of the tables as they are, another one after each change to any; 0 where there are none, or it is not told."""
        try:
            if self._channel is None:
                self._channel = Channel(NETLINK_NETFILTER)
            request = message(GET_GENERATION, REQUEST, self._channel.reserve(1), _HEAD.pack(0, 0, 0))
            data, head = self._channel.get(request)
        except KernelError:
            self.close()
            return 0
        return int.from_bytes(attributes(data, head.body + _HEAD.size, head.end).get(1, b""), "big")  # NFTA_GEN_ID

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def encode(kind: int, flags: int, sequence: int, item: NftElement) -> bytes:
    """NFT_MSG_NEWSETELEM or NFT_MSG_DELSETELEM of one element."""
    element = attribute(1 | NESTED, attribute(1, item.first))  # NFTA_SET_ELEM_KEY, its NFTA_DATA_VALUE
    if item.last is not None:
        element += attribute(10 | NESTED, attribute(1, item.last))  # NFTA_SET_ELEM_KEY_END
    listed = attribute(3 | NESTED, attribute(1 | NESTED, element))  # NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM
    return message(kind, flags, sequence, _HEAD.pack(NFPROTO_INET, 0, 0) + _where(item.table, item.set) + listed)


def decode(data: bytes, body: int, end: int) -> Iterator[NftElement]:
    """The elements in a message of the kernel, whose payload is ``body`` to ``end``."""
    found = attributes(data, body + _HEAD.size, end)
    if 1 not in found or 2 not in found:
        return
    table, name = (found[number].rstrip(b"\0").decode("utf-8", "replace") for number in (1, 2))
    listed = found.get(3, b"")
    for _number, each in each_attribute(listed, 0, len(listed)):
        parts = attributes(each, 0, len(each))
        first, last = (attributes(parts[number], 0, len(parts[number])).get(1) if number in parts else None for number in (1, 10))
        if first:
            yield NftElement(table, name, first, last)


def _where(table: str, name: str) -> bytes:
    return attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
