"""Weights of eight bits in a GEMM: made wider in registers, and their scales put on sums.

Owns device functions, one step each, and what a launch says of scales. A block of BN rows and BK
inputs has one scale. SCALES is "block", where a program's rows lie in one row of blocks and one
step's inputs in one block; "row", where a scale holds for all inputs of a row; "" for plain
weights, whose products stay as they are. N rows, K inputs of a matrix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from moe.base.add_dot import add_dot
from moe.base.int4_dot import within_groups
from moe.base.tiles import INT4_NAME, Tiles
from moe.base.weight import Weight


@triton.jit
def widen(w, DTYPE: tl.constexpr):
    """The same values in DTYPE."""
    if w.dtype != DTYPE:
        # The direct way to bf16 converts at an eighth of the rate of this one.
        w = w.to(tl.float16).to(tl.float32).to(DTYPE)
    return w


@triton.jit
def block_scale(
    scales_ptr, matrix, row, k, N, K: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """For `add_scaled_dot`: that of the block at `row` and `k` of a matrix [N, K] of several."""
    scale = 1.0
    if SCALES == "block":
        scale = tl.load(scales_ptr + (matrix * (N // BN) + row // BN) * (K // BK) + k // BK)
    return scale


@triton.jit
def add_scaled_dot(
    total, x, w, scale, SCALES: tl.constexpr, PRECISION: tl.constexpr, SWAP: tl.constexpr
):  # fmt: skip
    """total + scale · x·wᵀ; with SWAP both `total` and the result are transposed."""
    w = widen(w, x.dtype)
    if SCALES == "block":
        total += scale * add_dot(tl.zeros_like(total), x, w, PRECISION, SWAP)
    else:
        total = add_dot(total, x, w, PRECISION, SWAP)
    return total


@triton.jit
def scale_rows(
    total, scales_ptr, matrix, rows_N, is_row_N, N, SCALES: tl.constexpr, SWAP: tl.constexpr
):  # fmt: skip
    """total [N] or [M, N], with SWAP [N, M]; times the scales of rows where these have some."""
    if SCALES == "row":
        scales = tl.load(scales_ptr + matrix * N + rows_N, mask=is_row_N, other=0.0)
        if SWAP:
            scales = scales[:, None]
        total = total * scales
    return total


@triton.jit
def products(
    w, x, scales_ptr, matrix, row, k, N, K: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of w [rows, inputs] and x [inputs] at `row` and `k`: each product, or where blocks have
    scales their sums over each block, scaled. Either way [rows, `num_sums`]."""
    each = w.to(tl.float32) * x[None, :]
    if SCALES == "block":
        count: tl.constexpr = num_sums(w.shape[1], SCALES, BK)
        size: tl.constexpr = w.shape[1] // count
        sums = tl.sum(each.reshape(w.shape[0], count, size), axis=2)
        blocks = (k + size * tl.arange(0, count)) // BK
        first = (matrix * (N // BN) + row // BN) * (K // BK)
        scales = tl.load(scales_ptr + first + blocks, mask=blocks < K // BK, other=0.0)
        each = sums * scales[None, :]
    return each


@triton.constexpr_function
def num_sums(inputs: int, scales: str, bk: int) -> int:
    """Sums that `products` leaves of so many inputs, a power of two."""
    return max(1, inputs // (bk & -bk)) if scales == "block" else inputs


def scale_options(weight: Weight) -> dict[str, Any]:
    """SCALES, BN and BK of a launch over this weight."""
    if weight.block is None:
        return {"SCALES": "", "BN": 1, "BK": 1}
    bn, bk = weight.block
    if bn == 1:
        assert bk == weight.shape[-1]
        return {"SCALES": "row", "BN": bn, "BK": bk}
    assert bn % 16 == 0 and bk % 16 == 0
    return {"SCALES": "block", "BN": bn, "BK": bk}


def within_blocks(tiles: Tiles, weight: Weight) -> Tiles:
    """The tiles, made smaller where they would reach over several blocks of scales."""
    if weight.kind == INT4_NAME:
        return within_groups(tiles, weight)
    if weight.block is None or weight.block[0] == 1:
        return tiles
    block_n, block_k = map(_power_of_2_in, weight.block)
    if tiles.block_m == 1:  # `products` takes several blocks of inputs at once
        block_k = tiles.block_k
    if tiles.block_n <= block_n and tiles.block_k <= block_k:
        return tiles
    return dataclasses.replace(
        tiles, block_n=min(tiles.block_n, block_n), block_k=min(tiles.block_k, block_k)
    )


def _power_of_2_in(size: int) -> int:
    """The largest one that divides it."""
    return size & -size
