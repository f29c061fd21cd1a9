"""How is a server trusted, and what went wrong with TLS? Certificates from their files, gRPC's complaints in words to act on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flannelpy.core.errors import RegistryTlsError
from flannelpy.host.files import read_given
from flannelpy.registry import Endpoint
from flannelpy.registry.etcd.endpoints import Address
from flannelpy.registry.etcd.grpc_text import plain
from flannelpy.registry.etcd.validity import Validity, of_der, of_pem

_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)

_HUNG_UP = ("Socket closed", "reset by peer", "Unwrap failed")
"""The server said nothing that gRPC could hear."""

_FAILED = ("handshake", "Handshake", "Hostname Verification", "SSL_ERROR")

_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "BAD_SIGNATURE")

_SPEAKS_TLS = "the server speaks TLS; expected https:// before the host"

GREET_S = 3.0
"""A hello takes three round trips."""


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
        text = read_given(Path(path))
    except OSError as error:
        raise RegistryTlsError(f"{address}: {flag} {path!r}: {error.strerror}; expected a PEM file") from None
    if b"-----BEGIN " not in text:
        raise RegistryTlsError(f"{address}: {flag} {path!r}: no PEM block in it; expected one that starts with -----BEGIN")
    return text


def _system_roots() -> bytes | None:
    """The CAs that this host trusts; None leaves it to the ones that came with gRPC."""
    for path in (os.environ.get("SSL_CERT_FILE", ""), *_SYSTEM_ROOTS):
        with contextlib.suppress(OSError):
            if path:
                return read_given(Path(path))
    return None


async def explain_tls(details: str, address: Address, endpoint: Endpoint) -> str:
    """What gRPC's text on an unreachable server has to do with TLS, in words to act on; "" where nothing."""
    # A connection that stood and is closed is none of this: the server has gone away, and a watch wants to be back at once.
    hung_up = "failed to connect" in details and any(text in details for text in _HUNG_UP)
    if not address.tls:
        return _SPEAKS_TLS if hung_up and (await greet(address, endpoint)).spoken else ""
    if hung_up and (await greet(address, endpoint)).refused:
        return _explain_refusal(endpoint)
    if not any(text in details for text in _FAILED):
        return ""
    if "Hostname Verification" in details:
        return "TLS: the server's certificate is for another name; expected this host among its subject alternative names"
    if "ALERT" in details:
        return _explain_refusal(endpoint)
    if any(text in details for text in _UNTRUSTED):
        return await _explain_distrust(address, endpoint)
    if "create security handshaker" in details:
        given = " or ".join(f"{flag} {path!r}" for flag, path in _files(endpoint) if path)
        return f"TLS: {given} cannot be used; expected certificates, and the key that belongs to them, in PEM"
    return f"TLS: the handshake failed ({plain(details)}); expected a server that speaks TLS, or http:// before the host"


def _explain_refusal(endpoint: Endpoint) -> str:
    """The server does not take what we showed. It seldom says why, but our file tells when it ends."""
    if not endpoint.certfile:
        return "TLS: the server asks for a client certificate; expected --etcd-certfile and --etcd-keyfile"
    if fault := _fault(validity_of(endpoint.certfile)):
        return f"TLS: --etcd-certfile {endpoint.certfile!r} {fault}; expected a valid one"
    return f"TLS: the server refused --etcd-certfile {endpoint.certfile!r}; expected one signed by the CA it trusts"


async def _explain_distrust(address: Address, endpoint: Endpoint) -> str:
    """We do not take what the server shows: the times are wrong, its or our clock's, or the CA is another one.

    OpenSSL says "not signed" of a certificate from the future, too, and "bad signature" where a new CA has the old one's name.
    """
    if fault := _fault((await greet(address, endpoint)).certificate):
        return f"TLS: the server's certificate {fault}; expected a valid one"
    if endpoint.cafile and (fault := _fault(validity_of(endpoint.cafile))):
        return f"TLS: --etcd-cafile {endpoint.cafile!r} {fault}; expected a valid one"
    by = f"--etcd-cafile {endpoint.cafile!r}" if endpoint.cafile else "the system's CAs (no --etcd-cafile is set)"
    return f"TLS: the server's certificate is not signed by {by}; expected that CA"


def _fault(certificate: Validity | None) -> str:
    return "" if certificate is None else certificate.fault(datetime.now(UTC))


def certificate_files(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    """The files that certificates are in, with their flags; an empty name where there is none."""
    return _files(endpoint)[:2]


def validity_of(path: str) -> Validity | None:
    """When the certificate in a file counts; None where none can be read there."""
    with contextlib.suppress(OSError):
        return of_pem(read_given(Path(path)))
    return None


def _load(context: ssl.SSLContext, endpoint: Endpoint) -> None:
    """load_cert_chain, which takes names only and waits for what a FIFO may say. Raises OSError."""
    chain, key = (read_given(Path(path)) for path in (endpoint.certfile, endpoint.keyfile))
    with os.fdopen(os.memfd_create("certificate", os.MFD_CLOEXEC), "wb") as both:
        both.write(chain + b"\n" + key)
        both.flush()
        context.load_cert_chain(f"/proc/self/fd/{both.fileno()}", password="")  # without it OpenSSL asks at the terminal


def unchecked(endpoint: Endpoint | None = None) -> ssl.SSLContext:
    """A context that takes whatever the server shows, to look at it; it shows our certificate. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if endpoint is not None and endpoint.certfile:
        _load(context, endpoint)
    return context


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says to a TLS hello: whether it speaks TLS at all, what it shows, whether it refuses what we show."""

    spoken: bool = False
    refused: bool = False
    certificate: Validity | None = None


async def greet(address: Address, endpoint: Endpoint) -> Greeting:
    """Say hello as we do by gRPC, but look at everything. Takes at most GREET_S.

    In TLS 1.3 a client's certificate is refused after the client's handshake is over (RFC 8446, 4.4.2.4), where gRPC loses it.
    """
    seen = Greeting()
    try:
        context = unchecked(endpoint if address.tls else None)
        context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(GREET_S):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            seen = Greeting(spoken=True, certificate=of_der(shown) if shown else None)
            try:
                await reader.read(1)
            finally:
                writer.transport.abort()  # there is nothing to say good-bye for
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except ssl.SSLError as error:
        if "ALERT" in str(error):
            return Greeting(spoken=True, refused=True, certificate=seen.certificate)
    except (OSError, TimeoutError):
        pass
    return seen
