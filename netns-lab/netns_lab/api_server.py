"""What is a Kubernetes API server, as far as nodes go? A small one over HTTP: list by pages, watch, get, post, patch, delete.

Like the real one it gives every change a resourceVersion that grows, ends watches when asked to, answers 410 for what it has
forgotten, and lets ``nodes/status`` change annotations and the status but never the spec. Faults are in a test's hand: ``compact``,
``cut``, ``token``. As a program (``python -m netns_lab.api_server``) it keeps its nodes in a file, so that it can be killed and
come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import json
import socket
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

STRATEGIC = "application/strategic-merge-patch+json"
CREATED = "2026-01-01T00:00:00Z"


class RefusedError(Exception):
    """An answer that is a Status: code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ApiServer:
    """The nodes of a cluster, served at ``url``. ``token``: who brings no such bearer token is refused."""

    def __init__(self, state: Path | None = None) -> None:
        self.nodes: dict[str, Json] = {}
        self.pods: dict[tuple[str, str], str] = {}
        """The node that a pod (namespace, name) is on."""
        self.version = 1
        self.token = ""
        self.forbidden: set[str] = set()
        """Verbs that RBAC does not allow: get, list, watch, patch."""
        self.agents: set[str] = set()
        """Who asked, by the header User-Agent."""
        self.managers: list[str] = []
        """In whose name each patch was made (fieldManager)."""
        self.requests: list[str] = []
        """What was asked, as ``GET /api/v1/nodes``, with a mark where it is a watch."""
        self.patches: list[Json] = []
        self.port = 0
        self._host = "127.0.0.1"
        self._state = state
        self._history: list[tuple[int, str]] = []
        """Each change: its version, and what a watch says of it."""
        self._texts: dict[str, str] = {}
        """The nodes as they are sent."""
        self._compacted = 0
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        if state is not None and state.exists():
            kept = json.loads(state.read_text())
            self.nodes, self.version = kept["nodes"], kept["version"]
            self._texts = {name: json.dumps(node) for name, node in self.nodes.items()}
            self._compacted = self.version

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"http://{self._host}:{self.port}"

    # -------------------------------------------------------------------------------------------------------- faults

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve; after ``stop`` at the same port."""
        self._server = await asyncio.start_server(self._serve, host, port or self.port)
        self._host, self.port = self._server.sockets[0].getsockname()

    async def start_at(self, listening: socket.socket) -> None:
        """Serve at a socket that is bound, in whatever namespace it is."""
        self._server = await asyncio.start_server(self._serve, sock=listening)
        self._host, self.port = listening.getsockname()

    async def stop(self) -> None:
        """Be gone, connections included; the nodes stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection that stands."""
        for writer in self._open:
            writer.transport.abort()

    def compact(self) -> None:
        """Forget what happened; who watches from before is told 410."""
        self._compacted = self.version
        self._history.clear()

    # --------------------------------------------------------------------------------------------------------- nodes

    def add(
        self,
        name: str,
        *cidrs: str,
        annotations: Mapping[str, str] | None = None,
        created: str = CREATED,
        status: Json | None = None,
    ) -> Json:
        """A node, as kubelet and controller-manager would make it."""
        spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
        meta = {"name": name, "creationTimestamp": created, "annotations": dict(annotations or {}), "uid": f"uid-{name}"}
        return self._write("ADDED", {"metadata": meta, "spec": spec, "status": status or {"conditions": []}})

    def change(self, name: str, **parts: Json) -> Json:
        """Merge into a node whatever is said, as an administrator may."""
        return self._write("MODIFIED", _merged(self.nodes[name], parts))

    def beat(self, name: str) -> Json:
        """A heartbeat of its kubelet."""
        at = datetime.fromtimestamp(self.version, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.change(name, status={"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": at}]})

    def remove(self, name: str) -> None:
        """The node is deleted."""
        self._write("DELETED", self.nodes[name])

    def annotations(self, name: str) -> dict[str, str]:
        """Those of a node."""
        return dict(self.nodes[name]["metadata"].get("annotations") or {})

    def conditions(self, name: str) -> dict[str, str]:
        """The status of each condition of a node."""
        return {each["type"]: each["status"] for each in self.nodes[name].get("status", {}).get("conditions", [])}

    def _write(self, kind: str, node: Json) -> Json:
        self.version += 1
        node = {"apiVersion": "v1", "kind": "Node", **copy.deepcopy(node)}
        node["metadata"]["resourceVersion"] = str(self.version)
        name = node["metadata"]["name"]
        text = json.dumps(node)
        if kind == "DELETED":
            del self.nodes[name], self._texts[name]
        else:
            self.nodes[name], self._texts[name] = node, text
        self._history.append((self.version, f'{{"type": "{kind}", "object": {text}}}'))
        if self._state is not None:
            self._state.write_text(json.dumps({"nodes": self.nodes, "version": self.version}))
        self._changed.set()
        self._changed = asyncio.Event()
        return node

    # ---------------------------------------------------------------------------------------------------------- HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().split("\r\n")
                method, target, _ = line.split(" ")
                headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in rest if each)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                await self._answer(writer, method, target, headers, body)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, BrokenPipeError):
            pass
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        watching = query.get("watch") == "true"
        self.requests.append(f"{method} {parts.path}{' watch' if watching else ''}")
        self.agents.add(headers.get("user-agent", ""))
        try:
            if self.token and headers.get("authorization") != f"Bearer {self.token}":
                raise RefusedError(401, "Unauthorized")
            if (verb := _verb(method, parts.path, watching=watching)) in self.forbidden:
                raise RefusedError(403, f"nodes is forbidden: cannot {verb}")
            if watching:
                await self._watch(writer, query)
                return
            code, answer = 200, self._call(method, parts.path, query, headers, body)
        except RefusedError as refused:
            code, answer = refused.code, _status(refused.code, str(refused))
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        writer.write(f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
        await writer.drain()

    def _call(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Json | str:
        match method, path.strip("/").split("/")[2:]:
            case "GET", ["nodes"]:
                return self._list(int(query.get("limit", "0")), query.get("continue", ""))
            case "POST", ["nodes"]:
                made = json.loads(body)
                if made["metadata"]["name"] in self.nodes:
                    raise RefusedError(409, "already exists")
                made["metadata"].setdefault("creationTimestamp", CREATED)
                return self._write("ADDED", made)
            case "GET", ["nodes", name]:
                return self._get(name)
            case "DELETE", ["nodes", name]:
                gone = self._get(name)
                self.remove(name)
                return gone
            case "PATCH", ["nodes", name, *sub]:
                if headers.get("content-type") != STRATEGIC:
                    raise RefusedError(415, f"expected {STRATEGIC}")
                patch = json.loads(body)
                self.patches.append(patch)
                self.managers.append(query.get("fieldManager", ""))
                before = self._get(name)
                after = _merged(before, patch)
                if sub == ["status"]:
                    after["spec"] = before.get("spec", {})
                return before if after == before else self._write("MODIFIED", after)
            case "POST", ["v1", "selfsubjectaccessreviews"]:
                review: Json = json.loads(body)
                verb = review["spec"]["resourceAttributes"]["verb"]
                return {**review, "status": {"allowed": verb not in self.forbidden}}
            case "GET", ["namespaces", namespace, "pods", name] if (namespace, name) in self.pods:
                return {"metadata": {"name": name}, "spec": {"containers": [], "nodeName": self.pods[namespace, name]}}
        raise RefusedError(404, f"{path} not found")

    def _get(self, name: str) -> Json:
        if name not in self.nodes:
            raise RefusedError(404, f'nodes "{name}" not found')
        return self.nodes[name]

    def _list(self, limit: int, after: str) -> str:
        version, _, last = after.partition(":") if after else (str(self.version), "", "")
        if after and int(version) < self._compacted:
            raise RefusedError(410, "The provided continue parameter is too old")
        names = [name for name in sorted(self.nodes) if name > last]
        page = names[:limit] if limit else names
        meta = {"resourceVersion": version}
        if len(page) < len(names):
            meta["continue"] = f"{version}:{page[-1]}"
        items = ", ".join(self._texts[name] for name in page)
        return f'{{"apiVersion": "v1", "kind": "NodeList", "metadata": {json.dumps(meta)}, "items": [{items}]}}'

    async def _watch(self, writer: asyncio.StreamWriter, query: dict[str, str]) -> None:
        since = int(query.get("resourceVersion") or self.version)
        if since > self.version:
            raise RefusedError(504, f"Too large resource version: {since}, current: {self.version}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(float(query.get("timeoutSeconds", "1800"))):
                async for event in self._events(since):
                    line = event.encode() + b"\n"
                    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _events(self, since: int) -> AsyncIterator[str]:
        if since < self._compacted:
            yield json.dumps({"type": "ERROR", "object": _status(410, f"too old resource version: {since}")})
            return
        while True:
            changed = self._changed
            for version, event in self._history[bisect_right(self._history, since, key=itemgetter(0)) :]:
                since = version
                yield event
            await changed.wait()


def _verb(method: str, path: str, *, watching: bool) -> str:
    """What RBAC calls a request."""
    if method != "GET":
        return method.lower()
    return "watch" if watching else "list" if path.endswith("/nodes") else "get"


def _status(code: int, message: str) -> Json:
    """What stands in the place of an object that is refused."""
    return {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message, "code": code}


def _merged(before: Json, patch: Json) -> Json:
    """A strategic merge: null takes away, conditions are merged by type."""
    after = copy.deepcopy(before)
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        elif name == "conditions":
            there = {each["type"]: each for each in after.get(name, [])}
            for each in value:
                there[each["type"]] = {**there.get(each["type"], {}), **each}
            after[name] = list(there.values())
        elif isinstance(value, dict):
            after[name] = _merged(after.get(name) or {}, value)
        else:
            after[name] = value
    return after


async def _main(address: str, port: int, state: Path) -> None:
    server = ApiServer(state)
    await server.start(address, port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a small Kubernetes API server for nodes")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(_main(given.address, given.port, given.state))
