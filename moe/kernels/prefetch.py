"""Asking for weights before they are used: they come to the L2 cache while other work runs.

Owns two device functions, of one prefetch a line of 128 bytes. NVIDIA only: kernels call them where
they are launched with PDL.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LINE_BYTES = tl.constexpr(128)


@triton.jit
def _prefetch(ptrs):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [ptrs],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def prefetch_tile(
    w_ptr, first_row, first_column, N: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of the matrix w [N, K]; COLUMNS are a power of two of whole lines."""
    line: tl.constexpr = _LINE_BYTES // (w_ptr.dtype.element_ty.primitive_bitwidth // 8)
    rows = tl.minimum(first_row + tl.arange(0, ROWS), N - 1)
    columns = tl.minimum(first_column + line * tl.arange(0, COLUMNS // line), K - 1)
    _prefetch(w_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :])


@triton.jit
def prefetch_share(w_ptr, share, SIZE: tl.constexpr, SHARES: tl.constexpr):
    """The share-th of SHARES parts of SIZE contiguous elements."""
    line: tl.constexpr = _LINE_BYTES // (w_ptr.dtype.element_ty.primitive_bitwidth // 8)
    lines: tl.constexpr = (SIZE + line * SHARES - 1) // (line * SHARES)
    block: tl.constexpr = triton.next_power_of_2(lines)
    places = (share * lines + tl.arange(0, block)) * line
    _prefetch(w_ptr + tl.minimum(places, SIZE - 1))
