"""Attention of one query token a row over the paged KV cache, split along long contexts.

Owns the arithmetic of a chunk and when a row's chunks are joined; knows nothing of how contexts
are cut (workers.attention.plan) or who wrote the cache. Shapes: S rows, C chunks, N query heads,
K key heads, G = N / K, D head_dim of queries and keys, V of values. Sums are fp32; probabilities
are rounded to the model dtype before they meet the values, as scaled_dot_product_attention does,
and the output once at the end. What a window hides is in no chunk; a sink is met at the end, by the
program of a row's only chunk or by the join.

Chunks are joined in the order of their tokens, whoever does it: with many rows the last program of
a row and key head to finish, which it learns from a counter; with few rows, all of which are
split, a second kernel, whose programs share the work better.

The plan and the tables are read before the wait for the kernel before this one: they must have
been written at least two kernels earlier.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.quantized import Quantized, split_quantized
from workers.attention.kernels.join_chunks import join_apart, join_chunks
from workers.attention.kernels.key_tiles import (
    beside_sinks,
    check_operands,
    load_blocks,
    load_scales,
    places,
    soften,
)
from workers.attention.kernels.store_heads import store_heads, store_options
from workers.attention.kv_cache import LayerCache
from workers.attention.plan import CHUNK_FIELDS, DecodeTiles, decode_tiles

# Of a multiprocessor's 227 KiB, what keys and values that are on their way may take.
_SHARED_BYTES = 208 << 10
# Numbers of chunks' outputs that a program joins at once; half as many where registers are capped.
_JOINED = 1 << 14
# Numbers of its own output beyond which they are not.
_CAPPED = 1 << 13


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkspace:
    """What chunks of split rows leave for the join.

    Attributes:
        partials_CNV, lse_CN: fp32 outputs and base-2 log-sum-exps, of any values between launches.
        finished_SK: int32, chunks of a row that are done; zeros between launches.
    """

    partials_CNV: torch.Tensor
    lse_CN: torch.Tensor
    finished_SK: torch.Tensor

    @classmethod
    def allocate(
        cls,
        num_rows: int,
        capacity: int,
        num_heads: int,
        kv_heads: int,
        v_head_dim: int,
        device: torch.device | str,
    ) -> DecodeWorkspace:
        shape = (capacity, num_heads, v_head_dim)
        return cls(
            partials_CNV=torch.empty(shape, dtype=torch.float32, device=device),
            lse_CN=torch.empty(shape[:2], dtype=torch.float32, device=device),
            finished_SK=torch.zeros((num_rows, kv_heads), dtype=torch.int32, device=device),
        )


@triton.jit
def _add_fourth(
    weights_GT, words_TW, NUMBER: tl.constexpr, acc_GW, DTYPE: tl.constexpr, PRECISION: tl.constexpr
):
    """The weighted values that stand at one place of FP8's words.

    A tensor core wants two tokens' values side by side, the cache has a token's: by words it takes
    a fourth of the loads that it takes by bytes.
    """
    values_TW = (words_TW >> (8 * NUMBER)).to(tl.int8).to(tl.float8e4nv, bitcast=True)
    return tl.dot(weights_GT.to(DTYPE), values_TW.to(DTYPE), acc_GW, input_precision=PRECISION)


@triton.jit
def _chunk_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,  # of an FP8 cache words of four
    scales_ptr,  # None but for an FP8 cache
    tables_ptr,
    chunks_ptr,
    sinks_ptr,  # None: there are none
    out_ptr,
    out_scales_ptr,  # None but for rows of eight bits
    partials_ptr,
    lse_ptr,
    finished_ptr,
    q_stride,
    table_stride,
    SCALE: tl.constexpr,  # that of scores times log2(e): the softmax is taken to base 2
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK_FIELDS: tl.constexpr,
    TILE: tl.constexpr,
    JOIN: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One chunk of one row, for one key head and its query heads; grid (K, C)."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    kv_head = tl.program_id(0)
    fields = chunks_ptr + tl.program_id(1) * CHUNK_FIELDS
    row = tl.load(fields)
    slot = tl.load(fields + 1)
    start = tl.load(fields + 2)
    stop = tl.load(fields + 3)
    part = tl.load(fields + 4)
    first = tl.load(fields + 5)
    count = tl.load(fields + 6)
    # Unsigned, so that block and place in it are a shift and a mask.
    end = stop.to(tl.uint32)
    tokens = start.to(tl.uint32) + tl.arange(0, TILE).to(tl.uint32)
    table_ptr = tables_ptr + slot.to(tl.int64) * table_stride
    keys_ptr += kv_head * HEAD_DIM
    FP8: tl.constexpr = scales_ptr is not None
    values_ptr += kv_head * (V_HEAD_DIM // 4 if FP8 else V_HEAD_DIM)
    STRIDE: tl.constexpr = KV_HEADS * HEAD_DIM
    V_STRIDE: tl.constexpr = KV_HEADS * V_HEAD_DIM
    if FP8:
        scales_ptr += 2 * kv_head * BLOCK_SIZE
    blocks = load_blocks(table_ptr, tokens, end, BLOCK_SIZE)
    wait_for_previous(PDL)
    if row < 0:
        return

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    real_d = d < HEAD_DIM
    real_gd = (g < GROUP)[:, None] & real_d[None, :]
    gd = g[:, None] * HEAD_DIM + d[None, :]
    e = tl.arange(0, BLOCK_V)
    real_v = e < V_HEAD_DIM
    real_gv = (g < GROUP)[:, None] & real_v[None, :]
    gv = g[:, None] * V_HEAD_DIM + e[None, :]
    head = kv_head * GROUP
    q_ptr += row.to(tl.int64) * q_stride + head * HEAD_DIM
    q = tl.load(q_ptr + gd, mask=real_gd, other=0.0)

    COMPUTE: tl.constexpr = tl.float16 if FP8 and q.dtype == tl.bfloat16 else q.dtype
    q = q.to(COMPUTE)
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    # Summed over tokens at the end alone: in every tile it would cost barriers between warps.
    totals = tl.zeros([BLOCK_G, TILE], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_V], tl.float32)
    if FP8:
        word = tl.arange(0, BLOCK_V // 4)
        acc = tl.zeros([BLOCK_G, BLOCK_V // 4], tl.float32)
        acc_1, acc_2, acc_3 = acc, acc, acc
    for _ in range(start, stop, TILE):
        live = tokens < end
        live_td = live[:, None] & real_d[None, :]
        at = places(blocks, tokens, BLOCK_SIZE, STRIDE)[:, None] + d[None, :]
        if FP8:
            words = places(blocks, tokens, BLOCK_SIZE, V_STRIDE // 4)[:, None] + word[None, :]
            live_tw = live[:, None] & (word < V_HEAD_DIM // 4)[None, :]
            k_scales, v_exponents, v_inverses = load_scales(
                scales_ptr, blocks, tokens, live, BLOCK_SIZE, KV_HEADS
            )
        else:
            v_at = places(blocks, tokens, BLOCK_SIZE, V_STRIDE)[:, None] + e[None, :]
            live_tv = live[:, None] & real_v[None, :]
        # The ids of the next tile are under way while this one is at work.
        tokens += TILE
        blocks = load_blocks(table_ptr, tokens, end, BLOCK_SIZE)
        # Behind the length a block may hold anything: zeros stand there instead.
        k = tl.load(keys_ptr + at, mask=live_td, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(COMPUTE)), input_precision=PRECISION)
        if FP8:
            scores = scores * (k_scales * SCALE)[None, :] + v_exponents[None, :]
        scores = tl.where(live[None, :], scores, float("-inf"))
        if FP8:
            p, top, fade = soften(scores, top, 1.0, 15)
        else:
            p, top, fade = soften(scores, top, SCALE)
        if FP8:
            v = tl.load(values_ptr + words, mask=live_tw, other=0)
            acc = _add_fourth(p, v, 0, acc * fade[:, None], COMPUTE, PRECISION)
            acc_1 = _add_fourth(p, v, 1, acc_1 * fade[:, None], COMPUTE, PRECISION)
            acc_2 = _add_fourth(p, v, 2, acc_2 * fade[:, None], COMPUTE, PRECISION)
            acc_3 = _add_fourth(p, v, 3, acc_3 * fade[:, None], COMPUTE, PRECISION)
            p = p * v_inverses[None, :]
        else:
            v = tl.load(values_ptr + v_at, mask=live_tv, other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        totals = totals * fade[:, None] + p

    if FP8:
        acc = tl.join(tl.join(acc, acc_2), tl.join(acc_1, acc_3)).reshape(BLOCK_G, BLOCK_V)
    total = tl.sum(totals, 1)
    # A padding row saw no token: zeros, so that nothing behind it meets a NaN.
    acc = acc / tl.where(stop > start, total, 1.0)[:, None]
    out_ptr += (row.to(tl.int64) * HEADS + head) * V_HEAD_DIM
    if out_scales_ptr is not None:
        out_scales_ptr += (row.to(tl.int64) * HEADS + head) * (V_HEAD_DIM // COLUMNS)
    if count == 1:
        if sinks_ptr is not None:
            sinks = tl.load(sinks_ptr + head + g, mask=g < GROUP, other=0.0)
            acc = beside_sinks(acc, top + tl.log2(total), sinks)
        store_heads(
            acc, out_ptr, gv, real_gv, out_scales_ptr, g, g < GROUP, V_HEAD_DIM, ROUND, COLUMNS
        )
    else:
        partials_ptr += head * V_HEAD_DIM
        lse_ptr += head
        part_ptr = partials_ptr + part.to(tl.int64) * (HEADS * V_HEAD_DIM)
        tl.store(part_ptr + gv, acc, mask=real_gv)
        tl.store(lse_ptr + part * HEADS + g, top + tl.log2(total), mask=g < GROUP)
        if JOIN > 0:
            # All threads' stores come before the one thread's release.
            tl.debug_barrier()
            finished_ptr += row * KV_HEADS + kv_head
            others = tl.atomic_add(finished_ptr, 1, sem="acq_rel", scope="gpu")
            if others == count - 1:
                partials_ptr += first.to(tl.int64) * (HEADS * V_HEAD_DIM)
                lse_ptr += first * HEADS
                if sinks_ptr is not None:
                    sinks_ptr += head
                join_chunks(
                    partials_ptr, lse_ptr, sinks_ptr, out_ptr, out_scales_ptr, count,
                    HEADS, GROUP, V_HEAD_DIM, JOIN, BLOCK_V, ROUND, COLUMNS,
                )  # fmt: skip
                tl.store(finished_ptr, 0)


def decode_attention(
    q_SND: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    chunks: torch.Tensor,
    *,
    scale: float,
    sinks_N: torch.Tensor | None = None,
    out: torch.Tensor | Quantized | None = None,
    workspace: DecodeWorkspace | None = None,
    pdl: bool = False,
    tiles: DecodeTiles | None = None,
) -> torch.Tensor | Quantized:
    """Attend with one query a row, whose key and value are in the cache.

    Same launches whatever ``chunks`` holds, so a CUDA graph may replay them.

    Args:
        q_SND: ``[S, N, D]``, rows any distance apart.
        cache: of the queries' dtype or FP8.
        tables: int32 ``[num_slots, max_blocks]``; only blocks within a row's length are read.
        chunks: int32 ``[C, 8]`` on the device, of plan_decode, which knows the window.
        scale: what scores are multiplied by, above 0.
        sinks_N: a score each query head has besides, of no key and not scaled; None: none.
        out: ``[S, N, V]``, or ``[S, N·V]`` of eight bits; padding rows become zeros.
        workspace: for at least C chunks and S rows.
        pdl: launch while the kernel before ends (CUDA only).
        tiles: of ``decode_tiles`` unless given; any do for any chunks.

    Returns:
        ``out``.
    """
    num_rows, num_heads, head_dim = q_SND.shape
    _, block_size, kv_heads, v_head_dim = cache.values.shape
    capacity = len(chunks)
    if out is None:
        out = q_SND.new_empty((num_rows, num_heads, v_head_dim))
    if workspace is None:
        workspace = DecodeWorkspace.allocate(
            num_rows, capacity, num_heads, kv_heads, v_head_dim, q_SND.device
        )
    if tiles is None:
        width = max(head_dim, v_head_dim)
        tiles = decode_tiles(num_rows, fp8=cache.scales is not None, width=width)
    check_operands(q_SND, cache, tables, out, sinks_N)
    out_values, out_scales, _ = split_quantized(out)
    assert scale > 0
    assert chunks.shape == (capacity, CHUNK_FIELDS) and chunks.is_contiguous()
    assert chunks.dtype == torch.int32
    check_workspace(workspace, (num_rows, capacity, num_heads, kv_heads, v_head_dim))
    group = num_heads // kv_heads
    block_d, block_v = (max(16, triton.next_power_of_2(dim)) for dim in (head_dim, v_head_dim))
    block_g = max(16, triton.next_power_of_2(group))
    capped = tiles.max_registers is not None and block_g * block_v <= _CAPPED
    join = min(tiles.join, max(1, (_JOINED >> capped) // (triton.next_power_of_2(group) * block_v)))
    _chunk_kernel[(kv_heads, capacity)](
        q_SND,
        cache.keys,
        cache.values if cache.scales is None else cache.values.view(torch.int32),
        cache.scales,
        tables,
        chunks,
        sinks_N,
        out_values,
        out_scales,
        workspace.partials_CNV,
        workspace.lse_CN,
        workspace.finished_SK,
        q_SND.stride(0),
        tables.stride(0),
        SCALE=math.log2(math.e) * scale,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        BLOCK_SIZE=block_size,
        CHUNK_FIELDS=CHUNK_FIELDS,
        TILE=_fitting_tile(tiles, (block_d + block_v) * cache.keys.element_size()),
        JOIN=join,
        BLOCK_G=block_g,
        BLOCK_D=block_d,
        BLOCK_V=block_v,
        PRECISION=precision(q_SND.dtype),
        **store_options(out, q_SND.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **({"maxnreg": tiles.max_registers} if capped else {}),
        **launch_options(pdl),
    )
    if tiles.join == 0:
        join_apart(
            workspace.partials_CNV, workspace.lse_CN, sinks_N, chunks, CHUNK_FIELDS,
            out=out, dtype=q_SND.dtype, pdl=pdl,
        )  # fmt: skip
    return out


def check_workspace(workspace: DecodeWorkspace, sizes: tuple[int, int, int, int, int]) -> None:
    num_rows, capacity, num_heads, kv_heads, v_head_dim = sizes
    partials_CNV, lse_CN = workspace.partials_CNV, workspace.lse_CN
    finished_SK = workspace.finished_SK
    assert partials_CNV.shape[1:] == (num_heads, v_head_dim) and lse_CN.shape[1] == num_heads
    assert lse_CN.shape[0] >= capacity <= partials_CNV.shape[0]
    assert finished_SK.shape[0] >= num_rows and finished_SK.shape[1] == kv_heads
    assert finished_SK.dtype == torch.int32
    assert partials_CNV.is_contiguous() and lse_CN.is_contiguous() and finished_SK.is_contiguous()


def _fitting_tile(tiles: DecodeTiles, token_bytes: int) -> int:
    """Tokens, at most ``tiles.tile``, of which shared memory holds all stages but the one at work.

    Args:
        token_bytes: of a token's key and value.
    """
    tile = tiles.tile
    while tile > 16 and (tiles.num_stages - 1) * tile * token_bytes > _SHARED_BYTES:
        tile //= 2
    return tile
