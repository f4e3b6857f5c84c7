"""Draws of families with gated delta layers."""

from __future__ import annotations

import random

from transformers import Qwen3NextConfig

from tests.workers.families.draw_parts import common, rope


def qwen3_next(rng: random.Random) -> Qwen3NextConfig:
    """Layers of both kinds, in any order."""
    shared = common(rng, max_layers=4)
    layers = shared["num_hidden_layers"]
    types = ["linear_attention", "full_attention"]
    types += rng.choices(["linear_attention", "full_attention"], k=layers - 2)
    rng.shuffle(types)
    key_heads = rng.choice([1, 2, 4])
    return Qwen3NextConfig(
        **shared,
        head_dim=rng.choice([8, 16]),
        rope_parameters=rope(rng, partial_rotary_factor=rng.choice([0.25, 0.5])),
        layer_types=types,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=key_heads * rng.choice([1, 2, 3]),
        linear_key_head_dim=rng.choice([8, 16]),
        linear_value_head_dim=rng.choice([8, 12]),
        linear_conv_kernel_dim=rng.choice([2, 4]),
        moe_intermediate_size=rng.choice([8, 20]),
        shared_expert_intermediate_size=rng.choice([12, 24]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        norm_topk_prob=rng.random() < 0.5,
        decoder_sparse_step=rng.choice([1, 2]),
        mlp_only_layers=rng.choice([None, [0]]),
    )
