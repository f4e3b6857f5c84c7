"""Qwen3-Next: transformers' Qwen3NextForCausalLM."""

from __future__ import annotations

import functools

from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys
from workers.config_json.rope_keys import RopeDefaults
from workers.families.gated_delta import DELTA_DEFAULTS, hybrid_attention

TYPES = {
    "qwen3_next": ModelType(
        architecture="Qwen3NextForCausalLM",
        models="Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
        attention=functools.partial(hybrid_attention, by_key_head=True),
        defaults={
            **COMMON_DEFAULTS,
            **DELTA_DEFAULTS,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 10,
            "num_experts": 512,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        },
        allowed={"attention_bias": (None, False)},
        moe=MoEKeys(
            shared_size="shared_expert_intermediate_size",
            shared_gated=True,
            sparse_step="decoder_sparse_step",
            dense_layers="mlp_only_layers",
        ),
        rope=RopeDefaults(partial=0.25),
        norm="rms_of_one",
        other_parts=("mtp.",),
    ),
}
