"""What does a WireGuard device hold? The device itself is a link; its key and port, and its peers, are told by another protocol.

wg(8). Keys are 32 bytes (Curve25519, RFC 7748), written in base64 as everywhere in that field. A private or preshared key is a
``Secret``: no step, log or status shows it.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from netaddr import IPAddress, IPNetwork

from flannelpy.core.errors import MalformedError
from flannelpy.core.json_members import Members
from flannelpy.core.key import Key
from flannelpy.core.secret import Secret

KEY_BYTES = 32

NO_KEY = Secret(b"")
"""No preshared key."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """By what a host proves who it is. ``public`` is what its peers know it by."""

    private: Secret[bytes]
    public: str


@dataclass(frozen=True, slots=True)
class Wireguard:
    """The detail of a wireguard link: rtnetlink knows nothing of it but its kind."""

    kind: ClassVar[str] = "wireguard"

    @property
    def fixed(self) -> Wireguard:
        return self

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class WireguardDevice:
    """Key and UDP port of a wireguard device. It is there as long as the device is, and goes with it."""

    noun: ClassVar[str] = "wg"

    dev: str
    listen_port: int
    private_key: Secret[bytes]

    @property
    def key(self) -> Key:
        return Key("wg", self.dev)

    @property
    def lives_on(self) -> str:
        """The device that it vanishes with."""
        return self.dev

    def satisfied_by(self, observed: object) -> bool:
        """True where what was observed under the same key is as good as this."""
        return self == observed

    def __str__(self) -> str:
        return f"{self.dev} listen-port {self.listen_port} private-key {self.private_key}"


Endpoint = tuple[IPAddress, int]
"""Where a peer is sent to: address and UDP port."""


@dataclass(frozen=True, slots=True)
class WireguardPeer:
    """A peer of a wireguard device: who has ``public_key`` may send from ``allowed_ips``, and gets what goes there.

    ``keepalive_s`` in seconds, 0 is off. ``endpoint`` None: the peer has not been heard of (only observed).
    """

    noun: ClassVar[str] = "wgpeer"

    dev: str
    public_key: str
    endpoint: Endpoint | None
    allowed_ips: tuple[IPNetwork, ...]
    keepalive_s: int = 0
    preshared_key: Secret[bytes] = NO_KEY
    answered: bool = field(default=False, compare=False)
    """Something has come from it that proves who it is (only observed)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed_ips", tuple(sorted(self.allowed_ips)))  # the kernel has them in an order of its own

    @property
    def key(self) -> Key:
        return Key("wgpeer", f"{self.public_key} dev {self.dev}")

    @property
    def lives_on(self) -> str:
        """The device that it vanishes with."""
        return self.dev

    def satisfied_by(self, observed: object) -> bool:
        """As ``==``, wherever the peer is: the kernel follows one that proves from another address who it is (roaming)."""
        if self is observed:
            return True
        if not isinstance(observed, WireguardPeer) or (observed.endpoint is None) != (self.endpoint is None):
            return False
        return self._fixed == observed._fixed

    def narrows(self, before: object) -> bool:
        """True where what was observed ``before`` may have addresses that are to go, so that all have to be replaced.

        The kernel, and wireguard-go, take all of them away before they give it the new ones, and nothing holds back the packets of
        that moment: what is for the peer is ENOKEY, and what comes from it is dropped. Giving it what it has does nothing.
        """
        return not isinstance(before, WireguardPeer) or not set(before.allowed_ips) <= set(self.allowed_ips)

    @property
    def _fixed(self) -> tuple[object, ...]:
        """What the kernel does not change by itself."""
        return self.public_key, self.dev, self.allowed_ips, self.keepalive_s, self.preshared_key

    def __str__(self) -> str:
        words = [f"{self.dev} peer {self.public_key}"]
        if self.endpoint is not None:
            words.append(f"endpoint {endpoint_text(self.endpoint)}")
        words.append(f"allowed-ips {','.join(map(str, self.allowed_ips)) or 'none'}")
        if self.keepalive_s:
            words.append(f"persistent-keepalive {self.keepalive_s}")
        if self.preshared_key:
            words.append(f"preshared-key {self.preshared_key}")
        return " ".join(words)


def endpoint_text(endpoint: Endpoint) -> str:
    """As wg(8) writes it."""
    address, port = endpoint
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def key_bytes(text: str) -> bytes:
    """The 32 bytes of a key in base64, as wg(8) reads it. Raises ValueError, without the text: it may be secret."""
    try:
        found = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        found = b""
    if len(found) != KEY_BYTES or key_text(found) != text:
        raise ValueError("expected 32 bytes in base64 (44 letters, the last a =)")
    return found


def key_text(key: bytes) -> str:
    """A key in base64."""
    return base64.b64encode(key).decode("ascii")


def clamped(key: bytes) -> bytes:
    """A private key from 32 random bytes, as the kernel keeps it (RFC 7748 section 5)."""
    return bytes([key[0] & 248, *key[1:31], key[31] & 127 | 64])


# ------------------------------------------------------------------------------------------------------ in a lease


def told_key(data: object) -> str:
    """The public key in a lease's BackendData. Raises MalformedError. All zeros are no host's: nobody could be sure of it."""
    value = Members(data)["PublicKey"] if isinstance(data, dict) and "PublicKey" in Members(data) else None
    with suppress(ValueError):
        if isinstance(value, str) and any(key_bytes(value)):
            return value
    raise MalformedError(f"BackendData.PublicKey {value!r:.60}: expected a public key, 32 bytes in base64")


def told_port(data: object) -> int:
    """The port in a lease's BackendData; 0 where there is none: flannel before 0.26.6. Raises MalformedError."""
    members = Members(data) if isinstance(data, dict) else Members({})
    port = members["Port"] if "Port" in members else None
    if port is not None and (type(port) is not int or not 0 <= port < 1 << 16):
        raise MalformedError(f"BackendData.Port {port!r:.60}: expected a UDP port, 0 to 65535")
    return port or 0
