"""Attention of one query token a row over the paged KV cache, split along long contexts.

Owns the arithmetic of a chunk and the joining of a row's chunks; knows nothing of how contexts
are cut (workers.attention_plan) or who wrote the cache. Shapes: S rows, C chunks, N query heads,
K key heads, G = N / K, D head_dim. Sums are fp32; probabilities are rounded to the model dtype
before they meet the values, as scaled_dot_product_attention does, and the output once at the end.

The plan and the tables are read before the wait for the kernel before this one: they must have
been written at least two kernels earlier.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import triton
import triton.language as tl

from workers.attention_plan import CHUNK_FIELDS, num_splits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkspace:
    """What chunks of split rows leave for the join: fp32 outputs and base-2 log-sum-exps."""

    partials_CND: torch.Tensor
    lse_CN: torch.Tensor

    @classmethod
    def allocate(
        cls, capacity: int, num_heads: int, head_dim: int, device: torch.device | str
    ) -> DecodeWorkspace:
        shape = (capacity, num_heads, head_dim)
        return cls(
            partials_CND=torch.empty(shape, dtype=torch.float32, device=device),
            lse_CN=torch.empty(shape[:2], dtype=torch.float32, device=device),
        )


@triton.jit
def _chunk_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    tables_ptr,
    chunks_ptr,
    out_ptr,
    partials_ptr,
    lse_ptr,
    q_stride,
    table_stride,
    SCALE: tl.constexpr,  # log2(e) / sqrt(D): the softmax is taken to base 2
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CHUNK_FIELDS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """One chunk of one row, for one key head and its query heads; grid (K, C)."""
    kv_head = tl.program_id(0)
    chunk = tl.program_id(1)
    fields = chunks_ptr + chunk * CHUNK_FIELDS
    row = tl.load(fields)
    slot = tl.load(fields + 1)
    start = tl.load(fields + 2)
    stop = tl.load(fields + 3)
    whole = tl.load(fields + 4)
    tokens = start + tl.arange(0, TILE)
    table_ptr = tables_ptr + slot.to(tl.int64) * table_stride
    blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < stop, other=0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if row < 0:
        return

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    real_d = d < HEAD_DIM
    real_gd = (g < GROUP)[:, None] & real_d[None, :]
    gd = (kv_head * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
    q = tl.load(q_ptr + row.to(tl.int64) * q_stride + gd, mask=real_gd, other=0.0)
    keys_ptr += kv_head * HEAD_DIM
    values_ptr += kv_head * HEAD_DIM

    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    # Summed over tokens at the end alone: in every tile it would cost barriers between warps.
    totals = tl.zeros([BLOCK_G, TILE], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for _ in range(start, stop, TILE):
        live = tokens < stop
        live_td = live[:, None] & real_d[None, :]
        place = blocks.to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE
        at = place[:, None] * (KV_HEADS * HEAD_DIM) + d[None, :]
        # The ids of the next tile are under way while this one is at work.
        tokens += TILE
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < stop, other=0)
        # Behind the length a block may hold anything: zeros stand there instead.
        k = tl.load(keys_ptr + at, mask=live_td, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = tl.where(live[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * SCALE)
        p = tl.exp2(scores * SCALE - new_top[:, None])
        fade = tl.exp2(top - new_top)
        v = tl.load(values_ptr + at, mask=live_td, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        totals = totals * fade[:, None] + p
        top = new_top

    total = tl.sum(totals, 1)
    # A padding row saw no token: zeros, so that nothing behind it meets a NaN.
    acc = acc / tl.where(stop > start, total, 1.0)[:, None]
    if whole != 0:
        out_ptr += row.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM)
        tl.store(out_ptr + gd, acc.to(out_ptr.dtype.element_ty), mask=real_gd)
    else:
        partials_ptr += chunk.to(tl.int64) * (KV_HEADS * GROUP * HEAD_DIM)
        tl.store(partials_ptr + gd, acc, mask=real_gd)
        lse_ptr += (chunk * KV_HEADS + kv_head) * GROUP
        tl.store(lse_ptr + g, top + tl.log2(total), mask=g < GROUP)


@triton.jit
def _join_kernel(
    partials_ptr,
    lse_ptr,
    splits_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """The chunks of one row in their order, for one query head; grid (N, splits)."""
    head = tl.program_id(0)
    fields = splits_ptr + tl.program_id(1) * 3
    row = tl.load(fields)
    first = tl.load(fields + 1)
    count = tl.load(fields + 2)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if row < 0:
        return
    c = tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    real_d = d < HEAD_DIM
    top = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for done in range(0, count, BLOCK_C):
        live = done + c < count
        at = (first + done + c) * HEADS + head
        lse = tl.load(lse_ptr + at, mask=live, other=float("-inf"))
        from_ptr = partials_ptr + at.to(tl.int64)[:, None] * HEAD_DIM + d[None, :]
        part = tl.load(from_ptr, mask=live[:, None] & real_d[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(lse, 0))
        weight = tl.exp2(lse - new_top)
        fade = tl.exp2(top - new_top)
        acc = acc * fade + tl.sum(part * weight[:, None], 0)
        total = total * fade + tl.sum(weight, 0)
        top = new_top
    to = out_ptr + (row.to(tl.int64) * HEADS + head) * HEAD_DIM + d
    tl.store(to, (acc / total).to(out_ptr.dtype.element_ty), mask=real_d)


def decode_attention(
    q_SND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    chunks: torch.Tensor,
    splits: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
    pdl: bool = False,
    tile: int = 64,
    num_warps: int = 4,
    num_stages: int = 3,
) -> torch.Tensor:
    """Attend with one query a row, whose key and value are in the cache; scale 1 / sqrt(D).

    Same launches whatever ``chunks`` and ``splits`` hold, so a CUDA graph may replay them.

    Args:
        q_SND: ``[S, N, D]``, rows any distance apart.
        keys: ``[num_blocks, block_size, K, D]``; ``values`` alike.
        tables: int32 ``[num_slots, max_blocks]``; only blocks within a row's length are read.
        chunks: int32 ``[C, 5]`` on the device, DecodePlan.chunks.
        splits: int32 ``[num_splits, 3]`` on the device, DecodePlan.splits.
        out: ``[S, N, D]``; padding rows become zeros.
        workspace: for at least C chunks.
        pdl: launch while the kernel before ends (CUDA only).
        tile: tokens handled at once, a power of two of at least 16.

    Returns:
        ``out``.
    """
    num_rows, num_heads, head_dim = q_SND.shape
    _, block_size, kv_heads, _ = keys.shape
    capacity = len(chunks)
    if out is None:
        out = torch.empty_like(q_SND, memory_format=torch.contiguous_format)
    if workspace is None:
        workspace = DecodeWorkspace.allocate(capacity, num_heads, head_dim, q_SND.device)
    assert keys.shape == values.shape and keys.shape[3] == head_dim
    assert keys.is_contiguous() and values.is_contiguous()
    assert keys.dtype == values.dtype == q_SND.dtype == out.dtype
    assert num_heads % kv_heads == 0
    assert q_SND.stride()[1:] == (head_dim, 1)
    assert tables.dtype == chunks.dtype == splits.dtype == torch.int32
    assert tables.stride(1) == 1
    assert chunks.shape == (capacity, CHUNK_FIELDS) and chunks.is_contiguous()
    assert splits.shape == (num_splits(num_rows, capacity), 3) and splits.is_contiguous()
    assert out.shape == q_SND.shape and out.is_contiguous()
    assert workspace.partials_CND.shape[1:] == (num_heads, head_dim)
    assert workspace.lse_CN.shape[0] >= capacity <= workspace.partials_CND.shape[0]
    assert workspace.partials_CND.is_contiguous() and workspace.lse_CN.is_contiguous()
    group = num_heads // kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    launch_pdl = {"launch_pdl": True} if pdl else {}
    _chunk_kernel[(kv_heads, capacity)](
        q_SND,
        keys,
        values,
        tables,
        chunks,
        out,
        workspace.partials_CND,
        workspace.lse_CN,
        q_SND.stride(0),
        tables.stride(0),
        SCALE=math.log2(math.e) / math.sqrt(head_dim),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        CHUNK_FIELDS=CHUNK_FIELDS,
        TILE=tile,
        BLOCK_G=max(16, triton.next_power_of_2(group)),
        BLOCK_D=block_d,
        PRECISION="ieee" if keys.dtype == torch.float32 else "tf32",
        PDL=pdl,
        num_warps=num_warps,
        num_stages=num_stages,
        **launch_pdl,
    )
    if len(splits):
        # Few rows: all chunks in flight at once; many: small programs, since most find no work.
        block_c, join_warps = (64, 8) if num_rows <= 32 else (32, 4)
        _join_kernel[(num_heads, len(splits))](
            workspace.partials_CND,
            workspace.lse_CN,
            splits,
            out,
            HEADS=num_heads,
            HEAD_DIM=head_dim,
            BLOCK_C=block_c,
            BLOCK_D=block_d,
            PDL=pdl,
            num_warps=join_warps,
            **launch_pdl,
        )
    return out
