"""Mellum: transformers' MellumForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, layer_type, window


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """Layers with a window have a rotary embedding of their own."""
    has_bias = values["attention_bias"]
    return grouped_query(
        values,
        rope,
        qk_norm="head",
        qkv_bias=has_bias,
        o_bias=has_bias,
        window=window(values, layer, windowed=False),
        layer_type=layer_type(values, layer, windowed=False),
    )


TYPES = {
    "mellum": ModelType(
        architecture="MellumForCausalLM",
        models="Mellum",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "vocab_size": 98304,
            "hidden_size": 2304,
            "intermediate_size": 7168,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "attention_bias": False,
            "sliding_window": 1024,
            "moe_intermediate_size": 896,
            "num_experts_per_tok": 8,
            "num_experts": 64,
            "norm_topk_prob": True,
            "mlp_layer_types": (),
        },
        moe=MoEKeys(mlp_types="mlp_layer_types"),
        rope=RopeDefaults(theta=500000.0, sliding_theta=10000.0),
        extra_layers=("num_nextn_predict_layers", "num_mtp_layers"),
        other_parts=("mtp.",),
    ),
}
