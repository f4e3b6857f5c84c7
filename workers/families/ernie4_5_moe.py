"""ERNIE-4.5's mixtures: transformers' Ernie4_5_MoeForCausalLM.

Biases of ``use_bias``, which dense MLPs and the head would have too, are not built.
"""

from __future__ import annotations

from moe.names import MoENames
from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query

_NAMES = MoENames(correction_bias="moe_statics.e_score_correction_bias", bias_has_row=True)


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    return grouped_query(values, rope)


TYPES = {
    "ernie4_5_moe": ModelType(
        architecture="Ernie4_5_MoeForCausalLM",
        models="ERNIE-4.5-21B-A3B, ERNIE-4.5-300B-A47B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 103424,
            "hidden_size": 2560,
            "intermediate_size": 12288,
            "num_hidden_layers": 28,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "moe_router_backend": "softmax_bias",
            "norm_topk_prob": True,
            "moe_intermediate_size": 1536,
            "moe_k": 6,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "moe_norm_min": 1e-12,
        },
        allowed={
            "moe_router_backend": (None, "softmax_bias"),
            "norm_topk_prob": (None, True),
            "moe_gate": (None, "topk", "topk_fused"),
            "moe_use_aux_free": (None, True),
            "use_rmsnorm": (None, True),
        },
        without_effect=frozenset({"moe_capacity"}),
        moe=MoEKeys(
            num_experts=("num_experts", "moe_num_experts"),
            num_experts_per_tok=("num_experts_per_tok", "moe_k"),
            norm_min="moe_norm_min",
            num_shared="moe_num_shared_experts",
            fp32_gate=True,
            first_sparse="moe_layer_start_index",
            last_sparse="moe_layer_end_index",
            sparse_step="moe_layer_interval",
            names=_NAMES,
        ),
        rope=RopeDefaults(theta=5e5, interleaved=True),
        other_parts=("model.mtp_",),
    ),
}
