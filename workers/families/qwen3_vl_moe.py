"""The text of Qwen3-VL-MoE: transformers' Qwen3VLMoeForConditionalGeneration without images."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    has_bias = values["attention_bias"]
    return grouped_query(values, rope, qk_norm="head", qkv_bias=has_bias, o_bias=has_bias)


TYPES = {
    "qwen3_vl_moe": ModelType(
        architecture="Qwen3VLMoeForConditionalGeneration",
        models="Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text)",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": 128000,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 4,
            "num_experts": 60,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        },
        allowed={"norm_topk_prob": (None, True)},
        moe=MoEKeys(sparse_step="decoder_sparse_step", dense_layers="mlp_only_layers"),
        # Positions of text are the same in all sections of a head.
        rope=RopeDefaults(
            theta=500000.0, ignored=frozenset({"mrope_section", "mrope_interleaved"})
        ),
        names=DecoderNames(model="model.language_model"),
        other_parts=("model.visual.",),
        text_key="text_config",
    ),
}
