"""What every architecture is given: its place in the group, and a step's batch.

An architecture is an nn.Module with ``forward(batch, cache) -> hidden [T, H]``,
``logits(hidden) -> [D, V]``, ``checkpoint_slices()`` and ``num_kv_heads``.
"""

from __future__ import annotations

import dataclasses

import torch

from moe.config import ParallelConfig
from moe.dispatch import ExpertGroups
from workers.distributed import Groups
from workers.layers.attention import AttentionBatch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a model's share on this rank is built.

    Attributes:
        max_positions: rows of the rotary table, the longest context.
        moe_runner: key of moe.runner.RUNNERS.
    """

    groups: Groups
    expert_groups: ExpertGroups
    parallel: ParallelConfig
    moe_runner: str
    max_positions: int
    dtype: torch.dtype
    device: torch.device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One step's input on the device.

    Attributes:
        ids_T: token ids, int64.
        positions_T: position of each token in its sequence, int64.
        attention: which tokens belong together.
        max_tokens: most tokens any replica has in this step.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    attention: AttentionBatch
    max_tokens: int
