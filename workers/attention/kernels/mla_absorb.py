"""A head's matrix of latent attention, absorbed: its rows of keys into queries, its rows of values
into what attention found.

Owns both products, one small GEMM a head, and what queries go through on the way: the sum of parts,
growth with the position, rotation. The matrix W [N · (P + V), C] stays as the checkpoint has it, in
eight bits too: both products read views of it. Sums are fp32, in the order of the inputs. T tokens,
S parts, N heads, P and R widths of a query's parts without and with a position, C of a latent, E =
C + R, V of a value.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, precision, wait_for_previous
from moe.base.scaled_dot import scale_options, widen
from moe.base.sum_norm import add_parts, load_parts
from moe.base.tiles import INT4_NAME
from moe.base.weight import Weight
from workers.attention.kernels.mla_latent import pair_places, turn
from workers.attention.mla_spec import QueryGrowth

_MAX_BLOCK = 64  # tokens, and columns, of a program
_MIN_COLUMNS = 16
_DEPTH = 64  # inputs of a step
# Of queries: a head's part without a position is one step or two, whose loads are not moved ahead.
_QUERY_DEPTH = 128
_FEW_TOKENS, _FEW_DEPTH = 16, 256  # of few tokens a step takes more, since it waits for memory
_MOST_NUMBERS = 8192  # of a step's queries, all parts of which are in flight together


@dataclasses.dataclass(frozen=True, slots=True)
class Halves:
    """Of a step in which prompts' tokens meet each other with keys and values made of their
    latents, and absorbed what the cache held before.

    Attributes:
        q_TNP: queries' part without a position.
        new_TNV: what attention found among the step's tokens.
        old_lse_TN, new_lse_TN: base-2 log-sum-exps of scores, fp32; -inf: nothing was seen.
    """

    q_TNP: torch.Tensor
    new_TNV: torch.Tensor
    old_lse_TN: torch.Tensor
    new_lse_TN: torch.Tensor

    def check(self, T: int, N: int, P: int, V: int, dtype: torch.dtype) -> None:
        """Assert shapes and types."""
        assert self.q_TNP.shape == (T, N, P) and self.new_TNV.shape == (T, N, V)
        assert self.old_lse_TN.shape == self.new_lse_TN.shape == (T, N)
        assert self.q_TNP.dtype == self.new_TNV.dtype == dtype
        assert self.old_lse_TN.dtype == self.new_lse_TN.dtype == torch.float32
        for tensor in (self.q_TNP, self.new_TNV, self.old_lse_TN, self.new_lse_TN):
            assert tensor.is_contiguous()


@triton.jit
def _load_weights(
    w_ptr, scales_ptr, rows, columns, mask, column_block, C: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile of W [rows, columns] in DTYPE; its columns lie in one block of scales."""
    w = tl.load(w_ptr + rows.to(tl.int64)[:, None] * C + columns[None, :], mask=mask, other=0.0)
    if scales_ptr is not None:
        scales = tl.load(scales_ptr + rows // BN * (C // BK) + column_block)
        w = widen(w, tl.float32) * scales[:, None]
    return w.to(DTYPE)


@triton.jit
def _grown(x, positions_T, BETA: tl.constexpr, LENGTH: tl.constexpr):
    """Queries [T, …] as workers.attention.mla_spec.QueryGrowth says."""
    if BETA is not None:
        factor = 1.0 + BETA * tl.log(1.0 + (positions_T // LENGTH).to(tl.float32))
        x = (x.to(tl.float32) * factor.to(x.dtype).to(tl.float32)[:, None]).to(x.dtype)
    return x


@triton.jit(do_not_specialize=["T"])
def _absorb_kernel(
    q_ptr, w_ptr, scales_ptr, cos_ptr, sin_ptr, positions_ptr, out_ptr, first_ptr, old_lse_ptr,
    new_lse_ptr, stride_s, stride_t, T,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, BETA: tl.constexpr, LENGTH: tl.constexpr, INTERLEAVED: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some columns of one head's queries over latents or, in a head's last program, their turned
    part; grid (N · (blocks of C, and one), blocks of T)."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    head, column_block = tl.program_id(0) // (blocks + 1), tl.program_id(0) % (blocks + 1)
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = tokens < T
    # Older than the projection, which has waited for them itself.
    positions = tl.load(positions_ptr + tokens, mask=is_token, other=0)
    q_ptrs = q_ptr + tokens.to(tl.int64)[:, None] * stride_t + head * (P + R)
    out_ptrs = out_ptr + (tokens.to(tl.int64)[:, None] * N + head) * (C + R)
    if column_block < blocks:
        columns = column_block * BLOCK_C + tl.arange(0, BLOCK_C)
        is_column = columns < C
        first_row = head * (P + V)
        total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
        wait_for_previous(PDL)
        for p in range(0, P, BLOCK_P):
            inputs = p + tl.arange(0, BLOCK_P)
            is_input = inputs < P
            is_q = is_token[:, None] & is_input[None, :]
            q = add_parts(load_parts(q_ptrs + inputs[None, :], is_q, stride_s, S), S).to(dtype)
            q = _grown(q, positions, BETA, LENGTH)
            if first_ptr is not None:  # noqa: SIM102 - the kernel's language evaluates both sides
                if column_block == 0:
                    first_ptrs = first_ptr + (tokens.to(tl.int64)[:, None] * N + head) * P
                    tl.store(first_ptrs + inputs[None, :], q, mask=is_q)
            rows = first_row + tl.minimum(inputs, P - 1)
            is_weight = is_input[:, None] & is_column[None, :]
            w = _load_weights(
                w_ptr, scales_ptr, rows, columns, is_weight, column_block * BLOCK_C // BK,
                C, BN, BK, dtype,
            )  # fmt: skip
            total = tl.dot(q, w, total, input_precision=PRECISION)
        is_out = is_token[:, None] & is_column[None, :]
        tl.store(out_ptrs + columns[None, :], total.to(dtype), mask=is_out)
    else:
        halves = tl.arange(0, BLOCK_H)
        mask = is_token[:, None] & (halves < R // 2)[None, :]
        turns = positions.to(tl.int64)[:, None] * R + halves[None, :]
        cos = tl.load(cos_ptr + turns, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + turns, mask=mask, other=0.0)
        wait_for_previous(PDL)
        at_1, at_2 = pair_places(halves, R, INTERLEAVED)
        first_ptrs, second_ptrs = q_ptrs + (P + at_1)[None, :], q_ptrs + (P + at_2)[None, :]
        first = add_parts(load_parts(first_ptrs, mask, stride_s, S), S).to(dtype)
        second = add_parts(load_parts(second_ptrs, mask, stride_s, S), S).to(dtype)
        first = _grown(first, positions, BETA, LENGTH)
        second = _grown(second, positions, BETA, LENGTH)
        first, second = turn(first, second, cos, sin, dtype)
        if old_lse_ptr is not None:
            lse_at = tokens.to(tl.int64) * N + head
            tl.store(old_lse_ptr + lse_at, tl.zeros([BLOCK_T], tl.float32), mask=is_token)
            nothing = tl.full([BLOCK_T], float("-inf"), tl.float32)
            tl.store(new_lse_ptr + lse_at, nothing, mask=is_token)
        tl.store(out_ptrs + (C + halves)[None, :], first, mask=mask)
        tl.store(out_ptrs + (C + R // 2 + halves)[None, :], second, mask=mask)


@triton.jit(do_not_specialize=["T"])
def _project_kernel(
    found_ptr, w_ptr, scales_ptr, out_ptr, new_ptr, old_lse_ptr, new_lse_ptr, T,
    N: tl.constexpr, P: tl.constexpr, V: tl.constexpr, C: tl.constexpr, SCALES: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some columns of one head's output; grid (N · blocks of V, blocks of T)."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    blocks: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    head, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tokens = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = block * BLOCK_V + tl.arange(0, BLOCK_V)
    is_token, is_column = tokens < T, columns < V
    rows = head * (P + V) + P + tl.minimum(columns, V - 1)
    found_ptrs = found_ptr + (tokens.to(tl.int64)[:, None] * N + head) * C
    total = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    wait_for_previous(PDL)
    for c in range(0, C, BLOCK_C):
        inputs = c + tl.arange(0, BLOCK_C)
        is_input = (inputs < C)[None, :]
        found = tl.load(found_ptrs + inputs[None, :], mask=is_token[:, None] & is_input, other=0.0)
        mask = is_column[:, None] & is_input
        w = _load_weights(
            w_ptr, scales_ptr, rows, inputs, mask, c // BK, C, BN, BK, dtype
        )  # fmt: skip
        total = tl.dot(found, tl.trans(w), total, input_precision=PRECISION)
    at = tokens.to(tl.int64)[:, None] * (N * V) + head * V + columns[None, :]
    is_out = is_token[:, None] & is_column[None, :]
    if new_ptr is not None:
        lse_at = tokens.to(tl.int64) * N + head
        old = tl.load(old_lse_ptr + lse_at, mask=is_token, other=0.0)
        new = tl.load(new_lse_ptr + lse_at, mask=is_token, other=0.0)
        # Where nothing was seen memory may hold anything.
        is_new = is_out & (new > float("-inf"))[:, None]
        found_new = tl.load(new_ptr + at, mask=is_new, other=0.0).to(tl.float32)
        top = tl.maximum(old, new)
        old, new = tl.exp2(old - top), tl.exp2(new - top)
        share = (new / (old + new))[:, None]
        total = total * (1.0 - share) + found_new * share
    tl.store(out_ptr + at, total.to(dtype), mask=is_out)


def absorb_queries(
    q_STW: torch.Tensor,
    weight: Weight,
    cos_PR: torch.Tensor,
    sin_PR: torch.Tensor,
    positions_T: torch.Tensor,
    *,
    value_width: int,
    interleaved: bool,
    growth: QueryGrowth | None,
    num_cores: int,
    out_TNE: torch.Tensor,
    halves: Halves | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Queries as entries of the cache meet them: the part without a position times the rows of
    keys, then the other part turned, as two halves.

    Args:
        q_STW: parts ``[S, T, N · (P + R)]``, in any dtype, any strides over S and T.
        weight: W, plain or of eight bits.
        cos_PR, sin_PR: fp32, of every position; the second half repeats the first.
        positions_T: int32.
        out_TNE: in the model's dtype, to which the sum of the parts is rounded.
        halves: gets the part without a position as it is, and log-sum-exps of a token that sees
            something of the cache alone.

    Returns:
        ``out_TNE``.
    """
    S, T, W = q_STW.shape
    N, E = out_TNE.shape[1:]
    R, C = cos_PR.shape[1], weight.shape[1]
    P = W // N - R
    check_weight(weight, N * (P + value_width), out_TNE.dtype)
    assert E == C + R and out_TNE.shape[0] == T and out_TNE.is_contiguous()
    assert W == N * (P + R) and q_STW.stride(2) == 1
    assert cos_PR.shape == sin_PR.shape and cos_PR.dtype == sin_PR.dtype == torch.float32
    assert cos_PR.is_contiguous() and sin_PR.is_contiguous()
    assert positions_T.shape == (T,) and positions_T.dtype == torch.int32
    if T == 0:
        return out_TNE
    parts: tuple[torch.Tensor | None, ...] = (None,) * 3
    if halves is not None:
        halves.check(T, N, P, value_width, out_TNE.dtype)
        parts = halves.q_TNP, halves.old_lse_TN, halves.new_lse_TN
    block_t, block_c = _block_t(T, parts=S), _columns(weight, N, C, T, num_cores)
    _absorb_kernel[(N * (triton.cdiv(C, block_c) + 1), triton.cdiv(T, block_t))](
        q_STW, weight.values, weight.scales, cos_PR, sin_PR, positions_T, out_TNE, *parts,
        q_STW.stride(0), q_STW.stride(1), T,
        S=S, N=N, P=P, R=R, V=value_width, C=C, INTERLEAVED=interleaved,
        BETA=None if growth is None else growth.beta,
        LENGTH=1 if growth is None else growth.length,
        BLOCK_T=block_t, BLOCK_P=_depth(P, block_t * S, _QUERY_DEPTH), BLOCK_C=block_c,
        BLOCK_H=triton.next_power_of_2(R // 2), num_stages=1 if block_t == _MAX_BLOCK else 3,
        **_options(weight, out_TNE.dtype, pdl),
    )  # fmt: skip
    return out_TNE


def project_values(
    found_TNC: torch.Tensor,
    weight: Weight,
    *,
    num_cores: int,
    out_TW: torch.Tensor,
    halves: Halves | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """What attention found of each head, times its rows of values ``[T, N · V]``, in ``out_TW``;
    with ``halves`` joined to what it found among new tokens."""
    T, N, C = found_TNC.shape
    V = out_TW.shape[1] // N
    P = weight.shape[0] // N - V
    check_weight(weight, N * (P + V), out_TW.dtype)
    assert weight.shape[1] == C and found_TNC.dtype == out_TW.dtype
    assert found_TNC.is_contiguous() and out_TW.is_contiguous() and out_TW.shape == (T, N * V)
    if T == 0:
        return out_TW
    parts: tuple[torch.Tensor | None, ...] = (None,) * 3
    if halves is not None:
        halves.check(T, N, P, V, out_TW.dtype)
        parts = halves.new_TNV, halves.old_lse_TN, halves.new_lse_TN
    block_t, block_v = _block_t(T), _columns(None, N, V, T, num_cores)
    _project_kernel[(N * triton.cdiv(V, block_v), triton.cdiv(T, block_t))](
        found_TNC, weight.values, weight.scales, out_TW, *parts, T,
        N=N, P=P, V=V, C=C, BLOCK_T=block_t, BLOCK_V=block_v,
        BLOCK_C=min(_depth(C, block_t, _DEPTH), _one_block(weight)), num_stages=3,
        **_options(weight, out_TW.dtype, pdl),
    )  # fmt: skip
    return out_TW


def check_weight(weight: Weight, rows: int, dtype: torch.dtype) -> None:
    """Assert that both products can read it, which has sixteen bits or eight."""
    assert weight.kind != INT4_NAME
    assert weight.shape[0] == rows and weight.values.is_contiguous()
    assert weight.scales is not None or weight.values.dtype == dtype
    assert weight.scales is None or weight.scales.is_contiguous()


def _block_t(num_tokens: int, parts: int = 1) -> int:
    """Of a program: fewer where all parts of their queries would leave a step few inputs."""
    most = max(16, min(_MAX_BLOCK, _MOST_NUMBERS // (_DEPTH * triton.next_power_of_2(parts))))
    return min(most, max(16, triton.next_power_of_2(num_tokens)))


def _columns(weight: Weight | None, num_heads: int, width: int, num_tokens: int, cores: int) -> int:
    """Of a program: fewer where there would be fewer programs than multiprocessors; of the outputs
    of ``weight`` never several blocks of scales. The same for all steps up to a power of two, of
    which warm-ups see one."""
    most = _MAX_BLOCK if weight is None else min(_MAX_BLOCK, _one_block(weight))
    columns = max(_MIN_COLUMNS, min(most, triton.next_power_of_2(width)))
    rows = num_heads * triton.cdiv(triton.next_power_of_2(num_tokens), _block_t(num_tokens))
    while columns > _MIN_COLUMNS and rows * triton.cdiv(width, columns) < cores:
        columns //= 2
    return columns


def _depth(inputs: int, rows: int, usual: int) -> int:
    """Of a step, for so many rows of all parts of a program's queries."""
    most = min(_FEW_DEPTH if rows <= _FEW_TOKENS else usual, _MOST_NUMBERS // rows)
    return max(16, min(1 << (most.bit_length() - 1), triton.next_power_of_2(inputs)))


def _one_block(weight: Weight) -> int:
    """Columns of W that surely have one scale, a power of two."""
    if weight.block is None or weight.block[1] == weight.shape[1]:
        return triton.next_power_of_2(weight.shape[1])
    return weight.block[1] & -weight.block[1]


def _options(weight: Weight, dtype: torch.dtype, pdl: bool) -> dict[str, Any]:
    return {
        "PRECISION": precision(dtype),
        "num_warps": 4,
        **scale_options(weight),
        **launch_options(pdl),
    }
