"""What attention found for query heads, written in the model dtype or in eight bits.

Owns the last step of its kernels. Eight bits have the bits that `moe.base.quantize_rows` makes of
rows in the model dtype, in groups that a head has a whole number of. M rows, each a query head of a
token; V head_dim of values.
"""

from __future__ import annotations

from typing import TypedDict

import torch
import triton
import triton.language as tl

from moe.base.quantize_rows import STORED, quantize_groups
from moe.base.quantized import Quantized

_ROUND = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class StoreOptions(TypedDict):
    """What a kernel says of its output.

    Attributes:
        ROUND: the dtype that is made eight bits; None: the output has no scales.
        COLUMNS: columns of a scale; 0 likewise.
    """

    ROUND: tl.dtype | None
    COLUMNS: int


def store_options(out: torch.Tensor | Quantized, dtype: torch.dtype) -> StoreOptions:
    """For rows that are of ``dtype``, or were before they became eight bits."""
    if isinstance(out, Quantized):
        return StoreOptions(ROUND=_ROUND[dtype], COLUMNS=out.group)
    return StoreOptions(ROUND=None, COLUMNS=0)


@triton.jit
def store_heads(
    acc_MV,
    out_ptr,
    at_MV,
    real_MV,
    scales_ptr,  # None but for eight bits
    heads_M,
    real_M,
    V_HEAD_DIM: tl.constexpr,
    ROUND: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rows to their places.

    Args:
        acc_MV: zeros where there is no column.
        at_MV: places behind ``out_ptr``; those of a head lie side by side.
        heads_M: each row's place among heads, counted from that of ``scales_ptr``.
    """
    if scales_ptr is None:
        tl.store(out_ptr + at_MV, acc_MV.to(out_ptr.dtype.element_ty), mask=real_MV)
    else:
        BLOCK_M: tl.constexpr = acc_MV.shape[0]
        BLOCK_V: tl.constexpr = acc_MV.shape[1]
        NUM_GROUPS: tl.constexpr = BLOCK_V // COLUMNS
        rounded = acc_MV.to(ROUND).to(tl.float32).reshape(BLOCK_M * NUM_GROUPS, COLUMNS)
        values, scales = quantize_groups(rounded)
        to_MV = tl.multiple_of(out_ptr + at_MV, (1, STORED))
        tl.store(to_MV, values.reshape(BLOCK_M, BLOCK_V), mask=real_MV)
        groups = tl.arange(0, NUM_GROUPS)
        real = real_M[:, None] & (groups < V_HEAD_DIM // COLUMNS)[None, :]
        at = heads_M[:, None] * (V_HEAD_DIM // COLUMNS) + groups[None, :]
        tl.store(scales_ptr + at, scales.reshape(BLOCK_M, NUM_GROUPS), mask=real)
