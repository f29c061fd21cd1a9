"""Which public key belongs to a private one? What RFC 7748 says, and what OpenSSL says."""

from __future__ import annotations

import subprocess
from random import Random

import pytest

from flannelpy.core.curve25519 import public_of

PKCS8 = bytes.fromhex("302e020100300506032b656e04220420")
"""What stands before the 32 bytes of an X25519 key in DER (RFC 8410)."""


def test_the_key_of_bob_in_the_rfc() -> None:
    private = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"  # RFC 7748 section 6.1
    public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert public_of(bytes.fromhex(private)).hex() == public


@pytest.mark.parametrize("private", [bytes(32), bytes([255]) * 32, *(Random(seed).randbytes(32) for seed in range(6))])
def test_any_32_bytes_are_a_key_as_openssl_reads_them(private: bytes) -> None:
    words = ["openssl", "pkey", "-inform", "DER", "-pubout", "-outform", "DER"]
    told = subprocess.run(words, input=PKCS8 + private, capture_output=True, check=True).stdout
    assert public_of(private) == told[-32:]
