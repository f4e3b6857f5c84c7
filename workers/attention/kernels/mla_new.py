"""Causal attention of a step's prompt tokens among each other, over keys and values that were made
of their latents: a fraction of the products that latents themselves take.

Owns the arithmetic of a block of tokens. A block may have tokens of several rows, which stand in
the batch one after the other: a query sees what stands between its row's first token and itself.
So there is no plan. Shapes: T tokens, N heads, P and R widths of the parts of queries and keys, V
of values, M queries of a block.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from workers.attention.kernels.key_tiles import soften
from workers.attention.kernels.mla_absorb import Halves
from workers.attention.kernels.mla_tiles import LOWEST

_BLOCK_M = 128
_BLOCK_N = 64
_SHARED_BYTES = 224 << 10


@triton.jit(do_not_specialize=["first", "T"])
def _new_kernel(
    q_ptr, entries_q_ptr, kv_ptr, turned_ptr, positions_ptr, starts_ptr, out_ptr, lse_ptr, first, T,
    SCALE: tl.constexpr, N: tl.constexpr, P: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of a block of tokens from ``first`` on, the last blocks first; grid (N, blocks)."""
    head = tl.program_id(0)
    first += (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    tokens = first + tl.arange(0, BLOCK_M)
    is_token = tokens < T
    positions = tl.load(positions_ptr + tokens, mask=is_token, other=0)
    starts = tl.load(starts_ptr + tokens, mask=is_token, other=0)
    row_firsts = tokens - (positions - starts)
    wait_for_previous(PDL)
    p, r, v = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_V)
    is_p, is_r, is_v = (p < P)[None, :], (r < R)[None, :], (v < V)[None, :]
    at_q = tokens.to(tl.int64)[:, None] * N + head
    q = tl.load(q_ptr + at_q * P + p[None, :], mask=is_token[:, None] & is_p, other=0.0)
    q_turned = tl.load(
        entries_q_ptr + at_q * (C + R) + (C + r)[None, :], mask=is_token[:, None] & is_r, other=0.0
    )
    top = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    kv_ptr += head * (P + V)
    for start in range(tl.min(row_firsts, 0), tl.minimum(first + BLOCK_M, T), BLOCK_N):
        others = start + tl.arange(0, BLOCK_N)
        is_other = (others < T)[:, None]
        at_kv = others.to(tl.int64)[:, None] * (N * (P + V))
        keys = tl.load(kv_ptr + at_kv + p[None, :], mask=is_other & is_p, other=0.0)
        at_turned = others.to(tl.int64)[:, None] * R
        turned = tl.load(turned_ptr + at_turned + r[None, :], mask=is_other & is_r, other=0.0)
        scores = tl.dot(q_turned, tl.trans(turned), input_precision=PRECISION)
        scores = tl.dot(q, tl.trans(keys), scores, input_precision=PRECISION)
        is_seen = (others[None, :] >= row_firsts[:, None]) & (others[None, :] <= tokens[:, None])
        scores = tl.where(is_seen, scores, float("-inf"))
        weights, top, fade = soften(scores, top, SCALE)
        values = tl.load(kv_ptr + at_kv + (P + v)[None, :], mask=is_other & is_v, other=0.0)
        acc = tl.dot(
            weights.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION
        )
        total = total * fade + tl.sum(weights, 1)
    acc = acc / total[:, None]
    is_out = is_token[:, None] & is_v
    tl.store(out_ptr + at_q * V + v[None, :], acc.to(out_ptr.dtype.element_ty), mask=is_out)
    lse_ptrs = lse_ptr + tokens.to(tl.int64) * N + head
    tl.store(lse_ptrs, top + tl.log2(total), mask=is_token)


def attend_new(
    q_TNE: torch.Tensor,
    kv_TW: torch.Tensor,
    turned_TR: torch.Tensor,
    positions_T: torch.Tensor,
    starts_T: torch.Tensor,
    halves: Halves,
    *,
    first: int,
    scale: float,
    pdl: bool = False,
) -> None:
    """Attend from token ``first`` of the step on, into ``halves``.

    Args:
        q_TNE: of `absorb_queries`, of which the turned part is read; the other is in ``halves``.
        kv_TW: keys and values of each head ``[T, N · (P + V)]``, made of the step's latents.
        turned_TR: the turned part of keys.
        positions_T, starts_T: int32; of each token, and of its row's first token in this step.
        scale: of scores.
    """
    T, N, E = q_TNE.shape
    P, V, R = halves.q_TNP.shape[2], halves.new_TNV.shape[2], turned_TR.shape[1]
    halves.check(T, N, P, V, q_TNE.dtype)
    assert kv_TW.shape == (T, N * (P + V)) and turned_TR.shape == (T, R)
    assert kv_TW.dtype == turned_TR.dtype == q_TNE.dtype
    assert positions_T.shape == starts_T.shape == (T,)
    assert positions_T.dtype == starts_T.dtype == torch.int32
    inputs = (q_TNE, kv_TW, turned_TR, positions_T, starts_T)
    assert all(tensor.is_contiguous() for tensor in inputs)
    if first == T:
        return
    block_p, block_v = (max(16, triton.next_power_of_2(each)) for each in (P, V))
    block_r, size = max(16, triton.next_power_of_2(R)), q_TNE.element_size()
    queries = _BLOCK_M * (block_p + block_r) * size
    stage = _BLOCK_N * (block_p + block_r + block_v) * size
    _new_kernel[(N, triton.cdiv(T - first, _BLOCK_M))](
        halves.q_TNP, *inputs, halves.new_TNV, halves.new_lse_TN, first, T,
        SCALE=scale * math.log2(math.e), N=N, P=P, R=R, V=V, C=E - R,
        BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, BLOCK_P=block_p, BLOCK_R=block_r, BLOCK_V=block_v,
        PRECISION=precision(q_TNE.dtype),
        num_warps=8, num_stages=max(1, min(3, (_SHARED_BYTES - queries) // stage)),
        **launch_options(pdl),
    )  # fmt: skip
