"""One key's flood costs another key neither its place in the queue nor its turn."""

from __future__ import annotations

import dataclasses
import random

import pytest

from frontend.errors import Code, RequestError
from frontend.requests.request import Request
from frontend.scheduler.admission_queue import KEY_SHARE
from tests.frontend.builders import (
    LIMITS,
    Driver,
    expected_output,
    make_request,
    random_limits,
    random_request,
    taken,
    tight,
)

MANY = dataclasses.replace(
    LIMITS,
    max_batch_size=8,
    max_num_batched_tokens=64,
    max_model_len=512,
    num_blocks=4096,
    max_queued_requests=256,
)


def of_key(key: str, name: str, prompt: list[int] | None = None, tokens: int = 16) -> Request:
    request = make_request(name, prompt or [1, 2, 3, 4], max_new_tokens=tokens)
    request.key = key
    return request


def steps_until_done(driver: Driver, request: Request) -> int:
    """Steps that the workers are sent from now until a request has ended."""
    first = driver.scheduler._scheduled_step
    driver.scheduler.submit(request)
    while not request.finished:
        assert driver.turn()
    return driver.scheduler._scheduled_step - first


def flood_until_refused(driver: Driver, num_prompt: int) -> RequestError:
    """Submits requests of key a, with prompts of so many tokens, until one is refused."""
    for number in range(1000):
        try:
            driver.scheduler.submit(of_key("a", f"a{number}", [1] * num_prompt))
        except RequestError as error:
            return error
    raise AssertionError("none was refused")


def test_long_outputs_of_one_key_do_not_hold_every_slot() -> None:
    alone = steps_until_done(Driver(MANY), of_key("b", "alone"))
    driver = Driver(MANY)
    flood = [of_key("a", f"flood{number}", tokens=120) for number in range(20)]
    for request in flood:
        driver.scheduler.submit(request)
    for _ in range(20):
        driver.turn()
    for number in range(4):
        assert steps_until_done(driver, of_key("b", f"b{number}")) <= alone + 3
    driver.run()
    for request in flood:
        assert taken(request).token_ids == expected_output(request, MANY)
    yields = sum(request.preemptions for request in flood)
    assert 0 < yields <= 4, "one yields for each of the other key's requests"


def test_keys_that_flood_share_the_slots() -> None:
    driver = Driver(MANY)
    for number in range(12):
        driver.scheduler.submit(of_key("a", f"a{number}", tokens=60))
    for _ in range(20):
        driver.turn()
    for number in range(12):
        driver.scheduler.submit(of_key("b", f"b{number}", tokens=60))
    for _ in range(20):
        driver.turn()
    running = [seq.request.key for seq in driver.scheduler._replicas[0].running()]
    assert sorted(running) == ["a"] * 4 + ["b"] * 4
    driver.run()


def test_nobody_yields_to_a_lower_priority_or_without_keys() -> None:
    for key, other, priority in (("", "", 0), ("a", "b", 1)):
        driver = Driver(MANY)
        for number in range(16):
            driver.scheduler.submit(of_key(key, f"a{number}", tokens=100))
        for _ in range(20):
            driver.turn()
        late = of_key(other, "late")
        late.priority = priority
        driver.run(late)
        assert driver.scheduler.preemptions == 0


def test_a_flood_leaves_places_for_the_next_key() -> None:
    driver = Driver(MANY)
    error = flood_until_refused(driver, 4)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert "key a has its share of the queue" in error.message
    share = KEY_SHARE / (1 + KEY_SHARE)
    assert driver.scheduler.queued_requests - 8 == pytest.approx(256 * share, abs=2)
    for number in range(8):
        driver.scheduler.submit(of_key("b", f"b{number}"))
    driver.run()


def test_a_flood_of_long_prompts_leaves_tokens_for_the_next_key() -> None:
    driver = Driver(dataclasses.replace(MANY, max_queued_tokens=10_000))
    error = flood_until_refused(driver, 400)
    assert "key a has its share of the queue: prompts of" in error.message
    driver.scheduler.submit(of_key("b", "b", [1] * 400))
    driver.run()


def test_without_keys_the_whole_queue_is_everybody_s() -> None:
    driver = Driver(MANY)
    for number in range(256 + 8):
        driver.scheduler.submit(of_key("", f"r{number}"))
    with pytest.raises(RequestError, match="the queue is full: 0 requests run, 264 wait"):
        driver.scheduler.submit(of_key("", "late"))
    driver.run()


def test_all_samples_of_a_call_count() -> None:
    driver = Driver(MANY)
    for number in range(4):
        samples = [of_key("", f"c{number} {sample}") for sample in range(64)]
        driver.scheduler.submit(*samples, first_alone=True)
    assert driver.scheduler.queued_requests == 256
    late = [of_key("", f"late {sample}") for sample in range(9)]
    with pytest.raises(RequestError, match="the queue is full"):
        driver.scheduler.submit(*late, first_alone=True)
    assert driver.scheduler.queued_requests == 256, "all of a call's samples, or none"
    driver.scheduler.submit(*late[:8], first_alone=True)
    driver.run()
    with pytest.raises(RequestError, match="is 300, and 8 requests may run here, 256 may wait"):
        driver.scheduler.submit(*(of_key("", f"many {each}") for each in range(300)))


def test_the_others_wait_for_the_first_sample_and_find_its_prompt() -> None:
    driver = Driver(dataclasses.replace(MANY, max_num_batched_tokens=16))
    prompt = list(range(1, 49))
    samples = [of_key("a", f"s{number}", prompt) for number in range(4)]
    driver.scheduler.submit(*samples, first_alone=True)
    for _ in range(3):
        driver.schedule()
    assert driver.scheduler.running_requests == 1
    driver.run()
    assert [each.cached_tokens for each in samples] == [0, 44, 44, 44]


@pytest.mark.parametrize("end", ["abort", "expire", "fail"])
def test_samples_that_wait_for_the_first_go_on_when_it_ends(end: str) -> None:
    driver = Driver(MANY)
    first, *others = [of_key("a", f"s{number}", list(range(1, 49))) for number in range(3)]
    if end == "expire":
        first.queue_deadline = driver.now
    driver.scheduler.submit(first, *others, first_alone=True)
    if end == "abort":
        assert driver.abort(first.id)
    elif end == "fail":
        driver.scheduler.fail_all(
            lambda request: RequestError(Code.INTERNAL, request.id, reason="X"), driver.now
        )
        driver.assert_at_rest()
        return
    driver.run()
    for request in others:
        assert taken(request).token_ids == expected_output(request, MANY)


@pytest.mark.parametrize("seed", range(60))
def test_random_calls_of_keys_give_each_request_its_output(seed: int) -> None:
    """Over losses of the workers too."""
    rng = random.Random(seed)
    limits = tight(random_limits(rng), rng)
    driver = Driver(limits, depth=rng.choice([1, 2, 3]))
    calls = []
    for number in range(8):
        model = random_request(rng, f"r{number}", limits)
        samples = [model]
        for sample in range(rng.choice([0, 0, 2])):
            other = dataclasses.replace(
                make_request(f"r{number} {sample}", model.prompt_ids),
                stops=model.stops, key=model.key, priority=model.priority,
            )  # fmt: skip
            samples.append(other)
        calls.append(samples)
    aborted = driver.play(rng, calls)
    for request in (each for samples in calls for each in samples):
        output = taken(request).token_ids
        expected = expected_output(request, limits)
        assert output == (expected[: len(output)] if request.id in aborted else expected)
