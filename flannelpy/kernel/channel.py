"""How is the kernel asked? A netlink socket that carries many requests in one send, and one dump at a time.

rtnetlink works in the sender's context: when ``send`` returns, every message was carried out and every answer lies in our receive
queue, so nothing here ever waits, and no event loop is needed (netlink(7)). Only the last message of a batch asks for an
acknowledgement: the kernel reports failures unasked, each with its sequence number, and silence is success.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence

from flannelpy.core.errors import KernelError
from flannelpy.kernel.messages import DUMP_INTERRUPTED, NLMSG, NLMSG_DONE, NLMSG_ERROR, Head, dump_failure, failure, heads

SOL_NETLINK = 270
ADD_MEMBERSHIP, CAP_ACK, EXT_ACK, STRICT_CHECK = 1, 10, 11, 12
SO_RCVBUFFORCE = 33
ACK_BYTES = 1 << 20
"""Room for the answers to one batch: 256 failures with words take a quarter of it."""
DATAGRAM_BYTES = 1 << 16
"""The kernel fills dumps to at most 32 KB a datagram."""

GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})
"""What the kernel says of a thing that is not there; where it was to be removed, that is what was asked for."""

Failure = tuple[int, str]
"""A positive errno and the kernel's own words."""


def netlink_socket(protocol: int, receive_bytes: int) -> socket.socket:
    """A non-blocking netlink socket in the current namespace with as much room as we may have."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def error(failed: Failure) -> KernelError:
    """A failure in one line: what strerror(3) says, and the kernel's own words behind it."""
    code, words = failed
    text = os.strerror(code)
    if code == errno.EPERM:
        text += ": CAP_NET_ADMIN in this network namespace is needed"
    return KernelError(f"{text} ({words.rstrip('.')})" if words else text, code)


class Channel:
    """One netlink socket in the namespace where it was made; rtnetlink's where nothing else is said."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        try:
            self._socket = netlink_socket(protocol, ACK_BYTES)
        except OSError as reason:
            raise KernelError(f"netlink: {reason.strerror}", reason.errno or 0) from None
        for option in (CAP_ACK, EXT_ACK, STRICT_CHECK):
            with contextlib.suppress(OSError):  # an older kernel: longer answers, fewer words, wider dumps; all are understood
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, count: int) -> int:
        """The first of ``count`` sequence numbers in a row."""
        if self._sequence + count >= 1 << 32:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def transact(self, requests: Sequence[bytes], first: int, *, batch: bool = False) -> dict[int, Failure]:
        """Send requests numbered from ``first``; those that failed, by their place. The last one must ask for an ACK.

        ``batch``: they are one transaction of nf_tables; where its beginning is refused, nothing else may be answered.

        Raises KernelError where the kernel cannot be asked at all.
        """
        last = first + len(requests) - 1
        failed: dict[int, Failure] = {}
        self._send(b"".join(requests))
        while True:
            data = self._receive()
            for head in heads(data):
                if head.kind != NLMSG_ERROR or not first <= head.sequence <= last:
                    continue
                code, words = failure(data, head)
                if code:
                    failed[head.sequence - first] = (code, words)
                if head.sequence == last or (batch and code and head.sequence == first):
                    return failed

    def get(self, request: bytes) -> tuple[bytes, Head]:
        """One request with one answer. Raises KernelError with the kernel's code."""
        sequence = NLMSG.unpack_from(request)[3]
        self._send(request)
        while True:
            data = self._receive()
            for head in heads(data):
                if head.sequence != sequence:
                    continue
                if head.kind == NLMSG_ERROR:
                    raise error(failure(data, head))
                return data, head

    def get_all(self, requests: Sequence[bytes], first: int) -> list[bytes | int]:
        """Requests numbered from ``first`` with one answer each: its payload, or the errno. Raises KernelError where none comes."""
        answers: dict[int, bytes | int] = {}
        self._send(b"".join(requests))
        while len(answers) < len(requests):
            data = self._receive()
            for head in heads(data):
                if first <= head.sequence < first + len(requests):
                    refused = failure(data, head)[0] if head.kind == NLMSG_ERROR else 0
                    answers[head.sequence] = refused or data[head.body : head.end]
        return [answers[first + place] for place in range(len(requests))]

    def dump(self, request: bytes) -> Iterator[tuple[bytes, list[Head]]]:
        """The datagrams of a dump with their messages. Raises InterruptedError at the end of one that the table moved below."""
        sequence = NLMSG.unpack_from(request)[3]
        self._send(request)
        interrupted = False
        while True:
            data = self._receive()
            found = []
            done = False
            for head in heads(data):
                if head.sequence != sequence:
                    continue
                interrupted |= bool(head.flags & DUMP_INTERRUPTED)
                if head.kind == NLMSG_DONE:
                    if code := dump_failure(data, head):
                        raise error((code, ""))
                    done = True
                elif head.kind == NLMSG_ERROR:
                    raise error(failure(data, head))
                else:
                    found.append(head)
            yield data, found
            if done:
                if interrupted:
                    raise InterruptedError
                return

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as reason:
            raise KernelError(f"netlink: {reason.strerror}", reason.errno or 0) from None

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(DATAGRAM_BYTES)
        except OSError as reason:
            what = "no answer" if reason.errno == errno.EAGAIN else reason.strerror
            raise KernelError(f"netlink: {what}", reason.errno or 0) from None
