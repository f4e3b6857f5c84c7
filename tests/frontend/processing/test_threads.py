"""Long work in turns and in pieces: one at a time, and others run between."""

from __future__ import annotations

import asyncio
import time

import pytest

from frontend.processing import threads
from frontend.processing.threads import PIECE_LENGTH, Turns, in_pieces


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


async def test_a_long_list_is_freed_as_it_is_worked_on() -> None:
    others, done = 0, 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    size = 3 * PIECE_LENGTH + 5
    values = list(range(size))
    task = asyncio.create_task(other())
    lengths = []
    async for piece in in_pieces(values):
        assert piece == list(range(done, done + len(piece)))
        done += len(piece)
        assert len(values) == size - done
        lengths.append(len(piece))
        assert others >= len(lengths) - 1
    task.cancel()
    assert lengths == [PIECE_LENGTH] * 3 + [5]


async def test_no_values_are_no_pieces() -> None:
    assert [piece async for piece in in_pieces([])] == []
