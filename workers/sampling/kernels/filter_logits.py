"""min_p, top_k and top_p without a sort: what they keep is a prefix of the descending order.

Owns the way to the last logit kept and the last id among its equals; draw.py applies them.
Knows nothing of the draw. Four kernels over the rows that filter; others leave at once:

1. the highest logit of each chunk;
2. how many logits, and what mass e^(logit - highest), lie above each rung of a ladder below the
   highest (and above min_p's cut);
3. copies of all logits above the first rung that surely holds the boundary, in order of ids;
4. bisection of the boundary among those, or, where they are too many, in the row itself.

A boundary is the lowest key at which the weight of all keys above it is short of a target: the
weight is 1 and the target k for top_k, the mass and p of the total for top_p. All logits here are
divided by the temperature as the oracle does, so equal ones are equal there too. Masses are fp32
sums in an order of their own: a token whose cumulative probability lies within about 1e-6 of top_p
may fall on the other side.

Shapes: D rows, V vocabulary, C chunks of a row, R rungs, N candidates that have room.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from workers.sampling.kernels.draw import Kept
from workers.sampling.kernels.scaled_logits import (
    TILE,
    from_key,
    load_logits,
    num_chunks,
    scale,
    tiles_per_chunk,
    workspace_size,
)
from workers.sampling.kernels.threshold_ladder import (
    RUNGS,
    at_rung,
    first_rung,
    highest_and_cut,
    ladder,
    load_rungs,
    row_filters,
)
from workers.sampling.kernels.threshold_search import search
from workers.sampling.torch_sampler import SamplingRows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FilterWorkspace:
    """What the kernels hand to each other; contents mean nothing between calls.

    Attributes:
        maxima, counts, masses: fp32, int32 ``[·, R]``, fp32 ``[·, R]``; `workspace_size` rows.
        candidates_DN, ids_DN: fp32, int32; a row with more than N candidates is searched in place,
            which is slower and gives the same.
    """

    maxima: torch.Tensor
    counts: torch.Tensor
    masses: torch.Tensor
    candidates_DN: torch.Tensor
    ids_DN: torch.Tensor

    @staticmethod
    def allocate(
        max_rows: int, vocab_size: int, device: torch.device | str, candidates: int = 16384
    ) -> FilterWorkspace:
        """Room for any number of rows up to ``max_rows``."""
        size, rungs = workspace_size(max_rows, vocab_size), RUNGS.value
        return FilterWorkspace(
            maxima=torch.empty(size, device=device),
            counts=torch.empty(size, rungs, dtype=torch.int32, device=device),
            masses=torch.empty(size, rungs, device=device),
            candidates_DN=torch.empty(max_rows, candidates, device=device),
            ids_DN=torch.empty(max_rows, candidates, dtype=torch.int32, device=device),
        )


@triton.jit(do_not_specialize=["num_chunks"])
def _maxima_kernel(
    logits_ptr, stride, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr, maxima_ptr, num_chunks,
    VOCAB: tl.constexpr, LOWEST: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    _, _, _, _, filters, _ = row_filters(row, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr)
    if not filters:
        return
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    highest = tl.full([TILE], float("-inf"), tl.float32)
    for tile in tl.static_range(TILES):
        ids = (chunk * TILES + tile) * TILE + tl.arange(0, TILE)
        highest = tl.maximum(highest, load_logits(row_ptr, ids, ids < VOCAB, LOWEST)[0])
    tl.store(maxima_ptr + row * num_chunks + chunk, tl.max(highest, axis=0))


@triton.jit(do_not_specialize=["num_chunks"])
def _ladder_kernel(
    logits_ptr, stride, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr, maxima_ptr, counts_ptr,
    masses_ptr, num_chunks,
    VOCAB: tl.constexpr, LOWEST: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    temperature, min_p, _, _, _, searches = row_filters(
        row, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr
    )
    if not searches:
        return
    highest, cut = highest_and_cut(maxima_ptr, row, num_chunks, temperature, min_p, CHUNKS)
    ladder_R = ladder(highest, cut)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    counts = tl.zeros([RUNGS, TILE], tl.int32)  # rungs first: a thread then has all of a logit's
    masses = tl.zeros([RUNGS, TILE], tl.float32)
    for tile in range(TILES):
        ids = (chunk * TILES + tile) * TILE + tl.arange(0, TILE)
        x = scale(load_logits(row_ptr, ids, ids < VOCAB, LOWEST)[0], temperature)
        mass = tl.exp(x - highest)
        above = (x[None, :] >= ladder_R[:, None]) & (ids < VOCAB)[None, :]
        counts += above.to(tl.int32)
        masses += tl.where(above, mass[None, :], 0.0)
    out = (row * num_chunks + chunk) * RUNGS + tl.arange(0, RUNGS)
    tl.store(counts_ptr + out, tl.sum(counts, axis=1))
    tl.store(masses_ptr + out, tl.sum(masses, axis=1))


@triton.jit(do_not_specialize=["num_chunks"])
def _collect_kernel(
    logits_ptr, stride, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr, maxima_ptr, counts_ptr,
    masses_ptr, candidates_ptr, ids_ptr, num_chunks,
    VOCAB: tl.constexpr, LOWEST: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    CHUNKS: tl.constexpr, ROOM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row, chunk = tl.program_id(0), tl.program_id(1)
    temperature, min_p, top_k, top_p, _, searches = row_filters(
        row, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr
    )
    if not searches:
        return
    counts_CR, masses_CR = load_rungs(counts_ptr, masses_ptr, row, num_chunks, CHUNKS)
    counts_R = tl.sum(counts_CR, axis=0)
    rung, _, _ = first_rung(counts_R, tl.sum(masses_CR, axis=0), top_k, top_p)
    before_R = tl.sum(tl.where(tl.arange(0, CHUNKS)[:, None] < chunk, counts_CR, 0), axis=0)
    mine = tl.load(counts_ptr + (row * num_chunks + chunk) * RUNGS + rung)
    if (at_rung(counts_R, rung) > ROOM) | (mine == 0):
        return
    highest, cut = highest_and_cut(maxima_ptr, row, num_chunks, temperature, min_p, CHUNKS)
    bound = at_rung(ladder(highest, cut), rung)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    out = row.to(tl.int64) * ROOM + at_rung(before_R, rung)
    for tile in range(TILES):
        ids = (chunk * TILES + tile) * TILE + tl.arange(0, TILE)
        x = scale(load_logits(row_ptr, ids, ids < VOCAB, LOWEST)[0], temperature)
        is_in = ((x >= bound) & (ids < VOCAB)).to(tl.int32)
        places = out + tl.cumsum(is_in, axis=0) - 1
        tl.store(candidates_ptr + places, x, mask=is_in != 0)
        tl.store(ids_ptr + places, ids, mask=is_in != 0)
        out += tl.sum(is_in, axis=0)


@triton.jit(do_not_specialize=["num_chunks"])
def _search_kernel(
    logits_ptr, stride, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr, maxima_ptr, counts_ptr,
    masses_ptr, candidates_ptr, ids_ptr, threshold_ptr, last_id_ptr, num_chunks,
    VOCAB: tl.constexpr, LOWEST: tl.constexpr, TILE: tl.constexpr, ROW_TILE: tl.constexpr,
    CHUNKS: tl.constexpr, ROOM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    row = tl.program_id(0)
    temperature, min_p, top_k, top_p, filters, searches = row_filters(
        row, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr
    )
    if not filters:
        tl.store(threshold_ptr + row, float("-inf"))
        tl.store(last_id_ptr + row, VOCAB)
        return
    highest, threshold = highest_and_cut(maxima_ptr, row, num_chunks, temperature, min_p, CHUNKS)
    last_id = VOCAB
    if searches:
        counts_CR, masses_CR = load_rungs(counts_ptr, masses_ptr, row, num_chunks, CHUNKS)
        counts_R = tl.sum(counts_CR, axis=0)
        rung, has_top_k, mass = first_rung(counts_R, tl.sum(masses_CR, axis=0), top_k, top_p)
        bound = at_rung(ladder(highest, threshold), rung)
        size = at_rung(counts_R, rung)
        if has_top_k | (top_p < 1.0):
            offset = row.to(tl.int64)
            if size <= ROOM:
                copies_ptr, copied_ids_ptr = candidates_ptr + offset * ROOM, ids_ptr + offset * ROOM
                copies = (copies_ptr, copied_ids_ptr, size, 1.0, LOWEST)
                key, last_id = search(copies, bound, highest, mass, has_top_k, top_k, top_p, TILE)
            else:
                whole = (logits_ptr + offset * stride, None, VOCAB, temperature, LOWEST)
                key, last_id = search(
                    whole, bound, highest, mass, has_top_k, top_k, top_p, ROW_TILE
                )
            threshold = from_key(key)
    tl.store(threshold_ptr + row, threshold)
    tl.store(last_id_ptr + row, last_id)


def filter_logits(
    logits_DV: torch.Tensor,
    rows: SamplingRows,
    *,
    workspace: FilterWorkspace | None = None,
    out: Kept | None = None,
    pdl: bool = False,
) -> Kept:
    """Which of each row's tokens min_p, then top_k, then top_p keep; each acts on what is left.

    Args:
        logits_DV: model dtype or fp32, after `suppress`; rows of any stride; not changed.
        rows: its tensors ``temperature_D``, ``min_p_D``, ``top_k_D`` and ``top_p_D`` are read;
            rows of temperature 0 (greedy, padding) cost nothing.

    Returns:
        ``out``, for `draw`.
    """
    num_rows, vocab_size = logits_DV.shape
    if workspace is None:
        workspace = FilterWorkspace.allocate(num_rows, vocab_size, logits_DV.device)
    if out is None:
        out = Kept(
            threshold_D=logits_DV.new_empty(num_rows, dtype=torch.float32),
            last_id_D=logits_DV.new_empty(num_rows, dtype=torch.int32),
        )
    dtype = logits_DV.dtype
    chunks, tiles = num_chunks(num_rows, vocab_size, dtype), tiles_per_chunk(num_rows, dtype)
    candidates_DN, ids_DN = workspace.candidates_DN, workspace.ids_DN
    params = (rows.temperature_D, rows.min_p_D, rows.top_k_D, rows.top_p_D)
    assert logits_DV.stride(1) == 1
    assert all(t.shape == (num_rows,) and t.is_contiguous() for t in params)
    assert out.threshold_D.shape == out.last_id_D.shape == (num_rows,)
    assert workspace.maxima.numel() >= num_rows * chunks
    assert candidates_DN.shape == ids_DN.shape
    assert candidates_DN.shape[0] >= num_rows
    given = (logits_DV, logits_DV.stride(0), *params, workspace.maxima)
    rungs = (workspace.counts, workspace.masses)
    same = {"VOCAB": vocab_size, "LOWEST": torch.finfo(logits_DV.dtype).min, **launch_options(pdl)}
    widths = {"CHUNKS": triton.next_power_of_2(chunks)}
    room = {"ROOM": candidates_DN.shape[1]}
    grid = (num_rows, chunks)
    _maxima_kernel[grid](*given, chunks, TILE=TILE, TILES=tiles, num_warps=4, **same)
    _ladder_kernel[grid](
        *given, *rungs, chunks, TILE=TILE // 2, TILES=tiles * 2, num_warps=4, **widths, **same
    )
    _collect_kernel[grid](
        *given, *rungs, candidates_DN, ids_DN, chunks, TILE=TILE, TILES=tiles, num_warps=4,
        **room, **widths, **same,
    )  # fmt: skip
    _search_kernel[(num_rows,)](
        *given, *rungs, candidates_DN, ids_DN, out.threshold_D, out.last_id_D, chunks,
        TILE=2048, ROW_TILE=8192, num_warps=16, **room, **widths, **same,
    )  # fmt: skip
    return out
