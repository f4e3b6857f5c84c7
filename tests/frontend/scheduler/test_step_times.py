"""Predictions of step times against machines that are known."""

from __future__ import annotations

import pytest

from frontend.scheduler.step_times import MAX_SLACK, SMALLEST_CHUNK, StepTimes


def test_nothing_known_predicts_nothing_and_bounds_nothing() -> None:
    times = StepTimes()
    assert times.predict(64, 1000) == 0.0
    assert times.chunk_within(64, 0.001, 8192) == 8192 - 64


def test_the_first_guess_is_the_step_timed_at_the_start() -> None:
    times = StepTimes(2048, 0.1)
    assert times.predict(0, 2048) == pytest.approx(0.1)
    assert times.predict(0, 8192) == pytest.approx(0.4)
    assert times.predict(8, 0) == pytest.approx(0.1)


def test_it_learns_each_kind_of_step_and_predicts_between_them() -> None:
    times = StepTimes(2048, 1.0)
    for _ in range(10):
        times.add(64, 0, 0.016)
        times.add(0, 1024, 0.017)
        times.add(64, 512, 0.022)
    assert times.predict(64, 0) == pytest.approx(0.016)
    assert times.predict(50, 0) == pytest.approx(0.016)  # the same padded shape
    assert times.predict(0, 1024) == pytest.approx(0.017)
    assert times.predict(64, 512) == pytest.approx(0.022)


def test_the_newest_measurements_count_most() -> None:
    times = StepTimes()
    times.add(1, 0, 1.0)
    for _ in range(8):
        times.add(1, 0, 0.002)
    assert times.decode_seconds(1) == pytest.approx(0.002, rel=2.1)


def test_chunks_grow_until_they_take_what_they_may() -> None:
    """A machine where any prompt beside decodes costs 4 ms, and each of its tokens 10 µs."""
    times = StepTimes(2048, 2048 * 1e-5)
    times.add(64, 0, 0.016)
    chunk = 0
    for _ in range(12):
        chunk = times.chunk_within(64, 0.0145, 8192)
        times.add(64, chunk, 0.016 + 0.004 + chunk * 1e-5)
    assert chunk == 1024 - 64
    assert times.predict(64, chunk) == pytest.approx(0.03, rel=0.05)


def test_a_chunk_has_a_least_size() -> None:
    times = StepTimes(64, 64.0)
    times.add(1, 0, 0.01)
    assert times.chunk_within(1, 0.001, 8192) == SMALLEST_CHUNK
    assert times.chunk_within(1, 0.001, 20) == 20


def test_steps_that_were_not_measured_teach_nothing() -> None:
    times = StepTimes()
    times.add(4, 0, 0.0)
    assert times.predict(4, 0) == 0.0


def test_slack_is_there_at_once_and_leaves_slowly() -> None:
    times = StepTimes()
    times.add(8, 0, 0.01)
    assert times.slack == 1.0
    times.add(8, 0, 0.04)
    assert times.slack == pytest.approx(4.0)
    times.add(8, 0, 0.0)
    assert times.slack == pytest.approx(4.0), "what was not measured says nothing"
    for _ in range(300):
        times.add(8, 0, 0.01)
    assert times.slack < 1.05
    times.add(8, 0, 1000.0)
    assert times.slack == MAX_SLACK


def test_deep_in_a_context_chunks_shrink_and_the_next_prompt_begins_anew() -> None:
    """Attention: 1 µs for each chunk token and thousand tokens of context, or a wave's time."""
    times = StepTimes(2048, 2048 * 1.2e-5)
    for _ in range(5):
        times.add(64, 0, 0.016)

    def prompt() -> tuple[list[int], float]:
        times.forget_chunks()
        chunks, slowest = [], 0.0
        while sum(chunks) < 30_000:
            chunk = times.chunk_within(64, 0.8 * 0.016, 8192)
            deep = sum(chunks) * 1e-3
            seconds = 0.016 + 0.002 + chunk * 4e-6 + max(chunk, 256) * deep * 1e-6
            times.add(64, chunk, seconds)
            chunks.append(chunk)
            slowest = max(slowest, seconds if len(chunks) > 2 else 0.0)
        return chunks, slowest

    first, slowest = prompt()
    assert first[2] == 1024 - 64
    assert first[-1] < first[2]
    assert slowest < 2 * 0.016
    again, slowest = prompt()
    assert again[2] == 1024 - 64, "a new prompt is not cut as the end of the last one"
    assert slowest < 2 * 0.016
