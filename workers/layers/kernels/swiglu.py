"""silu(gate) · up of a dense MLP, from the parts of one projection.

Owns one elementwise kernel. S parts, T tokens, I width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous

_BLOCK = 1024


@triton.jit
def _swiglu_kernel(
    parts_ptr, out_ptr, stride_s, stride_t,
    S: tl.constexpr, I: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    dtype = out_ptr.dtype.element_ty
    wait_for_previous(PDL)
    gate = tl.zeros((BLOCK,), dtype=tl.float32)
    up = tl.zeros((BLOCK,), dtype=tl.float32)
    for s in tl.static_range(S):
        ptrs = parts_ptr + s * stride_s + row * stride_t + columns
        gate += tl.load(ptrs, mask=columns < I, other=0.0).to(tl.float32)
        up += tl.load(ptrs + I, mask=columns < I, other=0.0).to(tl.float32)
    # Rounded where the projections and the activation round in plain torch.
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * I + columns, (gate * up).to(dtype), mask=columns < I)


def swiglu(parts_STW: torch.Tensor, *, out_TI: torch.Tensor, pdl: bool) -> torch.Tensor:
    """silu(gate) · up, ``[T, I]``, of the sum of parts ``[S, T, 2I]`` with gate columns first."""
    S, T, double = parts_STW.shape
    width = double // 2
    assert out_TI.shape == (T, width) and out_TI.is_contiguous() and parts_STW.stride(2) == 1
    _swiglu_kernel[(T, triton.cdiv(width, _BLOCK))](
        parts_STW, out_TI, parts_STW.stride(0), parts_STW.stride(1),
        S=S, I=width, BLOCK=_BLOCK, num_warps=4, **launch_options(pdl),
    )  # fmt: skip
    return out_TI
