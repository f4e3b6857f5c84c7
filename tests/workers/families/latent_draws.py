"""Draws of families with attention over latents."""

from __future__ import annotations

import random
from typing import Any

from transformers import DeepseekV2Config, DeepseekV3Config, Glm4MoeLiteConfig, Mistral4Config

from tests.workers.families.draw_parts import common, rope, yarn


def latents(rng: random.Random) -> dict[str, Any]:
    """Of attention over latents."""
    nope = rng.choice([8, 12])
    return {
        "q_lora_rank": rng.choice([None, 12, 24]),
        "kv_lora_rank": rng.choice([16, 24]),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rng.choice([4, 8]),
        "v_head_dim": rng.choice([8, 20]),
    }


def yarn_of_latents(rng: random.Random) -> dict[str, Any]:
    """With both mscales, of which either may be without effect; one is part of scores' scale."""
    whole = rng.choice([1.2, 0.707, 0.0])
    return yarn(rng) | {"mscale": rng.choice([0.707, 1.0]), "mscale_all_dim": whole}


def deepseek_mixtures(rng: random.Random) -> dict[str, Any]:
    """Groups, of which some may be left out, and shared experts."""
    groups = rng.choice([1, 2, 4])
    return {
        "moe_intermediate_size": rng.choice([8, 20]),
        "n_routed_experts": 8,
        "n_shared_experts": rng.choice([1, 2]),
        "num_experts_per_tok": rng.choice([2, 3]),
        "n_group": groups,
        "topk_group": rng.randint(1 if groups < 4 else 2, groups),
        "norm_topk_prob": rng.random() < 0.5,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "first_k_dense_replace": rng.choice([0, 1]),
    }


def all_heads_alike(rng: random.Random) -> dict[str, Any]:
    """`common` without heads of keys of their own."""
    shared = common(rng)
    heads = rng.choice([1, 2, 4, 6])
    return shared | {
        "num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": 8 * heads,
    }  # fmt: skip


def deepseek_v2(rng: random.Random) -> DeepseekV2Config:
    method = rng.choice(["greedy", "group_limited_greedy"])
    return DeepseekV2Config(
        **all_heads_alike(rng) | latents(rng) | deepseek_mixtures(rng),
        rope_parameters=rng.choice([yarn_of_latents, yarn_of_latents, rope])(rng),
        topk_method=method,
    )


def deepseek_v3(rng: random.Random) -> DeepseekV3Config:
    return DeepseekV3Config(
        **all_heads_alike(rng) | latents(rng) | deepseek_mixtures(rng),
        rope_parameters=rng.choice([yarn_of_latents, yarn_of_latents, rope])(rng),
        rope_interleave=rng.random() < 0.6,
    )


def glm4_moe_lite(rng: random.Random) -> Glm4MoeLiteConfig:
    shared = all_heads_alike(rng) | latents(rng) | deepseek_mixtures(rng)
    del shared["first_k_dense_replace"]
    layers = shared["num_hidden_layers"]
    types = [rng.choice(["dense", "sparse"]) for _ in range(layers)]
    return Glm4MoeLiteConfig(
        **shared,
        rope_parameters=rng.choice([yarn_of_latents, yarn_of_latents, rope])(rng),
        rope_interleave=rng.random() < 0.6,
        mlp_layer_types=rng.choice([None, types]),
    )


def mistral4(rng: random.Random) -> Mistral4Config:
    """Queries grow every 8 or 16 positions. transformers turns too much without YaRN."""
    said = yarn_of_latents(rng) | {
        "llama_4_scaling_beta": rng.choice([0.7, 0.1, 0.0]),
        "max_position_embeddings": 512,
    }
    return Mistral4Config(
        **all_heads_alike(rng) | latents(rng) | deepseek_mixtures(rng),
        rope_parameters=said,
        rope_interleave=rng.random() < 0.6,
    )
