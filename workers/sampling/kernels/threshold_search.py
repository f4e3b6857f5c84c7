"""Bisection of the last token that top_k, then top_p keep, by one program for a row.

Owns the order of equals and the sums; knows nothing of the ladder that gives the bounds. A
threshold is the lowest key at which the weight of all keys above it is short of a target: the
weight is 1 and the target k for top_k, the mass e^(logit - highest) and p of the total for top_p.

A source is (pointer, pointer of ids, size, temperature, LOWEST): candidates in order of their ids,
already divided, or, without ids, a row of logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workers.sampling.kernels.scaled_logits import from_key, load_logits, order_key, scale


@triton.jit
def _load_tile(source, start, TILE: tl.constexpr):
    """TILE scaled logits from number ``start`` on, their ids, and which of them exist."""
    row_ptr, ids_ptr, size, temperature, LOWEST = source
    numbers = start + tl.arange(0, TILE)
    exists = numbers < size
    if ids_ptr is None:
        x, _ = load_logits(row_ptr, numbers, exists, LOWEST)
        x, ids = scale(x, temperature), numbers
    else:
        x = tl.load(row_ptr + numbers, mask=exists, other=float("-inf"))
        ids = tl.load(ids_ptr + numbers, mask=exists, other=0)
    return x, ids, exists


@triton.jit
def _weight_above(source, key, highest, MASS: tl.constexpr, TILE: tl.constexpr):
    """The mass, or the (exact) number, of the logits above a key; it never rises with the key."""
    weights = tl.zeros([TILE], tl.float32)
    start = 0
    while start < source[2]:
        x, _, exists = _load_tile(source, start, TILE)
        above = exists & (order_key(x) > key)
        if MASS:
            weights += tl.where(above, tl.exp(x - highest), 0.0)
        else:
            weights += above.to(tl.float32)
        start += TILE
    return tl.sum(weights, axis=0)


@triton.jit
def _threshold(source, low, high, target, highest, MASS: tl.constexpr, TILE: tl.constexpr):
    """The lowest key in [low, high] with less than ``target`` above it, and that weight."""
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)
        if _weight_above(source, middle, highest, MASS, TILE) < target:
            high = middle
        else:
            low = middle + 1
    return low, _weight_above(source, low, highest, MASS, TILE)


@triton.jit
def _last_tie(source, key, ties, TILE: tl.constexpr):
    """The id of number ``ties`` of the logits with this key, or of the last."""
    last_id, seen, start = -1, 0, 0
    while start < source[2]:
        x, ids, exists = _load_tile(source, start, TILE)
        equal = (exists & (order_key(x) == key)).to(tl.int32)
        within = (equal != 0) & (seen + tl.cumsum(equal, axis=0) <= ties)
        last_id = tl.maximum(last_id, tl.max(tl.where(within, ids, -1), axis=0))
        seen += tl.sum(equal, axis=0)
        start += TILE
    return last_id


@triton.jit
def search_threshold(source, bound, highest, mass, has_top_k, top_k, top_p, TILE: tl.constexpr):
    """The key of the last logit kept, and the id of the last kept of its equals."""
    low, high, ties = order_key(bound), order_key(highest), 2**30
    if has_top_k:
        low, above = _threshold(source, low, high, top_k.to(tl.float32), highest, False, TILE)
        ties = top_k.to(tl.int32) - above.to(tl.int32)
        mass = _weight_above(source, low, highest, True, TILE)
        mass += ties.to(tl.float32) * tl.exp(from_key(low) - highest)
    if top_p < 1.0:
        target = top_p * mass
        key, above = _threshold(source, low, high, target, highest, True, TILE)
        # Equals are kept while the mass before them is short of the target.
        share = tl.exp(from_key(key) - highest)
        wanted = tl.ceil((target - above) / tl.maximum(share, 1e-30))
        wanted = tl.minimum(tl.maximum(wanted, 1.0), 1e9).to(tl.int32)
        ties = tl.where(key == low, tl.minimum(ties, wanted), wanted)  # never more than top_k's
        low = key
    return low, _last_tie(source, low, ties, TILE)
