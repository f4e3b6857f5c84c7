"""A model type made of known parts: an entry in the table, and transformers' own model.

Its decoder is Qwen3's and its mixtures are DeepSeek-V3's, which is GLM-4.5's architecture with a
full rotary embedding: groups, correction bias, scaling, shared experts, a dense first layer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys
from workers.families import MODEL_TYPES
from workers.families.grouped_query import grouped_query

VOCAB = 97
KNOWN_PARTS = ModelType(
    architecture="TestMoeForCausalLM",
    models="of a test",
    attention=lambda values, layer, rope: grouped_query(values, rope, qk_norm="head"),
    defaults={
        **COMMON_DEFAULTS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "topk_method": "noaux_tc",
        "moe_intermediate_size": 32,
        "num_experts_per_tok": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1,
    },
    moe=MoEKeys(
        num_experts=("num_local_experts", "n_routed_experts"),
        n_group="n_group",
        topk_group="topk_group",
        routed_scaling_factor="routed_scaling_factor",
        num_shared="n_shared_experts",
        first_sparse="first_k_dense_replace",
    ),
)


def register(patch: pytest.MonkeyPatch) -> None:
    """Enter the type in the table."""
    patch.setitem(MODEL_TYPES, "testdense_moe", KNOWN_PARTS)


def save_known_parts(folder: Path) -> Glm4MoeForCausalLM:
    """transformers' model of random weights and biases, saved as a testdense_moe; in fp32."""
    config = Glm4MoeConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
        },
        use_qk_norm=True,
        moe_intermediate_size=24,
        num_experts_per_tok=3,
        n_routed_experts=8,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        initializer_range=0.2,
        eos_token_id=1,
        num_mtp_layers=0,
    )  # fmt: skip
    torch.manual_seed(3)
    model = Glm4MoeForCausalLM(config).eval().float()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("norm.weight"):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith("gate.weight"):
            tensor.data.normal_(0.0, 0.3)
        elif name.endswith("correction_bias"):
            tensor.data.uniform_(-0.4, 0.4)
    model.save_pretrained(folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("partial_rotary_factor", None)  # some releases save a default that does not count
    path.write_text(json.dumps({**raw, "model_type": "testdense_moe"}))
    return model
