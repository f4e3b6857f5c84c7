"""How much a scheduler may run.

Owns the limits, and the checks of a request against them. Knows nothing of how requests are
scheduled.
"""

from __future__ import annotations

import dataclasses

from frontend.errors import Code, RequestError
from frontend.scheduler.step_times import StepTimes

RETRY_AFTER_SECONDS = (1.0, 60.0)
"""The least and the most that `retry_after` is for a request that finds the queue full."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What may run at once; sizes are those the workers describe, each of one replica.

    Attributes:
        max_batch_size: sequences that hold a slot.
        max_num_batched_tokens: tokens of one step.
        max_model_len: prompt plus output of one sequence.
        block_size: tokens in a KV block.
        num_blocks: KV blocks.
        num_replicas: attention replicas.
        max_queued_requests: requests that may wait, not counting those that a free slot can take.
        max_queued_tokens: tokens of prompts that may wait.
        enable_prefix_cache: reuse the KV of equal prefixes.
    """

    max_batch_size: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_queued_requests: int
    max_queued_tokens: int
    num_replicas: int = 1
    enable_prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_model_len", "block_size", "num_blocks", "num_replicas"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.max_num_batched_tokens < self.max_batch_size:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, must be at least "
                f"max_batch_size {self.max_batch_size}: a step holds a token of every sequence"
            )


def check_queue(
    limits: SchedulerLimits,
    times: StepTimes,
    *,
    num_running: int,
    num_waiting: int,
    waiting_tokens: int,
    num_prompt: int,
) -> None:
    """Refuse a request when the queue is full. An empty queue takes a prompt of any size.

    Raises:
        RequestError: RESOURCE_EXHAUSTED, with the predicted time to compute the queued prompts.
    """
    free_slots = limits.max_batch_size * limits.num_replicas - num_running
    if num_waiting >= limits.max_queued_requests + free_slots:
        what = (
            f"{num_running} requests run, {num_waiting} wait, "
            f"at most {limits.max_queued_requests} may"
        )
    elif num_waiting and waiting_tokens + num_prompt > limits.max_queued_tokens:
        what = (
            f"prompts of {waiting_tokens} tokens wait, this one has {num_prompt}, "
            f"at most {limits.max_queued_tokens} may wait"
        )
    else:
        return
    minimum, maximum = RETRY_AFTER_SECONDS
    raise RequestError(
        Code.RESOURCE_EXHAUSTED,
        f"the queue is full: {what}; try again later",
        reason="QUEUE_FULL",
        retry_after=min(max(times.predict(0, waiting_tokens + num_prompt), minimum), maximum),
    )


def expired(num_waiting: int) -> RequestError:
    """The error of a request that waited longer than its max_queue_time."""
    return RequestError(
        Code.DEADLINE_EXCEEDED,
        f"not admitted within max_queue_time, {num_waiting} requests still wait; "
        "raise it or try again later",
        reason="QUEUE_DEADLINE",
        field="max_queue_time",
    )


def check_prompt(num_prompt: int, max_model_len: int) -> None:
    """Refuse a prompt that leaves no room for a single token.

    Raises:
        RequestError: INVALID_ARGUMENT with the numbers.
    """
    if num_prompt >= max_model_len:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"the prompt's {num_prompt} tokens leave no room in the context of {max_model_len}; "
            f"send at most {max_model_len - 1}",
            reason="PROMPT_TOO_LONG",
            field="prompt",
        )


def check_fits(limits: SchedulerLimits, num_prompt: int, max_new_tokens: int) -> None:
    """Refuse a request that would not fit an empty cache; the last token needs no KV.

    Raises:
        RequestError: INVALID_ARGUMENT with the numbers.
    """
    assert num_prompt, "an empty prompt is refused where it is encoded"
    check_prompt(num_prompt, limits.max_model_len)
    capacity = limits.num_blocks * limits.block_size
    num_cached = min(num_prompt + max_new_tokens, limits.max_model_len) - 1
    if num_cached > capacity:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"prompt of {num_prompt} tokens and max_new_tokens "
            f"{max_new_tokens} need {num_cached} tokens of KV cache, which holds {capacity}; "
            "ask for fewer",
            reason="CACHE_EXCEEDED",
            field="stop_conditions.max_new_tokens",
        )
