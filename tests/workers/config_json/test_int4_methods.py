"""What config.json says of 4-bit weights: what is read, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from moe.base.int4_format import Int4Format
from moe.base.parallel import resolve_parallel
from tests.refusals import refusal
from tests.workers.config_json.test_quantization import SIZES, read
from workers.config_json.model_config import ModelConfig
from workers.config_json.quantization import read_quantization
from workers.scale_blocks import with_quantization

GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False,
    "checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32", "damp_percent": 0.05,
    "dynamic": {r"-:.*mlp\.gate$": {}, r"-:.*shared_expert.*": {}},
}  # fmt: skip
AWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm",
    "backend": "autoawq", "modules_to_not_convert": ["mlp.gate"],
}  # fmt: skip
WEIGHTS = {
    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
    "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax",
}  # fmt: skip
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}
    },
    "ignore": ["lm_head", r"re:.*mlp\.gate$"],
}


def pack_quantized(**changes: Any) -> dict[str, Any]:
    """The description with other weights."""
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **changes}}
    return {**PACKED, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("said", "int4"),
    [
        (GPTQ, Int4Format(stored="gptq")),
        ({**GPTQ, "group_size": -1}, Int4Format(stored="gptq", group=None)),
        ({**GPTQ, "group_size": 32, "sym": False},
         Int4Format(stored="gptq", group=32, zero_points=True)),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, Int4Format(stored="gptq_v2")),
        ({**GPTQ, "checkpoint_format": None}, Int4Format(stored="gptq")),
        (AWQ, Int4Format(stored="awq", zero_points=True)),
        ({**AWQ, "version": "GEMM", "group_size": 64},
         Int4Format(stored="awq", group=64, zero_points=True)),
        (PACKED, Int4Format(stored="compressed", group=32)),
        (pack_quantized(symmetric=False, actorder="weight"),
         Int4Format(stored="compressed", group=32, zero_points=True)),
        (pack_quantized(strategy="channel", group_size=None),
         Int4Format(stored="compressed", group=None)),
    ],
)  # fmt: skip
def test_formats_that_are_read(said: dict[str, Any], int4: Int4Format) -> None:
    quantization = read(said)
    assert quantization.weight_format == int4
    assert quantization.format_of(["model.layers.0.mlp.gate"]) is None
    assert quantization.format_of(["model.layers.0.mlp.experts.3.gate_proj"]) == int4


def test_modules_that_dynamic_leaves_out() -> None:
    quantization = read({**GPTQ, "modules_to_not_convert": ["model.layers.1"]})
    module = "model.layers.{}.mlp.shared_expert.up_proj"
    assert quantization.format_of([module.format(0)]) is None
    assert quantization.format_of(["model.layers.1.self_attn.q_proj"]) is None
    assert quantization.format_of(["model.layers.11.self_attn.q_proj"]) is not None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({**GPTQ, "desc_act": True}, "'gptq' with desc_act True"),
        ({**GPTQ, "bits": 8}, "'gptq' with bits 8"),
        ({**GPTQ, "group_size": 16}, "'gptq' with group_size 16"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "with checkpoint_format 'marlin'"),
        ({**GPTQ, "lm_head": True}, "with lm_head True"),
        ({**GPTQ, "dynamic": {"+:.*experts.*": {"bits": 8}}}, "with dynamic '+:.*experts.*'"),
        ({**GPTQ, "modules_in_block_to_quantize": [["q_proj"]]}, "modules_in_block_to_quantize"),
        ({**AWQ, "version": "gemv"}, "'awq' with version 'gemv'"),
        ({**AWQ, "zero_point": False}, "'awq' with zero_point False"),
        ({**AWQ, "bits": 3}, "'awq' with bits 3"),
        (pack_quantized(num_bits=8), "with num_bits 8"),
        (pack_quantized(type="float"), "with type 'float'"),
        (pack_quantized(actorder="group"), "with actorder 'group'"),
        (pack_quantized(group_size=16), "with group_size 16"),
        (pack_quantized(strategy="tensor"), "with strategy 'tensor'"),
        (
            {**PACKED, "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": WEIGHTS, "input_activations": {"num_bits": 8},
            }}},
            "with input_activations {",
        ),
        ({**GPTQ, "quant_method": "auto-round"}, "by 'auto-round'"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused_by_name(said: dict[str, Any], words: str) -> None:
    line = refusal(lambda: read_quantization({"quantization_config": said}))
    assert words in line
    assert "serve the model's checkpoint in bfloat16" in line


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({**GPTQ, "dynamic": ["-:a"]}, "dynamic is ['-:a']; it must be an object"),
        ({**GPTQ, "dynamic": {"-:(": {}}}, "dynamic has 're:('"),
        ({**AWQ, "modules_to_not_convert": "gate"}, "must be a list of modules' names"),
    ],
)
def test_values_that_make_no_sense_are_named(said: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: read_quantization({"quantization_config": said}))


def served(said: dict[str, Any], *, tp: int = 1, ep: int | None = None, **sizes: Any) -> Int4Format:
    config = ModelConfig.from_hf({**SIZES, **sizes, "quantization_config": said})
    parallel = resolve_parallel(tp=tp, dp=1, ep=ep, backend="auto", has_experts=True)
    quantization = with_quantization(config, "auto", parallel, made_up=False).quantization
    assert quantization is not None
    assert isinstance(quantization.weight_format, Int4Format)
    return quantization.weight_format


@pytest.mark.parametrize(
    ("said", "layout", "words"),
    [
        (GPTQ, {"tp": 2, "ep": 1},
         ("moe_intermediate_size 384 over 2 ranks, 192 each, is no multiple of 128",
          "belong to groups of 128 inputs; pass --ep 2")),
        (GPTQ, {"tp": 2, "head_dim": 32},
         ("num_attention_heads × head_dim 128 over 2 ranks, 64 each, is no multiple of 128",
          "choose --tp 1")),
        (GPTQ, {"hidden_size": 192},
         ("hidden_size 192 is no multiple of 128", "in bfloat16")),
        (AWQ, {"moe_intermediate_size": 320}, ("moe_intermediate_size 320 is no multiple",)),
        ({**GPTQ, "group_size": -1}, {"hidden_size": 264},
         ("hidden_size 264 is no multiple of 32, and 32 numbers of four bits are packed",)),
        ({**GPTQ, "group_size": -1}, {"tp": 2, "head_dim": 36, "num_attention_heads": 16},
         ("num_key_value_heads × head_dim 72 over 2 ranks, 36 each, is no multiple of 8,",)),
        ({**PACKED, "ignore": []}, {"hidden_size": 272},
         ("hidden_size 272 is no multiple of 32, and scales belong to groups of 32 inputs",)),
    ],
)  # fmt: skip
def test_shares_that_cut_a_group_or_a_word_are_refused_with_their_numbers(
    said: dict[str, Any], layout: dict[str, Any], words: tuple[str, ...]
) -> None:
    line = refusal(lambda: served(said, **layout))
    assert all(word in line for word in words), line


def test_shares_of_whole_groups_are_not() -> None:
    assert served(GPTQ, tp=2) == Int4Format(stored="gptq")
    assert served({**GPTQ, "group_size": 64}, tp=2, ep=1).group == 64
    # Without zero points no word holds several outputs.
    sizes = {"head_dim": 36, "num_attention_heads": 16}
    assert served(pack_quantized(), tp=2, **sizes).multiples == (1, 32)


def test_made_up_weights_have_the_form_in_memory() -> None:
    config = ModelConfig.from_hf({**SIZES, "quantization_config": AWQ})
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    quantization = with_quantization(config, "auto", parallel, made_up=True).quantization
    assert quantization is not None
    assert quantization.weight_format == Int4Format(stored="plain", zero_points=True)
