"""What `qk_rope` does with a tile of heads: norm, clip and rotation of q and k, and to the cache.

Owns the arithmetic and the order of a head's dimensions in a tile. Does not know which program has
which heads. K key/value heads, D head_dim, R turned dimensions of it. A lane has a pair of numbers
of a head, those that are turned together: ``first``, ``second`` [heads, D/2].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_places(lanes, D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The dimension of each pair's first number: R/2 pairs that are turned, then the rest."""
    if INTERLEAVED:
        places = 2 * lanes
    elif R > 0 and R < D:
        places = tl.where(lanes < R // 2, lanes, lanes + R // 2)
    else:
        places = lanes
    return places


@triton.jit
def second_steps(lanes, D: tl.constexpr, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """From there to its second number."""
    if INTERLEAVED:
        step = 1
    elif R > 0 and R < D:
        step = tl.where(lanes < R // 2, R // 2, D // 2 - R // 2)
    else:
        step = D // 2
    return step


@triton.jit
def clip(x, CLIP: tl.constexpr, DTYPE: tl.constexpr):
    """Between -CLIP and CLIP; NaN stays."""
    if CLIP is not None:
        x = tl.where(x > CLIP, CLIP, tl.where(x < -CLIP, -CLIP, x)).to(DTYPE).to(tl.float32)
    return x


@triton.jit
def _weigh(half, scale, weight, DTYPE: tl.constexpr):
    """One half of RMSNorm, cast before a weight of DTYPE, as `moe.base.sum_norm.rms_norm` does, and
    after it; in fp32 again."""
    scaled = half * scale
    if weight.dtype == DTYPE:
        scaled = scaled.to(DTYPE).to(tl.float32)
    return (scaled * weight.to(tl.float32)).to(DTYPE).to(tl.float32)


@triton.jit
def _head_norm(
    first, second, weight_1, weight_2,
    EPS: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Each head by itself; fp32 in and out."""
    square = tl.sum(first * first + second * second, axis=1, keep_dims=True)
    scale = tl.rsqrt(square / D + EPS)
    return _weigh(first, scale, weight_1, DTYPE), _weigh(second, scale, weight_2, DTYPE)


@triton.jit
def _turn(
    first, second, cos, sin, is_turned, D: tl.constexpr, R: tl.constexpr, DTYPE: tl.constexpr
):
    """Pairs by their angles, those of the leading R dimensions; fp32 to DTYPE."""
    if R == 0:
        turned_1, turned_2 = first.to(DTYPE), second.to(DTYPE)
    else:
        turned_1 = (first * cos - second * sin).to(DTYPE)
        turned_2 = (second * cos + first * sin).to(DTYPE)
        if R < D:
            turned_1 = tl.where(is_turned, turned_1, first.to(DTYPE))
            turned_2 = tl.where(is_turned, turned_2, second.to(DTYPE))
    return turned_1, turned_2


@triton.jit
def norm_rotate(
    first, second, weight_1, weight_2, cos, sin, is_turned, mean_square, NORM: tl.constexpr,
    CLIP: tl.constexpr, EPS: tl.constexpr, D: tl.constexpr, R: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Both numbers of each pair [heads, D/2] normed, clipped, turned in fp32 and cast; with
    ``head_after_rotary`` normed last.

    Args:
        is_turned: of pairs, where R < D.
        mean_square: of all heads of all ranks, for ``all_heads``.
    """
    first, second = first.to(tl.float32), second.to(tl.float32)
    if NORM == "head":
        first, second = _head_norm(first, second, weight_1, weight_2, EPS, D, DTYPE)
    if NORM == "all_heads":
        scale = tl.rsqrt(mean_square + EPS)
        first = _weigh(first, scale, weight_1, DTYPE)
        second = _weigh(second, scale, weight_2, DTYPE)
    first, second = clip(first, CLIP, DTYPE), clip(second, CLIP, DTYPE)
    first, second = _turn(first, second, cos, sin, is_turned, D, R, DTYPE)
    if NORM == "head_after_rotary":
        first, second = first.to(tl.float32), second.to(tl.float32)
        first, second = _head_norm(first, second, weight_1, weight_2, EPS, D, DTYPE)
        first, second = first.to(DTYPE), second.to(DTYPE)
    return first, second


@triton.jit
def load_angles(cos_ptr, sin_ptr, position, lanes, mask, D: tl.constexpr, R: tl.constexpr):
    """Cosines and sines of a position for each pair; zeros of what is not turned."""
    cos, sin = 0.0, 0.0
    if R > 0:
        if R < D:
            mask = mask & (lanes < R // 2)
        turns = position.to(tl.int64) * R + lanes
        cos = tl.load(cos_ptr + turns, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + turns, mask=mask, other=0.0)
    return cos, sin


@triton.jit
def _finite(x):
    """0 in place of what is not finite: see workers.attention.kv_cache.LayerCache.write."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0)


@triton.jit
def _power(exponent):
    """2 to the power of ``exponent - 127``, as fp32 holds it."""
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def store_entry(ptrs, scales_ptr, scale_at, first, second, mask, is_head, step):
    """Both numbers of the pairs of some heads' keys or values, ``step`` apart; in FP8 with a scale
    for each head, as workers.attention.kv_cache.quantize makes them."""
    if scales_ptr is None:
        tl.store(ptrs, _finite(first), mask=mask)
        tl.store(ptrs + step, _finite(second), mask=mask)
    else:
        first, second = _finite(first).to(tl.float32), _finite(second).to(tl.float32)
        top = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1, keep_dims=True)
        exponent = ((top.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - 8
        exponent = tl.maximum(exponent, 64)
        first, second = first * _power(254 - exponent), second * _power(254 - exponent)
        scale = _power(exponent).to(scales_ptr.dtype.element_ty)
        tl.store(scales_ptr + scale_at, scale, mask=is_head)
        tl.store(ptrs, first.to(ptrs.dtype.element_ty), mask=mask)
        tl.store(ptrs + step, second.to(ptrs.dtype.element_ty), mask=mask)


@triton.jit
def scale_places(heads, block, offset, K: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Of some heads' keys at one place in a block; their values' are the next."""
    return 2 * ((block.to(tl.int64) * K + heads) * BLOCK_SIZE + offset)
