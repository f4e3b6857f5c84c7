"""Grouped expert GEMMs on tensor cores: each tile is some routes of one expert.

Owns the kernels for any shape and for few rows; `wide` has those of many. Which routes form a tile
is `align`'s business; the weighted sum over k is `sum_norm`'s. T tokens, K experts per token, P =
T·K routes, R ≤ P local routes in order of expert, E local experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.scaled_dot import (
    add_scaled_dot,
    block_scale,
    scale_options,
    scale_rows,
    within_blocks,
)
from moe.base.silu import silu
from moe.base.tiles import INT4_NAME, Tiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment
from moe.kernels.int4_grouped import down_int4, gate_up_int4
from moe.kernels.locate import locate
from moe.kernels.wide import down_wide, fits, gate_up_wide


@triton.jit
def _gate_up_kernel(
    x_ptr, w13_ptr, scales_ptr, inner_ptr, order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
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
    ks = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tokens_M.to(tl.int64)[:, None] * H + ks[None, :]
    gate_ptrs = w13_ptr + expert.to(tl.int64) * (2 * I * H) + columns_N[:, None] * H + ks[None, :]
    even: tl.constexpr = (I % BLOCK_N == 0) and (H % BLOCK_K == 0)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    gate, up = tl.zeros(shape, dtype=tl.float32), tl.zeros(shape, dtype=tl.float32)
    row = n * BLOCK_N
    for k in range(0, H, BLOCK_K):
        gate_scale = block_scale(scales_ptr, 2 * expert, row, k, I, H, SCALES, BN, BK)
        up_scale = block_scale(scales_ptr, 2 * expert + 1, row, k, I, H, SCALES, BN, BK)
        if even:
            x = tl.load(x_ptrs + k, mask=is_row_M[:, None], other=0.0)
            w_gate = tl.load(gate_ptrs + k, eviction_policy="evict_first")
            w_up = tl.load(gate_ptrs + I * H + k, eviction_policy="evict_first")
        else:
            is_k = ks[None, :] + k < H
            x = tl.load(x_ptrs + k, mask=is_row_M[:, None] & is_k, other=0.0)
            w_gate = tl.load(gate_ptrs + k, mask=is_column_N[:, None] & is_k, other=0.0)
            w_up = tl.load(gate_ptrs + I * H + k, mask=is_column_N[:, None] & is_k, other=0.0)
        gate = add_scaled_dot(gate, x, w_gate, gate_scale, SCALES, PRECISION, SWAP)
        up = add_scaled_dot(up, x, w_up, up_scale, SCALES, PRECISION, SWAP)
    gate = scale_rows(gate, scales_ptr, 2 * expert, columns_N, is_column_N, I, SCALES, SWAP)
    up = scale_rows(up, scales_ptr, 2 * expert + 1, columns_N, is_column_N, I, SCALES, SWAP)
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
    inner_ptr, w2_ptr, scales_ptr, out_ptr, order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    H: tl.constexpr, I: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
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
    wait_for_previous(PDL)
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < H
    ks = tl.arange(0, BLOCK_K)
    inner_ptrs = inner_ptr + rows_M.to(tl.int64)[:, None] * I + ks[None, :]
    w_ptrs = w2_ptr + expert.to(tl.int64) * (H * I) + columns_N[:, None] * I + ks[None, :]
    even: tl.constexpr = (H % BLOCK_N == 0) and (I % BLOCK_K == 0)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    total = tl.zeros(shape, dtype=tl.float32)
    for k in range(0, I, BLOCK_K):
        scale = block_scale(scales_ptr, expert, n * BLOCK_N, k, H, I, SCALES, BN, BK)
        if even:
            inner = tl.load(inner_ptrs + k, mask=is_row_M[:, None], other=0.0)
            w = tl.load(w_ptrs + k, eviction_policy="evict_first")
        else:
            is_k = ks[None, :] + k < I
            inner = tl.load(inner_ptrs + k, mask=is_row_M[:, None] & is_k, other=0.0)
            w = tl.load(w_ptrs + k, mask=is_column_N[:, None] & is_k, other=0.0)
        total = add_scaled_dot(total, inner, w, scale, SCALES, PRECISION, SWAP)
    total = scale_rows(total, scales_ptr, expert, columns_N, is_column_N, H, SCALES, SWAP)
    if SWAP:
        total = total.T
    routes_M = tl.load(order_ptr + rows_M, mask=is_row_M, other=0)
    out_ptrs = out_ptr + routes_M.to(tl.int64)[:, None] * H + columns_N[None, :]
    tl.store(
        out_ptrs, total.to(out_ptr.dtype.element_ty), mask=is_row_M[:, None] & is_column_N[None, :]
    )


def gate_up(
    x_TH: torch.Tensor,
    w13: Weight,
    aligned: Alignment,
    num_routes_per_token: int,
    tiles: Tiles,
    *,
    out_PI: torch.Tensor,
    pdl: bool,
) -> None:
    """silu(gate·x) · (up·x) of every local route, in the order of `aligned`.

    w13 [E,2I,H] has gate rows first. Rows of `out_PI` past the last local route stay as they are.
    """
    E, double, H = w13.shape
    width = double // 2
    assert w13.values.is_contiguous() and x_TH.is_contiguous() and out_PI.is_contiguous()
    assert x_TH.shape[1] == H and out_PI.shape[1] == width
    if w13.scales is None and fits(tiles, w13.values):
        gate_up_wide(x_TH, w13, aligned, num_routes_per_token, tiles, out_PI=out_PI, pdl=pdl)
        return
    if w13.kind == INT4_NAME:
        gate_up_int4(x_TH, w13, aligned, num_routes_per_token, tiles, out_PI=out_PI, pdl=pdl)
        return
    tiles = within_blocks(tiles, w13)
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(width, tiles.block_n),)
    _gate_up_kernel[grid](
        x_TH, w13.values, w13.scales, out_PI, aligned.order, aligned.offsets,
        aligned.tile_expert, aligned.tile_start,
        K=num_routes_per_token, H=H, I=width,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        PRECISION=precision(x_TH.dtype), SWAP=tiles.swap,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(w13), **launch_options(pdl),
    )  # fmt: skip


def down(
    inner_PI: torch.Tensor,
    w2: Weight,
    aligned: Alignment,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """down·inner of every local route, at the route's own row: rows of other routes stay as they
    are. w2 [E,H,I]; `inner_PI` is what `gate_up` wrote."""
    E, H, width = w2.shape
    assert w2.values.is_contiguous() and inner_PI.is_contiguous() and out_PH.is_contiguous()
    assert inner_PI.shape[1] == width and out_PH.shape[1] == H
    if w2.scales is None and fits(tiles, w2.values, inner_PI):
        down_wide(inner_PI, w2, aligned, tiles, out_PH=out_PH, pdl=pdl)
        return
    if w2.kind == INT4_NAME:
        down_int4(inner_PI, w2, aligned, tiles, out_PH=out_PH, pdl=pdl)
        return
    tiles = within_blocks(tiles, w2)
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(H, tiles.block_n),)
    _down_kernel[grid](
        inner_PI, w2.values, w2.scales, out_PH, aligned.order, aligned.offsets,
        aligned.tile_expert, aligned.tile_start,
        H=H, I=width, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        PRECISION=precision(inner_PI.dtype), SWAP=tiles.swap,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(w2), **launch_options(pdl),
    )  # fmt: skip
