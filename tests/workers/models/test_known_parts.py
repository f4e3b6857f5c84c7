"""A model type made of known parts (tests/workers/known_parts.py) against transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.known_parts import KNOWN_PARTS, VOCAB, register, save_known_parts
from tests.workers.steps import (
    decode_step,
    interpreted,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)
from workers.config_json.model_config import ModelConfig
from workers.config_json.model_types import MoEKeys
from workers.families import MODEL_TYPES


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_it_computes_what_transformers_computes(kernels: bool, tmp_path: Path) -> None:
    """A prompt in chunks, then a decode, in plain torch and by interpreted kernels."""
    oracle = save_known_parts(tmp_path)
    rank = start_rank(tmp_path, interpreted() if kernels else None, block_size=4)
    assert rank.model_config.moe_layers == (False, True, True)
    tokens = torch.randint(VOCAB, (11,), generator=torch.manual_seed(5)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    steps = [
        prefill_step(0, 2, tokens[:3], [7, 3, 5], draw=False),
        prefill_step(1, 2, tokens[3:10], [], position=3, draw=False),
    ]
    logits = [step_logits(rank, step).clone() for step in steps]
    rank.runner.builder.last_token[2] = tokens[10]
    logits.append(step_logits(rank, decode_step(2, [2], [10], [[]])))
    assert relative_error(torch.cat(logits), expected) <= 1e-4
    handle = rank.runner.launch(prefill_step(3, 4, tokens, [9, 8, 10]))
    assert handle.result().token_ids == [int(expected[-1].argmax())]
    # Two sparse layers, three experts a token; each layer hit some, and not more than it has.
    assert rank.model.expert_load is not None
    assert rank.model.expert_load.load_LE.sum(1).tolist() == [3 * 11] * 2
    assert all(3 <= hits <= 8 for hits in handle.results[handle.hits_at :].tolist())


def test_its_roofline_counts_every_matrix(tmp_path: Path) -> None:
    oracle = save_known_parts(tmp_path)
    roofline = start_rank(tmp_path).runner.measure.roofline
    sizes = {"experts": 0, "dense": 0}
    for name, parameter in oracle.named_parameters():
        if not ("norm" in name or "embed_tokens" in name or "lm_head" in name):
            sizes["experts" if ".experts." in name else "dense"] += parameter.numel()
    assert roofline.dense == sizes["dense"]
    assert roofline.expert * 8 * roofline.moe_layers == sizes["experts"]


def raw_config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "testdense_moe", **changes}


def test_its_numbers_reach_the_experts() -> None:
    moe = ModelConfig.from_hf(
        raw_config(n_shared_experts=3, n_group=4, topk_group=2, routed_scaling_factor=2.5)
    ).moe
    assert moe is not None
    assert (moe.router, moe.n_group, moe.topk_group) == ("noaux_tc", 4, 2)
    assert (moe.shared_expert_size, moe.shared_expert_gated) == (3 * 32, False)
    assert moe.routed_scaling_factor == 2.5
    assert moe.norm_topk_prob
    assert moe.has_correction_bias


def test_absent_keys_take_its_defaults_and_wrong_types_are_named() -> None:
    config = ModelConfig.from_hf(raw_config(n_shared_experts=None))
    assert config.moe is not None
    assert config.moe.shared_expert_size == 32
    assert ModelConfig.from_hf(raw_config(n_routed_experts=0)).moe is None
    assert ModelConfig.from_hf(raw_config(num_local_experts=4)).moe.num_experts == 4
    with pytest.raises(ValueError, match="n_group is '4'; it must be a whole number"):
        ModelConfig.from_hf(raw_config(n_group="4"))
    with pytest.raises(ValueError, match="n_group=3 must divide"):
        ModelConfig.from_hf(raw_config(n_group=3))


def test_shared_experts_of_one_width_behind_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Qwen3-Next's config.json has them, beside a sigmoid router with a bias."""
    moe = MoEKeys(
        num_experts=("n_routed_experts",),
        shared_size="shared_expert_intermediate_size",
        shared_gated=True,
        correction_bias=True,
    )
    defaults = {**KNOWN_PARTS.defaults, "shared_expert_intermediate_size": 20}
    del defaults["topk_method"]
    defaults["scoring_func"] = "sigmoid"
    gated = dataclasses.replace(KNOWN_PARTS, defaults=defaults, moe=moe)
    monkeypatch.setitem(MODEL_TYPES, "testdense_moe", gated)
    config = ModelConfig.from_hf(raw_config())
    assert config.moe is not None
    assert (config.moe.shared_expert_size, config.moe.shared_expert_gated) == (20, True)
    assert config.moe.router == "sigmoid"
    assert config.moe.has_correction_bias
    assert config.moe_layers == (True, True)
    none = ModelConfig.from_hf(raw_config(shared_expert_intermediate_size=0)).moe
    assert none is not None
    assert not none.shared_expert_gated
