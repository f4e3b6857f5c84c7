"""Draws of families whose mixtures or multipliers have keys of their own."""

from __future__ import annotations

import random
from typing import Any

from transformers import (
    Ernie4_5_MoeConfig,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    HunYuanMoEV1Config,
    LagunaConfig,
    MiniMaxM2Config,
)

from tests.workers.families.draw_parts import common, layer_types, rope, yarn


def minimax_m2(rng: random.Random) -> MiniMaxM2Config:
    """The rotary embedding is partial by a number of dimensions or by a share."""
    head_dim = rng.choice([8, 16])
    share = rng.choice([0.5, 0.25, 1.0])
    more = {"rotary_dim": int(share * head_dim)} if rng.random() < 0.5 else {}
    return MiniMaxM2Config(
        **common(rng),
        **more,
        head_dim=head_dim,
        rope_parameters=rope(rng, **({} if more else {"partial_rotary_factor": share})),
        num_local_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
    )


def _granite(rng: random.Random) -> dict[str, Any]:
    """Each multiplier, also whole."""
    shared = common(rng)
    heads = shared["num_attention_heads"]
    return shared | {
        "hidden_size": heads * rng.choice([8, 16]),
        "rope_parameters": rope(rng),
        "attention_bias": rng.random() < 0.3,
        "embedding_multiplier": rng.choice([1.0, 0.5, 12]),
        "residual_multiplier": rng.choice([1.0, 0.22]),
        "attention_multiplier": rng.choice([0.015625, 0.5]),
        "logits_scaling": rng.choice([1.0, 6]),
        "num_local_experts": rng.choice([4, 7]),
        "num_experts_per_tok": rng.choice([1, 3]),
    }


def granitemoe(rng: random.Random) -> GraniteMoeConfig:
    return GraniteMoeConfig(**_granite(rng))


def granitemoeshared(rng: random.Random) -> GraniteMoeSharedConfig:
    return GraniteMoeSharedConfig(**_granite(rng), shared_intermediate_size=rng.choice([0, 12, 24]))


def hunyuan_v1_moe(rng: random.Random) -> HunYuanMoEV1Config:
    shared = common(rng)
    topk = rng.choice([1, 3])
    scaled = {"rope_type": "dynamic", "alpha": rng.choice([50.0, 1000.0]), "factor": 1.0}
    return HunYuanMoEV1Config(
        **shared,
        head_dim=rng.choice([8, 16]),
        rope_parameters=rope(rng, **rng.choice([{}, scaled, scaled])),
        attention_bias=rng.random() < 0.5,
        num_experts=rng.choice([4, 7]),
        moe_topk=rng.choice([topk, [topk] * shared["num_hidden_layers"]]),
    )


def ernie4_5_moe(rng: random.Random) -> Ernie4_5_MoeConfig:
    """Heads are as wide as the hidden size gives."""
    shared = common(rng, max_layers=4)
    layers, heads = shared["num_hidden_layers"], shared["num_attention_heads"]
    return Ernie4_5_MoeConfig(
        **shared | {"hidden_size": heads * rng.choice([8, 16])},
        rope_parameters=rope(rng),
        moe_intermediate_size=rng.choice([8, 20]),
        moe_k=rng.choice([1, 3]),
        moe_num_experts=rng.choice([4, 7]),
        moe_num_shared_experts=rng.choice([0, 1, 2]),
        moe_layer_start_index=rng.choice([0, 1]),
        moe_layer_end_index=rng.choice([-1, layers - 2, layers - 1]),
        moe_layer_interval=rng.choice([1, 1, 2]),
        moe_norm_min=rng.choice([1e-12, 0.6]),
    )


def laguna(rng: random.Random) -> LagunaConfig:
    """Layers differ in heads, windows, rotary embeddings and MLPs."""
    shared = common(rng)
    layers, kv_heads = shared["num_hidden_layers"], shared["num_key_value_heads"]
    share = rng.choice([0.5, 1.0])
    ropes = {
        "full_attention": rng.choice([rope, yarn])(rng) | {"partial_rotary_factor": share},
        "sliding_attention": rope(rng, partial_rotary_factor=rng.choice([0.5, 1.0])),
    }
    heads = [kv_heads * rng.choice([1, 2, 3]) for _ in range(layers)]
    types = ["sparse", *(rng.choice(["dense", "sparse"]) for _ in range(layers - 1))]
    return LagunaConfig(
        **shared,
        head_dim=rng.choice([8, 16]),
        rope_parameters=rng.choice([None, ropes, ropes]),
        attention_bias=rng.random() < 0.5,
        gating=rng.choice([True, "per-head", "per-element", "per-element"]),
        num_attention_heads_per_layer=rng.choice([None, heads, heads]),
        sliding_window=rng.choice([1, 6]),
        layer_types=rng.choice([None, *[layer_types(rng, layers) for _ in range(2)]]),
        mlp_layer_types=rng.choice([None, types]),
        moe_intermediate_size=rng.choice([8, 20]),
        shared_expert_intermediate_size=rng.choice([12, 24]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        moe_routed_scaling_factor=rng.choice([1.0, 2.5]),
        moe_router_logit_softcapping=rng.choice([0.0, 1.5]),
    )
