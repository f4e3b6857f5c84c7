"""The sparse block of a transformer layer: route, dispatch, compute, combine.

Owns the order of these steps and the names a checkpoint gives them. Does not know what runs before
or after it, nor whether the tokens are prefill or decode. T tokens of this replica, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.checkpoint import CheckpointSlice
from moe.config import MoEConfig, ParallelConfig, check_widths
from moe.dispatch import make_dispatcher
from moe.experts import FusedMoeExperts
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement
from moe.router import TopKRouter
from moe.shared import SharedExperts


class SparseMoeBlock(nn.Module):
    """hidden [T,H] → [T,H], replicated over the tp ranks of a replica on both sides.

    `runner` is a name from `moe.runner.RUNNERS`. Raises ValueError where the widths of experts do
    not divide by tp and the backend needs it.
    """

    def __init__(
        self,
        config: MoEConfig,
        parallel: ParallelConfig,
        groups: ExpertGroups,
        runner: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        assert (parallel.tp, parallel.dp, parallel.ep) == (
            groups.tp_size,
            groups.dp_size,
            groups.ep_size,
        )
        check_widths(config, parallel)
        placement = ExpertPlacement(
            num_experts=config.num_experts, num_ranks=groups.ep_size, rank=groups.ep_rank
        )
        self.gate = TopKRouter(config, dtype=dtype, device=device)
        num_slices = parallel.tp if parallel.ep == 1 else 1
        self.experts = FusedMoeExperts(
            config,
            placement,
            runner=runner,
            slice_rank=groups.tp_rank % num_slices,
            num_slices=num_slices,
            dtype=dtype,
            device=device,
        )
        self.shared_experts: SharedExperts | None = None
        if config.shared_expert_size:
            num_slices = parallel.tp if parallel.tokens_replicated else 1
            self.shared_experts = SharedExperts(
                config,
                slice_rank=groups.tp_rank % num_slices,
                num_slices=num_slices,
                dtype=dtype,
                device=device,
            )
        self.dispatcher = make_dispatcher(parallel.backend, groups, placement, device=device)

    def forward(self, hidden_TH: torch.Tensor, max_tokens: int) -> torch.Tensor:
        """[T,H]. `max_tokens` is the largest T of any replica in this step, a host number.

        Every rank calls it in every step, also with T = 0: the other ranks wait for it.
        """
        if max_tokens == 0:
            return hidden_TH
        share = self.dispatcher.share(hidden_TH, max_tokens)
        topk = self.gate(share.hidden)
        dispatched = self.dispatcher.dispatch(share, topk)
        expert_out = self.experts(dispatched.hidden, dispatched.topk)
        shared = None if self.shared_experts is None else self.shared_experts(share.hidden)
        return self.dispatcher.combine(expert_out, dispatched, shared)

    def checkpoint_slices(self, prefix: str, packed: bool = False) -> Iterator[CheckpointSlice]:
        """Every tensor of the block; `prefix` ends in `mlp.`, `packed` as in `FusedMoeExperts`."""
        yield from self.gate.checkpoint_slices(f"{prefix}gate.")
        yield from self.experts.checkpoint_slices(f"{prefix}experts.", packed)
        if self.shared_experts is not None:
            yield from self.shared_experts.checkpoint_slices(prefix)
