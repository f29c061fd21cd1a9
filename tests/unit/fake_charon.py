"""A charon that negotiates nothing: it is configured, and spoken to over VICI, as the real one, and notes what it is told.

Beside its strongswan.conf, in files that a test writes: ``up`` (names of connections that have a tunnel, or ``*``), ``refuse`` (a
command that it will not carry out), ``hang`` (it answers no more).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socketserver
import struct
import sys
import time
from pathlib import Path
from typing import Any

from vici.protocol import FiniteStream, Message, Packet, Transport


def plain(message: Any) -> Any:
    """What came over the wire, as text."""
    if isinstance(message, dict):
        return {name: plain(value) for name, value in message.items()}
    if isinstance(message, list):
        return [plain(value) for value in message]
    return message.decode() if isinstance(message, bytes) else message


class Daemon(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[str, object] = {}
        super().__init__(path, Turn)

    def said(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def note(self, command: str, message: object) -> None:
        with (self.folder / "notes").open("a") as notes:
            notes.write(json.dumps([command, message]) + "\n")

    def associations(self) -> list[dict[str, object]]:
        up = self.said("up").split()
        one = {"state": "ESTABLISHED", "child-sas": {"x-1": {"state": "INSTALLED"}}}
        waiting: dict[str, object] = {"state": self.said("state") or "CONNECTING", "child-sas": {}}
        has = {name: name in up or "*" in up for name in self.loaded}
        return [{name: one if there else waiting} for name, there in has.items() if there or self.said("state") != "none"]


class Turn(socketserver.BaseRequestHandler):
    """One connection of the agent's."""

    def handle(self) -> None:
        daemon = self.server
        assert isinstance(daemon, Daemon)
        transport = Transport(self.request)
        while True:
            try:
                packet = FiniteStream(transport.receive())
            except OSError:
                return
            kind, length = struct.unpack("!BB", packet.read(2))
            command = packet.read(length).decode()
            while daemon.said("hang"):
                time.sleep(0.05)
            if kind in (Packet.EVENT_REGISTER, Packet.EVENT_UNREGISTER):
                transport.send(bytes([Packet.EVENT_CONFIRM]))
                continue
            self.answer(daemon, transport, command, plain(Message.deserialize(packet)))

    def answer(self, daemon: Daemon, transport: Transport, command: str, message: dict[str, Any]) -> None:
        answer: dict[str, object] = {"success": "yes"}
        if command != "get-conns":
            daemon.note(command, message)
        if daemon.said("refuse") == command:
            answer = {"success": "no", "errmsg": "invalid value for: esp_proposals, config discarded"}
        elif command == "load-conn":
            daemon.loaded |= message
        elif command == "unload-conn":
            daemon.loaded.pop(message["name"], None)
        elif command == "get-conns":
            answer = {"conns": ["somebody-elses", *daemon.loaded]}
        elif command == "stats":
            answer = {"ikesas": {"total": str(len(daemon.associations())), "half-open": "0"}}
        elif command == "list-sas":
            answer = {}
            for each in daemon.associations():
                event = b"list-sa"
                transport.send(bytes([Packet.EVENT, len(event)]) + event + Message.serialize(each))
        transport.send(bytes([Packet.CMD_RESPONSE]) + Message.serialize(answer))


def main() -> None:
    conf = Path(os.environ["STRONGSWAN_CONF"])
    found = re.search(r"socket = unix://(\S+)", conf.read_text())
    assert found
    folder = conf.parent
    (folder / "environment").write_text(json.dumps(dict(os.environ)))
    if (folder / "mute").exists():
        (folder / "charon.log").write_text("00[LIB] plugin 'vici': failed to load - no plugin file available\n")
        time.sleep(60)
    if (folder / "fail").exists():
        (folder / "charon.log").write_text("00[NET] could not open IPv4 socket, IPv4 disabled\n00[DMN] initialization failed\n")
        sys.exit(66)
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "ended").write_text("gently"), os._exit(0)))  # type: ignore[func-returns-value]
    Daemon(found[1], folder).serve_forever()


if __name__ == "__main__":
    main()
