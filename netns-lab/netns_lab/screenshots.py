"""What does it look like? The pictures in docs/pictures/, from a lab of three hosts of which one cannot be reached.

Commands run at a terminal of their own, and what they print becomes an SVG; the page is shown by Chromium. Run by
``make screenshots``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from netns_lab import faults
from netns_lab.browser import browser
from netns_lab.cli import environment
from netns_lab.drawing import draw
from netns_lab.errors import LabError
from netns_lab.host import Host
from netns_lab.lab import Lab
from netns_lab.topology import Topology

REPOSITORY = Path(__file__).resolve().parents[2]
INTO = REPOSITORY / "docs" / "pictures"
NAME = f"shots{os.getpid()}"
COLUMNS = 100
WITHIN_S = 60.0
PORT = 8080
FAULT, ON = "port-filtered", 3

_THEME = TerminalTheme(
    (20, 24, 29),
    (230, 235, 240),
    [
        (60, 72, 84),
        (255, 107, 107),
        (92, 194, 127),
        (240, 176, 74),
        (98, 168, 234),
        (190, 140, 230),
        (90, 200, 200),
        (230, 235, 240),
    ],
)
_OUTSIDE = re.compile(r"@font-face\s*{[^}]*}")
"""rich would have fonts fetched from elsewhere."""


def at_terminal(words: list[str], env: dict[str, str]) -> str:
    """What a command prints at a terminal of ``COLUMNS``, with its colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 200, COLUMNS, 0, 0))
    told = {**os.environ, **env, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=its, stderr=its, env=told)
    os.close(its)
    said = b""
    with suppress(OSError):  # EIO: the other end is closed
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    child.wait()
    return said.decode(errors="replace").replace("\r\n", "\n")


def svg(title: str, said: str) -> str:
    """Terminal output as an SVG that needs nothing else."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor", highlight=False)
        console.print(Text.from_ansi(f"$ {title}\n{said.rstrip()}"))
        drawn = console.export_svg(title=title, theme=_THEME, unique_id=title.split()[1])
    return _OUTSIDE.sub("", drawn).replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")


async def shoot() -> None:
    """Make all of them."""
    INTO.mkdir(exist_ok=True)
    topology = Topology(hosts=3, network="10.1.0.0/16", backend="vxlan")
    async with Lab.up(topology, name=NAME) as lab:
        one = lab.host(1)
        await asyncio.gather(*(host.start_agent(f"--healthz-port={PORT}") for host in lab.hosts))
        await lab.connect_containers()
        (INTO / "lab.svg").write_text(draw(topology, "three", {host.name: host.subnet_env() for host in lab.hosts}))
        await _until_said(lab, one, "2 reachable")
        target = str(lab.container("c2").address)
        command(lab, one, "trace-live", "trace", target, "--live")
        await faults.inject(lab, faults.fault(FAULT), lab.host(ON))
        await _until_said(lab, one, "1 unreachable")
        command(lab, one, "status", "status", "--peers")
        command(lab, one, "trace", "trace", str(lab.container("c3").address))
        command(lab, one, "doctor", "doctor")
        command(lab, one, "events", "events")
        async with browser(one.namespace.command()) as shown:
            for name, width, dark in (("light", 1100, False), ("dark", 1100, True), ("narrow", 390, False)):
                await shown.open(f"http://127.0.0.1:{PORT}/", width, 900, dark=dark)
                await shown.until("document.querySelector('#how').textContent.startsWith('Events come')")
                (INTO / f"page-{name}.png").write_bytes(await shown.screenshot())
                print(f"docs/pictures/page-{name}.png")


def command(lab: Lab, host: Host, name: str, *words: str) -> None:
    """A picture of a command that is typed on a host."""
    said = at_terminal(host.namespace.command("flannelpy", *words), environment(lab, host.name))
    if "/" + str(REPOSITORY).strip("/") in said:
        raise LabError(f"{name}: it shows where this checkout is")
    (INTO / f"{name}.svg").write_text(svg(f"flannelpy {' '.join(words)}", said))
    print(f"docs/pictures/{name}.svg")


async def _until_said(lab: Lab, host: Host, words: str) -> None:
    async def said() -> bool:
        return words in at_terminal(host.namespace.command("flannelpy", "status"), environment(lab, host.name))

    await lab.until(said, timeout_s=WITHIN_S, every_s=0.5)


def main() -> int:
    """The exit code; errors are one line."""
    if os.geteuid() != 0:
        print("screenshots: network namespaces need root: start it with sudo", file=sys.stderr)
        return 1
    try:
        asyncio.run(shoot())
    except LabError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
