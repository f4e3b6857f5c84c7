"""What the draws of several families have."""

from __future__ import annotations

import random
from typing import Any

VOCAB = 97


def common(rng: random.Random, *, max_layers: int = 3) -> dict[str, Any]:
    """What all configs have; tests are quick with few layers."""
    kv_heads = rng.choice([1, 2, 4])
    return {
        "vocab_size": VOCAB,
        "hidden_size": rng.choice([32, 48, 64]),
        "intermediate_size": rng.choice([24, 40]),
        "num_hidden_layers": rng.randint(2, max_layers),
        "num_attention_heads": kv_heads * rng.choice([1, 2, 3]),
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "tie_word_embeddings": rng.random() < 0.3,
        "initializer_range": 0.2,  # spread logits, so that few greedy choices are near ties
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": None,
    }


def rope(rng: random.Random, **more: Any) -> dict[str, Any]:
    """A rotary embedding without scaling."""
    return {"rope_type": "default", "rope_theta": rng.choice([1e4, 1e6])} | more


def layer_types(rng: random.Random, num_layers: int) -> list[str]:
    """Of both types, in any order."""
    return [rng.choice(["full_attention", "sliding_attention"]) for _ in range(num_layers)]


def yarn(rng: random.Random) -> dict[str, Any]:
    """Of a context that a prompt of these tests goes beyond."""
    original = rng.choice([8, 16])
    return rope(
        rng, rope_type="yarn", factor=rng.choice([2.0, 4.0]),
        original_max_position_embeddings=original,
    )  # fmt: skip
