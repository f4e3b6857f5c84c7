"""The page of a server that is played, shown in a browser, and what tests do with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from frontend.api.playground.page import playground_routes
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.playground.browser import EXECUTABLE, NAMES, Browser, Page
from tests.frontend.fakes import MODEL, FakeEngine, backend
from tests.frontend.http_fakes import Http, ScriptedService, running_http

IN_BROWSER = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]
"""Marks of modules whose tests use the browser."""

# Expressions of JavaScript.
READY = "document.querySelector('#state').dataset.state === 'ready'"
OVER = "document.querySelector('#stop').hidden && document.querySelector('.assistant .about')"
LAST = "[...document.querySelectorAll('.assistant')].at(-1)"


class Scripted(ScriptedService):
    """Says what is written down, and describes itself as a real one."""

    def __init__(self, *deltas: pb.Delta) -> None:
        super().__init__(deltas)
        self._real = Service(model=MODEL, version="1.2.3")
        self._real.open(backend(FakeEngine()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextlib.asynccontextmanager
async def opened(
    browser: Browser, service: Any = None, refused: bool = False, **options: Any
) -> AsyncIterator[tuple[Page, Http]]:
    """The page of a server, and afterwards a look at what it said and asked for.

    Args:
        refused: calls without a valid key are part of the test, and the console tells of them.
    """
    async with running_http(service, pages=playground_routes(), **options) as http:
        origin = f"http://127.0.0.1:{http.port}/"
        page = await browser.open(origin)
        yield page, http
        complaints = [each for each in page.complaints if not (refused and " 401 " in each)]
        assert not complaints
        assert f"{origin}playground/main.js" in page.urls
        assert [url for url in page.urls if not url.startswith(origin)] == []
        await page.send("Page.navigate", url="about:blank")  # before there is no server


async def set_to(page: Page, name: str, value: str) -> None:
    """Give a field of the settings a value."""
    field = f"document.querySelector('#settings-form').elements.{name}"
    change = "dispatchEvent(new Event('input', {bubbles: true}))"
    await page.run(f"({field}.value = {json.dumps(value)}, {field}.{change})")
    await page.run(f"{field}.dispatchEvent(new Event('change', {{bubbles: true}}))")


async def say(page: Page, text: str) -> None:
    await page.click("#prompt")
    await page.write(text)
    await page.press("Enter")
