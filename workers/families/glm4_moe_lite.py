"""GLM-4.7-Flash: transformers' Glm4MoeLiteForCausalLM."""

from __future__ import annotations

import dataclasses

from workers.attention.mla_spec import MlaSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.families.deepseek_mixtures import DEEPSEEK_MIXTURES, SIGMOID_ROUTER
from workers.families.latent import LATENT_DEFAULTS, latent


def _attention(values: Values, layer: int, rope: RopeOf) -> MlaSpec:
    return latent(values, rope, interleaved=values["rope_interleave"])


TYPES = {
    "glm4_moe_lite": ModelType(
        architecture="Glm4MoeLiteForCausalLM",
        models="GLM-4.7-Flash",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **LATENT_DEFAULTS,
            "vocab_size": 154880,
            "hidden_size": 2048,
            "intermediate_size": 10240,
            "num_hidden_layers": 47,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "max_position_embeddings": 202752,
            "rms_norm_eps": 1e-5,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "rope_interleave": True,
            "moe_intermediate_size": 1536,
            "topk_method": "noaux_tc",
            "n_routed_experts": 64,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.8,
            "first_k_dense_replace": 1,
            "mlp_layer_types": (),
        },
        allowed=SIGMOID_ROUTER,
        moe=dataclasses.replace(DEEPSEEK_MIXTURES, mlp_types="mlp_layer_types"),
        extra_layers=("num_nextn_predict_layers",),
    ),
}
