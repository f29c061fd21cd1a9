"""What systemd gets told, over a real socket."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from flannelpy.agent.systemd import Notifier


def test_ready_and_status_are_one_message(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        notifier.ready("10.5.72.0/24 by vxlan")
        assert systemd.recv(1024) == b"READY=1\nSTATUS=10.5.72.0/24 by vxlan"
        notifier.stopping()
        assert systemd.recv(1024) == b"STOPPING=1"


def test_an_abstract_socket_is_written_with_an_at_sign() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0flannelpy-test-notify")
        Notifier("@flannelpy-test-notify").status("fine")
        assert systemd.recv(1024) == b"STATUS=fine"


def test_nobody_listening_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    with caplog.at_level(logging.WARNING):
        notifier.status("one")
        notifier.status("two")
    assert caplog.text.count("systemd cannot be told") == 1


def test_without_systemd_nothing_happens() -> None:
    Notifier("").ready("fine")
