"""What does it mean when the client's libraries fail? Each of their errors as one of ours, with the server's own words.

Whoever answers in the server's place (a balancer, a gateway, what is told a wrong URL) says it in forms that these libraries do not
expect, and then they fail with any exception there is: whatever it is, it is a call that failed.
"""

from __future__ import annotations

import ssl
from contextlib import suppress

import httpx2
import msgspec
from lightkube.core.exceptions import ApiError, ConfigError, NotReadyError

from flannelpy.core.errors import (
    ConflictError,
    RegistryAuthError,
    RegistryError,
    RegistryRefusedError,
    RegistryTlsError,
    RegistryUnavailableError,
    WatchGapError,
)
from flannelpy.core.foreign import printable

UNEXPECTED = (AttributeError, LookupError, NotReadyError, TypeError, ValueError)
"""An answer, or the output of a program that a kubeconfig names, that lightkube cannot take apart."""
FAILURES = (httpx2.HTTPError, RuntimeError, TimeoutError, OSError, msgspec.MsgspecError, ConfigError, *UNEXPECTED)
"""What ends a call. RuntimeError: httpx2's, of a stream, or where the client was closed since (``ApiServer.renew``)."""


class MissingError(RegistryError):
    """There is no such object."""


def as_ours(error: Exception, url: str) -> RegistryError:
    """An error of the client's libraries as one of ours."""
    if isinstance(error, ApiError | httpx2.HTTPStatusError):
        return _refusal(error, url)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx2.HTTPStatusError):  # and lightkube has stumbled over it
            return _refusal(cause, url)
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", "") or cause.reason or str(cause)
            return RegistryTlsError(f"{url}: TLS: {printable(str(reason))}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, msgspec.MsgspecError):
        return RegistryRefusedError(f"{url}: its answer is no node: {printable(str(error))}; expected Kubernetes' API")
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return RegistryUnavailableError(f"{url}: no answer")
    if isinstance(error, httpx2.LocalProtocolError):  # its text is the header, which is a secret
        return RegistryAuthError(f"{url}: nothing was sent: the token cannot stand in a header; expected one line of ASCII letters")
    if isinstance(error, ConfigError):
        return RegistryAuthError(f"{url}: {printable(str(error))}")
    if isinstance(error, UNEXPECTED):
        said = printable(f"{type(error).__name__}: {error}")
        return RegistryRefusedError(f"{url}: {said}; expected Kubernetes' API, and a kubeconfig that fits")
    return RegistryUnavailableError(f"{url}: {printable(str(error) or type(error).__name__)}")


def _refusal(error: ApiError | httpx2.HTTPStatusError, url: str) -> RegistryError:
    response = getattr(error, "response", None)
    code = response.status_code if response is not None else getattr(getattr(error, "status", None), "code", None) or 0
    said = str(error) if isinstance(error, ApiError) else _message(error.response)
    text = f"{url}: {printable(said.splitlines()[0] if said else 'no reason given')}"
    ahead = code == 504 and response is not None and "watch=true" in str(response.request.url)  # "Too large resource version"
    if code == 410 or ahead:
        return WatchGapError(text)
    if code == 404 and isinstance(error, ApiError) and error.status.code == 404:  # the server's own word, not a gateway's
        return MissingError(text)
    if code in (401, 403):
        return RegistryAuthError(text)
    if code == 409:
        return ConflictError(text)
    return RegistryUnavailableError(text) if code == 429 or code >= 500 else RegistryRefusedError(text)


def _message(response: httpx2.Response) -> str:
    """Why the server refuses, in its own words where it says it as Kubernetes does."""
    with suppress(ValueError, TypeError, KeyError, httpx2.StreamError):
        return str(response.json()["message"])
    return f"HTTP {response.status_code}"
