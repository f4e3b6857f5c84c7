"""Adding up what steps took."""

from __future__ import annotations

import dataclasses
import time

import pytest

from frontend.engine.step_stats import StepStatsWindow, StepTotals
from frontend.scheduler.step import StepStats

STEP = StepStats(
    device_seconds=0.02, floor_seconds=0.015, idle_seconds=0.001, bytes_moved=8e10, flops=2e12
)
PREFILL = dataclasses.replace(STEP, device_seconds=0.1, floor_seconds=0.05)


def run(window: StepStatsWindow, begin: float, seconds: float, *, steps: StepStats = STEP) -> float:
    """Decode steps every 25 ms, one token each; returns when the last one ended."""
    now = begin
    for number in range(round(seconds / 0.025)):
        now = begin + 0.025 * (number + 1)
        window.add(steps, number + 1, now, decode_only=True, back_to_back=True)
    return now


def test_nothing_has_run() -> None:
    load = StepStatsWindow().rates(time.monotonic() + 3)
    assert (load.floor_share, load.decode_floor_share, load.device_busy) == (0, 0, 0)
    assert (load.step_seconds, load.idle_seconds_per_step) == (0, 0)
    assert load.steps == load.decode_steps == StepTotals()


def test_rates_over_the_window() -> None:
    window = StepStatsWindow()
    now = run(window, time.monotonic(), 20)
    load = window.rates(now)
    assert load.generated_tokens_per_second == pytest.approx(40, rel=0.01)
    assert load.floor_share == load.decode_floor_share == pytest.approx(0.75)
    assert load.device_busy == pytest.approx(0.8, rel=0.01)
    assert load.step_seconds == pytest.approx(0.02)
    assert load.idle_seconds_per_step == pytest.approx(0.001)
    assert load.steps.steps == 800
    assert load.steps.device_seconds == pytest.approx(16)
    assert load.steps.floor_seconds == pytest.approx(12)
    assert load.steps.idle_seconds == pytest.approx(0.8)
    assert load.steps.bytes_moved == pytest.approx(800 * 8e10)
    assert load.steps.flops == pytest.approx(800 * 2e12)
    assert load.steps == load.decode_steps


def test_the_window_forgets_and_the_totals_do_not() -> None:
    window = StepStatsWindow()
    now = run(window, time.monotonic(), 8)
    slow = dataclasses.replace(STEP, device_seconds=0.03, floor_seconds=0.003)
    now = run(window, now, 8, steps=slow)
    load = window.rates(now)
    assert load.floor_share == pytest.approx(0.1)
    assert load.steps.floor_seconds == pytest.approx(320 * 0.018)
    # Rested for a minute: nothing is running, and no share is made up from nothing.
    load = window.rates(now + 60)
    assert load.device_busy == load.generated_tokens_per_second == 0
    assert (load.floor_share, load.decode_floor_share, load.step_seconds) == (0, 0, 0)


def test_prefills_are_not_decodes() -> None:
    window = StepStatsWindow()
    now = time.monotonic()
    window.add(STEP, 1, now + 0.02, decode_only=True, back_to_back=True)
    window.add(PREFILL, 1, now + 0.12, decode_only=False, back_to_back=True)
    load = window.rates(now + 1)
    assert load.decode_floor_share == pytest.approx(0.75)
    assert load.floor_share == pytest.approx(0.065 / 0.12)
    assert (load.steps.steps, load.decode_steps.steps) == (2, 1)
    assert load.decode_steps.device_seconds == pytest.approx(0.02)


def test_waiting_for_work_is_not_idling() -> None:
    window = StepStatsWindow()
    now = time.monotonic()
    rested = dataclasses.replace(STEP, idle_seconds=3600.0)
    window.add(rested, 1, now, decode_only=False, back_to_back=False)
    window.add(STEP, 2, now, decode_only=True, back_to_back=True)
    load = window.rates(now)
    assert load.steps.idle_seconds == load.decode_steps.idle_seconds == pytest.approx(0.001)


def test_workers_that_do_not_measure_give_no_share() -> None:
    window = StepStatsWindow()
    begin = time.monotonic()
    now = run(window, begin, 1, steps=StepStats(device_seconds=0.02))
    load = window.rates(now)
    assert load.floor_share == load.decode_floor_share == 0
    assert load.step_seconds == pytest.approx(0.02)
    assert window.rates(now).steps.steps == 40
