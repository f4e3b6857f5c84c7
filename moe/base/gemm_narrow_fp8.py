"""y = x Wᵀ for few rows x, both of eight bits: a stream of weights, which stay as they are.

Owns the kernel and its launch. `gemm` knows which GEMMs take it, and how their depth is cut. M
rows, N outputs, K inputs, S parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.prefetch import prefetch_tile
from moe.base.promoted_dot import narrow_fits, step_depth
from moe.base.quantized import Quantized
from moe.base.scaled_dot import block_scale, scale_options, scale_rows
from moe.base.tiles import Tiles
from moe.base.weight import Weight


@triton.jit(do_not_specialize=["M"])
def _linear_narrow_kernel(
    x_ptr, x_scales_ptr, w_ptr, scales_ptr, out_ptr,
    M, N: tl.constexpr, K: tl.constexpr, K_PART: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows, BLOCK_N columns and one part of the depth; weights fill the wide side of the
    tensor core."""
    part, row = tl.program_id(1), tl.program_id(0) * BLOCK_N
    rows_M = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Rows past the end repeat the last one: they cost no mask and are never stored.
    last_M = tl.minimum(rows_M, M - 1)
    columns_N, ks = row + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + last_M[:, None] * K + ks[None, :]
    x_scales_ptrs = x_scales_ptr + last_M * (K // GROUP)
    w_ptrs = w_ptr + columns_N.to(tl.int64)[:, None] * K + ks[None, :]
    start = part * K_PART
    stop = start + K_PART if K % K_PART == 0 else tl.minimum(start + K_PART, K)
    if PREFETCH:
        prefetch_tile(w_ptr, row, start, N, K, BLOCK_N, K_PART)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    scale = block_scale(scales_ptr, 0, row, start, N, K, SCALES, BN, BK)
    wait_for_previous(PDL)
    x_scales_M = tl.load(x_scales_ptrs + start // GROUP)
    for k in range(start, stop, BLOCK_K):
        # Scales are asked for a step ahead.
        ahead = tl.minimum(k + BLOCK_K, K - BLOCK_K)
        next_scale = block_scale(scales_ptr, 0, row, ahead, N, K, SCALES, BN, BK)
        next_scales_M = tl.load(x_scales_ptrs + ahead // GROUP)
        x = tl.load(x_ptrs + k)
        w = tl.load(w_ptrs + k)
        total += tl.dot(w, x.T) * (x_scales_M * scale)[None, :]
        x_scales_M, scale = next_scales_M, next_scale
    total = scale_rows(total, scales_ptr, 0, columns_N, columns_N < N, N, SCALES, True)
    out_ptrs = out_ptr + part.to(tl.int64) * M * N + rows_M[:, None] * N + columns_N[None, :]
    tl.store(out_ptrs, total.T.to(out_ptr.dtype.element_ty), mask=(rows_M < M)[:, None])


def linear_narrow(
    x_MK: Quantized,
    weight_NK: Weight,
    depth: int,
    tiles: Tiles,
    *,
    out_SMN: torch.Tensor,
    prefetch: bool,
    pdl: bool,
) -> None:
    """x Wᵀ where `promoted_dot.narrow_fits`; each part takes ``depth`` inputs, the last one what is
    left."""
    S, M, N = out_SMN.shape
    K = x_MK.shape[1]
    step = step_depth(tiles, weight_NK, x_MK.group)
    assert weight_NK.shape == (N, K) and x_MK.shape[0] == M and depth % step == 0
    assert weight_NK.values.is_contiguous() and out_SMN.is_contiguous()
    assert narrow_fits(tiles, weight_NK, x_MK.group)
    grid = (N // tiles.block_n, S, triton.cdiv(M, tiles.block_m))
    _linear_narrow_kernel[grid](
        x_MK.values, x_MK.scales, weight_NK.values, weight_NK.scales, out_SMN,
        M, N=N, K=K, K_PART=depth, GROUP=x_MK.group,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=step, PREFETCH=prefetch,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(weight_NK), **launch_options(pdl),
    )  # fmt: skip
