"""From the first projection of latent attention to the cache: norms of both latents, the turned
part of keys, and a token's entry.

Owns the arithmetic between the two and the address of an entry. Does not know how the projection
was computed, nor what queries become. T tokens, S parts, Q width of the queries' latent, C of the
keys' and values', R of a key's turned part, E = C + R, W = first + E and more, P positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import MAX_REGISTERS, add_parts, load_parts, rms_norm
from workers.attention.kernels.mla_tiles import check_latents
from workers.attention.kv_cache import LayerCache

_WARPS = 4


@triton.jit
def finite(x):
    """0 in place of what is not finite: see workers.attention.kv_cache.LayerCache.write."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0)


@triton.jit
def pair_places(halves, R: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Where the first numbers of pairs stand, and the second ones."""
    if INTERLEAVED:
        first, second = 2 * halves, 2 * halves + 1
    else:
        first, second = halves, halves + R // 2
    return first, second


@triton.jit
def turn(first, second, cos, sin, DTYPE: tl.constexpr):
    """Pairs turned in fp32, as workers.layers.rotary.rotate does."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    return (first * cos - second * sin).to(DTYPE), (second * cos + first * sin).to(DTYPE)


@triton.jit
def _sum(ptrs, mask, stride_s, S: tl.constexpr, DTYPE: tl.constexpr):
    """Of parts, rounded as F.linear rounds."""
    return add_parts(load_parts(ptrs, mask, stride_s, S), S).to(DTYPE)


@triton.jit(do_not_specialize=["max_blocks"])
def _latent_kernel(
    down_ptr, q_norm_ptr, kv_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, tables_ptr,
    q_ptr, latents_ptr, turned_ptr, keys_ptr, stride_s, stride_t, max_blocks,
    EPS: tl.constexpr, S: tl.constexpr, Q: tl.constexpr, FIRST: tl.constexpr, C: tl.constexpr,
    R: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The entry of one token or, in programs of the second row, its queries' latent; grid (T, 1)
    or (T, 2)."""
    dtype: tl.constexpr = keys_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    down_ptr += token * stride_t
    # Slots, positions and tables are older than the projection, which has waited for them itself.
    slot = tl.load(slots_ptr + token)
    position = tl.load(positions_ptr + token)
    is_token = slot >= 0
    position = tl.where(is_token, position, 0)
    if tl.program_id(1) == 0:
        table_ptr = tables_ptr + slot.to(tl.int64) * max_blocks
        block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_token, other=0)
        c, halves = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_H)
        is_c, is_half = c < C, halves < R // 2
        turns = position.to(tl.int64) * R + halves
        cos = tl.load(cos_ptr + turns, mask=is_half, other=0.0)
        sin = tl.load(sin_ptr + turns, mask=is_half, other=0.0)
        weight = tl.load(kv_norm_ptr + c, mask=is_c, other=0.0)
        wait_for_previous(PDL)
        down_ptr += FIRST
        latent = _sum(down_ptr + c, is_c, stride_s, S, dtype)
        at_1, at_2 = pair_places(halves, R, INTERLEAVED)
        first = _sum(down_ptr + C + at_1, is_half, stride_s, S, dtype)
        second = _sum(down_ptr + C + at_2, is_half, stride_s, S, dtype)
        latent = finite(rms_norm(latent.to(tl.float32), weight, EPS, C, dtype))
        first, second = turn(first, second, cos, sin, dtype)
        first, second = finite(first), finite(second)
        keys_ptr += (block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE) * (C + R)
        tl.store(keys_ptr + c, latent, mask=is_c & is_token)
        tl.store(keys_ptr + C + halves, first, mask=is_half & is_token)
        tl.store(keys_ptr + C + R // 2 + halves, second, mask=is_half & is_token)
        if latents_ptr is not None:
            tl.store(latents_ptr + token * C + c, latent, mask=is_c)
            tl.store(turned_ptr + token * R + halves, first, mask=is_half)
            tl.store(turned_ptr + token * R + R // 2 + halves, second, mask=is_half)
    else:
        if Q > 0:
            columns = tl.arange(0, BLOCK_Q)
            is_column = columns < Q
            q_weight = tl.load(q_norm_ptr + columns, mask=is_column, other=0.0)
            wait_for_previous(PDL)
            q = _sum(down_ptr + columns, is_column, stride_s, S, dtype).to(tl.float32)
            normed = rms_norm(q, q_weight, EPS, Q, dtype)
            tl.store(q_ptr + token * Q + columns, normed, mask=is_column)


def store_latents(
    down_STW: torch.Tensor,
    kv_norm_C: torch.Tensor,
    eps: float,
    cos_PR: torch.Tensor,
    sin_PR: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    tables: torch.Tensor,
    cache: LayerCache,
    *,
    first: int,
    interleaved: bool,
    q_norm_Q: torch.Tensor | None = None,
    out_q_TQ: torch.Tensor | None = None,
    out_entries: tuple[torch.Tensor, torch.Tensor] | None = None,
    pdl: bool = False,
) -> None:
    """Entries in the paged cache: latents normed, then keys' parts turned, as two halves; and the
    norm of the queries' latent, the projection's first Q columns, in ``out_q_TQ``, if there is one.

    What is not finite is stored as 0.

    Args:
        down_STW: parts, in any dtype, any strides over S and T.
        cos_PR, sin_PR: fp32, of every position; the second half repeats the first.
        positions_T: int32.
        slots_T: int32, sequence of each token; −1 is padding, of which nothing is stored.
        tables: int32 ``[num_slots, max_blocks]``: blocks of each sequence.
        cache: of the model's dtype, to which the sum of the parts is rounded.
        first: column of the projection where entries begin.
        interleaved: pairs are (2i, 2i + 1), not (i, i + R/2).
        out_entries: both parts of each token's entry again, ``[T, C]`` and ``[T, R]``; None: they
            are in the cache alone.
    """
    S, T, W = down_STW.shape
    C, R = len(kv_norm_C), cos_PR.shape[1]
    Q = 0 if q_norm_Q is None else len(q_norm_Q)
    check_latents(cache, C + R, kv_norm_C.dtype)
    assert first >= Q and first + C + R <= W and down_STW.stride(2) == 1
    assert cos_PR.shape == sin_PR.shape and cos_PR.dtype == sin_PR.dtype == torch.float32
    assert positions_T.shape == slots_T.shape == (T,)
    assert positions_T.dtype == slots_T.dtype == tables.dtype == torch.int32
    inputs = (kv_norm_C, cos_PR, sin_PR, positions_T, slots_T, tables)
    assert all(tensor.is_contiguous() for tensor in inputs)
    if q_norm_Q is not None:
        assert out_q_TQ is not None and out_q_TQ.shape == (T, Q) and out_q_TQ.is_contiguous()
        assert out_q_TQ.dtype == q_norm_Q.dtype == kv_norm_C.dtype
    latents_TC, turned_TR = out_entries or (None, None)
    if latents_TC is not None and turned_TR is not None:
        assert latents_TC.shape == (T, C) and latents_TC.is_contiguous()
        assert turned_TR.shape == (T, R) and turned_TR.is_contiguous()
        assert latents_TC.dtype == turned_TR.dtype == kv_norm_C.dtype
    if T == 0:
        return
    _latent_kernel[(T, 2 if Q else 1)](
        down_STW, q_norm_Q, *inputs, out_q_TQ, latents_TC, turned_TR, cache.keys,
        down_STW.stride(0), down_STW.stride(1), tables.shape[1],
        EPS=eps, S=S, Q=Q, FIRST=first, C=C, R=R, INTERLEAVED=interleaved,
        BLOCK_SIZE=cache.block_size, BLOCK_Q=triton.next_power_of_2(max(Q, 1)),
        BLOCK_C=triton.next_power_of_2(C), BLOCK_H=triton.next_power_of_2(R // 2),
        num_warps=_WARPS, maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,  # multiply, then add: the bits of workers.layers.rotary.rotate
        **launch_options(pdl),
    )  # fmt: skip
