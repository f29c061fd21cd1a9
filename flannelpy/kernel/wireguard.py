"""How is WireGuard told its key and its peers, and what does it hold? Generic netlink family ``wireguard``, packed with ``struct``.

Hundreds of peers are one message: a netlink attribute ends at 64 KB, and all the peers of a message are one. The kernel carries a
message out peer by peer and stops at the first that it refuses, with those before it carried out; so what is refused is told apart
by sending each again alone, which changes nothing about those that went well. A dump says one peer in several messages where its
addresses do not fit the first. Nobody is told of changes. The encoder is held byte for byte against pyroute2's, which takes 25
times as long, in tests/unit/test_wireguard_messages.py. Source: linux/wireguard.h, wg(8).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from struct import Struct

from netaddr import IPNetwork

from flannelpy.core.errors import KernelError
from flannelpy.core.plan import Step
from flannelpy.core.secret import Secret
from flannelpy.core.wireguard import KEY_BYTES, Endpoint, WireguardDevice, WireguardPeer, key_bytes, key_text
from flannelpy.kernel import wireguard_go
from flannelpy.kernel.channel import GONE, error
from flannelpy.kernel.dump import Dumped, dump
from flannelpy.kernel.genl import GENL, NETLINK_GENERIC, Family
from flannelpy.kernel.messages import (
    ACK,
    AF_INET,
    AF_INET6,
    DUMP,
    FAMILY,
    REQUEST,
    U16,
    U32,
    as_address,
    attribute,
    attributes,
    each_attribute,
    message,
    packed,
)

GET_DEVICE, SET_DEVICE = 0, 1
DEVICE_IFINDEX, DEVICE_PRIVATE_KEY, DEVICE_PUBLIC_KEY, DEVICE_LISTEN_PORT, DEVICE_PEERS = 1, 3, 4, 6, 8
PEER_PUBLIC_KEY, PEER_PRESHARED_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 2, 3, 4, 5
PEER_LAST_HANDSHAKE, PEER_ALLOWED_IPS = 6, 9
ALLOWED_FAMILY, ALLOWED_ADDRESS, ALLOWED_LENGTH = 1, 2, 3
REMOVE_ME, REPLACE_ALLOWED_IPS = 1, 2
NESTED = 0x8000

PEERS_BYTES = 60_000
"""Of all the peers of one message together; the length of an attribute has 16 bits."""

NO_PSK = bytes(KEY_BYTES)
"""Takes a preshared key away."""

_IN = Struct(">2s2s4s8x")  # sockaddr_in: family (host order), port, address
_IN6 = Struct(">2s2sI16sI")  # sockaddr_in6: family (host order), port, flow, address, scope


# -------------------------------------------------------------------------------------------------------- encoding


def set_device(sequence: int, family: int, index: int, item: WireguardDevice) -> bytes:
    """``wg set DEV listen-port PORT private-key FILE``."""
    port = attribute(DEVICE_LISTEN_PORT, U16.pack(item.listen_port))
    return _set(sequence, family, index, attribute(DEVICE_PRIVATE_KEY, item.private_key.reveal()) + port)


def set_peers(sequence: int, family: int, index: int, peers: Sequence[bytes]) -> bytes:
    """``wg set DEV peer ... peer ...``, of what ``peer`` and ``remove_peer`` give."""
    listed = b"".join(attribute(number | NESTED, each) for number, each in enumerate(peers, 1))
    return _set(sequence, family, index, attribute(DEVICE_PEERS | NESTED, listed))


def _set(sequence: int, family: int, index: int, attributes: bytes) -> bytes:
    body = GENL.pack(SET_DEVICE, 1) + attribute(DEVICE_IFINDEX, U32.pack(index)) + attributes
    return message(family, REQUEST | ACK, sequence, body)


def peer(item: WireguardPeer, *, replace_addresses: bool = True) -> bytes:
    """The attributes of a peer: all that there is of it."""
    nets = b"".join(attribute(number | NESTED, _allowed(net)) for number, net in enumerate(item.allowed_ips, 1))
    return (
        attribute(PEER_PUBLIC_KEY, key_bytes(item.public_key))
        + (b"" if item.endpoint is None else attribute(PEER_ENDPOINT, _endpoint(item.endpoint)))
        + attribute(PEER_PRESHARED_KEY, item.preshared_key.reveal() or NO_PSK)
        + attribute(PEER_KEEPALIVE, U16.pack(item.keepalive_s))
        + (attribute(PEER_FLAGS, U32.pack(REPLACE_ALLOWED_IPS)) if replace_addresses else b"")
        + attribute(PEER_ALLOWED_IPS | NESTED, nets)
    )


def remove_peer(item: WireguardPeer) -> bytes:
    """The attributes of a peer that is to go; of one that is not there the kernel says nothing."""
    return attribute(PEER_PUBLIC_KEY, key_bytes(item.public_key)) + attribute(PEER_FLAGS, U32.pack(REMOVE_ME))


def _endpoint(endpoint: Endpoint) -> bytes:
    address, port = endpoint
    family, number = U16.pack(FAMILY[address.version]), port.to_bytes(2, "big")
    return _IN.pack(family, number, packed(address)) if address.version == 4 else _IN6.pack(family, number, 0, packed(address), 0)


def _allowed(net: IPNetwork) -> bytes:
    family = attribute(ALLOWED_FAMILY, U16.pack(FAMILY[net.version]))
    return family + attribute(ALLOWED_ADDRESS, packed(net)) + attribute(ALLOWED_LENGTH, bytes([net.prefixlen]))


def get_device(sequence: int, family: int, index: int) -> bytes:
    """``wg showconf DEV``."""
    return message(family, REQUEST | DUMP, sequence, GENL.pack(GET_DEVICE, 1) + attribute(DEVICE_IFINDEX, U32.pack(index)))


# -------------------------------------------------------------------------------------------------------- decoding


def read_device(name: str, data: bytes, body: int, end: int) -> tuple[WireguardDevice, str] | None:
    """Key and port of a device, and its public key, empty where it has none; None in a message that only goes on with the peers."""
    found = attributes(data, body + GENL.size, end)
    if DEVICE_LISTEN_PORT not in found:
        return None
    private = found.get(DEVICE_PRIVATE_KEY, b"")
    public = found.get(DEVICE_PUBLIC_KEY, b"")
    device = WireguardDevice(name, U16.unpack(found[DEVICE_LISTEN_PORT])[0], Secret(private))
    return device, key_text(public) if len(public) == KEY_BYTES else ""


def read_peers(name: str, data: bytes, body: int, end: int) -> Iterator[WireguardPeer]:
    """The peers that one message of a dump tells of; of one that began in the message before, what is left of its addresses."""
    listed = attributes(data, body + GENL.size, end).get(DEVICE_PEERS, b"")
    for _number, each in each_attribute(listed, 0, len(listed)):
        found = attributes(each, 0, len(each))
        if len(found.get(PEER_PUBLIC_KEY, b"")) != KEY_BYTES:
            continue
        nets = found.get(PEER_ALLOWED_IPS, b"")
        psk = found.get(PEER_PRESHARED_KEY, b"")
        yield WireguardPeer(
            name,
            key_text(found[PEER_PUBLIC_KEY]),
            _read_endpoint(found.get(PEER_ENDPOINT, b"")),
            tuple(_read_allowed(net) for _at, net in each_attribute(nets, 0, len(nets))),
            U16.unpack(found.get(PEER_KEEPALIVE, b"\0\0"))[0],
            Secret(psk if any(psk) else b""),
            answered=any(found.get(PEER_LAST_HANDSHAKE, b"")),  # a time, all zeros before the first
        )


def merged(peers: Sequence[WireguardPeer]) -> list[WireguardPeer]:
    """Each peer once: of one that is told in several messages only the first knows more than its key and addresses."""
    found: dict[str, WireguardPeer] = {}
    for each in peers:
        first = found.get(each.public_key)
        if first is not None:
            each = replace(first, allowed_ips=(*first.allowed_ips, *each.allowed_ips))
        found[each.public_key] = each
    return list(found.values())


def _read_endpoint(data: bytes) -> Endpoint | None:
    family = U16.unpack_from(data)[0] if len(data) >= 8 else 0
    if family == AF_INET:
        return as_address(data[4:8]), int.from_bytes(data[2:4], "big")
    if family == AF_INET6 and len(data) >= 24:
        return as_address(data[8:24]), int.from_bytes(data[2:4], "big")
    return None


def _read_allowed(data: bytes) -> IPNetwork:
    found = attributes(data, 0, len(data))
    address = as_address(found[ALLOWED_ADDRESS])
    return IPNetwork((int(address), found[ALLOWED_LENGTH][0]), version=address.version)


# ----------------------------------------------------------------------------------------------------------- doing


class WireguardDevices:
    """The wireguard devices of the namespace where it is first used, whoever carries them: the kernel, or wireguard-go."""

    def __init__(self) -> None:
        self._family = Family("wireguard")

    def close(self) -> None:
        self._family.close()

    async def observe(self, name: str, index: int) -> Dumped[WireguardDevice | WireguardPeer]:
        """Key, port and peers of a device; nothing where it is none of WireGuard's."""
        found: Dumped[WireguardDevice | WireguardPeer] = Dumped()
        if wireguard_go.serves(name):
            found += await wireguard_go.observe(name)
            return found
        if (number := self._family.find()) is None:
            return found

        def read(data: bytes, body: int, end: int) -> list[WireguardDevice | WireguardPeer]:
            device = read_device(name, data, body, end)
            return [*([device[0]] if device else []), *read_peers(name, data, body, end)]

        try:
            lists = await dump(partial(get_device, family=number, index=index), read, protocol=NETLINK_GENERIC)
        except KernelError as reason:
            if reason.code == errno.EOPNOTSUPP or reason.code in GONE:
                return found
            raise
        items = [item for each in lists for item in each]
        found += [item for item in items if isinstance(item, WireguardDevice)][:1]
        found += merged([item for item in items if isinstance(item, WireguardPeer)])
        found.complete = lists.complete
        return found

    def public_key(self, name: str, index: int) -> str:
        """What the kernel has derived from a device's private key. Raises KernelError."""
        channel, number = self._family.channel, self._demand()
        told = [
            read_device(name, data, head.body, head.end)
            for data, heads in channel.dump(get_device(channel.reserve(1), number, index))
            for head in heads
        ]
        public = next((device[1] for device in told if device is not None), "")
        if not public:
            raise KernelError(f"{name} has no public key", errno.EINVAL)
        return public

    async def set_device(self, index: int, item: WireguardDevice) -> None:
        """Give a device its key and port. Raises KernelError."""
        if not index:
            raise error((errno.ENODEV, ""))
        if wireguard_go.serves(item.dev):
            await wireguard_go.set_device(item)
            return
        try:
            self._family.ask(partial(set_device, family=self._demand(), index=index, item=item))
        except KernelError as reason:
            if reason.code == errno.EADDRINUSE:
                words = f"UDP port {item.listen_port}, which {item.dev} needs, is taken by another program"
                raise KernelError(words, reason.code) from None
            raise

    async def apply_peers(self, index: int, steps: Sequence[Step]) -> list[KernelError | None]:
        """Carry out steps that are all about peers of one device; what became of each."""
        if index and wireguard_go.serves(dev := steps[0].item.lives_on or ""):
            return await wireguard_go.apply_peers(dev, steps)
        try:
            if not index:
                raise error((errno.ENODEV, ""))
            number = self._demand()
        except KernelError as reason:
            gone = reason.code in GONE
            return [None if step.op == "remove" and gone else reason for step in steps]
        outcome: list[KernelError | None] = [None] * len(steps)
        for places in _runs([_encode(step) for step in steps]):
            parts = [part for _place, part in places]
            try:
                self._family.ask(partial(set_peers, family=number, index=index, peers=parts))
            except KernelError as reason:
                for place, part in places:
                    outcome[place] = reason if len(places) == 1 else self._alone(number, index, part)
        return outcome

    def _alone(self, number: int, index: int, part: bytes) -> KernelError | None:
        try:
            self._family.ask(partial(set_peers, family=number, index=index, peers=[part]))
        except KernelError as reason:
            return reason
        return None

    def _demand(self) -> int:
        """The family's number. Raises KernelError where there is none."""
        if (number := self._family.find()) is None:
            raise KernelError("this kernel has no wireguard: load the module wireguard", errno.EOPNOTSUPP)
        return number


def _encode(step: Step) -> bytes:
    assert isinstance(step.item, WireguardPeer)
    return remove_peer(step.item) if step.op == "remove" else peer(step.item, replace_addresses=step.item.narrows(step.before))


def _runs(parts: Sequence[bytes]) -> Iterator[list[tuple[int, bytes]]]:
    """Parts with their places, as many as fit a message at a time."""
    run: list[tuple[int, bytes]] = []
    size = 0
    for place, part in enumerate(parts):
        length = 4 + len(part) + 3
        if run and size + length > PEERS_BYTES:
            yield run
            run, size = [], 0
        run.append((place, part))
        size += length
    if run:
        yield run
