"""How is a server trusted, and what went wrong with TLS? Certificates from their files, gRPC's complaints in words to act on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from pathlib import Path

from flannelpy.core.errors import RegistryTlsError
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import Address

_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)

_HUNG_UP = ("Socket closed", "reset by peer", "Unwrap failed")
"""The server said nothing that gRPC could hear."""

_FAILED = ("handshake", "Handshake", "Hostname Verification", "SSL_ERROR")

_ASKED = "TLS: the server asks for a client certificate; expected --etcd-certfile and --etcd-keyfile"


def read_credentials(address: Address, endpoint: Endpoint) -> tuple[bytes | None, bytes | None, bytes | None]:
    """CA certificates, our key and our certificate chain, read now. Raises RegistryTlsError: which file, and what was expected."""
    pem = [_read_pem(flag, path, address) for flag, path in _files(endpoint)]
    roots = pem[0] or _system_roots()
    if bool(pem[1]) != bool(pem[2]):
        raise RegistryTlsError(f"{address}: only one of --etcd-certfile and --etcd-keyfile is set; expected both or none")
    return roots, pem[2], pem[1]


def _files(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    return (
        ("--etcd-cafile", endpoint.cafile),
        ("--etcd-certfile", endpoint.certfile),
        ("--etcd-keyfile", endpoint.keyfile),
    )


def _read_pem(flag: str, path: str, address: Address) -> bytes | None:
    if not path:
        return None
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise RegistryTlsError(f"{address}: {flag} {path!r}: {os.strerror(error.errno or 0)}; expected a PEM file") from None
    if b"-----BEGIN " not in text:
        raise RegistryTlsError(f"{address}: {flag} {path!r}: no PEM block in it; expected one that starts with -----BEGIN")
    return text


def _system_roots() -> bytes | None:
    """The CAs that this host trusts; None leaves it to the ones that came with gRPC."""
    for path in (os.environ.get("SSL_CERT_FILE", ""), *_SYSTEM_ROOTS):
        with contextlib.suppress(OSError):
            if path:
                return Path(path).read_bytes()
    return None


async def explain_tls(details: str, address: Address, endpoint: Endpoint) -> str:
    """What gRPC's text on an unreachable server has to do with TLS, in words to act on; "" where nothing."""
    if any(text in details for text in _HUNG_UP):
        # Not after a connection that stood: there the server has gone away, and a watch wants to be back at once.
        if not address.tls and "failed to connect" in details and await _probe(address) != "none":
            return "the server speaks TLS; expected https:// before the host"
        if address.tls and not endpoint.certfile and await _probe(address) == "certificate":
            return _ASKED
    if not address.tls or not any(text in details for text in _FAILED):
        return ""
    by = f"--etcd-cafile {endpoint.cafile!r}" if endpoint.cafile else "the system's CAs (no --etcd-cafile is set)"
    if "Hostname Verification" in details:
        return "TLS: the server's certificate is for another name; expected this host among its subject alternative names"
    if "has expired" in details:
        return "TLS: the server's certificate has expired; expected a valid one"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return f"TLS: the server's certificate is not signed by {by}; expected that CA"
    if "ALERT" in details and not endpoint.certfile:
        return _ASKED
    if "ALERT" in details:
        return f"TLS: the server refused --etcd-certfile {endpoint.certfile!r}; expected one signed by the CA it trusts"
    if "create security handshaker" in details:
        given = " or ".join(f"{flag} {path!r}" for flag, path in _files(endpoint) if path)
        return f"TLS: {given} cannot be used; expected certificates, and the key that belongs to them, in PEM"
    return f"TLS: the handshake failed ({last_error(details)}); expected a server that speaks TLS, or http:// before the host"


async def _probe(address: Address) -> str:
    """Asked after a connection was closed on us without a word: what would the server say to a TLS hello without a certificate?

    "none" where it does not speak TLS, "certificate" where it asks for one, "spoken" otherwise. Takes at most a second. In TLS 1.3
    the refusal comes after the client's handshake is over (RFC 8446, 4.4.2.4), which is where gRPC loses it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    spoken = "none"
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            spoken = "spoken"
            try:
                await reader.read(1)
            finally:
                writer.close()
    except ssl.SSLError as error:
        if "ALERT" in str(error):
            return "certificate"
    except (OSError, TimeoutError):
        pass
    return spoken


def last_error(details: str) -> str:
    """gRPC's text without its layers: the last error is the one that tells."""
    text = details.rpartition("last error: ")[2].replace("etcdserver: ", "")
    return " ".join(text.split())[:300]
