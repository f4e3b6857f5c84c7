"""Rows of the embedding, of given tokens or of the last token that a sequence drew.

Owns the gather. Knows nothing of how tokens are drawn.
Shapes: T tokens of the step, V vocabulary, H hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import row_warps


@triton.jit
def _embed_kernel(
    ids_ptr, slots_ptr, last_token_ptr, table_ptr, out_ptr,
    H: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    token = tl.load(ids_ptr + row)
    slot = tl.load(slots_ptr + row)
    drawn = tl.load(last_token_ptr + slot, mask=slot >= 0, other=0)
    token = tl.where(token < 0, drawn, token).to(tl.int64)
    x = tl.load(table_ptr + token * H + columns, mask=columns < H, other=0.0)
    tl.store(out_ptr + row * H + columns, x, mask=columns < H)


def embed(
    ids_T: torch.Tensor,
    slots_T: torch.Tensor,
    last_token_S: torch.Tensor,
    table_VH: torch.Tensor,
    *,
    out_TH: torch.Tensor,
    pdl: bool = False,
) -> torch.Tensor:
    """Rows ``[T, H]`` of the table.

    Args:
        ids_T: int32; -1 stands for the last token of the row's slot.
        slots_T: int32; -1 is padding, whose last token is 0.
        last_token_S: int32, by slot.
    """
    T, H = out_TH.shape
    assert ids_T.shape == slots_T.shape == (T,) and table_VH.shape[1] == H
    assert ids_T.dtype == slots_T.dtype == last_token_S.dtype == torch.int32
    assert out_TH.dtype == table_VH.dtype and out_TH.is_contiguous() and table_VH.is_contiguous()
    if T:
        block = triton.next_power_of_2(H)
        _embed_kernel[(T,)](
            ids_T, slots_T, last_token_S, table_VH, out_TH,
            H=H, BLOCK=block, num_warps=row_warps(block, table_VH.itemsize), **launch_options(pdl),
        )  # fmt: skip
    return out_TH
