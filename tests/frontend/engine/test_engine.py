"""The engine's loop over workers that answer a little later."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time

import pytest

from frontend.engine.engine import Engine
from frontend.engine.step_depth import StepDepth
from frontend.engine.step_stats import StepTotals
from frontend.errors import Code, RequestError
from frontend.requests.output import Delta, FinishReason
from frontend.requests.request import Request
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import StepStats
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from tests.frontend.builders import (
    LIMITS,
    expected_output,
    make_request,
    random_request,
)
from tests.frontend.fake_workers import FakeGroup
from tests.waiting import turns, until


class Running:
    """An engine, its fake group and its running loop."""

    def __init__(self, depth: StepDepth | None = None, **limits: int) -> None:
        self.limits = dataclasses.replace(LIMITS, **limits)  # type: ignore[arg-type]
        self.group = FakeGroup(self.limits)
        self.engine = Engine(Scheduler(self.limits), self.group, depth=depth)
        self.task = asyncio.create_task(self.engine.run())

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def output(self, request: Request) -> Delta:
        """Everything, as a client that reads as fast as it can would join it."""
        whole = Delta()
        while whole.finish_reason is None:
            delta = await request.output.take()
            whole.text += delta.text
            whole.token_ids += delta.token_ids
            whole.finish_reason = delta.finish_reason
        return whole


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_outputs_under_random_arrivals(depth: int) -> None:
    rng = random.Random(depth)
    limits = {"num_blocks": 20, "num_replicas": 2, "max_queued_requests": 100}
    async with Running(StepDepth(least=depth, most=depth), **limits) as running:

        async def client(request: Request) -> None:
            await turns(rng.randrange(60))
            running.engine.submit(request)
            if rng.random() < 0.2:
                await request.output.admitted()
                assert running.engine.abort(request.id)
                delta = await running.output(request)
                assert delta.finish_reason is FinishReason.ABORTED
            else:
                delta = await running.output(request)
                assert delta.token_ids == expected_output(request, running.limits)

        requests = [random_request(rng, f"r{number}", running.limits) for number in range(30)]
        async with asyncio.timeout(30):
            await asyncio.gather(*(client(request) for request in requests))
            while running.group._answers:
                await asyncio.sleep(0)
        load = running.engine.load()
        assert (load.running_requests, load.queued_requests, load.kv_cache_usage) == (0, 0, 0)
        assert running.engine._outputs.generated_tokens == sum(
            request.num_generated for request in requests
        )
        assert load.rates.generated_tokens_per_second > 0
        assert running.group.max_in_flight == depth


async def test_sleeps_when_idle_and_wakes_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Running() as running:
        schedule = running.engine._scheduler.schedule
        calls: list[float] = []
        monkeypatch.setattr(
            running.engine._scheduler, "schedule", lambda now: calls.append(now) or schedule(now)
        )
        for name in ("a", "b"):
            request = make_request(name)
            running.engine.submit(request)
            assert request.arrived > 0
            await running.output(request)
            await turns(20)
            num_calls = len(calls)
            assert num_calls, "the request was scheduled"
            await turns(100)
            assert len(calls) == num_calls, "the idle loop spins"


async def test_reader_gets_what_gathered_since_it_last_looked() -> None:
    async with Running() as running:
        request = make_request(max_new_tokens=20)
        running.engine.submit(request)
        await until(lambda: request.finished > 0)
        delta = await request.output.take()
        assert len(delta.token_ids) == 20
        assert delta.finish_reason is FinishReason.LENGTH


async def test_end_after_a_loss_fails_every_open_request() -> None:
    running = Running(max_batch_size=1)
    started, waiting = make_request("started", max_new_tokens=50), make_request("waiting")
    running.engine.submit(started)
    await started.output.take()
    running.group.gate.clear()
    running.engine.submit(waiting)
    running.group.lost.set_result(ConnectionError("rank 1 at somewhere: gone"))
    with pytest.raises(ConnectionError, match="rank 1"):
        await running.task
    assert running.engine.load().restarting
    running.engine.end()
    for request, reason in ((started, "STREAM_LOST"), (waiting, "WORKERS_LOST")):
        with pytest.raises(RequestError) as raised:
            await request.output.take()
        assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, reason)
    with pytest.raises(RequestError) as raised:
        running.engine.submit(make_request("after"))
    assert raised.value.reason == "WORKERS_LOST"


async def test_loss_is_noticed_while_idle() -> None:
    running = Running()
    await until(lambda: running.engine._wake._waiters)  # type: ignore[arg-type, attr-defined]
    running.group.lost.set_result(ConnectionError("gone"))
    async with asyncio.timeout(30):
        with pytest.raises(ConnectionError):
            await running.task


async def test_queue_deadline_passes_while_the_workers_are_busy() -> None:
    async with Running(max_batch_size=1) as running:
        running.engine.submit(make_request("first", max_new_tokens=50))
        await asyncio.sleep(0)
        running.group.gate.clear()
        late = make_request("late", queue_deadline=time.monotonic() + 0.05)
        running.engine.submit(late)
        async with asyncio.timeout(30):
            with pytest.raises(RequestError, match="not admitted") as raised:
                await late.output.admitted()
        assert raised.value.code is Code.DEADLINE_EXCEEDED
        running.group.gate.set()


async def test_abort_of_a_stranger_is_false() -> None:
    async with Running() as running:
        assert not running.engine.abort("nobody")


async def test_steps_are_measured() -> None:
    async with Running() as running:
        running.group.stats = StepStats(
            device_seconds=0.5, floor_seconds=0.25, idle_seconds=0.125, bytes_moved=1e20, flops=3.0
        )
        for name in ("a", "b"):
            request = make_request(name, max_new_tokens=6)
            running.engine.submit(request)
            await running.output(request)
        while running.group._answers:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        load = running.engine.load()
        steps = running.group.workers.steps
        num_steps, num_decodes = len(steps), sum(step.decode_only for step in steps)
        # A request is one prefill and five decodes.
        assert (num_steps, num_decodes) == (12, 10)
        assert load.rates.steps == StepTotals(
            steps=num_steps,
            device_seconds=0.5 * num_steps,
            floor_seconds=0.25 * num_steps,
            # Nothing was under way when a request came.
            idle_seconds=0.125 * num_decodes,
            bytes_moved=1e20 * num_steps,
            flops=3.0 * num_steps,
        )
        assert load.rates.decode_steps.steps == num_decodes
        assert load.rates.floor_share == load.rates.decode_floor_share == 0.5
        assert load.rates.device_busy == 1.0


@pytest.mark.parametrize(("idle_seconds", "depth"), [(0.0, 2), (0.0004, MAX_STEPS_IN_FLIGHT)])
async def test_devices_that_wait_get_more_steps(idle_seconds: float, depth: int) -> None:
    async with Running() as running:
        # However many are in flight, these wait: the host seems to be slower each time.
        running.group.stats = StepStats(device_seconds=0.001, idle_seconds=idle_seconds)
        request = make_request(max_new_tokens=50)
        running.engine.submit(request)
        await running.output(request)
        assert running.group.max_in_flight == depth
