"""Grouped expert GEMMs of few rows with activations and weights of eight bits.

Owns the kernels of decode steps of FP8 models: weights fill the wide side of the tensor core as
they are, nothing is made wider. SwiGLU's result is made eight bits wide where it is computed, a
tile's columns under one scale. Which routes form a tile is `align`'s business. T tokens, K experts
per token, P = T·K routes, E local experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.prefetch import prefetch_tile
from moe.base.promoted_dot import narrow_fits, step_depth
from moe.base.quantize_rows import quantize_groups
from moe.base.quantized import GROUP, Quantized
from moe.base.scaled_dot import block_scale, scale_options, scale_rows
from moe.base.silu import silu
from moe.base.tiles import ExpertTiles, Tiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment
from moe.kernels.locate import locate

# Weights of a row, in bytes, that are asked for before anything else: of gate and up while a tile's
# tokens are looked up, of down while gate·up ends.
_GATE_UP_AHEAD = tl.constexpr(512)
_DOWN_AHEAD = tl.constexpr(128)


def experts_narrow_fit(tiles: ExpertTiles, w13: Weight, w2: Weight) -> bool:
    """Whether launches with these tiles use these kernels, both of them."""
    first = gate_up_narrow_fits(tiles.gate_up, w13)
    return first and narrow_fits(tiles.down, w2, tiles.gate_up.block_n)


def gate_up_narrow_fits(tiles: Tiles, w13: Weight) -> bool:
    """Whether a launch may use `gate_up_narrow`: a tile has columns of the width alone, since they
    get one scale."""
    return w13.shape[-2] // 2 % tiles.block_n == 0 and narrow_fits(tiles, w13)


@triton.jit
def _gate_up_kernel(
    x_ptr, x_scales_ptr, w13_ptr, scales_ptr, inner_ptr, inner_scales_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """inner[row] = silu(gate·x) · (up·x) for the rows of one tile and BLOCK_N columns of I."""
    tile, n, expert = locate(tile_expert_ptr, I, H, BLOCK_N, PDL)
    if expert < 0:
        return
    row = n * BLOCK_N
    w_ptr = w13_ptr + expert.to(tl.int64) * (2 * I * H)
    if PDL:
        prefetch_tile(w_ptr, row, 0, I, H, BLOCK_N, _GATE_UP_AHEAD)
        prefetch_tile(w_ptr + I * H, row, 0, I, H, BLOCK_N, _GATE_UP_AHEAD)
    end = tl.load(offsets_ptr + expert + 1)
    rows_M = tl.load(tile_start_ptr + tile) + tl.arange(0, BLOCK_M)
    # Rows past the end repeat the last one: they cost no mask and are never stored.
    tokens_M = tl.load(order_ptr + tl.minimum(rows_M, end - 1)) // K
    columns_N, ks = row + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tokens_M.to(tl.int64)[:, None] * H + ks[None, :]
    x_scales_ptrs = x_scales_ptr + tokens_M * (H // GROUP)
    gate_ptrs = w_ptr + columns_N[:, None] * H + ks[None, :]
    gate = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    # Scales are asked for a step ahead.
    x_scales_M = tl.load(x_scales_ptrs)
    gate_scale = block_scale(scales_ptr, 2 * expert, row, 0, I, H, SCALES, BN, BK)
    up_scale = block_scale(scales_ptr, 2 * expert + 1, row, 0, I, H, SCALES, BN, BK)
    for k in range(0, H, BLOCK_K):
        ahead = tl.minimum(k + BLOCK_K, H - BLOCK_K)
        next_scales_M = tl.load(x_scales_ptrs + ahead // GROUP)
        next_gate = block_scale(scales_ptr, 2 * expert, row, ahead, I, H, SCALES, BN, BK)
        next_up = block_scale(scales_ptr, 2 * expert + 1, row, ahead, I, H, SCALES, BN, BK)
        x = tl.load(x_ptrs + k)
        w_gate = tl.load(gate_ptrs + k, eviction_policy="evict_first")
        w_up = tl.load(gate_ptrs + I * H + k, eviction_policy="evict_first")
        gate += tl.dot(w_gate, x.T) * (x_scales_M * gate_scale)[None, :]
        up += tl.dot(w_up, x.T) * (x_scales_M * up_scale)[None, :]
        x_scales_M, gate_scale, up_scale = next_scales_M, next_gate, next_up
    is_column_N = columns_N < I
    gate = scale_rows(gate, scales_ptr, 2 * expert, columns_N, is_column_N, I, SCALES, True)
    up = scale_rows(up, scales_ptr, 2 * expert + 1, columns_N, is_column_N, I, SCALES, True)
    inner, inner_scales_M = quantize_groups((silu(gate) * up).T)
    is_row_M = rows_M < end
    out_ptrs = inner_ptr + rows_M.to(tl.int64)[:, None] * I + columns_N[None, :]
    tl.store(out_ptrs, inner, mask=is_row_M[:, None])
    tl.store(inner_scales_ptr + rows_M * (I // BLOCK_N) + n, inner_scales_M, mask=is_row_M)


@triton.jit
def _down_kernel(
    inner_ptr, inner_scales_ptr, w2_ptr, scales_ptr, out_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    H: tl.constexpr, I: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[route] = down·inner[row] for the rows of one tile and BLOCK_N columns of H."""
    # The tables are older than the kernel before, gate·up, which has waited for them itself.
    tile, n, expert = locate(tile_expert_ptr, H, I, BLOCK_N, False)
    if expert < 0:
        if PDL:
            tl.extra.cuda.gdc_wait()
        return
    end = tl.load(offsets_ptr + expert + 1)
    rows_M = tl.load(tile_start_ptr + tile) + tl.arange(0, BLOCK_M)
    last_M = tl.minimum(rows_M, end - 1)
    row = n * BLOCK_N
    columns_N, ks = row + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    inner_ptrs = inner_ptr + last_M.to(tl.int64)[:, None] * I + ks[None, :]
    inner_scales_ptrs = inner_scales_ptr + last_M * (I // GROUP)
    w_ptr = w2_ptr + expert.to(tl.int64) * (H * I)
    w_ptrs = w_ptr + columns_N[:, None] * I + ks[None, :]
    if PDL:
        prefetch_tile(w_ptr, row, 0, H, I, BLOCK_N, _DOWN_AHEAD)
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    scale = block_scale(scales_ptr, expert, row, 0, H, I, SCALES, BN, BK)
    wait_for_previous(PDL)
    inner_scales_M = tl.load(inner_scales_ptrs)
    for k in range(0, I, BLOCK_K):
        ahead = tl.minimum(k + BLOCK_K, I - BLOCK_K)
        next_scale = block_scale(scales_ptr, expert, row, ahead, H, I, SCALES, BN, BK)
        next_scales_M = tl.load(inner_scales_ptrs + ahead // GROUP)
        inner = tl.load(inner_ptrs + k)
        w = tl.load(w_ptrs + k, eviction_policy="evict_first")
        total += tl.dot(w, inner.T) * (inner_scales_M * scale)[None, :]
        inner_scales_M, scale = next_scales_M, next_scale
    total = scale_rows(total, scales_ptr, expert, columns_N, columns_N < H, H, SCALES, True)
    routes_M = tl.load(order_ptr + last_M)
    out_ptrs = out_ptr + routes_M.to(tl.int64)[:, None] * H + columns_N[None, :]
    tl.store(out_ptrs, total.T.to(out_ptr.dtype.element_ty), mask=(rows_M < end)[:, None])


def gate_up_narrow(
    x_TH: Quantized,
    w13: Weight,
    aligned: Alignment,
    num_routes_per_token: int,
    tiles: Tiles,
    *,
    out_PI: Quantized,
    pdl: bool,
) -> None:
    """silu(gate·x) · (up·x) of every local route, in the order of `aligned`, where `narrow_fits`.

    w13 [E,2I,H] has gate rows first. A group of `out_PI` is as wide as a tile. Its rows past the
    last local route stay as they are.
    """
    E, double, H = w13.shape
    width = double // 2
    assert w13.values.is_contiguous() and x_TH.shape[1] == H and out_PI.shape[1] == width
    assert x_TH.group == GROUP and gate_up_narrow_fits(tiles, w13)
    assert out_PI.group == tiles.block_n
    grid = (aligned.tile_expert.shape[0] * (width // tiles.block_n),)
    _gate_up_kernel[grid](
        x_TH.values, x_TH.scales, w13.values, w13.scales, out_PI.values, out_PI.scales,
        aligned.order, aligned.offsets, aligned.tile_expert, aligned.tile_start,
        K=num_routes_per_token, H=H, I=width, GROUP=x_TH.group,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=step_depth(tiles, w13, x_TH.group),
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(w13), **launch_options(pdl),
    )  # fmt: skip


def down_narrow(
    inner_PI: Quantized,
    w2: Weight,
    aligned: Alignment,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """down·inner of every local route, at the route's own row: rows of other routes stay as they
    are. w2 [E,H,I]; `inner_PI` is what `gate_up_narrow` wrote."""
    E, H, width = w2.shape
    assert w2.values.is_contiguous() and out_PH.is_contiguous()
    assert inner_PI.shape[1] == width and out_PH.shape[1] == H
    assert narrow_fits(tiles, w2, inner_PI.group)
    grid = (aligned.tile_expert.shape[0] * (H // tiles.block_n),)
    _down_kernel[grid](
        inner_PI.values, inner_PI.scales, w2.values, w2.scales, out_PH,
        aligned.order, aligned.offsets, aligned.tile_expert, aligned.tile_start,
        H=H, I=width, GROUP=inner_PI.group,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=step_depth(tiles, w2, inner_PI.group),
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(w2), **launch_options(pdl),
    )  # fmt: skip
