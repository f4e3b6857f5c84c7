"""Long work in turns: one piece at a time, and others have as long as it took."""

from __future__ import annotations

import asyncio
import time

import pytest

from frontend.processing import threads
from frontend.processing.threads import Turns


class Clock:
    """Time that only work and sleeps move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        real_sleep = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            await real_sleep(0)

        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(threads.asyncio, "sleep", sleep)

    def work(self, seconds: float) -> float:
        self.now += seconds
        return seconds


async def test_others_have_as_long_as_long_work_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = Clock(monkeypatch), Turns()
    pieces = [turns.run(clock.work, seconds) for seconds in (0.5, 0.25)]
    assert await asyncio.gather(*pieces) == [0.5, 0.25]
    assert clock.slept == [0.5, 0.25]


async def test_one_piece_is_done_at_a_time_even_after_an_error() -> None:
    turns, order = Turns(), list[str]()

    def fails() -> None:
        order.append("failed")
        raise ValueError

    first = asyncio.create_task(turns.run(fails))
    second = asyncio.create_task(turns.run(order.append, "second"))
    with pytest.raises(ValueError):  # it is the work's own
        await first
    await second
    assert order == ["failed", "second"]
