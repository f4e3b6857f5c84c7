"""K-EXAONE: transformers' ExaoneMoeForCausalLM."""

from __future__ import annotations

import dataclasses

from moe.names import MoENames
from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.deepseek_mixtures import SIGMOID_ROUTER
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, window


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """Every fourth layer sees all and knows no position."""
    width = window(values, layer, windowed=(layer + 1) % 4 != 0)
    spec = grouped_query(values, rope, qk_norm="head", window=width)
    knows_position = width is not None or values["sliding_window"] is None
    return spec if knows_position else dataclasses.replace(spec, rope=None)


TYPES = {
    "exaone_moe": ModelType(
        architecture="ExaoneMoeForCausalLM",
        models="K-EXAONE-236B-A23B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "vocab_size": 102400,
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_key_value_heads": 32,
            "max_position_embeddings": 2048,
            "num_hidden_layers": 32,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
            "moe_intermediate_size": 1024,
            "topk_method": "noaux_tc",
            "num_experts": 64,
            "num_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
            "mlp_layer_types": (),
        },
        allowed={**SIGMOID_ROUTER, "sliding_window_pattern": (None, 4, "LLLG")},
        moe=MoEKeys(
            n_group="n_group",
            topk_group="topk_group",
            routed_scaling_factor="routed_scaling_factor",
            num_shared="num_shared_experts",
            fp32_gate=True,
            first_sparse="first_k_dense_replace",
            mlp_types="mlp_layer_types",
            names=MoENames(correction_bias="e_score_correction_bias"),
        ),
        other_parts=("mtp.",),
    ),
}
