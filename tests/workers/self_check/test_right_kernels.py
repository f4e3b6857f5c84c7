"""Kernels that are right pass, of models of any kind, in any layout, and nothing of it stays."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from moe.base.tiles import MANY_ROWS
from moe.layer import SparseMoeBlock
from tests.workers.config_json.test_int4_methods import GPTQ
from tests.workers.self_check.rank import QWEN3_NEXT, TRINITY, make_rank
from workers.layers.norm import RMSNorm
from workers.models.attention import Attention
from workers.models.dense_mlp import DenseMLP
from workers.self_check.finding import TENSOR_CORE_SUMS

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted"),
]

FP16 = torch.float16
PHI: dict[str, Any] = {
    "model_type": "phimoe", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_local_experts": 4, "max_position_embeddings": 512, "attention_bias": True,
    "lm_head_bias": True,
}  # fmt: skip
LAGUNA: dict[str, Any] = {
    "model_type": "laguna", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "gating": "per-element",
}  # fmt: skip
# Whose router is of fp32.
ERNIE: dict[str, Any] = {
    "model_type": "ernie4_5_moe", "vocab_size": 97, "hidden_size": 512, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "moe_num_experts": 24, "moe_k": 2, "max_position_embeddings": 512,
    "moe_intermediate_size": 32, "moe_num_shared_experts": 1,
}  # fmt: skip
RANKS: list[dict[str, Any]] = [
    {},
    {"moe": False, "tie_word_embeddings": True, "dtype": FP16, "max_tokens": 9},
    # Few outputs of many inputs: parts, which others sum.
    {"moe": False, "dtype": FP16, "hidden_size": 512, "max_tokens": 3, "max_batch_size": 2},
    {"fp8": True, "fp8_cache": True, "dtype": FP16, "max_tokens": 12},
    {"said": {**GPTQ, "group_size": 32}, "dtype": FP16, "max_tokens": 12},
    {"config": PHI, "max_tokens": 5},
    {"config": LAGUNA, "max_tokens": 5},
    {"config": TRINITY, "dtype": FP16, "max_tokens": 5},
    {"config": ERNIE, "dtype": FP16, "max_tokens": 5},
    {"config": QWEN3_NEXT, "dtype": FP16, "max_tokens": 70},
    # A group of ranks sums before the norm; some experts are foreign, or a row is a route.
    {"tp": 2, "max_tokens": 5, "use_sliding_window": True, "sliding_window": 3},
    {"tp": 2, "backend": "disabled", "fp8": True, "max_tokens": 5},
]
# Whose attention is a single rank's.
REPLICAS: list[dict[str, Any]] = [
    {"dp": 2, "max_tokens": 3, "max_batch_size": 2},
    {"dp": 2, "backend": "all_to_all", "max_tokens": 3, "max_batch_size": 2},
    {"dp": 8, "max_tokens": 2, "max_batch_size": 1},  # more ranks than experts
]


def test_a_right_router_with_a_bias_on_softmax_scores_passes() -> None:
    findings = make_rank(router={"router": "softmax_bias"}, max_tokens=5).findings(SparseMoeBlock)
    assert all(each.is_right for each in findings)
    assert any("choices" in each.what for each in findings)


@pytest.mark.parametrize("settings", RANKS, ids=str)
def test_right_kernels_pass(settings: dict[str, Any]) -> None:
    findings = make_rank(**settings).all_findings()
    assert all(each.is_right for each in findings)
    assert len(findings) > 30


@pytest.mark.parametrize("settings", REPLICAS, ids=str)
def test_right_experts_of_replicas_pass(settings: dict[str, Any]) -> None:
    findings = make_rank(**settings).findings(SparseMoeBlock)
    assert all(each.is_right for each in findings)
    assert len(findings) > 5


def test_parts_have_the_limits_of_sums() -> None:
    rank = make_rank(moe=False, dtype=FP16, hidden_size=512, max_tokens=3, max_batch_size=2)
    assert rank.build.context is not None
    tiles = rank.build.context.tiles.linear(256, 512, 3)
    assert tiles is not None
    assert tiles.splits == 2
    limits = {each.allowed for each in rank.findings(DenseMLP) if "gate and up" in each.what}
    assert limits & {*TENSOR_CORE_SUMS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [SparseMoeBlock, DenseMLP, RMSNorm, pytest.param(Attention, marks=pytest.mark.grid)]
)
def test_right_kernels_of_eight_bits_pass(kind: type[nn.Module]) -> None:
    """Of activations too: what such steps compute is far from what others do, and told apart."""
    rank = make_rank(
        fp8=True, dtype=FP16, max_tokens=MANY_ROWS, max_batch_size=1, hidden_size=128,
        max_position_embeddings=2 * MANY_ROWS,
        moe_intermediate_size=128, intermediate_size=256, head_dim=128,
    )  # fmt: skip
    findings = rank.findings(kind)
    assert all(each.is_right for each in findings)
    many = [each for each in findings if f"{MANY_ROWS} rows" in each.what]
    assert max(each.error for each in many) > 0.02 or kind is RMSNorm
    assert any("in eight bits" in each.what for each in findings) or kind is not RMSNorm


def test_a_start_says_what_it_took_and_keeps_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rank = make_rank(max_tokens=4)
    tensors = rank.first(SparseMoeBlock).state_dict()
    before = {name: each.clone() for name, each in tensors.items()}
    with caplog.at_level(logging.INFO, "workers.self_check"):
        rank.check()
    assert "comparisons with plain torch in" in caplog.text
    assert rank.build.context is not None
    assert rank.build.context.workspace.num_bytes == 0
    assert all(torch.equal(each, before[name]) for name, each in tensors.items())


def test_a_model_s_odd_numbers_are_no_kernel_s_fault() -> None:
    """A checkpoint's zeros, NaN and infinities."""
    rank = make_rank(moe=False, max_tokens=4)
    mlp = rank.first(DenseMLP)
    with torch.inference_mode():
        values = mlp.gate_up_proj.weight.values
        values[:7] = 0.0
        values[9, 3] = torch.nan
        values[200, 2] = torch.inf
        mlp.down_proj.weight.values.zero_()
    assert not rank.first_wrong(DenseMLP)
