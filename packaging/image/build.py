"""How is the image made? ``build.py --into dist``, of the Debian packages that ``make deb`` has put there, without any daemon.

Two layers: what the agent needs of Debian (``root.py``), and flannelpy with its wheels. Out of it comes one archive that
containerd, podman and Docker take (``oci.py``); the same bytes for the same packages and commit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import oci
import root

TREE = Path(__file__).resolve().parents[2]
NAME = "flannelpy"
"""As the manifests in packaging/kubernetes and packaging/image/compose.yaml have it, with the tag latest."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--into", type=Path, default=TREE / "dist", metavar="DIRECTORY", help="where packages are and the image goes"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(sys.prefix, "cache/image"), metavar="DIRECTORY", help="Debian's packages"
    )
    given = parser.parse_args()
    try:
        archive = build(given.into, given.cache)
    except FileNotFoundError as error:
        raise SystemExit(f"image: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"image: {error.cmd[0]} failed with {error.returncode}; what it said stands above") from None
    print(f"{archive} {archive.stat().st_size / 1e6:.1f} MB")


def build(into: Path, cache: Path) -> Path:
    """Make the image; its path. Raises FileNotFoundError without packages, CalledProcessError where a tool fails."""
    os.umask(0o022)
    packages = [newest(into, each) for each in (NAME, f"{NAME}-udp", f"{NAME}-kube")]
    fields = [field(packages[0], each) for each in ("Version", "Architecture")]
    version, architecture = fields[0].rpartition("-")[0], fields[1]
    epoch = commit_time()
    with tempfile.TemporaryDirectory(prefix="flannelpy-image-") as work:
        base, agent = Path(work, "base"), Path(work, "agent")
        root.merge(base)
        root.unpack(root.fetch(sys.version_info.minor, cache), base)
        root.settle(base)
        root.unpack(packages, agent)
        for each in (base, agent):
            root.compile_all(each)
        layers = (oci.layer(base, "Debian's python3 and libraries", epoch), oci.layer(agent, f"flannelpy {fields[0]}", epoch))
    labels = {
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.description": "overlay network agent in flannel's shape",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.revision": revision(),
    }
    config = {
        "Entrypoint": ["/usr/bin/flannelpy"],
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"SSL_CERT_FILE=/{root.BUNDLE}", "LANG=C.UTF-8"],
        "Labels": labels,
        "StopSignal": "SIGTERM",
        "WorkingDir": "/",
    }
    image = oci.Image((f"{NAME}:latest", f"{NAME}:{version}"), architecture, epoch, config, layers)
    archive = into / f"{NAME}_{fields[0]}_{architecture}.oci.tar"
    oci.write(image, archive)
    return archive


def newest(into: Path, package: str) -> Path:
    """The package's file that was made last."""
    found = sorted(into.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"no {package}_*.deb in {into}: make deb makes it")
    return found[-1]


def field(package: Path, name: str) -> str:
    """What a package says of itself."""
    return told("dpkg-deb", "-f", os.fspath(package), name)


def commit_time() -> int:
    """Seconds since 1970: SOURCE_DATE_EPOCH where it is set, else the commit's."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or told("git", "-C", os.fspath(TREE), "log", "-1", "--format=%ct"))


def revision() -> str:
    """The commit; empty outside a checkout."""
    asked = subprocess.run(["git", "-C", os.fspath(TREE), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def told(*words: str) -> str:
    """What a command has said on stdout, without the line's end."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main()
