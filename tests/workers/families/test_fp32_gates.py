"""Routers of fp32 in models of bf16: a token goes where transformers sends it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter

from moe.base.context import KernelContext
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from tests.workers.families.draws import FAMILIES
from tests.workers.steps import start_rank
from workers.families import MODEL_TYPES

FP32_GATES = tuple(
    family for family in FAMILIES if (keys := MODEL_TYPES[family].moe) and keys.fp32_gate
)
# transformers makes their routers of the model's type, and leaves them as a checkpoint has them.
_FROM_CHECKPOINTS = ("minimax_m2",)
_NUM_TOKENS = 20_000


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


def saved(family: str, folder: Path) -> nn.Module:
    """transformers' model of bf16 with random routers, saved as it saves it."""
    config = FAMILIES[family](random.Random(f"{family} 0"))
    torch.manual_seed(0)
    make = getattr(transformers, MODEL_TYPES[family].architecture)
    model: nn.Module = make._from_config(config, dtype=torch.bfloat16).eval()
    for block in model.modules():
        if isinstance(gate := getattr(block, "gate", None), nn.Module):
            if family in _FROM_CHECKPOINTS:
                gate.float()
            for parameter in gate.parameters():
                if parameter.shape[-1] == config.hidden_size:
                    parameter.data.normal_(std=config.hidden_size**-0.5)
    model.save_pretrained(folder)
    return model


def chosen_by(gate: nn.Module, block: nn.Module, hidden_TH: torch.Tensor) -> torch.Tensor:
    """Sorted ids of a router of transformers."""
    is_minimax = isinstance(gate, MiniMaxM2TopKRouter)
    found: Any = gate(hidden_TH, *((block.e_score_correction_bias,) if is_minimax else ()))
    return found[2].sort(dim=1).values


def interpreted_bf16() -> KernelContext:
    tiles = TileTable(dtype="bfloat16", item_size=2, shared_bytes=100_000)
    return KernelContext(workspace=Workspace("cpu"), tiles=tiles, pdl=False, num_cores=2)


def test_these_families_have_them() -> None:
    assert set(FP32_GATES) == {
        "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe",
        "glm4_moe_lite", "hunyuan_v1_moe", "minimax_m2", "solar_open",
    }  # fmt: skip


@pytest.mark.parametrize("family", FP32_GATES)
@torch.inference_mode()
def test_routes_equal_transformers(family: str, tmp_path: Path) -> None:
    """And would not with routers of bf16."""
    theirs = saved(family, tmp_path)
    rank = start_rank(tmp_path, dtype="bfloat16")
    num_other = 0
    for layer, ours in zip(theirs.model.layers, rank.model.layers, strict=True):
        gate, router = getattr(layer.mlp, "gate", None), getattr(ours.mlp, "block", None)
        assert (gate is None) == (router is None)
        if gate is None or router is None:
            continue
        (weight,) = (each for each in gate.parameters() if each.shape == router.gate.weight.shape)
        assert weight.dtype == router.gate.weight.dtype == torch.float32
        assert torch.equal(weight, router.gate.weight)
        hidden_TH = torch.randn(_NUM_TOKENS, weight.shape[1]).bfloat16()
        expected = chosen_by(gate, layer.mlp, hidden_TH)
        assert torch.equal(router.gate(hidden_TH).ids.long().sort(dim=1).values, expected)
        router.gate.weight.copy_(weight.bfloat16())
        num_other += int((router.gate(hidden_TH).ids.long().sort(dim=1).values != expected).sum())
    assert num_other


@pytest.mark.interpreter
@torch.inference_mode()
def test_kernels_route_so_too(tmp_path: Path) -> None:
    """Rows of bf16, which only this GEMM of the model's can have where Triton interprets it."""
    theirs = saved("ernie4_5_moe", tmp_path)
    rank = start_rank(tmp_path, interpreted_bf16(), dtype="bfloat16")
    for layer, ours in zip(theirs.model.layers, rank.model.layers, strict=True):
        if hasattr(layer.mlp, "gate"):
            for num_tokens in (1, 60):
                hidden_TH = torch.randn(num_tokens, ours.mlp.block.gate.weight.shape[1]).bfloat16()
                routes = ours.mlp.block.gate(hidden_TH).ids.long().sort(dim=1).values
                assert torch.equal(routes, chosen_by(layer.mlp.gate, layer.mlp, hidden_TH))
