"""y = x Wᵀ: for few rows x a stream of weights, cut along the depth where columns are too few to
fill the device.

Owns those kernels and the choice between them, the library's GEMM, `gemm_int4` and, for rows and
weights of eight bits, `gemm_narrow_fp8`, `gemm_fp8` or `specialized_fp8`. Where the depth is cut,
the result is fp32 parts, which the next kernel sums in fixed order. Weights may be of fp32 under
rows of 16 bits, as routers are. M rows, N outputs, K inputs, S parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.add_dot import add_fp32_dot
from moe.base.context import KernelContext
from moe.base.gemm_fp8 import linear_fp8
from moe.base.gemm_int4 import linear_int4, linear_int4_vector
from moe.base.gemm_narrow_fp8 import linear_narrow
from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.prefetch import prefetch_tile
from moe.base.promoted_dot import fits, narrow_fits, specializes
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.scaled_dot import (
    add_scaled_dot,
    block_scale,
    products,
    scale_options,
    scale_rows,
    within_blocks,
)
from moe.base.specialized_fp8 import linear_tiles, specialized_linear
from moe.base.tiles import FP8_NAME, INT4_NAME, MANY_ROWS, Tiles, power_of_2
from moe.base.weight import Weight

# Weights of up to so many bytes are asked for before the input is there: they fit the L2 cache.
_PREFETCH_BYTES = 32 << 20
# Of so many inputs each weight is asked for by so many programs that asking early costs more.
_PREFETCH_ROWS = 2048
# Of the multiprocessors' rounds through tiles of `specialized_fp8`, so much must be work: with
# 61 % it takes 32 us where others take 27, with 81 % 47 against 54.
_LEAST_FILL = 0.7


@triton.jit(do_not_specialize=["M"])
def _linear_kernel(
    x_ptr, w_ptr, scales_ptr, out_ptr,
    M, N: tl.constexpr, K: tl.constexpr, K_PART: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, PREFETCH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    columns_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_M = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row_M, is_column_N = rows_M < M, columns_N < N
    ks = part * K_PART + tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows_M[:, None] * K + ks[None, :]
    w_ptrs = w_ptr + columns_N.to(tl.int64)[:, None] * K + ks[None, :]
    even: tl.constexpr = (N % BLOCK_N == 0) and (K_PART % BLOCK_K == 0) and (K % K_PART == 0)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    total = tl.zeros(shape, dtype=tl.float32)
    if PREFETCH:
        prefetch_tile(w_ptr, tl.program_id(0) * BLOCK_N, part * K_PART, N, K, BLOCK_N, K_PART)
    wait_for_previous(PDL)
    row = tl.program_id(0) * BLOCK_N
    for k in range(0, K_PART, BLOCK_K):
        # Of a last part that is shorter than the others there are no scales behind its end.
        at = part * K_PART + k if even else tl.minimum(part * K_PART + k, K - 1)
        scale = block_scale(scales_ptr, 0, row, at, N, K, SCALES, BN, BK)
        if even:
            x = tl.load(x_ptrs + k, mask=is_row_M[:, None], other=0.0)
            w = tl.load(w_ptrs + k)
        else:
            is_k = (ks[None, :] + k < K) & (tl.arange(0, BLOCK_K)[None, :] + k < K_PART)
            x = tl.load(x_ptrs + k, mask=is_row_M[:, None] & is_k, other=0.0)
            w = tl.load(w_ptrs + k, mask=is_column_N[:, None] & is_k, other=0.0)
        if w.dtype == tl.float32 and x.dtype != tl.float32:
            total = add_fp32_dot(total, x, w, SWAP)
        else:
            total = add_scaled_dot(total, x, w, scale, SCALES, PRECISION, SWAP)
    total = scale_rows(total, scales_ptr, 0, columns_N, is_column_N, N, SCALES, SWAP)
    if SWAP:
        total = total.T
    out_ptrs = out_ptr + part.to(tl.int64) * M * N + rows_M[:, None] * N + columns_N[None, :]
    tl.store(
        out_ptrs, total.to(out_ptr.dtype.element_ty), mask=is_row_M[:, None] & is_column_N[None, :]
    )


@triton.jit(do_not_specialize=["N"])
def _linear_vector_kernel(
    x_ptr, w_ptr, scales_ptr, out_ptr, N, K: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = Σ_k w[n, k] x[k]: the weights' tile is on its way before the input is there."""
    rows_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row_N = rows_N < N
    ks = tl.arange(0, BLOCK_K)
    is_k = ks < K
    w = tl.load(
        w_ptr + rows_N.to(tl.int64)[:, None] * K + ks[None, :],
        mask=is_row_N[:, None] & is_k[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )
    wait_for_previous(PDL)
    x = tl.load(x_ptr + ks, mask=is_k, other=0.0).to(tl.float32)
    row = tl.program_id(0) * BLOCK_N
    total_N = tl.sum(products(w, x, scales_ptr, 0, row, 0, N, K, SCALES, BN, BK), axis=1)
    total_N = scale_rows(total_N, scales_ptr, 0, rows_N, is_row_N, N, SCALES, False)
    tl.store(out_ptr + rows_N, total_N.to(out_ptr.dtype.element_ty), mask=is_row_N)


def linear_parts(
    x_MK: torch.Tensor | Quantized,
    weight_NK: Weight,
    context: KernelContext,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    quantized_MK: Quantized | None = None,
) -> torch.Tensor:
    """Parts ``[S, M, N]`` whose sum is x Wᵀ: fp32, or one part in ``dtype``.

    Args:
        x_MK: of eight bits only where `rows_for` gives such.
        name: of the workspace buffer that holds them.
        dtype: that of plain ``x_MK``, else the model's, where it is not given. Products and sums
            are those of fp32 anyway.
        quantized_MK: plain ``x_MK`` in eight bits, if anyone made it. Many rows that nobody made
            take a launch more; few are then multiplied as they are.
    """
    M, K = x_MK.shape
    if takes_quantized(M, weight_NK, context):
        eight_bits_MK = x_MK if isinstance(x_MK, Quantized) else quantized_MK
        if M >= MANY_ROWS:
            rows_MK = eight_bits_MK or x_MK
            return _quantized(rows_MK, weight_NK, context, name, dtype or context.dtype)
        if eight_bits_MK is not None:
            return _narrow(eight_bits_MK, weight_NK, context, name, dtype or context.dtype)
    assert isinstance(x_MK, torch.Tensor)
    dtype = dtype or x_MK.dtype
    N = weight_NK.shape[0]
    assert weight_NK.shape[1] == K
    assert weight_NK.values.is_contiguous() and x_MK.is_contiguous()
    if M == 0:
        return x_MK.new_empty((1, 0, N), dtype=dtype)
    tiles = _tiles(x_MK, weight_NK, context, dtype)
    out_SMN, depth = _parts(M, weight_NK, tiles, context, name, dtype)
    if tiles is None:
        torch.mm(x_MK, weight_NK.values.t(), out=out_SMN[0])
    elif tiles.block_m == 1:
        assert M == 1
        _vector(x_MK, weight_NK, out_SMN, tiles, context.pdl)
    else:
        _tiled(x_MK, weight_NK, out_SMN, depth, tiles, context.pdl)
    return out_SMN


def _tiles(
    x_MK: torch.Tensor, weight_NK: Weight, context: KernelContext, dtype: torch.dtype
) -> Tiles | None:
    """None: the library's GEMM, which gives what it was given, and knows no scales."""
    (M, K), N = x_MK.shape, weight_NK.shape[0]
    if weight_NK.values.dtype == torch.float32 != x_MK.dtype:
        return context.tiles.fp32_linear(N, K, M)
    may_be_library = dtype == x_MK.dtype and weight_NK.scales is None
    tiles = context.tiles.linear(N, K, M, weights=weight_NK.kind, library=may_be_library)
    return tiles and within_blocks(tiles, weight_NK)


def rows_for(
    weight_NK: Weight, num_rows: int, context: KernelContext, name: str
) -> torch.Tensor | Quantized:
    """Memory for rows [M, K] that are made to be multiplied with this weight alone, of eight bits
    where they are many and its GEMM takes such; it belongs to ``name``.

    Few stay as they are: what makes them would take longer by more than the GEMM gains.
    """
    shape = (num_rows, weight_NK.shape[1])
    # Taken in any case: a frozen workspace must have room for fewer rows that are plain.
    plain_MK = context.workspace.take(name, shape, context.dtype)
    if makes_quantized(num_rows, weight_NK, context):
        return take_quantized(context.workspace, name, shape)
    return plain_MK


def makes_quantized(num_rows: int, weight_NK: Weight, context: KernelContext) -> bool:
    """Whether `rows_for` so many rows has eight bits."""
    return num_rows >= MANY_ROWS and takes_quantized(num_rows, weight_NK, context)


def takes_quantized(num_rows: int, weight_NK: Weight, context: KernelContext) -> bool:
    """Whether so many rows and this weight are multiplied in eight bits, if rows have them."""
    if weight_NK.kind != FP8_NAME or context.tiles.item_size == 4:
        return False
    many = num_rows >= MANY_ROWS
    if many and _takes_specialized(num_rows, weight_NK, context):
        return True
    tiles = _fp8_tiles(num_rows, weight_NK, context)
    return fits(tiles, weight_NK) if many else narrow_fits(tiles, weight_NK)


def _fp8_tiles(num_rows: int, weight_NK: Weight, context: KernelContext) -> Tiles:
    N, K = weight_NK.shape
    tiles = context.tiles.linear(N, K, num_rows, weights=weight_NK.kind)
    assert tiles is not None, "the library has no GEMM of these weights"
    return tiles


def _takes_specialized(num_rows: int, weight_NK: Weight, context: KernelContext) -> bool:
    """By the next power of two, as tiles are chosen: warm-up has met those alone, and what a later
    step chose otherwise it would compile."""
    N = weight_NK.shape[0]
    if not (context.specialized and specializes(weight_NK, N)):
        return False
    tiles = linear_tiles(power_of_2(num_rows), N)
    rounds = -(-tiles // context.num_cores)
    return tiles >= _LEAST_FILL * rounds * context.num_cores


def _quantized(
    x_MK: torch.Tensor | Quantized,
    weight_NK: Weight,
    context: KernelContext,
    name: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    (M, K), N = x_MK.shape, weight_NK.shape[0]
    out_1MN = context.workspace.take(name, (1, M, N), dtype)
    if not isinstance(x_MK, Quantized):
        own = take_quantized(context.workspace, "quantized", (M, K))
        x_MK = quantize_rows(x_MK, out=own, pdl=context.pdl)
    if _takes_specialized(M, weight_NK, context):
        specialized_linear(x_MK, weight_NK, out_MN=out_1MN[0], pdl=context.pdl)
        return out_1MN
    tiles = _fp8_tiles(M, weight_NK, context)
    linear_fp8(x_MK, weight_NK, tiles, out_MN=out_1MN[0], pdl=context.pdl)
    return out_1MN


def _narrow(
    x_MK: Quantized, weight_NK: Weight, context: KernelContext, name: str, dtype: torch.dtype
) -> torch.Tensor:
    tiles = _fp8_tiles(x_MK.shape[0], weight_NK, context)
    out_SMN, depth = _parts(x_MK.shape[0], weight_NK, tiles, context, name, dtype)
    prefetch = context.pdl and _fits_cache(weight_NK.values, depth)
    linear_narrow(
        x_MK, weight_NK, depth, tiles, out_SMN=out_SMN, prefetch=prefetch, pdl=context.pdl
    )
    return out_SMN


def _parts(
    M: int,
    weight_NK: Weight,
    tiles: Tiles | None,
    context: KernelContext,
    name: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, int]:
    """Memory for the parts of M rows, and the inputs of a part."""
    N, K = weight_NK.shape
    depth = _part_depth(tiles, weight_NK)
    splits = triton.cdiv(K, depth)
    part_dtype = dtype if splits == 1 else torch.float32
    return context.workspace.take(name, (splits, M, N), part_dtype), depth


def _part_depth(tiles: Tiles | None, weight_NK: Weight) -> int:
    """Inputs of a part; where blocks have scales, whole tiles of them."""
    splits, step = (1, 1) if tiles is None else (tiles.splits, tiles.block_k)
    depth: int = triton.cdiv(weight_NK.shape[1], splits)
    if weight_NK.scales is not None and splits > 1:
        depth = step * triton.cdiv(depth, step)
    return depth


def _vector(
    x_1K: torch.Tensor, weight_NK: Weight, out: torch.Tensor, tiles: Tiles, pdl: bool
) -> None:
    N, K = weight_NK.shape
    if weight_NK.kind == INT4_NAME:
        linear_int4_vector(x_1K, weight_NK, tiles, out_11N=out, pdl=pdl)
        return
    _linear_vector_kernel[(triton.cdiv(N, tiles.block_n),)](
        x_1K, weight_NK.values, weight_NK.scales, out, N, K=K,
        BLOCK_N=tiles.block_n, BLOCK_K=triton.next_power_of_2(K),
        num_warps=tiles.warps, **scale_options(weight_NK), **launch_options(pdl),
    )  # fmt: skip


def _tiled(
    x_MK: torch.Tensor,
    weight_NK: Weight,
    out_SMN: torch.Tensor,
    depth: int,
    tiles: Tiles,
    pdl: bool,
) -> None:
    """Each part takes ``depth`` inputs, the last one what is left."""
    S, M, N = out_SMN.shape
    is_int4 = weight_NK.kind == INT4_NAME
    stored_depth = depth // 2 if is_int4 else depth
    prefetch = pdl and M <= _PREFETCH_ROWS and _fits_cache(weight_NK.values, stored_depth)
    if is_int4:
        linear_int4(x_MK, weight_NK, depth, tiles, out_SMN=out_SMN, prefetch=prefetch, pdl=pdl)
        return
    grid = (triton.cdiv(N, tiles.block_n), S, triton.cdiv(M, tiles.block_m))
    _linear_kernel[grid](
        x_MK, weight_NK.values, weight_NK.scales, out_SMN,
        M, N=N, K=weight_NK.shape[1], K_PART=depth,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        PRECISION=precision(x_MK.dtype), SWAP=tiles.swap,
        PREFETCH=prefetch,
        num_warps=tiles.warps, num_stages=tiles.stages,
        **scale_options(weight_NK), **launch_options(pdl),
    )  # fmt: skip


def _fits_cache(w_NK: torch.Tensor, depth: int) -> bool:
    """Whether a program's share is a power of two of whole lines, and all shares fit."""
    whole = w_NK.shape[1] % depth == 0 and depth & (depth - 1) == 0
    return whole and depth * w_NK.itemsize >= 128 and w_NK.nbytes <= _PREFETCH_BYTES
