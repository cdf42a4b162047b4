"""A headless Chromium for tests, driven over its debugging protocol: open a page, press keys, run scripts, take pictures."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

START_SECONDS = 60.0


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            said = json.loads((await self._socket.receive(timeout=START_SECONDS)).data)
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    async def run(self, script: str) -> Any:
        """The value of a script in the page."""
        done = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until a script's value is true."""
        for _ in range(400):
            if await self.run(f"(() => {{ try {{ return {script}; }} catch {{ return false; }} }})()"):  # the page may not be there yet
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never true: {script}; the page: {await self.run('document.body.innerText')}")

    async def press(self, key: str, **more: Any) -> None:
        text = key if len(key) == 1 and not more else ""
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **more)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    async def picture(self, file: Path) -> None:
        shot = await self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def page(address: str, width: int = 1200, height: int = 900) -> AsyncIterator[Page]:
    """A tab at an address. Skips the test where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        flags += [f"--window-size={width},{height}", "--no-first-run", "--disable-extensions", "--mute-audio", address]
        with subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            try:
                port = await _port(Path(folder) / "DevToolsActivePort")
                async with aiohttp.ClientSession() as session:
                    tab = await _tab(session, port, address)
                    async with session.ws_connect(tab, max_msg_size=0) as socket:
                        yield Page(socket)
            finally:
                child.kill()


async def _port(file: Path) -> int:
    for _ in range(int(START_SECONDS * 10)):
        if file.is_file() and (lines := file.read_text().split()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium did not start")


async def _tab(session: aiohttp.ClientSession, port: int, address: str) -> str:
    for _ in range(int(START_SECONDS * 10)):
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            found = [tab for tab in await answer.json() if tab["type"] == "page" and tab["url"].startswith(address.partition("?")[0])]
        if found:
            return str(found[0]["webSocketDebuggerUrl"])
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium has no such page")
