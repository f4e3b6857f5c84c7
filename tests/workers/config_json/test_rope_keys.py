"""Rotary embeddings of config.json, read as transformers' config classes read them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    Glm4MoeConfig,
    HunYuanMoEV1Config,
    LagunaConfig,
    MellumConfig,
    MixtralConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.refusals import refusal
from workers.config_json.rope_keys import RopeDefaults, read_rope, unknown_rope_keys
from workers.layers.rope_frequencies import amplitude, frequencies
from workers.layers.rope_spec import AlphaScaling, RopeSpec, YarnScaling

CPU = torch.device("cpu")
KINDS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
D, POSITIONS = 64, 8192
HALF = RopeDefaults(partial=0.5)


def made_up(kind: str, rng: random.Random, dim: int) -> dict[str, Any]:
    """The keys of a kind, those that may be absent now and then."""
    factor = rng.choice([1.0, 2, 4.0, rng.uniform(1, 40)])
    original = {"original_max_position_embeddings": rng.randint(64, POSITIONS - 1)}
    if kind == "default":
        return {}
    if kind in ("linear", "dynamic"):
        return {"factor": factor}
    if kind == "llama3":
        turns = {"low_freq_factor": rng.uniform(0.5, 2), "high_freq_factor": rng.uniform(2.5, 9)}
        return {"factor": factor, **turns, **original}
    some = {"attention_factor": rng.uniform(0.5, 2)}
    if kind == "yarn":
        some |= {"truncate": rng.random() < 0.5, "beta_fast": rng.uniform(16, 64)}
        some |= {"beta_slow": rng.choice([1, 2.5]), **original}
        some = {key: value for key, value in some.items() if rng.random() < 0.6}
        mscales = {"mscale": rng.uniform(0.5, 1.5), "mscale_all_dim": rng.choice([0, 1.0, 0.7])}
        return {"factor": factor, **some, **(mscales if rng.random() < 0.5 else {})}
    some["factor"] = factor
    some = {key: value for key, value in some.items() if rng.random() < 0.5}
    lists = {
        key: [rng.uniform(1, 60) for _ in range(dim // 2)]
        for key in ("short_factor", "long_factor")
    }
    return {**lists, **some, **original}


def assert_as_transformers(
    ours: RopeSpec, config: Any, length: int, layer_type: str | None = None
) -> None:
    """The frequencies of sequences up to a length, and what cosines are multiplied by."""
    theirs = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    assert ours.theta == theirs["rope_theta"]
    if (kind := theirs["rope_type"]) == "default":
        kind, theirs["factor"] = "linear", 1.0  # which asks for the same, and honors a part
    expected, length_of_cosines = ROPE_INIT_FUNCTIONS[kind](
        config, CPU, seq_len=length, layer_type=layer_type
    )
    torch.testing.assert_close(frequencies(ours, length, CPU), expected, rtol=1e-6, atol=0)
    assert amplitude(ours, length) == pytest.approx(length_of_cosines, rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_both_spellings(kind: str, seed: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    part = rng.choice([0.5, 0.25, 1.0])
    said = made_up(kind, rng, int(D * part)) | {rng.choice(["type", "rope_type"]): kind}
    theta = rng.choice([1e4, 1e6, 12345])
    raw: dict[str, Any] = {"max_position_embeddings": POSITIONS, "head_dim": D}
    if rng.random() < 0.5:
        raw |= {"rope_scaling": said, "rope_theta": theta, "partial_rotary_factor": part}
    else:
        raw["rope_parameters"] = {**said, "rope_theta": theta, "partial_rotary_factor": part}
    ours = read_rope(raw, head_dim=D, max_positions=POSITIONS, defaults=HALF)
    assert ours.dim == D * part
    assert unknown_rope_keys(raw, HALF) == []
    for length in (32, POSITIONS):
        assert_as_transformers(ours, Glm4MoeConfig(**_copy(raw)), length)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [LagunaConfig, MellumConfig])
def test_one_for_each_type_of_layers(kind: type[Any], seed: int) -> None:
    rng = random.Random(seed)
    types = ["full_attention", "sliding_attention"]
    said = {}
    for layer_type in types:
        part = rng.choice([0.5, 1.0])
        scaling = rng.choice(["default", "yarn", "linear", "llama3"])
        keys = made_up(scaling, rng, int(D * part)) | {"rope_type": scaling}
        keys.pop("truncate", None)  # which transformers looks for outside
        if scaling == "yarn":
            keys.setdefault("original_max_position_embeddings", 2048)
        said[layer_type] = {**keys, "rope_theta": 1e4 + seed, "partial_rotary_factor": part}
    raw = {"max_position_embeddings": POSITIONS, "head_dim": D, "rope_parameters": said}
    raw |= {"layer_types": types, "num_hidden_layers": 2}
    for layer_type in types:
        ours = read_rope(
            raw, head_dim=D, max_positions=POSITIONS, defaults=HALF, layer_type=layer_type
        )
        assert_as_transformers(ours, kind(**_copy(raw)), POSITIONS, layer_type)
    assert unknown_rope_keys(raw, HALF) == []
    raw["rope_parameters"] = {"full_attention": {**said["full_attention"], "x": 1}, "y": 2}
    assert unknown_rope_keys(raw, HALF) == ["rope_parameters.y", "rope_parameters.full_attention.x"]


def test_deepseek_s_yarn() -> None:
    """As DeepSeek-V3's config.json has it; its scores' scale needs one of the mscales too."""
    said = {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    }  # fmt: skip
    raw = {"rope_scaling": said, "rope_theta": 10000, "max_position_embeddings": 163840}
    ours = read_rope(raw, head_dim=64, max_positions=163840, defaults=RopeDefaults())
    assert isinstance(ours.scaling, YarnScaling)
    assert ours.scaling.mscale_all_dim == ours.scaling.amplitude == 1.0
    assert_as_transformers(ours, DeepseekV3Config(**_copy(raw)), 163840)


def test_hunyuan_s_alpha() -> None:
    said = {
        "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "type": "dynamic",
    }  # fmt: skip
    raw = {"rope_scaling": said, "rope_theta": 10000.0, "max_position_embeddings": 32768}
    ours = read_rope(raw, head_dim=128, max_positions=32768, defaults=RopeDefaults())
    assert ours.scaling == AlphaScaling(alpha=1000.0)
    assert unknown_rope_keys(raw, RopeDefaults()) == []
    config = HunYuanMoEV1Config(head_dim=128, **_copy(raw))
    from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import (
        HunYuanMoEV1RotaryEmbedding,
    )

    expected = HunYuanMoEV1RotaryEmbedding(config).inv_freq
    torch.testing.assert_close(frequencies(ours, 32768, CPU), expected, rtol=1e-6, atol=0)


def test_what_stands_beside_the_object_and_what_is_absent() -> None:
    raw: dict[str, Any] = {
        "rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 4096,
    }  # fmt: skip
    for beside in ({}, {"original_max_position_embeddings": 1024}):
        raw |= beside
        ours = read_rope(raw, head_dim=128, max_positions=4096, defaults=RopeDefaults(theta=1e6))
        assert_as_transformers(ours, MixtralConfig(head_dim=128, **_copy(raw)), 4096)
    ratio = {**raw, "rope_scaling": {"type": "yarn", "factor": None}}
    ours = read_rope(ratio, head_dim=128, max_positions=4096, defaults=RopeDefaults(theta=1e6))
    assert isinstance(ours.scaling, YarnScaling)
    assert ours.scaling.factor == 4.0


def test_sections_of_images_do_not_matter_to_text() -> None:
    said = {"mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_type": "default"}
    raw = {"rope_scaling": said, "rope_theta": 5e6}
    of_text = RopeDefaults(ignored=frozenset({"mrope_section", "mrope_interleaved"}))
    assert unknown_rope_keys(raw, of_text) == []
    assert read_rope(raw, head_dim=128, max_positions=9, defaults=of_text).scaling is None
    assert unknown_rope_keys(raw, RopeDefaults()) == [
        "rope_scaling.mrope_section", "rope_scaling.mrope_interleaved",
    ]  # fmt: skip


def long(**change: Any) -> dict[str, Any]:
    return {"type": "longrope", "short_factor": [1] * 16, "long_factor": [2.0] * 16, **change}


LLAMA3 = {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"type": "yarn"}, "rope_scaling of kind 'yarn' has no factor"),
        (
            {"type": "linear", "factor": 0.5},
            "rope_scaling.factor is 0.5; it must be a number from 1",
        ),
        ({"type": "dynamic", "factor": "2"}, "rope_scaling.factor is '2'"),
        ({"type": "dynamic", "alpha": True}, "rope_scaling.alpha is True"),
        ({"type": "dynamic", "alpha": 0.5}, "rope_scaling.alpha is 0.5"),
        ({"type": "linear", "factor": float("nan")}, "rope_scaling.factor is nan"),
        ({"type": "yarn", "factor": 10**400}, "rope_scaling.factor is 1000"),
        ({"type": "yarn", "factor": 2, "truncate": 1}, "truncate is 1; it must be true or false"),
        ({"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}, "beta_fast 1 must not be"),
        ({"type": "yarn", "factor": 2, "rope_theta": 1}, "rope_theta is 1; with"),
        ({"type": "yarn", "factor": 2, "attention_factor": -1}, "attention_factor is -1"),
        (
            {"type": "yarn", "factor": 2, "original_max_position_embeddings": 4.0},
            "original_max_position_embeddings is 4.0; it must be a whole number from 2",
        ),
        ({**LLAMA3, "high_freq_factor": 1}, "high_freq_factor 1 must be above low_freq_factor 1"),
        ({**LLAMA3, "low_freq_factor": None}, "kind 'llama3' has no low_freq_factor"),
        (long(short_factor=[1] * 15), "must be a list of 16 numbers, one for two of the 32"),
        (long(long_factor=7), "rope_scaling.long_factor is 7"),
        (long(long_factor=[0] * 16), "rope_scaling.long_factor is 0"),
        ({"type": "alpha", "alpha": 2}, "rope_scaling asks for 'alpha'; rotary embeddings built:"),
        ({"type": "mrope"}, "built: default, dynamic, linear, llama3, longrope, yarn"),
        ({"type": ["yarn"]}, "rope_scaling asks for ['yarn']"),
        ({"partial_rotary_factor": 0.3}, "turns 19 dimensions; rotary embedding needs pairs"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ({"full_attention": {}}, "has one for all: say it without full_attention"),
    ],
)
def test_what_is_wrong_is_named_in_a_line(said: dict[str, Any], words: str) -> None:
    line = refusal(
        lambda: read_rope(
            {"rope_scaling": said, "model_type": "x"}, head_dim=64, max_positions=64, defaults=HALF
        )
    )
    assert words in line


def test_a_type_of_layers_without_its_own() -> None:
    raw = {"rope_parameters": {"full_attention": {"rope_theta": 5.0}, "sliding_attention": None}}

    def read(layer_type: str) -> RopeSpec:
        return read_rope(raw, head_dim=8, max_positions=9, defaults=HALF, layer_type=layer_type)

    assert read("full_attention") == RopeSpec(dim=4, theta=5.0)
    assert "rope_parameters.sliding_attention is None" in refusal(lambda: read("sliding_attention"))


def test_yarn_reaches_further_than_max_position_embeddings() -> None:
    """As Qwen3's folders say it: 40960 positions, of which 32768 are scaled by 4."""
    original = {"original_max_position_embeddings": 32768}
    raw = {"rope_scaling": {"type": "yarn", "factor": 4.0, **original}}
    spec = read_rope(raw, head_dim=128, max_positions=40960, defaults=RopeDefaults())
    spec.check_length(131072, 40960)
    line = refusal(lambda: spec.check_length(131073, 40960))
    assert "131072 positions, YaRN's factor 4 times original_max_position_embeddings 32768" in line
    line = refusal(lambda: spec.check_length(200001, 200000))
    assert "--max-model-len 200001 is above the model's max_position_embeddings 200000" in line


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
def test_others_reach_max_position_embeddings(kind: str) -> None:
    raw = {"rope_scaling": {"type": kind, "factor": 4.0}}
    spec = read_rope(raw, head_dim=128, max_positions=4096, defaults=RopeDefaults())
    spec.check_length(4096, 4096)
    line = refusal(lambda: spec.check_length(4097, 4096))
    assert "above the model's max_position_embeddings 4096" in line
    assert ("dynamic scaling changes with each sequence" in line) == (kind == "dynamic")


def _copy(raw: dict[str, Any]) -> dict[str, Any]:
    """For transformers, which writes into what it is given."""
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in raw.items()}
