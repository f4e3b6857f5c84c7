"""From the qkv projection to attention: norm and rotation of q and k, keys and values to the cache.

Owns the arithmetic between the two and the address of a token in the cache. Does not know how the
projection was computed. T tokens, S parts, N query heads, K key/value heads, D head_dim, W =
(N + 2K)·D, P positions. Heads are held as two halves of D/2, since rotation pairs i with i + D/2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import MAX_REGISTERS, add_parts, load_parts
from workers.attention.kernels.key_tiles import check_cache
from workers.attention.kv_cache import LayerCache

# Up to so many tokens, many small programs are quicker than few that load wide.
_FEW_TOKENS = 32
# Up to so many all programs run at once, and what they load ahead of the wait is hidden.
_ONE_WAVE_TOKENS = 512
# Above that a program rotates _WIDE_REPEAT tiles of _WIDE_HEADS query heads: 64 bytes per lane in
# flight.
_WIDE_HEADS, _WIDE_REPEAT = 8, 2


@triton.jit
def _weigh(half, scale, weight, DTYPE: tl.constexpr):
    """One half of RMSNorm, cast before the weight and after it; in fp32 again."""
    scaled = (half * scale).to(DTYPE).to(tl.float32)
    return (scaled * weight.to(tl.float32)).to(DTYPE).to(tl.float32)


@triton.jit
def _norm_rotate(
    first, second, weight_1, weight_2, cos, sin,
    EPS: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Both halves [heads, D/2] normed by head, then turned in fp32 and cast."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    square = tl.sum(first * first + second * second, axis=1, keep_dims=True)
    scale = tl.rsqrt(square / D + EPS)
    first, second = _weigh(first, scale, weight_1, DTYPE), _weigh(second, scale, weight_2, DTYPE)
    return (first * cos - second * sin).to(DTYPE), (second * cos + first * sin).to(DTYPE)


@triton.jit
def _finite(x):
    """0 in place of what is not finite: see workers.attention.kv_cache.LayerCache.write."""
    return tl.where(tl.abs(x.to(tl.float32)) < float("inf"), x, 0.0)


@triton.jit
def _power(exponent):
    """2 to the power of ``exponent - 127``, as fp32 holds it."""
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _store_entry(ptrs, scales_ptr, scale_at, first, second, mask, is_head, HALF: tl.constexpr):
    """Both halves [heads, D/2] of some heads' keys or values; in FP8 with a scale for each head, as
    workers.attention.kv_cache.quantize makes them."""
    if scales_ptr is None:
        tl.store(ptrs, _finite(first), mask=mask)
        tl.store(ptrs + HALF, _finite(second), mask=mask)
    else:
        first, second = _finite(first).to(tl.float32), _finite(second).to(tl.float32)
        top = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1, keep_dims=True)
        exponent = ((top.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - 8
        exponent = tl.maximum(exponent, 64)
        first, second = first * _power(254 - exponent), second * _power(254 - exponent)
        scale = _power(exponent).to(scales_ptr.dtype.element_ty)
        tl.store(scales_ptr + scale_at, scale, mask=is_head)
        tl.store(ptrs, first.to(ptrs.dtype.element_ty), mask=mask)
        tl.store(ptrs + HALF, second.to(ptrs.dtype.element_ty), mask=mask)


@triton.jit
def _scale_places(heads, block, offset, K: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Of some heads' keys at one place in a block; their values' are the next."""
    return 2 * ((block.to(tl.int64) * K + heads) * BLOCK_SIZE + offset)


@triton.jit(do_not_specialize=["max_blocks"])
def _qk_rope_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, tables_ptr,
    keys_ptr, values_ptr, scales_ptr, q_ptr, stride_s, stride_t, max_blocks, EPS: tl.constexpr,
    S: tl.constexpr, N: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one kind of one token: groups of q first, then of k, then of v."""
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    HALF: tl.constexpr = D // 2
    q_groups: tl.constexpr = (N + HEADS - 1) // HEADS
    kv_groups: tl.constexpr = (K + HEADS - 1) // HEADS
    group, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    is_q, is_v = group < q_groups, group >= q_groups + kv_groups
    first_group = tl.where(is_q, 0, tl.where(is_v, q_groups + kv_groups, q_groups))
    row_head = tl.where(is_q, 0, tl.where(is_v, N + K, N))
    heads = (group - first_group) * HEADS + tl.arange(0, HEADS)
    # What all heads share is loaded for each of them: the cache serves it, no barrier is needed.
    halves = tl.broadcast_to(tl.arange(0, BLOCK_D)[None, :], (HEADS, BLOCK_D))
    is_head = (heads < tl.where(is_q, N, K))[:, None]
    mask = is_head & (halves < HALF)
    inner = heads[:, None] * D + halves
    if is_q:
        weight_1 = tl.load(q_norm_ptr + halves, mask=mask, other=0.0)
        weight_2 = tl.load(q_norm_ptr + HALF + halves, mask=mask, other=0.0)
    else:
        weight_1 = tl.load(k_norm_ptr + halves, mask=mask, other=0.0)
        weight_2 = tl.load(k_norm_ptr + HALF + halves, mask=mask, other=0.0)
    # Slots, positions and tables are older than the projection, which has waited for them itself.
    slot = tl.load(slots_ptr + token)
    position = tl.load(positions_ptr + token)
    is_token = slot >= 0
    position = tl.where(is_token, position, 0)
    table_ptr = tables_ptr + slot.to(tl.int64) * max_blocks
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_token & ~is_q, other=0)
    turns = position.to(tl.int64) * D + halves
    cos = tl.load(cos_ptr + turns, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + turns, mask=mask, other=0.0)
    wait_for_previous(PDL)
    qkv_ptrs = qkv_ptr + token * stride_t + row_head * D + inner
    first_parts = load_parts(qkv_ptrs, mask, stride_s, S)
    second_parts = load_parts(qkv_ptrs + HALF, mask, stride_s, S)
    # Rounded as F.linear rounds.
    first, second = add_parts(first_parts, S).to(dtype), add_parts(second_parts, S).to(dtype)
    offset = position % BLOCK_SIZE
    cache = (block.to(tl.int64) * BLOCK_SIZE + offset) * (K * D) + inner
    scale_at = _scale_places(heads[:, None], block, offset, K, BLOCK_SIZE)
    if is_v:
        _store_entry(
            values_ptr + cache, scales_ptr, scale_at + 1, first, second,
            mask & is_token, is_head & is_token, HALF,
        )  # fmt: skip
    else:
        first, second = _norm_rotate(first, second, weight_1, weight_2, cos, sin, EPS, D, dtype)
        if is_q:
            q_ptrs = q_ptr + token * (N * D) + inner
            tl.store(q_ptrs, first, mask=mask)
            tl.store(q_ptrs + HALF, second, mask=mask)
        else:
            _store_entry(
                keys_ptr + cache, scales_ptr, scale_at, first, second,
                mask & is_token, is_head & is_token, HALF,
            )  # fmt: skip


@triton.jit
def _load_halves(ptr, inner, mask, D: tl.constexpr):
    """Both halves of some heads, read once."""
    first = tl.load(ptr + inner, mask=mask, other=0.0, eviction_policy="evict_first")
    second = tl.load(ptr + D // 2 + inner, mask=mask, other=0.0, eviction_policy="evict_first")
    return first, second


@triton.jit
def _load_shared(norm_ptr, cos_ptr, sin_ptr, position, halves, mask, D: tl.constexpr):
    """What all heads share, for each of a tile's heads: no barrier, and registers keep it."""
    turns = position.to(tl.int64) * D + halves
    weight_1 = tl.load(norm_ptr + halves, mask=mask, other=0.0)
    weight_2 = tl.load(norm_ptr + D // 2 + halves, mask=mask, other=0.0)
    cos = tl.load(cos_ptr + turns, mask=mask, other=0.0)
    return weight_1, weight_2, cos, tl.load(sin_ptr + turns, mask=mask, other=0.0)


@triton.jit
def _rope_queries(
    qkv_ptr, norm_ptr, cos_ptr, sin_ptr, slot_ptr, position_ptr, q_ptr, first_head,
    EPS: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    HEADS: tl.constexpr, REPEAT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """REPEAT tiles of HEADS query heads of one token."""
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    heads = first_head + tl.arange(0, HEADS)[:, None]
    halves = tl.broadcast_to(tl.arange(0, BLOCK_D)[None, :], (HEADS, BLOCK_D))
    is_half = halves < D // 2
    inner = heads * D + halves
    tiles = ()
    for r in tl.static_range(REPEAT):
        mask = (heads + r * HEADS < N) & is_half
        tiles = tiles + _load_halves(qkv_ptr + r * HEADS * D, inner, mask, D)
    slot, position = tl.load(slot_ptr), tl.load(position_ptr)
    position = tl.where(slot >= 0, position, 0)
    weight_1, weight_2, cos, sin = _load_shared(
        norm_ptr, cos_ptr, sin_ptr, position, halves, is_half, D
    )
    for r in tl.static_range(REPEAT):
        first, second = tiles[2 * r].to(dtype), tiles[2 * r + 1].to(dtype)
        first, second = _norm_rotate(first, second, weight_1, weight_2, cos, sin, EPS, D, dtype)
        mask = (heads + r * HEADS < N) & is_half
        q_ptrs = q_ptr + r * HEADS * D + inner
        tl.store(q_ptrs, first, mask=mask)
        tl.store(q_ptrs + D // 2, second, mask=mask)


@triton.jit
def _rope_keys_values(
    qkv_ptr, norm_ptr, cos_ptr, sin_ptr, slot_ptr, position_ptr, tables_ptr, keys_ptr, values_ptr,
    scales_ptr, max_blocks, EPS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """All heads of k and v of one token, HEADS or fewer."""
    heads = tl.arange(0, HEADS)[:, None]
    halves = tl.broadcast_to(tl.arange(0, BLOCK_D)[None, :], (HEADS, BLOCK_D))
    mask = (heads < 2 * K) & (halves < D // 2)
    inner = heads * D + halves
    v_1, v_2 = _load_halves(qkv_ptr, inner, mask, D)
    slot, position = tl.load(slot_ptr), tl.load(position_ptr)
    is_token = slot >= 0
    position = tl.where(is_token, position, 0)
    table_ptr = tables_ptr + slot.to(tl.int64) * max_blocks
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_token, other=0)
    weight_1, weight_2, cos, sin = _load_shared(
        norm_ptr, cos_ptr, sin_ptr, position, halves, mask, D
    )
    v_1, v_2 = v_1.to(DTYPE), v_2.to(DTYPE)
    # For every head, of which k's are stored; of those left as they are, v's.
    k_1, k_2 = _norm_rotate(v_1, v_2, weight_1, weight_2, cos, sin, EPS, D, DTYPE)
    offset = position % BLOCK_SIZE
    cache = (block.to(tl.int64) * BLOCK_SIZE + offset) * (K * D)
    key_ptrs, value_ptrs = keys_ptr + cache + inner, values_ptr + (cache - K * D) + inner
    k_at = _scale_places(heads, block, offset, K, BLOCK_SIZE)
    v_at = _scale_places(heads - K, block, offset, K, BLOCK_SIZE) + 1
    is_k, is_v = is_token & (heads < K), is_token & (heads >= K) & (heads < 2 * K)
    _store_entry(key_ptrs, scales_ptr, k_at, k_1, k_2, mask & is_k, is_k, D // 2)
    _store_entry(value_ptrs, scales_ptr, v_at, v_1, v_2, mask & is_v, is_v, D // 2)


@triton.jit(do_not_specialize=["max_blocks"])
def _qk_rope_wide_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, tables_ptr,
    keys_ptr, values_ptr, scales_ptr, q_ptr, stride_t, max_blocks, EPS: tl.constexpr,
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
    wait_for_previous(PDL)
    if group < tl.num_programs(0) - 1:
        _rope_queries(
            qkv_ptr, q_norm_ptr, cos_ptr, sin_ptr, slots_ptr, positions_ptr,
            q_ptr + token * (N * D), group * (REPEAT * HEADS), EPS, N, D, HEADS, REPEAT, BLOCK_D,
        )  # fmt: skip
    else:
        _rope_keys_values(
            qkv_ptr + N * D, k_norm_ptr, cos_ptr, sin_ptr, slots_ptr, positions_ptr,
            tables_ptr, keys_ptr, values_ptr, scales_ptr, max_blocks, EPS, K, D, BLOCK_SIZE,
            KV_HEADS, BLOCK_D, q_ptr.dtype.element_ty,
        )  # fmt: skip


def qk_rope(
    qkv_STW: torch.Tensor,
    q_norm_D: torch.Tensor,
    k_norm_D: torch.Tensor,
    eps: float,
    cos_PD: torch.Tensor,
    sin_PD: torch.Tensor,
    positions_T: torch.Tensor,
    slots_T: torch.Tensor,
    tables: torch.Tensor,
    cache: LayerCache,
    *,
    out_q_TND: torch.Tensor,
    pdl: bool = False,
) -> torch.Tensor:
    """q normed and rotated, in ``out_q_TND``; k (likewise) and v stored in the paged cache.

    What is not finite is stored as 0.

    Args:
        qkv_STW: parts, in any dtype, any strides over S and T.
        cos_PD, sin_PD: fp32, of every position; the second half repeats the first.
        positions_T: int32.
        slots_T: int32, sequence of each token; −1 is padding, of which nothing is stored.
        tables: int32 ``[num_slots, max_blocks]``: blocks of each sequence.
        cache: of the model's dtype or FP8, whose scales are made here.
        out_q_TND: in the model's dtype, to which the sum of the parts is rounded.
    """
    S, T, W = qkv_STW.shape
    N, D = out_q_TND.shape[1:]
    K = cache.keys.shape[2]
    assert W == (N + 2 * K) * D
    assert D % 2 == 0
    assert qkv_STW.stride(2) == 1
    assert out_q_TND.shape[0] == T
    assert q_norm_D.shape[0] == k_norm_D.shape[0] == D
    check_cache(cache, D, out_q_TND.dtype)
    assert cos_PD.shape == sin_PD.shape
    assert cos_PD.shape[1] == D
    assert cos_PD.dtype == sin_PD.dtype == torch.float32
    assert positions_T.shape == slots_T.shape == (T,)
    assert positions_T.dtype == slots_T.dtype == tables.dtype == torch.int32
    inputs = (q_norm_D, k_norm_D, cos_PD, sin_PD, positions_T, slots_T, tables)
    assert all(tensor.is_contiguous() for tensor in (*inputs, out_q_TND))
    if T == 0:
        return out_q_TND
    if T > _ONE_WAVE_TOKENS and S == 1:
        _launch_wide(qkv_STW[0], inputs, cache, out_q_TND, eps=eps, pdl=pdl)
    else:
        _launch(qkv_STW, inputs, cache, out_q_TND, eps=eps, pdl=pdl)
    return out_q_TND


def _launch(
    qkv_STW: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    cache: LayerCache,
    out_q_TND: torch.Tensor,
    *,
    eps: float,
    pdl: bool,
) -> None:
    """``inputs`` as the kernel names them, the tables last."""
    S = len(qkv_STW)
    T, N, D = out_q_TND.shape
    block_size, K = cache.keys.shape[1:3]
    heads = min(2 if T <= _FEW_TOKENS else 8, triton.next_power_of_2(max(N, K)))
    groups = triton.cdiv(N, heads) + 2 * triton.cdiv(K, heads)
    block_d = triton.next_power_of_2(D // 2)
    _qk_rope_kernel[(groups, T)](
        qkv_STW, *inputs, cache.keys, cache.values, cache.scales, out_q_TND,
        qkv_STW.stride(0), qkv_STW.stride(1), inputs[-1].shape[1],
        EPS=eps, S=S, N=N, K=K, D=D, BLOCK_SIZE=block_size, HEADS=heads, BLOCK_D=block_d,
        num_warps=max(1, heads * block_d // 256),
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,  # multiply, then add: the bits of workers.layers.rotary.rotate
        **launch_options(pdl),
    )  # fmt: skip


def _launch_wide(
    qkv_TW: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    cache: LayerCache,
    out_q_TND: torch.Tensor,
    *,
    eps: float,
    pdl: bool,
) -> None:
    """As `_launch`."""
    T, N, D = out_q_TND.shape
    block_size, K = cache.keys.shape[1:3]
    heads = min(_WIDE_HEADS, triton.next_power_of_2(N))
    block_d = triton.next_power_of_2(D // 2)
    _qk_rope_wide_kernel[(triton.cdiv(N, heads * _WIDE_REPEAT) + 1, T)](
        qkv_TW, *inputs, cache.keys, cache.values, cache.scales, out_q_TND,
        qkv_TW.stride(0), inputs[-1].shape[1],
        EPS=eps, N=N, K=K, D=D, BLOCK_SIZE=block_size, HEADS=heads, REPEAT=_WIDE_REPEAT,
        KV_HEADS=triton.next_power_of_2(2 * K), BLOCK_D=block_d,
        num_warps=max(1, heads * block_d // 256),
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,  # as above
        **launch_options(pdl),
    )  # fmt: skip
