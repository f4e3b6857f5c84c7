"""OLMoE: transformers' OlmoeForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.grouped_query import grouped_query


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    has_bias = values["attention_bias"]
    return grouped_query(
        values,
        rope,
        qk_norm="all_heads",
        qkv_bias=has_bias,
        o_bias=has_bias,
        clip_qkv=values["clip_qkv"],
    )


TYPES = {
    "olmoe": ModelType(
        architecture="OlmoeForCausalLM",
        models="OLMoE-1B-7B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "clip_qkv": None,
            "num_experts_per_tok": 8,
            "num_experts": 64,
            "norm_topk_prob": False,
        },
        moe=MoEKeys(intermediate_size="intermediate_size"),
    ),
}
