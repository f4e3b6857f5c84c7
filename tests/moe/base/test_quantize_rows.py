"""Rows in eight bits against their own values, group by group."""

from __future__ import annotations

import pytest
import torch

from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.workspace import Workspace
from tests.moe.fp8 import check_quantized

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def quantized(x_TK: torch.Tensor, group: int) -> Quantized:
    shape = (x_TK.shape[0], x_TK.shape[1])
    out = take_quantized(Workspace(x_TK.device), "rows", shape, group)
    quantize_rows(x_TK, out=out, pdl=False)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("T", "K", "group"), [(1, 128, 128), (3, 384, 128), (5, 192, 64), (2, 4224, 128)]
)
def test_rows(T: int, K: int, group: int, dtype: torch.dtype) -> None:
    """Of widths that a program's block divides and that it does not, sizes far apart."""
    x_TK = torch.randn(T, K, device=DEVICE) * torch.exp(3 * torch.randn(T, K // 64, device=DEVICE))\
        .repeat_interleave(64, 1)  # fmt: skip
    check_quantized(quantized(x_TK.to(dtype), group), x_TK.to(dtype))


def test_zeros_and_what_is_not_finite() -> None:
    """Zeros stay; a group with a NaN or an infinity shows it, others do not."""
    x_TK = torch.randn(2, 512, device=DEVICE)
    x_TK[0, :128] = 0.0
    x_TK[0, 130], x_TK[1, 5] = torch.nan, torch.inf
    plain_TK = quantized(x_TK, 128).plain()
    assert not plain_TK[0, :128].any()
    bad_TG = plain_TK.isfinite().logical_not().view(2, 4, 128).any(-1)
    assert bad_TG.tolist() == [[False, True, False, False], [True, False, False, False]]


def test_no_rows() -> None:
    assert quantized(torch.empty(0, 128, device=DEVICE), 128).plain().shape == (0, 128)


def test_memory_of_one_name() -> None:
    """Smaller groups and rows of 16 bits find room where the same rows of eight bits had it."""
    workspace = Workspace("cpu")
    workspace.take("rows", (7, 384), torch.float16)
    workspace.freeze()
    for group in (16, 128):
        rows = take_quantized(workspace, "rows", (7, 384), group)
        end = rows.scales.data_ptr() + 4 * rows.scales.numel()
        assert rows.scales.data_ptr() >= rows.values.data_ptr() + rows.values.numel()
        assert end <= rows.values.data_ptr() + 2 * rows.values.numel()


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 512, 8192])
@pytest.mark.parametrize("K", [768, 2048, 4096, 12288])
def test_real_shapes(T: int, K: int) -> None:
    x_TK = torch.randn(T, K, device="cuda").to(torch.bfloat16)
    check_quantized(quantized(x_TK, 128), x_TK)
