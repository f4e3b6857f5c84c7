"""Some rows of many, in memory of their own."""

from __future__ import annotations

import torch

from moe.base.context import KernelContext


def pick_rows(
    rows_TW: torch.Tensor, index_R: torch.Tensor, context: KernelContext | None, name: str
) -> torch.Tensor:
    """Rows ``index_R``, int32, of ``[T, W]``: with a context in the workspace ``name``."""
    if context is None:
        return rows_TW.index_select(0, index_R)
    out_RW = context.workspace.take(name, (len(index_R), *rows_TW.shape[1:]), rows_TW.dtype)
    return torch.index_select(rows_TW, 0, index_R, out=out_RW)
