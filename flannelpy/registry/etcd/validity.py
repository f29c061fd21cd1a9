"""From when to when is a certificate valid? The two times out of its DER, without a library for all the rest.

Certificate ::= SEQUENCE { tbsCertificate SEQUENCE { [0] version?, serialNumber, signature, issuer, validity, ... }, ... }
Validity    ::= SEQUENCE { notBefore Time, notAfter Time }            RFC 5280, 4.1 and 4.1.2.5; X.690, 8.1
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

_VERSION, _UTC_TIME = 0xA0, 0x17
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Validity:
    """A certificate counts from ``begin`` to ``end``, both UTC."""

    begin: datetime
    end: datetime

    def fault(self, now: datetime) -> str:
        """What is wrong with it at ``now``, in words; "" where it is valid."""
        if self.begin <= now <= self.end:
            return ""
        wrong = "has expired" if now > self.end else "is not valid yet"
        return f"{wrong} (valid from {_day(self.begin)} to {_day(self.end)}; this host's clock says {_day(now)})"


def of_pem(text: bytes) -> Validity | None:
    """Of the first certificate in a PEM file, which is the one that is shown; None where there is none to be read."""
    _, found, rest = text.decode(errors="replace").partition(_BEGIN)
    body, closed, _ = rest.partition(_END)
    if not found or not closed:
        return None
    try:
        return of_der(ssl.PEM_cert_to_DER_cert(f"{_BEGIN}{body}{_END}"))
    except ValueError:
        return None


def of_der(der: bytes) -> Validity | None:
    """Of one certificate in DER; None where it is none."""
    try:
        _, certificate, _ = _element(der)
        _, fields, _ = _element(certificate)
        tag, _, rest = _element(fields)
        for _ in range(3 if tag == _VERSION else 2):  # serialNumber, signature, issuer; without a version the first was the serial
            _, _, rest = _element(rest)
        _, validity, _ = _element(rest)
        begin_tag, begin, rest = _element(validity)
        end_tag, end, _ = _element(rest)
        return Validity(_time(begin_tag, begin), _time(end_tag, end))
    except (ValueError, IndexError):
        return None


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element's tag and content, and what follows it."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if len(data) < start + length:
        raise ValueError("cut short")
    return tag, data[start : start + length], data[start + length :]


def _time(tag: int, content: bytes) -> datetime:
    """UTCTime has two digits for the year, of 1950 to 2049 (RFC 5280, 4.1.2.5.1); GeneralizedTime four."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _day(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")
