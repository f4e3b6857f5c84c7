"""What one group of workers is and can hold, as the frontend uses it.

Knows no protobuf and no transport: `frontend.link` makes it from rank 0's description.
"""

from __future__ import annotations

import dataclasses

from frontend.cache_groups import CacheGroups


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    """The workers; worker.proto's DescribeResponse defines each field.

    Sizes of batches and caches are those of one attention replica. ``bytes_per_second``,
    ``flops_per_second`` and ``timed_*`` are 0 where nothing was measured.
    """

    architecture: str
    weights_sha256: str
    dtype: str
    device: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    max_batch_size: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    world_size: int
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    moe_ep_backend: str
    kv_cache_dtype: str
    graph_batch_sizes: tuple[int, ...] = ()
    bytes_per_second: float = 0.0
    flops_per_second: float = 0.0
    timed_tokens: int = 0
    timed_seconds: float = 0.0
    quantization: str = ""
    group_windows: tuple[int, ...] = (0,)
    keeps_states: bool = False
    num_kept_states: int = 0
    state_interval: int = 0
    state_bytes: int = 0

    @property
    def cache_groups(self) -> CacheGroups:
        """What a sequence needs of a replica's cache."""
        return CacheGroups(
            block_size=self.block_size,
            windows=self.group_windows,
            step_tokens=self.max_num_batched_tokens,
        )
