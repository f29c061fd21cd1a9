"""How are etcd3's messages and stubs used on a protobuf that its generated code is too old for?

etcd3 0.12.0 was generated for protobuf 3: importing it on 4 or later fails, and the pure-Python escape decodes a hundred times
slower. Each generated module carries its serialized descriptor, though, and a descriptor is all that protobuf needs. So the
descriptors are read out of the installed package's text and given to a descriptor pool of our own, where no other user of
``kv.proto`` or ``rpc.proto`` in this process can collide with them. The stubs module runs as it is, on those messages. Nothing
stays in ``sys.modules``, and etcd3's blocking client is never imported.

Reading another package's text holds for one version of it: hence the exact pin, the check of the version, and a message sent
through at load.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

VERSION = "0.12.0"
"""The one version of etcd3 whose text is known."""

_SERIALIZED = re.compile(r"serialized_pb=_b\('((?:[^'\\\n]|\\.)*)'\)")
_VERSION = re.compile(r"^__version__ = '([^']*)'", re.MULTILINE)
_SINCE = {"WatchCreateRequest": {"fragment": 8}, "WatchResponse": {"fragment": 7}}
"""Since etcd 3.4: a response that is larger than etcd's limit of a request comes in parts (rpc.proto)."""
_BOOL, _OPTIONAL = 8, 1  # FieldDescriptorProto.TYPE_BOOL, LABEL_OPTIONAL
_STUBS = ("KVStub", "LeaseStub", "WatchStub", "AuthStub")


def load(package: Path | None = None) -> SimpleNamespace:
    """etcd's messages and stubs as attributes of one object: ``RangeRequest``, ``KVStub``, ...; of the etcd3 that is installed.

    Raises ImportError with what was found and what was expected where etcd3 is missing, is another version, or cannot be read.
    """
    # gRPC's fork handlers would stall every child we start; they are chosen when grpc is imported. Its own log lines would
    # reach a person's terminal in a form nobody can act on; names are looked up as the rest of the host does.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
    package = package or _package()
    found = _VERSION.search((package / "__init__.py").read_text())
    if found is None or found[1] != VERSION:
        raise ImportError(f"etcd3 in {package}: version {found[1] if found else 'unknown'}, expected {VERSION}")
    rpc = _messages(package / "etcdrpc")
    stubs = _stubs(package / "etcdrpc" / "rpc_pb2_grpc.py", rpc)
    for name in _STUBS:
        setattr(rpc, name, getattr(stubs, name))
    _probe(rpc, package)
    return SimpleNamespace(**{name: value for name, value in vars(rpc).items() if not name.startswith("__")})


def _package() -> Path:
    spec = find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise ImportError(f"etcd3 is not installed: expected version {VERSION}")
    return Path(spec.origin).parent


def _messages(folder: Path) -> ModuleType:
    """A module like etcd3's ``rpc_pb2``, made from the descriptors of its three files and what etcd has added since."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    pool = DescriptorPool()
    module = ModuleType("etcd3.etcdrpc.rpc_pb2")
    for name in ("kv_pb2", "auth_pb2", "rpc_pb2"):  # dependencies first
        described = FileDescriptorProto.FromString(_descriptor(folder / f"{name}.py"))
        _bring_up_to_date(described)
        try:
            pool.AddSerializedFile(described.SerializeToString())
        except TypeError as error:
            raise ImportError(f"{folder / name}.py: {error}; expected etcd3 {VERSION} as released") from None
        file = pool.FindFileByName(f"{name.removesuffix('_pb2')}.proto")
        for message, descriptor in file.message_types_by_name.items():
            setattr(module, message, GetMessageClass(descriptor))
    return module


def _descriptor(path: Path) -> bytes:
    found = _SERIALIZED.search(path.read_text())
    if found is None:
        raise ImportError(f"{path}: no serialized descriptor; expected etcd3 {VERSION} as released")
    return found[1].encode("ascii").decode("unicode_escape").encode("latin-1")


def _bring_up_to_date(file: Any) -> None:
    """Add the fields that etcd has got since."""
    for message in file.message_type:
        for name, number in _SINCE.get(message.name, {}).items():
            message.field.add(name=name, json_name=name, number=number, type=_BOOL, label=_OPTIONAL)


def _stubs(path: Path, messages: ModuleType) -> ModuleType:
    """etcd3's stubs module, run on our messages. While it runs, and only then, its import of them finds ours."""
    name = "etcd3.etcdrpc"
    parent: Any = ModuleType(name)
    parent.rpc_pb2 = messages
    loader = SourceFileLoader(f"{name}.rpc_pb2_grpc", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = parent
    try:
        loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    return module


def _probe(rpc: Any, package: Path) -> None:
    """Send one message that nests two others there and back, byte for byte as etcd's protocol has it (rpc.proto, kv.proto)."""
    request = rpc.WatchResponse(watch_id=3, compact_revision=5)
    event = request.events.add()
    event.kv.key, event.kv.mod_revision = b"k", 7
    expected = bytes.fromhex("1003 2805 5a07 1205 0a016b 1807")
    if request.SerializeToString() != expected or rpc.WatchResponse.FromString(expected) != request:
        raise ImportError(f"etcd3 in {package}: its messages do not survive this protobuf; expected etcd3 {VERSION} as released")
