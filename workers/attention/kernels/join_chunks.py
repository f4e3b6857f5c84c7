"""What the chunks of a context found, joined to attention over all of it.

Owns the arithmetic, for a program that finds all chunks there and as a kernel of its own; does not
know how contexts were cut. Shapes: C chunks, N query heads, V head_dim of values: fp32 outputs
``[C, N, V]`` and base-2 log-sum-exps ``[C, N]`` in, the model dtype or eight bits out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.quantized import Quantized, split_quantized
from workers.attention.kernels.key_tiles import beside_sinks
from workers.attention.kernels.store_heads import store_heads, store_options

# Chunks that the second kernel reads at once: with very few rows all that there may be.
_VERY_FEW_ROWS = 2
_JOIN_CHUNKS = (32, 8)


@triton.jit
def join_chunks(
    partials_ptr,
    lse_ptr,
    sinks_ptr,  # None: there are none
    out_ptr,
    out_scales_ptr,  # None but for eight bits
    count,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    V_HEAD_DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROUND: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The chunks of one row, for the query heads of one key head; pointers name the first."""
    BLOCK_G: tl.constexpr = triton.next_power_of_2(GROUP)
    c = tl.arange(0, BLOCK_C)
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_V)
    real_g = g < GROUP
    real_gd = real_g[:, None] & (d < V_HEAD_DIM)[None, :]
    gd = g[:, None] * V_HEAD_DIM + d[None, :]
    cgd = c[:, None, None] * (HEADS * V_HEAD_DIM) + gd[None, :, :]
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_V], tl.float32)
    for done in range(0, count, BLOCK_C):
        live = done + c < count
        live_cgd = live[:, None, None] & real_gd[None, :, :]
        # Past L1, which may hold what an earlier launch left at this place.
        part = tl.load(partials_ptr + cgd, mask=live_cgd, other=0.0, cache_modifier=".cg")
        lse = tl.load(
            lse_ptr + (c[:, None] * HEADS + g[None, :]),
            mask=live[:, None] & real_g[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )
        lse = tl.where(real_g[None, :], lse, 0.0)
        new_top = tl.maximum(top, tl.max(lse, 0))
        weight = tl.exp2(lse - new_top[None, :])
        fade = tl.exp2(top - new_top)
        acc = acc * fade[:, None] + tl.sum(part * weight[:, :, None], 0)
        total = total * fade + tl.sum(weight, 0)
        top = new_top
        partials_ptr += BLOCK_C * HEADS * V_HEAD_DIM
        lse_ptr += BLOCK_C * HEADS
    acc = acc / total[:, None]
    if sinks_ptr is not None:
        sinks = tl.load(sinks_ptr + g, mask=real_g, other=0.0)
        acc = beside_sinks(acc, top + tl.log2(total), sinks)
    store_heads(acc, out_ptr, gd, real_gd, out_scales_ptr, g, real_g, V_HEAD_DIM, ROUND, COLUMNS)


@triton.jit
def _join_kernel(
    partials_ptr, lse_ptr, sinks_ptr, chunks_ptr, out_ptr, out_scales_ptr,
    HEADS: tl.constexpr, V_HEAD_DIM: tl.constexpr, CHUNK_FIELDS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
    ROUND: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One query head of one row; grid (N, S)."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    entry = tl.load(chunks_ptr + row * CHUNK_FIELDS + 7)
    first = tl.load(chunks_ptr + entry * CHUNK_FIELDS + 5)
    count = tl.load(chunks_ptr + entry * CHUNK_FIELDS + 6)
    wait_for_previous(PDL)
    if count > 1:
        if sinks_ptr is not None:
            sinks_ptr += head
        if out_scales_ptr is not None:
            out_scales_ptr += (row.to(tl.int64) * HEADS + head) * (V_HEAD_DIM // COLUMNS)
        join_chunks(
            partials_ptr + (first.to(tl.int64) * HEADS + head) * V_HEAD_DIM,
            lse_ptr + first * HEADS + head,
            sinks_ptr,
            out_ptr + (row.to(tl.int64) * HEADS + head) * V_HEAD_DIM,
            out_scales_ptr,
            count, HEADS, 1, V_HEAD_DIM, BLOCK_C, BLOCK_V, ROUND, COLUMNS,
        )  # fmt: skip


def join_apart(
    partials_CNV: torch.Tensor,
    lse_CN: torch.Tensor,
    sinks_N: torch.Tensor | None,
    chunks: torch.Tensor,
    num_fields: int,
    *,
    out: torch.Tensor | Quantized,
    dtype: torch.dtype,
    pdl: bool,
) -> None:
    """Rows of more than one chunk, in ``out``: ``[S, N, V]``, in eight bits ``[S, N·V]``.

    Args:
        chunks: int32 ``[C, num_fields]``, of attention.plan.plan_decode.
        dtype: what rows are rounded to, first where they have eight bits.
    """
    num_rows, (num_heads, v_head_dim) = out.shape[0], partials_CNV.shape[1:]
    values, scales, _ = split_quantized(out)
    few = num_rows <= _VERY_FEW_ROWS
    _join_kernel[(num_heads, num_rows)](
        partials_CNV, lse_CN, sinks_N, chunks, values, scales,
        HEADS=num_heads, V_HEAD_DIM=v_head_dim, CHUNK_FIELDS=num_fields,
        BLOCK_C=_JOIN_CHUNKS[not few], BLOCK_V=max(16, triton.next_power_of_2(v_head_dim)),
        num_warps=4 if few else 1, **store_options(out, dtype), **launch_options(pdl),
    )  # fmt: skip
