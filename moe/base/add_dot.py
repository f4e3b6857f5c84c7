"""One step of a GEMM on tensor cores, with its few rows on either side of the product.

Owns a device function. Does not know where the operands come from.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_dot(total, x, w, PRECISION: tl.constexpr, SWAP: tl.constexpr):
    """total + x·wᵀ; with SWAP both `total` and the result are transposed."""
    if SWAP:
        total = tl.dot(w, x.T, total, input_precision=PRECISION)
    else:
        total = tl.dot(x, w.T, total, input_precision=PRECISION)
    return total
