"""Decodes of a gated delta layer: convolution, norms, the rule and the gated norm, in one launch.

Owns the arithmetic of one token and one value head, a program each, which reads and writes that
head's state once. Knows nothing of chunks of tokens, or of whose states they are. T tokens, S
parts, N value heads, M key heads, G = N / M, D width of queries and keys, V of values, C = 2·M·D +
N·V channels of the convolution, W its taps, P states.

States lie since the step before, so a program asks for its own before it waits. Programs of value
heads that share a key head write the same inputs to the same place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.silu import silu
from moe.base.sum_norm import add_parts, load_parts
from workers.attention.kernels.output_gate import softplus
from workers.linear_attention.states import LayerStates

_NORM_EPS = 1e-6
# Numbers of a state that a thread holds.
_STATE_NUMBERS = 64


@triton.jit
def _convolved(
    x_ptr, stride_s, taps_ptr, from_ptr, to_ptr, keep_ptr, position, channels, mask, is_read,
    is_written, is_kept, C: tl.constexpr, W: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """silu of the taps' products with a token's inputs and those before it, which go to ``to_ptr``
    with it."""
    dtype: tl.constexpr = to_ptr.dtype.element_ty
    total = tl.zeros(channels.shape, dtype=tl.float32)
    for back in tl.static_range(W - 1, 0, -1):
        before = position - back
        place = before % W * C + channels
        x = tl.load(from_ptr + place, mask=mask & is_read & (before >= 0), other=0.0)
        tap = tl.load(taps_ptr + channels * W + (W - 1 - back), mask=mask, other=0.0)
        total += x.to(tl.float32) * tap.to(tl.float32)
        tl.store(to_ptr + place, x, mask=mask & is_written & (before >= 0))
        tl.store(keep_ptr + place, x, mask=mask & is_kept & (before >= 0))
    x = add_parts(load_parts(x_ptr + channels, mask, stride_s, S), S).to(dtype)
    tap = tl.load(taps_ptr + channels * W + (W - 1), mask=mask, other=0.0)
    tl.store(to_ptr + position % W * C + channels, x, mask=mask & is_written)
    tl.store(keep_ptr + position % W * C + channels, x, mask=mask & is_kept)
    return silu(total + x.to(tl.float32) * tap.to(tl.float32))


@triton.jit
def _at_length_one(x, EPS: tl.constexpr):
    return x * tl.rsqrt(tl.sum(x * x, axis=0) + EPS)


@triton.jit
def _decode_delta_kernel(
    x_ptr, ba_ptr, taps_ptr, decay_ptr, bias_ptr, norm_ptr, states_ptr, inputs_ptr,
    from_ptr, to_ptr, keep_ptr, positions_ptr, out_ptr,
    x_stride_s, x_stride_t, ba_stride_s, ba_stride_t,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr, W: tl.constexpr,
    S: tl.constexpr, S_BA: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    SCALE: tl.constexpr, NORM_EPS: tl.constexpr, EPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token and value head."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    C: tl.constexpr = 2 * M * D + N * V
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key_head = head // (N // M)
    ds, vs = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    is_d, is_v = ds < D, vs < V
    source = tl.load(from_ptr + token).to(tl.int64)
    target = tl.load(to_ptr + token).to(tl.int64)
    kept = tl.load(keep_ptr + token).to(tl.int64)
    position = tl.load(positions_ptr + token)
    is_read, is_written = source >= 0, target >= 0
    places = head * (D * V) + ds[:, None] * V + vs[None, :]
    is_place = is_d[:, None] & is_v[None, :]
    state = tl.load(states_ptr + source * (N * D * V) + places, mask=is_place & is_read, other=0.0)
    norm = tl.load(norm_ptr + vs, mask=is_v, other=0.0).to(tl.float32)
    rate, bias = tl.load(decay_ptr + head).to(tl.float32), tl.load(bias_ptr + head).to(tl.float32)
    wait_for_previous(PDL)
    x_ptr += token * x_stride_t
    from_inputs, to_inputs = inputs_ptr + source * (W * C), inputs_ptr + target * (W * C)
    keep_inputs = inputs_ptr + kept * (W * C)
    q = _convolved(
        x_ptr, x_stride_s, taps_ptr, from_inputs, to_inputs, keep_inputs, position,
        key_head * D + ds, is_d, is_read, is_written, kept >= 0, C, W, S,
    )  # fmt: skip
    k = _convolved(
        x_ptr, x_stride_s, taps_ptr, from_inputs, to_inputs, keep_inputs, position,
        (M + key_head) * D + ds, is_d, is_read, is_written, kept >= 0, C, W, S,
    )  # fmt: skip
    v = _convolved(
        x_ptr, x_stride_s, taps_ptr, from_inputs, to_inputs, keep_inputs, position,
        2 * M * D + head * V + vs, is_v, is_read, is_written, kept >= 0, C, W, S,
    )  # fmt: skip
    q, k = _at_length_one(q, NORM_EPS) * SCALE, _at_length_one(k, NORM_EPS)
    ba_ptr += token * ba_stride_t + head
    beta = add_parts(load_parts(ba_ptr, True, ba_stride_s, S_BA), S_BA).to(dtype).to(tl.float32)
    step = add_parts(load_parts(ba_ptr + N, True, ba_stride_s, S_BA), S_BA).to(dtype)
    beta = 1.0 / (1.0 + tl.exp(-beta))
    state *= tl.exp(-tl.exp(rate) * softplus(step.to(tl.float32) + bias))
    new = (v - tl.sum(k[:, None] * state, axis=0)) * beta
    state += k[:, None] * new[None, :]
    read = tl.sum(q[:, None] * state, axis=0)
    tl.store(states_ptr + target * (N * D * V) + places, state, mask=is_place & is_written)
    tl.store(states_ptr + kept * (N * D * V) + places, state, mask=is_place & (kept >= 0))
    z_ptr = x_ptr + C + head * V + vs
    z = add_parts(load_parts(z_ptr, is_v, x_stride_s, S), S).to(dtype).to(tl.float32)
    mean_square = tl.sum(read * read, axis=0) / V
    out = read * tl.rsqrt(mean_square + EPS) * norm * silu(z)
    out_ptrs = out_ptr + token * (N * V) + head * V + vs
    tl.store(out_ptrs, tl.where(is_written, out, 0.0).to(dtype), mask=is_v)


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
    block_d, block_v = triton.next_power_of_2(D), triton.next_power_of_2(V)
    _decode_delta_kernel[(T, N)](
        x_STX, ba_STB, taps_CW, decay_N, bias_N, norm_V, states.recurrent, states.inputs,
        from_T, to_T, keep_T, positions_T, out, *x_STX.stride()[:2], *ba_STB.stride()[:2],
        N=N, M=M, D=D, V=V, W=W, S=S, S_BA=ba_STB.shape[0], BLOCK_D=block_d, BLOCK_V=block_v,
        SCALE=D**-0.5, NORM_EPS=_NORM_EPS, EPS=eps,
        num_warps=max(1, min(16, block_d * block_v // (32 * _STATE_NUMBERS))),
        **launch_options(pdl),
    )  # fmt: skip
