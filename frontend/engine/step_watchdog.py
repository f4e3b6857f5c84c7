"""The time-out of a step: declares the group of workers lost when its oldest step is overdue.

Owns how long a step may take. `WorkerGroup.lose` then ends the whole group, and
`frontend.link.reconnect` connects to the next. Knows nothing of what a step holds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from frontend.scheduler.step import Step
from frontend.scheduler.step_times import StepTimes

WATCH_SECONDS = 0.05
"""How often the oldest step is checked."""

TIMES_PREDICTED = 3
"""A step is overdue after this many times its predicted seconds, or after --step-timeout."""


class StepWatchdog:
    """Watches the steps in flight, which complete in the order in which they were sent.

    Args:
        times: predicts what a step takes.
        step_timeout: seconds after which a step is overdue, unless a longer one was predicted.
    """

    def __init__(self, times: StepTimes, step_timeout: float) -> None:
        self._times = times
        self._step_timeout = step_timeout
        self._in_flight: deque[tuple[int, float]] = deque()  # step id, seconds it may take
        self._waited = 0.0

    def sent(self, step: Step) -> None:
        """Watch a step that is sent now."""
        if not self._in_flight:
            self._waited = 0.0
        predicted = self._times.predict(*step.size) * self._times.slack
        due = max(self._step_timeout, TIMES_PREDICTED * predicted)
        self._in_flight.append((step.step_id, due))

    def completed(self) -> None:
        """The oldest step is complete."""
        self._in_flight.popleft()
        self._waited = 0.0

    def forget_all(self) -> None:
        """No step is in flight any more: the group is lost."""
        self._in_flight.clear()

    async def watch(self, give_up: Callable[[str], None]) -> None:
        """Call ``give_up`` with the cause when the oldest step is overdue; runs until cancelled.

        Time in which the event loop stands still does not count, so that a frontend that was
        stopped gives no healthy worker up.
        """
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._in_flight:
                continue
            self._waited += WATCH_SECONDS
            step_id, due_seconds = self._in_flight[0]
            if self._waited > due_seconds:
                give_up(f"step {step_id} is not answered after {self._waited:.1f} s")
