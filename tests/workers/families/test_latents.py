"""Families with attention over latents: what is read and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from moe.base.fp8_format import Fp8Format
from tests.refusals import refusal
from tests.workers.families.draws import FAMILIES
from workers.attention.mla_spec import MlaSpec, QueryGrowth
from workers.config_json.model_config import ModelConfig
from workers.layers.rope_spec import YarnScaling

CONFIGS = Path("benchmarks/configs")
LATENT_FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "mistral4")


def raw_of(name: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((CONFIGS / name / "config.json").read_text())
    return raw


def spec_of(raw: dict[str, Any]) -> MlaSpec:
    spec = ModelConfig.from_hf(raw).attention[0]
    assert isinstance(spec, MlaSpec)
    return spec


KIMI_K2 = raw_of("deepseek-v3") | {
    "model_type": "kimi_k2", "num_hidden_layers": 61, "n_routed_experts": 384, "n_group": 1,
    "num_attention_heads": 64, "num_key_value_heads": 64, "topk_group": 1, "vocab_size": 163840,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "routed_scaling_factor": 2.827,
    "rope_theta": 50000.0, "max_position_embeddings": 131072,
    "rope_scaling": {
        "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "change", "words"),
    [
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "'greedy' or 'group_limited_greedy'"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ("deepseek_v2", {"rope_interleave": False}, "rope_interleave is False"),
        ("deepseek_v2", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group=0 must divide"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias is True"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "is absent or 'sigmoid'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "is absent or 'noaux_tc'"),
        ("deepseek_v3", {"attention_bias": True}, "attention_bias is True"),
        ("deepseek_v3", {"q_lora_rank": 0}, "q_lora_rank is 0"),
        ("deepseek_v3", {"qk_rope_head_dim": 63}, "63 is odd"),
        ("kimi_k2", {"scoring_func": "softmax"}, "is absent or 'sigmoid'"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}, "num_hidden_layers 47"),
        ("glm4_moe_lite", {"mlp_layer_types": ["moe"] * 47}, "must be sparse or dense"),
        ("glm4_moe_lite", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("mistral4", {"moe_router_backend": "noaux_tc"}, "is absent or 'softmax_groups'"),
        (
            "mistral4",
            {"rope_parameters": {"partial_rotary_factor": 0.25}},
            "qk_rope_head_dim 64 is not the rotary embedding's 32",
        ),
        (
            "mistral4",
            {"rope_parameters": {"llama_4_scaling_beta": 0.1}},
            "original_max_position_embeddings None",
        ),
        (
            "mistral4",
            {"rope_parameters": {"llama_4_scaling_beta": "x"}},
            "rope_parameters.llama_4_scaling_beta is 'x'",
        ),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    model_type: str, change: dict[str, Any], words: str
) -> None:
    assert words in refusal(lambda: ModelConfig.from_hf({"model_type": model_type, **change}))


def test_deepseek_v3_as_on_the_hub() -> None:
    config = ModelConfig.from_folder(CONFIGS / "deepseek-v3")
    assert config.left_out == ("model.layers.61.",)
    assert config.moe_layers == (False,) * 3 + (True,) * 58
    assert config.moe is not None
    assert config.moe.router == "noaux_tc"
    assert config.quantization is not None
    assert isinstance(config.quantization.weight_format, Fp8Format)
    assert config.quantization.weight_format.block == (128, 128)
    assert "model.layers.3.self_attn.kv_b_proj" not in config.quantization.skipped
    # 192^-0.5 · (0.1 · ln 40 + 1)²; cosines and sines stay as they are.
    spec = config.attention[0]
    assert isinstance(spec, MlaSpec)
    assert spec.scale == pytest.approx(0.13523377)
    assert isinstance(spec.rope.scaling, YarnScaling)
    assert spec.rope.scaling.amplitude == 1


def test_kimi_k2_is_deepseek_v3_of_other_numbers() -> None:
    config = ModelConfig.from_hf(KIMI_K2)
    assert config.unknown_keys == ()
    assert config.left_out == ()
    assert config.moe is not None
    assert (config.moe.num_experts, config.moe.routed_scaling_factor) == (384, 2.827)
    as_v3 = ModelConfig.from_hf({**KIMI_K2, "model_type": "deepseek_v3"})
    assert config == as_v3


def test_mistral4_without_a_rotary_embedding_has_the_class_s() -> None:
    spec = spec_of({"model_type": "mistral4"})
    assert spec.query_growth == QueryGrowth(beta=0.1, length=8192)
    assert spec.rope.dim == 64
    assert isinstance(spec.rope.scaling, YarnScaling)
    assert spec.rope.scaling.factor == 128


def options(config: Any) -> dict[str, Any]:
    """What of a draw is a choice of the family."""
    values = config.to_dict()
    picked = {
        key: values.get(key)
        for key in (
            "q_lora_rank", "rope_interleave", "topk_method", "n_shared_experts", "norm_topk_prob",
            "first_k_dense_replace", "tie_word_embeddings", "mlp_layer_types",
        )
    }  # fmt: skip
    rope = values["rope_parameters"]
    return picked | {
        "q_lora_rank": picked["q_lora_rank"] is None,
        "mlp_layer_types": "dense" in (picked["mlp_layer_types"] or ())[1:],
        "yarn": rope["rope_type"],
        "mscale_all_dim": bool(rope.get("mscale_all_dim")),
        "growth": bool(rope.get("llama_4_scaling_beta")),
        "groups": bool(values["n_group"] > values["topk_group"]),
    }


@pytest.mark.parametrize("family", LATENT_FAMILIES)
def test_every_option_comes_up_in_the_draws(family: str) -> None:
    drawn = [options(FAMILIES[family](random.Random(f"{family} {seed}"))) for seed in range(8)]
    fixed = {
        "deepseek_v2": {"rope_interleave", "mlp_layer_types", "growth"},
        "deepseek_v3": {"topk_method", "mlp_layer_types", "growth"},
        "glm4_moe_lite": {"topk_method", "first_k_dense_replace", "growth"},
        "mistral4": {"topk_method", "mlp_layer_types", "yarn"},
    }[family]
    for name in drawn[0].keys() - fixed:
        assert len({each[name] for each in drawn}) > 1, name


def test_heads_are_divided_and_latents_are_not() -> None:
    config = ModelConfig.from_folder(CONFIGS / "glm-4.7-flash")
    config.check_tensor_parallel(4)
    assert "--tp 8 does not divide num_attention_heads 20" in refusal(
        lambda: config.check_tensor_parallel(8)
    )
    narrow = dataclasses.replace(config, intermediate_size=10242)
    assert "intermediate_size 10242" in refusal(lambda: narrow.check_tensor_parallel(4))
