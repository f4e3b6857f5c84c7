"""How many steps should be in flight, so that devices never wait for the frontend.

Between the end of a step and the start of the one that is sent upon its result lies the host: the
result's way to the frontend, the schedule, the way back, the launch. Devices do not wait while the
other steps in flight take as long; each more of them is one more that a new prompt waits for. Owns
an estimate of the host's time. Knows nothing of steps' contents or of transport.
"""

from __future__ import annotations

import math
from collections import deque

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT

GAP_SHARE = 0.02
"""Of the time that was to hide: between steps that follow each other at once lies as much."""
SLACK = 0.1
"""Of a step's time: to hide less than that is not worth another step in flight."""
WEIGHT = 1 / 16
"""Of the newest step, in the estimate."""
FADE = 0.999
"""What is left of the estimate where no device waited: it is tried from time to time whether fewer
steps have become enough."""


class StepDepth:
    """As many steps as hide the host's time, from ``least`` to ``most``.

    Attributes:
        limit: steps that should be in flight now.

    Raises:
        ValueError: workers have no buffers for so many.
    """

    __slots__ = ("_clock", "_ends", "_host_seconds", "_least", "_most", "limit")

    def __init__(self, *, least: int = 2, most: int = MAX_STEPS_IN_FLIGHT) -> None:
        if not 1 <= least <= most <= MAX_STEPS_IN_FLIGHT:
            steps = f"least is {least} and most {most}"
            raise ValueError(f"{steps}, must be 1 to {MAX_STEPS_IN_FLIGHT} and in this order")
        self._least, self._most = least, most
        self._host_seconds = 0.0
        self._clock = 0.0  # seconds that devices worked and waited
        self._ends = deque([0.0], maxlen=MAX_STEPS_IN_FLIGHT)  # of the last steps, by that clock
        self.limit = least

    def add(
        self, device_seconds: float, idle_seconds: float, others: int, *, decode_only: bool
    ) -> None:
        """Take a step into account that is complete.

        Args:
            idle_seconds: that the devices waited for it.
            others: steps that were in flight as it was sent.
            decode_only: it is one of those that are short and follow each other.
        """
        start = self._clock + idle_seconds
        self._clock = start + device_seconds
        if decode_only and 0 < others < len(self._ends):
            # It was sent upon the result of the step before those.
            self._learn(start - self._ends[-1 - others], device_seconds, idle_seconds)
        self._ends.append(self._clock)
        if device_seconds > 0:
            needed = 1 + math.ceil(self._host_seconds / device_seconds - SLACK)
            self.limit = min(max(needed, self._least), self._most)

    def _learn(self, since: float, device_seconds: float, idle_seconds: float) -> None:
        """The host took ``since``, or less where no device waited."""
        if idle_seconds > GAP_SHARE * since:
            seen = min(since, self._most * device_seconds)  # more would not be hidden either
        else:
            seen = min(since, FADE * self._host_seconds)
        self._host_seconds += WEIGHT * (seen - self._host_seconds)
