"""Latent attention as config.json files of DeepSeek's kind describe it."""

from __future__ import annotations

import dataclasses

from workers.attention.mla_spec import MlaSpec, QueryGrowth, softmax_scale
from workers.config_json.model_types import RopeOf, Values
from workers.layers.rope_spec import RopeSpec

LATENT_DEFAULTS: Values = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_key_value_heads": None,  # without effect: all heads' keys are made of one latent
}
"""Of DeepseekV2Config and DeepseekV3Config."""


def latent(values: Values, rope: RopeOf, *, interleaved: bool) -> MlaSpec:
    """From ``num_attention_heads``, ``q_lora_rank`` (null: none) and the keys beside it, with the
    rotary embedding of ``qk_rope_head_dim``.

    Args:
        interleaved: see `RopeSpec`.
    """
    turned = dataclasses.replace(rope(values["qk_rope_head_dim"]), interleaved=interleaved)
    return latent_of(values, turned)


def latent_of(values: Values, rope: RopeSpec, growth: QueryGrowth | None = None) -> MlaSpec:
    """The same with what is turned, and how queries grow."""
    nope_width = values["qk_nope_head_dim"]
    return MlaSpec(
        num_heads=values["num_attention_heads"],
        q_lora_rank=values["q_lora_rank"],
        kv_lora_rank=values["kv_lora_rank"],
        qk_nope_head_dim=nope_width,
        qk_rope_head_dim=values["qk_rope_head_dim"],
        v_head_dim=values["v_head_dim"],
        scale=softmax_scale(nope_width + rope.dim, rope),
        rope=rope,
        query_growth=growth,
    )
