"""How is a running agent asked? One request over the Unix socket in its run directory."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import click

from flannelpy.core.errors import FlannelpyError, MalformedError
from flannelpy.core.foreign import printable
from flannelpy.explain.status import PAGE, SOCKET, from_json

WITHIN_S = 5.0
"""How long the agent may be silent."""

ERROR_HOLDS = 3
"""The exit code of ``flannelpy status`` where the agent is ready and something is wrong all the same."""

MOST_BYTES = 64 << 20
"""More is no answer of ours: a cluster of 10,000 hosts takes 3 MB."""

_WHY = {
    errno.ENOENT: "there is no such socket",
    errno.ENOTDIR: "there is no such socket",
    errno.ECONNREFUSED: "the agent that made it is gone",
    errno.EACCES: "Permission denied; expected root, or the agent's own user",
}
_NOT_THERE = "expected an agent with this --run-dir; systemctl status flannelpy tells whether it runs"


_ODD = (MalformedError, ValueError, KeyError, TypeError, AttributeError)


class _UnknownPageError(Exception):
    pass


def report(run_dir: Path, *, peers: bool, bad: bool, as_json: bool) -> int:
    """Print what the agent says; with each peer, or the ``bad`` ones. 0: it is ready; 1: it is not; 3: it is, but an error holds.

    Raises FlannelpyError in one line where it cannot be asked.
    """
    path = run_dir / SOCKET
    if not as_json:
        text, code = _page(path, peers=peers, bad=bad)
        click.echo(text)
        return code
    try:
        document = json.loads(ask(path))  # as it is, also from an agent of another version
        click.echo(json.dumps(document, indent=2))
        severities = [condition["severity"] for condition in document.get("conditions", ())]
        return exit_code(document["ready"] is True, severities)
    except _ODD as error:
        raise _another_version(path, error) from None


def follow(run_dir: Path, *, peers: bool, bad: bool) -> int:
    """The same again and again, until q or ctrl-C ends it; also while there is no agent. Returns 0."""
    from flannelpy.commands.watch import watch

    def draw() -> str:
        try:
            return _page(run_dir / SOCKET, peers=peers, bad=bad)[0]
        except FlannelpyError as error:
            return printable(f"flannelpy: {error}")

    return watch(draw)


def picture(run_dir: Path, file: str) -> int:
    """Draw what the agent says, into a file or, for ``-``, on stdout. The exit code is as ``report``'s. Raises FlannelpyError."""
    path = run_dir / SOCKET
    try:
        status = from_json(ask(path))
    except _ODD as error:
        raise _another_version(path, error) from None
    from flannelpy.explain.graph import draw

    drawn = draw(status)
    if file == "-":
        click.echo(drawn, nl=False)
    else:
        try:
            Path(file).write_text(drawn, encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise FlannelpyError(f"{printable(file)}: cannot be written: {why}") from None
        click.echo(f"drawn: {printable(file)}")
    return exit_code(status.ready, [condition.severity for condition in status.conditions])


def _page(path: Path, *, peers: bool, bad: bool) -> tuple[str, int]:
    """What a person reads, and the exit code."""
    try:
        status = from_json(ask(path))
    except _ODD as error:
        raise _another_version(path, error) from None
    from flannelpy.commands.status_table import page

    code = exit_code(status.ready, [condition.severity for condition in status.conditions])
    return page(status, peers=peers, bad=bad), code


def _another_version(path: Path, error: Exception) -> FlannelpyError:
    return FlannelpyError(f"{path}: {error}; is the agent of another version? Restart it after an upgrade")


def exit_code(ready: bool, severities: Iterable[str]) -> int:
    """For scripts and monitoring: anything but 0 wants a look."""
    if not ready:
        return 1
    return ERROR_HOLDS if "error" in severities else 0


def ask(path: Path, page: str = PAGE, within_s: float | None = None) -> str:
    """What the agent behind this socket says. Raises FlannelpyError: which socket, what was expected, what to do."""
    within_s = WITHIN_S if within_s is None else within_s
    try:
        return _get(path, page, within_s)
    except TimeoutError:
        why = f"no answer within {within_s:g} s; {_NOT_THERE}, its log what it does"
    except (BrokenPipeError, ConnectionResetError):
        why = f"it hung up without an answer; {_NOT_THERE}, its log what it does"
    except _UnknownPageError:
        why = f"the agent does not know {page.partition('?')[0]}; is it of another version? Restart it after an upgrade"
    except OSError as error:
        why = _WHY.get(error.errno or 0, error.strerror or str(error))
        why += "" if error.errno == errno.EACCES else f"; {_NOT_THERE}"
    except (http.client.HTTPException, UnicodeDecodeError) as error:
        why = f"what answers there is no flannelpy ({error!r:.80}); {_NOT_THERE}"
    raise FlannelpyError(f"{path}: {why}")


def _get(path: Path, page: str, within_s: float) -> str:
    """The body of the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to_agent:
        to_agent.settimeout(within_s)
        to_agent.connect(os.fspath(path))
        connection = http.client.HTTPConnection("flannelpy")
        connection.sock = to_agent
        connection.request("GET", page, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(MOST_BYTES)
    if response.status == 404:
        raise _UnknownPageError
    if response.status != 200:
        raise http.client.HTTPException(f"{response.status} {response.reason}: {body[:60].decode(errors='replace').strip()}")
    return body.decode()
