"""Draws of families with gated delta layers."""

from __future__ import annotations

import random
from typing import Any

from transformers import Qwen3_5MoeConfig, Qwen3NextConfig

from tests.workers.families.draw_parts import common, rope


def _layers(rng: random.Random) -> dict[str, Any]:
    """Of both kinds, in any order."""
    shared = common(rng, max_layers=4)
    layers = shared["num_hidden_layers"]
    types = ["linear_attention", "full_attention"]
    types += rng.choices(["linear_attention", "full_attention"], k=layers - 2)
    rng.shuffle(types)
    key_heads = rng.choice([1, 2, 4])
    return shared | {
        "head_dim": rng.choice([8, 16]),
        "layer_types": types,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * rng.choice([1, 2, 3]),
        "linear_key_head_dim": rng.choice([8, 16]),
        "linear_value_head_dim": rng.choice([8, 12]),
        "linear_conv_kernel_dim": rng.choice([2, 4]),
        "moe_intermediate_size": rng.choice([8, 20]),
        "shared_expert_intermediate_size": rng.choice([12, 24]),
        "num_experts": rng.choice([4, 7]),
        "num_experts_per_tok": rng.choice([1, 3]),
    }


def _rope(rng: random.Random, **more: Any) -> dict[str, Any]:
    return rope(rng, partial_rotary_factor=rng.choice([0.25, 0.5]), **more)


def qwen3_next(rng: random.Random) -> Qwen3NextConfig:
    return Qwen3NextConfig(
        **_layers(rng),
        rope_parameters=_rope(rng),
        norm_topk_prob=rng.random() < 0.5,
        decoder_sparse_step=rng.choice([1, 2]),
        mlp_only_layers=rng.choice([None, [0]]),
    )


def qwen3_5_moe(rng: random.Random) -> Qwen3_5MoeConfig:
    """With an encoder of images, which is left out."""
    text = _layers(rng)
    is_tied = text.pop("tie_word_embeddings")
    del text["intermediate_size"]
    text["head_dim"] = 16
    text["rope_parameters"] = _rope(rng, mrope_section=[1, 1, 0], mrope_interleaved=True)
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": text["hidden_size"], "num_position_embeddings": 16,
    }  # fmt: skip
    return Qwen3_5MoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=is_tied)
