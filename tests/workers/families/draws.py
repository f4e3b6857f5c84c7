"""Small random models of each family, and transformers' own beside them as the oracle.

A draw is a config of transformers' class over what the family allows: every option it has comes up
within a few seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    Dots1Config,
    MixtralConfig,
    PhimoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.workers.families.draw_parts import common, layer_types, rope, yarn
from tests.workers.families.gated_delta_draws import qwen3_5_moe, qwen3_next
from tests.workers.families.grouped_query_draws import (
    afmoe,
    exaone_moe,
    flex_olmo,
    glm4_moe,
    mellum,
    olmoe,
    qwen2_moe,
    qwen3_vl_moe,
    solar_open,
)
from tests.workers.families.latent_draws import deepseek_v2, deepseek_v3, glm4_moe_lite, mistral4
from tests.workers.families.mixture_draws import (
    ernie4_5_moe,
    granitemoe,
    granitemoeshared,
    hunyuan_v1_moe,
    laguna,
    minimax_m2,
)
from workers.families import MODEL_TYPES

Draw = Callable[[random.Random], Any]


def qwen3(rng: random.Random) -> Qwen3Config:
    """With windows, and a scaled rotary embedding; test_parity.py has it without."""
    shared = common(rng)
    return Qwen3Config(
        **shared,
        head_dim=rng.choice([8, 16]),
        rope_parameters=rng.choice([rope, yarn])(rng),
        use_sliding_window=True,
        sliding_window=rng.choice([1, 6]),
        max_window_layers=1,
        layer_types=rng.choice([None, layer_types(rng, shared["num_hidden_layers"])]),
    )


def qwen3_moe(rng: random.Random) -> Qwen3MoeConfig:
    """As `qwen3`."""
    return Qwen3MoeConfig(
        **common(rng),
        head_dim=rng.choice([8, 16]),
        rope_parameters=yarn(rng),
        use_sliding_window=rng.random() < 0.7,
        sliding_window=rng.choice([3, 16]),
        moe_intermediate_size=rng.choice([8, 20]),
        num_experts=rng.choice([4, 7]),
        num_experts_per_tok=rng.choice([1, 3]),
        norm_topk_prob=rng.random() < 0.5,
    )


def mixtral(rng: random.Random) -> MixtralConfig:
    return MixtralConfig(
        **common(rng),
        head_dim=rng.choice([8, 16, 24]),
        rope_parameters=rope(rng),
        sliding_window=rng.choice([None, None, 7]),
        num_local_experts=rng.choice([2, 4, 7]),
        num_experts_per_tok=rng.choice([1, 2]),
    )


def phimoe(rng: random.Random) -> PhimoeConfig:
    """Longrope where no sequence is long: transformers' never takes the long factors."""
    shared = common(rng)
    head_dim = rng.choice([8, 12])
    scaled = rope(
        rng, rope_type="longrope", original_max_position_embeddings=512,
        short_factor=[rng.uniform(1.0, 2.0) for _ in range(head_dim // 2)],
        long_factor=[4.0] * (head_dim // 2), short_mscale=1.2, long_mscale=1.4,
    )  # fmt: skip
    return PhimoeConfig(
        **shared | {"hidden_size": head_dim * shared["num_attention_heads"]},
        rope_parameters=rng.choice([rope(rng), scaled]),
        attention_bias=rng.random() < 0.6,
        lm_head_bias=rng.random() < 0.6,
        sliding_window=rng.choice([None, None, 7]),
        num_local_experts=rng.choice([2, 4, 7]),
        router_jitter_noise=rng.choice([0.01, 0.2]),
    )


def dots1(rng: random.Random) -> Dots1Config:
    shared = common(rng)
    groups = rng.choice([1, 2, 4])
    windowed = rng.random() < 0.5
    return Dots1Config(
        **shared,
        head_dim=rng.choice([8, 16]),
        rope_parameters=rope(rng),
        moe_intermediate_size=rng.choice([8, 20]),
        n_routed_experts=8,
        n_shared_experts=rng.choice([1, 2]),
        num_experts_per_tok=rng.choice([2, 3]),
        n_group=groups,
        topk_group=rng.randint(1 if groups < 4 else 2, groups),
        norm_topk_prob=rng.random() < 0.5,
        routed_scaling_factor=rng.choice([1.0, 2.5]),
        first_k_dense_replace=rng.choice([0, 1]),
        sliding_window=5,
        layer_types=layer_types(rng, shared["num_hidden_layers"]) if windowed else None,
    )


FAMILIES: dict[str, Draw] = {
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "glm4_moe_lite": glm4_moe_lite,
    "mistral4": mistral4,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "dots1": dots1,
    "mixtral": mixtral,
    "phimoe": phimoe,
    "qwen2_moe": qwen2_moe,
    "olmoe": olmoe,
    "glm4_moe": glm4_moe,
    "mellum": mellum,
    "qwen3_vl_moe": qwen3_vl_moe,
    "solar_open": solar_open,
    "exaone_moe": exaone_moe,
    "flex_olmo": flex_olmo,
    "afmoe": afmoe,
    "minimax_m2": minimax_m2,
    "granitemoe": granitemoe,
    "granitemoeshared": granitemoeshared,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "ernie4_5_moe": ernie4_5_moe,
    "laguna": laguna,
    "qwen3_next": qwen3_next,
    "qwen3_5_moe": qwen3_5_moe,
}


def save_family(config: Any, folder: Path, seed: int = 0) -> torch.nn.Module:
    """transformers' model of random weights and biases, saved as it saves them; in fp32."""
    torch.manual_seed(seed)
    make = getattr(transformers, MODEL_TYPES[config.model_type].architecture)
    model: torch.nn.Module = make._from_config(config).eval().float()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name.rpartition(".")[0].rpartition(".")[2] and name.endswith(".weight"):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith(("correction_bias", "expert_bias")):
            tensor.data.uniform_(-0.4, 0.4)
        elif name.endswith(".bias"):
            tensor.data.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    return model
