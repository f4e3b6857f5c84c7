"""Weights of eight bits, made up: random values under scales that differ from block to block."""

from __future__ import annotations

import math

import torch

from moe.base.quantized import Quantized
from moe.base.tiles import INT4_NAME
from moe.base.weight import Weight
from tests.moe.int4 import exact_int4

FP8 = torch.float8_e4m3fn
ROWS = (1, 0)  # a scale a row, whatever its length
_BEHIND = 64  # numbers that are none, in memory behind scales


def make_fp8(
    shape: tuple[int, ...],
    block: tuple[int, int],
    *,
    size: float,
    device: torch.device | str = "cpu",
) -> Weight:
    """Values from subnormal to the largest, the matrix itself of about ``size``."""
    bn, bk = block[0], block[1] or shape[-1]
    values = (torch.randn(shape, device=device) * 40.0).clamp(-448, 448)
    values[torch.rand(shape, device=device) < 0.1] *= 2.0**-12
    blocks = (*shape[:-2], shape[-2] // bn, shape[-1] // bk)
    scales = torch.exp(torch.randn(blocks, device=device)) * (size / 40.0 / math.exp(0.5))
    return Weight(values.to(FP8), before_nan(scales), (bn, bk))


def before_nan(numbers: torch.Tensor) -> torch.Tensor:
    """The same, in memory behind which there is no number: who reads further is found out."""
    held = numbers.new_full((numbers.numel() + _BEHIND,), torch.nan)[: numbers.numel()]
    return held.view(numbers.shape).copy_(numbers)


def exact(weight: Weight) -> torch.Tensor:
    """The matrix in fp64."""
    if weight.kind == INT4_NAME:
        return exact_int4(weight)
    if weight.scales is None or weight.block is None:
        return weight.values.double()
    scales = weight.scales.double()
    for dim, size in zip((-2, -1), weight.block, strict=True):
        scales = scales.repeat_interleave(size, dim)
    return weight.values.float().double() * scales


def check_quantized(rows: Quantized, plain: torch.Tensor) -> None:
    """Each value is the nearest that its group's scale lets it be, the largest fills the range."""
    groups = plain.double().view(*rows.scales.shape, rows.group)
    largest = groups.abs().amax(-1)
    torch.testing.assert_close(
        rows.scales.double(), (largest / 448).clamp(min=1e-23), rtol=1e-6, atol=0.0
    )
    scales = rows.scales.double()[..., None]
    error = (rows.plain().double().view(groups.shape) - groups).abs()
    # Half of the last of three bits, or half a subnormal step; a tie may fall on either side.
    assert (error <= torch.maximum(groups.abs() / 16, scales * 2.0**-10) * (1 + 1e-5)).all()


def check_product(out_MN: torch.Tensor, x_MK: torch.Tensor, w_NK: torch.Tensor) -> None:
    """Within what tensor cores lose of a sum of products of eight bits, in fp64 otherwise: 2^-13 of
    the largest of them, and the rounding of the result."""
    expected_MN = x_MK @ w_NK.T
    bound_MN = 2.0**-10 * (x_MK.abs() @ w_NK.abs().T) + 2.0**-7 * expected_MN.abs()
    if out_MN.dtype == torch.float32 and not out_MN.is_cuda:
        bound_MN = 2.0**-20 * (x_MK.abs() @ w_NK.abs().T)
    error_MN = (out_MN.double() - expected_MN).abs()
    assert (error_MN <= bound_MN).all(), float((error_MN / bound_MN).max())
