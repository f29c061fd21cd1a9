"""How is a cluster's API server reached, and who are we in it? As it was given; only the environment is read here."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flannelpy.core.errors import UsageError
from flannelpy.registry.kube.names import PREFIX, Names

NET_CONFIG = Path("/etc/kube-flannel/net-conf.json")
"""Where kube-flannel's DaemonSet mounts the network config."""

EXTRA = "pip install 'flannelpy[kube]', or Debian's way the package flannelpy-kube"
"""How the libraries come by which a cluster is reached."""


@dataclass(frozen=True, slots=True)
class Access:
    """``api_url`` and ``kubeconfig`` empty: from inside the cluster, as the pod's service account.

    ``node`` is our node's name; where it is empty, the pod ``pod`` (namespace, name) is on our node.
    """

    api_url: str = ""
    kubeconfig: str = ""
    prefix: str = PREFIX
    net_config: Path = NET_CONFIG
    node: str = ""
    pod: tuple[str, str] | None = None
    network_available: bool = True
    """Whether to say of our node that its network is there (condition NetworkUnavailable)."""


def find_node(environ: Mapping[str, str], hostname: str = "") -> tuple[str, tuple[str, str] | None]:
    """Our node's name, or the pod that is on it: NODE_NAME, POD_NAME with POD_NAMESPACE, else the host's, as kubelet does."""
    if name := environ.get("NODE_NAME"):
        return name, None
    pod, namespace = environ.get("POD_NAME"), environ.get("POD_NAMESPACE")
    if pod and namespace:
        return "", (namespace, pod)
    return (hostname or socket.gethostname()).strip().lower(), None


def parse_api_url(text: str, where: str) -> str:
    """The API server's URL without a slash at its end; may be empty. Raises UsageError."""
    if text and not re.fullmatch(r"https?://[^/@\s]+/?", text):
        shown = f"...@{text.rpartition('@')[2]}" if "@" in text else text
        raise UsageError(f"{where} {shown!r}: expected a URL like https://10.0.0.1:6443")
    return text.rstrip("/")


def parse_prefix(text: str, where: str) -> str:
    """The prefix of annotations, as it was written. Raises UsageError."""
    try:
        Names.under(text)
    except UsageError as error:
        raise UsageError(f"{where} {error}") from None
    return text
