"""Qwen3-MoE: Qwen3's decoder with a mixture of experts in some or all layers."""

from __future__ import annotations

from torch import nn

from moe.layer import SparseMoeBlock
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
            )

        super().__init__(config, place, make_mlp)
