"""Granite-3 mixtures: transformers' GraniteMoeForCausalLM; and with shared experts,
GraniteMoeSharedForCausalLM.
"""

from __future__ import annotations

import dataclasses

from moe.names import MoENames
from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.grouped_query import grouped_query

_NAMES = MoENames(
    gate="router.layer.weight",
    packed=("input_linear.weight", "output_linear.weight"),
    is_packed=True,
)

# Shared experts stand beside the mixture.
_SHARED_NAMES = MoENames(
    gate="block_sparse_moe.router.layer.weight",
    experts="block_sparse_moe.experts",
    packed=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    is_packed=True,
    shared="shared_mlp",
    shared_matrices=("input_linear", "input_linear", "output_linear"),
)


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    has_bias = values["attention_bias"]
    return grouped_query(
        values,
        rope,
        qkv_bias=has_bias,
        o_bias=has_bias,
        scale=float(values["attention_multiplier"]),
    )


_GRANITE = ModelType(
    architecture="GraniteMoeForCausalLM",
    models="Granite-3.0-1B-A400M, Granite-3.1-3B-A800M",
    attention=_attention,
    defaults={
        **COMMON_DEFAULTS,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "norm_topk_prob": True,
    },
    allowed={"norm_topk_prob": (None, True)},
    moe=MoEKeys(intermediate_size="intermediate_size", names=_NAMES),
    names=DecoderNames(mlp="block_sparse_moe"),
    multiplier_keys={
        "embedding_multiplier": "embedding_multiplier",
        "residual_multiplier": "residual_multiplier",
        "logits_divisor": "logits_scaling",
    },
)

TYPES = {
    "granitemoe": _GRANITE,
    "granitemoeshared": dataclasses.replace(
        _GRANITE,
        architecture="GraniteMoeSharedForCausalLM",
        models="moe-7b-1b-active-shared-experts",
        defaults={**_GRANITE.defaults, "shared_intermediate_size": 0},
        moe=MoEKeys(
            intermediate_size="intermediate_size",
            shared_size="shared_intermediate_size",
            names=_SHARED_NAMES,
        ),
        names=DecoderNames(mlp=""),
    ),
}
