"""A ladder of thresholds below a row's highest logit, counted first to narrow the search.

Owns min_p's cut, the thresholds and the choice of the level where the search starts; all kernels of
filter_logits.py compute the very same numbers. Shapes: C chunks of a row, R levels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.sampling.kernels.scaled_logits import scale

LEVELS = tl.constexpr(8)
_MARGIN = tl.constexpr(1e-5)  # of the mass: more than two orders of summation can differ


@triton.jit
def row_filters(row, temperature_ptr, min_p_ptr, top_k_ptr, top_p_ptr):
    """The row's parameters, whether it has any filter, and whether one needs a search."""
    temperature, min_p = tl.load(temperature_ptr + row), tl.load(min_p_ptr + row)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    searches = (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0))
    filters = searches | ((temperature > 0.0) & (min_p > 0.0))
    return temperature, min_p, top_k, top_p, filters, searches


@triton.jit
def highest_and_cut(maxima_ptr, row, num_chunks, temperature, min_p, CHUNKS: tl.constexpr):
    """The row's highest scaled logit, and min_p's cut: p >= min_p · p_max, in logarithms."""
    chunks_C = tl.arange(0, CHUNKS)
    maxima_C = tl.load(
        maxima_ptr + row * num_chunks + chunks_C, mask=chunks_C < num_chunks, other=float("-inf")
    )
    # Division is monotone: the highest before it is the highest after.
    highest = scale(tl.max(maxima_C, axis=0), temperature)
    cut = float("-inf")
    if min_p > 0.0:
        cut = highest + tl.log(min_p)
    return highest, cut


@triton.jit
def level_thresholds(highest, cut):
    """[R] thresholds: 1/4, 1, 9/4, ... 49/4 below the highest (all exact), then the cut."""
    levels_R = tl.arange(0, LEVELS)
    depth_R = ((levels_R + 1) * (levels_R + 1)).to(tl.float32) * 0.25
    return tl.where(levels_R == LEVELS - 1, cut, tl.maximum(highest - depth_R, cut))


@triton.jit
def search_level(counts_R, masses_R, top_k, top_p):
    """The highest level whose threshold surely lies below those of top_k and top_p.

    With both filters it is top_k's: top_p keeps a subset of that. The last level if there is none.
    """
    last = LEVELS - 1
    levels_R = tl.arange(0, LEVELS)
    total = tl.sum(tl.where(levels_R == last, counts_R, 0), axis=0)
    mass = tl.sum(tl.where(levels_R == last, masses_R, 0.0), axis=0)
    has_top_k = (top_k > 0) & (top_k < total)
    holds_R = tl.where(has_top_k, counts_R >= top_k, masses_R >= (top_p + _MARGIN) * mass)
    return tl.min(tl.where(holds_R, levels_R, last), axis=0), has_top_k, mass


@triton.jit
def at_level(values_R, level):
    """One element of ``[R]`` values; an element of -inf stays one in the sum with zeros."""
    return tl.sum(tl.where(tl.arange(0, LEVELS) == level, values_R, 0), axis=0)


@triton.jit
def load_levels(counts_ptr, masses_ptr, row, num_chunks, CHUNKS: tl.constexpr):
    """[C, R] counts and masses of the row's chunks."""
    chunks_C = tl.arange(0, CHUNKS)
    offsets = (row * num_chunks + chunks_C[:, None]) * LEVELS + tl.arange(0, LEVELS)[None, :]
    mask = (chunks_C < num_chunks)[:, None]
    return (
        tl.load(counts_ptr + offsets, mask=mask, other=0),
        tl.load(masses_ptr + offsets, mask=mask, other=0.0),
    )
