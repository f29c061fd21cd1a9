"""How does a directory become an image? Layers, config, manifest, index, each by its digest, in one archive that says it twice.

The archive is an OCI image layout (github.com/opencontainers/image-spec: image-layout.md, config.md, layer.md), which containerd,
podman and skopeo read, with the ``manifest.json`` beside it that ``docker load`` reads from 1.10 on. Same directory, same bytes:
names are sorted, times are the one that is given, owners are root.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
BLOBS = "blobs/sha256"


@dataclass(frozen=True)
class Layer:
    """One layer: what it is called in the history, its compressed bytes, and the digest of the uncompressed ones."""

    name: str
    blob: bytes
    diff_id: str


@dataclass(frozen=True)
class Image:
    """What an image says of itself. ``names`` are references as ``docker run`` takes them; ``epoch`` is in seconds since 1970."""

    names: tuple[str, ...]
    architecture: str
    epoch: int
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]


def layer(root: Path, name: str, epoch: int) -> Layer:
    """Everything below a directory as a layer, with its modes, and owned by root. Devices, pipes and sockets raise OSError."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            entry = _entry(path.relative_to(root).as_posix(), epoch)
            if path.is_symlink():
                entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, path.readlink().as_posix(), 0o777
                archive.addfile(entry)
            elif path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, path.stat().st_mode & 0o7777
                archive.addfile(entry)
            elif path.is_file():
                content = path.read_bytes()
                entry.size, entry.mode = len(content), path.stat().st_mode & 0o7777
                archive.addfile(entry, io.BytesIO(content))
            else:
                raise OSError(f"{path}: neither file, directory nor link")
    plain = packed.getvalue()
    return Layer(name, gzip.compress(plain, 9, mtime=0), _digest(plain))


def write(image: Image, into: Path) -> None:
    """The archive. It is there whole or not at all."""
    blobs = [each.blob for each in image.layers]
    config, manifest = _documents(image)
    described = _described(f"{OCI}.manifest.v1+json", manifest)
    index = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.index.v1+json",
        "manifests": [
            described
            | {
                "platform": {"architecture": image.architecture, "os": "linux"},
                # The one key is containerd's and the other podman's and skopeo's.
                "annotations": {
                    "io.containerd.image.name": f"docker.io/library/{name}",
                    "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                },
            }
            for name in image.names
        ],
    }
    docker = [{"Config": _path(config), "RepoTags": list(image.names), "Layers": [_path(blob) for blob in blobs]}]
    files = {_path(blob): blob for blob in (*blobs, config, manifest)}
    files |= {"oci-layout": _text({"imageLayoutVersion": "1.0.0"}), "index.json": _text(index), "manifest.json": _text(docker)}
    parts = into.with_name(f".{into.name}.part")
    try:
        with tarfile.open(parts, "w", format=tarfile.PAX_FORMAT) as archive:
            for name in ("blobs", BLOBS):
                entry = _entry(name, image.epoch)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            for name, content in sorted(files.items()):
                entry = _entry(name, image.epoch)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
        parts.replace(into)
    finally:
        parts.unlink(missing_ok=True)


def _documents(image: Image) -> tuple[bytes, bytes]:
    """Config and manifest."""
    created = datetime.fromtimestamp(image.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = _text(
        {
            "created": created,
            "architecture": image.architecture,
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": [each.diff_id for each in image.layers]},
            "history": [{"created": created, "created_by": each.name} for each in image.layers],
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": _described(f"{OCI}.config.v1+json", config),
        "layers": [_described(f"{OCI}.layer.v1.tar+gzip", each.blob) for each in image.layers],
        "annotations": image.config["Labels"],
    }
    return config, _text(manifest)


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _entry(name: str, epoch: int) -> tarfile.TarInfo:
    """A member that root owns."""
    entry = tarfile.TarInfo(name)
    entry.mtime = epoch
    return entry


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _path(blob: bytes) -> str:
    return f"{BLOBS}/{_digest(blob).partition(':')[2]}"


def _text(document: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
