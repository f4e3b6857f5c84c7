"""Qwen1.5-MoE and Qwen2-MoE: transformers' Qwen2MoeForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, window


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """Every other layer below ``max_window_layers`` has a window."""
    windowed = values["use_sliding_window"] and layer % 2 == 0
    windowed = windowed and layer < values["max_window_layers"]
    width = window(values, layer, windowed=windowed)
    return grouped_query(values, rope, qkv_bias=values["qkv_bias"], window=width)


TYPES = {
    "qwen2_moe": ModelType(
        architecture="Qwen2MoeForCausalLM",
        models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "qkv_bias": True,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4,
            "num_experts": 60,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
        },
        moe=MoEKeys(
            shared_size="shared_expert_intermediate_size",
            shared_gated=True,
            sparse_step="decoder_sparse_step",
            dense_layers="mlp_only_layers",
        ),
    ),
}
