"""How often the streams of this process may write: one message costs the same whatever is in it.

Owns the interval, which grows with the number of open streams, and the one timer that releases the
streams that were held back. With few streams every token leaves at once. Knows nothing of tokens or
transports.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

SECONDS_A_MESSAGE = 55e-6
"""CPU time that one message may cost; grpcio alone takes 30 to 50 µs of it."""


NUM_PHASES = 4


class HeldStream(Protocol):
    """A stream that may not write yet."""

    def release(self) -> None:
        """The interval has passed."""
        ...


class Pacer:
    """Paces all streams of one event loop.

    Attributes:
        interval: seconds that must lie between two messages of a stream; 0.0 with few streams.
    """

    __slots__ = ("_held", "_num_streams", "_phase", "_timer", "interval")

    def __init__(self) -> None:
        self.interval = 0.0
        self._phase = 0
        self._num_streams = 0
        self._held: list[HeldStream] = []
        self._timer: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """A stream was opened."""
        self._count(1)

    def leave(self) -> None:
        """A stream was closed."""
        self._count(-1)

    def may_write(self, held: HeldStream, last_write: float) -> bool:
        """Whether a stream may write now; if not, ``release`` is called once it may."""
        interval = self.interval
        if interval == 0.0 or time.monotonic() - last_write >= interval:
            return True
        self._held.append(held)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(interval, self._release_held)
        return False

    def stamp(self, *, is_first: bool) -> float:
        """The time to count a write that happens now from. For a stream's first write it is a later
        one, so that streams that began together do not go on together."""
        if not is_first:
            return time.monotonic()
        self._phase = (self._phase + 1) % NUM_PHASES
        return time.monotonic() + self.interval * self._phase / NUM_PHASES

    def _count(self, change: int) -> None:
        self._num_streams += change
        interval = self._num_streams * SECONDS_A_MESSAGE
        # Below the time of the quickest steps nothing is gained.
        self.interval = interval if interval > 0.002 else 0.0

    def _release_held(self) -> None:
        held, self._held, self._timer = self._held, [], None
        for each in held:
            each.release()
