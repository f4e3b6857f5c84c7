"""A model type made of known parts: an entry in each table and one class, against transformers.

Its decoder is Qwen3's and its mixtures are DeepSeek-V3's, which is GLM-4.5's architecture with a
full rotary embedding: groups, correction bias, scaling, shared experts, a dense first layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

from tests.workers.models.test_parity import relative_error
from tests.workers.steps import decode_step, interpreted, prefill_step, start_rank, step_logits
from workers.model_config import ModelConfig
from workers.model_types import COMMON_DEFAULTS, MODEL_TYPES, ModelType, MoEKeys
from workers.models import MODELS
from workers.models.base import MLP, Placement
from workers.models.qwen3 import Qwen3ForCausalLM, Qwen3MLP
from workers.models.sparse_mlp import SparseMLP, make_expert_load

KNOWN_PARTS = ModelType(
    architecture="TestMoeForCausalLM",
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


class TestMoeForCausalLM(Qwen3ForCausalLM):
    """What a file in workers/models/ would hold."""

    __test__ = False

    def __init__(self, config: ModelConfig, place: Placement) -> None:
        load = make_expert_load(config, place)

        def make_mlp(layer: int) -> MLP:
            if config.moe is None or load is None or not config.moe_layers[layer]:
                return Qwen3MLP(config, place)
            return SparseMLP(config.moe, place, load.ids_LP[sum(config.moe_layers[:layer])])

        super().__init__(config, place, make_mlp, load)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_TYPES, "testdense_moe", KNOWN_PARTS)
    monkeypatch.setitem(MODELS, "TestMoeForCausalLM", TestMoeForCausalLM)
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


def save_known_parts(folder: Path) -> Glm4MoeForCausalLM:
    """transformers' model of random weights and biases, saved as a testdense_moe; in fp32."""
    config = Glm4MoeConfig(
        vocab_size=97,
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
    path.write_text(json.dumps({**raw, "model_type": "testdense_moe"}))
    return model


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_it_computes_what_transformers_computes(kernels: bool, tmp_path: Path) -> None:
    """A prompt in chunks, then a decode, in plain torch and by interpreted kernels."""
    oracle = save_known_parts(tmp_path)
    rank = start_rank(tmp_path, interpreted() if kernels else None, block_size=4)
    assert rank.model_config.moe_layers == (False, True, True)
    tokens = torch.randint(97, (11,), generator=torch.manual_seed(5)).tolist()
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
    with pytest.raises(ValueError, match="n_group is '4'; it must be int"):
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
    gated = ModelType(architecture="TestMoeForCausalLM", defaults=defaults, moe=moe)
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
