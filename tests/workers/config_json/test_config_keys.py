"""Keys of config.json: what is honored is what transformers honors, the rest is told or refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, Qwen3Config, Qwen3MoeConfig
from transformers.generation.configuration_utils import GenerationConfig

from tests.refusals import refusal
from tests.workers.config_json.test_model_config import CONFIGS, assert_same
from workers.config_json.config_keys import NEUTRAL
from workers.config_json.model_config import ModelConfig

MOE = json.loads((CONFIGS / "qwen3-30b-a3b" / "config.json").read_text())
DENSE = json.loads((CONFIGS / "qwen3-8b" / "config.json").read_text())
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "moe_intermediate_size",
    "num_experts", "num_local_experts", "num_experts_per_tok", "decoder_sparse_step",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "rope_theta")


def refused(raw: dict[str, Any]) -> str:
    return refusal(lambda: ModelConfig.from_hf(raw))


# ---- values ----


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize(
    "value", [10**9, 10**18, 10**4000, -1, 2.0, "16", "x" * 10**6, True, [1], {"a": 1}, [[[[]]]]]
)
def test_an_absurd_size_is_named_with_its_bounds(key: str, value: Any) -> None:
    assert f"{key} is " in refused({**MOE, key: value})


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [-1.0, 1e300, 10**400, float("nan"), float("inf"), "1", True, []])
def test_an_absurd_number_is_named_with_its_bounds(key: str, value: Any) -> None:
    assert f"{key} is " in refused({**MOE, key: value})


@pytest.mark.parametrize(
    "key", [key for key in SIZES if key not in ("num_experts", "num_local_experts")]
)
def test_zero_is_no_size(key: str) -> None:
    assert f"{key} is 0; it must be a whole number from 1 to" in refused({**MOE, key: 0})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'; it must be true or false"),
        ({"mlp_only_layers": 3}, "mlp_only_layers is 3; it must be a list of"),
        ({"mlp_only_layers": [0, "1"]}, "mlp_only_layers is [0, '1']; it must be a list of"),
        ({"mlp_only_layers": [0] * 5000}, "it must be a list of at most 1024"),
        ({"dtype": "int8"}, "dtype is 'int8'; known: bfloat16"),
        ({"dtype": {"a": 1}}, "dtype is {'a': 1}"),
        (
            {"model_type": "bert"},
            "model_type 'bert' is not supported; `switchyard models` lists what is",
        ),
        ({"model_type": ["qwen3"]}, "model_type ['qwen3']"),
        ({"num_key_value_heads": 3}, "num_attention_heads 32 is not a multiple of"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok must be in 1..num_experts=128"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be an object"),
        ({"rope_scaling": {"rope_theta": 0}}, "rope_theta is 0"),
    ],
)
def test_other_wrong_values_are_named(change: dict[str, Any], words: str) -> None:
    assert words in refused({**MOE, **change})


# ---- what is not built ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config is "),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"qkv_bias": True}, "qkv_bias is True, which changes the mathematics and is not built"),
        ({"use_qk_norm": False}, "use_qk_norm is False"),
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size is 64"),
        ({"n_shared_experts": 1}, "n_shared_experts is 1"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"moe_router_backend": "noaux_tc"}, "moe_router_backend is 'noaux_tc'"),
        ({"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ({"n_group": 8}, "n_group is 8"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor is 2.5"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"layer_types": ["sliding_attention"] * 48}, "layer_types is ['sliding_attention'"),
        ({"layer_types": ["full_attention"]}, "num_hidden_layers 48"),
        ({"layer_types": 5}, "layer_types is 5"),
        ({"rope_scaling": {"rope_type": "axial"}}, "rope_scaling asks for 'axial'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters of kind 'linear' has no"),
        ({"per_layer_config": {"1": {"num_experts": 4}}}, "per_layer_config is "),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(
    change: dict[str, Any], words: str
) -> None:
    assert words in refused({**MOE, **change})


def window_of(raw: dict[str, Any]) -> int | None:
    return ModelConfig.from_hf(raw).attention[0].window


def test_a_window_is_taken_where_it_is_asked_for() -> None:
    without = {key: value for key, value in MOE.items() if key != "sliding_window"}
    assert window_of({**without, "use_sliding_window": True}) == 4096
    assert window_of({**without, "sliding_window": 128}) is None
    assert window_of({**without, "use_sliding_window": True, "sliding_window": 128}) == 128
    assert window_of({**MOE, "use_sliding_window": True, "sliding_window": None}) is None


def test_a_type_of_layers_that_is_not_built_is_named() -> None:
    raw = {**DENSE, "use_sliding_window": True, "layer_types": ["linear_attention"] * 36}
    assert "layer_types is ['linear_attention'" in refused(raw)
    types = ["full_attention", "sliding_attention"] * 18
    config = ModelConfig.from_hf({**raw, "layer_types": types, "sliding_window": 9})
    assert [each.window for each in config.attention] == [None, 9] * 18


def test_experts_in_a_dense_type_are_refused() -> None:
    assert "num_experts is 8" in refused({**DENSE, "num_experts": 8})


@pytest.mark.parametrize("key", NEUTRAL)
def test_a_neutral_value_changes_nothing(key: str) -> None:
    if key not in ("num_experts", "num_local_experts"):
        for value in NEUTRAL[key]:
            assert ModelConfig.from_hf({**MOE, key: value}) == ModelConfig.from_hf(MOE)


@pytest.mark.parametrize(
    "method",
    ["fp8", "awq", "gptq", "compressed-tensors", "bitsandbytes", "mxfp4", "modelopt", "quark"],
)
def test_the_method_of_quantized_weights_is_named(method: str) -> None:
    line = refused({**MOE, "quantization_config": {"quant_method": method, "bits": 4}})
    assert f"quantization_config asks for weights quantized by '{method}'" in line
    assert "serve the model's checkpoint in bfloat16" in line


def test_older_ways_to_say_that_weights_are_quantized() -> None:
    line = refused({**MOE, "compression_config": {"format": "pack-quantized"}})
    assert "compression_config asks for weights quantized by 'compressed-tensors'" in line
    assert "a method without a name" in refused({**MOE, "quantization_config": {"bits": 4}})
    assert "quantization_config asks for" in refused({**MOE, "quantization_config": "fp8"})
    assert ModelConfig.from_hf({**MOE, "quantization_config": {}}) == ModelConfig.from_hf(MOE)


# ---- what is not known ----


@pytest.mark.parametrize("raw", [MOE, DENSE], ids=["moe", "dense"])
def test_no_key_that_transformers_writes_is_unknown(raw: dict[str, Any]) -> None:
    kind = Qwen3MoeConfig if raw is MOE else Qwen3Config
    for config in (raw, kind(num_key_value_heads=4).to_dict()):
        assert ModelConfig.from_hf(config).unknown_keys == ()
    of_generation = GenerationConfig().to_dict().items()
    listed = {key: value for key, value in of_generation if not key.startswith("_")}
    known = ModelConfig.from_hf({**listed, **raw}).unknown_keys
    assert set(known) <= set(listed) - {"temperature", "top_p", "top_k", "do_sample"}


def test_keys_of_qwen_s_own_folders_are_known() -> None:
    extra = {
        "qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0,
        "max_window_layers": 28, "unsloth_fixed": True, "pad_token_id": 151654,
    }  # fmt: skip
    assert ModelConfig.from_hf({**MOE, **extra}) == ModelConfig.from_hf(MOE)


def test_unknown_keys_are_told() -> None:
    raw = {**MOE, "frobnicate": 3, "rope_scaling": {"type": "default", "mrope_section": [8]}}
    assert ModelConfig.from_hf(raw).unknown_keys == ("frobnicate", "rope_scaling.mrope_section")


# ---- any value of any key ----

# Null means absent here; transformers keeps some of them.
JSON = st.recursive(
    st.booleans()
    | st.integers(-2, 70)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["silu", "softmax", "default", "full_attention", "float16", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "factor"]), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = sorted({*MOE, *NEUTRAL, "num_local_experts", "rope_parameters", "layer_types", "dtype"})
SMALL = {
    **MOE, "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_any_config_is_refused_in_one_line_or_read_as_transformers_reads_it(
    changes: dict[str, Any],
) -> None:
    raw = {**SMALL, **changes}
    line = ""
    try:
        config = ModelConfig.from_hf(raw)
    except ValueError as error:
        line = str(error)
    assert "\n" not in line
    if line:
        return
    assert config.num_layers <= 1024
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(raw))
        try:
            AutoConfig.from_pretrained(folder)
        except Exception:  # it is stricter about values that nothing reads
            return
        assert_same(Path(folder))
