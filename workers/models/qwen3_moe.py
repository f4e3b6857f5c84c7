"""Qwen3-MoE: Qwen3's decoder with a mixture of experts in some or all layers."""

from __future__ import annotations

import torch
from torch import nn

from moe.base.parallel import ParallelConfig
from moe.expert_load import ExpertLoad
from moe.layer import SparseMoeBlock
from workers.attention.kv_cache import KVCache
from workers.model_config import ModelConfig
from workers.models.base import ForwardBatch, Placement
from workers.models.qwen3 import Qwen3ForCausalLM, Qwen3MLP


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """As Qwen3ForCausalLM; ``config.moe_layers`` says which layers are mixtures."""

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        def make_mlp(layer: int) -> nn.Module:
            if not config.moe_layers[layer]:
                return Qwen3MLP(config, place)
            return SparseMoeBlock(
                config.moe,
                place.parallel,
                place.expert_groups,
                place.moe_runner,
                dtype=place.dtype,
                device=place.device,
                context=place.context,
            )

        super().__init__(config, place, make_mlp)
        self.parallel = place.parallel
        self.expert_load = self._record_routes(config, place)

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """As the dense decoder's; then counts which experts were asked for."""
        hidden_TH = super().forward(batch, cache)
        if self.expert_load is not None:
            rows = expert_rows(self.parallel, len(hidden_TH), batch.max_tokens)
            self.expert_load.count(rows)
        return hidden_TH

    def _record_routes(self, config: ModelConfig, place: Placement) -> ExpertLoad | None:
        """Every sparse layer writes the routes it computes where they are counted."""
        blocks = [layer.mlp for layer in self.layers if isinstance(layer.mlp, SparseMoeBlock)]
        if not blocks:
            return None
        placement = blocks[0].experts.placement
        load = ExpertLoad(
            num_layers=len(blocks),
            num_experts=config.moe.num_experts,
            routes_per_token=config.moe.num_experts_per_tok,
            max_tokens=expert_rows(place.parallel, place.max_tokens, place.max_tokens),
            routes_vary=place.parallel.routes_vary,
            first_local=placement.start,
            num_local=placement.num_local,
            device=place.device,
            context=place.context,
        )
        for block, ids_P in zip(blocks, load.ids_LP, strict=True):
            block.record = ids_P
        return load


def expert_rows(parallel: ParallelConfig, num_tokens: int, max_tokens: int) -> int:
    """Tokens a rank computes experts for in a step: its replica's, or every replica's with shares
    rounded up.

    Args:
        num_tokens: of this replica.
        max_tokens: most of any replica.
    """
    if parallel.tokens_replicated:
        return num_tokens
    return parallel.world_size * -(-max_tokens // parallel.tp)
