"""Asking for weights before they are used: they come to the L2 cache while other work runs.

Owns a device function, of one prefetch a line of 128 bytes. NVIDIA only: kernels call it where they
are launched with PDL.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LINE_BYTES = tl.constexpr(128)


@triton.jit
def prefetch_tile(
    w_ptr, first_row, first_column, N: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of the matrix w [N, K]; COLUMNS are a power of two of whole lines."""
    line: tl.constexpr = _LINE_BYTES // (w_ptr.dtype.element_ty.primitive_bitwidth // 8)
    rows = tl.minimum(first_row + tl.arange(0, ROWS), N - 1)
    columns = tl.minimum(first_column + line * tl.arange(0, COLUMNS // line), K - 1)
    ptrs = w_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [ptrs],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
