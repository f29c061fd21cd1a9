"""etcd3's messages on a protobuf younger than they are: they carry etcd's wire format, and nobody else in the process notices."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from flannelpy.registry.etcd import loader as etcd3_loader


def package(folder: Path, version: str = etcd3_loader.VERSION) -> Path:
    """A copy of what the loader reads of etcd3, to be spoilt."""
    spec = find_spec("etcd3")
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin).parent
    (folder / "etcdrpc").mkdir()
    (folder / "__init__.py").write_text(f"__version__ = '{version}'\n")
    for name in ("kv_pb2", "auth_pb2", "rpc_pb2", "rpc_pb2_grpc"):
        (folder / "etcdrpc" / f"{name}.py").write_bytes((origin / "etcdrpc" / f"{name}.py").read_bytes())
    return folder


def test_messages_have_etcds_wire_format() -> None:
    rpc = etcd3_loader.load()
    assert rpc.RangeRequest(key=b"a", range_end=b"b", limit=5).SerializeToString() == bytes.fromhex("0a0161 120162 1805")
    assert rpc.Compare.VERSION == 0
    assert rpc.Compare.MOD == 2


def test_an_unknown_field_is_carried_through() -> None:
    """The watch's progress request, field 3, is younger than these messages."""
    rpc = etcd3_loader.load()
    assert rpc.WatchRequest.FromString(b"\x1a\x00").SerializeToString() == b"\x1a\x00"


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"version 0\.13\.0, expected 0\.12\.0"):
        etcd3_loader.load(package(tmp_path, "0.13.0"))


def test_a_package_without_descriptors_is_refused(tmp_path: Path) -> None:
    spoilt = package(tmp_path)
    (spoilt / "etcdrpc" / "auth_pb2.py").write_text("DESCRIPTOR = None\n")
    with pytest.raises(ImportError, match=r"auth_pb2\.py: no serialized descriptor; expected etcd3 0\.12\.0 as released"):
        etcd3_loader.load(spoilt)


def test_messages_that_lost_a_field_are_refused(tmp_path: Path) -> None:
    spoilt = package(tmp_path)
    text = (spoilt / "etcdrpc" / "rpc_pb2.py").read_text()
    changed = text.replace(r"\x10\x63ompact_revision\x18\x05", r"\x10\x63ompact_revision\x18\x08", 1)
    assert changed != text
    (spoilt / "etcdrpc" / "rpc_pb2.py").write_text(changed)
    with pytest.raises(ImportError, match="do not survive this protobuf"):
        etcd3_loader.load(spoilt)


def test_loading_leaves_the_process_as_it_was() -> None:
    """In a fresh process: no etcd3 in sys.modules, its messages not in the default pool, and grpc told not to mind forks."""
    program = """
import os, sys
from flannelpy.registry.etcd import loader as etcd3_loader
assert "grpc" not in sys.modules
rpc = etcd3_loader.load()
assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
assert not [name for name in sys.modules if name.split(".")[0] in ("etcd3", "tenacity")]
from google.protobuf import descriptor_pool
try:
    descriptor_pool.Default().FindFileByName("rpc.proto")
except KeyError:
    print("clean")
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False, env=env)
    assert (done.stdout, done.stderr) == ("clean\n", "")


@pytest.mark.parametrize("module", ["registry", "watch", "channel"])
def test_grpc_is_imported_only_after_its_environment_is_set(module: str) -> None:
    """gRPC decides on fork handlers while it is imported; set later, the variable does nothing."""
    program = f"""
import os, sys
class Look:
    def find_spec(name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
sys.meta_path.insert(0, Look)
import flannelpy.registry.etcd.{module}
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False, env=env)
    assert (done.stdout, done.stderr) == ("0\n", "")
