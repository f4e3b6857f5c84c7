"""Causal attention of prompt tokens over the paged KV cache, which holds their keys already.

Owns the arithmetic of a tile of queries; knows nothing of how a batch is cut into tiles (plan.py),
how they are cut along their contexts (prefill_split.py), or who wrote the cache. Shapes: T tokens,
P tiles, E entries, C splits, N query heads, K key heads, G = N / K, M query rows, D head_dim of
queries and keys, V of values. A tile's rows are the G query heads of each of its tokens, so keys
and values are read once for all of them and a tile's mask reaches over few keys. Sums are fp32;
probabilities are rounded to the model dtype before they meet the values, as
scaled_dot_product_attention does, and the output once at the end.

The splits of a tile are joined by the last program of the tile and key head to finish, which it
learns from a counter, in the order of their keys. A window bounds the keys of a tile, so tiles with
one are never split.

The tiles and the tables are read before the wait for the kernel before this one: they must have
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
from workers.attention.plan import PrefillTiles, prefill_tile_tokens, prefill_tiles
from workers.attention.prefill_split import SPLIT_FIELDS

# Of a multiprocessor's 227 KiB, what queries, keys and values may take together.
_SHARED_BYTES = 224 << 10
_FIELDS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWorkspace:
    """What splits of tiles leave for the join.

    Attributes:
        partials_CKMV, lse_CKM: fp32 outputs and base-2 log-sum-exps, of any values between
            launches.
        finished_CK: int32, splits of a tile that are done, at its first; zeros between launches.
    """

    partials_CKMV: torch.Tensor
    lse_CKM: torch.Tensor
    finished_CK: torch.Tensor


@triton.jit
def _join_parts(
    partials_ptr, lse_ptr, sinks_ptr, rows_M, heads_M, real_MV, at_MV, count,
    KV_HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, V_HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """The attention of a tile's query rows over all its splits; pointers name the first."""
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for _ in range(count):
        # Past L1, which may hold what an earlier launch left at this place.
        lse = tl.load(lse_ptr + rows_M, cache_modifier=".cg")
        part = tl.load(partials_ptr + at_MV, mask=real_MV, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, lse)
        fade = tl.exp2(top - new_top)
        weight = tl.exp2(lse - new_top)
        acc = acc * fade[:, None] + part * weight[:, None]
        total = total * fade + weight
        top = new_top
        partials_ptr += KV_HEADS * BLOCK_M * V_HEAD_DIM
        lse_ptr += KV_HEADS * BLOCK_M
    acc = acc / total[:, None]
    if sinks_ptr is not None:
        acc = beside_sinks(acc, top + tl.log2(total), tl.load(sinks_ptr + heads_M))
    return acc


@triton.jit
def _store_whole(
    acc, top, total, sinks_ptr, heads_M, out_ptr, at_MV, real_MV, out_scales_ptr, places_M, real_M,
    V_HEAD_DIM: tl.constexpr, ROUND: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What rows found that have seen all their keys."""
    if sinks_ptr is not None:
        acc = beside_sinks(acc, top + tl.log2(total), tl.load(sinks_ptr + heads_M))
    store_heads(
        acc, out_ptr, at_MV, real_MV, out_scales_ptr, places_M, real_M, V_HEAD_DIM, ROUND, COLUMNS
    )


@triton.jit
def _tile_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    scales_ptr,  # None but for an FP8 cache
    tables_ptr,
    tiles_ptr,
    sinks_ptr,  # None: there are none
    out_ptr,
    out_scales_ptr,  # None but for rows of eight bits
    partials_ptr,  # this one and the next two: None without SPLIT
    lse_ptr,
    finished_ptr,
    q_stride,
    table_stride,
    SCALE: tl.constexpr,  # that of scores times log2(e): the softmax is taken to base 2
    WINDOW: tl.constexpr,  # None: there is none
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    FIELDS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    ROUND: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One tile of queries, or with SPLIT a range of its keys, for one key head and its query heads;
    grid (K, P) or (K, E)."""
    kv_head = tl.program_id(0)
    fields = tiles_ptr + tl.program_id(1) * FIELDS
    first = tl.load(fields)
    count = tl.load(fields + 1)
    slot = tl.load(fields + 2)
    position = tl.load(fields + 3)
    if SPLIT:
        begin = tl.load(fields + 4)
        stop = tl.load(fields + 5)
        part = tl.load(fields + 6)
        first_split = tl.load(fields + 7)
        num_splits = tl.load(fields + 8)
    else:
        begin = 0
        stop = position + count
        if WINDOW is not None:
            begin = tl.maximum(position - (WINDOW - 1), 0) // BLOCK_N * BLOCK_N
    # Unsigned, so that block and place in it are a shift and a mask.
    end = stop.to(tl.uint32)
    tokens = tl.arange(0, BLOCK_N).to(tl.uint32)
    if SPLIT or WINDOW is not None:
        tokens += begin.to(tl.uint32)
    table_ptr = tables_ptr + slot.to(tl.int64) * table_stride
    blocks = load_blocks(table_ptr, tokens, end, BLOCK_SIZE)
    wait_for_previous(PDL)
    if SPLIT:  # noqa: SIM102 - the kernel's language evaluates both sides of `and`
        if count == 0:  # padding
            return

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    query = m // GROUP
    head = kv_head * GROUP + m % GROUP
    real_d = d < HEAD_DIM
    real_md = (query < count)[:, None] & real_d[None, :]
    in_row = head[:, None] * HEAD_DIM + d[None, :]
    e = tl.arange(0, BLOCK_V)
    real_v = e < V_HEAD_DIM
    real_mv = (query < count)[:, None] & real_v[None, :]
    in_out_row = head[:, None] * V_HEAD_DIM + e[None, :]
    q_ptr += first.to(tl.int64) * q_stride
    q = tl.load(q_ptr + query[:, None] * q_stride + in_row, mask=real_md, other=0.0)
    keys_ptr += kv_head * HEAD_DIM
    values_ptr += kv_head * V_HEAD_DIM
    STRIDE: tl.constexpr = KV_HEADS * HEAD_DIM
    V_STRIDE: tl.constexpr = KV_HEADS * V_HEAD_DIM
    FP8: tl.constexpr = scales_ptr is not None
    if FP8:
        scales_ptr += 2 * kv_head * BLOCK_SIZE

    COMPUTE: tl.constexpr = tl.float16 if FP8 and q.dtype == tl.bfloat16 else q.dtype
    q = q.to(COMPUTE)
    # With a window a row may see nothing of its first keys: a finite score makes no NaN of them.
    top = tl.full([BLOCK_M], float("-inf") if WINDOW is None else -3.4e38, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for start in range(begin, stop, BLOCK_N):
        live = tokens < end
        live_nd = live[:, None] & real_d[None, :]
        at = places(blocks, tokens, BLOCK_SIZE, STRIDE)[:, None] + d[None, :]
        live_nv = live[:, None] & real_v[None, :]
        v_at = places(blocks, tokens, BLOCK_SIZE, V_STRIDE)[:, None] + e[None, :]
        if FP8:
            k_scales, v_exponents, v_inverses = load_scales(
                scales_ptr, blocks, tokens, live, BLOCK_SIZE, KV_HEADS
            )
        # The ids of the next tile are under way while this one is at work.
        tokens += BLOCK_N
        blocks = load_blocks(table_ptr, tokens, end, BLOCK_SIZE)
        # Behind the length a block may hold anything: zeros stand there instead.
        k = tl.load(keys_ptr + at, mask=live_nd, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(COMPUTE)), input_precision=PRECISION)
        if FP8:
            scores = scores * (k_scales * SCALE)[None, :] + v_exponents[None, :]
        if start + BLOCK_N > position + 1:
            seen = (position + query)[:, None] >= (start + tl.arange(0, BLOCK_N))[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        if WINDOW is not None:  # noqa: SIM102 - as above
            if start + WINDOW < position + count:
                old = start + WINDOW + tl.arange(0, BLOCK_N)
                recent = (position + query)[:, None] < old[None, :]
                scores = tl.where(recent, scores, float("-inf"))
        if FP8:
            p, top, fade = soften(scores, top, 1.0, 15)
        else:
            p, top, fade = soften(scores, top, SCALE)
        v = tl.load(values_ptr + v_at, mask=live_nv, other=0.0)
        acc = tl.dot(p.to(COMPUTE), v.to(COMPUTE), acc * fade[:, None], input_precision=PRECISION)
        if FP8:
            p = p * v_inverses[None, :]
        total = total * fade + tl.sum(p, 1)

    acc = acc / total[:, None]
    out_ptr += first.to(tl.int64) * (KV_HEADS * GROUP * V_HEAD_DIM)
    to = query[:, None] * (KV_HEADS * GROUP * V_HEAD_DIM) + in_out_row
    heads = query * (KV_HEADS * GROUP) + head
    if out_scales_ptr is not None:
        out_scales_ptr += first.to(tl.int64) * (KV_HEADS * GROUP * (V_HEAD_DIM // COLUMNS))
    if SPLIT:
        if num_splits > 0:
            PART: tl.constexpr = KV_HEADS * BLOCK_M
            partials_ptr += kv_head * (BLOCK_M * V_HEAD_DIM)
            lse_ptr += kv_head * BLOCK_M
            at_mv = m[:, None] * V_HEAD_DIM + e[None, :]
            tl.store(
                partials_ptr + part.to(tl.int64) * (PART * V_HEAD_DIM) + at_mv, acc, mask=real_mv
            )
            tl.store(lse_ptr + part * PART + m, top + tl.log2(total))
            # All threads' stores come before the one thread's release.
            tl.debug_barrier()
            finished_ptr += first_split * KV_HEADS + kv_head
            others = tl.atomic_add(finished_ptr, 1, sem="acq_rel", scope="gpu")
            if others == num_splits - 1:
                partials_ptr += first_split.to(tl.int64) * (PART * V_HEAD_DIM)
                lse_ptr += first_split * PART
                joined = _join_parts(
                    partials_ptr, lse_ptr, sinks_ptr, m, head, real_mv, at_mv, num_splits,
                    KV_HEADS, BLOCK_M, BLOCK_V, V_HEAD_DIM,
                )  # fmt: skip
                store_heads(
                    joined, out_ptr, to, real_mv, out_scales_ptr, heads, query < count,
                    V_HEAD_DIM, ROUND, COLUMNS,
                )  # fmt: skip
                tl.store(finished_ptr, 0)
        else:
            _store_whole(
                acc, top, total, sinks_ptr, head, out_ptr, to, real_mv, out_scales_ptr,
                heads, query < count, V_HEAD_DIM, ROUND, COLUMNS,
            )  # fmt: skip
    else:
        _store_whole(
            acc, top, total, sinks_ptr, head, out_ptr, to, real_mv, out_scales_ptr,
            heads, query < count, V_HEAD_DIM, ROUND, COLUMNS,
        )  # fmt: skip


def prefill_attention(
    q_TND: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    plan: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks_N: torch.Tensor | None = None,
    out: torch.Tensor | Quantized | None = None,
    workspace: PrefillWorkspace | None = None,
    pdl: bool = False,
    tiles: PrefillTiles | None = None,
) -> torch.Tensor | Quantized:
    """Attend with each tile's queries to all up to themselves.

    Args:
        q_TND: ``[T, N, D]``, tokens any distance apart.
        cache: of the queries' dtype or FP8.
        tables: int32 ``[num_slots, max_blocks]``; only blocks within a row's length are read.
        plan: int32 ``[P, 4]`` on the device, of plan_prefill with
            ``prefill_tile_tokens(tiles.block_m, N, K)``; tokens of no tile keep what ``out``
            holds. Or int32 ``[E, 9]``, of split_tiles of that; entries of zeros are padding.
        scale: what scores are multiplied by, above 0.
        window: keys that a query sees, its own included; None: all. Whole tiles alone have one.
        sinks_N: a score each query head has besides, of no key and not scaled; None: none.
        out: ``[T, N, V]``, or ``[T, N·V]`` of eight bits.
        workspace: for entries alone, of at least as many splits as they name.
        pdl: launch while the kernel before ends (CUDA only).
        tiles: of ``prefill_tiles`` for T tokens unless given.

    Returns:
        ``out``.
    """
    num_tokens, num_heads, head_dim = q_TND.shape
    _, block_size, kv_heads, v_head_dim = cache.values.shape
    if out is None:
        out = q_TND.new_empty((num_tokens, num_heads, v_head_dim))
    if tiles is None:
        width = max(head_dim, v_head_dim)
        tiles = prefill_tiles(num_tokens, fp8=cache.scales is not None, width=width)
    check_operands(q_TND, cache, tables, out, sinks_N)
    out_values, out_scales, _ = split_quantized(out)
    assert scale > 0 and (window is None or window > 0)
    assert prefill_tile_tokens(tiles.block_m, num_heads, kv_heads)
    split = plan.shape[1] == SPLIT_FIELDS
    assert split or plan.shape[1] == _FIELDS, f"a plan of {plan.shape[1]} columns"
    assert window is None or not split
    # A mask hides what is ahead of a query, not what the next split has.
    assert not split or (tiles.unit and tiles.unit % tiles.block_n == 0)
    assert plan.is_contiguous() and plan.dtype == torch.int32
    parts: tuple[torch.Tensor | None, ...] = (None,) * 3
    if split:
        parts = check_workspace(workspace, kv_heads, tiles.block_m, v_head_dim)
    if not len(plan):
        return out
    block_d, block_v = (max(16, triton.next_power_of_2(dim)) for dim in (head_dim, v_head_dim))
    block_n, num_stages = _fitting(tiles, cache, q_TND.element_size(), block_d, block_v)
    _tile_kernel[(kv_heads, len(plan))](
        q_TND,
        cache.keys,
        cache.values,
        cache.scales,
        tables,
        plan,
        sinks_N,
        out_values,
        out_scales,
        *parts,
        q_TND.stride(0),
        tables.stride(0),
        SCALE=math.log2(math.e) * scale,
        WINDOW=window,
        KV_HEADS=kv_heads,
        GROUP=num_heads // kv_heads,
        HEAD_DIM=head_dim,
        V_HEAD_DIM=v_head_dim,
        BLOCK_SIZE=block_size,
        FIELDS=plan.shape[1],
        SPLIT=split,
        BLOCK_M=tiles.block_m,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        BLOCK_V=block_v,
        PRECISION=precision(q_TND.dtype),
        **store_options(out, q_TND.dtype),
        num_warps=tiles.num_warps,
        num_stages=num_stages,
        **({"maxnreg": tiles.max_registers} if tiles.max_registers else {}),
        **launch_options(pdl),
    )
    return out


def check_workspace(
    workspace: PrefillWorkspace | None, kv_heads: int, block_m: int, v_head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Its tensors, as the kernel takes them."""
    assert workspace is not None, "split tiles need a workspace"
    parts = (workspace.partials_CKMV, workspace.lse_CKM, workspace.finished_CK)
    num_splits = len(workspace.finished_CK)
    for tensor, shape in zip(
        parts, ((kv_heads, block_m, v_head_dim), (kv_heads, block_m), (kv_heads,)), strict=True
    ):
        assert tensor.shape == (num_splits, *shape) and tensor.is_contiguous()
    assert workspace.finished_CK.dtype == torch.int32
    return parts


def _fitting(
    tiles: PrefillTiles, cache: LayerCache, num_bytes: int, block_d: int, block_v: int
) -> tuple[int, int]:
    """Keys handled at once and stages of them, as many as shared memory holds: at most
    ``tiles.block_n`` and ``tiles.num_stages``.

    Args:
        num_bytes: of a number of a query, or of a key or value as queries meet it.
    """
    left, block_n = _SHARED_BYTES - tiles.block_m * block_d * num_bytes, tiles.block_n
    token = (block_d + block_v) * num_bytes
    while block_n > 16 and block_n * token > left:
        block_n //= 2
    tile = block_n * token
    fitting = left // tile if cache.scales is None else (left - tile) // (tile // 2)
    return block_n, max(1, min(tiles.num_stages, fitting))
