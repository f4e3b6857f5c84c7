"""What attention found, weighed by a softplus or sigmoid of the token's own, by head or
by number.

Owns one elementwise kernel and its launch. T tokens, S parts, N heads, V width of a value, G gates
of a token: N or N·V.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import add_parts, load_parts
from workers.attention.spec import GateActivation

_BLOCK = 1024


@triton.jit
def softplus(x):
    """log(1 + eˣ) as torch has it: x above 20; below, with the bits that 1 + eˣ loses."""
    grown = tl.exp(tl.minimum(x, 20.0))
    total = 1.0 + grown
    lost = tl.where(total == 1.0, 1.0, total - 1.0)
    log = tl.where(total == 1.0, grown, tl.log(total) * (grown / lost))
    return tl.where(x > 20.0, x, log)


@triton.jit
def _output_gate_kernel(
    gates_ptr, attended_ptr, stride_s, stride_t, S: tl.constexpr, W: tl.constexpr,
    V: tl.constexpr, BLOCK: tl.constexpr, SIGMOID: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A block of one token's W numbers, V of which share a gate."""
    dtype: tl.constexpr = attended_ptr.dtype.element_ty
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    mask = columns < W
    wait_for_previous(PDL)
    attended_ptrs = attended_ptr + row * W + columns
    attended = tl.load(attended_ptrs, mask=mask, other=0.0).to(tl.float32)
    parts = load_parts(gates_ptr + row * stride_t + columns // V, mask, stride_s, S)
    # Rounded where the projection and the activation round in plain torch.
    gate = add_parts(parts, S).to(dtype).to(tl.float32)
    gate = 1.0 / (1.0 + tl.exp(-gate)) if SIGMOID else softplus(gate)
    gate = gate.to(dtype).to(tl.float32)
    tl.store(attended_ptrs, (attended * gate).to(dtype), mask=mask)


def output_gate(
    gates_STG: torch.Tensor,
    attended_TW: torch.Tensor,
    activation: GateActivation,
    *,
    pdl: bool = False,
) -> torch.Tensor:
    """``attended_TW`` times the activation of the parts' sum, in place; G divides W."""
    S, T, G = gates_STG.shape
    W = attended_TW.shape[1]
    assert attended_TW.shape == (T, W) and attended_TW.is_contiguous()
    assert W % G == 0 and gates_STG.stride(2) == 1
    if T == 0:
        return attended_TW
    block = min(_BLOCK, triton.next_power_of_2(W))
    _output_gate_kernel[(T, triton.cdiv(W, block))](
        gates_STG, attended_TW, gates_STG.stride(0), gates_STG.stride(1),
        S=S, W=W, V=W // G, BLOCK=block, SIGMOID=activation == "sigmoid",
        num_warps=max(1, block // 256), **launch_options(pdl),
    )  # fmt: skip
    return attended_TW
