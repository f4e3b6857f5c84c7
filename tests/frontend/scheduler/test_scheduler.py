"""The scheduler against workers that notice a wrong block, slot or position.

Whatever arrives when, however small cache, budget and batch are, and however many steps are in
flight, every request's output is that of the same request alone, and everything is free at the end.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from frontend.errors import Code, RequestError
from frontend.requests.output import FinishReason
from frontend.requests.request import Request
from frontend.scheduler.limits import SchedulerLimits
from tests.frontend.builders import (
    LIMITS,
    Driver,
    expected_output,
    failure,
    make_request,
    random_limits,
    random_request,
    taken,
    tight,
)


@pytest.mark.parametrize("seed", range(120))
def test_outputs_are_those_of_each_request_alone(seed: int) -> None:
    rng = random.Random(seed)
    limits = tight(random_limits(rng), rng)
    driver = Driver(limits, depth=rng.choice([1, 2, 3]))
    requests = [random_request(rng, f"r{number}", limits) for number in range(14)]
    aborted = driver.play(rng, [[request] for request in requests])
    for request in requests:
        check_output(request, limits, aborted=request.id in aborted)


@pytest.mark.parametrize("seed", range(40))
def test_requests_that_begin_with_part_of_their_output_draw_the_rest(seed: int) -> None:
    rng = random.Random(seed)
    limits = tight(random_limits(rng), rng)
    driver = Driver(limits, depth=rng.choice([1, 2, 3]))
    requests = [random_request(rng, f"r{number}", limits) for number in range(14)]
    for request in requests:
        whole = expected_output(request, limits)
        request.generated = whole[: rng.randrange(len(whole))]
        request.num_generated = len(request.generated)
    aborted = driver.play(rng, [[request] for request in requests])
    for request in requests:
        drawn = taken(request).token_ids
        whole = [*request.generated, *drawn]
        assert request.num_generated == len(whole)
        assert request.cached_tokens <= len(request.prompt_ids)
        if request.id in aborted:
            assert whole == expected_output(request, limits)[: len(whole)]
        else:
            assert drawn
            assert whole == expected_output(request, limits)


def check_output(request: Request, limits: SchedulerLimits, *, aborted: bool) -> None:
    delta = taken(request)
    expected = expected_output(request, limits)
    assert request.num_generated == len(delta.token_ids)
    if aborted:
        assert delta.finish_reason is FinishReason.ABORTED
        assert delta.token_ids == expected[: len(delta.token_ids)]
        return
    assert delta.token_ids == expected
    assert 0 < request.admitted < request.first_token <= request.finished
    stops = request.stops
    ends = len(expected) > stops.min_new_tokens
    if ends and expected[-1] in stops.eos_token_ids:
        assert delta.finish_reason is FinishReason.EOS
    elif ends and expected[-1] in stops.stop_token_ids:
        assert delta.finish_reason is FinishReason.STOP
        assert delta.stop_token_id == expected[-1]
    else:
        assert delta.finish_reason is FinishReason.LENGTH


def test_the_random_runs_above_preempt_and_reuse() -> None:
    """What they are there for does happen in a run of that kind."""
    limits = dataclasses.replace(LIMITS, num_blocks=16, max_queued_requests=100)
    driver = Driver(limits, depth=3)
    rng = random.Random(0)
    requests = [random_request(rng, f"r{number}", limits) for number in range(40)]
    driver.run(*requests)
    scheduler = driver.scheduler
    assert scheduler.preemptions > 3
    assert scheduler.preemptions == sum(request.preemptions for request in requests)
    assert 0 < scheduler.prefix_hit_tokens < scheduler.prefix_query_tokens
    assert scheduler.prefix_query_tokens == sum(len(request.prompt_ids) for request in requests)
    assert scheduler.prefix_hit_tokens == sum(request.cached_tokens for request in requests)
    assert driver.outputs.generated_tokens == sum(request.num_generated for request in requests)


def test_a_long_prompt_goes_in_chunks_beside_decodes() -> None:
    driver = Driver(LIMITS, depth=1)
    short = make_request("short", [1], max_new_tokens=20)
    driver.scheduler.submit(short)
    driver.turn()
    driver.turn()
    driver.scheduler.submit(make_request("long", list(range(40)), max_new_tokens=2))
    batches = []
    while driver.turn():
        batches = [step.batches[0] for step in driver.workers.steps]
    rows = [(batch.num_decodes, batch.num_tokens, batch.draws) for batch in batches[1:5]]
    assert rows == [
        (1, [15], [False]),
        (1, [15], [False]),
        (1, [10], [True]),
        (2, [], []),
    ]


def test_decodes_run_ahead_of_results_and_never_past_the_length() -> None:
    driver = Driver(LIMITS, depth=10)
    request = make_request(max_new_tokens=3)
    driver.scheduler.submit(request)
    while driver.schedule() is not None:
        pass
    assert [step.batches[0].positions for step in driver.workers.steps] == [[0], [3], [4]]
    while driver.in_flight:
        driver.complete()
    driver.assert_at_rest()
    assert taken(request).token_ids == expected_output(request, LIMITS)


def test_min_new_tokens_keeps_end_tokens_from_being_drawn() -> None:
    plain = make_request(max_new_tokens=9)
    first, *_ = expected_output(plain, LIMITS)
    driver = Driver(LIMITS)
    request = make_request(max_new_tokens=9, min_new_tokens=4, eos={first, 49}, stop_ids={9})
    driver.run(request)
    new = driver.workers.steps[0].batches[0].new_sequences[0]
    assert new.suppressed_token_ids == sorted({first, 49, 9})
    assert new.suppress_until == 3 + 4
    delta = taken(request)
    assert delta.token_ids == expected_output(request, LIMITS)
    assert not {first, 49, 9} & set(delta.token_ids[:4])


def test_fifo_admission_within_the_slots() -> None:
    limits = dataclasses.replace(LIMITS, max_batch_size=2)
    driver = Driver(limits)
    requests = [make_request(f"r{number}", [number] * 3) for number in range(5)]
    driver.run(*requests)
    admitted = [request.admitted for request in requests]
    assert admitted == sorted(admitted)
    assert admitted[0] == admitted[1] < admitted[2]


def test_second_prompt_reuses_the_first_one_s_full_blocks_but_computes_a_token() -> None:
    driver = Driver(LIMITS)
    prompt = list(range(12))
    first, second = make_request("a", prompt), make_request("b", prompt)
    longer = make_request("c", [*prompt, 40, 41])
    driver.run(first)
    driver.run(second)
    driver.run(longer)
    assert [r.cached_tokens for r in (first, second, longer)] == [0, 8, 12]
    assert taken(first).token_ids == taken(second).token_ids


def test_generated_tokens_are_reused_too() -> None:
    driver = Driver(LIMITS)
    first = make_request("a", [1, 2, 3], max_new_tokens=10)
    driver.run(first)
    turn = [1, 2, 3, *taken(first).token_ids, 7]
    second = make_request("b", turn)
    driver.run(second)
    assert second.cached_tokens == 12, "13 tokens, of which the last was never an input"


def test_nothing_is_published_before_its_step_has_returned() -> None:
    driver = Driver(LIMITS, depth=3)
    prompt = list(range(9))
    driver.scheduler.submit(make_request("a", prompt))
    driver.schedule()
    second = make_request("b", prompt)
    driver.scheduler.submit(second)
    driver.schedule()
    assert second.cached_tokens == 0
    driver.complete()
    third = make_request("c", prompt)
    driver.scheduler.submit(third)
    driver.schedule()
    assert third.cached_tokens == 8
    driver.run()


def test_prefix_cache_can_be_off() -> None:
    driver = Driver(dataclasses.replace(LIMITS, enable_prefix_cache=False))
    requests = [make_request(name, list(range(12))) for name in "ab"]
    for request in requests:
        driver.run(request)
    assert requests[1].cached_tokens == 0


def test_replica_with_the_prefix_is_chosen_unless_clearly_busier() -> None:
    limits = dataclasses.replace(LIMITS, num_replicas=2, max_num_batched_tokens=64)
    driver = Driver(limits)
    prompt = list(range(12))
    driver.run(make_request("first", prompt))
    home = next(i for i, batch in enumerate(driver.workers.steps[0].batches) if batch.slots)
    for name in ("a", "b", "c"):
        driver.scheduler.submit(make_request(name, [*prompt, 33]))
    step = driver.schedule()
    assert step is not None
    assert len(step.batches[home].slots) == 2
    assert len(step.batches[1 - home].slots) == 1
    assert step.batches[home].total_tokens == 2 < step.batches[1 - home].total_tokens
    assert step.max_replica_tokens == 13
    driver.run()


def test_an_empty_replica_still_gets_its_batch() -> None:
    driver = Driver(dataclasses.replace(LIMITS, num_replicas=2))
    driver.run(make_request())
    assert all(len(step.batches) == 2 for step in driver.workers.steps)
    assert any(not batch.slots for step in driver.workers.steps for batch in step.batches)


def test_the_newest_is_preempted_and_goes_on_where_it_was() -> None:
    limits = dataclasses.replace(LIMITS, num_blocks=8)
    driver = Driver(limits, depth=2)
    requests = [make_request(f"r{n}", [n] * 7, max_new_tokens=20) for n in range(3)]
    driver.run(*requests)
    assert requests[0].preemptions == 0
    assert requests[1].preemptions > 0
    for request in requests:
        assert taken(request).token_ids == expected_output(request, limits)


def test_nobody_overtakes_a_preempted_sequence() -> None:
    limits = dataclasses.replace(LIMITS, num_blocks=9, max_batch_size=2)
    driver = Driver(limits, depth=3)
    requests = [make_request(f"r{n}", [n] * 7, max_new_tokens=24) for n in range(2)]
    late = make_request("late", [9], max_new_tokens=1)
    for request in requests:
        driver.scheduler.submit(request)
    while requests[1].preemptions == 0:
        driver.turn()
    driver.scheduler.submit(late)
    driver.run()
    assert late.first_token > requests[1].first_token
    assert late.admitted > requests[0].finished, "r1 came back before, into the last slot"


def test_admission_leaves_a_free_block_for_each_running_sequence() -> None:
    driver = Driver(dataclasses.replace(LIMITS, num_blocks=6))
    first, second = make_request("a", [1] * 12), make_request("b", [2] * 12, max_new_tokens=2)
    driver.scheduler.submit(first)
    driver.scheduler.submit(second)
    driver.schedule()
    assert (first.admitted > 0, second.admitted > 0) == (True, False)
    driver.run()
    assert first.preemptions == second.preemptions == 0


def test_a_preempted_request_has_met_its_queue_deadline() -> None:
    limits = dataclasses.replace(LIMITS, num_blocks=8)
    driver = Driver(limits, depth=1)
    requests = [
        make_request(f"r{n}", [n] * 7, max_new_tokens=20, queue_deadline=4.0) for n in range(2)
    ]
    for request in requests:
        driver.scheduler.submit(request)
    while requests[1].preemptions == 0:
        driver.turn()
    expired = make_request("expired", [9], queue_deadline=driver.now - 1)
    driver.run(expired)
    assert failure(expired).code is Code.DEADLINE_EXCEEDED
    for request in requests:
        assert taken(request).token_ids == expected_output(request, limits)


def test_what_led_to_a_fault_is_not_reused() -> None:
    driver = Driver(LIMITS, depth=1)
    prompt = list(range(5, 5 + 4 * LIMITS.block_size))
    driver.scheduler.submit(make_request("bad", prompt))
    assert driver.schedule() is not None
    driver.in_flight[0][1][0].tokens[0] = -1
    driver.run()
    again = make_request("again", prompt)
    driver.run(again)
    assert again.cached_tokens == 0
    assert taken(again).token_ids == expected_output(again, LIMITS)


def test_queue_deadline_spends_no_prefill() -> None:
    limits = dataclasses.replace(LIMITS, max_batch_size=1)
    driver = Driver(limits)
    running = make_request("running", max_new_tokens=40, queue_deadline=5.0)
    late = make_request("late", [9], queue_deadline=10.0)
    patient = make_request("patient", [8], queue_deadline=1000.0)
    driver.run(running, late, patient)
    error = failure(late)
    assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "QUEUE_DEADLINE")
    assert late.admitted == 0
    assert all(9 not in step.batches[0].token_ids for step in driver.workers.steps)
    assert len(taken(running).token_ids) == 40, "once admitted the deadline is met"
    assert taken(patient).finish_reason is FinishReason.LENGTH


def test_a_full_queue_refuses_at_once() -> None:
    limits = dataclasses.replace(LIMITS, max_queued_requests=2, max_batch_size=1)
    driver = Driver(limits)
    requests = [make_request(f"r{number}") for number in range(4)]
    for request in requests[:3]:
        driver.scheduler.submit(request)
    with pytest.raises(RequestError, match="at most 2 may") as raised:
        driver.scheduler.submit(requests[3])
    assert (raised.value.code, raised.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert raised.value.retry_after
    driver.run()
    driver.run(requests[3])


@pytest.mark.parametrize("num_prompt", [0, LIMITS.max_model_len])
def test_a_prompt_of_no_or_too_many_tokens_is_a_bug_of_the_caller(num_prompt: int) -> None:
    """Callers of the service are told where their prompt is encoded."""
    with pytest.raises(AssertionError, match="refused where the prompt is encoded"):
        Driver(LIMITS).scheduler.submit(make_request("r", [1] * num_prompt))


def test_what_the_cache_could_never_hold_is_refused() -> None:
    limits = dataclasses.replace(LIMITS, num_blocks=8)
    driver = Driver(limits)
    with pytest.raises(RequestError) as raised:
        driver.scheduler.submit(make_request("r", [1] * 10, max_new_tokens=24))
    error = raised.value
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "CACHE_EXCEEDED")
    driver.run(make_request("fits", [1] * 10, max_new_tokens=23))


def test_an_id_is_taken_while_its_request_lives() -> None:
    driver = Driver(LIMITS)
    driver.scheduler.submit(make_request("r"))
    with pytest.raises(RequestError) as raised:
        driver.scheduler.submit(make_request("r"))
    assert raised.value.code is Code.ALREADY_EXISTS
    driver.run()
    driver.run(make_request("r"))


def test_load_counts_what_runs_and_waits() -> None:
    limits = dataclasses.replace(LIMITS, max_batch_size=1)
    driver = Driver(limits)
    driver.scheduler.submit(make_request("a", list(range(20))))
    driver.scheduler.submit(make_request("b", list(range(30))))
    driver.schedule()
    scheduler = driver.scheduler
    assert (scheduler.running_requests, scheduler.queued_requests) == (1, 1)
    assert scheduler.queued_prompt_tokens == 4 + 30
    assert scheduler.kv_cache_usage == 5 / 64
    assert not driver.abort("nobody")
    driver.run()


@pytest.mark.parametrize("change", [{"num_blocks": 0}, {"max_num_batched_tokens": 3}])
def test_limits_that_cannot_work_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        dataclasses.replace(LIMITS, **change)  # type: ignore[arg-type]
