"""Rows picked from many."""

from __future__ import annotations

import pytest
import torch

from moe.base.picked_rows import pick_rows
from moe.base.quantize import FP8
from moe.base.quantized import take_quantized
from moe.base.workspace import Workspace
from tests.workers.steps import interpreted

INDEX = torch.tensor([3, 0, 3, 6], dtype=torch.int32)


@pytest.mark.parametrize("kernels", [False, True])
def test_rows_are_copied(kernels: bool) -> None:
    rows = torch.randn(7, 5)
    picked = pick_rows(rows, INDEX, interpreted() if kernels else None, "picked")
    assert picked.equal(rows[[3, 0, 3, 6]])
    assert picked.data_ptr() != rows.data_ptr()


@pytest.mark.parametrize("group", [32, 128])
def test_so_are_rows_of_eight_bits_and_their_scales(group: int) -> None:
    rows = take_quantized(Workspace("cpu"), "rows", (7, 256), group)
    rows.values.copy_(torch.randn(7, 256).to(FP8))
    rows.scales.uniform_()
    picked = pick_rows(rows, INDEX, interpreted(), "picked")
    assert picked.group == group
    assert picked.plain().equal(rows.plain()[[3, 0, 3, 6]])
