"""The norm of what tokens read of a state, head by head, weighed with their gates.

Owns the arithmetic. T tokens, S parts, N heads, V width of values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.silu import silu
from moe.base.sum_norm import add_parts, load_parts

_TOKENS = 16  # of a program, where there are more


@triton.jit(do_not_specialize=["num_tokens"])
def _gated_norm_kernel(
    read_ptr, gates_ptr, norm_ptr, out_ptr, num_tokens, stride_s, stride_t,
    N: tl.constexpr, V: tl.constexpr, S: tl.constexpr, TOKENS: tl.constexpr, BLOCK_V: tl.constexpr,
    EPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some tokens of one head."""
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    tokens, vs = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK_V)
    head, is_v = tl.program_id(1), vs < V
    mask = (tokens < num_tokens)[:, None] & is_v[None, :]
    norm = tl.load(norm_ptr + vs, mask=is_v, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    rows = tokens.to(tl.int64)[:, None]
    places = rows * (N * V) + head * V + vs[None, :]
    read = tl.load(read_ptr + places, mask=mask, other=0.0)
    gates_ptrs = gates_ptr + rows * stride_t + head * V + vs[None, :]
    gates = add_parts(load_parts(gates_ptrs, mask, stride_s, S), S).to(dtype).to(tl.float32)
    scale = tl.rsqrt(tl.sum(read * read, axis=1) / V + EPS)
    out = read * scale[:, None] * norm[None, :] * silu(gates)
    tl.store(out_ptr + places, out.to(dtype), mask=mask)


def gated_norm(
    read_TW: torch.Tensor,
    gates_STW: torch.Tensor,
    norm_V: torch.Tensor,
    *,
    eps: float,
    out: torch.Tensor,
    pdl: bool,
) -> None:
    """``read / sqrt(mean(read²) + eps) · norm · silu(gates)`` of each head, ``[T, N·V]``, in fp32
    and rounded once.

    Args:
        read_TW: fp32, contiguous.
        gates_STW: parts of a sum that is rounded to the type of ``out``; W contiguous.
    """
    S, T, width = gates_STW.shape
    V = len(norm_V)
    assert read_TW.shape == out.shape == (T, width) and width % V == 0
    assert read_TW.is_contiguous() and out.is_contiguous() and gates_STW.stride(2) == 1
    assert read_TW.dtype == torch.float32
    if T == 0:
        return
    tokens = _TOKENS if T > _TOKENS else 1
    _gated_norm_kernel[(triton.cdiv(T, tokens), width // V)](
        read_TW, gates_STW, norm_V, out, T, *gates_STW.stride()[:2],
        N=width // V, V=V, S=S, TOKENS=tokens, BLOCK_V=triton.next_power_of_2(V), EPS=eps,
        num_warps=4 if tokens > 1 else 1, **launch_options(pdl),
    )  # fmt: skip
