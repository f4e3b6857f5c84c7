"""How long a step will take, learned from measured steps.

Owns three curves, each by powers of two, because padded shapes and tiles make them so: seconds of a
step that only decodes, by its rows; seconds a prompt token takes in a step of its own; and seconds
it adds beside decodes, which read the same weights. Knows nothing of how steps are chosen or run.
"""

from __future__ import annotations

NEWEST_SHARE = 0.5
"""Weight of the newest measurement: prompt tokens cost more the longer their context is."""

SLACK_KEPT = 0.98
"""Share of the slack above 1 that is kept after each step."""

MAX_SLACK = 10.0

SMALLEST_CHUNK = 64
"""Prompt tokens that a step may always hold, so that every prompt is computed in the end."""


class StepTimes:
    """Predictions for one group of workers.

    Attributes:
        slack: how many times longer than predicted steps have taken lately, at least 1: what a busy
            machine or a rare step adds.

    Args:
        timed_tokens, timed_seconds: a step of so many prompt tokens took so long when all was warm;
            zeros: not known.
    """

    def __init__(self, timed_tokens: int = 0, timed_seconds: float = 0.0) -> None:
        self._decode_seconds: dict[int, float] = {}
        self._alone: dict[int, float] = {}
        self._beside: dict[int, float] = {}
        self._guess = timed_seconds
        self.slack = 1.0
        if timed_tokens:
            _learn(self._alone, timed_tokens, timed_seconds / timed_tokens)

    def add(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """Learn from a step; the counts are the most of any replica."""
        if seconds <= 0.0:
            return
        self._widen(seconds, self.predict(num_decodes, num_prompt_tokens))
        if num_prompt_tokens == 0:
            _learn(self._decode_seconds, num_decodes, seconds)
        elif num_decodes == 0:
            _learn(self._alone, num_prompt_tokens, seconds / num_prompt_tokens)
        else:
            more = max(seconds - self.decode_seconds(num_decodes), 0.0)
            _learn(self._beside, num_prompt_tokens, more)

    def forget_chunks(self) -> None:
        """Forget what chunks cost: the first chunks of the next long prompt are cheaper."""
        self._beside.clear()

    def predict(self, num_decodes: int, num_prompt_tokens: int) -> float:
        """Seconds of such a step; 0 when nothing is known yet."""
        if num_decodes == 0:
            return self._alone_seconds(num_prompt_tokens)
        seconds = self.decode_seconds(num_decodes)
        if num_prompt_tokens:
            seconds += self._beside_seconds(num_decodes, num_prompt_tokens)
        return seconds

    def decode_seconds(self, num_decodes: int) -> float:
        """Seconds of a step of so many decodes and nothing else."""
        bucket = _bucket(num_decodes)
        curve = self._decode_seconds
        nearest = min(curve, key=lambda known: (abs(known - bucket), known), default=None)
        return self._guess if nearest is None else curve[nearest]

    def chunk_within(self, num_decodes: int, seconds: float, max_tokens: int) -> int:
        """Prompt tokens that add at most ``seconds`` to so many decodes.

        With the decodes they are ``max_tokens``, or a power of two, as padded shapes are; at least
        `SMALLEST_CHUNK` are allowed. A size that was never measured counts as quick, and is tried.
        """
        total = max_tokens
        while True:
            chunk = total - num_decodes
            if chunk <= SMALLEST_CHUNK:
                return min(SMALLEST_CHUNK, max_tokens)
            if self._beside_seconds(num_decodes, chunk) <= seconds:
                return chunk
            total = 1 << _bucket(total) - 1

    def _widen(self, seconds: float, predicted: float) -> None:
        """Let the slack follow at once upwards, and slowly downwards."""
        calmer = 1.0 + (self.slack - 1.0) * SLACK_KEPT
        late = seconds / predicted if predicted > 0.0 else 1.0
        self.slack = min(max(calmer, late), MAX_SLACK)

    def _beside_seconds(self, num_decodes: int, num_tokens: int) -> float:
        """Seconds that so many tokens add to decodes: as measured; else the larger of what the next
        smaller bucket adds and the time alone less half the decodes' time."""
        bucket, curve = _bucket(num_tokens), self._beside
        if bucket in curve:
            return curve[bucket]
        fewer = max((known for known in curve if known < bucket), default=None)
        alone = self._alone_seconds(num_tokens) - self.decode_seconds(num_decodes) / 2
        return max(alone, 0.0 if fewer is None else curve[fewer])

    def _alone_seconds(self, num_tokens: int) -> float:
        """Seconds of a step of prompts only: as measured; else the nearest smaller measured step,
        and the rest at the largest step's rate."""
        bucket, curve = _bucket(num_tokens), self._alone
        if bucket in curve:
            return num_tokens * curve[bucket]
        rate = curve[max(curve)] if curve else 0.0
        fewer = max((known for known in curve if known < bucket), default=None)
        if fewer is None:
            return num_tokens * rate
        return (1 << fewer) * curve[fewer] + (num_tokens - (1 << fewer)) * rate


def _bucket(count: int) -> int:
    """Exponent of the next power of two."""
    return max(count - 1, 0).bit_length()


def _learn(curve: dict[int, float], count: int, value: float) -> None:
    bucket = _bucket(count)
    known = curve.get(bucket)
    curve[bucket] = value if known is None else known + NEWEST_SHARE * (value - known)
