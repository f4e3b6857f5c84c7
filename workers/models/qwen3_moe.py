"""Qwen3-MoE: Qwen3's decoder with a mixture of experts in some or all layers."""

from __future__ import annotations

from workers.model_config import ModelConfig
from workers.models.base import MLP, BuildContext
from workers.models.qwen3 import Qwen3ForCausalLM, Qwen3MLP
from workers.models.sparse_mlp import SparseMLP, make_expert_load


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """As Qwen3ForCausalLM; ``config.moe_layers`` says which layers are mixtures."""

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        load = make_expert_load(config, build)

        def make_mlp(layer: int) -> MLP:
            prefix = f"model.layers.{layer}.mlp."
            if config.moe is None or load is None or not config.moe_layers[layer]:
                return Qwen3MLP(config, build, prefix)
            ids_P = load.ids_LP[sum(config.moe_layers[:layer])]
            return SparseMLP(config.moe, build, ids_P, prefix)

        super().__init__(config, build, make_mlp, load)
