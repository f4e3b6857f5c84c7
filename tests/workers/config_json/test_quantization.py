"""What config.json says of 8-bit weights: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.parallel import resolve_parallel
from tests.refusals import refusal
from workers.config_json.decoder_names import MLP_MODULES
from workers.config_json.model_config import ModelConfig
from workers.config_json.quantization import read_quantization
from workers.config_json.quantized_modules import ModuleNames, Quantization
from workers.scale_blocks import with_quantization

CONFIGS = Path(__file__).parents[3] / "benchmarks" / "configs"
QWEN = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
}
WEIGHTS = {
    "num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "channel",
    "group_size": None, "block_structure": None, "observer": "minmax",
}  # fmt: skip
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": WEIGHTS,
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
        }
    },
    "ignore": ["lm_head", "re:.*mlp.gate$"],
    "kv_cache_scheme": None,
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "*.mlp.gate"]}
SIZES = {
    "model_type": "qwen3_moe", "hidden_size": 256, "num_hidden_layers": 2, "head_dim": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512,
    "moe_intermediate_size": 384, "num_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def read(said: dict[str, Any], key: str = "quantization_config") -> Quantization:
    quantization = read_quantization({key: said})
    assert quantization is not None
    return quantization


def compressed(**changes: Any) -> dict[str, Any]:
    """The description with other weights."""
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **changes}}
    return {**COMPRESSED, "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("said", "fp8"),
    [
        (QWEN, Fp8Format(block=(128, 128), suffix="_scale_inv")),
        ({**QWEN, "weight_block_size": [64, 128]}, Fp8Format(block=(64, 128), suffix="_scale_inv")),
        ({**QWEN, "activation_scheme": "static"}, Fp8Format(block=(128, 128), suffix="_scale_inv")),
        (COMPRESSED, Fp8Format(block=None, stored="blocks", suffix="_scale")),
        (
            {**COMPRESSED, "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}},
            Fp8Format(block=None, stored="blocks", suffix="_scale"),
        ),
        (compressed(strategy="tensor"), Fp8Format(stored="vector")),
        (compressed(strategy="block", block_structure=[128, 128]), Fp8Format(block=(128, 128))),
        (MODELOPT, Fp8Format(stored="scalar")),
    ],
)
def test_formats_that_are_read(said: dict[str, Any], fp8: Fp8Format) -> None:
    quantization = read(said)
    assert quantization.weight_format == fp8
    assert quantization.format_of(["lm_head"]) is None
    assert quantization.format_of(["model.layers.0.mlp.gate"]) is None
    assert quantization.format_of(["model.layers.0.mlp.gate_proj"]) == fp8


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({**QWEN, "weight_block_size": None}, "'fp8' without weight_block_size"),
        ({**QWEN, "fmt": "e5m2"}, "'fp8' with fmt 'e5m2'"),
        ({**QWEN, "expert_dtype": "fp4"}, "'fp8' with expert_dtype 'fp4'"),
        ({**QWEN, "modules_to_convert": ["embed_tokens"]}, "with modules_to_convert"),
        ({**COMPRESSED, "format": "marlin-24"}, "with format 'marlin-24'"),
        ({**COMPRESSED, "config_groups": {}}, "'compressed-tensors' with config_groups {}"),
        ({**COMPRESSED, "sparsity_config": {"format": "sparse-24"}}, "with sparsity_config"),
        (compressed(num_bits=4), "with num_bits 4"),
        (compressed(type="int"), "with type 'int'"),
        (compressed(strategy="group"), "with strategy 'group'"),
        (compressed(symmetric=False), "with symmetric False"),
        (compressed(symmetric=1), "with symmetric 1"),
        ({**MODELOPT, "quant_algo": "NVFP4"}, "'modelopt' with quant_algo 'NVFP4'"),
    ],
)
def test_what_is_not_built_is_refused_by_name(said: dict[str, Any], words: str) -> None:
    line = refusal(lambda: read_quantization({"quantization_config": said}))
    assert "quantization_config" in line
    assert words in line
    assert "serve the model's checkpoint in bfloat16" in line


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({**QWEN, "weight_block_size": [128]}, "weight_block_size is [128]; it must be two whole"),
        ({**QWEN, "weight_block_size": [0, 128]}, "must be two whole numbers"),
        ({**QWEN, "weight_block_size": [True, 128]}, "must be two whole numbers"),
        ({**QWEN, "modules_to_not_convert": "lm_head"}, "must be a list of modules' names"),
        ({**QWEN, "modules_to_not_convert": [7]}, "must be a list of modules' names"),
        ({**COMPRESSED, "ignore": ["re:("]}, "ignore has 're:('"),
        ({**COMPRESSED, "ignore": ["re:a"] * 101}, "has 101 patterns; at most 100"),
        ({**COMPRESSED, "ignore": ["re:" + "a" * 200]}, "of 200 characters"),
    ],
)
def test_values_that_make_no_sense_are_named(said: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: read_quantization({"quantization_config": said}))


@pytest.mark.parametrize(
    ("entry", "module", "is_in"),
    [
        ("model.layers.1", "model.layers.1.self_attn.q_proj", True),
        ("model.layers.1", "model.layers.11.self_attn.q_proj", False),
        ("mlp.gate", "model.layers.3.mlp.gate", True),
        ("mlp.gate", "model.layers.3.mlp.gate_proj", False),
        ("gate", "model.layers.3.mlp.gate", True),
        ("layers.3.mlp", "model.layers.3.mlp.experts.0.up_proj", True),
        ("layers.3.mlp", "model.layers.33.mlp.experts.0.up_proj", False),
        ("3.mlp", "model.layers.33.mlp.experts.0.up_proj", False),
        ("model.layers.*.mlp", "model.layers.7.mlp.experts.1.up_proj", True),
        ("model.layers.*.mlp", "model.layers.7.mlps", False),
        ("*self_attn*", "model.layers.7.self_attn.q_proj", True),
        ("re:.*self_attn", "model.layers.7.self_attn.q_proj", True),
        ("re:self_attn", "model.layers.7.self_attn.q_proj", False),
        ("re:.*gate$", "model.layers.7.mlp.gate_proj", False),
    ],
)
def test_names_of_modules(entry: str, module: str, is_in: bool) -> None:
    assert (module in ModuleNames.read("ignore", [entry])) == is_in


def test_one_matrix_has_one_format() -> None:
    quantization = read({**QWEN, "modules_to_not_convert": ["model.layers.0.self_attn.k_proj"]})
    modules = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    line = refusal(lambda: quantization.format_of(modules))
    assert "self_attn.q_proj quantized and model.layers.0.self_attn.k_proj not" in line


def test_modelopt_may_describe_itself_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    said = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    path = tmp_path / "hf_quant_config.json"
    path.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    quantization = ModelConfig.from_folder(tmp_path).quantization
    assert quantization is not None
    assert quantization.weight_format == Fp8Format(stored="scalar")
    assert "lm_head" in quantization.skipped
    path.write_text(json.dumps({"quantization": {**said, "quant_algo": "NVFP4"}}))
    line = refusal(lambda: ModelConfig.from_folder(tmp_path))
    assert f"{path}: quantization asks for weights quantized by 'modelopt' with quant_algo" in line
    path.write_text(json.dumps({"quantization": {"quant_algo": None}}))
    assert ModelConfig.from_folder(tmp_path).quantization is None


def served(
    said: dict[str, Any] | None, flag: str = "auto", *, tp: int = 1, ep: int | None = None,
    **sizes: Any,
) -> Quantization | None:  # fmt: skip
    config = ModelConfig.from_hf({**SIZES, **sizes, "quantization_config": said})
    parallel = resolve_parallel(tp=tp, dp=1, ep=ep, backend="auto", has_experts=True)
    return with_quantization(config, flag, parallel, made_up=False).quantization


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (
            {"tp": 2},
            ("num_key_value_heads × head_dim 128 over 2 ranks, 64 each,", "multiple of 128",
             "blocks of 128 × 128 weights", "choose --tp 1"),
        ),
        (
            {"tp": 2, "ep": 1, "head_dim": 128},
            ("moe_intermediate_size 384 over 2 ranks, 192 each,", "pass --ep 2"),
        ),
        ({"moe_intermediate_size": 320}, ("moe_intermediate_size 320 is no", "in bfloat16")),
        ({"hidden_size": 192}, ("hidden_size 192 is no multiple of 128", "in bfloat16")),
    ],
)  # fmt: skip
def test_shares_that_cut_a_block_are_refused_with_their_numbers(
    layout: dict[str, Any], words: tuple[str, ...]
) -> None:
    line = refusal(lambda: served(QWEN, **layout))
    assert all(word in line for word in words), line


def test_shares_of_whole_blocks_and_of_rows_are_not() -> None:
    assert served(QWEN, tp=2, head_dim=128) == read(QWEN)
    assert served({**QWEN, "weight_block_size": [64, 64]}, tp=2, ep=1) is not None
    assert served(COMPRESSED, tp=2, ep=1, moe_intermediate_size=90) == read(COMPRESSED)
    # Attention that is not quantized is not cut either.
    skipped = ["re:.*self_attn.*"]
    assert served({**QWEN, "modules_to_not_convert": skipped}, tp=2) is not None
    # Dense layers there are none.
    assert served(QWEN, intermediate_size=100) is not None


@pytest.mark.parametrize(
    ("layout", "size"),
    [({}, 128), ({"tp": 2}, 64), ({"tp": 2, "head_dim": 128}, 128), ({"hidden_size": 96}, 32)],
)
def test_blocks_that_are_made_fit_the_layout(layout: dict[str, Any], size: int) -> None:
    made = served(None, "fp8", **layout)
    assert made is not None
    assert made.weight_format == Fp8Format(block=(size, size), stored="plain")


@pytest.mark.parametrize(("flag", "group"), [("fp8", None), ("int4", 128)])
@pytest.mark.parametrize(
    ("name", "tp", "dense_too"),
    [
        ("glm-4.5-air", 1, False),
        ("deepseek-v2-lite", 2, False),
        ("glm-4.7-flash", 2, True),
    ],
)
def test_a_mixture_s_few_dense_layers_do_not_make_everyone_s_blocks_small(
    name: str, tp: int, dense_too: bool, flag: str, group: int | None
) -> None:
    """10,944 columns are no whole blocks of 128, 10,240 are."""
    config = ModelConfig.from_folder(CONFIGS / name)
    parallel = resolve_parallel(tp=tp, dp=1, ep=None, backend="auto", has_experts=True)
    made = with_quantization(config, flag, parallel, made_up=True).quantization
    assert made is not None
    expected = (
        Fp8Format(block=(128, 128), stored="plain") if group is None else Int4Format(group=group)
    )
    assert made.weight_format == expected
    dense = [f"model.layers.0.mlp.{module}" for module in MLP_MODULES]
    assert (made.format_of(dense) is not None) == dense_too
    for module in ("layers.0.self_attn.o_proj", "layers.1.mlp.experts.0.down_proj"):
        assert made.format_of([f"model.{module}"]) == expected


def test_many_dense_layers_do() -> None:
    sizes = {"decoder_sparse_step": 2, "intermediate_size": 192}
    made = served(None, "fp8", **sizes)
    assert made is not None
    assert made.weight_format == Fp8Format(block=(64, 64), stored="plain")
    assert made.skipped == ModuleNames()


@pytest.mark.parametrize("tp", [1, 8, 16])
def test_deepseek_v3_may_cut_a_block(tp: int) -> None:
    """kv_a_proj_with_mqa has 576 rows, all of them on every rank."""
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = ModelConfig.from_hf({"model_type": "deepseek_v3", "quantization_config": said})
    parallel = resolve_parallel(tp=tp, dp=1, ep=None, backend="auto", has_experts=True)
    quantization = with_quantization(config, "auto", parallel, made_up=False).quantization
    assert quantization is not None
    assert quantization.weight_format.multiples == (128, 128)


def test_groups_that_are_made_fit_the_layout() -> None:
    """Rows are cut anywhere: only what meets inputs must have whole groups."""
    for layout, size in (({}, 128), ({"hidden_size": 96}, 32), ({"tp": 2, "ep": 1}, 64)):
        made = served(None, "int4", **layout)
        assert made is not None
        assert made.weight_format == Int4Format(group=size)
    line = refusal(lambda: served(None, "int4", hidden_size=200))
    assert "--quantization int4: hidden_size 200 is no multiple of 32" in line
    assert served(QWEN, "int4") == read(QWEN)


def test_weights_that_no_block_fits_are_not_made() -> None:
    line = refusal(lambda: served(None, "fp8", hidden_size=200))
    assert "--quantization fp8: hidden_size 200 is no multiple of 32" in line
    assert served(QWEN, "fp8") == read(QWEN)
    assert served(None) is None
