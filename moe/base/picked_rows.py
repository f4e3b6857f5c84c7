"""Some rows of many, in memory of their own."""

from __future__ import annotations

from typing import overload

import torch

from moe.base.context import KernelContext
from moe.base.quantized import Quantized, take_quantized


@overload
def pick_rows(
    rows: torch.Tensor, index_R: torch.Tensor, context: KernelContext | None, name: str
) -> torch.Tensor: ...


@overload
def pick_rows(
    rows: torch.Tensor | Quantized, index_R: torch.Tensor, context: KernelContext | None, name: str
) -> torch.Tensor | Quantized: ...


def pick_rows(
    rows: torch.Tensor | Quantized, index_R: torch.Tensor, context: KernelContext | None, name: str
) -> torch.Tensor | Quantized:
    """Rows ``index_R``, int32, of ``[T, W]``: with a context in the workspace ``name``."""
    if isinstance(rows, Quantized):
        assert context is not None
        shape = (len(index_R), rows.shape[1])
        out = take_quantized(context.workspace, name, shape, rows.group)
        values, out_values = rows.values.view(torch.uint8), out.values.view(torch.uint8)
        torch.index_select(values, 0, index_R, out=out_values)
        torch.index_select(rows.scales, 0, index_R, out=out.scales)
        return out
    if context is None:
        return rows.index_select(0, index_R)
    out_RW = context.workspace.take(name, (len(index_R), *rows.shape[1:]), rows.dtype)
    return torch.index_select(rows, 0, index_R, out=out_RW)
