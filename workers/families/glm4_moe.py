"""GLM-4.5, GLM-4.6 and GLM-4.7: transformers' Glm4MoeForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.deepseek_mixtures import ROUTED_MIXTURES, SIGMOID_ROUTER
from workers.families.grouped_query import grouped_query


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    return grouped_query(
        values,
        rope,
        qk_norm="head" if values["use_qk_norm"] else "none",
        qkv_bias=values["attention_bias"],
    )


TYPES = {
    "glm4_moe": ModelType(
        architecture="Glm4MoeForCausalLM",
        models="GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 151552,
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "use_qk_norm": False,
            "moe_intermediate_size": 1408,
            "topk_method": "noaux_tc",
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 1,
            "num_mtp_layers": 1,
        },
        allowed=SIGMOID_ROUTER,
        moe=ROUTED_MIXTURES,
        rope=RopeDefaults(partial=0.5),
        extra_layers=("num_nextn_predict_layers", "num_mtp_layers"),
    ),
}
