"""Phi-3.5-MoE: transformers' PhimoeForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query
from workers.families.mixtral import MIXTRAL_NAMES


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """A window is that of all layers."""
    has_bias = values["attention_bias"]
    window = values["sliding_window"]
    return grouped_query(values, rope, qkv_bias=has_bias, o_bias=has_bias, window=window)


TYPES = {
    "phimoe": ModelType(
        architecture="PhimoeForCausalLM",
        models="Phi-3.5-MoE",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 6400,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "attention_bias": False,
            "lm_head_bias": False,
            "num_experts_per_tok": 2,
            "num_local_experts": 16,
            "moe_router_backend": "sparsemixer",
            "norm_topk_prob": False,
            "router_jitter_noise": 0.01,
        },
        allowed={"moe_router_backend": (None, "sparsemixer")},
        moe=MoEKeys(
            intermediate_size="intermediate_size",
            router_jitter_noise="router_jitter_noise",
            names=MIXTRAL_NAMES,
        ),
        rope=RopeDefaults(theta=1e6),
        names=DecoderNames(mlp="block_sparse_moe"),
        norm="layer",
    ),
}
