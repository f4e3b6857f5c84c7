"""A mixture of experts in the place of a dense MLP, and the record of its routes.

Owns the way from a rank's `BuildContext` and `ForwardBatch` to the moe package. Knows no
architecture.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from moe.config import MoEConfig
from moe.expert_load import ExpertCounters
from moe.layer import SparseMoeBlock
from moe.placement import ExpertPlacement
from workers.config_json.model_config import ModelConfig
from workers.models.base import BuildContext, ForwardBatch


class SparseMLP(nn.Module):
    """A `SparseMoeBlock` with the checkpoint's way of holding experts.

    Args:
        out_ids_P: int32, takes the routes of each step: a row of `ExpertCounters.ids_LP`.
        prefix: of the module's name, ending in ``mlp.``.
    """

    def __init__(
        self, config: MoEConfig, build: BuildContext, out_ids_P: torch.Tensor, prefix: str
    ) -> None:
        super().__init__()
        self.packed_experts, self.packed_scales = build.packed_experts, build.packed_scales
        experts = [
            f"{prefix}{module}"
            for expert in range(config.num_experts)
            for module in config.names.expert_modules(expert)
        ]
        shared = [f"{prefix}{module}" for module in config.shared_modules]
        self.block = SparseMoeBlock(
            config,
            build.parallel,
            build.expert_groups,
            build.moe_runner,
            dtype=build.dtype,
            device=build.device,
            context=build.context,
            out_ids_P=out_ids_P,
            experts_format=build.format_of(experts),
            shared_format=build.format_of(shared),
        )

    @property
    def router_weight(self) -> torch.Tensor | None:
        """As the block's."""
        return self.block.router_weight

    def forward(
        self,
        hidden_TH: torch.Tensor,
        batch: ForwardBatch,
        quantized_TH: Quantized | None = None,
        logits_STE: torch.Tensor | None = None,
    ) -> DeferredSum:
        """All ranks call it in every step: they exchange tokens; padding is not computed."""
        update: DeferredSum = self.block(
            hidden_TH, batch.max_tokens, batch.num_valid, quantized_TH, logits_STE
        )
        return update

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are read in eight bits where there are such weights."""
        return self.block.takes_quantized(num_tokens)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        return self.block.checkpoint_slices(prefix, self.packed_experts, self.packed_scales)


def make_expert_load(config: ModelConfig, build: BuildContext) -> ExpertCounters | None:
    """Counts for the sparse layers of a model; None without any."""
    num_layers = sum(config.moe_layers)
    if config.moe is None or not num_layers:
        return None
    groups = build.expert_groups
    placement = ExpertPlacement(
        num_experts=config.moe.num_experts, num_ranks=groups.ep_size, rank=groups.ep_rank
    )
    return ExpertCounters(
        config.moe,
        build.parallel,
        placement,
        num_layers=num_layers,
        max_tokens=build.max_tokens,
        device=build.device,
        context=build.context,
        has_last=config.moe_layers[-1],
    )
