"""How does a test do what an administrator does with kubectl? Kubernetes' own HTTP, with a socket out of the lab's namespace."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from netns_lab.namespaces import open_socket

Json = dict[str, Any]

APPLY, MERGE, STRATEGIC = (f"application/{each}" for each in ("apply-patch+yaml", "merge-patch+json", "strategic-merge-patch+json"))
"""The three kinds of patches that are used here (Kubernetes' API concepts)."""
WITHIN_S = 60.0

_GROUPS = {"ClusterRole": "apis/rbac.authorization.k8s.io/v1", "DaemonSet": "apis/apps/v1", "Lease": "apis/coordination.k8s.io/v1"}
_GROUPS["ClusterRoleBinding"] = _GROUPS["ClusterRole"]
_EVERYWHERE = {"ClusterRole", "ClusterRoleBinding", "Namespace", "Node"}
"""Kinds whose objects are in no namespace."""


def path_of(kind: str, name: str = "", namespace: str = "default") -> str:
    """Where an object is, or with no name all of its kind."""
    where = "" if kind in _EVERYWHERE else f"/namespaces/{namespace}"
    return f"/{_GROUPS.get(kind, 'api/v1')}{where}/{kind.lower()}s" + (f"/{name}" if name else "")


class RefusedError(AssertionError):
    """The server's answer was no; ``code`` is HTTP's."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"{code}: {said}")
        self.code = code


class Api:
    """An API server at this address and port 443, asked from a namespace by whoever has this token."""

    def __init__(self, namespace: Path, address: str, authority: Path, token: str) -> None:
        self._namespace = namespace
        self._address = address
        self._authority = authority
        self._token = token

    async def call(self, method: str, path: str, body: object = None, *, kind: str = "application/json", **query: str) -> str:
        """Ask; the answer's text. Raises RefusedError, OSError."""
        plain = open_socket(self._namespace, socket.AF_INET, socket.SOCK_STREAM)
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        return await asyncio.to_thread(self._ask, plain, method, target, data, kind)

    def _ask(self, plain: socket.socket, method: str, target: str, data: str | None, kind: str) -> str:
        with plain:
            context = ssl.create_default_context(cafile=str(self._authority))
            plain.settimeout(WITHIN_S)
            plain.connect((self._address, 443))
            connection = http.client.HTTPConnection(self._address)
            with context.wrap_socket(plain, server_hostname=self._address) as connection.sock:
                headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind, "Connection": "close"}
                connection.request(method, target, data, headers)
                answer = connection.getresponse()
                text = answer.read().decode()
        if answer.status >= 400:
            raise RefusedError(answer.status, f"{method} {target}: {text[:500]}")
        return text

    async def ready(self) -> bool:
        """Whether it says that it is."""
        try:
            return await self.call("GET", "/readyz") == "ok"
        except (OSError, RefusedError, http.client.HTTPException):
            return False

    async def get(self, kind: str, name: str, namespace: str = "default") -> Json:
        """An object."""
        found: Json = json.loads(await self.call("GET", path_of(kind, name, namespace)))
        return found

    async def all(self, kind: str, namespace: str = "default") -> list[Json]:
        """Every object of a kind."""
        found: list[Json] = json.loads(await self.call("GET", path_of(kind, "", namespace)))["items"]
        return found

    async def apply(self, *documents: Mapping[str, Any]) -> None:
        """``kubectl apply --server-side``."""
        for each in documents:
            meta = each["metadata"]
            path = path_of(each["kind"], meta["name"], meta.get("namespace", "default"))
            await self.call("PATCH", path, each, kind=APPLY, fieldManager="test", force="true", fieldValidation="Strict")

    async def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """``kubectl delete``."""
        await self.call("DELETE", path_of(kind, name, namespace))

    async def label(self, node: str, label: str) -> None:
        """``kubectl label node NODE NAME=VALUE``."""
        name, _, value = label.partition("=")
        await self.call("PATCH", path_of("Node", node), {"metadata": {"labels": {name: value}}}, kind=MERGE)

    async def token(self, account: str, namespace: str) -> str:
        """``kubectl create token``."""
        path = path_of("ServiceAccount", account, namespace) + "/token"
        made = json.loads(
            await self.call("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        )
        return str(made["status"]["token"])
