"""Decodes of a gated delta layer: convolution, norms and the rule in one launch, the gated norm in
another.

Owns the arithmetic of one token and some columns of a value head's state, a program each, which
reads and writes them once: columns do not meet in the rule. Knows nothing of chunks of tokens, or
of whose states they are. T tokens, S parts, N value heads, M key heads, G = N / M, D width of
queries and keys, V of values, C = 2·M·D + N·V channels of the convolution, W its taps, P states.

States and inputs lie since the step before, so a program asks for its own before it waits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.silu import silu
from moe.base.sum_norm import add_parts, load_parts
from workers.attention.kernels.output_gate import softplus
from workers.linear_attention.kernels.gated_norm import gated_norm
from workers.linear_attention.states import LayerStates

_NORM_EPS = 1e-6
# Columns of a state that a program has, where there are fewer programs than these and where not.
_FEW_VALUES, _VALUES = 16, 64
_PROGRAMS = 256
_STATE_NUMBERS = 64  # that a thread holds


@triton.jit
def _load_taps(taps_ptr, channels, mask, W: tl.constexpr):
    """Of the token itself first, then of those before it."""
    taps = ()
    for back in tl.static_range(W):
        tap = tl.load(taps_ptr + channels * W + (W - 1 - back), mask=mask, other=0.0)
        taps = taps + (tap,)  # noqa: RUF005
    return taps


@triton.jit
def _load_inputs(from_ptr, position, channels, mask, C: tl.constexpr, W: tl.constexpr):
    """Of the tokens before, the last one first."""
    inputs = ()
    for back in tl.static_range(1, W):
        before = position - back
        place = before % W * C + channels
        x = tl.load(from_ptr + place, mask=mask & (before >= 0), other=0.0)
        inputs = inputs + (x,)  # noqa: RUF005
    return inputs


@triton.jit
def _store_inputs(to_ptr, x, inputs, position, channels, mask, C: tl.constexpr, W: tl.constexpr):
    """A token's, and those before it."""
    tl.store(to_ptr + position % W * C + channels, x, mask=mask)
    for back in tl.static_range(1, W):
        before = position - back
        tl.store(to_ptr + before % W * C + channels, inputs[back - 1], mask=mask & (before >= 0))


@triton.jit
def _convolved(x, inputs, taps, W: tl.constexpr):
    """silu of the taps' products with a token's inputs and those before it."""
    total = tl.zeros(x.shape, dtype=tl.float32)
    for back in tl.static_range(W - 1, 0, -1):
        total += inputs[back - 1].to(tl.float32) * taps[back].to(tl.float32)
    return silu(total + x.to(tl.float32) * taps[0].to(tl.float32))


@triton.jit
def _at_length_one(x, EPS: tl.constexpr):
    return x * tl.rsqrt(tl.sum(x * x, axis=0) + EPS)


@triton.jit
def _decode_delta_kernel(
    x_ptr, ba_ptr, taps_ptr, decay_ptr, bias_ptr, states_ptr, inputs_ptr,
    from_ptr, to_ptr, keep_ptr, positions_ptr, read_ptr,
    x_stride_s, x_stride_t, ba_stride_s, ba_stride_t,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr, W: tl.constexpr,
    S: tl.constexpr, S_BA: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    SCALE: tl.constexpr, NORM_EPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token, value head and BLOCK_V columns of its state."""
    dtype: tl.constexpr = inputs_ptr.dtype.element_ty
    C: tl.constexpr = 2 * M * D + N * V
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ds, vs = tl.arange(0, BLOCK_D), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_d, is_v = ds < D, vs < V
    source = tl.load(from_ptr + token).to(tl.int64)
    target = tl.load(to_ptr + token).to(tl.int64)
    kept = tl.load(keep_ptr + token).to(tl.int64)
    position = tl.load(positions_ptr + token)
    is_read, is_written, is_kept = source >= 0, target >= 0, kept >= 0
    places = head * (D * V) + ds[:, None] * V + vs[None, :]
    is_place = is_d[:, None] & is_v[None, :]
    state = tl.load(states_ptr + source * (N * D * V) + places, mask=is_place & is_read, other=0.0)
    q_channels = head // (N // M) * D + ds
    k_channels, v_channels = M * D + q_channels, 2 * M * D + head * V + vs
    from_inputs = inputs_ptr + source * (W * C)
    q_inputs = _load_inputs(from_inputs, position, q_channels, is_d & is_read, C, W)
    k_inputs = _load_inputs(from_inputs, position, k_channels, is_d & is_read, C, W)
    v_inputs = _load_inputs(from_inputs, position, v_channels, is_v & is_read, C, W)
    q_taps = _load_taps(taps_ptr, q_channels, is_d, W)
    k_taps = _load_taps(taps_ptr, k_channels, is_d, W)
    v_taps = _load_taps(taps_ptr, v_channels, is_v, W)
    rate, bias = tl.load(decay_ptr + head).to(tl.float32), tl.load(bias_ptr + head).to(tl.float32)
    wait_for_previous(PDL)
    x_ptr += token * x_stride_t
    q_parts = load_parts(x_ptr + q_channels, is_d, x_stride_s, S)
    k_parts = load_parts(x_ptr + k_channels, is_d, x_stride_s, S)
    v_parts = load_parts(x_ptr + v_channels, is_v, x_stride_s, S)
    ba_ptr += token * ba_stride_t + head
    beta = add_parts(load_parts(ba_ptr, True, ba_stride_s, S_BA), S_BA).to(dtype).to(tl.float32)
    step = add_parts(load_parts(ba_ptr + N, True, ba_stride_s, S_BA), S_BA).to(dtype)
    q_x, k_x = add_parts(q_parts, S).to(dtype), add_parts(k_parts, S).to(dtype)
    v_x = add_parts(v_parts, S).to(dtype)
    q = _at_length_one(_convolved(q_x, q_inputs, q_taps, W), NORM_EPS) * SCALE
    k = _at_length_one(_convolved(k_x, k_inputs, k_taps, W), NORM_EPS)
    v = _convolved(v_x, v_inputs, v_taps, W)
    beta = 1.0 / (1.0 + tl.exp(-beta))
    state *= tl.exp(-tl.exp(rate) * softplus(step.to(tl.float32) + bias))
    new = (v - tl.sum(k[:, None] * state, axis=0)) * beta
    state += k[:, None] * new[None, :]
    read = tl.sum(q[:, None] * state, axis=0)
    tl.store(states_ptr + target * (N * D * V) + places, state, mask=is_place & is_written)
    tl.store(states_ptr + kept * (N * D * V) + places, state, mask=is_place & is_kept)
    read_ptrs = read_ptr + token * (N * V) + head * V + vs
    tl.store(read_ptrs, tl.where(is_written, read, 0.0), mask=is_v)
    # One program of those that share a key head has its inputs written.
    is_first = is_d & (head % (N // M) == 0) & (tl.program_id(2) == 0)
    for turn in tl.static_range(2):
        if turn == 0:
            to_inputs, is_to = inputs_ptr + target * (W * C), is_written
        else:
            to_inputs, is_to = inputs_ptr + kept * (W * C), is_kept
        _store_inputs(to_inputs, q_x, q_inputs, position, q_channels, is_first & is_to, C, W)
        _store_inputs(to_inputs, k_x, k_inputs, position, k_channels, is_first & is_to, C, W)
        _store_inputs(to_inputs, v_x, v_inputs, position, v_channels, is_v & is_to, C, W)


def decode_delta(
    x_STX: torch.Tensor,
    ba_STB: torch.Tensor,
    taps_CW: torch.Tensor,
    decay_N: torch.Tensor,
    bias_N: torch.Tensor,
    norm_V: torch.Tensor,
    states: LayerStates,
    from_T: torch.Tensor,
    to_T: torch.Tensor,
    keep_T: torch.Tensor,
    positions_T: torch.Tensor,
    read_TW: torch.Tensor,
    *,
    num_key_heads: int,
    eps: float,
    out: torch.Tensor,
    pdl: bool,
) -> None:
    """What tokens of different sequences read of their states, normed and gated, ``[T, N·V]``.

    Args:
        x_STX: parts of queries, keys, values and gates, all heads of each: X = C + N·V.
        ba_STB: parts of what betas and decays are made of: B = 2·N.
        decay_N: A_log; ``bias_N``: dt_bias.
        from_T: int32, the state before the token, -1: zeros; ``to_T``: where the one behind it
            goes, -1: the row is padding and reads 0; ``keep_T``: where it goes too, -1: nowhere.
        read_TW: workspace, fp32 ``[T, N·V]``.
    """
    N, D, V = states.recurrent.shape[1:]
    S, T, X = x_STX.shape
    M, W = num_key_heads, states.taps
    channels = 2 * M * D + N * V
    assert N % M == 0 and channels + N * V == X and ba_STB.shape[1:] == (T, 2 * N)
    assert taps_CW.shape == (channels, W) and taps_CW.is_contiguous()
    assert states.inputs.shape[2] == channels and states.inputs.is_contiguous()
    assert states.recurrent.is_contiguous() and states.recurrent.dtype == torch.float32
    assert x_STX.stride(2) == ba_STB.stride(2) == 1
    assert out.shape == (T, N * V) and out.is_contiguous()
    if T == 0:
        return
    assert read_TW.shape == out.shape and read_TW.is_contiguous()
    assert read_TW.dtype == torch.float32
    block_d, block_v = triton.next_power_of_2(D), min(_VALUES, triton.next_power_of_2(V))
    if T * N * triton.cdiv(V, block_v) < _PROGRAMS:
        block_v = min(_FEW_VALUES, block_v)
    _decode_delta_kernel[(T, N, triton.cdiv(V, block_v))](
        x_STX, ba_STB, taps_CW, decay_N, bias_N, states.recurrent, states.inputs,
        from_T, to_T, keep_T, positions_T, read_TW, *x_STX.stride()[:2], *ba_STB.stride()[:2],
        N=N, M=M, D=D, V=V, W=W, S=S, S_BA=ba_STB.shape[0], BLOCK_D=block_d, BLOCK_V=block_v,
        SCALE=D**-0.5, NORM_EPS=_NORM_EPS,
        num_warps=max(1, min(16, block_d * block_v // (32 * _STATE_NUMBERS))),
        **launch_options(pdl),
    )  # fmt: skip
    gated_norm(read_TW, x_STX[..., channels:], norm_V, eps=eps, out=out, pdl=pdl)
