"""As many steps in flight as hide the host's time, seen in a simulated group of workers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from frontend.engine.step_depth import StepDepth
from frontend.link.reconnect import step_depth
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from tests.frontend.fakes import group


class Made(NamedTuple):
    """A step: seconds of the devices; of the host, from the result that it is sent upon to its
    start; and that devices need between it and the one before."""

    device: float
    host: float
    gap: float = 8e-6
    decode_only: bool = True


def simulate(depth: StepDepth, steps: list[Made]) -> Iterator[tuple[float, int]]:
    """Seconds that devices waited for each step, and the limit after its result."""
    to_send, flying, end = deque(steps), deque[tuple[Made, float, int]](), 0.0
    while to_send or flying:
        while to_send and len(flying) < depth.limit:
            step = to_send.popleft()
            flying.append((step, end + step.host, len(flying)))
        step, ready, others = flying.popleft()
        idle = max(step.gap, ready - end)
        end += idle + step.device
        depth.add(step.device, idle, others, decode_only=step.decode_only)
        yield idle, depth.limit


def settled(device: float, host: float, num_steps: int = 2_000) -> tuple[float, list[int]]:
    """The share of the time that devices wait, and limits, once 200 steps have run."""
    depth = StepDepth()
    seen = list(simulate(depth, [Made(device, host)] * num_steps))[200:]
    idle = sum(seconds - Made(device, host).gap for seconds, _ in seen)
    return idle / (idle + device * len(seen)), [limit for _, limit in seen]


@pytest.mark.parametrize("device", [0.001, 0.002, 0.02])
@pytest.mark.parametrize(("ratio", "limit"), [(0.0, 2), (0.9, 2), (1.3, 3), (1.9, 3), (2.5, 4)])
def test_as_many_as_hide_the_host(device: float, ratio: float, limit: int) -> None:
    share, limits = settled(device, ratio * device)
    assert share < 0.01
    assert limits.count(limit) > 0.97 * len(limits)
    assert max(limits) == limit


def test_what_no_depth_can_hide_takes_the_most() -> None:
    _, limits = settled(0.001, 0.008)
    assert set(limits) == {MAX_STEPS_IN_FLIGHT}


def test_little_is_not_worth_another_step() -> None:
    share, limits = settled(0.01, 0.0104)
    assert set(limits) == {2}
    assert share < 0.03


def test_long_steps_need_no_third() -> None:
    depth, host = StepDepth(), 0.003
    short, long = Made(0.002, host), Made(0.1, host)
    steps = [short] * 200 + [long] * 20 + [short] * 200
    limits = [limit for _, limit in simulate(depth, steps)]
    assert limits[199] == 3
    assert set(limits[201:220]) == {2}
    assert limits[221:] == [3] * (len(limits) - 221)


def test_a_host_that_becomes_quiet_is_noticed() -> None:
    depth = StepDepth()
    steps = [Made(0.002, 0.003)] * 200 + [Made(0.002, 0.001)] * 10_000
    limits = [limit for _, limit in simulate(depth, steps)]
    assert limits[199] == 3
    assert set(limits[-200:]) == {2}


def test_prompts_beside_decodes_raise_nothing() -> None:
    """They are long, and launched kernel by kernel."""
    prompt = Made(0.1, 0.001, gap=0.004, decode_only=False)
    steps = [prompt, prompt, *[Made(0.002, 0.001)] * 20] * 50
    assert {limit for _, limit in simulate(StepDepth(), steps)} == {2}


def test_one_long_pause_changes_little() -> None:
    depth = StepDepth()
    steps = [Made(0.02, 0.001)] * 100 + [Made(0.02, 5.0)] + [Made(0.02, 0.001)] * 100
    assert {limit for _, limit in simulate(depth, steps)} == {2}


def test_steps_that_waited_for_requests_say_nothing() -> None:
    depth = StepDepth()
    for _ in range(100):
        depth.add(0.001, 0.5, 0, decode_only=True)
    assert depth.limit == 2


@pytest.mark.parametrize("seed", range(8))
def test_random_steps_keep_the_devices_busy(seed: int) -> None:
    rng = random.Random(seed)
    host = rng.uniform(0.0005, 0.003)
    device = host / rng.uniform(0.5, 2.5)
    steps = [
        Made(
            device * rng.uniform(0.9, 1.1) * rng.choice([1] * 30 + [40]),
            host * rng.uniform(0.8, 1.2),
        )
        for _ in range(3_000)
    ]
    waited = [idle for idle, _ in simulate(StepDepth(), steps)][300:]
    assert sum(waited) < 0.03 * sum(step.device for step in steps[300:])


@pytest.mark.parametrize(("least", "most"), [(0, 2), (3, 2), (2, MAX_STEPS_IN_FLIGHT + 1)])
def test_what_workers_have_no_buffers_for_is_refused(least: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"least is {least} and most {most}, must be 1 to"):
        StepDepth(least=least, most=most)


def test_steps_that_are_not_captured_stay_two() -> None:
    for sizes, most in (([], 2), ([1, 2], MAX_STEPS_IN_FLIGHT)):
        depth = step_depth(group(graph_batch_sizes=sizes))
        assert max(limit for _, limit in simulate(depth, [Made(0.001, 0.01)] * 100)) == most
