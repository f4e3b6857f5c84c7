"""The loop that keeps the workers busy: schedule → send → receive → process → complete.

Owns the steps in flight, and when to sleep. Knows nothing of how steps are chosen, how they travel,
what tokens mean, or how a lost group is replaced. All of it runs in one asyncio loop; nothing here
waits for a client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from frontend.engine.load import EngineLoad
from frontend.engine.output_processor import OutputProcessor
from frontend.engine.step_depth import StepDepth
from frontend.engine.step_stats import StepStatsWindow
from frontend.engine.step_watchdog import StepWatchdog
from frontend.errors import Code, RequestError
from frontend.records import StepObserver
from frontend.requests.request import Request
from frontend.scheduler.crash_recovery import SETTLE_SECONDS
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import Step, StepResults
from frontend.scheduler.step_times import StepTimes

TIMER_SLACK_SECONDS = 0.01
"""Timers may fire early by the clock's resolution."""


class Group(Protocol):
    """What the engine needs of the workers; `frontend.link.worker_group.WorkerGroup` is one.

    ``lost`` gets the exception that ended the group, also when no step is in flight.
    """

    @property
    def lost(self) -> asyncio.Future[Exception]: ...

    def lose(self, cause: str) -> None:
        """Give the group up."""
        ...

    async def send(self, step: Step) -> None:
        """Send a step to every rank without waiting for its result."""
        ...

    async def receive(self) -> StepResults:
        """Tokens and stats of the oldest outstanding step."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Flight:
    """A step in flight, and how many others were as it was sent."""

    step: Step
    others: int


class Engine:
    """Runs requests on a group of workers, and goes on with them on the next when it is lost.

    Args:
        scheduler: chooses the steps.
        group: runs them.
        times: what steps take on this group.
        depth: says how many steps should be in flight.
        step_timeout: seconds after which a step is overdue, unless a longer one was predicted.
        observers: called after every step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        group: Group,
        *,
        times: StepTimes | None = None,
        depth: StepDepth | None = None,
        step_timeout: float = math.inf,
        observers: Sequence[StepObserver] = (),
    ) -> None:
        self._scheduler = scheduler
        self._outputs = OutputProcessor()
        self._group = group
        self._times = times or StepTimes()
        self._depth = depth or StepDepth()
        self._watchdog = StepWatchdog(self._times, step_timeout)
        self._observers = observers
        self._in_flight: deque[_Flight] = deque()
        self._last_result = 0.0
        self._wake = asyncio.Event()
        self._error_for: Callable[[Request], RequestError] | None = None
        self._lost = False
        self._restarts = 0
        self._replayed = 0
        self._window = StepStatsWindow()
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, *requests: Request, first_alone: bool = False) -> None:
        """Queue the samples of a call; their outputs fill as tokens arrive.

        Args:
            first_alone: the others wait until the first has computed the prompt they share.

        Raises:
            RequestError: they are refused, or the workers are gone.
        """
        if self._error_for is not None:
            raise self._error_for(requests[0])
        now = time.monotonic()
        for request in requests:
            request.arrived = request.arrived or now
        self._scheduler.submit(*requests, first_alone=first_alone)
        if any(request.queue_deadline != float("inf") for request in requests):
            self._set_timer(now)
        self._wake.set()

    def abort(self, request_id: str) -> bool:
        """End a request with what it has; false when there is none of this id."""
        request = self._scheduler.abort(request_id)
        if request is None:
            return False
        self._outputs.abort(request, time.monotonic())
        self._wake.set()
        return True

    def load(self) -> EngineLoad:
        """A snapshot."""
        scheduler = self._scheduler
        return EngineLoad(
            running_requests=scheduler.running_requests,
            queued_requests=scheduler.queued_requests,
            kv_cache_usage=scheduler.kv_cache_usage,
            queued_prompt_tokens=scheduler.queued_prompt_tokens,
            preemptions=scheduler.preemptions,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            worker_restarts=self._restarts,
            replayed_requests=self._replayed,
            kept_states=scheduler.kept_states,
            kept_state_bytes=scheduler.kept_states * scheduler.limits.state_bytes,
            restarting=self._lost,
            rates=self._window.rates(time.monotonic()),
        )

    async def run(self) -> None:
        """Run until cancelled or until the group is lost; requests stay as they are.

        Raises:
            Exception: what ``group`` ended with.
        """
        group = self._group
        group.lost.add_done_callback(lambda _: self._wake.set())
        watch = asyncio.create_task(self._watchdog.watch(group.lose))
        try:
            while True:
                if group.lost.done():
                    raise group.lost.result()
                if not await self._send_next() and not await self._complete_oldest():
                    await self._wake.wait()
        finally:
            self._lost = True
            watch.cancel()

    def resume_on(self, group: Group, limits: SchedulerLimits) -> None:
        """Use another group from the next ``run`` on; open requests keep their tokens."""
        self._group = group
        self._in_flight.clear()
        self._watchdog.forget_all()
        self._replayed += self._scheduler.resume_on(limits, time.monotonic())
        self._restarts += 1
        self._lost = False
        settled = SETTLE_SECONDS + TIMER_SLACK_SECONDS
        asyncio.get_running_loop().call_later(settled, self._wake.set)

    def end(self, why: Callable[[Request], RequestError] | None = None) -> None:
        """Fail every open request, and all later ones; by default because the workers are lost."""
        self._error_for = self._error_for or why or workers_lost
        self._scheduler.fail_all(self._error_for, time.monotonic())

    async def _send_next(self) -> bool:
        """Schedule and send a step; false when enough are in flight or there is nothing to do."""
        self._wake.clear()
        if len(self._in_flight) >= self._depth.limit:
            return False
        step = self._scheduler.schedule(time.monotonic())
        if step is None:
            return False
        self._watchdog.sent(step)
        self._in_flight.append(_Flight(step, len(self._in_flight)))
        await self._group.send(step)
        return True

    async def _complete_oldest(self) -> bool:
        """Wait for the oldest step's results and process them; false when none is in flight."""
        if not self._in_flight:
            return False
        results = await self._group.receive()
        now = time.monotonic()
        flight = self._in_flight.popleft()
        self._watchdog.completed()
        tokens_before = self._outputs.generated_tokens
        ended = self._outputs.process(flight.step, results.drawn, now)
        self._scheduler.complete(flight.step, [each.tokens for each in results.drawn], ended)
        stats = results.stats
        self._times.add(*flight.step.size, stats.device_seconds)
        self._depth.add(
            stats.device_seconds,
            stats.idle_seconds,
            flight.others,
            decode_only=flight.step.decode_only,
        )
        self._notify(flight, self._outputs.generated_tokens - tokens_before, now)
        self._window.add(
            stats,
            self._outputs.generated_tokens,
            now,
            decode_only=flight.step.decode_only,
            back_to_back=flight.others > 0,
        )
        return True

    def _notify(self, flight: _Flight, num_tokens: int, now: float) -> None:
        """Tell observers what the step gave, and after how long."""
        batches = flight.step.batches
        num_decodes = sum(batch.num_decodes for batch in batches)
        # A decode goes on from the results before, whenever it was sent.
        since = now - self._last_result if num_decodes else 0.0
        self._last_result = now
        num_rows = sum(batch.total_tokens for batch in batches)
        for observer in self._observers:
            observer.step_completed(num_decodes, since, num_rows, num_tokens)

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


def workers_lost(request: Request) -> RequestError:
    """UNAVAILABLE; only a request without tokens may be retried without its caller noticing."""
    if request.num_generated:
        message = f"the workers were lost after {request.num_generated} tokens of this request"
        return RequestError(Code.UNAVAILABLE, message, reason="STREAM_LOST")
    message = "the workers were lost before this request produced a token; try again"
    return RequestError(Code.UNAVAILABLE, message, reason="WORKERS_LOST")
