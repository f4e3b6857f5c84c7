"""What every architecture is given: its place in the group, and a step's batch.

An architecture is an nn.Module with ``forward(batch, cache) -> hidden [T, H]``,
``logits(hidden) -> [D, V]``, ``checkpoint_slices()``, ``num_kv_heads`` and ``expert_load``.
"""

from __future__ import annotations

import dataclasses

import torch

from moe.base.context import KernelContext
from moe.base.parallel import ParallelConfig
from moe.dispatch import ExpertGroups
from workers.attention.layer import AttentionBatch
from workers.distributed import Groups


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a model's share on this rank is built.

    Attributes:
        max_positions: rows of the rotary table, the longest context.
        max_tokens: most tokens of a step on one replica.
        context: what Triton kernels share; None for plain torch.
        moe_runner: key of moe.runner.RUNNERS.
    """

    groups: Groups
    expert_groups: ExpertGroups
    parallel: ParallelConfig
    moe_runner: str
    max_positions: int
    max_tokens: int
    context: KernelContext | None
    dtype: torch.dtype
    device: torch.device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One step's input on the device.

    Attributes:
        ids_T: token ids, int32; -1 stands for the last token drawn by the token's slot.
        last_token: int32, by slot.
        attention: which tokens belong together, and where they stand.
        max_tokens: most tokens any replica has in this step.
        num_valid: int32 [1]; tokens from there on are padding. None: there is none.
    """

    ids_T: torch.Tensor
    last_token: torch.Tensor
    attention: AttentionBatch
    max_tokens: int
    num_valid: torch.Tensor | None = None
