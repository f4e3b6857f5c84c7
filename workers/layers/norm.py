"""RMSNorm."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.checkpoint import CheckpointSlice


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) · w`` over the last dimension, in fp32, cast before the weight
    (Zhang & Sennrich, 2019; the order of casts is transformers')."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(
            torch.empty(size, dtype=dtype, device=device), requires_grad=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)
        scaled = torch.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return self.weight * scaled.to(x.dtype)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensor; ``prefix`` ends with the layer's own name and a dot."""
        size = self.weight.shape[0]
        yield CheckpointSlice(
            name=f"{prefix}weight", shape=(size,), index=(slice(None),), target=self.weight
        )
