"""Models whose layers keep states: sequences begin where there are blocks and a state.

The workers of these tests compare a sequence's state with what its blocks hold, at each row, so a
state of another prefix, or one that was overwritten too early, is an assertion.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from frontend.scheduler.kept_states import KeptStates
from frontend.scheduler.scheduler import Scheduler
from tests.frontend.builders import (
    LIMITS,
    Driver,
    Losing,
    check_while_lost,
    make_request,
    random_limits,
    random_request,
    taken,
    tight,
)

HYBRID = dataclasses.replace(
    LIMITS, state_interval=8, num_kept_states=12, max_model_len=512, num_blocks=400
)


def states_of(scheduler: Scheduler) -> list[KeptStates]:
    found = [replica.states for replica in scheduler._replicas]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def check_held(scheduler: Scheduler) -> None:
    """States are held by those that keep them unseen, or have yet to begin from one."""
    for replica, states in zip(scheduler._replicas, states_of(scheduler), strict=True):
        running = replica.running()
        held = [state for each in running for _, state in each.unseen_states]
        held += [each.from_state for each in running if each.from_state >= 0]
        holders = [held.count(state) for state in range(states._pool.size)]
        assert holders == states._pool._holders


@pytest.mark.parametrize("seed", range(80))
def test_outputs_are_those_of_each_request_alone(seed: int) -> None:
    """With few states and blocks, any number of steps in flight, and windows; workers are lost."""
    rng = random.Random(seed)
    limits = dataclasses.replace(
        random_limits(rng),
        state_interval=rng.choice([4, 8, 16]),
        num_kept_states=rng.choice([0, 1, 3, 20]),
        windows=rng.choice([(0,), (0,), (0, 5)]),
    )
    limits = tight(limits, rng)
    driver = Losing(limits, depth=rng.choice([1, 2, 3, 5]))
    requests = [random_request(rng, f"r{number}", limits) for number in range(12)]
    check_while_lost(driver, rng, requests, lambda: check_held(driver.scheduler))
    check_held(driver.scheduler)
    for states in states_of(driver.scheduler):
        assert states.num_free == limits.num_kept_states


def finish(driver: Driver) -> None:
    while driver.turn():
        pass


def test_the_turns_of_a_chat_find_nearly_all_of_those_before() -> None:
    driver = Driver(HYBRID, depth=2)
    rng, tokens, possible, hit = random.Random(0), [], 0, 0
    for turn in range(10):
        prompt = tokens + [rng.randrange(50) for _ in range(13)]
        request = make_request(f"turn {turn}", prompt, max_new_tokens=30)
        driver.scheduler.submit(request)
        finish(driver)
        possible += len(tokens)
        hit += request.cached_tokens
        tokens = prompt + taken(request).token_ids
    assert possible > 1000
    assert hit >= 0.9 * possible, (hit, possible)
    (states,) = states_of(driver.scheduler)
    # Of each turn that of its prompt and the last of its output.
    assert states.num_found <= 2 * 10


def test_a_sequence_leaves_one_state_of_its_output() -> None:
    driver = Driver(HYBRID, depth=2)
    driver.scheduler.submit(make_request("r", list(range(20)), max_new_tokens=100))
    (states,) = states_of(driver.scheduler)
    finish(driver)
    assert states.num_found == 2


def test_a_prefix_without_a_state_is_computed_again() -> None:
    """Its blocks are still there."""
    limits = dataclasses.replace(HYBRID, num_kept_states=1)
    driver = Driver(limits, depth=1)
    first = list(range(33))
    for number, prompt in enumerate((first, [*range(40, 49)], first)):
        request = make_request(f"r{number}", prompt, max_new_tokens=1)
        driver.scheduler.submit(request)
        finish(driver)
    assert request.cached_tokens == 0
    again = make_request("again", first, max_new_tokens=1)
    driver.scheduler.submit(again)
    finish(driver)
    assert again.cached_tokens == 32


def test_nothing_is_kept_where_prefixes_are_not_reused() -> None:
    driver = Driver(dataclasses.replace(HYBRID, enable_prefix_cache=False), depth=1)
    for number in range(2):
        request = make_request(f"r{number}", list(range(40)), max_new_tokens=20)
        driver.scheduler.submit(request)
        finish(driver)
        assert request.cached_tokens == 0
    (states,) = states_of(driver.scheduler)
    assert states.num_found == 0
