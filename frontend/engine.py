"""The loop that keeps the workers busy: schedule → send → receive → complete.

Owns the number of steps in flight and when to sleep. Knows nothing of how steps are chosen or how
they travel. All of it runs in one asyncio loop; nothing here waits for a client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from typing import Protocol

from frontend.errors import Code, RequestError
from frontend.limits import SchedulerLoad
from frontend.request import Request
from frontend.scheduler import Scheduler
from frontend.step import Step

RATE_WINDOW_SECONDS = 5.0
RATE_SAMPLE_SECONDS = 0.25

TIMER_SLACK_SECONDS = 0.01
"""Timers may fire early by the clock's resolution."""


class Group(Protocol):
    """What the engine asks of the workers; `frontend.worker_group.WorkerGroup` is one.

    ``lost`` gets the exception that ended the group, also when no step is in flight.
    """

    @property
    def lost(self) -> asyncio.Future[Exception]: ...

    async def send(self, step: Step) -> None:
        """Hand a step to every rank without waiting for its answer."""
        ...

    async def receive(self) -> list[list[int]]:
        """Tokens of the oldest outstanding step, one list a replica."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load(SchedulerLoad):
    """The scheduler's counts and the rate over the last seconds."""

    generated_tokens_per_second: float


class Engine:
    """Runs requests on one group of workers until the group is lost or ``run`` is cancelled.

    Args:
        scheduler: chooses the steps.
        group: runs them.
        depth: steps in flight; with two the workers never wait for the frontend.
    """

    def __init__(self, scheduler: Scheduler, group: Group, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}, must be at least 1")
        self._scheduler = scheduler
        self._group = group
        self._depth = depth
        self._in_flight: deque[Step] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._rate = _Rate()
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, request: Request) -> None:
        """Queue a request; its output fills as tokens arrive.

        Raises:
            RequestError: it is refused, or the workers are gone.
        """
        if self._ended:
            raise _workers_lost(request)
        now = time.monotonic()
        if not request.arrived:
            request.arrived = now
        self._scheduler.submit(request)
        if request.queue_deadline != float("inf"):
            self._set_timer(now)
        self._wake.set()

    def abort(self, request_id: str) -> bool:
        """End a request with what it has; false when there is none of this id."""
        aborted = self._scheduler.abort(request_id, time.monotonic())
        self._wake.set()
        return aborted

    def load(self) -> Load:
        """A snapshot."""
        counts = dataclasses.asdict(self._scheduler.load())
        rate = self._rate.per_second(self._scheduler.generated_tokens, time.monotonic())
        return Load(**counts, generated_tokens_per_second=rate)

    async def run(self) -> None:
        """Run until cancelled; then, or when the group is lost, every open request fails.

        Raises:
            Exception: what ``group`` ended with.
        """
        self._group.lost.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                if self._group.lost.done():
                    raise self._group.lost.result()
                if not await self._send_next() and not await self._complete_oldest():
                    await self._wake.wait()
        finally:
            self._ended = True
            self._scheduler.fail_all(_workers_lost, time.monotonic())

    async def _send_next(self) -> bool:
        """Schedule and send a step; false when enough are in flight or there is nothing to do."""
        self._wake.clear()
        if len(self._in_flight) >= self._depth:
            return False
        step = self._scheduler.schedule(time.monotonic())
        if step is None:
            return False
        self._in_flight.append(step)
        await self._group.send(step)
        return True

    async def _complete_oldest(self) -> bool:
        """Wait for the oldest step's tokens and take them in; false when none is in flight."""
        if not self._in_flight:
            return False
        tokens = await self._group.receive()
        now = time.monotonic()
        self._scheduler.complete(self._in_flight.popleft(), tokens, now)
        self._rate.sample(self._scheduler.generated_tokens, now)
        return True

    def _set_timer(self, now: float) -> None:
        """One timer, for the earliest queue deadline of all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.earliest_deadline
        if deadline != float("inf"):
            delay = max(0.0, deadline - now) + TIMER_SLACK_SECONDS
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        now = time.monotonic()
        self._scheduler.expire(now)
        self._set_timer(now)


class _Rate:
    """Tokens per second over a sliding window."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def sample(self, total: int, now: float) -> None:
        """Remember the total now and then."""
        if now - self._samples[-1][0] >= RATE_SAMPLE_SECONDS:
            self._samples.append((now, total))
            self._trim(now)

    def per_second(self, total: int, now: float) -> float:
        """Rate since the newest sample that is older than the window, or the oldest there is."""
        self._trim(now)
        then, before = self._samples[0]
        return (total - before) / max(now - then, RATE_SAMPLE_SECONDS)

    def _trim(self, now: float) -> None:
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - RATE_WINDOW_SECONDS:
            samples.popleft()


def _workers_lost(request: Request) -> RequestError:
    """UNAVAILABLE; only a request that has produced nothing may be tried again unseen."""
    if request.num_generated:
        message = f"the workers were lost after {request.num_generated} tokens of this request"
        return RequestError(Code.UNAVAILABLE, message, reason="STREAM_LOST")
    message = "the workers were lost before this request produced a token; try again"
    return RequestError(Code.UNAVAILABLE, message, reason="WORKERS_LOST")
