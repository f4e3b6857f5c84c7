"""Laguna: transformers' LagunaForCausalLM."""

from __future__ import annotations

from moe.names import MoENames
from switchyard.model_files import shown
from workers.attention.spec import AttentionSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query
from workers.families.windows import WINDOW_DEFAULTS, layer_type, window

_NAMES = MoENames(correction_bias="experts.e_score_correction_bias", shared="shared_expert")


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """Layers with a window have a rotary embedding of their own; any may have heads of its own."""
    has_bias = values["attention_bias"]
    kind = "per-element" if values["gating"] == "per-element" else "per-head"
    types = values["gating_types"]
    if any(each.replace("_", "-") != kind for each in types):
        raise ValueError(f"gating_types is {shown(list(types))}; all layers must be {kind}")
    return grouped_query(
        {**values, "num_attention_heads": _num_heads(values, layer)},
        rope,
        qk_norm="head",
        qkv_bias=has_bias,
        o_bias=has_bias,
        window=window(values, layer, windowed=False),
        layer_type=layer_type(values, layer, windowed=False),
        gate="element" if kind == "per-element" else "head",
    )


def _num_heads(values: Values, layer: int) -> int:
    """Query heads of a layer."""
    heads, num_layers = values["num_attention_heads_per_layer"], values["num_hidden_layers"]
    if not heads:
        return int(values["num_attention_heads"])
    if len(heads) != num_layers or any(each < 1 for each in heads):
        raise ValueError(
            f"num_attention_heads_per_layer is {shown(heads)}; it must be a number from 1 on, once "
            f"for each of num_hidden_layers {num_layers}"
        )
    return int(heads[layer])


TYPES = {
    "laguna": ModelType(
        architecture="LagunaForCausalLM",
        models="Laguna-XS.2",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **WINDOW_DEFAULTS,
            "vocab_size": 100352,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 40,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "attention_bias": False,
            "sliding_window": 512,
            "gating": True,
            "gating_types": (),
            "num_attention_heads_per_layer": [],
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
            "num_experts": 256,
            "moe_routed_scaling_factor": 1.0,
            "moe_router_logit_softcapping": 0.0,
            "first_k_dense_replace": 1,
            "mlp_layer_types": (),
        },
        allowed={
            "gating": (None, True, "per-head", "per-element"),
            "scoring_func": (None, "sigmoid"),
            "norm_topk_prob": (None, True),
            "moe_apply_router_weight_on_input": (None, False),
        },
        moe=MoEKeys(
            routed_scaling_factor="moe_routed_scaling_factor",
            logit_softcap="moe_router_logit_softcapping",
            shared_size="shared_expert_intermediate_size",
            correction_bias=True,
            first_sparse="first_k_dense_replace",
            mlp_types="mlp_layer_types",
            names=_NAMES,
        ),
        rope=RopeDefaults(
            theta=5e5,
            sliding_theta=1e4,
            partial=1.0,
            absent={
                "full_attention": {"partial_rotary_factor": 0.5},
                "sliding_attention": {"partial_rotary_factor": 1.0},
            },
        ),
    ),
}
