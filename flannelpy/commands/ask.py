"""How is a running agent asked? One request over the Unix socket in its run directory."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from pathlib import Path

import click

from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.explain.status import PAGE, SOCKET, from_json

WITHIN_S = 5.0
"""How long the agent may be silent."""

MOST_BYTES = 64 << 20
"""More is no answer of ours: a cluster of 10,000 hosts takes 3 MB."""

_WHY = {
    errno.ENOENT: "there is no such socket",
    errno.ENOTDIR: "there is no such socket",
    errno.ECONNREFUSED: "the agent that made it is gone",
    errno.EACCES: "Permission denied; expected root, or the agent's own user",
}
_NOT_THERE = "expected an agent with this --run-dir; systemctl status flannelpy tells whether it runs"


def report(run_dir: Path, *, peers: bool, as_json: bool) -> int:
    """Print what the agent says; 0 where all is well, 3 where an error holds, 1 where it is not ready.

    Raises FlannelpyError in one line where it cannot be asked.
    """
    path = run_dir / SOCKET
    text = ask(path)
    try:
        if as_json:  # as it is, also from an agent of another version
            document = json.loads(text)
            click.echo(json.dumps(document, indent=2))
            errors = [one for one in document.get("conditions", ()) if one["severity"] == "error"]
            return _code(document["ready"] is True, bool(errors))
        status = from_json(text)
    except (MalformedError, ValueError, KeyError, TypeError) as error:
        raise FlannelpyError(f"{path}: {error}; is the agent of another version? Restart it after an upgrade") from None
    from flannelpy.commands.status_table import show

    show(status, peers=peers)
    return _code(status.ready, any(condition.severity == "error" for condition in status.conditions))


def _code(ready: bool, errors: bool) -> int:
    return (3 if errors else 0) if ready else 1


def ask(path: Path, page: str = PAGE) -> str:
    """What the agent behind this socket says. Raises FlannelpyError: which socket, what was expected, what to do."""
    try:
        return _get(path, page)
    except TimeoutError:
        why = f"no answer within {WITHIN_S:g} s; {_NOT_THERE}, its log what it does"
    except (BrokenPipeError, ConnectionResetError):
        why = f"it hung up without an answer; {_NOT_THERE}, its log what it does"
    except OSError as error:
        why = _WHY.get(error.errno or 0, error.strerror or str(error))
        why += "" if error.errno == errno.EACCES else f"; {_NOT_THERE}"
    except (http.client.HTTPException, UnicodeDecodeError) as error:
        why = f"what answers there is no flannelpy ({error!r:.80}); {_NOT_THERE}"
    raise FlannelpyError(f"{path}: {why}")


def _get(path: Path, page: str) -> str:
    """The body of the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to_agent:
        to_agent.settimeout(WITHIN_S)
        to_agent.connect(os.fspath(path))
        connection = http.client.HTTPConnection("flannelpy")
        connection.sock = to_agent
        connection.request("GET", page, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(MOST_BYTES)
    if response.status != 200:
        raise http.client.HTTPException(f"{response.status} {response.reason}: {body[:60].decode(errors='replace').strip()}")
    return body.decode()
