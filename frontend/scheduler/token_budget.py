"""How many tokens a replica's step may hold, and how many of them may be of long prompts.

Owns how much longer a step may take because of a long prompt. Knows nothing of sequences:
`Replica` cuts their chunks, within this budget.
"""

from __future__ import annotations

import dataclasses

from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.step_times import StepTimes

MAX_STRETCH = 1.8
"""A long prompt may make a step this many times as long as its decodes alone."""

SHORT_STEP_SECONDS = 0.025
"""A step may always take so long, even above MAX_STRETCH: nobody reads faster."""

LONG_PROMPT_SHARE = 4
"""A prompt is long when it is above max_num_batched_tokens / LONG_PROMPT_SHARE."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a replica's step may hold.

    Attributes:
        tokens: of all rows.
        long_prompt: a prompt with more tokens is long.
        long_chunk: tokens of all long prompts together.
    """

    tokens: int
    long_prompt: int
    long_chunk: int


def budget_of(limits: SchedulerLimits, times: StepTimes, num_decodes: int) -> Budget:
    """The budget of a step with ``num_decodes`` decodes on the replica with the most."""
    max_tokens = limits.max_num_batched_tokens
    if num_decodes == 0:
        return Budget(tokens=max_tokens, long_prompt=max_tokens, long_chunk=max_tokens)
    decode_seconds = times.decode_seconds(num_decodes)
    stretched = max(MAX_STRETCH * decode_seconds, SHORT_STEP_SECONDS)
    chunk = times.chunk_within(num_decodes, stretched - decode_seconds, max_tokens)
    return Budget(tokens=max_tokens, long_prompt=max_tokens // LONG_PROMPT_SHARE, long_chunk=chunk)
