"""y = x Wᵀ for many rows x, both of eight bits.

Owns the kernel and its launch. `gemm` knows which GEMMs take it. M rows, N outputs, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from moe.base.launch import launch_options, wait_for_previous
from moe.base.promoted_dot import add_promoted_dot, dot_columns, fits, step_depth
from moe.base.quantized import Quantized
from moe.base.scaled_dot import block_scale, scale_options, scale_rows
from moe.base.tile_order import tile_and_columns
from moe.base.tiles import Tiles
from moe.base.weight import Weight

_BAND = 8  # tiles of rows that go through all columns together, so that L2 holds what they share


@triton.jit
def _store_columns(
    total, scales_ptr, out_ptr, rows_M, row, M, N: tl.constexpr,
    SCALES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    columns_N = row + tl.arange(0, HALF)
    is_column_N = columns_N < N
    total = scale_rows(total, scales_ptr, 0, columns_N, is_column_N, N, SCALES, False)
    tl.store(
        out_ptr + rows_M.to(tl.int64)[:, None] * N + columns_N[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=(rows_M < M)[:, None] & is_column_N[None, :],
    )


@triton.jit(do_not_specialize=["M"])
def _linear_fp8_kernel(
    x_desc, x_scales_ptr, w_desc, scales_ptr, out_ptr,
    M, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, HALF: tl.constexpr, BLOCK_K: tl.constexpr, DOTS: tl.constexpr,
    BAND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows and DOTS · HALF columns."""
    num_n: tl.constexpr = (N + DOTS * HALF - 1) // (DOTS * HALF)
    tile, n = tile_and_columns(tl.program_id(0), (M + BLOCK_M - 1) // BLOCK_M, num_n, BAND)
    start, row = tile * BLOCK_M, n * (DOTS * HALF)
    rows_M = start + tl.arange(0, BLOCK_M)
    x_scales_ptrs = x_scales_ptr + tl.minimum(rows_M, M - 1) * (K // GROUP)
    first = tl.zeros((BLOCK_M, HALF), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, HALF), dtype=tl.float32)
    wait_for_previous(PDL)
    for k in range(0, K, BLOCK_K):
        scale = block_scale(scales_ptr, 0, row, k, N, K, SCALES, BN, BK)
        x_scales_M = tl.load(x_scales_ptrs + k // GROUP)
        x = x_desc.load([start, k])
        w = w_desc.load([row, k])
        first = add_promoted_dot(first, x, w, x_scales_M, scale)
        if DOTS == 2:
            second_row = tl.minimum(row + HALF, N - 1)
            scale = block_scale(scales_ptr, 0, second_row, k, N, K, SCALES, BN, BK)
            w = w_desc.load([row + HALF, k])
            second = add_promoted_dot(second, x, w, x_scales_M, scale)
    _store_columns(first, scales_ptr, out_ptr, rows_M, row, M, N, SCALES, HALF)
    if DOTS == 2:
        _store_columns(second, scales_ptr, out_ptr, rows_M, row + HALF, M, N, SCALES, HALF)


def linear_fp8(
    x_MK: Quantized, weight_NK: Weight, tiles: Tiles, *, out_MN: torch.Tensor, pdl: bool
) -> None:
    """x Wᵀ where `promoted_dot.fits`."""
    M, K = x_MK.shape
    N = weight_NK.shape[0]
    assert weight_NK.shape[1] == K and out_MN.shape == (M, N)
    assert weight_NK.values.is_contiguous() and out_MN.is_contiguous()
    assert fits(tiles, weight_NK, x_MK.group)
    half, depth = dot_columns(tiles), step_depth(tiles, weight_NK, x_MK.group)
    grid = (triton.cdiv(M, tiles.block_m) * triton.cdiv(N, tiles.block_n),)
    _linear_fp8_kernel[grid](
        TensorDescriptor.from_tensor(x_MK.values, [tiles.block_m, depth]), x_MK.scales,
        TensorDescriptor.from_tensor(weight_NK.values, [half, depth]), weight_NK.scales,
        out_MN, M, N=N, K=K, GROUP=x_MK.group,
        BLOCK_M=tiles.block_m, HALF=half, BLOCK_K=depth, DOTS=tiles.block_n // half, BAND=_BAND,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(weight_NK), **launch_options(pdl),
    )  # fmt: skip
