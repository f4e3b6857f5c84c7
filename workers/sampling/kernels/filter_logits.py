"""min_p, top_k and top_p without a sort: what they keep is a prefix of the descending order.

Owns the search for each row's threshold: the last logit kept and the last id among its equals.
threshold_ladder.py computes min_p's cut, draw.py applies them. Knows nothing of the draw. Four
kernels; rows without filters return at once:

1. the highest logit of each chunk;
2. the number of logits above each threshold of a ladder below the highest (and above min_p's cut),
   and their mass e^(logit - highest);
3. copies of all logits above the first threshold that is surely low enough, in order of ids;
4. bisection of the row's threshold among those, or, where they are too many, in the row itself.

A filter's threshold is the lowest key at which the weight of all keys above it is short of a
target: the weight is 1 and the target k for top_k, the mass and p of the total for top_p. All
logits here are divided by the temperature as the oracle does, so equal ones are equal there too.
Masses are fp32 sums in an order of their own: a token whose cumulative probability lies within
about 1e-6 of top_p may fall on the other side.

Shapes: D rows, V vocabulary, C chunks of a row, R levels, N candidates at most.
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
    LEVELS,
    at_level,
    highest_and_cut,
    level_thresholds,
    load_levels,
    row_filters,
    search_level,
)
from workers.sampling.kernels.threshold_search import search_threshold
from workers.sampling.torch_sampler import SamplingRows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FilterWorkspace:
    """Buffers between the kernels; their contents mean nothing between calls.

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
        size, levels = workspace_size(max_rows, vocab_size), LEVELS.value
        return FilterWorkspace(
            maxima=torch.empty(size, device=device),
            counts=torch.empty(size, levels, dtype=torch.int32, device=device),
            masses=torch.empty(size, levels, device=device),
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
def _level_kernel(
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
    thresholds_R = level_thresholds(highest, cut)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    counts = tl.zeros([LEVELS, TILE], tl.int32)  # levels first: a thread then has all of a logit's
    masses = tl.zeros([LEVELS, TILE], tl.float32)
    for tile in range(TILES):
        ids = (chunk * TILES + tile) * TILE + tl.arange(0, TILE)
        x = scale(load_logits(row_ptr, ids, ids < VOCAB, LOWEST)[0], temperature)
        mass = tl.exp(x - highest)
        above = (x[None, :] >= thresholds_R[:, None]) & (ids < VOCAB)[None, :]
        counts += above.to(tl.int32)
        masses += tl.where(above, mass[None, :], 0.0)
    out = (row * num_chunks + chunk) * LEVELS + tl.arange(0, LEVELS)
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
    counts_CR, masses_CR = load_levels(counts_ptr, masses_ptr, row, num_chunks, CHUNKS)
    counts_R = tl.sum(counts_CR, axis=0)
    level, _, _ = search_level(counts_R, tl.sum(masses_CR, axis=0), top_k, top_p)
    before_R = tl.sum(tl.where(tl.arange(0, CHUNKS)[:, None] < chunk, counts_CR, 0), axis=0)
    mine = tl.load(counts_ptr + (row * num_chunks + chunk) * LEVELS + level)
    if (at_level(counts_R, level) > ROOM) | (mine == 0):
        return
    highest, cut = highest_and_cut(maxima_ptr, row, num_chunks, temperature, min_p, CHUNKS)
    bound = at_level(level_thresholds(highest, cut), level)
    row_ptr = logits_ptr + row.to(tl.int64) * stride
    out = row.to(tl.int64) * ROOM + at_level(before_R, level)
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
        counts_CR, masses_CR = load_levels(counts_ptr, masses_ptr, row, num_chunks, CHUNKS)
        counts_R = tl.sum(counts_CR, axis=0)
        level, has_top_k, mass = search_level(counts_R, tl.sum(masses_CR, axis=0), top_k, top_p)
        bound = at_level(level_thresholds(highest, threshold), level)
        size = at_level(counts_R, level)
        if has_top_k | (top_p < 1.0):
            offset = row.to(tl.int64)
            if size <= ROOM:
                copies_ptr, copied_ids_ptr = candidates_ptr + offset * ROOM, ids_ptr + offset * ROOM
                copies = (copies_ptr, copied_ids_ptr, size, 1.0, LOWEST)
                key, last_id = search_threshold(
                    copies, bound, highest, mass, has_top_k, top_k, top_p, TILE
                )
            else:
                whole = (logits_ptr + offset * stride, None, VOCAB, temperature, LOWEST)
                key, last_id = search_threshold(
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
    """Find the tokens that min_p, then top_k, then top_p keep; each acts on what is left.

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
    levels = (workspace.counts, workspace.masses)
    same = {"VOCAB": vocab_size, "LOWEST": torch.finfo(logits_DV.dtype).min, **launch_options(pdl)}
    widths = {"CHUNKS": triton.next_power_of_2(chunks)}
    room = {"ROOM": candidates_DN.shape[1]}
    grid = (num_rows, chunks)
    _maxima_kernel[grid](*given, chunks, TILE=TILE, TILES=tiles, num_warps=4, **same)
    _level_kernel[grid](
        *given, *levels, chunks, TILE=TILE // 2, TILES=tiles * 2, num_warps=4, **widths, **same
    )
    _collect_kernel[grid](
        *given, *levels, candidates_DN, ids_DN, chunks, TILE=TILE, TILES=tiles, num_warps=4,
        **room, **widths, **same,
    )  # fmt: skip
    _search_kernel[(num_rows,)](
        *given, *levels, candidates_DN, ids_DN, out.threshold_D, out.last_id_D, chunks,
        TILE=2048, ROW_TILE=8192, num_warps=16, **room, **widths, **same,
    )  # fmt: skip
    return out
