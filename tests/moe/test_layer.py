"""The whole block on one rank against transformers, and what it asks of a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock

from moe.config import MoEConfig
from moe.experts import FusedMoeExperts
from moe.placement import ExpertPlacement
from moe.shared import SharedExperts
from tests.moe.builders import fill, make_layer, make_weights, oracle, pack

E, K, H, I = 9, 3, 32, 24

QWEN = {"num_experts": E, "num_experts_per_tok": K, "hidden_size": H, "moe_intermediate_size": I}
DEEPSEEK = {
    "n_routed_experts": E,
    "num_experts_per_tok": K,
    "hidden_size": H,
    "moe_intermediate_size": I,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
}
GROUPS = {"n_group": 3, "topk_group": 2}
# transformers' block, its configuration, and ours.
BLOCKS: list[tuple[Any, Any, dict[str, Any]]] = [
    (
        Qwen3MoeSparseMoeBlock,
        Qwen3MoeConfig(**QWEN, norm_topk_prob=True),
        {"norm_topk_prob": True},
    ),
    (
        Qwen3NextSparseMoeBlock,
        Qwen3NextConfig(**QWEN, norm_topk_prob=True, shared_expert_intermediate_size=40),
        {"norm_topk_prob": True, "shared_expert_size": 40, "shared_expert_gated": True},
    ),
    (
        DeepseekV2Moe,
        DeepseekV2Config(**DEEPSEEK, topk_method="greedy"),
        {"router": "greedy", "routed_scaling_factor": 1.5, "shared_expert_size": 2 * I},
    ),
    (
        DeepseekV2Moe,
        DeepseekV2Config(**DEEPSEEK, topk_method="group_limited_greedy", **GROUPS),
        {
            "router": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
            "shared_expert_size": 2 * I,
            **GROUPS,
        },
    ),
    (
        DeepseekV3MoE,
        DeepseekV3Config(**DEEPSEEK, norm_topk_prob=True, **GROUPS),
        {
            "router": "noaux_tc",
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "shared_expert_size": 2 * I,
            **GROUPS,
        },
    ),
]


def make_config(**changes: Any) -> MoEConfig:
    numbers: dict[str, Any] = {
        "hidden_size": H,
        "intermediate_size": I,
        "num_experts": E,
        "num_experts_per_tok": K,
    }
    return MoEConfig(**(numbers | changes))


def randomize(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        tensor.normal_(std=0.2)


@pytest.mark.parametrize("runner", ["fused", "legacy"])
@pytest.mark.parametrize("num_tokens", [1, 60])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[1].model_type)
@torch.no_grad()
def test_against_transformers(
    block: tuple[Any, Any, dict[str, Any]], num_tokens: int, runner: str
) -> None:
    theirs_class, theirs_config, ours = block
    theirs_config._experts_implementation = "eager"
    theirs = theirs_class(theirs_config)
    randomize(theirs)
    layer = make_layer(make_config(**ours), make_weights(make_config(**ours)), runner=runner)
    weights = theirs.state_dict()
    assert fill(layer.checkpoint_slices("", packed=True), weights) == set(weights)
    hidden = torch.randn(num_tokens, H)
    expected = theirs(hidden.unsqueeze(0))[0]
    out = layer(hidden, num_tokens).total(torch.float32)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[1].model_type)
def test_against_the_oracle(block: tuple[Any, Any, dict[str, Any]]) -> None:
    config = make_config(**block[2])
    weights = make_weights(config)
    hidden = torch.randn(7, H)
    out = make_layer(config, weights)(hidden, 7).total(torch.float32)
    torch.testing.assert_close(out.double(), oracle(config, weights, hidden), rtol=1e-5, atol=1e-5)


def test_no_tokens() -> None:
    config = make_config()
    layer = make_layer(config, make_weights(config))
    assert layer(torch.empty(0, H), 0).total(torch.float32).shape == (0, H)
    assert layer(torch.empty(0, H), 5).total(torch.float32).shape == (0, H)


def test_names_are_those_that_save_pretrained_writes(tmp_path: Any) -> None:
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **QWEN,
            vocab_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    model.save_pretrained(tmp_path)
    prefix = "model.layers.0.mlp."
    saved = {
        name: tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
        if name.startswith(prefix)
    }
    layer = make_layer(make_config(), make_weights(make_config()))
    assert fill(layer.checkpoint_slices(prefix), saved) == set(saved)
    theirs = model.model.layers[0].mlp.experts
    assert torch.equal(layer.experts.w13.values, theirs.gate_up_proj)
    assert torch.equal(layer.experts.w2.values, theirs.down_proj)


def make_experts(config: MoEConfig, rank: int, ranks: int, slices: int) -> FusedMoeExperts:
    """The experts of one rank of `ranks`, or one slice of `slices`."""
    placement = ExpertPlacement(
        num_experts=config.num_experts, num_ranks=ranks, rank=rank if ranks > 1 else 0
    )
    return FusedMoeExperts(
        config,
        placement,
        runner="fused",
        slice_rank=rank if slices > 1 else 0,
        num_slices=slices,
        dtype=torch.float32,
        device="cpu",
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("ranks", "slices"), [(1, 1), (4, 1), (11, 1), (1, 2), (1, 3)])
def test_ranks_read_every_element_once(packed: bool, ranks: int, slices: int) -> None:
    config = make_config()
    weights = make_weights(config)
    weights = pack(weights, config) if packed else weights
    routed = {name: w for name, w in weights.items() if name.startswith("experts.")}
    reads: dict[str, torch.Tensor] = {name: torch.zeros(w.shape) for name, w in routed.items()}
    whole = make_experts(config, 0, 1, 1)
    fill(whole.checkpoint_slices("", packed), routed)
    parts = defaultdict(list)
    for rank in range(max(ranks, slices)):
        experts = make_experts(config, rank, ranks, slices)
        pieces = list(experts.checkpoint_slices("", packed))
        assert fill(pieces, routed) == set(routed)
        for piece in pieces:
            if piece.index is not None:
                reads[piece.name][piece.index] += 1
        parts["gate"].append(experts.w13.values[:, : experts.width])
        parts["up"].append(experts.w13.values[:, experts.width :])
        parts["down"].append(experts.w2.values)
    assert all(count.eq(1).all() for count in reads.values())
    dim = {"gate": 1, "up": 1, "down": 2} if slices > 1 else defaultdict(int)
    gate, up, down = (torch.cat(parts[name], dim[name]) for name in ("gate", "up", "down"))
    assert torch.equal(torch.cat((gate, up), 1), whole.w13.values)
    assert torch.equal(down, whole.w2.values)


@pytest.mark.parametrize("gated", [False, True])
def test_slices_of_shared_experts_add_up(gated: bool) -> None:
    config = make_config(shared_expert_size=24, shared_expert_gated=gated)
    weights = make_weights(config)
    shared = {name: w for name, w in weights.items() if name.startswith("shared")}

    def run(rank: int, num_slices: int) -> torch.Tensor:
        part = SharedExperts(
            config, slice_rank=rank, num_slices=num_slices, dtype=torch.float32, device="cpu"
        )
        assert fill(part.checkpoint_slices(""), shared) == set(shared)
        return part(hidden).total(torch.float32)

    hidden = torch.randn(5, H)
    added = sum(run(rank, 3) for rank in range(3))
    torch.testing.assert_close(added, run(0, 1), rtol=1e-5, atol=1e-5)
