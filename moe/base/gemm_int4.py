"""y = x Wᵀ over weights of four bits, for one row x and for many.

Owns the kernels and their launches. `gemm` knows which GEMMs take which, and in how many parts. M
rows, N outputs, K inputs, S parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.int4_dot import (
    add_int4_dot,
    first_inputs,
    input_sums,
    int4_options,
    load_zeros,
    scale_sums,
)
from moe.base.int4_format import UNIT
from moe.base.int4_products import load_groups, unit_inputs, unit_starts, unit_sums
from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.prefetch import prefetch_tile
from moe.base.tiles import Tiles
from moe.base.weight import Weight

_HALF = tl.constexpr(UNIT // 2)


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x_ptr, w_ptr, scales_ptr, zeros_ptr, out_ptr,
    M, N: tl.constexpr, K: tl.constexpr, K_PART: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    columns_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_M = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row_M, is_column_N = rows_M < M, columns_N < N
    start = part * K_PART
    bytes_B, inputs_B = tl.arange(0, BLOCK_K // 2), first_inputs(BLOCK_K // 2)
    x_ptrs = x_ptr + rows_M.to(tl.int64)[:, None] * K + start + inputs_B[None, :]
    w_ptrs = w_ptr + columns_N.to(tl.int64)[:, None] * (K // 2) + start // 2 + bytes_B[None, :]
    even: tl.constexpr = (N % BLOCK_N == 0) and (K_PART % BLOCK_K == 0) and (K % K_PART == 0)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    total = tl.zeros(shape, dtype=tl.float32)
    sums_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    num_groups: tl.constexpr = K // GROUP if GROUP > 0 else 1
    group = tl.minimum(start // GROUP, num_groups - 1) if GROUP > 0 else 0
    # Scales are asked for a step ahead.
    scales_N = tl.load(scales_ptr + group * N + columns_N, mask=is_column_N, other=0.0)
    zeros_N = load_zeros(zeros_ptr, group * N + columns_N, is_column_N, ZEROS)
    if PREFETCH:
        first_row = tl.program_id(0) * BLOCK_N
        prefetch_tile(w_ptr, first_row, start // 2, N, K // 2, BLOCK_N, K_PART // 2)
    wait_for_previous(PDL)
    for k in range(0, K_PART, BLOCK_K):
        if even:
            x_low = tl.load(x_ptrs + k, mask=is_row_M[:, None], other=0.0)
            x_high = tl.load(x_ptrs + k + _HALF, mask=is_row_M[:, None], other=0.0)
            w = tl.load(w_ptrs + k // 2)
        else:
            is_k = (start + k + inputs_B < K) & (k + inputs_B < K_PART)
            x_low = tl.load(x_ptrs + k, mask=is_row_M[:, None] & is_k[None, :], other=0.0)
            x_high = tl.load(x_ptrs + k + _HALF, mask=is_row_M[:, None] & is_k[None, :], other=0.0)
            w = tl.load(w_ptrs + k // 2, mask=is_column_N[:, None] & is_k[None, :], other=0)
        if GROUP > 0:
            group = tl.minimum((start + k + BLOCK_K) // GROUP, num_groups - 1)
            next_scales_N = tl.load(scales_ptr + group * N + columns_N, mask=is_column_N, other=0.0)
            next_zeros_N = load_zeros(zeros_ptr, group * N + columns_N, is_column_N, ZEROS)
            sums_M = input_sums(x_low, x_high, ZEROS)
            sums = tl.zeros(shape, dtype=tl.float32)
            sums = add_int4_dot(sums, x_low, x_high, w, PRECISION, SWAP, ASM)
            total += scale_sums(sums, sums_M, scales_N, zeros_N, ZEROS, SWAP)
            scales_N, zeros_N = next_scales_N, next_zeros_N
        else:
            total = add_int4_dot(total, x_low, x_high, w, PRECISION, SWAP, ASM)
    if GROUP == 0:
        total = scale_sums(total, sums_M, scales_N, zeros_N, ZEROS, SWAP)
    if SWAP:
        total = total.T
    out_ptrs = out_ptr + (part.to(tl.int64) * M + rows_M[:, None]) * N + columns_N[None, :]
    tl.store(
        out_ptrs, total.to(out_ptr.dtype.element_ty), mask=is_row_M[:, None] & is_column_N[None, :]
    )


@triton.jit(do_not_specialize=["N"])
def _linear_vector_kernel(
    x_ptr, w_ptr, scales_ptr, zeros_ptr, out_ptr, N, K: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = Σ_k w[n, k] x[k]: the weights' tile is on its way before the input is there."""
    rows_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row_N = rows_N < N
    ks, bytes_B = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    w = tl.load(
        w_ptr + rows_N.to(tl.int64)[:, None] * (K // 2) + bytes_B[None, :],
        mask=is_row_N[:, None] & (bytes_B < K // 2)[None, :],
        other=0,
        eviction_policy="evict_first",
    )
    scales, zeros = load_groups(
        scales_ptr, zeros_ptr, 0, rows_N, is_row_N, unit_starts(BLOCK_K), N, K, GROUP, ZEROS
    )
    wait_for_previous(PDL)
    x_low, x_high = unit_inputs(tl.load(x_ptr + ks, mask=ks < K, other=0.0))
    total_N = tl.sum(unit_sums(w, x_low, x_high, scales, zeros, ZEROS, ASM), axis=1)
    tl.store(out_ptr + rows_N, total_N.to(out_ptr.dtype.element_ty), mask=is_row_N)


def linear_int4_vector(
    x_1K: torch.Tensor, weight_NK: Weight, tiles: Tiles, *, out_11N: torch.Tensor, pdl: bool
) -> None:
    """One row, in one part."""
    N, K = weight_NK.shape
    _linear_vector_kernel[(triton.cdiv(N, tiles.block_n),)](
        x_1K, weight_NK.values, weight_NK.scales, weight_NK.zeros, out_11N, N, K=K,
        BLOCK_N=tiles.block_n, BLOCK_K=max(UNIT, triton.next_power_of_2(K)),
        num_warps=tiles.warps, **int4_options(weight_NK), **launch_options(pdl),
    )  # fmt: skip


def linear_int4(
    x_MK: torch.Tensor,
    weight_NK: Weight,
    depth: int,
    tiles: Tiles,
    *,
    out_SMN: torch.Tensor,
    prefetch: bool,
    pdl: bool,
) -> None:
    """Each part takes ``depth`` inputs, the last one what is left; `int4_dot.within_groups` has
    given the tiles. With ``prefetch`` weights are asked for before the rows are there."""
    S, M, N = out_SMN.shape
    grid = (triton.cdiv(N, tiles.block_n), S, triton.cdiv(M, tiles.block_m))
    _linear_kernel[grid](
        x_MK, weight_NK.values, weight_NK.scales, weight_NK.zeros, out_SMN,
        M, N=N, K=weight_NK.shape[1], K_PART=depth,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        PRECISION=precision(x_MK.dtype), SWAP=tiles.swap, PREFETCH=prefetch,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **int4_options(weight_NK), **launch_options(pdl),
    )  # fmt: skip
