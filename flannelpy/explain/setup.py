"""How was this agent told to run? What a command on the same host needs to reach the same registry: names of files, never what is
in them, and no password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flannelpy.core.errors import MalformedError
from flannelpy.explain import places

PAGE = places.SETUP
"""The document's path on the agent's socket, which only root and the agent's own user can open."""


@dataclass(frozen=True, slots=True)
class Setup:
    """``endpoints``: URLs with commas between them. Files by absolute names, empty where there is none. ``password_hidden``: the
    agent has its password as text, which it hands to nobody. ``kube``: leases are Kubernetes' nodes, and of what is etcd's nothing
    counts.
    """

    endpoints: str
    prefix: str
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password_file: str = ""
    password_hidden: bool = False
    subnet_file: str = ""
    kube: bool = False
    kube_api_url: str = ""
    kubeconfig: str = ""
    annotation_prefix: str = ""
    net_config: str = ""

    def options(self) -> Mapping[str, str]:
        """As a person would give them: name of the flag -> value, those that are not empty."""
        if self.kube:
            nodes = {
                "kube-subnet-mgr": "true",
                "kube-api-url": self.kube_api_url,
                "kubeconfig-file": self.kubeconfig,
                "kube-annotation-prefix": self.annotation_prefix,
                "net-config-path": self.net_config,
                "subnet-file": self.subnet_file,
            }
            return {name: value for name, value in nodes.items() if value}
        found = {
            "etcd-endpoints": self.endpoints,
            "etcd-prefix": self.prefix,
            "etcd-cafile": self.cafile,
            "etcd-certfile": self.certfile,
            "etcd-keyfile": self.keyfile,
            "etcd-username": self.username,
            "etcd-password-file": self.password_file,
            "subnet-file": self.subnet_file,
        }
        return {name: value for name, value in found.items() if value}


def to_json(setup: Setup) -> str:
    """The document."""
    return json.dumps(asdict(setup))


def from_json(text: str) -> Setup:
    """What an agent said; names that are not known here are passed over. Raises MalformedError."""
    try:
        fields: Any = json.loads(text)
        found = {name: fields[name] for name in Setup.__dataclass_fields__ if name in fields}
        setup = Setup(**found)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise MalformedError("expected how the agent reaches its registry, as JSON") from None
    for name, value in asdict(setup).items():
        wanted = bool if name in ("password_hidden", "kube") else str
        if not isinstance(value, wanted):
            raise MalformedError(f"{name}: expected {'true or false' if wanted is bool else 'text'}")
    return setup
