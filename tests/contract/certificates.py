"""Certificates that are valid at some other time, or signed by another CA of the same name: by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

from netns_lab.etcd import Tls

_CONFIG = """
[ca]
default_ca = here
[here]
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


def reissued(tls: Tls, who: str, begin: str, end: str, folder: Path) -> str:
    """The certificate of ``server`` or ``client`` once more, valid from ``begin`` to ``end`` (YYYYMMDDHHMMSSZ); its path."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tls.ca).parent
    (folder / "ca.cnf").write_text(_CONFIG.format(folder=folder))
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("01\n")
    out = folder / f"{who}.pem"
    _openssl(
        *("ca", "-batch", "-notext", "-config", str(folder / "ca.cnf"), "-cert", tls.ca, "-keyfile", str(made / "ca.key")),
        *("-in", str(made / f"{who}.csr"), "-extfile", str(made / f"{who}.ext"), "-out", str(out)),
        *("-startdate", begin, "-enddate", end),
    )
    return str(out)


def ca_of_the_same_name(tls: Tls, folder: Path) -> str:
    """Another key under the name of the first, without the key identifiers that would tell them apart; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "ca.pem"
    subject = _openssl("x509", "-in", tls.ca, "-noout", "-subject", "-nameopt", "compat").partition("subject=")[2].strip()
    config = folder / "bare.cnf"
    config.write_text("[req]\ndistinguished_name=dn\nx509_extensions=bare\n[dn]\n[bare]\nbasicConstraints=critical,CA:true\n")
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-config", str(config)),
        *("-subj", subject if subject.startswith("/") else f"/{subject}", "-keyout", str(folder / "ca.key"), "-out", str(out)),
    )
    return str(out)


def _openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
