"""Small random models in Hugging Face layout, and transformers beside them as the oracle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM


def random_config(seed: int, *, moe: bool) -> Any:
    """A config.json-shaped draw over what Qwen3 and Qwen3-MoE allow."""
    rng = random.Random(seed)
    kv_heads = rng.choice([1, 2, 4])
    heads = kv_heads * rng.choice([1, 2, 3])
    layers = rng.choice([2, 3, 4])
    common = {
        "vocab_size": rng.choice([97, 128, 301]),
        "hidden_size": rng.choice([32, 48, 64]),
        "intermediate_size": rng.choice([40, 64]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": rng.choice([8, 16, 24]),
        "max_position_embeddings": 512,
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "tie_word_embeddings": rng.random() < 0.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([1e4, 1e6])},
        "initializer_range": 0.2,  # spread logits, so that few greedy choices are near ties
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    if not moe:
        return Qwen3Config(**common)
    experts = rng.choice([3, 5, 7, 8, 16])
    return Qwen3MoeConfig(
        **common,
        moe_intermediate_size=rng.choice([8, 20, 32]),
        num_experts=experts,
        num_experts_per_tok=rng.randint(1, min(4, experts)),
        norm_topk_prob=rng.random() < 0.5,
        decoder_sparse_step=rng.choice([1, 1, 2]),
        mlp_only_layers=[rng.randrange(layers)] if rng.random() < 0.4 else [],
    )


def save_model(config: Any, folder: Path, seed: int = 0) -> torch.nn.Module:
    """Make a model of random weights, save it as transformers 5 does, return it in fp32."""
    torch.manual_seed(seed)
    kind = Qwen3MoeForCausalLM if isinstance(config, Qwen3MoeConfig) else Qwen3ForCausalLM
    model = kind(config).eval().float()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


def respell_as_hub(folder: Path) -> None:
    """Rewrite a folder's config.json the way the Hub's first Qwen3 folders spell it."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["torch_dtype"] = raw.pop("dtype")
    raw["rope_theta"] = raw.pop("rope_parameters")["rope_theta"]
    raw["rope_scaling"] = None
    if "num_local_experts" in raw:
        raw["num_experts"] = raw.pop("num_local_experts")
    path.write_text(json.dumps(raw))
