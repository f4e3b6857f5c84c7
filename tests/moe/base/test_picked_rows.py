"""Rows picked from many."""

from __future__ import annotations

import pytest
import torch

from moe.base.picked_rows import pick_rows
from tests.workers.steps import interpreted


@pytest.mark.parametrize("kernels", [False, True])
def test_rows_are_copied(kernels: bool) -> None:
    rows = torch.randn(7, 5)
    index = torch.tensor([3, 0, 3, 6], dtype=torch.int32)
    picked = pick_rows(rows, index, interpreted() if kernels else None, "picked")
    assert picked.equal(rows[[3, 0, 3, 6]])
    assert picked.data_ptr() != rows.data_ptr()
