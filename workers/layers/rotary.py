"""Rotary position embedding (Su et al., 2021), in the half-split form of Llama and Qwen.

Scaled kinds (YaRN, linear, dynamic) are not built; model_config.py refuses them.
"""

from __future__ import annotations

import torch
from torch import nn


class RotaryEmbedding(nn.Module):
    """Cosines and sines for all positions, computed once in fp32.

    Args:
        head_dim: D, even.
        max_positions: rows of the tables, for positions 0 to max_positions - 1.
        theta: base of the wavelengths.
    """

    def __init__(
        self, head_dim: int, max_positions: int, theta: float, device: torch.device
    ) -> None:
        super().__init__()
        self.cos = nn.Buffer(
            torch.empty(max_positions, head_dim, dtype=torch.float32, device=device),
            persistent=False,
        )
        self.sin = nn.Buffer(torch.empty_like(self.cos), persistent=False)
        if device.type == "meta":
            return  # a plan's tables have no values; to work them out there takes seconds
        powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        positions = torch.arange(max_positions, dtype=torch.float32, device=device)
        angles = torch.outer(positions, 1.0 / theta**powers)
        self.cos.unflatten(1, (2, -1)).copy_(angles.cos().unsqueeze(1))
        self.sin.unflatten(1, (2, -1)).copy_(angles.sin().unsqueeze(1))

    def forward(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines ``[T, 1, D]`` in fp32."""
        return self.cos[positions_T].unsqueeze(1), self.sin[positions_T].unsqueeze(1)


def rotate(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + D/2) of every head by its position's angle."""
    x = x_TND.float()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos_T1D + turned * sin_T1D).to(x_TND.dtype)
