"""Draws of families with grouped-query attention."""

from __future__ import annotations

import random
from typing import Any

from transformers import (
    AfmoeConfig,
    ExaoneMoeConfig,
    FlexOlmoConfig,
    Glm4MoeConfig,
    MellumConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3VLMoeConfig,
    SolarOpenConfig,
)

from tests.workers.families.draw_parts import common, layer_types, rope, yarn


def qwen2_moe(rng: random.Random) -> Qwen2MoeConfig:
    shared = common(rng)
    heads = shared["num_attention_heads"]
    layers = shared["num_hidden_layers"]
    windowed = rng.random() < 0.6
    return Qwen2MoeConfig(
        **shared | {"hidden_size": heads * rng.choice([8, 16])},
        rope_parameters=rng.choice([rope, yarn])(rng),
        qkv_bias=rng.random() < 0.7,
        use_sliding_window=windowed,
        sliding_window=rng.choice([1, 6]),
        max_window_layers=rng.choice([1, layers]),
        layer_types=layer_types(rng, layers) if windowed and rng.random() < 0.4 else None,
        moe_intermediate_size=rng.choice([8, 20]),
        shared_expert_intermediate_size=rng.choice([12, 24]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        norm_topk_prob=rng.random() < 0.5,
        decoder_sparse_step=rng.choice([1, 2]),
        mlp_only_layers=rng.choice([None, [0]]),
    )


def olmoe(rng: random.Random) -> OlmoeConfig:
    shared = common(rng)
    return OlmoeConfig(
        **shared | {"hidden_size": shared["num_attention_heads"] * rng.choice([8, 16])},
        rope_parameters=rope(rng),
        attention_bias=rng.random() < 0.5,
        clip_qkv=rng.choice([None, 0.7, 1.5]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        norm_topk_prob=rng.random() < 0.5,
    )


def glm4_moe(rng: random.Random) -> Glm4MoeConfig:
    groups = rng.choice([1, 2, 4])
    return Glm4MoeConfig(
        **common(rng),
        head_dim=rng.choice([8, 16]),
        rope_parameters=rope(rng, partial_rotary_factor=rng.choice([0.5, 0.25, 1.0])),
        attention_bias=rng.random() < 0.5,
        use_qk_norm=rng.random() < 0.5,
        moe_intermediate_size=rng.choice([8, 20]),
        n_routed_experts=8,
        n_shared_experts=rng.choice([1, 2]),
        num_experts_per_tok=rng.choice([2, 3]),
        n_group=groups,
        topk_group=rng.randint(1 if groups < 4 else 2, groups),
        norm_topk_prob=rng.random() < 0.5,
        routed_scaling_factor=rng.choice([1.0, 2.5]),
        first_k_dense_replace=rng.choice([0, 1]),
    )


def mellum(rng: random.Random) -> MellumConfig:
    """Layers of both types, of all kinds of MLPs, with rotary embeddings of their own."""
    shared = common(rng)
    layers = shared["num_hidden_layers"]
    types = ["sliding_attention", *layer_types(rng, layers - 1)]
    ropes = {"full_attention": rng.choice([rope, yarn])(rng), "sliding_attention": rope(rng)}
    return MellumConfig(
        **shared,
        head_dim=rng.choice([8, 16]),
        layer_types=rng.choice([None, types, types]),
        rope_parameters=rng.choice([None, ropes, ropes]),
        mlp_layer_types=rng.choice([None, ["sparse", *["dense"] * (layers - 1)]]),
        sliding_window=rng.choice([1, 6]),
        attention_bias=rng.random() < 0.5,
        moe_intermediate_size=rng.choice([8, 20]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        norm_topk_prob=rng.random() < 0.5,
    )


def qwen3_vl_moe(rng: random.Random) -> Qwen3VLMoeConfig:
    """With an encoder of images, which is left out."""
    text = common(rng)
    is_tied = text.pop("tie_word_embeddings")
    head_dim = rng.choice([8, 16])
    sections = {"mrope_section": [head_dim // 2 - 2, 1, 1], "mrope_interleaved": True}
    text |= {
        "head_dim": head_dim,
        "rope_parameters": rng.choice([rope, yarn])(rng) | sections,
        "attention_bias": rng.random() < 0.5,
        "moe_intermediate_size": rng.choice([8, 20]),
        "num_experts": rng.choice([4, 7]),
        "num_experts_per_tok": rng.choice([1, 3]),
        "decoder_sparse_step": rng.choice([1, 2]),
        "mlp_only_layers": rng.choice([None, [0]]),
    }
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }  # fmt: skip
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=is_tied)


def sigmoid_mixtures(rng: random.Random) -> dict[str, Any]:
    groups = rng.choice([1, 2, 4])
    return {
        "moe_intermediate_size": rng.choice([8, 20]),
        "num_experts_per_tok": rng.choice([2, 3]),
        "n_group": groups,
        "topk_group": rng.randint(1 if groups < 4 else 2, groups),
        "norm_topk_prob": rng.random() < 0.5,
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
    }


def solar_open(rng: random.Random) -> SolarOpenConfig:
    shared = common(rng)
    del shared["intermediate_size"]
    return SolarOpenConfig(
        **shared | sigmoid_mixtures(rng),
        head_dim=rng.choice([8, 16]),
        rope_parameters=rng.choice([rope, yarn])(rng),
        attention_bias=rng.random() < 0.5,
        n_routed_experts=8,
        n_shared_experts=rng.choice([1, 2]),
    )


def exaone_moe(rng: random.Random) -> ExaoneMoeConfig:
    """Layers without a window know no position."""
    shared = common(rng)
    layers = shared["num_hidden_layers"]
    types = ["full_attention", *layer_types(rng, layers - 1)]
    return ExaoneMoeConfig(
        **shared | sigmoid_mixtures(rng),
        head_dim=rng.choice([8, 16]),
        rope_parameters=rope(rng),
        layer_types=rng.choice([None, types, types]),
        sliding_window=rng.choice([1, 6]),
        num_experts=8,
        num_shared_experts=rng.choice([1, 2]),
        first_k_dense_replace=rng.choice([0, 1]),
        mlp_layer_types=rng.choice([None, ["sparse", *["dense"] * (layers - 1)]]),
    )


def flex_olmo(rng: random.Random) -> FlexOlmoConfig:
    shared = common(rng)
    return FlexOlmoConfig(
        **shared | {"hidden_size": shared["num_attention_heads"] * rng.choice([8, 16])},
        rope_parameters=rope(rng),
        attention_bias=rng.random() < 0.5,
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        norm_topk_prob=rng.random() < 0.5,
    )


def afmoe(rng: random.Random) -> AfmoeConfig:
    """Layers without a window know no position."""
    shared = common(rng, max_layers=4)
    layers = shared["num_hidden_layers"]
    types = ["full_attention", *layer_types(rng, layers - 1)]
    return AfmoeConfig(
        **shared,
        head_dim=rng.choice([8, 16]),
        rope_parameters=rng.choice([rope, yarn])(rng),
        attention_bias=rng.random() < 0.5,
        global_attn_every_n_layers=rng.choice([2, 4]),
        layer_types=rng.choice([None, types]),
        sliding_window=rng.choice([1, 6]),
        mup_enabled=rng.random() < 0.5,
        moe_intermediate_size=rng.choice([8, 20]),
        num_dense_layers=rng.choice([0, 1]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        num_shared_experts=rng.choice([1, 2]),
        route_scale=rng.choice([1.0, 2.5]),
    )
