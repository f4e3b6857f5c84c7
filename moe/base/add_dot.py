"""One step of a GEMM on tensor cores, with its few rows on either side of the product.

Owns device functions. Does not know where the operands come from.
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


@triton.jit
def add_fp32_dot(total, x, w, SWAP: tl.constexpr):
    """`add_dot` of x of 16 bits and w of fp32, both finite, whose products err by 2⁻²³ at most.

    A number of 16 bits is one of tf32's 11, and w the sum of two such.
    """
    x = x.to(tl.float32)
    high = ((w.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    total = add_dot(total, x, w - high, "tf32", SWAP)
    return add_dot(total, x, high, "tf32", SWAP)
