"""silu(gate) · up of an MLP that sees every token, from the parts of one projection.

Owns one elementwise kernel, which can also weigh a token by a sigmoid of its own and give the
result in eight bits. S parts, T tokens, I width, H hidden.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.quantize_rows import store_quantized
from moe.base.quantized import Quantized, split_quantized
from moe.base.silu import silu

_BLOCK = 1024

Rows = TypeVar("Rows", bound=torch.Tensor | Quantized)


@triton.jit
def _swiglu_kernel(
    parts_ptr, hidden_ptr, scale_ptr, out_ptr, out_scales_ptr, stride_s, stride_t,
    S: tl.constexpr, I: tl.constexpr, H: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr, HAS_SCALE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    dtype = parts_ptr.dtype.element_ty if GROUP > 0 else out_ptr.dtype.element_ty
    wait_for_previous(PDL)
    gate = tl.zeros((BLOCK,), dtype=tl.float32)
    up = tl.zeros((BLOCK,), dtype=tl.float32)
    for s in tl.static_range(S):
        ptrs = parts_ptr + s * stride_s + row * stride_t + columns
        gate += tl.load(ptrs, mask=columns < I, other=0.0).to(tl.float32)
        up += tl.load(ptrs + I, mask=columns < I, other=0.0).to(tl.float32)
    # Rounded where the projections and the activation round in plain torch.
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    gate = silu(gate).to(dtype).to(tl.float32)
    inner = gate * up
    if HAS_SCALE:
        hs = tl.arange(0, BLOCK_H)
        scale_H = tl.load(scale_ptr + hs, mask=hs < H, other=0.0).to(tl.float32)
        hidden_H = tl.load(hidden_ptr + row * H + hs, mask=hs < H, other=0.0).to(tl.float32)
        logit = tl.sum(scale_H * hidden_H, axis=0).to(dtype).to(tl.float32)
        inner = inner / (1.0 + tl.exp(-logit))
    inner = inner.to(dtype)
    if GROUP > 0:
        store_quantized(inner, out_ptr, out_scales_ptr, row, columns, I, GROUP)
    else:
        tl.store(out_ptr + row * I + columns, inner, mask=columns < I)


def swiglu(
    parts_STW: torch.Tensor,
    *,
    out_TI: Rows,
    pdl: bool,
    hidden_TH: torch.Tensor | None = None,
    scale_1H: torch.Tensor | None = None,
) -> Rows:
    """silu(gate) · up, ``[T, I]``, of the sum of parts ``[S, T, 2I]`` with gate columns first.

    Given both ``hidden_TH`` and ``scale_1H``, times the sigmoid of their product, one per token.
    """
    S, T, double = parts_STW.shape
    width = double // 2
    out, scales, group = split_quantized(out_TI)
    assert out.shape == (T, width) and out.is_contiguous() and parts_STW.stride(2) == 1
    assert (hidden_TH is None) == (scale_1H is None)
    H = 1
    if hidden_TH is not None and scale_1H is not None:
        H = hidden_TH.shape[1]
        assert hidden_TH.shape == (T, H) and hidden_TH.is_contiguous()
        assert scale_1H.shape == (1, H) and scale_1H.is_contiguous()
    _swiglu_kernel[(T, triton.cdiv(width, _BLOCK))](
        parts_STW, hidden_TH, scale_1H, out, scales, parts_STW.stride(0), parts_STW.stride(1),
        S=S, I=width, H=H, GROUP=group, BLOCK=_BLOCK, BLOCK_H=triton.next_power_of_2(H),
        HAS_SCALE=scale_1H is not None, num_warps=4, **launch_options(pdl),
    )  # fmt: skip
    return out_TI
