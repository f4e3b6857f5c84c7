"""What attention of decodes and of prefills over latents does alike with query rows and entries.

Owns the walk along a context and the join of what parts of it found; knows nothing of rows, chunks
or plans. All query rows of a program meet the same entries, of which the leading C numbers are the
values too: they are read once. M query rows, L entries of a tile, C width of a latent, R of the
turned part, E = C + R.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from workers.attention.kernels.key_tiles import load_blocks, places, soften
from workers.attention.kv_cache import LayerCache

LOWEST = tl.constexpr(-1e30)
"""Below any score, and finite: what saw nothing so far then weighs 0 and is no NaN."""


@triton.jit
def attend_latents(
    q_MC, q_MR, keys_ptr, table_ptr, tokens_L, blocks_L, begin, stop, last_M,
    SCALE: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention over the tokens from begin to stop: mean of latents [M, C], and the base-2
    log-sum-exp of scores [M]; zeros where there are none.

    Args:
        tokens_L, blocks_L: the first tile's, asked for before the wait.
        last_M: with CAUSAL the last token that each query row sees; of every tile that is walked
            all rows see one in the first.
        SCALE: of scores, times log2(e).
    """
    c, r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    is_c, is_r = (c < C)[None, :], (r < R)[None, :]
    end = stop.to(tl.uint32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(begin, stop, TILE):
        live = tokens_L < end
        at = places(blocks_L, tokens_L, BLOCK_SIZE, C + R)[:, None]
        # The ids of the next tile are under way while this one is at work.
        tokens_L += TILE
        blocks_L = load_blocks(table_ptr, tokens_L, end, BLOCK_SIZE)
        # Behind the length a block may hold anything: zeros stand there instead.
        latents = tl.load(keys_ptr + at + c[None, :], mask=live[:, None] & is_c, other=0.0)
        turned = tl.load(keys_ptr + (at + C) + r[None, :], mask=live[:, None] & is_r, other=0.0)
        scores = tl.dot(q_MR, tl.trans(turned), input_precision=PRECISION)
        scores = tl.dot(q_MC, tl.trans(latents), scores, input_precision=PRECISION)
        seen = live[None, :]
        if CAUSAL:
            seen = seen & (last_M[:, None] >= (start + tl.arange(0, TILE))[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        weights, top, fade = soften(scores, top, SCALE)
        acc = tl.dot(
            weights.to(latents.dtype), latents, acc * fade[:, None], input_precision=PRECISION
        )
        total = total * fade + tl.sum(weights, 1)
    # A padding row saw no token: zeros, so that nothing behind it meets a NaN.
    acc = acc / tl.where(stop > begin, total, 1.0)[:, None]
    return acc, top + tl.log2(total)


@triton.jit
def join_parts(
    partials_ptr, lse_ptr, at_MC, rows_M, is_row_M, is_MC, count, STRIDE: tl.constexpr,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The attention of query rows over all parts of a context, in their order; pointers name the
    first, STRIDE rows before the next. And the log-sum-exp of all."""
    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for _ in range(count):
        # Past L1, which may hold what an earlier launch left at this place.
        lse = tl.load(lse_ptr + rows_M, mask=is_row_M, other=0.0, cache_modifier=".cg")
        part = tl.load(partials_ptr + at_MC, mask=is_MC, other=0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, lse)
        fade = tl.exp2(top - new_top)
        weight = tl.exp2(lse - new_top)
        acc = acc * fade[:, None] + part * weight[:, None]
        total = total * fade + weight
        top = new_top
        partials_ptr += STRIDE * C
        lse_ptr += STRIDE
    # Of a row that saw nothing at all: zeros.
    return acc / tl.where(total > 0, total, 1.0)[:, None], top + tl.log2(total)


def check_latents(cache: LayerCache, width: int, dtype: torch.dtype) -> None:
    """Assert that a cache has entries of ``width`` alone, in ``dtype``, which is never FP8."""
    assert cache.scales is None
    assert cache.keys.shape[2:] == (1, width), (cache.keys.shape, width)
    assert cache.values.shape[3] == 0 and cache.keys.is_contiguous()
    assert cache.keys.dtype == dtype


def check_queries(
    q_TNE: torch.Tensor, cache: LayerCache, tables: torch.Tensor, out_TNC: torch.Tensor
) -> None:
    """Assert the shapes, types and strides of both kernels' arguments."""
    T, N, E = q_TNE.shape
    check_latents(cache, E, q_TNE.dtype)
    assert q_TNE.is_contiguous() and out_TNC.is_contiguous() and out_TNC.dtype == q_TNE.dtype
    assert out_TNC.shape[:2] == (T, N) and out_TNC.shape[2] < E
    assert tables.dtype == torch.int32 and tables.stride(1) == 1


def widths(q_TNE: torch.Tensor, out_TNC: torch.Tensor) -> dict[str, int]:
    """C and R of a launch, and the blocks that hold them."""
    C = out_TNC.shape[2]
    R = q_TNE.shape[2] - C
    return {
        "C": C,
        "R": R,
        "BLOCK_C": max(16, triton.next_power_of_2(C)),
        "BLOCK_R": max(16, triton.next_power_of_2(R)),
    }
