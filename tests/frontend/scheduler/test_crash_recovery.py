"""A loss of the workers loses no output: replay, quarantine, overdue steps, chunks of prompts."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random

import pytest

from frontend.engine.engine import Engine
from frontend.engine.output_processor import OutputProcessor
from frontend.errors import Code
from frontend.requests.output import Delta, FinishReason
from frontend.requests.request import Request
from frontend.scheduler.crash_recovery import SETTLE_SECONDS
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.step import Step, StepStats
from frontend.scheduler.step_times import StepTimes
from tests.frontend.builders import (
    LIMITS,
    Driver,
    Losing,
    complete_step,
    expected_output,
    failure,
    make_request,
    random_limits,
    random_request,
    taken,
    tight,
)
from tests.frontend.fake_workers import FakeGroup, FakeWorkers
from tests.waiting import turns


@pytest.mark.parametrize("seed", range(60))
def test_outputs_are_those_of_an_undisturbed_run(seed: int) -> None:
    rng = random.Random(seed)
    limits = tight(random_limits(rng), rng)
    driver = Losing(limits, depth=rng.choice([1, 2, 3]))
    requests = [random_request(rng, f"r{number}", limits) for number in range(12)]
    progress = 0

    def lose() -> bool:
        # Not two in a row without a token: the tests of the quarantine do that.
        nonlocal progress
        if driver.outputs.generated_tokens == progress:
            return False
        progress = driver.outputs.generated_tokens
        driver.lose()
        for sequence in driver.scheduler._open.values():
            sequence.crashes = 0
        return True

    aborted = driver.play(rng, [[request] for request in requests], lose)
    for request in requests:
        delta = taken(request)
        whole = expected_output(request, limits)
        if request.id in aborted and delta.finish_reason is FinishReason.ABORTED:
            assert delta.token_ids == whole[: len(delta.token_ids)]
        else:
            assert delta.token_ids == whole
        assert request.num_generated == len(delta.token_ids)


def test_replayed_go_first_in_their_order_and_are_counted() -> None:
    driver = Losing(dataclasses.replace(LIMITS, max_batch_size=2))
    requests = [make_request(f"r{number}", max_new_tokens=8) for number in range(4)]
    for request in requests:
        driver.scheduler.submit(request)
    for _ in range(4):
        driver.turn()
    assert driver.lose() == 2
    assert [request.replays for request in requests] == [1, 1, 0, 0]
    step = driver.schedule()
    assert step is not None
    assert [seq.request.id for seq in step.batches[0].sequences] == ["r0", "r1"]
    driver.run()
    assert all(taken(each).token_ids == expected_output(each, LIMITS) for each in requests)


def crash_over(driver: Losing, poison: str, most: int = 10) -> int:
    """Run to the end with workers that die over one request; how often they did."""
    crashes = 0
    driver.now += SETTLE_SECONDS
    while driver.scheduler._open:
        driver.schedule()
        assert driver.in_flight, "nothing runs although requests are open"
        step, _ = driver.in_flight[-1]
        if any(seq.request.id == poison for batch in step.batches for seq in batch.sequences):
            crashes += 1
            assert crashes <= most
            driver.lose()
        else:
            driver.complete()
    return crashes


def test_a_poisonous_request_ends_alone_and_the_others_complete() -> None:
    driver = Losing(LIMITS, depth=1)
    requests = {name: make_request(name, max_new_tokens=4) for name in ("a", "bad", "b", "c")}
    for request in requests.values():
        driver.scheduler.submit(request)
    assert crash_over(driver, "bad") == 4
    error = failure(requests.pop("bad"))
    assert (error.code, error.reason) == (Code.INTERNAL, "POISON")
    for request in requests.values():
        assert taken(request).token_ids == expected_output(request, LIMITS)
    driver.assert_at_rest()


def test_workers_lost_at_their_start_convict_nobody() -> None:
    """As when something kills a rank whenever health is well, or a device is sick."""
    driver = Losing(LIMITS)
    requests = [make_request(name, max_new_tokens=4) for name in "abc"]
    for request in requests:
        driver.scheduler.submit(request)
    for number in range(8):
        step = driver.schedule()
        assert (step is not None) == (number < 2), "suspects run on workers that just began"
        driver.lose(settled=False)
    driver.now += SETTLE_SECONDS
    driver.run()
    for request in requests:
        assert taken(request).token_ids == expected_output(request, LIMITS)


def test_one_crash_alone_convicts_nobody() -> None:
    """It may come from outside; before the next the others run, on the same workers."""
    driver = Losing(LIMITS, depth=1)
    requests = {name: make_request(name, max_new_tokens=4) for name in "abc"}
    for request in requests.values():
        driver.scheduler.submit(request)
    for _ in range(3):
        driver.schedule()
        driver.lose()
    alone: list[str] = []
    while any(seq.crashes for seq in driver.scheduler._open.values()):
        step = driver.schedule()
        assert step is not None
        [sequence] = step.batches[0].sequences
        alone.append(sequence.request.id)
        driver.complete()
    assert alone == ["b", "c", "a"]
    driver.run()
    for request in requests.values():
        assert taken(request).token_ids == expected_output(request, LIMITS)


def test_a_poisonous_request_without_others_ends() -> None:
    driver = Losing(LIMITS, depth=1)
    request = make_request("bad")
    driver.scheduler.submit(request)
    assert crash_over(driver, "bad") == 4
    assert failure(request).reason == "POISON"
    driver.assert_at_rest()


def test_quarantined_sequences_run_alone_one_after_the_other() -> None:
    driver = Losing(LIMITS)
    requests = [make_request(name, max_new_tokens=6) for name in "abc"]
    for request in requests:
        driver.scheduler.submit(request)
    for _ in range(2):
        driver.schedule()
        driver.lose()
    late = make_request("late", max_new_tokens=2)
    driver.scheduler.submit(late)
    alone: list[str] = []
    while any(seq.crashes for seq in driver.scheduler._open.values()):
        driver.turn()
        for step, _ in driver.in_flight:
            present = {seq.request.id for batch in step.batches for seq in batch.sequences}
            assert len(present) == 1, f"{present} run together"
            alone += present - set(alone)
    assert alone == ["a", "b", "c"]
    driver.run()
    for request in (*requests, late):
        assert taken(request).token_ids == expected_output(request, LIMITS)


def test_a_new_token_between_clears() -> None:
    driver = Losing(LIMITS, depth=1)
    request = make_request("r", max_new_tokens=30)
    driver.scheduler.submit(request)
    for _ in range(8):
        driver.schedule()
        driver.complete()
        driver.schedule()
        driver.lose()
    driver.run()
    assert taken(request).token_ids == expected_output(request, LIMITS)


def test_what_no_longer_fits_the_new_workers_is_lost_alone() -> None:
    driver = Losing(dataclasses.replace(LIMITS, enable_prefix_cache=False))
    big, small = make_request("big", [1] * 30, max_new_tokens=20), make_request("small")
    driver.scheduler.submit(big)
    driver.scheduler.submit(small)
    for _ in range(6):
        driver.turn()
    driver.in_flight.clear()
    less = dataclasses.replace(LIMITS, num_blocks=8, enable_prefix_cache=False)
    driver.scheduler.resume_on(less, driver.now)
    driver.workers = FakeWorkers(less)
    driver.workers.last_step = driver.scheduler._scheduled_step
    driver.run()
    error = failure(big)
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "STREAM_LOST")
    assert taken(small).token_ids == expected_output(small, LIMITS)


def test_what_waited_and_no_longer_fits_the_new_workers_blocks_nobody() -> None:
    driver = Losing(dataclasses.replace(LIMITS, enable_prefix_cache=False, max_batch_size=1))
    runs, big, small = (
        make_request("runs", max_new_tokens=20),
        make_request("big", [1] * 30, max_new_tokens=20),
        make_request("small"),
    )
    for request in (runs, big, small):
        driver.scheduler.submit(request)
    driver.turn()
    driver.in_flight.clear()
    less = dataclasses.replace(driver.scheduler.limits, num_blocks=8)
    driver.scheduler.resume_on(less, driver.now)
    driver.workers = FakeWorkers(less)
    driver.workers.last_step = driver.scheduler._scheduled_step
    driver.run()
    error = failure(big)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "CACHE_EXCEEDED")
    for request in (runs, small):
        assert taken(request).token_ids == expected_output(request, LIMITS)


def test_a_loss_does_not_change_whose_turn_it_is() -> None:
    """A key that has been given little keeps its credit: it was not away."""
    orders = []
    for is_lost in (False, True):
        driver = Losing(dataclasses.replace(LIMITS, max_batch_size=1), depth=1)
        for number in range(3):
            for key in ("busy", "quiet"):
                request = make_request(f"{key}{number}", max_new_tokens=2)
                request.key = key
                driver.scheduler.submit(request)
        driver.scheduler._waiting.charge("busy", 8)
        if is_lost:
            driver.lose()
        started: list[str] = []
        while driver.turn():
            for step, _ in driver.in_flight:
                started += [seq.request.id for seq in step.batches[0].sequences]
        orders.append(list(dict.fromkeys(started)))
    assert orders[0][:2] == ["quiet0", "quiet1"]
    assert orders[0] == orders[1]


async def whole_output(request: Request) -> Delta:
    whole = Delta()
    while whole.finish_reason is None:
        delta = await request.output.take()
        whole.token_ids += delta.token_ids
        whole.finish_reason = delta.finish_reason
    return whole


async def test_the_engine_goes_on_with_another_group() -> None:
    groups = [FakeGroup(LIMITS) for _ in range(4)]
    engine = Engine(Scheduler(LIMITS), groups[0])
    requests = [make_request(f"r{number}", max_new_tokens=40) for number in range(3)]
    for request in requests:
        engine.submit(request)
    late = make_request("late", max_new_tokens=3)
    for old, new in itertools.pairwise(groups):
        run = asyncio.create_task(engine.run())
        progress = sum(request.num_generated for request in requests)
        while sum(request.num_generated for request in requests) < progress + 12:
            await asyncio.sleep(0)
        old.lose("rank 0 at somewhere: gone")
        with pytest.raises(ConnectionError, match="rank 0"):
            await run
        assert engine.load().restarting
        if new is groups[-1]:
            engine.submit(late)  # while there are no workers
        new.workers.last_step = engine._scheduler._scheduled_step
        engine.resume_on(new, LIMITS)
        assert not engine.load().restarting
    run = asyncio.create_task(engine.run())
    async with asyncio.timeout(30):
        for request in (*requests, late):
            assert (await whole_output(request)).token_ids == expected_output(request, LIMITS)
    load = engine.load()
    assert (load.worker_restarts, load.replayed_requests) == (3, 9)
    run.cancel()
    await asyncio.wait([run])


async def test_the_engine_wakes_for_suspects_once_the_group_has_stood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("scheduler.crash_recovery", "engine.engine"):
        monkeypatch.setattr(f"frontend.{module}.SETTLE_SECONDS", 0.05)
    groups = [FakeGroup(LIMITS) for _ in range(3)]
    engine = Engine(Scheduler(LIMITS), groups[0])
    request = make_request(max_new_tokens=4)
    engine.submit(request)
    for old, new in itertools.pairwise(groups):
        old.gate.clear()
        run = asyncio.create_task(engine.run())
        await turns()
        old.lose("rank 0 at somewhere: gone")
        with pytest.raises(ConnectionError):
            await run
        new.workers.last_step = engine._scheduler._scheduled_step
        engine.resume_on(new, LIMITS)
    run = asyncio.create_task(engine.run())
    async with asyncio.timeout(30):
        assert (await whole_output(request)).token_ids == expected_output(request, LIMITS)
    run.cancel()
    await asyncio.wait([run])


@pytest.mark.slow
async def test_an_overdue_step_loses_the_group_and_a_slow_predicted_one_does_not() -> None:
    group = FakeGroup(LIMITS)
    group.stats = StepStats(device_seconds=0.2)
    times = StepTimes(timed_tokens=1, timed_seconds=0.2)
    engine = Engine(Scheduler(LIMITS), group, times=times, step_timeout=0.1)
    run = asyncio.create_task(engine.run())
    engine.submit(make_request(max_new_tokens=30))
    await asyncio.sleep(0)
    group.gate.clear()
    # Three times what was predicted: one prompt of three tokens at 0.2 s each.
    async with asyncio.timeout(30):
        with pytest.raises(ConnectionError, match=r"is not answered after 1\.[89] s"):
            await run


def long_prompt_chunks(times: StepTimes, decode_seconds: float) -> list[int]:
    """Tokens of a long prompt in each step, beside three decodes."""
    limits = dataclasses.replace(
        LIMITS, max_num_batched_tokens=1024, max_model_len=4096, num_blocks=2048
    )
    scheduler, workers = Scheduler(limits, times), FakeWorkers(limits)
    for number in range(3):
        scheduler.submit(make_request(f"r{number}", max_new_tokens=100))
    chunks: list[int] = []
    for number in range(60):
        if number == 5:
            scheduler.submit(make_request("long", [2] * 3000, max_new_tokens=2))
        step = scheduler.schedule(1.0)
        assert step is not None
        decodes, prompt_tokens = step.size
        times.add(decodes, prompt_tokens, decode_seconds + prompt_tokens * 1e-4)
        complete_step(scheduler, OutputProcessor(), step, workers.run(step), 1.0)
        if number >= 5 and prompt_tokens and len(chunks) * 64 < 3000:
            chunks.append(prompt_tokens)
    return chunks


def test_a_long_prompt_is_cut_by_what_steps_take() -> None:
    # 60 ms a decode: 48 ms of prompt more at 0.1 ms a token is 480, so 256 with three decodes.
    assert long_prompt_chunks(StepTimes(64, 64e-4), 0.060)[1:9] == [253] * 8
    # Quick steps may be stretched to 25 ms, whatever their decodes take.
    assert long_prompt_chunks(StepTimes(64, 64e-4), 0.005)[1:11] == [125] * 10


def test_short_prompts_are_not_cut_beside_decodes() -> None:
    limits = dataclasses.replace(LIMITS, max_num_batched_tokens=256, num_blocks=256)
    times = StepTimes(64, 64.0)  # a second a token: no chunk is short enough
    scheduler, workers = Scheduler(limits, times), FakeWorkers(limits)
    scheduler.submit(make_request("r", max_new_tokens=20))
    step = scheduler.schedule(1.0)
    assert step is not None
    complete_step(scheduler, OutputProcessor(), step, workers.run(step), 1.0)
    scheduler.submit(make_request("short", [3] * 60, max_new_tokens=2))
    step = scheduler.schedule(1.0)
    assert isinstance(step, Step)
    assert step.size == (1, 60)


def test_two_long_prompts_take_turns_and_let_a_short_one_pass_between() -> None:
    limits = dataclasses.replace(
        LIMITS, max_num_batched_tokens=1024, max_model_len=4096, num_blocks=4096
    )
    times = StepTimes(64, 64e-4)
    driver = Driver(limits, depth=1)
    driver.scheduler._times = times
    driver.scheduler.submit(make_request("r", max_new_tokens=60))
    driver.schedule()
    driver.complete()
    for name in ("long", "longer"):
        driver.scheduler.submit(make_request(name, [2] * 2000, max_new_tokens=2))
    driver.scheduler.submit(make_request("short", [3] * 20, max_new_tokens=2))
    step = driver.schedule()
    assert step is not None
    rows = [seq.request.id for seq in step.batches[0].sequences]
    assert rows == ["r", "long", "short"], "the second long prompt waits without a row"
    driver.complete()
    driver.run()
