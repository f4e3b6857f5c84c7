"""What a norm over all heads must know of a token's q and k: this rank's sums of squares.

Owns one kernel and its launch. Does not know the other ranks, whose sums the caller adds. T tokens,
S parts, A numbers of q and B of k, which leads W.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import add_parts, load_parts

_BLOCK = 1024


@triton.jit
def _qk_squares_kernel(
    qkv_ptr, bias_ptr, model_ptr, out_ptr, stride_s, stride_t, S: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, COUNTS_KEYS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of one token's q, in the first program of two, or k, from the first number to the last."""
    dtype: tl.constexpr = model_ptr.dtype.element_ty
    kind, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wait_for_previous(PDL)
    start, width = tl.where(kind == 0, 0, A), tl.where(kind == 0, A, B if COUNTS_KEYS else 0)
    squares = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, width, BLOCK):
        inner = at + tl.arange(0, BLOCK)
        mask = inner < width
        parts = load_parts(qkv_ptr + token * stride_t + start + inner, mask, stride_s, S)
        total = add_parts(parts, S)
        if bias_ptr is not None:
            total += tl.load(bias_ptr + start + inner, mask=mask, other=0.0).to(tl.float32)
        total = total.to(dtype).to(tl.float32)
        squares += total * total
    tl.store(out_ptr + 2 * token + kind, tl.sum(squares, axis=0))


def qk_squares(
    qkv_STW: torch.Tensor,
    widths: tuple[int, int],
    bias_W: torch.Tensor | None,
    dtype_of: torch.Tensor,
    *,
    out_T2: torch.Tensor,
    counts_keys: bool = True,
    pdl: bool = False,
) -> torch.Tensor:
    """Sums of the squares of q and k of each token, rounded as `qk_rope` rounds them.

    Args:
        qkv_STW, bias_W: as `qk_rope` has them.
        widths: A, B.
        dtype_of: any tensor of the model's dtype.
        out_T2: fp32.
        counts_keys: False: the second sum is 0, on a rank whose KV heads another one counts.
    """
    S, T, W = qkv_STW.shape
    assert sum(widths) <= W and qkv_STW.stride(2) == 1
    assert out_T2.shape == (T, 2) and out_T2.dtype == torch.float32 and out_T2.is_contiguous()
    assert bias_W is None or (bias_W.shape == (W,) and bias_W.is_contiguous())
    if T == 0:
        return out_T2
    block = min(_BLOCK, triton.next_power_of_2(max(widths)))
    _qk_squares_kernel[(2, T)](
        qkv_STW, bias_W, dtype_of, out_T2, qkv_STW.stride(0), qkv_STW.stride(1),
        S=S, A=widths[0], B=widths[1], COUNTS_KEYS=counts_keys, BLOCK=block,
        num_warps=max(1, block // 256),
        **launch_options(pdl),
    )  # fmt: skip
    return out_T2
