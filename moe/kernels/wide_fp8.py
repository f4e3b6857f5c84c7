"""Grouped expert GEMMs of many rows with activations and weights of eight bits.

Owns the kernels of prefill steps of FP8 models: as `wide`, weights come by TMA; SwiGLU's result is
made eight bits wide where it is computed, a tile's columns under one scale. Which routes form a
tile is `align`'s business. T tokens, K experts per token, P = T·K routes, E local experts, H
hidden, I expert width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from moe.base.launch import launch_options
from moe.base.promoted_dot import add_promoted_dot, dot_columns, fits, step_depth
from moe.base.quantize_rows import quantize_groups
from moe.base.quantized import Quantized
from moe.base.scaled_dot import block_scale, scale_options, scale_rows
from moe.base.silu import silu
from moe.base.tiles import ExpertTiles, Tiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment
from moe.kernels.locate import locate

_MIN_ROWS = 64  # of a tile: one wgmma


def experts_fit(tiles: ExpertTiles, w13: Weight, w2: Weight) -> bool:
    """Whether launches with these tiles may use these kernels, both of them."""
    return gate_up_fits(tiles.gate_up, w13) and fits(tiles.down, w2, tiles.gate_up.block_n)


def gate_up_fits(tiles: Tiles, w13: Weight) -> bool:
    """Whether a launch may use `gate_up_fp8`: a tile has one dot of either matrix, and columns of
    the width alone, since they get one scale."""
    width = w13.shape[1] // 2
    one_dot = tiles.block_n == dot_columns(tiles)
    return one_dot and width % tiles.block_n == 0 and fits(tiles, w13)


@triton.jit
def _tile_gate_up(
    x_ptr, x_scales_ptr, w13_desc, scales_ptr, inner_ptr, inner_scales_ptr,
    order_ptr, expert, start, end, n,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows start..end, ROWS at most, and BLOCK_N columns of I."""
    rows_M = start + tl.arange(0, ROWS)
    # Rows past the end repeat the last one: they cost no mask and are never stored.
    tokens_M = tl.load(order_ptr + tl.minimum(rows_M, end - 1)) // K
    x_ptrs = x_ptr + tokens_M.to(tl.int64)[:, None] * H + tl.arange(0, BLOCK_K)[None, :]
    x_scales_ptrs = x_scales_ptr + tokens_M * (H // GROUP)
    row = n * BLOCK_N
    gate = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    for k in range(0, H, BLOCK_K):
        gate_scale = block_scale(scales_ptr, 2 * expert, row, k, I, H, SCALES, BN, BK)
        up_scale = block_scale(scales_ptr, 2 * expert + 1, row, k, I, H, SCALES, BN, BK)
        x_scales_M = tl.load(x_scales_ptrs + k // GROUP)
        x = tl.load(x_ptrs + k)
        w = w13_desc.load([expert, row, k]).reshape(BLOCK_N, BLOCK_K)
        gate = add_promoted_dot(gate, x, w, x_scales_M, gate_scale)
        w = w13_desc.load([expert, I + row, k]).reshape(BLOCK_N, BLOCK_K)
        up = add_promoted_dot(up, x, w, x_scales_M, up_scale)
    columns_N = row + tl.arange(0, BLOCK_N)
    gate = scale_rows(gate, scales_ptr, 2 * expert, columns_N, columns_N < I, I, SCALES, False)
    up = scale_rows(up, scales_ptr, 2 * expert + 1, columns_N, columns_N < I, I, SCALES, False)
    inner, inner_scales_M = quantize_groups(silu(gate) * up)
    is_row_M = rows_M < end
    out_ptrs = inner_ptr + rows_M.to(tl.int64)[:, None] * I + columns_N[None, :]
    tl.store(out_ptrs, inner, mask=is_row_M[:, None])
    tl.store(inner_scales_ptr + rows_M * (I // BLOCK_N) + n, inner_scales_M, mask=is_row_M)


@triton.jit
def _gate_up_kernel(
    x_ptr, x_scales_ptr, w13_desc, scales_ptr, inner_ptr, inner_scales_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    FEW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """inner[row] = silu(gate·x) · (up·x); a tile of at most FEW rows costs less."""
    tile, n, expert = locate(tile_expert_ptr, I, H, BLOCK_N, PDL)
    if expert < 0:
        return
    start, end = tl.load(tile_start_ptr + tile), tl.load(offsets_ptr + expert + 1)
    if FEW == BLOCK_M or end - start > FEW:
        _tile_gate_up(
            x_ptr, x_scales_ptr, w13_desc, scales_ptr, inner_ptr, inner_scales_ptr,
            order_ptr, expert, start, end, n,
            K, H, I, GROUP, SCALES, BN, BK, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        _tile_gate_up(
            x_ptr, x_scales_ptr, w13_desc, scales_ptr, inner_ptr, inner_scales_ptr,
            order_ptr, expert, start, end, n,
            K, H, I, GROUP, SCALES, BN, BK, FEW, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def _tile_down(
    inner_desc, inner_scales_ptr, w2_desc, scales_ptr, out_ptr, order_ptr, expert, start, end, n,
    H: tl.constexpr, I: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ROWS: tl.constexpr, HALF: tl.constexpr, BLOCK_K: tl.constexpr, DOTS: tl.constexpr,
):  # fmt: skip
    """Rows start..end, ROWS at most, and DOTS · HALF columns of H."""
    rows_M = start + tl.arange(0, ROWS)
    last_M = tl.minimum(rows_M, end - 1)
    routes_M = tl.load(order_ptr + last_M)
    inner_scales_ptrs = inner_scales_ptr + last_M * (I // GROUP)
    row = n * (DOTS * HALF)
    first = tl.zeros((ROWS, HALF), dtype=tl.float32)
    second = tl.zeros((ROWS, HALF), dtype=tl.float32)
    for k in range(0, I, BLOCK_K):
        scale = block_scale(scales_ptr, expert, row, k, H, I, SCALES, BN, BK)
        inner_scales_M = tl.load(inner_scales_ptrs + k // GROUP)
        inner = inner_desc.load([start, k])  # rows past the end belong to others and are not stored
        w = w2_desc.load([expert, row, k]).reshape(HALF, BLOCK_K)
        first = add_promoted_dot(first, inner, w, inner_scales_M, scale)
        if DOTS == 2:
            second_row = tl.minimum(row + HALF, H - 1)
            scale = block_scale(scales_ptr, expert, second_row, k, H, I, SCALES, BN, BK)
            w = w2_desc.load([expert, row + HALF, k]).reshape(HALF, BLOCK_K)
            second = add_promoted_dot(second, inner, w, inner_scales_M, scale)
    out_ptrs = out_ptr + routes_M.to(tl.int64)[:, None] * H
    is_row_M = rows_M < end
    columns_N = row + tl.arange(0, HALF)
    is_column_N = columns_N < H
    first = scale_rows(first, scales_ptr, expert, columns_N, is_column_N, H, SCALES, False)
    first = first.to(out_ptr.dtype.element_ty)
    tl.store(out_ptrs + columns_N[None, :], first, mask=is_row_M[:, None] & is_column_N[None, :])
    if DOTS == 2:
        columns_N += HALF
        is_column_N = columns_N < H
        second = scale_rows(second, scales_ptr, expert, columns_N, is_column_N, H, SCALES, False)
        second = second.to(out_ptr.dtype.element_ty)
        mask = is_row_M[:, None] & is_column_N[None, :]
        tl.store(out_ptrs + columns_N[None, :], second, mask=mask)


@triton.jit
def _down_kernel(
    inner_desc, inner_few_desc, inner_scales_ptr, w2_desc, scales_ptr, out_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    H: tl.constexpr, I: tl.constexpr, GROUP: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, HALF: tl.constexpr, BLOCK_K: tl.constexpr, DOTS: tl.constexpr,
    FEW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[route] = down·inner[row]; a tile of at most FEW rows costs less."""
    tile, n, expert = locate(tile_expert_ptr, H, I, DOTS * HALF, PDL)
    if expert < 0:
        return
    start, end = tl.load(tile_start_ptr + tile), tl.load(offsets_ptr + expert + 1)
    if FEW == BLOCK_M or end - start > FEW:
        _tile_down(
            inner_desc, inner_scales_ptr, w2_desc, scales_ptr, out_ptr,
            order_ptr, expert, start, end, n,
            H, I, GROUP, SCALES, BN, BK, BLOCK_M, HALF, BLOCK_K, DOTS,
        )  # fmt: skip
    else:
        _tile_down(
            inner_few_desc, inner_scales_ptr, w2_desc, scales_ptr, out_ptr,
            order_ptr, expert, start, end, n,
            H, I, GROUP, SCALES, BN, BK, FEW, HALF, BLOCK_K, DOTS,
        )  # fmt: skip


def gate_up_fp8(
    x_TH: Quantized,
    w13: Weight,
    aligned: Alignment,
    num_routes_per_token: int,
    tiles: Tiles,
    *,
    out_PI: Quantized,
    pdl: bool,
) -> None:
    """silu(gate·x) · (up·x) of every local route, in the order of `aligned`, where `experts_fit`.

    w13 [E,2I,H] has gate rows first. A group of `out_PI` is as wide as a tile. Its rows past the
    last local route stay as they are.
    """
    E, double, H = w13.shape
    width = double // 2
    assert w13.values.is_contiguous() and x_TH.shape[1] == H and out_PI.shape[1] == width
    assert fits(tiles, w13, x_TH.group) and out_PI.group == tiles.block_n
    depth = step_depth(tiles, w13, x_TH.group)
    grid = (aligned.tile_expert.shape[0] * (width // tiles.block_n),)
    _gate_up_kernel[grid](
        x_TH.values, x_TH.scales,
        TensorDescriptor.from_tensor(w13.values, [1, tiles.block_n, depth]), w13.scales,
        out_PI.values, out_PI.scales,
        aligned.order, aligned.offsets, aligned.tile_expert, aligned.tile_start,
        K=num_routes_per_token, H=H, I=width, GROUP=x_TH.group,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=depth, FEW=_few(tiles),
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(w13), **launch_options(pdl),
    )  # fmt: skip


def down_fp8(
    inner_PI: Quantized,
    w2: Weight,
    aligned: Alignment,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """down·inner of every local route, at the route's own row: rows of other routes stay as they
    are. w2 [E,H,I]; `inner_PI` is what `gate_up_fp8` wrote."""
    E, H, width = w2.shape
    assert w2.values.is_contiguous() and out_PH.is_contiguous()
    assert inner_PI.shape[1] == width and out_PH.shape[1] == H
    assert fits(tiles, w2, inner_PI.group)
    half, depth = dot_columns(tiles), step_depth(tiles, w2, inner_PI.group)
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(H, tiles.block_n),)
    _down_kernel[grid](
        TensorDescriptor.from_tensor(inner_PI.values, [tiles.block_m, depth]),
        TensorDescriptor.from_tensor(inner_PI.values, [_few(tiles), depth]),
        inner_PI.scales,
        TensorDescriptor.from_tensor(w2.values, [1, half, depth]), w2.scales,
        out_PH, aligned.order, aligned.offsets, aligned.tile_expert, aligned.tile_start,
        H=H, I=width, GROUP=inner_PI.group,
        BLOCK_M=tiles.block_m, HALF=half, BLOCK_K=depth, DOTS=tiles.block_n // half,
        FEW=_few(tiles), num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(w2), **launch_options(pdl),
    )  # fmt: skip


def _few(tiles: Tiles) -> int:
    """Rows of a short tile: half, but no less than one wgmma."""
    return max(tiles.block_m // 2, _MIN_ROWS)
