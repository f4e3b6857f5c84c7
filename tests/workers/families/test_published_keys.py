"""Keys of published config.json files that transformers' classes lack, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moe.base.parallel import resolve_parallel
from tests.refusals import refusal
from workers.config_json.model_config import ModelConfig
from workers.config_json.quantization import MADE
from workers.scale_blocks import with_quantization

CONFIGS = Path(__file__).parents[3] / "benchmarks" / "configs"


def read(model_type: str, **keys: Any) -> ModelConfig:
    return ModelConfig.from_hf({"model_type": model_type, "head_dim": 128, **keys})


@pytest.mark.parametrize("name", ["minimax-m2", "hunyuan-a13b", "ernie-4.5-21b-a3b"])
def test_nothing_of_a_published_file_is_unknown(name: str) -> None:
    assert ModelConfig.from_folder(CONFIGS / name).unknown_keys == ()


@pytest.mark.parametrize(
    ("model_type", "keys", "dim"),
    [
        ("minimax_m2", {}, 128),
        ("minimax_m2", {"rotary_dim": 64}, 64),
        ("minimax_m2", {"rotary_dim": 64, "partial_rotary_factor": 0.25}, 32),
        (
            "minimax_m2",
            {"rotary_dim": 64, "rope_parameters": {"partial_rotary_factor": 0.75}},
            96,
        ),
        ("glm4_moe", {"partial_rotary_factor": 0.25}, 32),
    ],
)
def test_how_much_of_a_head_is_turned(model_type: str, keys: dict[str, Any], dim: int) -> None:
    """A share counts before a number of dimensions."""
    (rope,) = read(model_type, **keys).ropes
    assert rope.dim == dim


def test_layers_that_are_for_speculation_are_left_out() -> None:
    assert read("minimax_m2", num_mtp_modules=2).left_out == (
        "model.layers.62.",
        "model.layers.63.",
    )
    assert read("ernie4_5_moe").left_out == ("model.mtp_",)


def test_a_list_may_say_one_number_for_all_layers() -> None:
    keys = {"num_experts": [64] * 32, "moe_topk": [8] * 32, "num_shared_expert": [1] * 32}
    moe = read("hunyuan_v1_moe", intermediate_size=3072, moe_intermediate_size=[3072], **keys).moe
    assert moe is not None
    assert (moe.num_experts, moe.num_experts_per_tok) == (64, 8)
    assert (moe.intermediate_size, moe.shared_expert_size) == (3072, 3072)


@pytest.mark.parametrize(
    ("model_type", "key"), [("hunyuan_v1_moe", "moe_topk"), ("ernie4_5_moe", "moe_k")]
)
def test_both_spellings_of_experts_a_token_count(model_type: str, key: str) -> None:
    numbers = {"num_experts": 16, "num_experts_per_tok": 5}
    both = read(model_type, **numbers), read(model_type, num_experts=16, **{key: 5})
    assert both[0] == both[1]
    assert both[0].moe is not None
    assert both[0].moe.num_experts_per_tok == 5


def test_layers_of_laguna_differ() -> None:
    """As Laguna-XS.2 has them: one of four sees all, with fewer heads, half of each turned."""
    types = ["full_attention", *["sliding_attention"] * 3] * 2
    full = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 32.0, "partial_rotary_factor": 0.5}
    config = read(
        "laguna",
        num_hidden_layers=8,
        layer_types=types,
        num_attention_heads_per_layer=[48, 64, 64, 64] * 2,
        gating="per-head",
        gating_types=["per_head"] * 8,
        rope_parameters={
            "full_attention": full | {"original_max_position_embeddings": 8192},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert config.unknown_keys == ()
    assert [spec.num_heads for spec in config.attention[:2]] == [48, 64]
    assert [spec.window for spec in config.attention[:2]] == [None, 512]
    assert [rope.dim for rope in config.ropes] == [64, 128]
    assert {spec.gate for spec in config.attention} == {"head"}
    assert config.moe_layers == (False, *[True] * 7)
    assert read("laguna", gating="per-element").attention[0].gate == "element"


def test_trinity_says_how_it_routes() -> None:
    """Keys of Trinity-Nano, every fourth of whose layers sees all and knows no position."""
    types = [*["sliding_attention"] * 3, "full_attention"] * 2
    config = read(
        "afmoe",
        hidden_size=1024,
        num_hidden_layers=8,
        layer_types=types,
        load_balance_coeff=0.001,
        mup_enabled=True,
        n_group=1,
        num_attention_heads=8,
        num_dense_layers=2,
        num_expert_groups=1,
        num_key_value_heads=2,
        num_limited_groups=1,
        rope_scaling=None,
        rope_theta=10000,
        route_norm=True,
        route_scale=2.826,
        score_func="sigmoid",
        sliding_window=2048,
        topk_group=1,
        use_grouped_mm=True,
    )
    assert config.unknown_keys == ()
    assert config.embedding_multiplier == 32
    assert [spec.window for spec in config.attention] == [2048, 2048, 2048, None] * 2
    assert [getattr(spec, "rope", None) is None for spec in config.attention[:4]] == [
        *[False] * 3,
        True,
    ]
    assert config.moe_layers == (False, False, *[True] * 6)
    assert config.moe is not None
    assert (config.moe.router, config.moe.routed_scaling_factor) == ("sigmoid", 2.826)
    assert read("afmoe").embedding_multiplier == 1


@pytest.mark.parametrize(("gating", "is_made"), [("per-head", False), ("per-element", True)])
def test_gates_of_few_rows_stay_as_they_are(gating: str, is_made: bool) -> None:
    """48 heads are no whole blocks."""
    config = read("laguna", gating=gating)
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    served = with_quantization(config, "fp8", parallel, made_up=True).quantization
    assert served is not None
    assert served.weight_format == dataclasses.replace(MADE, block=(128, 128))
    gate = served.format_of(["model.layers.1.self_attn.g_proj"])
    assert (gate is not None) == is_made
    assert served.format_of(["model.layers.1.self_attn.q_proj"]) is not None


@pytest.mark.parametrize(
    ("model_type", "change", "words"),
    [
        ("minimax_m2", {"attn_type_list": [1, 0]}, "attn_type_list is [1, 0]; only 1"),
        ("minimax_m2", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("minimax_m2", {"use_qk_norm": False}, "use_qk_norm is False"),
        ("minimax_m2", {"qk_norm_type": "per_head"}, "qk_norm_type is 'per_head'"),
        ("minimax_m2", {"use_routing_bias": False}, "use_routing_bias is False"),
        ("minimax_m2", {"shared_intermediate_size": 8}, "shared_intermediate_size is 8"),
        ("minimax_m2", {"rotary_dim": 200}, "rotary_dim is 200; it must be a number from 2 to 128"),
        ("mixtral", {"rotary_dim": 64}, "rotary_dim is 64, which changes the mathematics"),
        ("mixtral", {"attention_multiplier": 0.1}, "attention_multiplier is 0.1"),
        ("mixtral", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        (
            "qwen3_vl_moe",
            {"text_config": {"norm_topk_prob": False}},
            "norm_topk_prob is False",
        ),
        ("granitemoe", {"logits_scaling": 0}, "logits_scaling is 0, which leaves nothing"),
        ("hunyuan_v1_moe", {"moe_topk": [1, 2]}, "moe_topk is [1, 2]; layers that differ in it"),
        ("hunyuan_v1_moe", {"moe_topk": []}, "moe_topk is []"),
        ("hunyuan_v1_moe", {"moe_intermediate_size": 8}, "moe_intermediate_size is 8, intermed"),
        ("hunyuan_v1_moe", {"num_shared_expert": [2]}, "num_shared_expert is 2"),
        ("hunyuan_v1_moe", {"use_cla": True}, "use_cla is True"),
        ("hunyuan_v1_moe", {"use_mla": True}, "use_mla is True"),
        ("hunyuan_v1_moe", {"use_mixed_mlp_moe": False}, "use_mixed_mlp_moe is False"),
        ("ernie4_5_moe", {"use_bias": True}, "use_bias is True"),
        ("ernie4_5_moe", {"moe_use_aux_free": False}, "moe_use_aux_free is False"),
        ("ernie4_5_moe", {"moe_layer_end_index": -2}, "moe_layer_end_index is -2"),
        ("afmoe", {"score_func": "softmax"}, "score_func is 'softmax'"),
        ("afmoe", {"route_norm": False}, "route_norm is False"),
        ("afmoe", {"n_group": 2}, "n_group is 2"),
        ("laguna", {"gating": False}, "gating is False, which changes the mathematics"),
        ("laguna", {"gating_types": ["per_head", "per_element"]}, "gating_types is ['per_head', "),
        ("laguna", {"num_attention_heads_per_layer": [8]}, "num_attention_heads_per_layer is [8]"),
        ("laguna", {"num_attention_heads_per_layer": [0] * 40}, "must be a number from 1 on"),
        ("laguna", {"num_attention_heads_per_layer": [12] * 40}, "12 is not a multiple of"),
        ("laguna", {"moe_apply_router_weight_on_input": True}, "router_weight_on_input is True"),
        ("laguna", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types is ['sparse']"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    model_type: str, change: dict[str, Any], words: str
) -> None:
    assert words in refusal(lambda: read(model_type, **change))
