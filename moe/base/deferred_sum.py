"""A sum that is not computed yet: the next norm's kernel adds its parts while it reads them.

T tokens, S weighted parts of a sum, M parts without weights (the shared experts'), H hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe.base.context import KernelContext
from moe.base.sum_norm import sum_norm


class DeferredSum(NamedTuple):
    """(Σ_s weights[t,s] · parts[t,s] + Σ_m unweighted[t,m]) · scale, not computed yet: the next
    norm adds it to the residual.

    `parts` [T,S,H] in any strides; `weights` fp32 [T,S], or None for ones. A part whose weight is 0
    is left out, whatever it holds. `unweighted` [T,M,H] in any strides, of another buffer, or None.
    """

    parts: torch.Tensor
    weights: torch.Tensor | None = None
    unweighted: torch.Tensor | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, x_TH: torch.Tensor) -> DeferredSum:
        """One part: nothing is left to sum."""
        return cls(x_TH.unsqueeze(1))

    def plus(self, other: DeferredSum | None) -> DeferredSum:
        """The sum of both; `other` has no weights, and neither has `unweighted` yet."""
        if other is None:
            return self
        assert self.unweighted is None and other.unweighted is None and other.weights is None
        return self._replace(unweighted=other.parts)

    def times(self, scale: float) -> DeferredSum:
        """The sum, rounded, and multiplied."""
        return self if scale == 1 else self._replace(scale=self.scale * scale)

    def total(self, dtype: torch.dtype, context: KernelContext | None = None) -> torch.Tensor:
        """[T,H] in `dtype`, accumulated in fp32 from s = 0 upwards."""
        is_whole = self.weights is None and self.unweighted is None and self.parts.shape[1] == 1
        if is_whole and self.scale == 1 and self.parts.dtype == dtype:
            return self.parts[:, 0]
        if context is not None:
            T, _, H = self.parts.shape
            out_TH = context.workspace.take("total", (T, H), dtype)
            sum_norm(
                self.parts,
                self.weights,
                more_TMH=self.unweighted,
                scale=self.scale,
                out_residual=out_TH,
                pdl=context.pdl,
            )
            return out_TH
        total_TH = weighted_sum(self.parts, self.weights, torch.float32)
        if self.unweighted is not None:
            total_TH = total_TH + weighted_sum(self.unweighted, None, torch.float32)
        total_TH = total_TH.to(dtype)
        return total_TH if self.scale == 1 else total_TH * self.scale

    def add_to(self, rows_TH: torch.Tensor, context: KernelContext | None) -> None:
        """Adds the sum, rounded to their dtype, to rows in place."""
        if context is None:
            rows_TH += self.total(rows_TH.dtype)
            return
        sum_norm(
            self.parts,
            self.weights,
            rows_TH,
            more_TMH=self.unweighted,
            scale=self.scale,
            out_residual=rows_TH,
            pdl=context.pdl,
        )


def weighted_sum(
    routes_TKH: torch.Tensor, weights_TK: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """[T,H] in `dtype`: weighted sum over k, accumulated in fp32 from k = 0 upwards; a route of
    weight 0 adds nothing, whatever it holds. `weights_TK` is fp32, None for ones.

    Multiply and add are separate elementwise operations, so that a row's bits depend neither on T
    nor on the rank that sums it.
    """
    if weights_TK is None:
        weights_TK = routes_TKH.new_ones(routes_TKH.shape[:2], dtype=torch.float32)
    weights_TK1 = weights_TK.unsqueeze(-1)
    weighted_TKH = torch.where(weights_TK1 == 0.0, 0.0, routes_TKH.float() * weights_TK1)
    total_TH = weighted_TKH[:, 0]
    for k in range(1, weighted_TKH.shape[1]):
        total_TH = total_TH + weighted_TKH[:, k]
    return total_TH.to(dtype)
