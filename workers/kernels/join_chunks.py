"""What the chunks of a context found, joined to attention over all of it.

Owns the arithmetic; does not know when all chunks are there. Shapes: C chunks, N query heads, D
head_dim: fp32 outputs ``[C, N, D]`` and base-2 log-sum-exps ``[C, N]`` in, the model dtype out.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def join_chunks(
    partials_ptr,
    lse_ptr,
    out_ptr,
    count,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The chunks of one row, for the query heads of one key head; pointers name the first."""
    BLOCK_G: tl.constexpr = triton.next_power_of_2(GROUP)
    c = tl.arange(0, BLOCK_C)
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    real_g = g < GROUP
    real_gd = real_g[:, None] & (d < HEAD_DIM)[None, :]
    gd = g[:, None] * HEAD_DIM + d[None, :]
    cgd = c[:, None, None] * (HEADS * HEAD_DIM) + gd[None, :, :]
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for done in range(0, count, BLOCK_C):
        live = done + c < count
        live_cgd = live[:, None, None] & real_gd[None, :, :]
        # Past L1, which may hold what an earlier launch left at this place.
        part = tl.load(partials_ptr + cgd, mask=live_cgd, other=0.0, cache_modifier=".cg")
        lse = tl.load(
            lse_ptr + (c[:, None] * HEADS + g[None, :]),
            mask=live[:, None] & real_g[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )
        lse = tl.where(real_g[None, :], lse, 0.0)
        new_top = tl.maximum(top, tl.max(lse, 0))
        weight = tl.exp2(lse - new_top[None, :])
        fade = tl.exp2(top - new_top)
        acc = acc * fade[:, None] + tl.sum(part * weight[:, :, None], 0)
        total = total * fade + tl.sum(weight, 0)
        top = new_top
        partials_ptr += BLOCK_C * HEADS * HEAD_DIM
        lse_ptr += BLOCK_C * HEADS
    acc = acc / total[:, None]
    tl.store(out_ptr + gd, acc.to(out_ptr.dtype.element_ty), mask=real_gd)
