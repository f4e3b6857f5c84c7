"""Requests, limits, and a driver of the scheduler, for several folders."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable

import pytest

from frontend.engine.output_processor import OutputProcessor
from frontend.errors import RequestError
from frontend.requests.output import Delta, Output
from frontend.requests.request import Request, SamplingParams, StopConditions, TextDecoder
from frontend.scheduler.crash_recovery import SETTLE_SECONDS
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import Drawn, Step
from tests.frontend.fake_workers import VOCAB, FakeWorkers, run_alone

LIMITS = SchedulerLimits(
    max_batch_size=4,
    max_num_batched_tokens=16,
    max_model_len=64,
    block_size=4,
    num_blocks=64,
    max_queued_requests=8,
    max_queued_tokens=1 << 20,
)


def make_request(
    name: str = "r",
    prompt: list[int] | None = None,
    *,
    max_new_tokens: int = 5,
    min_new_tokens: int = 0,
    eos: set[int] | frozenset[int] = frozenset(),
    stop_ids: set[int] | frozenset[int] = frozenset(),
    stop: tuple[str, ...] = (),
    include_stop: bool = False,
    decoder: TextDecoder | None = None,
    seed: int = 0,
    queue_deadline: float = float("inf"),
) -> Request:
    return Request(
        id=name,
        prompt_ids=prompt if prompt is not None else [1, 2, 3],
        sampling=SamplingParams(seed=seed),
        stops=StopConditions(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            stop=stop,
            stop_token_ids=frozenset(stop_ids),
            eos_token_ids=frozenset(eos),
            include_stop=include_stop,
        ),
        decoder=decoder,
        output=Output(),
        queue_deadline=queue_deadline,
    )


def expected_output(request: Request, limits: SchedulerLimits) -> list[int]:
    stops = request.stops
    length = min(len(request.prompt_ids) + stops.max_new_tokens, limits.max_model_len)
    end_ids = set(stops.eos_token_ids | stops.stop_token_ids)
    seed = request.sampling.seed
    return run_alone(request.prompt_ids, seed, length, end_ids, stops.min_new_tokens)


def take_now(output: Output) -> Delta:
    """All output so far; needs no event loop, and fails where `take` would wait."""
    coroutine = output.take()
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    delta = stopped.value.value
    assert isinstance(delta, Delta)
    return delta


def taken(request: Request) -> Delta:
    """All output of a request so far."""
    return take_now(request.output)


def failure(request: Request) -> RequestError:
    with pytest.raises(RequestError) as raised:
        request.output.take().send(None)
    return raised.value


def complete_step(
    scheduler: Scheduler, outputs: OutputProcessor, step: Step, drawn: list[Drawn], now: float
) -> None:
    """What the engine does with the results of the oldest step."""
    ended = outputs.process(step, drawn, now)
    scheduler.complete(step, [each.tokens for each in drawn], ended)


class Driver:
    """Plays the engine: up to ``depth`` steps in flight, one event at a time."""

    def __init__(self, limits: SchedulerLimits, depth: int = 2) -> None:
        self.scheduler = Scheduler(limits)
        self.outputs = OutputProcessor()
        self.workers = FakeWorkers(limits)
        self.depth = depth
        self.now = 1.0
        self.in_flight: deque[tuple[Step, list[Drawn]]] = deque()

    def schedule(self) -> Step | None:
        self.now += 1
        step = self.scheduler.schedule(self.now)
        if step is not None:
            self.in_flight.append((step, self.workers.run(step)))
        return step

    def complete(self) -> None:
        self.now += 1
        step, drawn = self.in_flight.popleft()
        complete_step(self.scheduler, self.outputs, step, drawn, self.now)

    def abort(self, name: str) -> bool:
        request = self.scheduler.abort(name)
        if request is not None:
            self.outputs.abort(request, self.now)
        return request is not None

    def turn(self) -> bool:
        """One turn of the engine's loop; false when there is nothing left to do."""
        if len(self.in_flight) < self.depth and self.schedule() is not None:
            return True
        if self.in_flight:
            self.complete()
            return True
        return False

    def run(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.submit(request)
        while self.turn():
            pass
        self.assert_at_rest()

    def play(
        self,
        rng: random.Random,
        calls: list[list[Request]],
        disturb: Callable[[], bool] = lambda: False,
    ) -> set[str]:
        """Submit, abort and run at random until all calls have ended; returns what was aborted.

        Args:
            disturb: called now and then; whether it did something.
        """
        todo, aborted, scheduler = list(calls), set(), self.scheduler
        while todo or self.in_flight or scheduler._open:
            move = rng.random()
            if todo and move < 0.3:
                scheduler.submit(*todo.pop(), first_alone=rng.random() < 0.7)
            elif move < 0.33 and scheduler._open:
                name = rng.choice(sorted(scheduler._open))
                assert self.abort(name)
                aborted.add(name)
            elif move < 0.45 and disturb():
                pass
            elif move < 0.65 and self.in_flight:
                self.complete()
            else:
                self.turn()
        self.assert_at_rest()
        return aborted

    def assert_at_rest(self) -> None:
        scheduler = self.scheduler
        assert (scheduler.running_requests, scheduler.queued_requests) == (0, 0)
        assert scheduler.queued_prompt_tokens == 0
        assert scheduler.kv_cache_usage == 0
        limits = scheduler.limits
        for replica in scheduler._replicas:
            slots = sorted(replica._free_slots)
            assert slots == list(range(limits.max_batch_size))
            assert replica.pool.num_free == limits.num_blocks
        assert not scheduler._open


class Losing(Driver):
    """A driver whose workers can be lost, with every step in flight."""

    def lose(self, *, settled: bool = True) -> int:
        """Go on with other workers, which have stood for a while, or not."""
        self.in_flight.clear()
        self.workers = FakeWorkers(self.scheduler.limits)
        replayed = self.scheduler.resume_on(self.scheduler.limits, self.now)
        self.workers.last_step = self.scheduler._scheduled_step
        self.now += SETTLE_SECONDS * settled
        return replayed


def check_while_lost(
    driver: Losing, rng: random.Random, requests: list[Request], check: Callable[[], None]
) -> None:
    """Play the requests, of which some are aborted, while workers are lost now and then: outputs
    are those of each request alone. ``check`` is called before every step."""

    def disturb() -> bool:
        check()
        if rng.random() < 0.95:
            return False
        driver.lose()
        return True

    aborted = driver.play(rng, [[request] for request in requests], disturb)
    for request in requests:
        drawn = taken(request).token_ids
        expected = expected_output(request, driver.scheduler.limits)
        assert drawn == expected[: len(drawn)]
        if request.id not in aborted:
            assert drawn == expected


def random_request(rng: random.Random, name: str, limits: SchedulerLimits) -> Request:
    """Short prompts over few tokens with common beginnings, so that prefixes meet."""
    length = rng.randint(1, limits.max_model_len // 2)
    prompt = [rng.randrange(2)] * (length - length // 3) + rng.choices(range(VOCAB), k=length // 3)
    request = make_request(
        name,
        prompt,
        max_new_tokens=rng.randint(1, 30),
        min_new_tokens=rng.choice([0, 0, 3]),
        eos=rng.choice([set(), {5, 6, 7}]),
        stop_ids=rng.choice([set(), {11, 12}]),
        seed=rng.randrange(4),
    )
    request.key, request.priority = rng.choice("aaab"), rng.choice([0, 0, 0, 1])
    return request


def random_limits(rng: random.Random) -> SchedulerLimits:
    batch = rng.choice([1, 2, 4, 7])
    return SchedulerLimits(
        max_batch_size=batch,
        max_num_batched_tokens=rng.choice([batch, batch + 3, 32]),
        max_model_len=rng.choice([24, 64]),
        block_size=rng.choice([1, 2, 4, 16]),
        num_blocks=1,
        num_replicas=rng.choice([1, 2]),
        max_queued_requests=1000,
        max_queued_tokens=1 << 20,
        enable_prefix_cache=rng.random() < 0.8,
    )


def tight(limits: SchedulerLimits, rng: random.Random) -> SchedulerLimits:
    """Just enough blocks for one sequence, or a few more."""
    needed = limits.groups.needed(limits.max_model_len)
    return dataclasses.replace(limits, num_blocks=needed + rng.choice([0, 1, needed]))
