"""The training model is transformers' Qwen3-MoE, exported under its names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from demo.model import Shape, TrainingModel, export
from demo.train import write_checkpoint

SMALL = Shape(
    vocab_size=60,
    hidden_size=32,
    num_layers=2,
    num_kv_heads=2,
    head_dim=16,
    num_experts=6,
    experts_per_token=2,
    expert_size=8,
)


@pytest.fixture
def model() -> TrainingModel:
    torch.manual_seed(0)
    model = TrainingModel(SMALL)
    for weight in model.parameters():  # norms and embeddings that matter
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def test_logits_are_those_of_transformers(model: TrainingModel, tmp_path: Path) -> None:
    write_checkpoint(model, tmp_path, eos_id=2, pad_id=0, dtype=torch.float32)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(3, 60, (2, 24))
    positions = torch.cat((torch.arange(10), torch.arange(14))).expand(2, -1)
    with torch.no_grad():
        packed, _, _ = model(tokens, positions, torch.ones_like(tokens, dtype=torch.bool))
        alone = torch.cat([oracle(part).logits for part in tokens.split([10, 14], dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    assert packed.std() > 0.1


def test_only_routed_experts_learn(model: TrainingModel) -> None:
    moe = model.layers[0].mlp
    out, _, shares = moe(torch.randn(1, 32), torch.ones(1))
    out.sum().backward()
    moved = moe.down_proj.weight.grad.view(32, 6, 8).abs().sum(dim=(0, 2)) > 0
    assert moved.sum() == 2
    assert torch.equal(moved, shares > 0)


def test_balance_is_one_when_even_and_leaves_padding_out(model: TrainingModel) -> None:
    moe = model.layers[0].mlp
    torch.nn.init.zeros_(moe.router.weight)
    moe.router.weight.data[:, :6] = 10 * torch.eye(6) + 10 * torch.eye(6).roll(1, dims=1)
    even, padding = torch.eye(32)[:6], torch.eye(32)[:1].expand(50, -1)
    real = torch.arange(56) < 6
    _, balance, shares = moe(torch.cat((even, padding)), real.float())
    torch.testing.assert_close(shares, torch.full((6,), 1 / 6))
    torch.testing.assert_close(balance, torch.tensor(1.0))
    _, skewed, _ = moe(torch.cat((even, padding)), torch.ones(56))
    assert skewed > 1.5


def test_the_demo_fits_its_limits() -> None:
    model = TrainingModel(Shape())
    assert sum(weight.numel() for weight in model.parameters()) <= 8_000_000
    tensors = export(model, torch.bfloat16)
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 15_900_000
    assert len(tensors) == 2 + 4 * (8 + 1 + 3 * 16)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"num_experts": 2}, "experts_per_token 4 exceeds num_experts 2"),
    ],
)
def test_impossible_shapes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape(**sizes)
