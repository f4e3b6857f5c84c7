"""Waiting for conditions, up to a deadline that only a hang reaches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

HANG_SECONDS = 60.0
_POLL_SECONDS = 0.005
_UNCHANGED = 20


def wait_until(condition: Callable[[], object], seconds: float = HANG_SECONDS) -> None:
    """Return once the condition is true; for code without an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(_POLL_SECONDS)


async def until(condition: Callable[[], object], seconds: float = HANG_SECONDS) -> None:
    """Return once the condition is true, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        await asyncio.sleep(_POLL_SECONDS)


async def turns(count: int = 50) -> None:
    """Let whatever is ready run, for so many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def steady(measure: Callable[[], Value], seconds: float = HANG_SECONDS) -> Value:
    """What is measured, once it has stayed the same for a tenth of a second."""
    deadline = time.monotonic() + seconds
    value, unchanged = measure(), 0
    while unchanged < _UNCHANGED:
        assert time.monotonic() < deadline, f"still changing after {seconds} s: {value}"
        await asyncio.sleep(_POLL_SECONDS)
        latest = measure()
        value, unchanged = latest, unchanged + 1 if latest == value else 0
    return value
