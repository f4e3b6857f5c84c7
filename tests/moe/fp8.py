"""Weights of eight bits, made up: random values under scales that differ from block to block."""

from __future__ import annotations

import math

import torch

from moe.base.weight import Weight

FP8 = torch.float8_e4m3fn
ROWS = (1, 0)  # a scale a row, whatever its length


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
    return Weight(values.to(FP8), scales, (bn, bk))


def exact(weight: Weight) -> torch.Tensor:
    """The matrix in fp64."""
    if weight.scales is None or weight.block is None:
        return weight.values.double()
    scales = weight.scales.double()
    for dim, size in zip((-2, -1), weight.block, strict=True):
        scales = scales.repeat_interleave(size, dim)
    return weight.values.float().double() * scales
