"""What steps took, and the least they could take: since the start, and over the last seconds.

Adds up the stats that workers report, and keeps a sliding window of them. Knows nothing of how a
floor is computed, of steps' contents or of transport.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque

from frontend.scheduler.step import StepStats

WINDOW_SECONDS = 5.0
SAMPLE_SECONDS = 0.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Sums over steps; inference.proto's StepTotals defines each."""

    steps: int = 0
    device_seconds: float = 0.0
    floor_seconds: float = 0.0
    idle_seconds: float = 0.0
    bytes_moved: float = 0.0
    flops: float = 0.0

    def plus(self, step: StepStats, idle_seconds: float) -> StepTotals:
        """With one more step."""
        return StepTotals(
            steps=self.steps + 1,
            device_seconds=self.device_seconds + step.device_seconds,
            floor_seconds=self.floor_seconds + step.floor_seconds,
            idle_seconds=self.idle_seconds + idle_seconds,
            bytes_moved=self.bytes_moved + step.bytes_moved,
            flops=self.flops + step.flops,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRates:
    """Rates over the window, and totals; GetLoadResponse in inference.proto defines each."""

    generated_tokens_per_second: float
    floor_share: float
    decode_floor_share: float
    device_busy: float
    step_seconds: float
    idle_seconds_per_step: float
    steps: StepTotals
    decode_steps: StepTotals


@dataclasses.dataclass(frozen=True, slots=True)
class _Totals:
    """Cumulative counters at one point in time."""

    generated_tokens: int = 0
    steps: StepTotals = dataclasses.field(default_factory=StepTotals)
    decode_steps: StepTotals = dataclasses.field(default_factory=StepTotals)


class StepStatsWindow:
    """Adds up steps and tokens."""

    def __init__(self) -> None:
        self._totals = _Totals()
        self._samples: deque[tuple[float, _Totals]] = deque([(time.monotonic(), self._totals)])

    def add(
        self,
        step: StepStats,
        generated_tokens: int,
        now: float,
        *,
        decode_only: bool,
        back_to_back: bool,
    ) -> None:
        """Count a step that is complete.

        Args:
            generated_tokens: all tokens since the start, this step's included.
            now: time.monotonic().
            decode_only: the step holds decodes alone.
            back_to_back: it was sent while another was under way, so that the devices should not
                have waited for it.
        """
        idle_seconds = step.idle_seconds if back_to_back else 0.0
        before = self._totals
        decode_steps = before.decode_steps
        if decode_only:
            decode_steps = decode_steps.plus(step, idle_seconds)
        self._totals = _Totals(
            generated_tokens, before.steps.plus(step, idle_seconds), decode_steps
        )
        if now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self._totals))
            self._trim(now)

    def rates(self, now: float) -> StepRates:
        """Rates since the newest sample that is older than the window, or the oldest there is."""
        if now - self._samples[-1][0] >= WINDOW_SECONDS:
            # Nothing was sampled for so long: all that there was lies before the window.
            self._samples.append((now - WINDOW_SECONDS, self._totals))
        self._trim(now)
        then, before = self._samples[0]
        total, seconds = self._totals, max(now - then, SAMPLE_SECONDS)
        num_steps = total.steps.steps - before.steps.steps
        device_seconds = total.steps.device_seconds - before.steps.device_seconds
        idle_seconds = total.steps.idle_seconds - before.steps.idle_seconds
        return StepRates(
            generated_tokens_per_second=(total.generated_tokens - before.generated_tokens)
            / seconds,
            floor_share=_floor_share(total.steps, before.steps),
            decode_floor_share=_floor_share(total.decode_steps, before.decode_steps),
            device_busy=min(1.0, device_seconds / seconds),
            step_seconds=device_seconds / num_steps if num_steps else 0.0,
            idle_seconds_per_step=idle_seconds / num_steps if num_steps else 0.0,
            steps=total.steps,
            decode_steps=total.decode_steps,
        )

    def _trim(self, now: float) -> None:
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()


def _floor_share(total: StepTotals, before: StepTotals) -> float:
    """0 when no step was measured in between."""
    device_seconds = total.device_seconds - before.device_seconds
    floor_seconds = total.floor_seconds - before.floor_seconds
    return floor_seconds / device_seconds if device_seconds > 0 else 0.0
