"""Latent attention as config.json describes it."""

from __future__ import annotations

import dataclasses

from workers.attention.mla_spec import MlaSpec, softmax_scale
from workers.config_json.model_types import RopeOf, Values


def latent(values: Values, rope: RopeOf) -> MlaSpec:
    """From the keys of transformers' DeepseekV3Config, ``q_lora_rank`` null or a number."""
    width = values["qk_rope_head_dim"]
    turned = dataclasses.replace(rope(width), interleaved=values["rope_interleave"])
    return MlaSpec(
        num_heads=values["num_attention_heads"],
        q_lora_rank=values["q_lora_rank"],
        kv_lora_rank=values["kv_lora_rank"],
        qk_nope_head_dim=values["qk_nope_head_dim"],
        qk_rope_head_dim=width,
        v_head_dim=values["v_head_dim"],
        scale=softmax_scale(values["qk_nope_head_dim"] + width, turned),
        rope=turned,
    )
