"""Grouped expert GEMMs of many rows: weights come by TMA, gate and up as one product.

Owns the kernels of prefill steps, which `grouped` calls where `fits` says so. Which routes form a
tile is `align`'s business. T tokens, K experts per token, P = T·K routes, E local experts, H
hidden, I expert width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from moe.base.launch import launch_options, precision
from moe.base.silu import silu
from moe.base.tiles import Tiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment
from moe.kernels.locate import locate

_MIN_ROWS = 64  # of a tile: below, wgmma is not filled and masks cost nothing
_TMA_BYTES = 16  # strides and addresses of a descriptor are multiples


def fits(tiles: Tiles, *tensors: torch.Tensor) -> bool:
    """Whether a launch with these tiles and operands may use these kernels."""
    return (
        tiles.block_m >= _MIN_ROWS
        and not tiles.swap
        and all(x.shape[-1] * x.itemsize % _TMA_BYTES == 0 for x in tensors)
        and all(x.data_ptr() % _TMA_BYTES == 0 for x in tensors)
    )


@triton.jit
def _tile_gate_up(
    x_ptr, w13_desc, inner_ptr, order_ptr, expert, start, end, n,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows start..end, ROWS at most, and BLOCK_N columns of I."""
    rows_M = start + tl.arange(0, ROWS)
    # Rows past the end repeat the last one: they cost no mask and are never stored.
    tokens_M = tl.load(order_ptr + tl.minimum(rows_M, end - 1)) // K
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tokens_M.to(tl.int64)[:, None] * H + ks[None, :]
    both = tl.zeros((ROWS, 2 * BLOCK_N), dtype=tl.float32)
    for k in range(0, H, BLOCK_K):
        if H % BLOCK_K == 0:
            x = tl.load(x_ptrs + k)
        else:
            x = tl.load(x_ptrs + k, mask=(ks < H - k)[None, :], other=0.0)
        w = w13_desc.load([expert, 0, n * BLOCK_N, k]).reshape(2 * BLOCK_N, BLOCK_K)
        both = tl.dot(x, w.T, both, input_precision=PRECISION)
    gate, up = both.reshape(ROWS, 2, BLOCK_N).permute(0, 2, 1).split()
    inner = silu(gate) * up
    out_ptrs = inner_ptr + rows_M.to(tl.int64)[:, None] * I + columns_N[None, :]
    mask = (rows_M < end)[:, None] & (columns_N < I)[None, :]
    tl.store(out_ptrs, inner.to(inner_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gate_up_kernel(
    x_ptr, w13_desc, inner_ptr, order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    FEW: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """inner[row] = silu(gate·x) · (up·x); a tile of at most FEW rows costs less."""
    tile, n, expert = locate(tile_expert_ptr, I, H, BLOCK_N, PDL)
    if expert < 0:
        return
    start, end = tl.load(tile_start_ptr + tile), tl.load(offsets_ptr + expert + 1)
    if FEW == BLOCK_M or end - start > FEW:
        _tile_gate_up(
            x_ptr, w13_desc, inner_ptr, order_ptr, expert, start, end, n,
            K, H, I, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
    else:
        _tile_gate_up(
            x_ptr, w13_desc, inner_ptr, order_ptr, expert, start, end, n,
            K, H, I, FEW, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip


@triton.jit
def _tile_down(
    inner_desc, w2_desc, out_ptr, order_ptr, expert, start, end, n,
    H: tl.constexpr, I: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows start..end, ROWS at most, and BLOCK_N columns of H."""
    rows_M = start + tl.arange(0, ROWS)
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    routes_M = tl.load(order_ptr + tl.minimum(rows_M, end - 1))
    total = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    for k in range(0, I, BLOCK_K):
        inner = inner_desc.load([start, k])  # rows past the end belong to others and are not stored
        w = w2_desc.load([expert, n * BLOCK_N, k]).reshape(BLOCK_N, BLOCK_K)
        total = tl.dot(inner, w.T, total, input_precision=PRECISION)
    out_ptrs = out_ptr + routes_M.to(tl.int64)[:, None] * H + columns_N[None, :]
    mask = (rows_M < end)[:, None] & (columns_N < H)[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _down_kernel(
    inner_desc, inner_few_desc, w2_desc, out_ptr,
    order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    H: tl.constexpr, I: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    FEW: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[route] = down·inner[row]; a tile of at most FEW rows costs less."""
    tile, n, expert = locate(tile_expert_ptr, H, I, BLOCK_N, PDL)
    if expert < 0:
        return
    start, end = tl.load(tile_start_ptr + tile), tl.load(offsets_ptr + expert + 1)
    if FEW == BLOCK_M or end - start > FEW:
        _tile_down(
            inner_desc, w2_desc, out_ptr, order_ptr, expert, start, end, n,
            H, I, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
    else:
        _tile_down(
            inner_few_desc, w2_desc, out_ptr, order_ptr, expert, start, end, n,
            H, I, FEW, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip


def gate_up_wide(
    x_TH: torch.Tensor,
    w13: Weight,
    aligned: Alignment,
    num_routes_per_token: int,
    tiles: Tiles,
    *,
    out_PI: torch.Tensor,
    pdl: bool,
) -> None:
    """`grouped.gate_up`, which has checked the shapes, where `fits(tiles, w13.values)`."""
    E, double, H = w13.shape
    width = double // 2
    assert w13.scales is None and fits(tiles, w13.values)
    # [E, gate or up, I, H]: one box holds the same columns of both.
    w13_desc = TensorDescriptor.from_tensor(
        w13.values.view(E, 2, width, H), [1, 2, tiles.block_n, tiles.block_k]
    )
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(width, tiles.block_n),)
    _gate_up_kernel[grid](
        x_TH, w13_desc, out_PI,
        aligned.order, aligned.offsets, aligned.tile_expert, aligned.tile_start,
        K=num_routes_per_token, H=H, I=width,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, FEW=_few(tiles),
        PRECISION=precision(x_TH.dtype),
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(pdl),
    )  # fmt: skip


def down_wide(
    inner_PI: torch.Tensor,
    w2: Weight,
    aligned: Alignment,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """`grouped.down`, which has checked the shapes, where `fits(tiles, w2.values,
    inner_PI)`."""
    E, H, width = w2.shape
    assert w2.scales is None and fits(tiles, w2.values, inner_PI)
    grid = (aligned.tile_expert.shape[0] * triton.cdiv(H, tiles.block_n),)
    _down_kernel[grid](
        TensorDescriptor.from_tensor(inner_PI, [tiles.block_m, tiles.block_k]),
        TensorDescriptor.from_tensor(inner_PI, [_few(tiles), tiles.block_k]),
        TensorDescriptor.from_tensor(w2.values, [1, tiles.block_n, tiles.block_k]),
        out_PH, aligned.order, aligned.offsets, aligned.tile_expert, aligned.tile_start,
        H=H, I=width, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        FEW=_few(tiles), PRECISION=precision(inner_PI.dtype),
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(pdl),
    )  # fmt: skip


def _few(tiles: Tiles) -> int:
    """Rows of a short tile: half, but no less than one wgmma."""
    return max(tiles.block_m // 2, _MIN_ROWS)
