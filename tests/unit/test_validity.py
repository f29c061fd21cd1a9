"""When is a certificate valid? Read from any DER, and from anything that is none."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flannelpy.registry.etcd.validity import Validity, of_der, of_pem


def openssl(*words: str) -> str:
    return subprocess.run(["openssl", *words], capture_output=True, text=True, check=True, timeout=20).stdout


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("pem") / "ca.pem"
    made = ["-subj", "/CN=x", "-days", "12000", "-keyout", str(out.with_suffix(".key")), "-out", str(out)]
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *made)
    return out.read_bytes()


def test_a_certificates_times_are_openssls(pem: bytes, tmp_path: Path) -> None:
    """12,000 days end after 2049, where the form of the year changes."""
    path = tmp_path / "x.pem"
    path.write_bytes(pem)
    said = openssl("x509", "-in", str(path), "-noout", "-dates").splitlines()[:2]
    begin, end = (datetime.strptime(line.partition("=")[2], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC) for line in said)
    assert of_pem(b"a comment\n" + pem) == Validity(begin, end)
    assert end.year > 2049


def test_the_systems_own_certificates_are_read() -> None:
    for der in ssl.create_default_context().get_ca_certs(binary_form=True):
        assert of_der(der) is not None


@given(st.binary(max_size=200))
@example(b"\x30\x80")
@example(b"\x30\x84\xff\xff\xff\xff")
def test_anything_else_is_no_certificate(text: bytes) -> None:
    assert of_der(text) is None
    assert of_pem(text) is None
    assert of_pem(b"-----BEGIN CERTIFICATE-----" + text + b"-----END CERTIFICATE-----") is None


@given(st.data())
def test_a_certificate_cut_or_spoilt_never_raises(pem: bytes, data: st.DataObject) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(pem.decode()))
    der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    read = of_der(bytes(der[: data.draw(st.integers(0, len(der)))]))
    assert read is None or isinstance(read, Validity)


def test_the_fault_says_from_when_to_when_and_what_the_clock_says() -> None:
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    valid = Validity(begin, end)
    assert valid.fault(begin) == valid.fault(end) == ""
    assert valid.fault(end + timedelta(minutes=1)) == (
        "has expired (valid from 2026-01-01 00:00 UTC to 2027-01-01 00:00 UTC; this host's clock says 2027-01-01 00:01 UTC)"
    )
    assert valid.fault(begin - timedelta(days=400)).startswith("is not valid yet (")
