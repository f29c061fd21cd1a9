"""Where is etcd? Its URLs, read and checked without any of the weight of a client, so that settings can use it too."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from flannelpy.core.errors import UsageError

FLAG = "--etcd-endpoints"
DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class Address:
    """One member's client URL, taken apart. ``host`` is a name or a literal, without brackets."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """As a gRPC target and as what the certificate is checked against; brackets around IPv6."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.target}"


def parse_endpoint(text: str, flag: str = FLAG) -> Address:
    """One URL. Raises UsageError: the flag, what it holds and what was expected."""
    expected = "expected http:// or https:// before the host"
    scheme, found, rest = text.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        raise UsageError(f"{flag} {text!r}: {expected}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {error}; expected a form like http://192.0.2.1:2379") from None
    if "@" in rest:
        # Not shown: what stands before the @ is a password.
        raise UsageError(f"{flag}: a user name in the URL; expected it in --etcd-username, the password in --etcd-password")
    if not host or any(blank in host for blank in " \t"):
        raise UsageError(f"{flag} {text!r}: expected a host after {scheme}://")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(f"{flag} {text!r}: expected nothing after the port; the keys' prefix has a flag of its own, --etcd-prefix")
    return Address(host, port or DEFAULT_PORT, tls=scheme.lower() == "https")


def parse_endpoints(text: str, flag: str = FLAG) -> tuple[str, ...]:
    """A comma-separated list, as canonical URLs in the order given. Raises UsageError for the first that is malformed."""
    urls = tuple(str(parse_endpoint(part.strip(), flag)) for part in text.split(",") if part.strip())
    if not urls:
        raise UsageError(f"{flag} {text!r}: expected one URL or more, like http://127.0.0.1:2379, separated by commas")
    return urls
