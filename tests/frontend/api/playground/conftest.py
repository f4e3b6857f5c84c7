"""One browser for all tests of the page, on the loop that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.frontend.api.playground.browser import Browser, running_browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """A headless Chromium."""
    async with running_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started
