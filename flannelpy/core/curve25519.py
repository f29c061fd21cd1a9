"""Which public key belongs to a private one? The X25519 of RFC 7748, at its base point.

Asked once at a start, and only where no kernel can be asked: some milliseconds. It is not constant in time, which nobody on another
host can measure.
"""

from __future__ import annotations

PRIME = 2**255 - 19
A24 = 121_665
"""(A - 2) / 4 of the curve's A, 486662."""

BASE_POINT = 9


def public_of(private: bytes) -> bytes:
    """The 32 bytes of the public key; ``private`` is 32 random ones, clamped here (section 5)."""
    scalar = int.from_bytes(bytes([private[0] & 248, *private[1:31], private[31] & 127 | 64]), "little")
    return _multiplied(scalar, BASE_POINT).to_bytes(32, "little")


def _multiplied(scalar: int, u: int) -> int:
    """The Montgomery ladder, in the names of section 5: (x2, z2) is the point so far, (x3, z3) that and one more."""
    x2, z2, x3, z3 = 1, 0, u, 1
    for bit in range(254, -1, -1):
        one = scalar >> bit & 1
        if one:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % PRIME, b * b % PRIME, d * a % PRIME, c * b % PRIME
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % PRIME, u * (da - cb) ** 2 % PRIME
        x2, z2 = aa * bb % PRIME, e * (aa + A24 * e) % PRIME
        if one:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return x2 * pow(z2, PRIME - 2, PRIME) % PRIME
