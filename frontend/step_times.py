"""How long a step will take, learned from those that were measured.

Owns three curves, each by powers of two, because padded shapes and tiles make them so: seconds of a
step that only decodes, by its rows; seconds a prompt token takes in a step of its own; and seconds
it adds beside decodes, which read the same weights. Knows nothing of how steps are chosen or run.
"""

from __future__ import annotations

NEWEST_SHARE = 0.5
"""Weight of the newest measurement: prompt tokens cost more the longer their context is."""

SLACK_KEPT = 0.98
"""What a step leaves of the slack above 1."""

MOST_SLACK = 10.0

SMALLEST_CHUNK = 64
"""Prompt tokens that a step may always hold, so that prompts end."""


class StepTimes:
    """Predictions for one kind of workers.

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
        """Learn from a step; counts are of the replica with most."""
        if seconds <= 0.0:
            return
        self._widen(seconds, self.predict(num_decodes, num_prompt_tokens))
        if num_prompt_tokens == 0:
            _learn(self._decode_seconds, num_decodes, seconds)
        elif num_decodes == 0:
            _learn(self._alone, num_prompt_tokens, seconds / num_prompt_tokens)
        else:
            more = max(seconds - self.decode_seconds(num_decodes), 0.0)
            _learn(self._beside, num_prompt_tokens, more / num_prompt_tokens)

    def predict(self, num_decodes: int, num_prompt_tokens: int) -> float:
        """Seconds of such a step; 0 when nothing is known yet."""
        seconds = self.decode_seconds(num_decodes) if num_decodes else 0.0
        if num_prompt_tokens:
            curve = self._beside if num_decodes and self._beside else self._alone
            seconds += self._prompt_seconds(curve, num_prompt_tokens)
        return seconds

    def decode_seconds(self, num_decodes: int) -> float:
        """Seconds of a step of so many decodes and nothing else."""
        bucket = _bucket(num_decodes)
        curve = self._decode_seconds
        nearest = min(curve, key=lambda known: (abs(known - bucket), known), default=None)
        return self._guess if nearest is None else curve[nearest]

    def prompt_tokens_within(self, seconds: float, most: int) -> int:
        """Prompt tokens that add at most ``seconds`` to decodes: a power of two, or ``most``."""
        curve = self._beside or self._alone
        tokens = most
        while tokens > SMALLEST_CHUNK and self._prompt_seconds(curve, tokens) > seconds:
            tokens = 1 << _bucket(tokens) - 1
        return tokens

    def _widen(self, seconds: float, predicted: float) -> None:
        """Let the slack follow at once upwards, and slowly downwards."""
        calmer = 1.0 + (self.slack - 1.0) * SLACK_KEPT
        late = seconds / predicted if predicted > 0.0 else 1.0
        self.slack = min(max(calmer, late), MOST_SLACK)

    def _prompt_seconds(self, curve: dict[int, float], num_tokens: int) -> float:
        """Of so many tokens: as measured, or the nearest smaller step that was and the rest at the
        rate of large ones."""
        bucket = _bucket(num_tokens)
        if bucket in curve:
            return num_tokens * curve[bucket]
        rate = self._alone[max(self._alone)] if self._alone else 0.0
        smaller = max((known for known in curve if known < bucket), default=None)
        if smaller is None:
            return num_tokens * rate
        return (1 << smaller) * curve[smaller] + (num_tokens - (1 << smaller)) * rate


def _bucket(count: int) -> int:
    """Exponent of the next power of two."""
    return max(count - 1, 0).bit_length()


def _learn(curve: dict[int, float], count: int, value: float) -> None:
    bucket = _bucket(count)
    known = curve.get(bucket)
    curve[bucket] = value if known is None else known + NEWEST_SHARE * (value - known)
