"""The head's bias: over ranks, and by kernels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tests.moe.builders import interpreted
from workers.distributed import SINGLE
from workers.layers.embedding import Embedding, LMHead

CPU = torch.device("cpu")
V, H = 11, 16


def make_heads(tp: int, *, tied: bool, kernels: bool) -> list[LMHead]:
    """One a rank, each filled with its part of one checkpoint."""
    torch.manual_seed(0)
    tensors = {"lm_head.weight": torch.randn(V, H), "lm_head.bias": torch.randn(V)}
    table = Embedding(V, H, torch.float32, CPU)
    table.weight.data.copy_(tensors["lm_head.weight"])
    heads = []
    for rank in range(tp):
        groups = dataclasses.replace(SINGLE, tp_rank=rank, tp_size=tp)
        context = interpreted(torch.float32) if kernels else None
        head = LMHead(
            V, H, table if tied else None, groups, torch.float32, CPU, context, has_bias=True
        )
        slices = list(head.checkpoint_slices("lm_head."))
        assert {each.name for each in slices} == ({"lm_head.bias"} if tied else {*tensors})
        for each in slices:
            assert each.index is not None
            each.fill(tensors[each.name][each.index])
        heads.append(head)
    return heads


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_one_rank(tied: bool, kernels: bool) -> None:
    (head,) = make_heads(1, tied=tied, kernels=kernels)
    hidden_DH = torch.randn(3, H)
    torch.testing.assert_close(head(hidden_DH), F.linear(hidden_DH, head.weight, head.bias))
    assert head(hidden_DH[:0]).shape == (0, V)


def test_ranks_hold_the_bias_of_their_rows() -> None:
    (whole,) = make_heads(1, tied=False, kernels=False)
    parts = make_heads(2, tied=False, kernels=False)
    for name in ("weight", "bias"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))
