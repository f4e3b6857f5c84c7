"""Attention of one query token a row over a paged cache of latents, split along long contexts.

Owns the arithmetic of a chunk and when a row's chunks are joined, both as `decode_attention` does;
knows nothing of how contexts are cut (workers.attention.plan). A chunk's program has as many of the
query heads as its registers hold outputs of, see `head_groups`: usually all of a rank's, which read
each entry once. Shapes: S rows, N query heads in K groups of G, C width of a latent, E of an entry.

The plan and the tables are read before the wait for the kernel before this one: they must have
been written at least two kernels earlier.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from workers.attention.kernels.decode_attention import DecodeWorkspace, check_workspace
from workers.attention.kernels.join_chunks import join_apart
from workers.attention.kernels.key_tiles import load_blocks
from workers.attention.kernels.mla_tiles import attend_latents, check_queries, join_parts, widths
from workers.attention.kv_cache import LayerCache
from workers.attention.mla_spec import head_groups
from workers.attention.plan import CHUNK_FIELDS, decode_tiles

_TILE = 64  # entries met at once
# Tiles in flight, by whether a program's queries stay in shared memory, as 64 of them do.
_STAGES = {True: 2, False: 3}


@triton.jit
def _chunk_kernel(
    q_ptr, keys_ptr, tables_ptr, chunks_ptr, out_ptr, partials_ptr, lse_ptr, finished_ptr,
    table_stride, SCALE: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr,
    R: tl.constexpr, BLOCK_SIZE: tl.constexpr, CHUNK_FIELDS: tl.constexpr, TILE: tl.constexpr,
    JOIN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One chunk of one row, for one group of query heads; grid (K, C)."""
    HEADS: tl.constexpr = GROUPS * GROUP
    group = tl.program_id(0)
    fields = chunks_ptr + tl.program_id(1) * CHUNK_FIELDS
    row = tl.load(fields)
    slot = tl.load(fields + 1)
    start = tl.load(fields + 2)
    stop = tl.load(fields + 3)
    part = tl.load(fields + 4)
    first = tl.load(fields + 5)
    count = tl.load(fields + 6)
    # Unsigned, so that block and place in it are a shift and a mask.
    tokens = start.to(tl.uint32) + tl.arange(0, TILE).to(tl.uint32)
    table_ptr = tables_ptr + slot.to(tl.int64) * table_stride
    blocks = load_blocks(table_ptr, tokens, stop.to(tl.uint32), BLOCK_SIZE)
    wait_for_previous(PDL)
    if row < 0:
        return

    m, c, r = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    heads = group * GROUP + m
    is_head = m < GROUP
    is_mc = is_head[:, None] & (c < C)[None, :]
    q_ptrs = q_ptr + (row.to(tl.int64) * HEADS + heads)[:, None] * (C + R)
    q_MC = tl.load(q_ptrs + c[None, :], mask=is_mc, other=0.0)
    is_mr = is_head[:, None] & (r < R)[None, :]
    q_MR = tl.load(q_ptrs + C + r[None, :], mask=is_mr, other=0.0)
    acc, lse = attend_latents(
        q_MC, q_MR, keys_ptr, table_ptr, tokens, blocks, start, stop, heads,
        SCALE, C, R, BLOCK_SIZE, TILE, BLOCK_M, BLOCK_C, BLOCK_R, False, PRECISION,
    )  # fmt: skip
    at_mc = heads[:, None] * C + c[None, :]
    out_ptr += row.to(tl.int64) * (HEADS * C)
    if count == 1:
        tl.store(out_ptr + at_mc, acc.to(out_ptr.dtype.element_ty), mask=is_mc)
    else:
        tl.store(partials_ptr + part.to(tl.int64) * (HEADS * C) + at_mc, acc, mask=is_mc)
        tl.store(lse_ptr + part * HEADS + heads, lse, mask=is_head)
        if JOIN:
            # All threads' stores come before the one thread's release.
            tl.debug_barrier()
            finished_ptr += row * GROUPS + group
            others = tl.atomic_add(finished_ptr, 1, sem="acq_rel", scope="gpu")
            if others == count - 1:
                joined, _ = join_parts(
                    partials_ptr + first.to(tl.int64) * (HEADS * C), lse_ptr + first * HEADS,
                    at_mc, heads, is_head, is_mc, count, HEADS, C, BLOCK_M, BLOCK_C,
                )  # fmt: skip
                tl.store(out_ptr + at_mc, joined.to(out_ptr.dtype.element_ty), mask=is_mc)
                tl.store(finished_ptr, 0)


def decode_latents(
    q_SNE: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    chunks: torch.Tensor,
    *,
    scale: float,
    out_SNC: torch.Tensor,
    workspace: DecodeWorkspace,
    join: bool | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Attend with one query a row, whose entry is in the cache.

    Same launches whatever ``chunks`` holds, so a CUDA graph may replay them.

    Args:
        q_SNE: of `absorb_queries`.
        cache: of the queries' dtype.
        tables: int32 ``[num_slots, max_blocks]``; only blocks within a row's length are read.
        chunks: int32 ``[C, 8]`` on the device, of plan_decode.
        scale: of scores.
        out_SNC: means of latents; padding rows become zeros.
        workspace: for at least as many chunks, and S rows of as many key heads as `head_groups`.
        join: the last program of a row joins its chunks; else a kernel of its own does. As
            `decode_tiles` has it unless given.

    Returns:
        ``out_SNC``.
    """
    S, N, _ = q_SNE.shape
    C, groups = out_SNC.shape[2], head_groups(N)
    check_queries(q_SNE, cache, tables, out_SNC)
    assert chunks.shape[1] == CHUNK_FIELDS and chunks.is_contiguous()
    assert chunks.dtype == torch.int32
    check_workspace(workspace, (S, len(chunks), N, groups, C))
    if join is None:
        join = decode_tiles(S).join > 0
    block_m = max(16, triton.next_power_of_2(N // groups))
    _chunk_kernel[(groups, len(chunks))](
        q_SNE, cache.keys, tables, chunks, out_SNC, workspace.partials_CNV, workspace.lse_CN,
        workspace.finished_SK, tables.stride(0),
        SCALE=scale * math.log2(math.e), GROUPS=groups, GROUP=N // groups,
        BLOCK_SIZE=cache.block_size, CHUNK_FIELDS=CHUNK_FIELDS, TILE=_TILE, JOIN=join,
        BLOCK_M=block_m, PRECISION=precision(q_SNE.dtype),
        num_warps=8, num_stages=_STAGES[block_m >= 64],
        **widths(q_SNE, out_SNC), **launch_options(pdl),
    )  # fmt: skip
    if not join:
        parts = workspace.partials_CNV, workspace.lse_CN
        join_apart(*parts, None, chunks, CHUNK_FIELDS, out=out_SNC, dtype=out_SNC.dtype, pdl=pdl)
    return out_SNC
