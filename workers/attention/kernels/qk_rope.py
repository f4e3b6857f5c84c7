"""From the qkv projection to attention: norm and rotation of q and k, keys and values to the cache.

Owns the launch, and the kernel for few tokens, which has all options; that for many is
`qk_rope_wide`. Does not know how the projection was computed. T tokens, S parts, N query heads, K
key/value heads, D head_dim of q and k and V of v, R turned dimensions, W = (N + K)·D + K·V, P
positions. A head is held as two halves: numbers that are turned together, see `qk_heads`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import MAX_REGISTERS, add_parts, load_parts
from workers.attention.head_options import HEAD_NORM, HeadOptions
from workers.attention.kernels.key_tiles import check_cache
from workers.attention.kernels.qk_heads import (
    clip,
    first_places,
    load_angles,
    norm_rotate,
    scale_places,
    second_steps,
    store_entry,
)
from workers.attention.kernels.qk_rope_wide import launch_wide
from workers.attention.kv_cache import LayerCache

# Up to so many tokens, many small programs are quicker than few that load wide.
_FEW_TOKENS = 32
# Up to so many all programs run at once, and what they load ahead of the wait is hidden.
_ONE_WAVE_TOKENS = 512


@triton.jit
def _rounded_sum(parts, bias, S: tl.constexpr, DTYPE: tl.constexpr):
    """Rounded once, as F.linear rounds."""
    total = add_parts(parts, S)
    if bias is not None:
        total += bias.to(tl.float32)
    return total.to(DTYPE)


@triton.jit(do_not_specialize=["max_blocks"])
def _qk_rope_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, tables_ptr,
    bias_ptr, squares_ptr, keys_ptr, values_ptr, scales_ptr, q_ptr, stride_s, stride_t, max_blocks,
    EPS: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr, INTERLEAVED: tl.constexpr,
    Q_WIDTH: tl.constexpr, K_WIDTH: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    S: tl.constexpr, N: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one kind of one token: groups of q first, then of k, then of v."""
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    q_groups: tl.constexpr = (N + HEADS - 1) // HEADS
    kv_groups: tl.constexpr = (K + HEADS - 1) // HEADS
    group, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    is_q, is_v = group < q_groups, group >= q_groups + kv_groups
    first_group = tl.where(is_q, 0, tl.where(is_v, q_groups + kv_groups, q_groups))
    row_head = tl.where(is_q, 0, tl.where(is_v, N + K, N))
    heads = (group - first_group) * HEADS + tl.arange(0, HEADS)
    # What all heads share is loaded for each of them: the cache serves it, no barrier is needed.
    lanes = tl.broadcast_to(tl.arange(0, BLOCK_D)[None, :], (HEADS, BLOCK_D))
    is_head = (heads < tl.where(is_q, N, K))[:, None]
    mask = is_head & (lanes < D // 2)
    places = first_places(lanes, D, R, INTERLEAVED)
    step = second_steps(lanes, D, R, INTERLEAVED)
    inner = heads[:, None] * D + places
    if NORM == "none":
        weight_1, weight_2 = 0.0, 0.0
    else:
        weights = inner if NORM == "all_heads" else places
        if is_q:
            weight_1 = tl.load(q_norm_ptr + weights, mask=mask, other=0.0)
            weight_2 = tl.load(q_norm_ptr + step + weights, mask=mask, other=0.0)
        else:
            weight_1 = tl.load(k_norm_ptr + weights, mask=mask, other=0.0)
            weight_2 = tl.load(k_norm_ptr + step + weights, mask=mask, other=0.0)
    # Slots, positions and tables are older than the projection, which has waited for them itself.
    slot = tl.load(slots_ptr + token)
    position = tl.load(positions_ptr + token)
    is_token = slot >= 0
    position = tl.where(is_token, position, 0)
    table_ptr = tables_ptr + slot.to(tl.int64) * max_blocks
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_token & ~is_q, other=0)
    cos, sin = load_angles(cos_ptr, sin_ptr, position, lanes, mask, D, R)
    token_width = K * D
    if V != D:  # values have halves of their own
        token_width = tl.where(is_v, K * V, K * D)
        mask = is_head & (lanes < tl.where(is_v, V // 2, D // 2))
        inner = tl.where(is_v, heads[:, None] * V + lanes, inner)
        step = tl.where(is_v, V // 2, step)
    bias_1, bias_2 = None, None
    if bias_ptr is not None:
        bias_ptrs = bias_ptr + row_head * D + inner
        bias_1 = tl.load(bias_ptrs, mask=mask, other=0.0)
        bias_2 = tl.load(bias_ptrs + step, mask=mask, other=0.0)
    wait_for_previous(PDL)
    mean_square = 0.0
    if NORM == "all_heads":
        width = tl.where(is_q, Q_WIDTH, K_WIDTH).to(tl.float32)
        mean_square = tl.load(squares_ptr + 2 * token + tl.where(is_q, 0, 1)) / width
    qkv_ptrs = qkv_ptr + token * stride_t + row_head * D + inner
    first_parts = load_parts(qkv_ptrs, mask, stride_s, S)
    second_parts = load_parts(qkv_ptrs + step, mask, stride_s, S)
    first = _rounded_sum(first_parts, bias_1, S, dtype)
    second = _rounded_sum(second_parts, bias_2, S, dtype)
    offset = position % BLOCK_SIZE
    cache = (block.to(tl.int64) * BLOCK_SIZE + offset) * token_width + inner
    scale_at = scale_places(heads[:, None], block, offset, K, BLOCK_SIZE)
    if is_v:
        store_entry(
            values_ptr + cache, scales_ptr, scale_at + 1, clip(first, CLIP, dtype),
            clip(second, CLIP, dtype), mask & is_token, is_head & is_token, step,
        )  # fmt: skip
    else:
        first, second = norm_rotate(
            first, second, weight_1, weight_2, cos, sin, lanes < R // 2, mean_square,
            NORM, CLIP, EPS, D, R, dtype,
        )  # fmt: skip
        if is_q:
            q_ptrs = q_ptr + token * (N * D) + inner
            tl.store(q_ptrs, first, mask=mask)
            tl.store(q_ptrs + step, second, mask=mask)
        else:
            store_entry(
                keys_ptr + cache, scales_ptr, scale_at, first, second,
                mask & is_token, is_head & is_token, step,
            )  # fmt: skip


def qk_rope(
    qkv_STW: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cos_PR: torch.Tensor | None,
    sin_PR: torch.Tensor | None,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    tables: torch.Tensor,
    cache: LayerCache,
    *,
    out_q_TND: torch.Tensor,
    options: HeadOptions = HEAD_NORM,
    bias_W: torch.Tensor | None = None,
    squares_T2: torch.Tensor | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """q normed and rotated, in ``out_q_TND``; k (likewise) and v stored in the paged cache.

    What is not finite is stored as 0.

    Args:
        qkv_STW: parts, in any dtype, any strides over S and T.
        q_norm, k_norm: weights ``[D]``, or ``[N·D]`` and ``[K·D]`` of a norm of all heads.
        cos_PR, sin_PR: fp32, of every position; the second half repeats the first. None: nothing
            is turned.
        positions_T: int32.
        slots_T: int32, sequence of each token; −1 is padding, of which nothing is stored.
        tables: int32 ``[num_slots, max_blocks]``: blocks of each sequence.
        cache: of the model's dtype or FP8, whose scales are made here.
        out_q_TND: in the model's dtype, to which the sum of the parts is rounded.
        bias_W: in the model's dtype; added to the sum of the parts.
        squares_T2: fp32, `qk_squares` summed over ranks, for a norm of all heads.
    """
    S, T, W = qkv_STW.shape
    N, D = out_q_TND.shape[1:]
    K, V = cache.values.shape[2:]
    assert W == (N + K) * D + K * V
    assert D % 2 == V % 2 == 0
    assert qkv_STW.stride(2) == 1
    assert out_q_TND.shape[0] == T
    check_cache(cache, D, out_q_TND.dtype, V)
    _check_norms(q_norm, k_norm, squares_T2, options, (T, N, K, D))
    R = 0 if cos_PR is None else cos_PR.shape[1]
    if cos_PR is not None and sin_PR is not None:
        assert cos_PR.shape == sin_PR.shape and R <= D and R % 2 == 0
        assert cos_PR.dtype == sin_PR.dtype == torch.float32
    assert positions_T.shape == slots_T.shape == (T,)
    assert positions_T.dtype == slots_T.dtype == tables.dtype == torch.int32
    assert bias_W is None or bias_W.shape == (W,)
    inputs = (
        q_norm, k_norm, cos_PR, sin_PR, positions_T, slots_T, tables, bias_W, squares_T2,
    )  # fmt: skip
    assert all(each is None or each.is_contiguous() for each in (*inputs, out_q_TND))
    if T == 0:
        return out_q_TND
    q_width, k_width = options.norm_widths or (N * D, K * D)
    constants = {
        "EPS": eps, "NORM": options.norm, "CLIP": options.clip, "INTERLEAVED": options.interleaved,
        "Q_WIDTH": q_width, "K_WIDTH": k_width, "R": R, "N": N, "K": K, "D": D,
        "BLOCK_SIZE": cache.block_size,
    }  # fmt: skip
    tensors = (*inputs, cache.keys, cache.values, cache.scales, out_q_TND)
    max_blocks = tables.shape[1]
    if T > _ONE_WAVE_TOKENS and S == 1 and V == D:
        launch_wide(qkv_STW[0], tensors, max_blocks, constants, pdl=pdl)
    else:
        _launch(qkv_STW, tensors, max_blocks, {**constants, "V": V}, pdl=pdl)
    return out_q_TND


def _check_norms(
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    squares_T2: torch.Tensor | None,
    options: HeadOptions,
    sizes: tuple[int, int, int, int],
) -> None:
    """Weights are there where they are used, as long as they must be."""
    T, N, K, D = sizes
    is_whole = options.norm == "all_heads"
    assert (q_norm is None) == (k_norm is None) == (options.norm == "none")
    if q_norm is not None and k_norm is not None:
        assert q_norm.shape == (N * D if is_whole else D,)
        assert k_norm.shape == (K * D if is_whole else D,)
    assert (squares_T2 is not None) == is_whole
    if squares_T2 is not None:
        assert squares_T2.shape == (T, 2) and squares_T2.dtype == torch.float32


def _launch(
    qkv_STW: torch.Tensor,
    tensors: tuple[torch.Tensor | None, ...],
    max_blocks: int,
    constants: dict[str, Any],
    *,
    pdl: bool,
) -> None:
    """``tensors`` and ``constants`` as the kernel names them."""
    S, T, _ = qkv_STW.shape
    N, K = constants["N"], constants["K"]
    heads = min(2 if T <= _FEW_TOKENS else 8, triton.next_power_of_2(max(N, K)))
    groups = triton.cdiv(N, heads) + 2 * triton.cdiv(K, heads)
    block_d = triton.next_power_of_2(max(constants["D"], constants["V"]) // 2)
    _qk_rope_kernel[(groups, T)](
        qkv_STW, *tensors, qkv_STW.stride(0), qkv_STW.stride(1), max_blocks,
        **constants, S=S, HEADS=heads, BLOCK_D=block_d,
        num_warps=max(1, heads * block_d // 256),
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,  # multiply, then add: the bits of workers.layers.rotary.rotate
        **launch_options(pdl),
    )  # fmt: skip
