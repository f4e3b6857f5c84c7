"""Solar-Open: transformers' SolarOpenForCausalLM."""

from __future__ import annotations

import dataclasses

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.deepseek_mixtures import ROUTED_MIXTURES, SIGMOID_ROUTER
from workers.families.grouped_query import grouped_query


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    return grouped_query(values, rope, qkv_bias=values["attention_bias"])


TYPES = {
    "solar_open": ModelType(
        architecture="SolarOpenForCausalLM",
        models="Solar-Open-100B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 196608,
            "hidden_size": 4096,
            # Of no layer: all are mixtures.
            "intermediate_size": 10240,
            "num_hidden_layers": 48,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "moe_intermediate_size": 1280,
            "topk_method": "noaux_tc",
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
        },
        allowed=SIGMOID_ROUTER,
        moe=dataclasses.replace(ROUTED_MIXTURES, first_sparse=None),
        rope=RopeDefaults(theta=1e6),
    ),
}
