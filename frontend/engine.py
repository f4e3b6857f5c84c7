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
from frontend.meter import Meter, StepLoad
from frontend.request import Request
from frontend.scheduler import Scheduler
from frontend.step import Step, StepResults
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT

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

    async def receive(self) -> StepResults:
        """Tokens and measures of the oldest outstanding step."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load(SchedulerLoad):
    """The scheduler's counts, and what the steps take."""

    steps: StepLoad


@dataclasses.dataclass(frozen=True, slots=True)
class _Flight:
    """A step that was sent, and whether another was under way when it was."""

    step: Step
    back_to_back: bool


class Engine:
    """Runs requests on one group of workers until the group is lost or ``run`` is cancelled.

    Args:
        scheduler: chooses the steps.
        group: runs them.
        depth: steps in flight; with two the workers never wait for the frontend.
    """

    def __init__(self, scheduler: Scheduler, group: Group, depth: int = 2) -> None:
        if not 1 <= depth <= MAX_STEPS_IN_FLIGHT:
            raise ValueError(f"depth is {depth}, must be 1 to {MAX_STEPS_IN_FLIGHT}")
        self._scheduler = scheduler
        self._group = group
        self._depth = depth
        self._in_flight: deque[_Flight] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._meter = Meter()
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
        return Load(**counts, steps=self._meter.load(time.monotonic()))

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
        self._in_flight.append(_Flight(step, bool(self._in_flight)))
        await self._group.send(step)
        return True

    async def _complete_oldest(self) -> bool:
        """Wait for the oldest step's results and take them in; false when none is in flight."""
        if not self._in_flight:
            return False
        results = await self._group.receive()
        now = time.monotonic()
        flight = self._in_flight.popleft()
        self._scheduler.complete(flight.step, results.drawn, now)
        self._meter.add(
            results.measures,
            self._scheduler.generated_tokens,
            now,
            decode_only=flight.step.decode_only,
            back_to_back=flight.back_to_back,
        )
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


def _workers_lost(request: Request) -> RequestError:
    """UNAVAILABLE; only a request that has produced nothing may be tried again unseen."""
    if request.num_generated:
        message = f"the workers were lost after {request.num_generated} tokens of this request"
        return RequestError(Code.UNAVAILABLE, message, reason="STREAM_LOST")
    message = "the workers were lost before this request produced a token; try again"
    return RequestError(Code.UNAVAILABLE, message, reason="WORKERS_LOST")
