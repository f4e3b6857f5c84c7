"""Prompts of a gated delta layer: convolution and norms, chunks' systems, the scan, the gated norm.

Owns three launches. `_prepare` convolves and norms all tokens; `_solve` inverts each chunk's
triangular system and weighs its queries with its keys, all chunks side by side; `_scan` goes
through a row's chunks with its state in registers. What is read goes to `gated_norm`. The
mathematics is `workers.linear_attention.delta_rule`'s. T tokens, N value heads, M key heads, D
width of queries and keys, V of values, X = 2·M·D + 2·N·V numbers of a projected token, C = 64
tokens of a chunk, K chunks, R rows, W taps.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.silu import silu
from moe.base.sum_norm import add_parts, load_parts
from workers.attention.kernels.output_gate import softplus
from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.kernels.gated_norm import gated_norm
from workers.linear_attention.states import LayerStates

_NORM_EPS = 1e-6
_TOKENS = 16  # of a program that prepares
_WARPS = 4  # of a program that solves or scans: with 8 either takes longer
# Columns of a state that a program carries, where states are few and where they are not: a row's
# chunks follow each other.
_FEW_VALUES, _VALUES = 16, 64
CHUNK_FIELDS = 2
"""First token, number of tokens; 0 tokens: there is no such chunk."""
ROW_FIELDS = 7
"""First chunk, number of chunks, the state before (-1: zeros), the state behind, position of the
first token; the chunk behind which the state is kept too, and where, -1: nowhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillWorkspace:
    """What the launches of one layer leave for each other.

    Attributes:
        convolved_TC: queries, keys and values, of the model's dtype.
        log_decay_TN, beta_TN: fp32.
        solved_KNCC, weights_KNCC: of chunks, of the model's dtype.
        read_TW: what tokens read, fp32 ``[T, N·V]``.
    """

    convolved_TC: torch.Tensor
    log_decay_TN: torch.Tensor
    beta_TN: torch.Tensor
    solved_KNCC: torch.Tensor
    weights_KNCC: torch.Tensor
    read_TW: torch.Tensor


@triton.jit(
    do_not_specialize=["num_tokens"],
    # They begin behind decodes, wherever that is.
    do_not_specialize_on_alignment=["positions_ptr", "starts_ptr", "sources_ptr"],
)
def _prepare_kernel(
    x_ptr, ba_ptr, taps_ptr, rate_ptr, bias_ptr, inputs_ptr, positions_ptr, starts_ptr, sources_ptr,
    out_ptr, decay_ptr, beta_ptr, num_tokens, x_stride_s, x_stride_t, ba_stride_s, ba_stride_t,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr, W: tl.constexpr,
    S: tl.constexpr, S_BA: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr, SCALE: tl.constexpr, NORM_EPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some tokens of one head: a query's, a key's or a value's; of the first also all decays."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    C: tl.constexpr = 2 * M * D + N * V
    part = tl.program_id(1)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_token = tokens < num_tokens
    is_value = part >= 2 * M
    width = tl.where(is_value, V, D)
    first = tl.where(is_value, 2 * M * D + (part - 2 * M) * V, part * D)
    columns = tl.arange(0, BLOCK)
    channels = first + columns
    is_column = columns < width
    mask = is_token[:, None] & is_column[None, :]
    wait_for_previous(PDL)
    positions = tl.load(positions_ptr + tokens, mask=is_token, other=0)
    starts = tl.load(starts_ptr + tokens, mask=is_token, other=0)
    sources = tl.load(sources_ptr + tokens, mask=is_token, other=-1).to(tl.int64)
    total = tl.zeros((TOKENS, BLOCK), dtype=tl.float32)
    x_ptrs = x_ptr + tokens.to(tl.int64)[:, None] * x_stride_t + channels[None, :]
    for back in tl.static_range(W - 1, -1, -1):
        before = positions - back
        is_here = (before >= starts) & is_token
        x = add_parts(
            load_parts(x_ptrs - back * x_stride_t, mask & is_here[:, None], x_stride_s, S), S
        ).to(dtype)
        if back > 0:
            is_kept = (before < starts) & (before >= 0) & (sources >= 0) & is_token
            places = (sources * W + (before + W) % W)[:, None] * C + channels[None, :]
            kept = tl.load(inputs_ptr + places, mask=mask & is_kept[:, None], other=0.0)
            x = tl.where(is_here[:, None], x, kept.to(dtype))
        tap = tl.load(taps_ptr + channels * W + (W - 1 - back), mask=is_column, other=0.0)
        total += x.to(tl.float32) * tap.to(tl.float32)[None, :]
    mixed = silu(total)
    scale = tl.rsqrt(tl.sum(tl.where(mask, mixed * mixed, 0.0), axis=1) + NORM_EPS)
    scale = tl.where(part < M, scale * SCALE, scale)
    mixed = tl.where(is_value, mixed, mixed * scale[:, None])
    tl.store(out_ptr + tokens.to(tl.int64)[:, None] * C + channels[None, :], mixed.to(dtype), mask)
    if part == 0:
        heads = tl.arange(0, BLOCK_N)
        is_head = heads < N
        each = is_token[:, None] & is_head[None, :]
        ba_ptrs = ba_ptr + tokens.to(tl.int64)[:, None] * ba_stride_t + heads[None, :]
        b = add_parts(load_parts(ba_ptrs, each, ba_stride_s, S_BA), S_BA).to(dtype)
        a = add_parts(load_parts(ba_ptrs + N, each, ba_stride_s, S_BA), S_BA).to(dtype)
        rate = tl.load(rate_ptr + heads, mask=is_head, other=0.0)
        bias = tl.load(bias_ptr + heads, mask=is_head, other=0.0)
        decay = -tl.exp(rate)[None, :] * softplus(a.to(tl.float32) + bias[None, :])
        each_head = tokens[:, None] * N + heads[None, :]
        tl.store(decay_ptr + each_head, decay, mask=each)
        tl.store(beta_ptr + each_head, 1.0 / (1.0 + tl.exp(-b.to(tl.float32))), mask=each)


@triton.jit
def _since(decay_ptr, token, cs, is_token, head, N: tl.constexpr):
    """Logarithms of what is left of the chunk's begin at each of its tokens."""
    decays = tl.load(decay_ptr + (token + cs) * N + head, mask=is_token, other=0.0)
    return tl.cumsum(decays, axis=0)


@triton.jit
def _inverse(system, C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """(I + system)⁻¹ of a strictly lower triangle: of pairs of neighbouring blocks, which grow from
    one row to half of all, the lower left part is −X₂ A X₁."""
    cs = tl.arange(0, C)
    found = (cs[:, None] == cs[None, :]).to(tl.float32)
    is_pair = (cs[:, None] % 2 == 1) & (cs[None, :] == cs[:, None] - 1)
    found -= tl.where(is_pair, system, 0.0)
    for level in tl.static_range(1, LEVELS):
        rows, columns = cs[:, None] >> level, cs[None, :] >> level
        below = tl.where((rows % 2 == 1) & (columns == rows - 1), system, 0.0)
        left = tl.dot(found, below, input_precision=PRECISION)
        found -= tl.dot(left, found, input_precision=PRECISION)
    return found


@triton.jit
def _solve_kernel(
    x_ptr, decay_ptr, beta_ptr, chunks_ptr, solved_ptr, weights_ptr,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    INVERSE_PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One chunk and value head."""
    dtype: tl.constexpr = solved_ptr.dtype.element_ty
    width: tl.constexpr = 2 * M * D + N * V
    chunk, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token, count = tl.load(chunks_ptr + chunk * 2).to(tl.int64), tl.load(chunks_ptr + chunk * 2 + 1)
    wait_for_previous(PDL)
    if count == 0:
        return
    cs, ds = tl.arange(0, C), tl.arange(0, BLOCK_D)
    is_token = cs < count
    mask = is_token[:, None] & (ds < D)[None, :]
    q_ptrs = x_ptr + (token + cs)[:, None] * width + head // (N // M) * D + ds[None, :]
    q = tl.load(q_ptrs, mask=mask, other=0.0)
    k = tl.load(q_ptrs + M * D, mask=mask, other=0.0)
    since = _since(decay_ptr, token, cs, is_token, head, N)
    beta = tl.load(beta_ptr + (token + cs) * N + head, mask=is_token, other=0.0)
    is_seen = cs[:, None] >= cs[None, :]
    between = tl.exp(tl.where(is_seen, since[:, None] - since[None, :], 0.0))
    places = (chunk * N + head) * (C * C) + cs[:, None] * C + cs[None, :]
    weights = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    tl.store(weights_ptr + places, tl.where(is_seen, weights * between, 0.0).to(dtype))
    products = tl.dot(k, tl.trans(k), input_precision=PRECISION)
    system = tl.where(cs[:, None] > cs[None, :], beta[:, None] * products * between, 0.0)
    tl.store(solved_ptr + places, _inverse(system, C, LEVELS, INVERSE_PRECISION).to(dtype))


@triton.jit
def _scan_kernel(
    x_ptr, raw_ptr, decay_ptr, beta_ptr, chunks_ptr, rows_ptr, solved_ptr, weights_ptr,
    states_ptr, inputs_ptr, read_ptr, raw_stride_s, raw_stride_t,
    N: tl.constexpr, M: tl.constexpr, D: tl.constexpr, V: tl.constexpr, W: tl.constexpr,
    S: tl.constexpr, C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_X: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, value head and BLOCK_V columns of its state."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    width: tl.constexpr = 2 * M * D + N * V
    row, head = tl.program_id(0), tl.program_id(1)
    chunk = tl.load(rows_ptr + row * 7)
    num_chunks = tl.load(rows_ptr + row * 7 + 1)
    source = tl.load(rows_ptr + row * 7 + 2).to(tl.int64)
    target = tl.load(rows_ptr + row * 7 + 3).to(tl.int64)
    keep_chunk = tl.load(rows_ptr + row * 7 + 5)
    kept = tl.load(rows_ptr + row * 7 + 6).to(tl.int64)
    wait_for_previous(PDL)
    if num_chunks == 0:
        return
    cs, ds = tl.arange(0, C), tl.arange(0, BLOCK_D)
    vs = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_d, is_v = ds < D, vs < V
    places = head * (D * V) + ds[:, None] * V + vs[None, :]
    is_place = is_d[:, None] & is_v[None, :]
    state = tl.load(
        states_ptr + source * (N * D * V) + places, mask=is_place & (source >= 0), other=0.0
    )
    for number in range(chunk, chunk + num_chunks):
        token = tl.load(chunks_ptr + number * 2).to(tl.int64)
        count = tl.load(chunks_ptr + number * 2 + 1)
        is_token = cs < count
        rows_ptrs = x_ptr + (token + cs)[:, None] * width
        q_ptrs = rows_ptrs + head // (N // M) * D + ds[None, :]
        mask = is_token[:, None] & is_d[None, :]
        q = tl.load(q_ptrs, mask=mask, other=0.0)
        k = tl.load(q_ptrs + M * D, mask=mask, other=0.0)
        is_value = is_token[:, None] & is_v[None, :]
        v = tl.load(rows_ptrs + 2 * M * D + head * V + vs[None, :], mask=is_value, other=0.0)
        since = _since(decay_ptr, token, cs, is_token, head, N)
        last = tl.sum(tl.where(cs == count - 1, since, 0.0), axis=0)
        beta = tl.load(beta_ptr + (token + cs) * N + head, mask=is_token, other=0.0)
        squares = (number * N + head) * (C * C) + cs[:, None] * C + cs[None, :]
        solved, weights = tl.load(solved_ptr + squares), tl.load(weights_ptr + squares)
        rounded, faded = state.to(dtype), tl.exp(since)[:, None]
        seen = faded * tl.dot(k, rounded, input_precision=PRECISION)
        right = (beta[:, None] * (v.to(tl.float32) - seen)).to(dtype)
        new = tl.dot(solved, right, input_precision=PRECISION)
        read = faded * tl.dot(q, rounded, input_precision=PRECISION)
        read += tl.dot(weights, new.to(dtype), input_precision=PRECISION)
        out_ptrs = read_ptr + (token + cs)[:, None] * (N * V) + head * V + vs[None, :]
        tl.store(out_ptrs, read, mask=is_value)
        left = tl.where(is_token, tl.exp(last - since), 0.0)
        state *= tl.exp(last)
        state += tl.dot(tl.trans(k), (left[:, None] * new).to(dtype), input_precision=PRECISION)
        kept_ptrs = states_ptr + kept * (N * D * V) + places
        tl.store(kept_ptrs, state, mask=is_place & (kept >= 0) & (number == keep_chunk))
    tl.store(states_ptr + target * (N * D * V) + places, state, mask=is_place)
    if tl.program_id(2) == 0:
        first = tl.load(rows_ptr + row * 7 + 4)
        end_token = tl.load(chunks_ptr + (chunk + num_chunks - 1) * 2)
        end_token += tl.load(chunks_ptr + (chunk + num_chunks - 1) * 2 + 1)
        begin_token = tl.load(chunks_ptr + chunk * 2)
        xs = tl.arange(0, BLOCK_X)
        kept_token = tl.load(chunks_ptr + keep_chunk * 2, mask=kept >= 0, other=0)
        kept_token += tl.load(chunks_ptr + keep_chunk * 2 + 1, mask=kept >= 0, other=0)
        # What is kept is written first: the slot's own inputs may be those it reads.
        for turn in tl.static_range(2):
            to = kept if turn == 0 else target
            end = kept_token if turn == 0 else end_token
            _keep_inputs(
                raw_ptr, inputs_ptr, source, to, begin_token, end, first,
                2 * M * D + head * V + xs, (xs < V) & (to >= 0), raw_stride_s, raw_stride_t,
                width, W, S,
            )  # fmt: skip
            if head % (N // M) == 0:
                for part in tl.static_range(2):
                    _keep_inputs(
                        raw_ptr, inputs_ptr, source, to, begin_token, end, first,
                        (part * M + head // (N // M)) * D + xs, (xs < D) & (to >= 0),
                        raw_stride_s, raw_stride_t, width, W, S,
                    )  # fmt: skip


@triton.jit
def _keep_inputs(
    raw_ptr, inputs_ptr, source, target, begin_token, end_token, first, channels, mask,
    stride_s, stride_t, C: tl.constexpr, W: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """A row's last inputs of some channels, its own and those before it, beside its state."""
    dtype: tl.constexpr = inputs_ptr.dtype.element_ty
    for back in tl.static_range(1, W):
        token = end_token - back
        position = first + (token - begin_token)
        is_own = token >= begin_token
        x_ptrs = raw_ptr + token.to(tl.int64) * stride_t + channels
        own = add_parts(load_parts(x_ptrs, mask & is_own, stride_s, S), S).to(dtype)
        is_kept = (position >= 0) & (token < begin_token) & (source >= 0)
        place = (position + W) % W * C + channels
        kept = tl.load(inputs_ptr + source * (W * C) + place, mask=mask & is_kept, other=0.0)
        x = tl.where(is_own, own, kept)
        tl.store(inputs_ptr + target * (W * C) + place, x, mask=mask & (position >= 0))


def prefill_delta(
    x_STX: torch.Tensor,
    ba_STB: torch.Tensor,
    taps_CW: torch.Tensor,
    rate_N: torch.Tensor,
    bias_N: torch.Tensor,
    norm_V: torch.Tensor,
    states: LayerStates,
    sources_T: torch.Tensor,
    positions_T: torch.Tensor,
    starts_T: torch.Tensor,
    chunks_KF: torch.Tensor,
    rows_RF: torch.Tensor,
    workspace: PrefillWorkspace,
    *,
    num_key_heads: int,
    eps: float,
    out: torch.Tensor,
    num_cores: int,
    pdl: bool,
) -> None:
    """What tokens of rows of any length read of their states, normed and gated, ``[T, N·V]``.

    Args:
        x_STX: as `decode_delta` takes it; ``ba_STB``, ``taps_CW`` and what follows too.
        sources_T: of each token the state before its row, int32, -1: zeros.
        starts_T: position of its row's first token, int32.
        chunks_KF: of `CHUNK_FIELDS`; ``rows_RF``: of `ROW_FIELDS`; int32.
    """
    N, D, V = states.recurrent.shape[1:]
    S, T, X = x_STX.shape
    M, W = num_key_heads, states.taps
    channels = 2 * M * D + N * V
    assert N % M == 0 and channels + N * V == X and ba_STB.shape[1:] == (T, 2 * N)
    assert x_STX.stride(2) == ba_STB.stride(2) == 1
    assert workspace.convolved_TC.shape == (T, channels) and out.shape == (T, N * V)
    if T == 0:
        return
    sizes = {"N": N, "M": M, "D": D, "V": V}
    block_d, block_v = triton.next_power_of_2(D), triton.next_power_of_2(V)
    options, w = launch_options(pdl), workspace
    dots = precision(out.dtype)
    tiles = triton.cdiv(T, _TOKENS)
    _prepare_kernel[(tiles, 2 * M + N)](
        x_STX, ba_STB, taps_CW, rate_N, bias_N, states.inputs, positions_T, starts_T, sources_T,
        w.convolved_TC, w.log_decay_TN, w.beta_TN, T, *x_STX.stride()[:2], *ba_STB.stride()[:2],
        **sizes, W=W, S=S, S_BA=ba_STB.shape[0], TOKENS=_TOKENS, BLOCK=max(block_d, block_v),
        BLOCK_N=triton.next_power_of_2(N), SCALE=D**-0.5, NORM_EPS=_NORM_EPS, num_warps=4,
        **options,
    )  # fmt: skip
    _solve_kernel[(len(chunks_KF), N)](
        w.convolved_TC, w.log_decay_TN, w.beta_TN, chunks_KF, w.solved_KNCC, w.weights_KNCC,
        **sizes, C=CHUNK, LEVELS=CHUNK.bit_length() - 1, BLOCK_D=max(16, block_d),
        PRECISION=dots, INVERSE_PRECISION="ieee" if dots == "ieee" else "tf32x3",
        num_warps=_WARPS, **options,
    )  # fmt: skip
    carried = _carried(len(rows_RF) * N, block_v, num_cores)
    _scan_kernel[(len(rows_RF), N, triton.cdiv(V, carried))](
        w.convolved_TC, x_STX, w.log_decay_TN, w.beta_TN, chunks_KF, rows_RF, w.solved_KNCC,
        w.weights_KNCC, states.recurrent, states.inputs, w.read_TW, *x_STX.stride()[:2],
        **sizes, W=W, S=S, C=CHUNK, BLOCK_D=max(16, block_d), BLOCK_V=carried,
        BLOCK_X=max(block_d, block_v), PRECISION=dots, num_warps=_WARPS, **options,
    )  # fmt: skip
    gated_norm(w.read_TW, x_STX[..., channels:], norm_V, eps=eps, out=out, pdl=pdl)


def _carried(num_states: int, values: int, num_cores: int) -> int:
    """Columns of a program."""
    carried = max(16, min(_VALUES, values))
    return carried if num_states * triton.cdiv(values, carried) >= num_cores else _FEW_VALUES
