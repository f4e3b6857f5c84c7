"""A headless Chromium and its pages, driven by the DevTools protocol over a pair of pipes.

The protocol needs no library: each message is JSON, ended by a zero byte, on descriptors 3 and 4.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.waiting import HANG_SECONDS

NAMES = ("chromium-headless-shell", "chrome-headless-shell", "chromium", "google-chrome")
EXECUTABLE = next(filter(None, map(shutil.which, NAMES)), None)
_FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
    "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_MAX_MESSAGE_BYTES = 64 << 20
_POLL_SECONDS = 0.02


class Page:
    """A page, and what it has said and asked for.

    Attributes:
        complaints: errors and warnings of its console, exceptions, and what its policy refused.
        urls: of every request.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.urls: list[str] = []

    async def send(self, method: str, **parameters: Any) -> Any:
        """The result of one command."""
        return await self._browser.send(method, self._session, **parameters)

    async def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, awaited if it is a promise."""
        answer = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Return once an expression of JavaScript is true."""
        deadline = time.monotonic() + HANG_SECONDS
        while not await self.run(f"Boolean({expression})"):
            said = await self.run("document.body?.innerText")
            assert time.monotonic() < deadline, f"never: {expression}\n{self.complaints}\n{said}"
            await asyncio.sleep(_POLL_SECONDS)

    async def click(self, selector: str) -> None:
        """Click in the middle of an element, once it can be seen, as a mouse does."""
        found = f"document.querySelector({json.dumps(selector)})"
        box = f"{found}?.getBoundingClientRect()"
        await self.until(f"{box}?.width > 0")
        await self.run(f"{found}.scrollIntoViewIfNeeded()")
        x, y = await self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        await self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def write(self, text: str) -> None:
        """Type a text where the focus is."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """Press a key by its name."""
        more = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def size(self, width: int, height: int) -> None:
        """Give the window a size in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip

    async def dark(self, is_dark: bool) -> None:
        """Say which colours the person likes."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Write what is seen to a PNG."""
        answer = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Take an event of the protocol."""
        match method:
            case "Network.requestWillBeSent":
                self.urls.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                self.complaints.append(json.dumps(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(parameters["entry"]["text"])
            case "Audits.issueAdded":
                self.complaints.append(json.dumps(parameters["issue"]))


class Browser:
    """A process of the browser; `running_browser` starts one."""

    def __init__(self, commands: asyncio.StreamWriter, events: asyncio.StreamReader) -> None:
        self._commands, self._events = commands, events
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def send(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """The result of one command, to the browser or to a page."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._commands.write(json.dumps(message).encode() + b"\0")
        return await asyncio.wait_for(self._waiting[number], HANG_SECONDS)

    async def open(self, url: str, width: int = 1400, height: int = 900) -> Page:
        """A page of its own: no other one's storage."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        target = await self.send("Target.createTarget", url="about:blank", browserContextId=context)
        answer = await self.send("Target.attachToTarget", **_only(target, "targetId"), flatten=True)
        page = self._pages[answer["sessionId"]] = Page(self, answer["sessionId"])
        for domain in ("Runtime", "Network", "Log", "Page", "Audits"):
            await page.send(f"{domain}.enable")
        await page.send("Emulation.setFocusEmulationEnabled", enabled=True)
        await page.size(width, height)
        await page.send("Page.navigate", url=url)
        await page.until("document.readyState === 'complete'")
        return page

    async def read(self) -> None:
        """Hand out answers and events until the browser has ended."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                message = json.loads((await self._events.readuntil(b"\0"))[:-1])
                if "id" in message:
                    self._answer(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.note(message["method"], message["params"])

    def _answer(self, message: dict[str, Any]) -> None:
        waiting = self._waiting.pop(message["id"])
        if "error" in message:
            waiting.set_exception(RuntimeError(str(message["error"])))
        else:
            waiting.set_result(message["result"])


def _only(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: values[name]}


@contextlib.asynccontextmanager
async def running_browser(profile: Path) -> AsyncIterator[Browser]:
    """A browser that ends with the context, since it reads the end of its commands."""
    assert EXECUTABLE is not None, "asked for before"
    (commands, to_browser), (from_browser, events) = os.pipe(), os.pipe()

    def place() -> None:  # the loop's own descriptors are 3 and 4: neither pipe has these numbers
        os.dup2(commands, 3)
        os.dup2(events, 4)

    process = await asyncio.create_subprocess_exec(
        EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
        pass_fds=(3, 4), preexec_fn=place, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(commands)
    os.close(events)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_MAX_MESSAGE_BYTES)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
    )
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(to_browser, "wb")
    )
    browser = Browser(asyncio.StreamWriter(transport, protocol, None, loop), reader)
    reading = asyncio.create_task(browser.read())
    try:
        yield browser
    finally:
        transport.close()
        await asyncio.wait_for(process.wait(), HANG_SECONDS)
        await reading
