"""Causal attention of prompt tokens over a paged cache of latents, which holds their entries.

Owns the arithmetic of a tile of queries, as `prefill_attention` does; knows nothing of how a batch
is cut into tiles (plan.py) or these along their contexts (prefill_split.py). Queries are absorbed,
as those of decodes: a score takes E products in place of P + R, a value C in place of V, and no key
or value is ever made. Shapes: T tokens, N query heads in K groups of G, M query rows, C width of a
latent, E of an entry. A tile's rows are the G query heads of each of its tokens.

The tiles and the tables are read before the wait for the kernel before this one: they must have
been written at least two kernels earlier.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from workers.attention.kernels.key_tiles import load_blocks
from workers.attention.kernels.mla_tiles import attend_latents, check_queries, join_parts, widths
from workers.attention.kernels.prefill_attention import PrefillWorkspace, check_workspace
from workers.attention.kv_cache import LayerCache
from workers.attention.mla_spec import head_groups
from workers.attention.plan import prefill_tile_tokens, prefill_tiles
from workers.attention.prefill_split import SPLIT_FIELDS

_FIELDS = 4
_ROWS = 64  # of a program, whose outputs over latents fill its registers
_TILE = 64


@triton.jit
def _store(out_ptrs, out_lse_ptr, rows_M, acc_MC, lse_M, is_mc, is_row_M):
    tl.store(out_ptrs, acc_MC.to(out_ptrs.dtype.element_ty), mask=is_mc)
    if out_lse_ptr is not None:
        tl.store(out_lse_ptr + rows_M, lse_M, mask=is_row_M)


@triton.jit
def _tile_kernel(
    q_ptr, keys_ptr, tables_ptr, tiles_ptr, out_ptr, starts_ptr, out_lse_ptr, partials_ptr,
    lse_ptr, finished_ptr, table_stride, SCALE: tl.constexpr, GROUPS: tl.constexpr,
    GROUP: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    FIELDS: tl.constexpr, SPLIT: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """TOKENS of a tile's queries, or with SPLIT a range of the tile's entries, for one group of
    query heads; grid (K, tiles, programs a tile)."""
    HEADS: tl.constexpr = GROUPS * GROUP
    group = tl.program_id(0)
    fields = tiles_ptr + tl.program_id(1) * FIELDS
    skipped = tl.program_id(2) * TOKENS
    first = tl.load(fields) + skipped
    count = tl.minimum(tl.load(fields + 1) - skipped, TOKENS)
    slot = tl.load(fields + 2)
    position = tl.load(fields + 3) + skipped
    if SPLIT:
        begin = tl.load(fields + 4)
        stop = tl.load(fields + 5)
        part = tl.load(fields + 6)
        first_split = tl.load(fields + 7)
        num_splits = tl.load(fields + 8)
    else:
        begin = 0
        stop = position + count
    if starts_ptr is not None:
        # Of the batch's last tile, or behind it, the first token may be no token.
        stop = tl.minimum(stop, tl.load(starts_ptr + first, mask=count > 0, other=0))
    # Unsigned, so that block and place in it are a shift and a mask.
    tokens = tl.arange(0, TILE).to(tl.uint32)
    if SPLIT:
        tokens += begin.to(tl.uint32)
    table_ptr = tables_ptr + slot.to(tl.int64) * table_stride
    blocks = load_blocks(table_ptr, tokens, stop.to(tl.uint32), BLOCK_SIZE)
    wait_for_previous(PDL)
    if count <= 0:  # padding, or a tile of fewer queries
        return

    m, c, r = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    query = m // GROUP
    head = group * GROUP + m % GROUP
    is_row = query < count
    is_mc = is_row[:, None] & (c < C)[None, :]
    rows = (first.to(tl.int64) + query) * HEADS + head
    q_ptrs = q_ptr + rows[:, None] * (C + R)
    q_MC = tl.load(q_ptrs + c[None, :], mask=is_mc, other=0.0)
    is_mr = is_row[:, None] & (r < R)[None, :]
    q_MR = tl.load(q_ptrs + C + r[None, :], mask=is_mr, other=0.0)
    acc, lse = attend_latents(
        q_MC, q_MR, keys_ptr, table_ptr, tokens, blocks, begin, stop, position + query,
        SCALE, C, R, BLOCK_SIZE, TILE, BLOCK_M, BLOCK_C, BLOCK_R, True, PRECISION,
    )  # fmt: skip
    out_ptrs = out_ptr + rows[:, None] * C + c[None, :]
    if SPLIT:
        if num_splits > 0:
            PART: tl.constexpr = GROUPS * BLOCK_M
            partials_ptr += group * (BLOCK_M * C)
            lse_ptr += group * BLOCK_M
            at_mc = m[:, None] * C + c[None, :]
            tl.store(partials_ptr + part.to(tl.int64) * (PART * C) + at_mc, acc, mask=is_mc)
            tl.store(lse_ptr + part * PART + m, lse)
            # All threads' stores come before the one thread's release.
            tl.debug_barrier()
            finished_ptr += first_split * GROUPS + group
            others = tl.atomic_add(finished_ptr, 1, sem="acq_rel", scope="gpu")
            if others == num_splits - 1:
                joined, joined_lse = join_parts(
                    partials_ptr + first_split.to(tl.int64) * (PART * C),
                    lse_ptr + first_split * PART,
                    at_mc, m, is_row, is_mc, num_splits, PART, C, BLOCK_M, BLOCK_C,
                )  # fmt: skip
                tl.store(out_ptrs, joined.to(out_ptr.dtype.element_ty), mask=is_mc)
                if out_lse_ptr is not None:
                    tl.store(out_lse_ptr + rows, joined_lse, mask=is_row)
                tl.store(finished_ptr, 0)
        else:
            _store(out_ptrs, out_lse_ptr, rows, acc, lse, is_mc, is_row)
    else:
        _store(out_ptrs, out_lse_ptr, rows, acc, lse, is_mc, is_row)


def prefill_latents(
    q_TNE: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    plan: torch.Tensor,
    *,
    scale: float,
    out_TNC: torch.Tensor,
    workspace: PrefillWorkspace | None = None,
    starts_T: torch.Tensor | None = None,
    out_lse_TN: torch.Tensor | None = None,
    block_m: int | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Attend with each tile's queries to all up to themselves.

    Args:
        q_TNE: of `absorb_queries`.
        cache: of the queries' dtype.
        tables: int32 ``[num_slots, max_blocks]``; only blocks within a row's length are read.
        plan: int32 ``[P, 4]`` on the device, of plan_prefill with ``prefill_tile_tokens(block_m, N,
            head_groups(N))``; tokens of no tile keep what ``out_TNC`` holds. Or int32 ``[E, 9]``,
            of split_tiles of that, of 64 rows; entries of zeros are padding.
        scale: of scores.
        workspace: for entries alone, of at least as many splits as they name.
        starts_T: int32: nothing is seen from this position on, and of nothing zeros are found;
            None: all up to the query itself is seen.
        out_lse_TN: base-2 log-sum-exps of scores, of the tiles' tokens, -inf where nothing is
            seen; fp32; None: not wanted.
        block_m: rows of a tile; those of ``prefill_tiles`` for T tokens unless given.

    Returns:
        ``out_TNC``.
    """
    T, N, _ = q_TNE.shape
    C, groups = out_TNC.shape[2], head_groups(N)
    check_queries(q_TNE, cache, tables, out_TNC)
    if block_m is None:
        block_m = prefill_tiles(T).block_m
    rows = min(_ROWS, block_m)
    tokens = prefill_tile_tokens(rows, N, groups)
    programs = triton.cdiv(prefill_tile_tokens(block_m, N, groups), tokens)
    split = plan.shape[1] == SPLIT_FIELDS
    assert split or plan.shape[1] == _FIELDS, f"a plan of {plan.shape[1]} columns"
    assert not split or programs == 1, f"split tiles of {block_m} rows"
    assert plan.is_contiguous() and plan.dtype == torch.int32
    parts: tuple[torch.Tensor | None, ...] = (None,) * 3
    if split:
        parts = check_workspace(workspace, groups, rows, C)
    assert starts_T is None or (starts_T.shape == (T,) and starts_T.dtype == torch.int32)
    if out_lse_TN is not None:
        assert out_lse_TN.shape == (T, N) and out_lse_TN.is_contiguous()
        assert out_lse_TN.dtype == torch.float32
    if not len(plan):
        return out_TNC
    _tile_kernel[(groups, len(plan), programs)](
        q_TNE, cache.keys, tables, plan, out_TNC, starts_T, out_lse_TN, *parts, tables.stride(0),
        SCALE=scale * math.log2(math.e), GROUPS=groups, GROUP=N // groups,
        BLOCK_SIZE=cache.block_size, FIELDS=plan.shape[1], SPLIT=split, TOKENS=tokens,
        TILE=_TILE, BLOCK_M=rows, PRECISION=precision(q_TNE.dtype),
        num_warps=8, num_stages=2,
        **widths(q_TNE, out_TNC), **launch_options(pdl),
    )  # fmt: skip
    return out_TNC
