"""Trinity: transformers' AfmoeForCausalLM."""

from __future__ import annotations

import dataclasses

from moe.names import MoENames
from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, window


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """Layers that see all know no position."""
    has_bias, every = values["attention_bias"], values["global_attn_every_n_layers"]
    width = window(values, layer, windowed=(layer + 1) % every != 0)
    spec = grouped_query(
        values,
        rope,
        qk_norm="head",
        qkv_bias=has_bias,
        o_bias=has_bias,
        window=width,
        gate="element",
    )
    spec = dataclasses.replace(spec, gate_activation="sigmoid", gate_name="gate_proj")
    return dataclasses.replace(spec, rope=None) if width is None else spec


TYPES = {
    "afmoe": ModelType(
        architecture="AfmoeForCausalLM",
        models="Trinity-Nano, Trinity-Mini",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "vocab_size": 200192,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": None,
            "head_dim": 128,
            "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "global_attn_every_n_layers": 4,
            "sliding_window": 1024,
            "mup_enabled": False,
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "moe_intermediate_size": 1408,
            "num_experts": 64,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.0,
        },
        allowed={
            "scoring_func": (None, "sigmoid"),
            "score_func": (None, "sigmoid"),
            "norm_topk_prob": (None, True),
            "route_norm": (None, True),
            "n_group": (None, 1),
            "topk_group": (None, 1),
            "num_expert_groups": (None, 1),
            "num_limited_groups": (None, 1),
        },
        without_effect=frozenset({"load_balance_coeff", "use_grouped_mm"}),
        moe=MoEKeys(
            routed_scaling_factor="route_scale",
            num_shared="num_shared_experts",
            correction_bias=True,
            first_sparse="num_dense_layers",
            names=MoENames(gate="router.gate.weight", correction_bias="expert_bias"),
        ),
        norms="both",
        names=DecoderNames(
            attention_end_norm="post_attention_layernorm",
            mlp_norm="pre_mlp_layernorm",
            mlp_end_norm="post_mlp_layernorm",
        ),
        embedding_root_key="mup_enabled",
    ),
}
