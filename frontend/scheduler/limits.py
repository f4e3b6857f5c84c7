"""How much may run at once and how much may wait. Knows nothing of how requests are scheduled."""

from __future__ import annotations

import dataclasses

from frontend.cache_groups import CacheGroups


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What may run at once; sizes are those the workers describe, each of one replica.

    Attributes:
        max_batch_size: sequences that hold a slot.
        max_num_batched_tokens: tokens of one step.
        max_model_len: prompt plus output of one sequence.
        block_size: tokens in a KV block.
        num_blocks: KV blocks.
        windows: of each group of layers, as in CacheGroups.
        num_replicas: attention replicas.
        max_queued_requests: requests that may wait, not counting those that a free slot can take.
        max_queued_tokens: tokens of prompts that may wait.
        enable_prefix_cache: reuse the KV of equal prefixes.
        state_interval: tokens between the positions whose states can be kept, of models with layers
            that keep a state; 0: the model has none.
        num_kept_states: of prefixes, beside those of running sequences.
        state_bytes: of one, on each rank.
    """

    max_batch_size: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    max_queued_requests: int
    max_queued_tokens: int
    num_replicas: int = 1
    windows: tuple[int, ...] = (0,)
    enable_prefix_cache: bool = True
    state_interval: int = 0
    num_kept_states: int = 0
    state_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_model_len", "block_size", "num_blocks", "num_replicas"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.max_num_batched_tokens < self.max_batch_size:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, must be at least "
                f"max_batch_size {self.max_batch_size}: a step holds a token of every sequence"
            )

    @property
    def groups(self) -> CacheGroups:
        """What a sequence needs of a replica's cache."""
        return CacheGroups(
            block_size=self.block_size,
            windows=self.windows,
            step_tokens=self.max_num_batched_tokens,
        )
