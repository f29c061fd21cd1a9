"""What does a browser show of a page? Headless Chromium (``make chromium``), spoken to by its DevTools protocol over two pipes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from netns_lab.errors import LabError

UNPACKED = Path(__file__).parents[2] / ".venv/chromium"
_PROGRAM = UNPACKED / "usr/lib/chromium/chromium"
_LIBRARIES = UNPACKED / "usr/lib/x86_64-linux-gnu"
WITHIN_S = 60.0
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><dir>/usr/share/fonts</dir><cachedir>{cache}</cachedir></fontconfig>
"""


def missing() -> str:
    """Why there is none; empty where there is one."""
    return "" if _PROGRAM.exists() else "no Chromium: make chromium fetches it"


class Browser:
    """One page in it."""

    def __init__(self, reader: asyncio.StreamReader, write: int) -> None:
        self._reader = reader
        self._write = write
        self._number = 0
        self._session: str | None = None

    async def open(self, url: str, width: int, height: int, *, dark: bool = False) -> None:
        """Show this page in a window of this size, in pixels."""
        if self._session is None:
            target = (await self._ask("Target.createTarget", url="about:blank"))["targetId"]
            self._session = (await self._ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        await self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._ask("Emulation.setEmulatedMedia", features=[scheme])
        await self._ask("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, script: str) -> Any:
        """What a line of JavaScript is in the page."""
        answer = await self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Return once that is true. Raises LabError where it does not become so."""
        until = time.monotonic() + WITHIN_S
        while not await self.evaluate(script):
            if time.monotonic() > until:
                raise LabError(f"in the browser never: {script}")
            await asyncio.sleep(0.05)

    async def screenshot(self, *, whole: bool = True) -> bytes:
        """What it shows as a PNG; the ``whole`` page, or as much as is in the window."""
        size = await self._ask("Page.getLayoutMetrics")
        box = size["cssContentSize"] if whole else size["cssVisualViewport"]
        clip = {
            "x": 0,
            "y": 0,
            "width": box.get("width", box.get("clientWidth")),
            "height": box.get("height", box.get("clientHeight")),
        }
        answer = await self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole, clip={**clip, "scale": 1})
        return base64.b64decode(answer["data"])

    async def _ask(self, method: str, **params: object) -> dict[str, Any]:
        self._number += 1
        told: dict[str, object] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            told["sessionId"] = self._session
        os.write(self._write, json.dumps(told).encode() + b"\0")
        async with asyncio.timeout(WITHIN_S):
            while True:
                answer = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if answer.get("id") == self._number:
                    break
        if "error" in answer:
            raise LabError(f"Chromium: {method}: {answer['error'].get('message')}")
        found: dict[str, Any] = answer["result"]
        return found


@asynccontextmanager
async def browser(within: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """A browser, for the time of the block; ``within``: words that start a command elsewhere, as in a namespace. Raises LabError
    where there is none or it does not start.
    """
    if why := missing():
        raise LabError(why)
    folder = Path(tempfile.mkdtemp(prefix="netns-lab-browser-"))
    log, fonts = folder / "log", folder / "fonts.conf"
    fonts.write_text(_FONTS.format(fonts=UNPACKED / "usr/share/fonts", cache=folder / "fonts"))
    words = [str(_PROGRAM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += [
        "--remote-debugging-pipe",
        "--disable-background-networking",
        "--no-proxy-server",
        f"--user-data-dir={folder}/profile",
    ]
    paths = os.pathsep.join(map(str, (_LIBRARIES, _LIBRARIES / "pulseaudio")))
    env = {**os.environ, "LD_LIBRARY_PATH": paths, "FONTCONFIG_FILE": str(fonts), "HOME": str(folder)}
    to_it, write = os.pipe()
    read, from_it = os.pipe()
    # It reads from descriptor 3 and writes to 4, of which ours may be one.
    script = f'exec 63<&{to_it} 62>&{from_it} 2>{log}; exec 3<&63 4>&62 63<&- 62>&-; exec "$@"'
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", script, "bash", *within, *words),
            pass_fds=(to_it, from_it),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_it)
        os.close(from_it)
        reader = asyncio.StreamReader(limit=64 << 20)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb"))
        try:
            yield Browser(reader, write)
        except (asyncio.IncompleteReadError, BrokenPipeError):
            end = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise LabError(f"Chromium ended: {' '.join(end)[:300]}") from None
        finally:
            transport.close()
    finally:
        os.close(write)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        shutil.rmtree(folder, ignore_errors=True)
