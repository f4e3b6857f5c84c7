"""What attention of decodes and of prefills does alike with a tile of keys in the paged cache.

Owns the way from a token to its place in the cache, one step of the softmax to base 2, what a sink
takes of it, and the check of what both are given. Knows nothing of rows, chunks or plans. K key
heads, D head_dim of keys and V of values, rows of any number M, N keys of a tile.

An FP8 cache's numbers meet queries and weights as they are, in fp16 in place of bf16: fp16 has
them all, is one instruction away (bf16 is three), and holds the weights more exactly. A query
beyond 65,504 is infinite there. The scales, powers of two, go elsewhere: a key's multiplies its
scores, a value's adds to their exponents. So a weight is what its value counts for, at most 2^15
whatever the scale, and what it adds to the sum of weights is divided by the scale again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.quantized import Quantized
from workers.attention.kv_cache import FP8, SCALE_DTYPE, LayerCache


@triton.jit
def load_blocks(table_ptr, tokens_N, end, BLOCK_SIZE: tl.constexpr):
    """The block of each token; of those behind the end any."""
    return tl.load(table_ptr + tokens_N // BLOCK_SIZE, mask=tokens_N < end, other=0)


@triton.jit
def places(blocks_N, tokens_N, BLOCK_SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """Where each token's keys begin, as its values do; a token has STRIDE numbers of either."""
    return blocks_N.to(tl.int64) * (BLOCK_SIZE * STRIDE) + tokens_N % BLOCK_SIZE * STRIDE


@triton.jit
def load_scales(
    scales_ptr, blocks_N, tokens_N, live_N, BLOCK_SIZE: tl.constexpr, KV_HEADS: tl.constexpr
):
    """Of each token its key's scale, the exponent of its value's scale, and the inverse of that."""
    at = blocks_N.to(tl.int64) * (BLOCK_SIZE * KV_HEADS) + tokens_N % BLOCK_SIZE
    # Both at once: four bytes are the least that is copied asynchronously.
    ptrs = scales_ptr + 2 * at[:, None] + tl.arange(0, 2)[None, :]
    k_scales_N, v_scales_N = tl.split(tl.load(ptrs, mask=live_N[:, None], other=0.0))
    v_bits_N = v_scales_N.to(tl.float32).to(tl.int32, bitcast=True)
    v_inverses_N = ((254 << 23) - v_bits_N).to(tl.float32, bitcast=True)
    return k_scales_N.to(tl.float32), ((v_bits_N >> 23) - 127).to(tl.float32), v_inverses_N


@triton.jit
def soften(scores_MN, top_M, SCALE: tl.constexpr, ROOM: tl.constexpr = 0):
    """Weights of a tile's keys, at most 2^ROOM; the exponent of a weight of 1, which is ROOM below
    the highest score so far; and by how much the weights before it fade."""
    highest_M = tl.max(scores_MN, 1) * SCALE
    if ROOM:
        highest_M -= ROOM
    new_top_M = tl.maximum(top_M, highest_M)
    weights_MN = tl.exp2(scores_MN * SCALE - new_top_M[:, None])
    return weights_MN, new_top_M, tl.exp2(top_M - new_top_M)


@triton.jit
def beside_sinks(acc_MV, lse_M, sinks_M):
    """What is left of attention where a sink takes its share of the weights: a score that joins the
    softmax and has no value.

    Args:
        acc_MV: attention without.
        lse_M: base-2 log-sum-exps of the scores; -inf: there were none.
        sinks_M: not scaled; any dtype.
    """
    sinks_M = sinks_M.to(tl.float32) * 1.4426950408889634  # log2(e)
    return acc_MV / (1.0 + tl.exp2(sinks_M - lse_M))[:, None]


def check_operands(
    q_TND: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    out: torch.Tensor | Quantized,
    sinks_N: torch.Tensor | None,
) -> None:
    """Assert the shapes, types and strides that `decode_attention` and `prefill_attention` say."""
    num_tokens, num_heads, head_dim = q_TND.shape
    v_head_dim = cache.values.shape[3]
    check_cache(cache, head_dim, q_TND.dtype, v_head_dim)
    assert v_head_dim
    assert num_heads % cache.keys.shape[2] == 0
    assert q_TND.stride()[1:] == (head_dim, 1)
    assert tables.dtype == torch.int32 and tables.stride(1) == 1
    if isinstance(out, Quantized):
        assert out.shape == (num_tokens, num_heads * v_head_dim)
        assert v_head_dim % out.group == 0, f"a head of {v_head_dim} in groups of {out.group}"
    else:
        assert out.shape == (num_tokens, num_heads, v_head_dim) and out.is_contiguous()
        assert out.dtype == q_TND.dtype
    if sinks_N is not None:
        assert sinks_N.shape == (num_heads,) and sinks_N.is_contiguous()


def check_cache(
    cache: LayerCache, head_dim: int, dtype: torch.dtype, v_head_dim: int | None = None
) -> None:
    """Assert that a cache is of ``dtype``, or FP8 with scales, and as `LayerCache` says.

    Args:
        v_head_dim: None: as wide as keys.
    """
    keys, values, scales = cache.keys, cache.values, cache.scales
    v_head_dim = head_dim if v_head_dim is None else v_head_dim
    assert keys.shape[:3] == values.shape[:3]
    assert (keys.shape[3], values.shape[3]) == (head_dim, v_head_dim)
    assert keys.is_contiguous() and values.is_contiguous()
    assert keys.dtype == values.dtype == (dtype if scales is None else FP8)
    if scales is not None:
        num_blocks, block_size, kv_heads, _ = keys.shape
        assert scales.shape == (num_blocks, kv_heads, block_size, 2) and scales.is_contiguous()
        assert scales.dtype == SCALE_DTYPE and head_dim % 4 == v_head_dim % 4 == 0
