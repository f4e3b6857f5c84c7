"""Absent keys mean what transformers' config class of each family takes, and its keys are known."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.workers.families.draws import FAMILIES
from workers.attention.spec import AttentionSpec
from workers.config_json.model_config import ModelConfig
from workers.families import MODEL_TYPES
from workers.linear_attention.spec import DeltaSpec

# Where the class has no such key, its formula is always the same.
OF_FORMULAS = {
    "topk_method",
    "scoring_func",
    "moe_router_backend",
    "norm_topk_prob",
    "first_k_dense_replace",
}
# Of the Hub's config.json, which the class does not read.
OF_THE_HUB = {
    "attn_type_list",
    "full_attention_interval",
    "gating_types",
    "intermediate_size",
    "moe_intermediate_size",
    "num_shared_expert",
}
# The class says none, with which its model cannot be built.
NOT_SAID = {("dots1", "num_experts_per_tok"), ("deepseek_v2", "num_experts_per_tok")}


def class_of(family: str) -> Any:
    """transformers' config class of the text model."""
    config = CONFIG_MAPPING[family]()
    return type(config.get_text_config())


def defaults_of(kind: Any) -> dict[str, Any]:
    """Its fields by all their spellings."""
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    spellings = kind.attribute_map.items()
    other = {ours: fields[theirs] for ours, theirs in spellings if theirs in fields}
    back = {theirs: fields[ours] for ours, theirs in spellings if ours in fields}
    return other | back | fields


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_class(family: str) -> None:
    """Of two that mean none, either."""
    theirs = defaults_of(class_of(family))
    theirs["tie_word_embeddings"] = CONFIG_MAPPING[family]().tie_word_embeddings
    for key, value in MODEL_TYPES[family].defaults.items():
        of_formula = key in OF_FORMULAS | OF_THE_HUB and key not in theirs
        if not of_formula and (family, key) not in NOT_SAID:
            assert (value or None) == (theirs[key] or None), key


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_of_positions_and_windows_are_those_of_the_class(family: str) -> None:
    """Of a rotary embedding, an embedding for each type of layers, and which layers have one."""
    theirs = class_of(family)()
    config = ModelConfig.from_hf({"model_type": family, "head_dim": 128})
    ropes: dict[str, Any] = theirs.rope_parameters
    types = getattr(theirs, "layer_types", None) or ["full_attention"] * config.num_layers
    for spec, kind in zip(config.attention, types, strict=True):
        assert isinstance(spec, DeltaSpec) == (kind == "linear_attention")
        if isinstance(spec, DeltaSpec):
            continue
        rope = ropes.get(kind, ropes)
        if spec.rope is None:
            assert family in ("afmoe", "exaone_moe")
            assert kind == "full_attention"
            continue
        assert spec.rope.theta == rope["rope_theta"]
        assert (spec.rope.scaling is None) == (rope["rope_type"] == "default")
        share = rope.get("partial_rotary_factor", 1.0)
        head_dim = getattr(spec, "head_dim", None)
        assert head_dim is None or spec.rope.dim == share * head_dim
    windows = [getattr(spec, "window", None) is not None for spec in config.attention]
    if hasattr(theirs, "layer_types"):
        assert windows == [kind == "sliding_attention" for kind in types]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_that_transformers_saves_is_unknown(family: str, tmp_path: Path) -> None:
    for seed in range(8):
        config = FAMILIES[family](random.Random(f"{family} {seed}"))
        config.save_pretrained(tmp_path)
        raw = json.loads((tmp_path / "config.json").read_text())
        assert ModelConfig.from_hf(raw).unknown_keys == ()
        whole = {**config.to_dict(), "dtype": "float32"}
        assert ModelConfig.from_hf(whole).unknown_keys == ()


def test_phi_as_on_the_hub() -> None:
    """Its rotary embedding's spelling, biases, and a window that is the whole context."""
    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    scaling = {"type": "longrope", "short_mscale": 1.25, "long_mscale": 1.25, **factors}
    config = ModelConfig.from_hf(
        {
            "model_type": "phimoe",
            "attention_bias": True,
            "lm_head_bias": True,
            "input_jitter_noise": 0.01,
            "original_max_position_embeddings": 4096,
            "rope_scaling": scaling | {"original_max_position_embeddings": 4096},
            "rope_theta": 10000.0,
            "sliding_window": 131072,
        }
    )
    assert config.unknown_keys == ()
    assert (config.norm, config.lm_head_bias) == ("layer", True)
    spec = config.attention[0]
    assert isinstance(spec, AttentionSpec)
    assert (spec.qkv_bias, spec.o_bias) == (True, True)
    assert config.moe is not None
    assert (config.moe.router, config.moe.router_jitter_noise) == ("sparsemixer", 0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_types_of_layers_that_are_not_said_are_those_of_the_class(family: str) -> None:
    """transformers always saves them; folders on the Hub may not have them."""
    for seed in range(8):
        raw = FAMILIES[family](random.Random(f"{family} {seed}")).to_dict()
        raw = {key: value for key, value in raw.items() if not key.endswith("layer_types")}
        theirs = CONFIG_MAPPING[family].from_dict(dict(raw))
        ours = ModelConfig.from_hf(raw)
        if hasattr(theirs, "mlp_layer_types"):
            assert ours.moe_layers == tuple(each == "sparse" for each in theirs.mlp_layer_types)
        if hasattr(theirs, "layer_types"):
            windows = [getattr(spec, "window", None) is not None for spec in ours.attention]
            assert windows == [each == "sliding_attention" for each in theirs.layer_types]


def test_types_of_layers_have_the_class_s_embeddings() -> None:
    types = ["sliding_attention", "full_attention"]
    raw = {"model_type": "mellum", "num_hidden_layers": 2, "layer_types": types}
    ropes = CONFIG_MAPPING["mellum"](num_hidden_layers=2, layer_types=types).rope_parameters
    for spec, kind in zip(ModelConfig.from_hf(raw).attention, types, strict=True):
        assert spec.rope is not None
        assert spec.rope.theta == ropes[kind]["rope_theta"]
