"""Suppression of tokens before a draw, which keeps logits that are not finite detectable.

Owns the mark of a suppressed token; scaled_logits.load_logits reads it.
Shapes: D rows that draw, V vocabulary, P suppressed (row, id) pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous


@triton.jit
def _load_pairs(rows_ptr, ids_ptr, start, num_pairs, stride, BLOCK: tl.constexpr):
    """Rows and where their logits lie, and which of the pairs are real."""
    pairs = start + tl.arange(0, BLOCK)
    rows = tl.load(rows_ptr + pairs, mask=pairs < num_pairs, other=-1).to(tl.int64)
    is_pair = rows >= 0
    return rows, rows * stride + tl.load(ids_ptr + pairs, mask=is_pair, other=0), is_pair


@triton.jit(do_not_specialize=["num_pairs"])
def _suppress_kernel(
    logits_ptr, stride, rows_ptr, ids_ptr, num_pairs, spoilt_ptr,
    LOWEST: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program, so that all originals are read before one is overwritten: pairs may repeat."""
    wait_for_previous(PDL)
    start = 0
    while start < num_pairs:
        rows, places, is_pair = _load_pairs(rows_ptr, ids_ptr, start, num_pairs, stride, BLOCK)
        x = tl.load(logits_ptr + places, mask=is_pair, other=0.0).to(tl.float32)
        tl.store(spoilt_ptr + rows, 1, mask=is_pair & ~(tl.abs(x) < float("inf")))
        start += BLOCK
    tl.debug_barrier()
    lowest = tl.full([BLOCK], LOWEST, tl.float32).to(logits_ptr.dtype.element_ty)
    start = 0
    while start < num_pairs:
        _, places, is_pair = _load_pairs(rows_ptr, ids_ptr, start, num_pairs, stride, BLOCK)
        tl.store(logits_ptr + places, lowest, mask=is_pair)
        start += BLOCK


def suppress(
    logits_DV: torch.Tensor,
    rows_P: torch.Tensor,
    ids_P: torch.Tensor,
    spoilt_D: torch.Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Take tokens out, in place: `draw` and `filter_logits` count them as -inf.

    They become the lowest finite number of their dtype, so that an infinity which `draw` meets is
    the model's own; where one of these logits was not finite itself, spoilt_D says so to `draw`.

    Args:
        rows_P, ids_P: int64 pairs, in any order and number; a row below 0 is padding.
        spoilt_D: int32, zeros before the first use ever; `draw` clears what is set here.
    """
    assert logits_DV.stride(1) == 1
    assert rows_P.shape == ids_P.shape
    assert spoilt_D.shape == logits_DV.shape[:1]
    _suppress_kernel[(1,)](
        logits_DV, logits_DV.stride(0), rows_P, ids_P, rows_P.shape[0], spoilt_D,
        LOWEST=torch.finfo(logits_DV.dtype).min, BLOCK=1024, num_warps=8, **launch_options(pdl),
    )  # fmt: skip
