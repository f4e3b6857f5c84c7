"""FlexOlmo: transformers' FlexOlmoForCausalLM, OLMoE with norms behind attention and MLP."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    has_bias = values["attention_bias"]
    return grouped_query(values, rope, qk_norm="all_heads", qkv_bias=has_bias, o_bias=has_bias)


TYPES = {
    "flex_olmo": ModelType(
        architecture="FlexOlmoForCausalLM",
        models="FlexOlmo-7x7B-1T",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 100352,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "attention_bias": False,
            "num_experts_per_tok": 5,
            "num_experts": 7,
            "norm_topk_prob": False,
        },
        moe=MoEKeys(intermediate_size="intermediate_size"),
        rope=RopeDefaults(theta=5e5),
        norms="behind",
        names=DecoderNames(
            attention_end_norm="post_attention_layernorm",
            mlp_end_norm="post_feedforward_layernorm",
        ),
    ),
}
