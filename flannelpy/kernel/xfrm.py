"""Which packets does the kernel encrypt, and how is it told? Policies of IPsec, over NETLINK_XFRM.

Ours are those whose both ends lie inside a network of the scope and whose one template is an ESP tunnel with our number (reqid), as
flannel makes them: no mark, no interface, no protocol or port. All others are somebody else's, whatever they cover. Sources:
linux/xfrm.h, ip-xfrm(8), RFC 4301.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.key import Key
from flannelpy.core.plan import Step
from flannelpy.core.xfrm import DIRECTIONS, REQID, XfrmPolicy
from flannelpy.kernel.channel import GONE, Channel, error
from flannelpy.kernel.dump import Dumped, dump
from flannelpy.kernel.messages import ACK, AF_INET, DUMP, NLMSG, REQUEST, attribute, each_attribute, message, packed

if TYPE_CHECKING:
    from flannelpy.core.objects import Scope
    from flannelpy.kernel.digest import Draft

NETLINK_XFRM = 6
POLICY = 4  # XFRMNLGRP_POLICY

NEWPOLICY, DELPOLICY, GETPOLICY, UPDPOLICY, FLUSHPOLICY = 0x13, 0x14, 0x15, 0x19, 0x1D  # XFRM_MSG_*
XFRMA_TMPL, XFRMA_POLICY, XFRMA_POLICY_TYPE, XFRMA_MARK, XFRMA_IF_ID = 5, 7, 16, 21, 31

ESP, TUNNEL = 50, 1  # IPPROTO_ESP, XFRM_MODE_TUNNEL
ALL = 0xFFFFFFFF  # every algorithm
FOREVER = (1 << 64) - 1  # XFRM_INF

SELECTOR = Struct("=16s16sHHHHHBBBxxxiI")  # daddr, saddr, dport+mask, sport+mask, family, lengths, protocol, interface, user
_LIMITS = Struct("=8Q")  # soft and hard bytes, soft and hard packets, then times
_INFO = Struct("=IIBBBBxxxx")  # priority, index, direction, action, flags, share
_TEMPLATE = Struct(
    "=16sIBxxxHxx16sIBBBxIII"
)  # destination, spi, protocol, family, source, reqid, mode, share, optional, algorithms
_ID = Struct("=IBxxx")  # index, direction

_USED = 32  # bytes of counters between limits and the rest
_INFO_AT = SELECTOR.size + _LIMITS.size + _USED
INFO_BYTES = _INFO_AT + _INFO.size
ID_BYTES = SELECTOR.size + _ID.size

BATCH = 256
"""Policies a send."""

UNKNOWN = frozenset({errno.EPROTONOSUPPORT, errno.EPFNOSUPPORT, errno.EAFNOSUPPORT})
"""How a kernel without XFRM answers to whoever wants a socket."""

NONE_HERE = "this kernel has no XFRM: load the module xfrm_user"


# --------------------------------------------------------------------------------------------------------- encoding


def put(sequence: int, item: XfrmPolicy, *, replace: bool) -> bytes:
    """``ip xfrm policy add`` (exclusive) or ``update``."""
    limits = _LIMITS.pack(FOREVER, FOREVER, FOREVER, FOREVER, 0, 0, 0, 0)
    info = _INFO.pack(item.priority, 0, DIRECTIONS.index(item.direction), 0, 0, 0)
    tunnel = _TEMPLATE.pack(*(_field(item.outer_dst), 0, ESP, AF_INET, _field(item.outer_src), REQID, TUNNEL, 0, 0, ALL, ALL, ALL))
    body = _selector(item) + limits + bytes(_USED) + info + attribute(XFRMA_TMPL, tunnel)
    return message(UPDPOLICY if replace else NEWPOLICY, REQUEST | ACK, sequence, body)


def remove(sequence: int, item: XfrmPolicy) -> bytes:
    """``ip xfrm policy delete``."""
    body = _selector(item) + _ID.pack(0, DIRECTIONS.index(item.direction))
    return message(DELPOLICY, REQUEST | ACK, sequence, body)


def dump_policies(sequence: int) -> bytes:
    """``ip xfrm policy``: of every family and direction."""
    return message(GETPOLICY, REQUEST | DUMP, sequence, bytes(ID_BYTES))


def _selector(item: XfrmPolicy) -> bytes:
    lengths = item.dst.prefixlen, item.src.prefixlen
    return SELECTOR.pack(_field(item.dst), _field(item.src), 0, 0, 0, 0, AF_INET, *lengths, 0, 0, 0)


def _field(address: IPAddress | IPNetwork) -> bytes:
    return packed(address).ljust(16, b"\0")


# --------------------------------------------------------------------------------------------------------- decoding


def read(data: bytes, body: int, end: int) -> XfrmPolicy | None:
    """A policy as the kernel tells it; None where it is none that we would make."""
    return _made_of(data, body, each_attribute(data, body + INFO_BYTES, end))


def read_removed(data: bytes, body: int, end: int) -> XfrmPolicy | None:
    """What a notification of a removal says; the policy itself is one of its attributes."""
    found = list(each_attribute(data, body + ID_BYTES, end))
    for number, value in found:
        if number == XFRMA_POLICY:
            return _made_of(value, 0, found)
    return None


def _made_of(data: bytes, body: int, attributes: object) -> XfrmPolicy | None:
    dst, src, dport, _dmask, sport, _smask, family, dst_len, src_len, proto, interface, _user = SELECTOR.unpack_from(data, body)
    priority, _index, direction, action, _flags, _share = _INFO.unpack_from(data, body + _INFO_AT)
    if family != AF_INET or dport or sport or proto or interface or action or direction >= len(DIRECTIONS):
        return None
    templates = []
    for number, value in attributes:  # type: ignore[attr-defined]
        if number == XFRMA_TMPL:
            templates = [value[at : at + _TEMPLATE.size] for at in range(0, len(value), _TEMPLATE.size)]
        elif number in (XFRMA_MARK, XFRMA_IF_ID) or (number == XFRMA_POLICY_TYPE and value[:1] != b"\0"):
            return None
    if len(templates) != 1:
        return None
    outer_dst, _spi, kind, outer_family, outer_src, reqid, mode, _share, optional, *_ciphers = _TEMPLATE.unpack(templates[0])
    if (kind, outer_family, reqid, mode, optional) != (ESP, AF_INET, REQID, TUNNEL, 0):
        return None
    ends = _address(outer_src), _address(outer_dst)
    return XfrmPolicy(DIRECTIONS[direction], _network(src, src_len), _network(dst, dst_len), *ends, priority)


def _address(value: bytes) -> IPAddress:
    return IPAddress(int.from_bytes(value[:4], "big"), 4)


def _network(value: bytes, length: int) -> IPNetwork:
    return IPNetwork((int.from_bytes(value[:4], "big"), length), version=4)


def ours(item: XfrmPolicy | None, scope: Scope) -> bool:
    """True where an observation of ``scope`` holds it."""
    return item is not None and scope.policies and scope.covers(item.src) and scope.covers(item.dst)


def hear(scope: Scope, data: bytes, draft: Draft) -> None:
    """Add to ``draft`` what a datagram of XFRMNLGRP_POLICY says."""
    at, size = 0, len(data)
    while at + 16 <= size:
        length, kind, _flags, _sequence, _port = NLMSG.unpack_from(data, at)
        if length < 16 or at + length > size:
            raise ValueError("a message of XFRM that ends too early")
        body, end = at + 16, at + length
        if kind == FLUSHPOLICY:
            draft.resync = True
        elif kind in (NEWPOLICY, UPDPOLICY):
            _tell(read(data, body, end), scope, draft, gone=False)
        elif kind == DELPOLICY:
            _tell(read_removed(data, body, end), scope, draft, gone=True)
        at += (length + 3) & ~3


def _tell(item: XfrmPolicy | None, scope: Scope, draft: Draft, *, gone: bool) -> None:
    if item is not None and ours(item, scope):
        key: Key = item.key
        draft.objects[key] = None if gone else item


# --------------------------------------------------------------------------------------------------------- at work


class XfrmPolicies:
    """The policies of the namespace where it is first used."""

    def __init__(self) -> None:
        self._channel: Channel | None = None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def observe(self, scope: Scope) -> Dumped[XfrmPolicy]:
        """Those that are ours; none where the kernel has no XFRM."""
        if not scope.policies:
            return Dumped()

        def of_scope(data: bytes, body: int, end: int) -> XfrmPolicy | None:
            item = read(data, body, end)
            return item if ours(item, scope) else None

        try:
            return await dump(dump_policies, of_scope, protocol=NETLINK_XFRM)
        except KernelError as reason:
            if reason.code in UNKNOWN:
                return Dumped()
            raise

    def apply(self, steps: Sequence[Step]) -> list[KernelError | None]:
        """Carry out steps of policies, at most ``BATCH``; what the kernel said to each."""
        try:
            if self._channel is None:
                self._channel = Channel(NETLINK_XFRM)
            first = self._channel.reserve(len(steps))
            requests = [_request(step, first + place) for place, step in enumerate(steps)]
            failed = self._channel.transact(requests, first)
        except KernelError as reason:
            self.close()  # what is still in its queue would be taken for answers to the next batch
            said = KernelError(NONE_HERE, errno.EOPNOTSUPP) if reason.code in UNKNOWN else reason
            return [None if said.code == errno.EOPNOTSUPP and step.op == "remove" else said for step in steps]
        return [_verdict(step, error(failed[place])) if place in failed else None for place, step in enumerate(steps)]


def _request(step: Step, sequence: int) -> bytes:
    assert isinstance(step.item, XfrmPolicy)
    return remove(sequence, step.item) if step.op == "remove" else put(sequence, step.item, replace=step.op != "add")


def _verdict(step: Step, failed: KernelError) -> KernelError | None:
    """Removing what is not there is success."""
    return None if step.op == "remove" and failed.code in GONE else failed
