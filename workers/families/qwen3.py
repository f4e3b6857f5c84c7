"""Qwen3 and Qwen3-MoE: transformers' Qwen3ForCausalLM, Qwen3MoeForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, window


def _dense_attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """``use_sliding_window`` is asked before all: without it ``layer_types`` does not count."""
    width = None
    if values["use_sliding_window"]:
        windowed = values["sliding_window"] is not None and layer >= values["max_window_layers"]
        width = window(values, layer, windowed=windowed)
    return grouped_query(values, rope, qk_norm="head", window=width)


def _moe_attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """A window is that of all layers."""
    width = values["sliding_window"] if values["use_sliding_window"] else None
    return grouped_query(values, rope, qk_norm="head", window=width)


TYPES = {
    "qwen3": ModelType(
        architecture="Qwen3ForCausalLM",
        models="Qwen3, dense",
        attention=_dense_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
    "qwen3_moe": ModelType(
        architecture="Qwen3MoeForCausalLM",
        models="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
        attention=_moe_attention,
        defaults={
            **COMMON_DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_key_value_heads": 4,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_experts": 128,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
        },
        moe=MoEKeys(sparse_step="decoder_sparse_step", dense_layers="mlp_only_layers"),
    ),
}
