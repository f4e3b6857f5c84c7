"""The configs of real models have the sizes that their makers tell, and the numbers of the class of
transformers that was made for them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe.base.parallel import resolve_parallel
from workers.config_json.model_config import ModelConfig
from workers.step.roofline import Roofline

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"

# Billions of parameters in all, and those that a token passes, with or without tables of tokens,
# as their model cards round them.
SIZES = {
    "deepseek-v2-lite": (15.7, 2.4),
    "deepseek-v3": (671, 37),
    "ernie-4.5-21b-a3b": (21, 3),
    "glm-4.5-air": (106, 12),
    "glm-4.7-flash": (30, 3),
    "hunyuan-a13b": (80, 13),
    "minimax-m2": (230, 10),
    "mixtral-8x7b": (46.7, 12.9),
    "olmoe-1b-7b": (6.9, 1.3),
    "qwen1.5-moe-a2.7b": (14.3, 2.7),
    "qwen3-235b-a22b": (235, 22),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-8b": (8.2, 8.2),
    "qwen3-next-80b-a3b": (80, 3),
    "qwen3.5-35b-a3b": (35, 3),
}
# What differs from the defaults of a class that is made for the model: tokens, and these.
DIFFERENT = {
    "deepseek-v3": {"max_position_embeddings"},
    "ernie-4.5-21b-a3b": {"moe_layer_end_index"},  # -1, the last, by another name
    "glm-4.5-air": {"attention_bias"},
    "glm-4.7-flash": set(),
    "minimax-m2": set(),
}
NOT_NUMBERS = {"architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    config = ModelConfig.from_folder(CONFIGS / name)
    parallel = resolve_parallel(
        tp=1, dp=1, ep=None, backend="auto", has_experts=config.moe is not None
    )
    rank = Roofline.of_layout(config, parallel, dtype="bfloat16")
    tables = rank.head if config.tie_word_embeddings else 2 * rank.head
    experts = rank.expert * rank.moe_layers
    everything = (rank.dense + tables + experts * rank.experts_per_layer) / 1e9
    passed = (rank.dense + experts * rank.experts_per_token) / 1e9
    total, active = SIZES[name]
    assert everything == pytest.approx(total, rel=0.04)
    # Cards round, and count tables or not.
    assert passed * 0.99 < active + 0.5
    assert passed + tables / 1e9 > active - 0.5


@pytest.mark.parametrize("name", DIFFERENT)
def test_numbers_are_those_of_the_model_s_own_class(name: str) -> None:
    raw = json.loads((CONFIGS / name / "config.json").read_text())
    kind = CONFIG_MAPPING[raw["model_type"]]
    defaults: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(kind)}
    spelled = {kind.attribute_map.get(key, key): value for key, value in raw.items()}
    both = (spelled.keys() & defaults.keys()) - NOT_NUMBERS
    assert len(both) > 15
    assert {key for key in both if spelled[key] != defaults[key]} == DIFFERENT[name]
