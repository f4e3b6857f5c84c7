"""What attention of decodes and of prefills does alike with a tile of keys in the paged cache.

Owns the way from a token to its place in the cache, one step of the softmax to base 2, and the
check of what both are given. Knows nothing of rows, chunks or plans. K key heads, D head_dim, rows
of any number M, N keys of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def load_blocks(table_ptr, tokens_N, end, BLOCK_SIZE: tl.constexpr):
    """The block of each token; of those behind the end any."""
    return tl.load(table_ptr + tokens_N // BLOCK_SIZE, mask=tokens_N < end, other=0)


@triton.jit
def places(blocks_N, tokens_N, BLOCK_SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """Where each token's keys begin, as its values do; a token has STRIDE numbers of either."""
    return blocks_N.to(tl.int64) * (BLOCK_SIZE * STRIDE) + tokens_N % BLOCK_SIZE * STRIDE


@triton.jit
def soften(scores_MN, top_M, SCALE: tl.constexpr):
    """Weights of a tile's keys below the highest score so far, that score, and by how much the
    weights before it fade."""
    new_top_M = tl.maximum(top_M, tl.max(scores_MN, 1) * SCALE)
    weights_MN = tl.exp2(scores_MN * SCALE - new_top_M[:, None])
    return weights_MN, new_top_M, tl.exp2(top_M - new_top_M)


def check_operands(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Assert the shapes, types and strides that `decode_attention` and `prefill_attention` say."""
    _, num_heads, head_dim = q_TND.shape
    assert keys.shape == values.shape and keys.shape[3] == head_dim
    assert keys.is_contiguous() and values.is_contiguous()
    assert keys.dtype == values.dtype == q_TND.dtype == out.dtype
    assert num_heads % keys.shape[2] == 0
    assert q_TND.stride()[1:] == (head_dim, 1)
    assert tables.dtype == torch.int32 and tables.stride(1) == 1
    assert out.shape == q_TND.shape and out.is_contiguous()
