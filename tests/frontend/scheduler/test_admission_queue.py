"""Whose turn it is: those that ran before, then priorities, then keys in turn, then age."""

from __future__ import annotations

import dataclasses
import random

import pytest

from frontend.errors import Code, RequestError
from frontend.scheduler.admission_queue import AdmissionQueue
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step_times import StepTimes
from tests.frontend.builders import LIMITS, make_request
from tests.frontend.fake_workers import FakeWorkers


def sequence(
    order: int, key: str = "", priority: int = 0, length: int = 3, *, ran: bool = False
) -> Sequence:
    request = make_request(f"r{order}", [1] * length)
    request.key, request.priority, request.admitted = key, priority, float(ran)
    return Sequence(request, order, 64)


def drain(queue: AdmissionQueue) -> list[int]:
    """Orders in which all are admitted, each charged for its prompt."""
    orders = []
    while queue:
        head = queue.head()
        queue.remove(head)
        queue.charge(head.request.key, len(head.tokens))
        orders.append(head.order)
    return orders


def test_one_key_is_served_in_order_of_arrival() -> None:
    queue = AdmissionQueue()
    for order in range(5):
        queue.push(sequence(order))
    assert len(queue) == 5
    assert queue.num_tokens == 15
    assert drain(queue) == [0, 1, 2, 3, 4]
    assert (len(queue), queue.num_tokens, bool(queue)) == (0, 0, False)


def test_what_ran_before_goes_first_by_age_whatever_its_priority() -> None:
    queue = AdmissionQueue()
    queue.push(sequence(9, priority=-5))
    for order in (3, 1, 2):
        queue.push_preempted(sequence(order, priority=7, ran=True))
    assert drain(queue) == [1, 2, 3, 9]


def test_lower_priority_values_go_first() -> None:
    queue = AdmissionQueue()
    for order, priority in enumerate([0, 5, -1, 0, -1]):
        queue.push(sequence(order, priority=priority))
    assert drain(queue) == [2, 4, 0, 3, 1]


def test_a_key_that_floods_does_not_starve_the_others() -> None:
    queue = AdmissionQueue()
    for order in range(50):
        queue.push(sequence(order, key="flood"))
    for order in range(50, 53):
        queue.push(sequence(order, key="guest"))
    served = drain(queue)
    assert max(served.index(order) for order in range(50, 53)) <= 6


def test_keys_share_tokens_not_requests() -> None:
    queue = AdmissionQueue()
    for order in range(0, 60, 2):
        queue.push(sequence(order, key="long", length=30))
    for order in range(1, 201, 2):
        queue.push(sequence(order, key="short", length=10))
    first = drain(queue)[:40]
    num_long = sum(order % 2 == 0 for order in first)
    assert abs(30 * num_long - 10 * (len(first) - num_long)) <= 30


def test_a_key_that_was_away_has_no_credit() -> None:
    queue = AdmissionQueue()
    for order in range(100):
        queue.push(sequence(order, key="busy"))
    for _ in range(50):
        head = queue.head()
        queue.remove(head)
        queue.charge("busy", 1000)
    for order in range(100, 140):
        queue.push(sequence(order, key="back"))
    first = drain(queue)[:20]
    assert 8 <= sum(order < 100 for order in first) <= 12


@pytest.mark.parametrize("seed", range(20))
def test_random_withdrawals_leave_the_rest(seed: int) -> None:
    rng = random.Random(seed)
    queue, present = AdmissionQueue(), []
    for order in range(60):
        ran = rng.random() < 0.3
        each = sequence(order, rng.choice("abc"), rng.randrange(3), rng.randint(1, 9), ran=ran)
        (queue.push_preempted if ran else queue.push)(each)
        present.append(each)
        if rng.random() < 0.4:
            gone = present.pop(rng.randrange(len(present)))
            queue.remove(gone)
        assert queue.num_tokens == sum(len(seq.tokens) for seq in present)
        assert len(queue) == len(present)
    assert sorted(drain(queue)) == sorted(seq.order for seq in present)


def test_waiting_tokens_are_bounded_but_any_one_prompt_may_wait() -> None:
    limits: SchedulerLimits = dataclasses.replace(LIMITS, max_batch_size=1, max_queued_tokens=40)
    scheduler, workers = Scheduler(limits, StepTimes(1, 0.2)), FakeWorkers(limits)
    scheduler.submit(make_request("runs", max_new_tokens=50))
    step = scheduler.schedule(1.0)
    assert step is not None
    workers.run(step)
    scheduler.submit(make_request("huge", [1] * 50))
    with pytest.raises(RequestError, match="prompts of 50 tokens wait, this one has 3") as raised:
        scheduler.submit(make_request("late"))
    error = raised.value
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert error.retry_after == pytest.approx(53 * 0.2)
