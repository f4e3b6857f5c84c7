"""silu of fp32 numbers in registers, for kernels that have a gate at hand."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(x):
    """x · sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))
