"""Grouped expert GEMMs on tensor cores over weights of four bits: as `grouped`, which calls them.

Owns the kernels, for few rows and for many. T tokens, K experts per token, P = T·K routes, R ≤ P
local routes in order of expert, E local experts, H hidden, I expert width.
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
    within_groups,
)
from moe.base.int4_format import UNIT
from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.silu import silu
from moe.base.tiles import Tiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment
from moe.kernels.locate import locate

_HALF = tl.constexpr(UNIT // 2)


@triton.jit
def _gate_up_kernel(
    x_ptr, w13_ptr, scales_ptr, zeros_ptr, inner_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """inner[row] = silu(gate·x) · (up·x) for the rows of one tile and BLOCK_N columns of I."""
    tile, n, expert = locate(tile_expert_ptr, I, H, BLOCK_N, PDL)
    if expert < 0:
        return
    rows_M = tl.load(tile_start_ptr + tile) + tl.arange(0, BLOCK_M)
    is_row_M = rows_M < tl.load(offsets_ptr + expert + 1)
    tokens_M = tl.load(order_ptr + rows_M, mask=is_row_M, other=0) // K
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < I
    bytes_B, inputs_B = tl.arange(0, BLOCK_K // 2), first_inputs(BLOCK_K // 2)
    x_ptrs = x_ptr + tokens_M.to(tl.int64)[:, None] * H + inputs_B[None, :]
    gate_ptrs = w13_ptr + expert.to(tl.int64) * (I * H)
    gate_ptrs += columns_N[:, None] * (H // 2) + bytes_B[None, :]
    num_groups: tl.constexpr = H // GROUP if GROUP > 0 else 1
    places_N = expert * (num_groups * 2 * I) + columns_N
    even: tl.constexpr = (I % BLOCK_N == 0) and (H % BLOCK_K == 0)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    gate, up = tl.zeros(shape, dtype=tl.float32), tl.zeros(shape, dtype=tl.float32)
    sums_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    # Scales are asked for a step ahead.
    gate_scales_N = tl.load(scales_ptr + places_N, mask=is_column_N, other=0.0)
    up_scales_N = tl.load(scales_ptr + places_N + I, mask=is_column_N, other=0.0)
    gate_zeros_N = load_zeros(zeros_ptr, places_N, is_column_N, ZEROS)
    up_zeros_N = load_zeros(zeros_ptr, places_N + I, is_column_N, ZEROS)
    for k in range(0, H, BLOCK_K):
        if even:
            x_low = tl.load(x_ptrs + k, mask=is_row_M[:, None], other=0.0)
            x_high = tl.load(x_ptrs + k + _HALF, mask=is_row_M[:, None], other=0.0)
            w_gate = tl.load(gate_ptrs + k // 2, eviction_policy="evict_first")
            w_up = tl.load(gate_ptrs + I * H // 2 + k // 2, eviction_policy="evict_first")
        else:
            is_x = is_row_M[:, None] & (k + inputs_B < H)[None, :]
            is_w = is_column_N[:, None] & (k + inputs_B < H)[None, :]
            x_low = tl.load(x_ptrs + k, mask=is_x, other=0.0)
            x_high = tl.load(x_ptrs + k + _HALF, mask=is_x, other=0.0)
            w_gate = tl.load(gate_ptrs + k // 2, mask=is_w, other=0)
            w_up = tl.load(gate_ptrs + I * H // 2 + k // 2, mask=is_w, other=0)
        if GROUP > 0:
            next_N = places_N + tl.minimum((k + BLOCK_K) // GROUP, num_groups - 1) * (2 * I)
            next_gate_N = tl.load(scales_ptr + next_N, mask=is_column_N, other=0.0)
            next_up_N = tl.load(scales_ptr + next_N + I, mask=is_column_N, other=0.0)
            next_gate_zeros_N = load_zeros(zeros_ptr, next_N, is_column_N, ZEROS)
            next_up_zeros_N = load_zeros(zeros_ptr, next_N + I, is_column_N, ZEROS)
            sums_M = input_sums(x_low, x_high, ZEROS)
            part = tl.zeros(shape, dtype=tl.float32)
            part = add_int4_dot(part, x_low, x_high, w_gate, PRECISION, SWAP, ASM)
            gate += scale_sums(part, sums_M, gate_scales_N, gate_zeros_N, ZEROS, SWAP)
            part = tl.zeros(shape, dtype=tl.float32)
            part = add_int4_dot(part, x_low, x_high, w_up, PRECISION, SWAP, ASM)
            up += scale_sums(part, sums_M, up_scales_N, up_zeros_N, ZEROS, SWAP)
            gate_scales_N, up_scales_N = next_gate_N, next_up_N
            gate_zeros_N, up_zeros_N = next_gate_zeros_N, next_up_zeros_N
        else:
            gate = add_int4_dot(gate, x_low, x_high, w_gate, PRECISION, SWAP, ASM)
            up = add_int4_dot(up, x_low, x_high, w_up, PRECISION, SWAP, ASM)
    if GROUP == 0:
        gate = scale_sums(gate, sums_M, gate_scales_N, gate_zeros_N, ZEROS, SWAP)
        up = scale_sums(up, sums_M, up_scales_N, up_zeros_N, ZEROS, SWAP)
    inner = silu(gate) * up
    if SWAP:
        inner = inner.T
    out_ptrs = inner_ptr + rows_M.to(tl.int64)[:, None] * I + columns_N[None, :]
    tl.store(
        out_ptrs,
        inner.to(inner_ptr.dtype.element_ty),
        mask=is_row_M[:, None] & is_column_N[None, :],
    )


@triton.jit
def _down_kernel(
    inner_ptr, w2_ptr, scales_ptr, zeros_ptr, out_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    H: tl.constexpr, I: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[route] = down·inner[row] for the rows of one tile and BLOCK_N columns of H."""
    # The tables are older than the kernel before, gate·up, which has waited for them itself.
    tile, n, expert = locate(tile_expert_ptr, H, I, BLOCK_N, False)
    if expert < 0:
        if PDL:
            tl.extra.cuda.gdc_wait()
        return
    rows_M = tl.load(tile_start_ptr + tile) + tl.arange(0, BLOCK_M)
    is_row_M = rows_M < tl.load(offsets_ptr + expert + 1)
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < H
    bytes_B, inputs_B = tl.arange(0, BLOCK_K // 2), first_inputs(BLOCK_K // 2)
    x_ptrs = inner_ptr + rows_M.to(tl.int64)[:, None] * I + inputs_B[None, :]
    w_ptrs = w2_ptr + expert.to(tl.int64) * (H * I // 2)
    w_ptrs += columns_N[:, None] * (I // 2) + bytes_B[None, :]
    num_groups: tl.constexpr = I // GROUP if GROUP > 0 else 1
    places_N = expert * (num_groups * H) + columns_N
    even: tl.constexpr = (H % BLOCK_N == 0) and (I % BLOCK_K == 0)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    total = tl.zeros(shape, dtype=tl.float32)
    sums_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    scales_N = tl.load(scales_ptr + places_N, mask=is_column_N, other=0.0)
    zeros_N = load_zeros(zeros_ptr, places_N, is_column_N, ZEROS)
    wait_for_previous(PDL)
    for k in range(0, I, BLOCK_K):
        if even:
            x_low = tl.load(x_ptrs + k, mask=is_row_M[:, None], other=0.0)
            x_high = tl.load(x_ptrs + k + _HALF, mask=is_row_M[:, None], other=0.0)
            w = tl.load(w_ptrs + k // 2, eviction_policy="evict_first")
        else:
            is_x = is_row_M[:, None] & (k + inputs_B < I)[None, :]
            is_w = is_column_N[:, None] & (k + inputs_B < I)[None, :]
            x_low = tl.load(x_ptrs + k, mask=is_x, other=0.0)
            x_high = tl.load(x_ptrs + k + _HALF, mask=is_x, other=0.0)
            w = tl.load(w_ptrs + k // 2, mask=is_w, other=0)
        if GROUP > 0:
            next_N = places_N + tl.minimum((k + BLOCK_K) // GROUP, num_groups - 1) * H
            next_scales_N = tl.load(scales_ptr + next_N, mask=is_column_N, other=0.0)
            next_zeros_N = load_zeros(zeros_ptr, next_N, is_column_N, ZEROS)
            sums_M = input_sums(x_low, x_high, ZEROS)
            part = tl.zeros(shape, dtype=tl.float32)
            part = add_int4_dot(part, x_low, x_high, w, PRECISION, SWAP, ASM)
            total += scale_sums(part, sums_M, scales_N, zeros_N, ZEROS, SWAP)
            scales_N, zeros_N = next_scales_N, next_zeros_N
        else:
            total = add_int4_dot(total, x_low, x_high, w, PRECISION, SWAP, ASM)
    if GROUP == 0:
        total = scale_sums(total, sums_M, scales_N, zeros_N, ZEROS, SWAP)
    if SWAP:
        total = total.T
    routes_M = tl.load(order_ptr + rows_M, mask=is_row_M, other=0)
    out_ptrs = out_ptr + routes_M.to(tl.int64)[:, None] * H + columns_N[None, :]
    tl.store(
        out_ptrs, total.to(out_ptr.dtype.element_ty), mask=is_row_M[:, None] & is_column_N[None, :]
    )


def gate_up_int4(
    x_TH: torch.Tensor,
    w13: Weight,
    aligned: Alignment,
    num_routes_per_token: int,
    tiles: Tiles,
    *,
    out_PI: torch.Tensor,
    pdl: bool,
) -> None:
    """`grouped.gate_up`, which has checked the shapes."""
    width, H = w13.shape[1] // 2, w13.shape[2]
    tiles = within_groups(tiles, w13)
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(width, tiles.block_n),)
    _gate_up_kernel[grid](
        x_TH, w13.values, w13.scales, w13.zeros, out_PI, aligned.order, aligned.offsets,
        aligned.tile_expert, aligned.tile_start,
        K=num_routes_per_token, H=H, I=width,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        PRECISION=precision(x_TH.dtype), SWAP=tiles.swap,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **int4_options(w13), **launch_options(pdl),
    )  # fmt: skip


def down_int4(
    inner_PI: torch.Tensor,
    w2: Weight,
    aligned: Alignment,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """`grouped.down`, which has checked the shapes."""
    _, H, width = w2.shape
    tiles = within_groups(tiles, w2)
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(H, tiles.block_n),)
    _down_kernel[grid](
        inner_PI, w2.values, w2.scales, w2.zeros, out_PH, aligned.order, aligned.offsets,
        aligned.tile_expert, aligned.tile_start,
        H=H, I=width, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        PRECISION=precision(inner_PI.dtype), SWAP=tiles.swap,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **int4_options(w2), **launch_options(pdl),
    )  # fmt: skip
