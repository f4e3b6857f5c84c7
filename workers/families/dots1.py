"""dots.llm1: transformers' Dots1ForCausalLM."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.families.deepseek_mixtures import ROUTED_MIXTURES
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, window


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    windowed = values["sliding_window"] is not None and layer >= values["max_window_layers"]
    width = window(values, layer, windowed=windowed)
    return grouped_query(values, rope, qk_norm="head", window=width)


TYPES = {
    "dots1": ModelType(
        architecture="Dots1ForCausalLM",
        models="dots.llm1",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "vocab_size": 152064,
            "hidden_size": 4608,
            "intermediate_size": 10944,
            "num_hidden_layers": 62,
            "num_key_value_heads": 32,
            "max_position_embeddings": 2048,
            "sliding_window": 4096,
            "max_window_layers": 62,
            "moe_intermediate_size": 1408,
            "topk_method": "noaux_tc",
            "n_routed_experts": 0,
            "n_shared_experts": 0,
            "num_experts_per_tok": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
        },
        # Its folders name the router twice.
        allowed={"scoring_func": (None, "noaux_tc"), "topk_method": (None, "noaux_tc")},
        moe=ROUTED_MIXTURES,
    ),
}
