"""Qwen3-MoE: Qwen3's decoder with a mixture of experts in some or all layers."""

from __future__ import annotations

from torch import nn

from moe.layer import SparseMoeBlock
from moe.load import ExpertLoad
from workers.config import ModelConfig
from workers.models.base import Placement
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
        self.expert_load = self._record_routes(config, place)

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
            max_tokens=_most_rows(place),
            exchanged=not place.parallel.tokens_replicated,
            first_local=placement.start,
            num_local=placement.num_local,
            device=place.device,
            context=place.context,
        )
        for block, ids_P in zip(blocks, load.ids_LP, strict=True):
            block.record = ids_P
        return load


def _most_rows(place: Placement) -> int:
    """Tokens a rank may compute experts for in one step: every replica's, shares rounded up."""
    parallel = place.parallel
    if parallel.tokens_replicated:
        return place.max_tokens
    return parallel.world_size * -(-place.max_tokens // parallel.tp)
