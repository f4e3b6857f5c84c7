"""MiniMax-M2, M2.1 and M2.5: transformers' MiniMaxM2ForCausalLM.

Its checkpoints hold routers in fp32, and transformers' router computes in its weight's type.
"""

from __future__ import annotations

from moe.names import MoENames
from switchyard.model_files import shown
from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query

_NAMES = MoENames(matrices=("w1", "w3", "w2"), correction_bias="e_score_correction_bias")


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """A type of 1 is softmax attention; MiniMax-Text-01 had another."""
    types = values["attn_type_list"]
    if any(each != 1 for each in types):
        raise ValueError(
            f"attn_type_list is {shown(types)}; only 1, attention by softmax, is built"
        )
    return grouped_query(values, rope, qk_norm="all_heads")


TYPES = {
    "minimax_m2": ModelType(
        architecture="MiniMaxM2ForCausalLM",
        models="MiniMax-M2, MiniMax-M2.1, MiniMax-M2.5",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 200064,
            "hidden_size": 3072,
            "intermediate_size": 1536,
            "num_hidden_layers": 62,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 196608,
            "num_experts_per_tok": 8,
            "num_local_experts": 256,
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "attn_type_list": [],
        },
        allowed={
            "scoring_func": (None, "sigmoid"),
            "norm_topk_prob": (None, True),
            "use_routing_bias": (None, True),
            "qk_norm_type": (None, "per_layer"),
            "layernorm_full_attention_beta": (None, 1),
            "layernorm_mlp_beta": (None, 1),
        },
        without_effect=frozenset(
            {
                "layernorm_linear_attention_beta", "mlp_intermediate_size",
                "mtp_transformer_layers", "shared_moe_mode", "use_mtp",
            }
        ),
        moe=MoEKeys(
            intermediate_size="intermediate_size",
            correction_bias=True,
            fp32_gate=True,
            names=_NAMES,
        ),
        rope=RopeDefaults(theta=5e6, partial=1.0, dim_key="rotary_dim"),
        names=DecoderNames(mlp="block_sparse_moe"),
        extra_layers=("num_mtp_modules",),
    ),
}  # fmt: skip
