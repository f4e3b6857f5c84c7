"""`qk_rope` for many tokens: programs that load wide, one for all keys and values of a token.

Owns the kernel and its launch; values are as wide as keys, and the projection is in one part. Has
the letters of `qk_rope`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import MAX_REGISTERS
from workers.attention.kernels.qk_heads import (
    clip,
    first_places,
    load_angles,
    norm_rotate,
    scale_places,
    second_steps,
    store_entry,
)

# A program rotates _WIDE_REPEAT tiles of _WIDE_HEADS query heads: 64 bytes per lane in flight.
_WIDE_HEADS, _WIDE_REPEAT = 8, 2


@triton.jit
def _load_pairs(ptr, inner, step, mask):
    """Both halves of some heads, read once."""
    first = tl.load(ptr + inner, mask=mask, other=0.0, eviction_policy="evict_first")
    second = tl.load(ptr + step + inner, mask=mask, other=0.0, eviction_policy="evict_first")
    return first, second


@triton.jit
def _load_weights(ptr, places, step, mask, NORM: tl.constexpr):
    """Of both halves."""
    weight_1, weight_2 = 0.0, 0.0
    if NORM != "none":
        weight_1 = tl.load(ptr + places, mask=mask, other=0.0)
        weight_2 = tl.load(ptr + step + places, mask=mask, other=0.0)
    return weight_1, weight_2


@triton.jit
def _add_bias(first, second, bias_ptr, inner, step, mask, DTYPE: tl.constexpr):
    """Both halves in DTYPE, rounded once."""
    if bias_ptr is not None:
        bias_1 = tl.load(bias_ptr + inner, mask=mask, other=0.0)
        bias_2 = tl.load(bias_ptr + step + inner, mask=mask, other=0.0)
        first = first.to(tl.float32) + bias_1.to(tl.float32)
        second = second.to(tl.float32) + bias_2.to(tl.float32)
    return first.to(DTYPE), second.to(DTYPE)


@triton.jit
def _mean_square(square_ptr, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """Over all heads, where they are normed together."""
    mean = 0.0
    if NORM == "all_heads":
        mean = tl.load(square_ptr) / WIDTH
    return mean


@triton.jit
def _rope_queries(
    qkv_ptr, norm_ptr, cos_ptr, sin_ptr, slot_ptr, position_ptr, bias_ptr, square_ptr, q_ptr,
    first_head, EPS: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr,
    INTERLEAVED: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, HEADS: tl.constexpr, REPEAT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """REPEAT tiles of HEADS query heads of one token."""
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    heads = first_head + tl.arange(0, HEADS)[:, None]
    lanes = tl.broadcast_to(tl.arange(0, BLOCK_D)[None, :], (HEADS, BLOCK_D))
    is_half = lanes < D // 2
    places = first_places(lanes, D, R, INTERLEAVED)
    step = second_steps(lanes, D, R, INTERLEAVED)
    inner = heads * D + places
    tiles = ()
    for r in tl.static_range(REPEAT):
        mask = (heads + r * HEADS < N) & is_half
        tiles = tiles + _load_pairs(qkv_ptr + r * HEADS * D, inner, step, mask)
    slot, position = tl.load(slot_ptr), tl.load(position_ptr)
    position = tl.where(slot >= 0, position, 0)
    # What all heads share is loaded for each of them: no barrier, and registers keep it.
    weight_1, weight_2 = 0.0, 0.0
    if NORM != "all_heads":
        weight_1, weight_2 = _load_weights(norm_ptr, places, step, is_half, NORM)
    cos, sin = load_angles(cos_ptr, sin_ptr, position, lanes, is_half, D, R)
    mean_square = _mean_square(square_ptr, WIDTH, NORM)
    for r in tl.static_range(REPEAT):
        mask = (heads + r * HEADS < N) & is_half
        own = r * HEADS * D
        bias = bias_ptr if bias_ptr is None else bias_ptr + own
        first, second = _add_bias(tiles[2 * r], tiles[2 * r + 1], bias, inner, step, mask, dtype)
        if NORM == "all_heads":
            weight_1, weight_2 = _load_weights(norm_ptr + own, inner, step, mask, NORM)
        first, second = norm_rotate(
            first, second, weight_1, weight_2, cos, sin, lanes < R // 2, mean_square,
            NORM, CLIP, EPS, D, R, dtype,
        )  # fmt: skip
        q_ptrs = q_ptr + own + inner
        tl.store(q_ptrs, first, mask=mask)
        tl.store(q_ptrs + step, second, mask=mask)


@triton.jit
def _rope_keys_values(
    qkv_ptr, norm_ptr, cos_ptr, sin_ptr, slot_ptr, position_ptr, tables_ptr, bias_ptr, square_ptr,
    keys_ptr, values_ptr, scales_ptr, max_blocks, EPS: tl.constexpr, NORM: tl.constexpr,
    CLIP: tl.constexpr, INTERLEAVED: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """All heads of k and v of one token, HEADS or fewer."""
    heads = tl.arange(0, HEADS)[:, None]
    lanes = tl.broadcast_to(tl.arange(0, BLOCK_D)[None, :], (HEADS, BLOCK_D))
    mask = (heads < 2 * K) & (lanes < D // 2)
    places = first_places(lanes, D, R, INTERLEAVED)
    step = second_steps(lanes, D, R, INTERLEAVED)
    inner = heads * D + places
    v_1, v_2 = _load_pairs(qkv_ptr, inner, step, mask)
    slot, position = tl.load(slot_ptr), tl.load(position_ptr)
    is_token = slot >= 0
    position = tl.where(is_token, position, 0)
    table_ptr = tables_ptr + slot.to(tl.int64) * max_blocks
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_token, other=0)
    if NORM == "all_heads":
        is_key = mask & (heads < K)
        weight_1, weight_2 = _load_weights(norm_ptr, inner, step, is_key, NORM)
    else:
        weight_1, weight_2 = _load_weights(norm_ptr, places, step, mask, NORM)
    cos, sin = load_angles(cos_ptr, sin_ptr, position, lanes, mask, D, R)
    v_1, v_2 = _add_bias(v_1, v_2, bias_ptr, inner, step, mask, DTYPE)
    # For every head, of which k's are stored; of those left as they are, v's.
    k_1, k_2 = norm_rotate(
        v_1, v_2, weight_1, weight_2, cos, sin, lanes < R // 2,
        _mean_square(square_ptr, WIDTH, NORM), NORM, CLIP, EPS, D, R, DTYPE,
    )  # fmt: skip
    v_1, v_2 = clip(v_1, CLIP, DTYPE), clip(v_2, CLIP, DTYPE)
    offset = position % BLOCK_SIZE
    cache = (block.to(tl.int64) * BLOCK_SIZE + offset) * (K * D)
    key_ptrs, value_ptrs = keys_ptr + cache + inner, values_ptr + (cache - K * D) + inner
    k_at = scale_places(heads, block, offset, K, BLOCK_SIZE)
    v_at = scale_places(heads - K, block, offset, K, BLOCK_SIZE) + 1
    is_k, is_v = is_token & (heads < K), is_token & (heads >= K) & (heads < 2 * K)
    store_entry(key_ptrs, scales_ptr, k_at, k_1, k_2, mask & is_k, is_k, step)
    store_entry(value_ptrs, scales_ptr, v_at, v_1, v_2, mask & is_v, is_v, step)


@triton.jit(do_not_specialize=["max_blocks"])
def _qk_rope_wide_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, tables_ptr,
    bias_ptr, squares_ptr, keys_ptr, values_ptr, scales_ptr, q_ptr, stride_t, max_blocks,
    EPS: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr, INTERLEAVED: tl.constexpr,
    Q_WIDTH: tl.constexpr, K_WIDTH: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr, REPEAT: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """REPEAT · HEADS heads of q of one token or, in its last program, all its heads of k and v.

    The projection's loads are sent first, and do not wait for a position.
    """
    group, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    qkv_ptr += token * stride_t
    slots_ptr += token
    positions_ptr += token
    if squares_ptr is not None:
        squares_ptr += 2 * token
    wait_for_previous(PDL)
    if group < tl.num_programs(0) - 1:
        _rope_queries(
            qkv_ptr, q_norm_ptr, cos_ptr, sin_ptr, slots_ptr, positions_ptr, bias_ptr, squares_ptr,
            q_ptr + token * (N * D), group * (REPEAT * HEADS), EPS, NORM, CLIP, INTERLEAVED,
            Q_WIDTH, R, N, D, HEADS, REPEAT, BLOCK_D,
        )  # fmt: skip
    else:
        _rope_keys_values(
            qkv_ptr + N * D, k_norm_ptr, cos_ptr, sin_ptr, slots_ptr, positions_ptr, tables_ptr,
            bias_ptr if bias_ptr is None else bias_ptr + N * D,
            squares_ptr if squares_ptr is None else squares_ptr + 1,
            keys_ptr, values_ptr, scales_ptr, max_blocks, EPS, NORM, CLIP, INTERLEAVED, K_WIDTH, R,
            K, D, BLOCK_SIZE, KV_HEADS, BLOCK_D, q_ptr.dtype.element_ty,
        )  # fmt: skip


def launch_wide(
    qkv_TW: torch.Tensor,
    tensors: tuple[torch.Tensor | None, ...],
    max_blocks: int,
    constants: dict[str, Any],
    *,
    pdl: bool,
) -> None:
    """``tensors`` and ``constants`` as the kernel names them; checked by `qk_rope`."""
    N, K = constants["N"], constants["K"]
    heads = min(_WIDE_HEADS, triton.next_power_of_2(N))
    block_d = triton.next_power_of_2(constants["D"] // 2)
    _qk_rope_wide_kernel[(triton.cdiv(N, heads * _WIDE_REPEAT) + 1, len(qkv_TW))](
        qkv_TW, *tensors, qkv_TW.stride(0), max_blocks,
        **constants, HEADS=heads, REPEAT=_WIDE_REPEAT, KV_HEADS=triton.next_power_of_2(2 * K),
        BLOCK_D=block_d,
        num_warps=max(1, heads * block_d // 256),
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,  # multiply, then add: the bits of workers.layers.rotary.rotate
        **launch_options(pdl),
    )  # fmt: skip
